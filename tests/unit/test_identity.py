"""Hashes of a run: equal where runs are, and only there."""

import shutil
from pathlib import Path

import pytest

from llm_mde.data.index import open_index
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import settings_of
from llm_mde.training.identity import identity
from tests.support.shards import rows, write_rows, write_shards
from tests.support.training import tiny_config


@pytest.fixture(scope="module")
def model() -> DepthModel:
    return DepthModel(tiny_config(Path("s"), Path("r"), "run").model, seed=0)


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", [3, 2], split="train")
    return write_shards(tmp_path / "shards", [2], split="val")


def tags_of(model: DepthModel, shards: Path, name: str = "run", **changes: object) -> dict:
    settings = settings_of(tiny_config(shards, shards.parent, name, **changes), {"bf16": True})
    train, val = open_index(shards, "train"), open_index(shards, "val")
    return identity(settings, model, train=train, val=val)


def changed(before: dict, after: dict) -> set[str]:
    return {name for name in before | after if before.get(name) != after.get(name)}


def test_names_places_and_loaders_move_no_hash(model: DepthModel, shards: Path) -> None:
    moved = shards.with_name("elsewhere")
    shutil.copytree(shards, moved)
    before = tags_of(model, shards)
    assert all(len(value) == 64 for value in before.values())
    assert tags_of(model, moved, "other", data__workers=3) == before


@pytest.mark.parametrize("change", [{"optim__lr": 0.5}, {"seed": 1}, {"model__max_depth": 5.0}])
def test_a_setting_that_moves_numbers_moves_the_configurations_hash(model, shards, change) -> None:
    assert changed(tags_of(model, shards), tags_of(model, shards, **change)) == {"config.sha256"}


def test_other_pixels_are_other_shards_of_the_same_split(model: DepthModel, shards: Path) -> None:
    before = tags_of(model, shards)
    lines = rows(shards)
    lines[0]["sha256"] = "0" * 64
    write_rows(shards, lines)
    assert changed(before, tags_of(model, shards)) == {"data.shards.sha256"}


def test_other_keys_are_another_split(model: DepthModel, shards: Path) -> None:
    before = tags_of(model, shards)
    keys = (shards / "splits" / "train.txt").read_text().split()
    (shards / "splits" / "train.txt").write_text("\n".join(keys[:-1]))
    assert changed(before, tags_of(model, shards)) == {"data.shards.sha256", "data.split.sha256"}


def test_a_backbone_is_named_by_its_weights(model: DepthModel, shards: Path) -> None:
    weights = {"name": "random:tiny:7", "tune": "full"}
    other = DepthModel(tiny_config(shards, shards, "run", model__vit=weights).model, seed=0)
    assert changed(tags_of(model, shards), tags_of(other, shards)) == {"model.vit.sha256"}
