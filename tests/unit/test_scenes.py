import os
import random
import re
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


def test_official_test_images_are_654_of_1449():
    numbers = scenes.official_test_images()
    assert len(numbers) == 654
    assert (min(numbers), max(numbers)) == (1, 1449)
    assert {1, 2, 9} <= numbers
    assert not {3, 4, 5, 6, 7, 8} & numbers


@pytest.mark.skipif(
    not TESTDATA, reason="LLM_MDE_TESTDATA is not set: the published lists are not in the project"
)
def test_official_test_images_equal_the_published_ones():
    loadmat = pytest.importorskip("scipy.io").loadmat
    split = loadmat(Path(TESTDATA) / "splits" / "splits.mat")
    assert set(split["testNdxs"].ravel().tolist()) == scenes.official_test_images()
    lines = (Path(TESTDATA) / "splits" / "nyudepthv2_test_files_with_gt.txt").read_text()
    numbers = {int(number) + 1 for number in re.findall(r"/rgb_(\d+)\.jpg", lines)}
    assert numbers == scenes.official_test_images()


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


def test_with_the_labelled_file_its_folders_alone_are_held_out():
    names = ["bookstore_0001a", "bookstore_0001d", "kitchen_0004", "kitchen_0061", "den_1", "den_2"]
    split = scenes.assign_splits(names, test_scenes=frozenset({"kitchen_0004", "study_0001"}))
    assert {name for name in names if split[name] == "heldout"} == {"kitchen_0004"}
    assert set(split.values()) == {"train", "val", "heldout"}


def test_bare_types_are_trained_on_only_when_vouched_for():
    names = ["bathroom", "kitchen", "kitchen_0003", "bedroom_0004"]
    for known in (None, frozenset[str]()):
        split = scenes.assign_splits(
            names, test_scenes=known, trainable=frozenset({"kitchen"}), seed=3
        )
        assert {name for name in names if split[name] == "heldout"} == {"bathroom"}


@pytest.mark.parametrize("rule", scenes.RULES)
def test_nothing_vouches_for_a_raw_scene_of_a_test_image(rule):
    name = "kitchen_0004"
    split = scenes.assign_splits(
        [name, "den_1"], rule=rule, test_scenes=frozenset({name}), trainable=frozenset({name})
    )
    assert split == {name: "heldout", "den_1": "train"}


@pytest.mark.parametrize("seed", range(200))
def test_no_raw_scene_of_a_test_image_is_ever_trained_on(seed):
    """Any names, any test folders among them, any vouching, any rule."""
    rng = random.Random(seed)
    kinds = (*scenes.SCENE_TYPES, "den", "hall")
    raw = [f"{kind}_{i:04d}{x}" for kind in kinds for i in range(6) for x in ("", *"abc")]
    pool = [*raw, *scenes.SCENE_TYPES, *sorted(scenes.official_scenes())]
    names = rng.sample(pool, rng.randint(1, 150))
    test_scenes = frozenset(rng.sample(raw, rng.randint(0, 300))) if rng.random() < 0.7 else None
    trainable = frozenset(rng.sample(scenes.SCENE_TYPES, rng.choice((0, 5))))
    rule = rng.choice(scenes.RULES)
    split = scenes.assign_splits(
        names, rule=rule, seed=seed, test_scenes=test_scenes, trainable=trainable
    )
    assert split.keys() == set(names)
    held = {name for name in names if split[name] == "heldout"}
    assert held >= (test_scenes or frozenset()).intersection(names)
    labelled = test_scenes is not None or bool(trainable)
    if scenes.resolve_rule(names, rule, labelled=labelled) == "official":
        assert "test" not in split.values()
        guessed = {name for name in names if scenes.may_hold_test_image(name)} - trainable
        assert held >= (guessed if test_scenes is None else guessed & set(scenes.SCENE_TYPES))
    used = {scenes.scene_group(name): set() for name in names}
    for name in set(names) - held:
        used[scenes.scene_group(name)].add(split[name])
    assert all(len(parts) <= 1 for parts in used.values())


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
    assert scenes.resolve_rule(["den_0001", "kitchen_0004"], "auto", labelled=True) == "official"
    assert scenes.resolve_rule(["den_0001", "kitchen_0003"], "scene", labelled=True) == "scene"
    with pytest.raises(ConfigError, match="splits: expected one of auto, official, scene, got 'a'"):
        scenes.resolve_rule([], "a")


@pytest.mark.parametrize("name", ["a.b", "", "a/b", "x" * 65, "é"])
def test_names_that_cannot_be_keys_are_refused(name):
    with pytest.raises(DataError, match="rename the folder"):
        scenes.check_scene_name(name)


def test_unlisted_parts_of_a_test_image_s_place_are_held_out():
    names = ["kitchen_0004a", "kitchen_0004c", "kitchen_0005a", "bookstore_0001d", "den_0001"]
    split = scenes.assign_splits(
        names, rule="official", test_scenes=frozenset({"kitchen_0004a", "bookstore_0001a"})
    )
    held = {name for name, part in split.items() if part == "heldout"}
    assert held == {"kitchen_0004a", "kitchen_0004c"}  # bookstore_0001d is officially trained on


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("kitchen_0004a", True),
        ("kitchen_9004", False),  # generated
        ("bookstore_0001d", False),  # listed
        ("den_0001", False),
        ("kitchen", False),
    ],
)
def test_names_of_unlisted_nyu_folders_are_recognised(name, wanted):
    assert scenes.looks_official(name) == wanted
