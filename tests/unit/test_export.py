"""Exports: merged weights that plain libraries load; what differs is not kept."""

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from llm_mde import DepthModel
from llm_mde.cli import main
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.inference import adapter, export
from llm_mde.model import depth_model
from llm_mde.recipes import load, shipped


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter whose low-rank updates matter."""
    sets = ["model.vit.tune=lora", "model.llm.tune=lora"]
    network = depth_model.DepthModel(load(shipped("launch/demo.yaml"), sets=sets).model, seed=0)
    generator = torch.Generator().manual_seed(0)
    state = {name: network.state_dict()[name].clone() for name in network.trainable_state()}
    for name, value in state.items():
        if ".lora_B." in name:
            value += 0.05 * torch.randn(value.shape, generator=generator)
    folder = tmp_path_factory.mktemp("source") / "adapter"
    adapter.save(network.config, state, folder, seed=0, scores={"val/abs_rel": 0.2})
    return folder


@pytest.fixture(scope="module")
def merged(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("merged") / "new" / "model"
    made = export.export(source, out, kind="merge")
    assert made.relative < 2e-5
    return out


def noise(batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(0, 256, (batch, 3, 96, 128), dtype=torch.uint8, generator=generator)


@torch.no_grad()
def test_a_merged_folder_is_a_model_without_adapters(source: Path, merged: Path) -> None:
    whole, live = DepthModel.from_pretrained(merged), DepthModel.from_pretrained(source)
    assert not any("lora" in name for name in whole.state_dict())
    torch.testing.assert_close(whole(noise(3)), live(noise(3)), rtol=2e-5, atol=0)
    untuned = depth_model.DepthModel(live.settings, seed=0).eval()
    assert (untuned.predict(noise(3)) - live(noise(3))).abs().max() > 1e-3
    assert sorted(path.name for path in merged.iterdir()) == [
        "README.md",
        "head.safetensors",
        "llm",
        "llm_mde.json",
        "vit",
    ]
    assert json.loads((merged / "llm_mde.json").read_text())["scores"] == {"val/abs_rel": 0.2}
    assert [path.name for path in merged.parent.iterdir()] == ["model"]


@torch.no_grad()
def test_timm_and_transformers_alone_load_merged_backbones(merged: Path) -> None:
    live = DepthModel.from_pretrained(merged).network
    vit = timm.create_model(f"local-dir:{merged / 'vit'}", pretrained=True).eval()
    image = noise(2).float() / 127.5 - 1
    tokens = vit.forward_features(image)[:, vit.num_prefix_tokens :]
    torch.testing.assert_close(tokens, live.vit(image), rtol=1e-5, atol=1e-5)
    bert = AutoModel.from_pretrained(merged / "llm").eval()
    ids = AutoTokenizer.from_pretrained(merged / "llm")("far close", return_tensors="pt").input_ids
    places = torch.arange(ids.shape[1])[None]
    hidden = live.language(live.language.embeddings(ids), mask=None, positions=places)
    torch.testing.assert_close(bert(input_ids=ids).last_hidden_state, hidden)


def test_a_merged_weight_is_the_base_plus_the_scaled_product(source: Path, merged: Path) -> None:
    live = DepthModel.from_pretrained(source)
    layer = live.network.vit.model.blocks[1].attn.qkv
    lora = live.settings.vit.lora
    update = lora.alpha / lora.r * layer.lora_B.default.weight @ layer.lora_A.default.weight
    found = load_file(merged / "vit" / "model.safetensors")["blocks.1.attn.qkv.weight"]
    torch.testing.assert_close(found, layer.base_layer.weight + update)


def test_a_merged_folder_can_be_adapted_merged_and_shared_again(
    merged: Path, tmp_path: Path
) -> None:
    assert export.export(merged, tmp_path / "again", kind="merge").difference_m == 0
    sets = ["model.vit.tune=lora", "model.llm.tune=frozen", f"model.vit.name={merged / 'vit'}"]
    depth_model.DepthModel(load(shipped("launch/demo.yaml"), sets=sets).model, seed=0)


def test_what_differs_from_the_live_model_is_not_kept(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Other(nn.Module):
        def __init__(self, folder: Path) -> None:
            super().__init__()
            self.model = DepthModel(folder)

        def forward(self, image: Tensor) -> Tensor:
            return self.model(image) * 1.001

    form = export.FORMS["merge"]._replace(open=Other)
    monkeypatch.setitem(export.FORMS, "merge", form)
    with pytest.raises(CheckpointError, match=r"by 0\.\d+ m, relative 0\.001, expected at most 0"):
        export.export(source, tmp_path / "out", kind="merge")
    assert not list(tmp_path.iterdir())


def test_missing_onnx_packages_are_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    message = r"export onnx: needs onnxscript; run pip install 'llm-mde\[export\]'"
    with pytest.raises(ConfigError, match=message):
        export.export(source, tmp_path / "model.onnx", kind="onnx")


def test_nothing_is_overwritten_and_bad_words_are_refused(
    source: Path, tmp_path: Path, capsys
) -> None:
    assert main(["export", "merge", str(source), "--out", str(tmp_path)]) == 2
    assert f"--out: {tmp_path} exists; remove it" in capsys.readouterr().err
    inside = tmp_path / "file" / "model.pt2"
    inside.parent.touch()
    assert main(["export", "pt2", str(source), "--out", str(inside)]) == 2
    assert f"{inside.parent}: no folder can be made there (File exists)" in capsys.readouterr().err
    assert main(["export", "tflite", str(source), "--out", str(tmp_path / "x")]) == 2
    assert "'tflite' is not one of 'merge', 'onnx', 'pt2'" in capsys.readouterr().err
    assert main(["export", "pt2", str(tmp_path), "--out", str(tmp_path / "x" / "y")]) == 2
    assert not (tmp_path / "x").exists()
    assert "no llm_mde.json found" in capsys.readouterr().err
