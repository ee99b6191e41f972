"""Chosen samples: key lists of the paper's few- and zero-shot experiments, and a spread of a pack.

LLM-MDE (2024, arXiv:2409.01133), Tables I and II. A key list is `splits/<name>.txt` beside the
shards and can be trained or scored on like a split, without packing again. The choice is a pure
function of the samples in their written order: nothing is drawn.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from typing import NamedTuple

from llm_mde.data.index import Entry
from llm_mde.nyu.scenes import scene_type

# Table I adds one scene type a group; each group holds "50 to 100 images": section IV-A.
FEW_SHOT_TYPES = ("bedroom", "bathroom", "dining_room", "kitchen")
FEW_SHOT_IMAGES = 80
# Table II names the four types tested, not the one trained on: bedroom is absent from its rows.
ZERO_SHOT_TRAIN = "bedroom"
ZERO_SHOT_TEST = ("bathroom", "dining_room", "kitchen", "living_room")
TEST_SPLITS = ("test", "heldout")  # the second where the first has none of a type

Counts = Counter[tuple[str, str]]  # by split and scene type
Picks = dict[tuple[str, str], range | frozenset[int]]


class Row(NamedTuple):
    """What the lists need to know about a sample."""

    key: str
    scene: str
    """Its name: `kitchen_0011a`, or the bare type, as of some labelled images."""
    split: str


class NamedList(NamedTuple):
    """A list of sample keys; empty where the pack holds nothing for it."""

    name: str
    keys: tuple[str, ...]
    """In the written order, each once."""
    note: str
    """What it holds and what it lacks, or why it is empty."""


class _Plan(NamedTuple):
    """A list before its keys are known: which samples of which (split, type)."""

    name: str
    picks: Picks
    """Places among the samples of a split and type, in the written order."""
    note: str


def named_lists(rows: Callable[[], Iterable[Row]]) -> list[NamedList]:
    """All lists in a fixed order; empty ones have no keys and a note that says why.

    rows: starts a new pass over all samples in the written order; called twice, to count and to
    select. Only the chosen keys are kept: about 90 bytes each, so that the longest list of NYU raw
    (50,000 bedrooms) takes under 5 MB, and a key on two lists is stored once.
    """
    counts: Counts = Counter()
    for row in rows():
        counts[row.split, scene_type(row.scene)] += 1
    plans = [
        *(_few_shot(k, counts) for k in range(1, len(FEW_SHOT_TYPES) + 1)),
        _few_shot_all(counts),
        *_zero_shot(counts),
    ]
    chosen: dict[str, list[str]] = {plan.name: [] for plan in plans}
    seen: Counts = Counter()
    for row in rows():
        place = (row.split, scene_type(row.scene))
        for plan in plans:
            if seen[place] in plan.picks.get(place, ()):
                chosen[plan.name].append(row.key)
        seen[place] += 1
    return [NamedList(plan.name, tuple(chosen[plan.name]), plan.note) for plan in plans]


def evenly_spaced(total: int, number: int) -> list[int]:
    """`number` places in [0, total), or all: the middles of equal parts; one is the middle."""
    number = min(number, total)
    return [(2 * i + 1) * total // (2 * number) for i in range(number)]


def spread_entries(entries: Callable[[], Iterable[Entry]], number: int) -> list[Entry]:
    """At most `number` samples, evenly over the splits and, in each, over its scenes.

    entries: starts a new pass over the index; called twice, to count and to select.
    """
    counts = Counter(_place(entry) for entry in entries())
    splits = Counter(split for split, _ in counts.elements())
    wanted: dict[tuple[str, str], set[int]] = {}
    for split, share in zip(splits, _shares(list(splits.values()), number), strict=True):
        places = [place for place in counts if place[0] == split]
        for place, part in zip(places, _shares([counts[p] for p in places], share), strict=True):
            wanted[place] = set(evenly_spaced(counts[place], part))
    chosen: list[Entry] = []
    seen: Counter[tuple[str, str]] = Counter()
    for entry in entries():
        place = _place(entry)
        if seen[place] in wanted[place]:
            chosen.append(entry)
        seen[place] += 1
    return chosen


def split_of(entry: Entry) -> str:
    """`train` for a sample in `train-000012.tar`."""
    return entry.shard.rpartition("-")[0]


def _place(entry: Entry) -> tuple[str, str]:
    """Split and scene, as far as shard and key tell."""
    return split_of(entry), entry.key.rpartition("-")[0]


def _shares(sizes: list[int], number: int) -> list[int]:
    """Equal parts of `number`, none above its size; spaced ones get one where it is too few."""
    shares = [0] * len(sizes)
    while number:
        open_ones = [i for i, size in enumerate(sizes) if shares[i] < size]
        if not open_ones:
            break
        for i in evenly_spaced(len(open_ones), number):
            shares[open_ones[i]] += 1
            number -= 1
    return shares


def _few_shot(k: int, counts: Counts) -> _Plan:
    """80 training images over the first k types; a type with fewer is not made up for."""
    each, rest = divmod(FEW_SHOT_IMAGES, k)
    wanted = {name: each + (i < rest) for i, name in enumerate(FEW_SHOT_TYPES[:k])}
    picks: Picks = {
        ("train", name): frozenset(evenly_spaced(counts["train", name], number))
        for name, number in wanted.items()
    }
    found = {name: len(picks["train", name]) for name in wanted}
    if not any(found.values()):
        return _Plan(f"few-shot-{k}", {}, f"no training images of {_words(wanted)}")
    note = ", ".join(
        f"{found[name]} {name}" + (f" ({number} wanted)" if found[name] < number else "")
        for name, number in wanted.items()
    )
    return _Plan(f"few-shot-{k}", picks, f"{note}; evenly spaced over the training images of each")


def _few_shot_all(counts: Counts) -> _Plan:
    """One training image of each type; a scene whose name tells no type takes no part."""
    picks: Picks = {
        (split, name): frozenset(evenly_spaced(number, 1))
        for (split, name), number in counts.items()
        if split == "train" and name
    }
    note = f"the middle training image of each of {len(picks)} scene types"
    return _Plan("few-shot-all", picks, note if picks else "no training images of a scene type")


def _zero_shot(counts: Counts) -> list[_Plan]:
    """All training images of one type, and all test images of four others."""
    source = ("train", ZERO_SHOT_TRAIN)
    note = f"all {counts[source]} training images" if counts[source] else "no training images"
    picks: Picks = {source: range(counts[source])}
    plans = [_Plan("zero-shot-train", picks, f"{note} of {ZERO_SHOT_TRAIN}")]
    places = {}
    for name in ZERO_SHOT_TEST:
        split = next((split for split in TEST_SPLITS if counts[split, name]), None)
        if split is None:
            note, picks = f"no {name} in {_words(TEST_SPLITS)}", {}
        else:
            places[split, name] = range(counts[split, name])
            note = f"all {counts[split, name]} images of {name} in {split}"
            picks = {(split, name): places[split, name]}
        plans.append(_Plan(f"zero-shot-{name}", picks, note))
    parts = ", ".join(f"{len(place)} {name} ({split})" for (split, name), place in places.items())
    return [*plans, _Plan("zero-shot-test", {**places}, parts or f"no {_words(ZERO_SHOT_TEST)}")]


def _words(names: Iterable[str]) -> str:
    """`a, b or c`."""
    *head, tail = names
    return f"{', '.join(head)} or {tail}" if head else tail
