"""Adapter folders: what is written, what comes back, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors.torch import load_file, save_file

from llm_mde.config import Config, DataConfig, ModelConfig
from llm_mde.errors import CheckpointError
from llm_mde.inference import adapter
from llm_mde.inference.card import Provenance, read_card, write_card
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.head import Head
from llm_mde.model.lora import adapter_state
from llm_mde.model.reprogram import Reprogram
from llm_mde.recipes import load, shipped

SCORES = {
    "val/abs_rel": 0.1234,
    "val/delta1": 0.5,
    "val/loss": 2.5,
    "val_paper/delta1": 0.9,
    "val_mean_map/rmse": 1.5,
    "val/images": 66.0,
    "val/cropped": 0.0,
    "val/left_out": 2.0,
}
DATA = DataConfig(shards="s3://bucket/private/rooms/", train_split="few-shot-1")
LORA = {"r": 4, "alpha": 6.0, "dropout": 0.0}


def settings(
    vit: str, llm: str, *, vit_name: str = "random:tiny:0", llm_name: str = "random:tiny:1"
) -> ModelConfig:
    tree = load(shipped("launch/demo.yaml")).model.model_dump()
    tree["vit"] |= {"tune": vit, "lora": LORA, "name": vit_name}
    tree["llm"] |= {"tune": llm, "lora": LORA | {"r": 2}, "name": llm_name}
    return ModelConfig.model_validate(tree)


def trained(config: ModelConfig) -> DepthModel:
    """A model in which everything trainable, and every statistic, has moved."""
    model = DepthModel(config, seed=3)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    with torch.no_grad():
        for name in model.trainable_state():
            noise = torch.randn(state[name].shape, generator=generator)
            state[name].add_(noise.abs() if name.endswith("running_var") else noise, alpha=0.02)
    model.prototypes.forget()
    return model.eval()


def save(model: DepthModel, folder: Path) -> Path:
    state = model.state_dict()
    changed = {name: state[name].clone() for name in model.trainable_state()}
    adapter.save(model.config, changed, folder, seed=3, scores=SCORES, data=DATA)
    return folder


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 96, 128), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def depth(model: DepthModel) -> torch.Tensor:
    return model.predict(images(), size=(48, 50))


@pytest.fixture(scope="module")
def lora_model() -> DepthModel:
    return trained(settings("lora", "lora"))


@pytest.fixture(scope="module")
def saved(lora_model: DepthModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(lora_model, tmp_path_factory.mktemp("saved") / "adapter")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "adapter"))


def tensors_of(path: Path) -> dict[str, torch.Tensor]:
    """Copies: what `load_file` gives may lie in the file itself."""
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def change_card(folder: Path, **changes: object) -> None:
    path = folder / "llm_mde.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


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


def test_card_names_model_backbones_and_scores(saved: Path, lora_model: DepthModel) -> None:
    card = read_card(saved)
    assert card["format"] == "llm-mde adapter 1"
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
    reprogram = Reprogram(width, width, heads=config.reprogram.heads, dropout=0.0)
    head = Head(width, grid=(14, 14), widths=config.head.widths)
    own = sum(t.numel() for part in (reprogram, head) for t in part.state_dict().values())
    assert 4 * (lora + config.reprogram.prototypes * width + own) < 40e6


def test_saving_again_replaces_the_older_folder(folder: Path, lora_model: DepthModel) -> None:
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


def test_a_vanished_base_is_named_with_the_adapter(tmp_path: Path) -> None:
    base = save(trained(settings("full", "frozen")), tmp_path / "base")
    save(trained(settings("lora", "frozen", vit_name=str(base / "vit"))), tmp_path / "next")
    shutil.rmtree(base)
    with pytest.raises(CheckpointError, match=r"next: its backbones cannot be loaded: model\.vit"):
        adapter.load(tmp_path / "next")


def test_other_weights_under_the_bases_name_are_refused(tmp_path: Path) -> None:
    base = save(trained(settings("full", "frozen")), tmp_path / "base")
    save(trained(settings("lora", "frozen", vit_name=str(base / "vit"))), tmp_path / "next")
    file = base / "vit" / "model.safetensors"
    weights = tensors_of(file)
    weights["norm.bias"] += 1
    save_file(weights, file, metadata={"format": "pt"})
    for name in ("next", "base"):  # the one that stands on it, and its own folder
        with pytest.raises(CheckpointError, match=rf"{name}: expected the vit weights it was"):
            adapter.load(tmp_path / name)


def test_a_base_of_another_size_is_refused(folder: Path) -> None:
    card = read_card(folder)
    card["model"]["image_size"] = [96, 100]
    change_card(folder, model=card["model"])
    with pytest.raises(CheckpointError, match="its backbones cannot be loaded: model.image_size"):
        adapter.load(folder)


@pytest.mark.parametrize("file", ["head.safetensors", "adapter_model.safetensors"])
def test_damaged_and_missing_weights_are_refused(folder: Path, file: str) -> None:
    path = folder / file
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=rf"{file}: damaged"):
        adapter.load(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=rf"{file}: missing"):
        adapter.load(folder)


def test_pickled_weights_are_not_even_looked_at(folder: Path) -> None:
    path = folder / "head.safetensors"
    torch.save(tensors_of(path), path)
    with pytest.raises(CheckpointError, match="head.safetensors: damaged"):
        adapter.load(folder)


def test_tensors_of_another_shape_are_named(folder: Path) -> None:
    path = folder / "head.safetensors"
    tensors = tensors_of(path)
    save_file(tensors | {"prototypes": torch.zeros(7, 128)}, path)
    with pytest.raises(CheckpointError, match=r"prototypes: expected \(64, 128\), got \(7, 128\)"):
        adapter.load(folder)
    del tensors["prototypes"]
    save_file(tensors, path)
    with pytest.raises(CheckpointError, match=r"1 tensors .* got none"):
        adapter.load(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[1]", "expected format 'llm-mde adapter 1', got None"),
        ('{"format": "other 2"}', "got 'other 2'"),
        ('{"format": "llm-mde adapter 1"}', "unusable model settings: model"),
        ('{"format": "llm-mde adapter 1", "model": {"vit": 1}}', "model settings: vit"),
        ('{"format": "llm-mde adapter 1", "model": {"x": 1}}', "model settings: x"),
    ],
)
def test_a_damaged_card_is_refused(folder: Path, text: str, message: str) -> None:
    (folder / "llm_mde.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        adapter.load(folder)


def test_a_card_without_hashes_is_refused(folder: Path) -> None:
    change_card(folder, backbones={"vit": "x"})
    with pytest.raises(CheckpointError, match="no name and sha256 of backbone vit"):
        adapter.load(folder)


def test_a_folder_that_is_no_adapter_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no llm_mde.json found, expected an adapter folder"):
        adapter.load(tmp_path)
