"""Adapter folders: what is written, and what comes back."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file

from llm_mde.config import Config, ModelConfig, VitConfig
from llm_mde.inference import adapter
from llm_mde.inference.card import Provenance, read_card, write_card
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.head import Head
from llm_mde.model.lora import adapter_state
from llm_mde.model.reprogram import Reprogram
from llm_mde.model.vit import ViT
from tests.support.adapters import SCORES, depth, images, save, settings, trained


@pytest.fixture(scope="module")
def lora_model() -> DepthModel:
    return trained(settings("lora", "lora"))


@pytest.fixture(scope="module")
def saved(lora_model: DepthModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(lora_model, tmp_path_factory.mktemp("saved") / "adapter")


@pytest.mark.parametrize(("vit", "llm"), [("full", "full"), ("lora", "lora"), ("frozen", "lora")])
def test_loaded_model_predicts_what_the_trained_one_did(vit: str, llm: str, tmp_path: Path) -> None:
    model = trained(settings(vit, llm))
    save(model, tmp_path / "run" / "adapter")
    moved = (tmp_path / "run").rename(tmp_path / "elsewhere")
    for source in (moved, moved / "adapter"):
        loaded = adapter.load(source)
        assert not loaded.training
        torch.testing.assert_close(depth(loaded), depth(model), rtol=0, atol=1e-6)
    own_backbones = {path.parent.name for path in moved.rglob("model.safetensors")}
    assert own_backbones == ({"vit", "llm"} if vit == "full" else set())


def test_everything_trained_matters_in_the_round_trip() -> None:
    model = trained(settings("lora", "lora"))
    assert (depth(model) - depth(DepthModel(model.config, seed=3).eval())).abs().max() > 0.01


def test_folder_holds_the_documented_files(saved: Path) -> None:
    assert sorted(path.name for path in saved.iterdir()) == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "llm_mde.json",
    ]
    assert not list(saved.parent.glob("*.tmp")) + list(saved.parent.glob("*.old"))


def test_every_file_is_as_readable_as_the_others(saved: Path) -> None:
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_head_holds_the_prototypes_and_not_the_map(saved: Path) -> None:
    tensors = load_file(saved / "head.safetensors")
    assert tensors["prototypes"].shape == (64, 128)
    groups = {name.partition(".")[0] for name in tensors}
    assert groups == {"prototypes", "reprogram", "head"}
    assert max(tensor.numel() for tensor in tensors.values()) < 200_000
    assert any(name.endswith("running_var") for name in tensors)


def test_peft_settings_name_the_base_and_the_class(saved: Path) -> None:
    settings = json.loads((saved / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "random:tiny:0 + random:tiny:1"
    assert settings["auto_mapping"] == {
        "base_model_class": "DepthModel",
        "parent_library": "llm_mde.model.depth_model",
    }
    assert settings["peft_type"] == "LORA"


def test_peft_alone_loads_the_adapters(saved: Path, lora_model: DepthModel) -> None:
    base = DepthModel(settings("frozen", "frozen"), seed=3)
    untuned = DepthModel(base.config, seed=3).eval().vit
    wrapped = PeftModel.from_pretrained(base, saved)
    want = adapter_state(lora_model)
    found = adapter_state(wrapped.base_model.model)
    assert found.keys() == want.keys()
    assert all(torch.equal(found[name], want[name]) for name in want)
    found_scales = [getattr(module, "scaling", None) for module in wrapped.modules()]
    scales = {scale["default"] for scale in found_scales if isinstance(scale, dict)}
    assert scales == {6.0 / 4, 6.0 / 2}
    network = wrapped.base_model.model.eval()
    image = images()[:1].float() / 127.5 - 1
    embeds = torch.randn(1, 5, 128, generator=torch.Generator().manual_seed(2))
    places = torch.arange(5)[None]
    with torch.no_grad():
        assert torch.equal(network.vit(image), lora_model.vit(image))
        assert not torch.equal(network.vit(image), untuned(image))
        found_states = network.language(embeds, mask=None, positions=places)
        want_states = lora_model.language(embeds, mask=None, positions=places)
        assert torch.equal(found_states, want_states)


def test_peft_merges_the_adapters(saved: Path, lora_model: DepthModel) -> None:
    base = DepthModel(settings("frozen", "frozen"), seed=3)
    merged = PeftModel.from_pretrained(base, saved).merge_and_unload().eval()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    image = images()[:1].float() / 127.5 - 1
    with torch.no_grad():
        want = lora_model.vit(image)
        assert torch.allclose(merged.vit(image), want, rtol=1e-5, atol=1e-5)


def test_card_names_model_backbones_and_scores(saved: Path, lora_model: DepthModel) -> None:
    card = read_card(saved)
    assert card["format"] == "llm-mde adapter 2"
    assert ModelConfig.model_validate(card["model"]) == lora_model.config
    assert card["backbones"]["vit"] == {
        "name": "random:tiny:0",
        "revision": None,
        "sha256": lora_model.vit.identity.sha256,
    }
    assert card["scores"] == SCORES
    assert card["data"] == {
        "shards": "rooms",
        "train_split": "few-shot-1",
        "val_split": "val",
        "depth": "raw",
    }


def test_model_card_tells_protocol_pixels_data_and_use(saved: Path) -> None:
    readme = (saved / "README.md").read_text()
    assert (
        "| split | protocol | abs_rel | rmse | delta1 |\n|---|---|---|---|---|\n"
        "| val | `metric`: metres as predicted | 0.1234 | - | 0.5000 |\n"
        "| val | `paper`: each image's depths min-max normalised | - | - | 0.9000 |\n"
        "| val | baseline: mean depth map of the training images | - | 1.5000 | - |\n"
    ) in readme
    assert "`val`: 66 images (2 without a reading left out), no crop, pixels with" in readme
    assert "split `few-shot-1` of the shards `rooms` (raw depth), scored on split `val`" in readme
    assert "bucket" not in readme
    code = readme.partition("```python\n")[2].partition("```")[0]
    assert len(code.strip().splitlines()) == 5
    compile(code, "card", "exec")


def test_the_hub_understands_the_model_cards_head(saved: Path) -> None:
    data = ModelCard.load(saved / "README.md").data
    assert data.library_name == "llm-mde"
    assert data.pipeline_tag == "depth-estimation"
    assert (data.license, data.license_name) == ("other", "backbones-and-training-data")
    assert data.base_model is None  # random ones are on no hub


@pytest.mark.parametrize("how", ["lora", "full"])
def test_backbones_of_the_hub_are_named_by_commit(tmp_path: Path, how: str) -> None:
    model = trained(settings(how, "frozen"))
    names = {"vit": "vit_small_patch16_224", "llm": "owner/bert"}
    commits = {"vit": "a" * 40, "llm": "b" * 40}
    tree = model.config.model_dump()
    for part, network in (("vit", model.vit), ("llm", model.language)):
        tree[part]["name"] = names[part]
        network.identity = network.identity._replace(name=names[part], revision=commits[part])
    provenance = Provenance()
    config = ModelConfig.model_validate(tree)
    adapter.replace(model, tmp_path / "a", config=config, provenance=provenance)
    card = read_card(tmp_path / "a")
    assert {part: card["model"][part]["revision"] for part in names} == commits
    assert {part: card["backbones"][part]["revision"] for part in names} == commits
    data = ModelCard.load(tmp_path / "a" / "README.md").data
    assert data.base_model == ["timm/vit_small_patch16_224", "owner/bert"]
    assert data.to_dict()["base_model_relation"] == {"lora": "adapter", "full": "finetune"}[how]
    assert "Not recorded." in (tmp_path / "a" / "README.md").read_text()


def test_a_run_is_saved_with_the_commit_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = {None: "a" * 40}  # where the branch points

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        commit = commits.get(revision, revision)
        seed = {"a": 0, "b": 1}[commit[0]]
        folder = tmp_path / "snapshots" / commit
        ViT(VitConfig(name=f"random:tiny:{seed}"), image_size=(96, 128)).save(folder)
        return str(folder)

    monkeypatch.setattr("llm_mde.model.vit.snapshot_download", download)
    model = trained(settings("lora", "frozen", vit_name="me/vit"))
    commits[None] = "b" * 40  # somebody pushes while the run trains
    save(model, tmp_path / "adapter")
    card = read_card(tmp_path / "adapter")["backbones"]["vit"]
    assert (card["revision"], card["sha256"]) == ("a" * 40, model.vit.identity.sha256)
    torch.testing.assert_close(depth(adapter.load(tmp_path / "adapter")), depth(model))


@pytest.mark.parametrize(
    ("cropped", "words"), [(4, "(0 without a reading left out), Eigen crop,"), (1, "crop in 1,")]
)
def test_model_card_names_the_crop(tmp_path: Path, cropped: int, words: str) -> None:
    scores = {"val/abs_rel": 0.1, "val/images": 4.0, "val/cropped": float(cropped)}
    write_card(tmp_path, Config().model, {}, Provenance(scores))
    assert words in (tmp_path / "README.md").read_text()


def test_reference_adapter_is_under_40_mb() -> None:
    config, width, layers = Config().model, 768, 12
    lora = layers * (config.vit.lora.r * 4 * width + 3 * config.llm.lora.r * 2 * width)
    reprogram = Reprogram(
        width, width, heads=config.reprogram.heads, dropout=0.0, scale=torch.tensor(1.0)
    )
    head = Head(width, grid=(14, 14), widths=config.head.widths)
    own = sum(t.numel() for part in (reprogram, head) for t in part.state_dict().values())
    assert 4 * (lora + config.reprogram.prototypes * width + own) < 40e6


def test_saving_again_replaces_the_older_folder(
    saved: Path, lora_model: DepthModel, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "adapter"))
    (folder / "left_over.txt").write_text("old")
    save(lora_model, folder)
    assert not (folder / "left_over.txt").exists()
    assert [path.name for path in folder.parent.iterdir()] == ["adapter"]


def test_fully_tuned_backbones_are_the_base_of_the_next_run(tmp_path: Path) -> None:
    first = trained(settings("full", "full"))
    base = save(first, tmp_path / "base")
    config = settings("lora", "frozen", vit_name=str(base / "vit"), llm_name=str(base / "llm"))
    model = trained(config)
    want = dict(first.vit.model.named_parameters())["blocks.0.mlp.fc1.weight"]
    found = dict(model.vit.model.named_parameters())["blocks.0.mlp.fc1.weight"]
    assert torch.equal(found, want)
    save(model, tmp_path / "next")
    assert not (tmp_path / "next" / "vit").exists()
    torch.testing.assert_close(depth(adapter.load(tmp_path / "next")), depth(model))


def test_a_local_base_is_named_by_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = save(trained(settings("full", "frozen")), tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    model = trained(settings("lora", "frozen", vit_name="base/vit"))
    save(model, tmp_path / "next")
    monkeypatch.chdir("/")
    assert adapter.as_base(tmp_path / "next").vit.name == str(base / "vit")
    torch.testing.assert_close(depth(adapter.load(tmp_path / "next")), depth(model))
