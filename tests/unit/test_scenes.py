import os
from pathlib import Path

import pytest

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu import scenes

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
MADE = [f"{kind}_{i:04d}{x}" for i in range(10) for kind in ("den", "hall", "attic") for x in "ab"]


def test_official_list_has_284_folders_of_28_types():
    names = scenes.official_scenes()
    assert len(names) == 284
    assert {scenes.scene_type(name) for name in names} == set(scenes.SCENE_TYPES)
    assert len(scenes.SCENE_TYPES) == 28


@pytest.mark.skipif(
    not TESTDATA, reason="LLM_MDE_TESTDATA is not set: the published lists are not in the project"
)
def test_official_list_equals_the_published_one():
    lines = (Path(TESTDATA) / "splits" / "nyudepthv2_train_files_with_gt.txt").read_text()
    assert {line.split("/")[1] for line in lines.splitlines()} == scenes.official_scenes()


@pytest.mark.parametrize(
    ("name", "kind", "group"),
    [
        ("basement_0001a", "basement", "basement_0001"),
        ("living_room_0042", "living_room", "living_room_0042"),
        ("nyu_office_0", "nyu_office", "nyu_office_0"),
        ("redkitchen", "redkitchen", "redkitchen"),
        ("made_0007_0001c", "made", "made_0007_0001"),
    ],
)
def test_type_and_group_follow_from_the_name(name, kind, group):
    assert scenes.scene_type(name) == kind
    assert scenes.scene_group(name) == group


def test_official_rule_trains_on_listed_folders_alone():
    listed = [f"bookstore_0001{letter}" for letter in "defghij"]
    names = [*listed, "bookstore_0001a", "kitchen_0003", "kitchen_0004", "basement_0001b", "den_1"]
    split = scenes.assign_splits(names)
    assert {name for name in names if split[name] == "heldout"} == {
        "bookstore_0001a",
        "kitchen_0004",
    }
    assert {split[name] for name in listed} <= {"train", "val"}
    assert "test" not in split.values()


def test_no_official_heldout_scene_is_ever_trained_on():
    names = [f"{kind}_{i:04d}{x}" for kind in scenes.SCENE_TYPES for i in range(60) for x in "abc"]
    split = scenes.assign_splits([*names, *scenes.official_scenes()])
    used = {name for name, part in split.items() if part != "heldout"}
    assert used == scenes.official_scenes()


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("names", [MADE, sorted(scenes.official_scenes())], ids=["made", "nyu"])
def test_no_group_is_in_two_of_train_val_test(names, seed):
    split = scenes.assign_splits(names, seed=seed)
    parts = {scenes.scene_group(name): set() for name in names}
    for name, part in split.items():
        parts[scenes.scene_group(name)].add(part)
    assert all(len(found) == 1 for found in parts.values())


def test_shares_are_of_groups_and_spread_over_types():
    split = scenes.assign_splits(MADE)
    groups = {part: set() for part in scenes.SPLITS}
    for name, part in split.items():
        groups[part].add(scenes.scene_group(name))
    assert {part: len(found) for part, found in groups.items()} == {
        "train": 26,  # 30 groups: 10 % test = 3; of the 27 left 5 % val = 1
        "val": 1,
        "test": 3,
        "heldout": 0,
    }
    assert len({scenes.scene_type(group) for group in groups["test"]}) == 3


def test_splits_depend_on_the_seed_and_not_on_the_order():
    assert scenes.assign_splits(MADE) == scenes.assign_splits(MADE[::-1])
    assert len({str(scenes.assign_splits(MADE, seed=seed)) for seed in range(8)}) > 1


@pytest.mark.parametrize(
    ("count", "parts"), [(1, {"train"}), (2, {"train", "val"}), (3, {"train", "val", "test"})]
)
def test_few_groups_leave_something_to_train_on(count, parts):
    split = scenes.assign_splits([f"den_{i}" for i in range(count)])
    assert set(split.values()) == parts


def test_generated_scenes_are_split_by_scene_unless_an_official_one_is_there():
    assert scenes.resolve_rule(["den_0001", "kitchen_0004"], "auto") == "scene"
    assert scenes.resolve_rule(["den_0001", "kitchen_0003"], "auto") == "official"
    with pytest.raises(ConfigError, match="splits: expected one of auto, official, scene, got 'a'"):
        scenes.resolve_rule([], "a")


@pytest.mark.parametrize("name", ["a.b", "", "a/b", "x" * 65, "é"])
def test_names_that_cannot_be_keys_are_refused(name):
    with pytest.raises(DataError, match="rename the folder"):
        scenes.check_scene_name(name)
