from collections import Counter
from itertools import pairwise

import pytest

from llm_mde.data.index import Entry
from llm_mde.data.lists import Row, evenly_spaced, named_lists, split_of, spread_entries
from llm_mde.nyu.scenes import SCENE_TYPES, scene_type


def scene(name: str, frames: int, *, split: str = "train") -> list[Row]:
    return [Row(f"{name}-{number:06d}", name, split) for number in range(frames)]


def rooms(**frames: int) -> list[Row]:
    """Training frames of each type in two scenes."""
    return [
        row
        for name, count in frames.items()
        for number, part in ((1, count // 2), (2, count - count // 2))
        for row in scene(f"{name}_{number:04d}", part)
    ]


def keys_of(rows: list[Row]) -> dict[str, tuple[str, ...]]:
    return {made.name: made.keys for made in named_lists(lambda: rows)}


def notes_of(rows: list[Row]) -> dict[str, str]:
    return {made.name: made.note for made in named_lists(lambda: rows)}


def types(keys: tuple[str, ...]) -> dict[str, int]:
    return dict(Counter(scene_type(key) for key in keys))


PLENTY = rooms(bedroom=200, bathroom=90, dining_room=300, kitchen=81, office=7)


def test_few_shot_groups_hold_80_images_divided_evenly():
    keys = keys_of(PLENTY)
    assert types(keys["few-shot-1"]) == {"bedroom": 80}
    assert types(keys["few-shot-2"]) == {"bedroom": 40, "bathroom": 40}
    assert types(keys["few-shot-3"]) == {"bedroom": 27, "bathroom": 27, "dining_room": 26}
    four = {"bedroom": 20, "bathroom": 20, "dining_room": 20, "kitchen": 20}
    assert types(keys["few-shot-4"]) == four


def test_few_shot_images_are_evenly_spaced_over_the_frames_of_their_type():
    order = [row.key for row in PLENTY if scene_type(row.scene) == "bedroom"]
    places = [order.index(key) for key in keys_of(PLENTY)["few-shot-1"]]
    assert {later - earlier for earlier, later in pairwise(places)} == {2, 3}
    assert places[0] <= 1 and places[-1] >= 198


def test_few_shot_takes_what_there_is_and_does_not_make_up_for_it():
    rows = rooms(bedroom=100, bathroom=3, kitchen=50)
    assert types(keys_of(rows)["few-shot-4"]) == {"bedroom": 20, "bathroom": 3, "kitchen": 20}
    note = notes_of(rows)["few-shot-4"]
    assert "3 bathroom (20 wanted)" in note and "0 dining_room (20 wanted)" in note
    assert "20 bedroom," in note


def test_few_shot_takes_training_images_alone():
    rows = [
        *scene("bedroom_0001", 90, split="val"),
        *scene("bedroom_0002", 90, split="test"),
        *scene("bedroom_0003", 90, split="heldout"),
    ]
    keys, notes = keys_of(rows), notes_of(rows)
    assert not any(keys.values())
    assert notes["few-shot-2"] == "no training images of bedroom or bathroom"
    assert notes["few-shot-all"] == "no training images of a scene type"
    assert notes["zero-shot-train"] == "no training images of bedroom"


def test_few_shot_all_holds_the_middle_image_of_each_type():
    rows = [row for name in SCENE_TYPES for row in scene(f"{name}_0001", 5)]
    expected = tuple(f"{name}_0001-000002" for name in SCENE_TYPES)
    assert len(expected) == 28
    assert keys_of(rows)["few-shot-all"] == expected


def test_a_scene_without_a_type_is_on_no_list():
    assert not any(keys_of(scene("0001", 9)).values())


def test_zero_shot_trains_on_every_bedroom_and_tests_on_four_other_types():
    tests = [
        *scene("bathroom_0100", 2, split="test"),
        *scene("bedroom_0100", 2, split="test"),
        *scene("kitchen_0100", 3, split="test"),
        *scene("bathroom_0200", 4, split="heldout"),
        *scene("living_room_0200", 5, split="heldout"),
    ]
    keys = keys_of([*PLENTY, *tests])
    assert types(keys["zero-shot-train"]) == {"bedroom": 200}
    assert len(keys["zero-shot-bathroom"]) == 2  # heldout is for types that test lacks
    assert len(keys["zero-shot-kitchen"]) == 3
    assert len(keys["zero-shot-living_room"]) == 5
    assert keys["zero-shot-dining_room"] == ()
    assert types(keys["zero-shot-test"]) == {"bathroom": 2, "kitchen": 3, "living_room": 5}
    notes = notes_of([*PLENTY, *tests])
    assert notes["zero-shot-dining_room"] == "no dining_room in test or heldout"
    assert notes["zero-shot-test"] == "2 bathroom (test), 3 kitchen (test), 5 living_room (heldout)"


def test_scene_types_may_be_bare_and_scenes_generated():
    rows = [*scene("bedroom_9001", 4), *scene("bathroom", 3, split="test")]
    keys = keys_of(rows)
    assert len(keys["zero-shot-train"]) == 4 and len(keys["zero-shot-bathroom"]) == 3
    assert types(keys["few-shot-1"]) == {"bedroom": 4}


def test_office_kitchens_are_no_kitchens():
    keys = keys_of(scene("office_kitchen_0001", 4, split="test"))
    assert keys["zero-shot-kitchen"] == ()


def test_training_and_test_lists_share_no_scene():
    tests = [
        Row(f"{name}_{number}-000000", f"{name}_{number}", split)
        for name in ("bedroom", "bathroom", "dining_room", "kitchen", "living_room", "office")
        for number, split in ((31, "test"), (32, "heldout"), (33, "val"))
    ]
    keys = keys_of([*PLENTY, *tests])
    scenes = {name: {key.rpartition("-")[0] for key in some} for name, some in keys.items()}
    assert len(scenes["zero-shot-test"]) == 4
    for name in [f"few-shot-{k}" for k in (1, 2, 3, 4, "all")] + ["zero-shot-train"]:
        assert scenes[name] and not scenes[name] & scenes["zero-shot-test"]


def test_keys_keep_the_written_order_and_occur_once():
    rows = [*PLENTY, *scene("kitchen_0300", 4, split="test"), *scene("bathroom", 4, split="test")]
    order = {row.key: place for place, row in enumerate(rows)}
    for keys in keys_of(rows).values():
        places = [order[key] for key in keys]
        assert places == sorted(set(places))


def test_rows_are_passed_over_twice_and_never_held():
    passes = []

    def rows():
        passes.append(len(passes))
        yield from PLENTY

    made = named_lists(rows)
    assert passes == [0, 1]
    assert made == named_lists(lambda: PLENTY)


def test_lists_come_in_a_fixed_order_even_when_empty():
    names = [made.name for made in named_lists(lambda: [])]
    few = [f"few-shot-{k}" for k in (1, 2, 3, 4, "all")]
    tests = ("train", "bathroom", "dining_room", "kitchen", "living_room", "test")
    assert names == few + [f"zero-shot-{name}" for name in tests]
    assert all(not made.keys and made.note for made in named_lists(lambda: []))


@pytest.mark.parametrize(
    ("total", "number", "expected"),
    [(9, 3, [1, 4, 7]), (5, 1, [2]), (2, 5, [0, 1]), (0, 4, []), (4, 0, []), (10, 4, [1, 3, 6, 8])],
)
def test_evenly_spaced_places_are_the_middles_of_equal_parts(total, number, expected):
    assert evenly_spaced(total, number) == expected


def entries(**frames: int) -> list[Entry]:
    """Samples by `<split>_<scene>`."""
    return [
        Entry(
            f"{name.partition('_')[2]}-{at:06d}", f"{name.partition('_')[0]}-000000.tar", 0, 1, ""
        )
        for name, count in frames.items()
        for at in range(count)
    ]


def test_a_spread_shares_evenly_over_splits_and_scenes():
    some = entries(train_a=1000, train_b=1000, val_c=50, test_d=2)
    chosen = spread_entries(lambda: some, 14)
    assert Counter(map(split_of, chosen)) == {"train": 6, "val": 6, "test": 2}
    assert Counter(entry.key[0] for entry in chosen) == {"a": 3, "b": 3, "c": 6, "d": 2}
    assert chosen == [entry for entry in some if entry in chosen]


def test_a_spread_over_many_scenes_takes_the_middle_of_spaced_ones():
    some = entries(**{f"train_s{number:02d}": 5 for number in range(10)})
    keys = [entry.key for entry in spread_entries(lambda: some, 2)]
    assert keys == ["s02-000002", "s07-000002"]


def test_a_spread_of_few_samples_is_all_of_them():
    some = entries(train_a=2, val_b=1)
    assert spread_entries(lambda: some, 24) == some
    assert spread_entries(lambda: [], 24) == []
