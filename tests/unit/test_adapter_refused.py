"""Adapter folders that are not loaded: damaged, not whole, or on other backbones."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from llm_mde.errors import CheckpointError
from llm_mde.inference import adapter
from llm_mde.inference.card import read_card
from tests.support.adapters import save, settings, trained


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = trained(settings("lora", "lora"))
    return save(model, tmp_path_factory.mktemp("saved") / "adapter")


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
    for name, message in (  # the one that stands on it, and its own folder
        ("next", r"it was trained with, .*base/vit \(hash .*; correct model\.vit\.name in llm_mde"),
        ("base", r"it was saved with \(hash .*; get the folder again"),
    ):
        with pytest.raises(CheckpointError, match=rf"{name}: expected the vit weights {message}"):
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
        ("[1]", "expected format 'llm-mde adapter 2', got None"),
        ('{"format": "other 2"}', "got 'other 2'"),
        ('{"format": "llm-mde adapter 2"}', "unusable model settings: model"),
        ('{"format": "llm-mde adapter 2", "model": {"vit": 1}}', "model settings: vit"),
        ('{"format": "llm-mde adapter 2", "model": {"x": 1}}', "model settings: x"),
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
