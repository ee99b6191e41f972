"""Names of NYU Depth V2 scenes, what they say, and who trains on what.

`official_scenes.txt` lists the 284 raw scene folders of the official training part, from
`nyudepthv2_train_files_with_gt.txt` (Lee et al. 2019, BTS, https://arxiv.org/abs/1907.10326), which
lists 24,231 frames of them. `official_test_images.txt` lists the 654 official test images among the
1,449 labelled ones, 1-based, from the `splits.mat` published with the data set.
"""

import hashlib
import re
from collections.abc import Iterable
from functools import cache
from importlib import resources

from llm_mde.errors import ConfigError, DataError

# The scene types of those 284 folders; `excercise_room` is spelled so in the data.
SCENE_TYPES = (
    "basement",
    "bathroom",
    "bedroom",
    "bookstore",
    "cafe",
    "classroom",
    "computer_lab",
    "conference_room",
    "dinette",
    "dining_room",
    "excercise_room",
    "foyer",
    "furniture_store",
    "home_office",
    "home_storage",
    "indoor_balcony",
    "kitchen",
    "laundry_room",
    "living_room",
    "nyu_office",
    "office",
    "office_kitchen",
    "playroom",
    "printer_room",
    "reception_room",
    "student_lounge",
    "study",
    "study_room",
)
# A frame that users of the toolbox's get_synched_frames.m are known to leave out.
BAD_FRAMES = frozenset({"d-1315166703.129542-2466101449.pgm"})
SPLITS = ("train", "val", "test", "heldout")
RULES = ("auto", "official", "scene")
VAL_SHARE = 0.05  # of the trainable groups
TEST_SHARE = 0.10  # of the groups, where no official test set exists
_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")


@cache
def official_scenes() -> frozenset[str]:
    """The 284 official training folders, exact names."""
    return frozenset(_facts("official_scenes.txt"))


@cache
def official_test_images() -> frozenset[int]:
    """The 654 labelled images of the official test set: their numbers, counted from 1."""
    return frozenset(int(line) for line in _facts("official_test_images.txt"))


def _facts(name: str) -> list[str]:
    """The lines of a list in the package, without its comments."""
    text = resources.files("llm_mde.nyu").joinpath(name).read_text("utf-8")
    return [line for line in text.splitlines() if not line.startswith("#")]


def check_scene_name(name: str) -> None:
    """Scene names become sample keys and file names: letters, digits, `_` and `-` only.

    Raises:
        DataError: any other name (a dot would cut a sample's key in two).
    """
    if _NAME.fullmatch(name) is None:
        raise DataError(
            f"scene {name!r}: expected 1 to 64 letters, digits, '_' or '-' as in 'basement_0001a'; "
            "rename the folder"
        )


def scene_type(name: str) -> str:
    """`living_room` for `living_room_0042a`: the name up to its first digits."""
    return re.split(r"\d", name, maxsplit=1)[0].rstrip("_")


def scene_group(name: str) -> str:
    """`living_room_0042` for `living_room_0042a`: parts of one place share a group."""
    return re.sub(r"(?<=\d)[a-z]$", "", name)


def may_hold_test_image(name: str) -> bool:
    """Whether an official test image may come from this scene, as far as its name tells.

    Only the listed folders are known to hold none; any other folder of an official type may.
    """
    return name not in official_scenes() and scene_type(name) in SCENE_TYPES


def looks_official(name: str) -> bool:
    """Whether a name is one that NYU Depth V2 raw may have and may hold a test image.

    Its folders are numbered far below 1000; generated rooms start at 9001.
    """
    number = re.search(r"\d+", name)
    return may_hold_test_image(name) and number is not None and int(number[0]) < 1000


def assign_splits(
    names: Iterable[str],
    *,
    rule: str = "auto",
    seed: int = 0,
    test_scenes: frozenset[str] | None = None,
    trainable: frozenset[str] = frozenset(),
) -> dict[str, str]:
    """The split of each scene: `train`, `val`, `test` or `heldout`.

    test_scenes: the raw folders that hold an official test image, where the labelled file tells:
    these are held out under any rule. trainable: names vouched for, because all that is packed
    under them are official training images.

    `official`: folders that may hold a test image are held out, 5 % of the other groups are `val`.
    Without test_scenes a folder of an official type may hold one unless it is listed; with them,
    only those folders do, unlisted parts of the same places (`kitchen_0004b` beside a test image's
    `kitchen_0004a`), and folders named by a bare type (`bathroom`), which are not raw ones.
    `scene`: seeded shares of all groups, 5 % `val` and 10 % `test`, groups never cut. `auto`: see
    `resolve_rule`. A share is at least one group, `val` from two groups on, `test` from three on,
    and is spread over the scene types.

    Raises:
        ConfigError: an unknown rule.
    """
    names = sorted(names)
    rule = resolve_rule(names, rule, labelled=test_scenes is not None or bool(trainable))

    test_places = {scene_group(name) for name in test_scenes or ()}

    def is_held(name: str) -> bool:
        if test_scenes is not None and name in test_scenes:
            return True
        if rule != "official" or name in trainable:
            return False
        guess = test_scenes is None or name in SCENE_TYPES or scene_group(name) in test_places
        return guess and may_hold_test_image(name)

    held = {name for name in names if is_held(name)}
    groups = sorted({scene_group(name) for name in names if name not in held})
    test: set[str] = set()
    if rule == "scene" and len(groups) >= 3:
        test = _draw(groups, TEST_SHARE, salt=f"test:{seed}")
    rest = [group for group in groups if group not in test]
    val = _draw(rest, VAL_SHARE, salt=f"val:{seed}") if len(rest) >= 2 else set()

    def split(name: str) -> str:
        if name in held:
            return "heldout"
        group = scene_group(name)
        return "val" if group in val else "test" if group in test else "train"

    return {name: split(name) for name in names}


def resolve_rule(names: Iterable[str], rule: str, *, labelled: bool = False) -> str:
    """`official` or `scene`, where `auto` is `official` as soon as official data is there.

    That is a listed training folder among the names, or labelled: images of the labelled set.

    Raises:
        ConfigError: an unknown rule.
    """
    if rule not in RULES:
        raise ConfigError(f"splits: expected one of {', '.join(RULES)}, got {rule!r}")
    if rule != "auto":
        return rule
    return "official" if labelled or official_scenes().intersection(names) else "scene"


def _draw(groups: list[str], share: float, *, salt: str) -> set[str]:
    """A seeded share of the groups, at least one: evenly spaced once they are sorted by type."""

    def number(text: str) -> float:
        return int.from_bytes(hashlib.sha256(f"{salt}:{text}".encode()).digest()[:8]) / 2**64

    line = sorted(groups, key=lambda group: (scene_type(group), number(group)))
    count = max(1, round(share * len(line)))
    step = len(line) / count
    start = number("start") * step
    return {line[int(start + i * step)] for i in range(count)}
