"""The runs of a comparison: which ones, where their settings differ, the images they share."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.data.index import Index, open_index, read_keys
from llm_mde.errors import CheckpointError, ConfigError, DataError
from llm_mde.inference.adapter import find
from llm_mde.training.folder import CONFIG, recorded

# What says which run this is, not how it was made; and what DeepSpeed has from train.batch and
# optim.clip, which are there as themselves.
LEFT_OUT = ("name", "runs", "tracking.parent_run_id", "ds.train_batch_size", "ds.gradient_clipping")
SET_ASIDE = re.compile(r"(.+)\.\d+")  # what `--resume never` leaves of an older run


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    title: str
    folder: Path
    settings: dict[str, Any]
    """Dotted path -> value as it ran; DeepSpeed's below `ds.`."""


def given(folders: Sequence[Path]) -> list[Member]:
    """The runs named on a command line, in that order, titled by their folders' names.

    Raises:
        ConfigError: fewer than two, one of them twice, or a folder that is no run.
        CheckpointError: a run without an adapter.
    """
    if len(folders) < 2:
        raise ConfigError(f"expected two runs or more, got {len(folders)}; or name a --sweep")
    seen = [folder.resolve() for folder in folders]
    for at, folder in enumerate(folders):
        if seen[at] in seen[:at]:
            raise ConfigError(f"{folder}: is named twice; a run does not differ from itself")
    members = [_member(folder, folder.resolve().name) for folder in folders]
    titles = [member.title for member in members]
    if len(set(titles)) < len(titles):
        members = [Member(str(one.folder), one.folder, one.settings) for one in members]
    return members


def of_sweep(name: str, runs: Path) -> tuple[list[Member], list[str]]:
    """The trials of a sweep or an experiment, titled by trial, and those without an adapter.

    Raises:
        ConfigError: no such sweep below `runs`, names the nearest; fewer than two adapters.
    """
    names = [path.name for path in runs.iterdir()] if runs.is_dir() else []
    started = [one for one in names if (runs / one / CONFIG).is_file()]
    studies = [one for one in names if (runs / one).is_dir() and one not in started]
    trials = {one: _trials(one, started, studies) for one in studies}
    if not trials.get(name):
        raise ConfigError(f"--sweep {name}: {_unknown(name, runs, trials)}")
    members, missing = [], []
    for trial in trials[name]:
        try:
            members.append(_member(runs / trial, trial.removeprefix(f"{name}-")))
        except CheckpointError:
            missing.append(trial)
    if len(members) < 2:
        raise ConfigError(
            f"--sweep {name}: {len(members)} of its {len(trials[name])} trials in {runs} have an "
            "adapter, expected two or more; let it finish"
        )
    return members, missing


def _trials(name: str, started: Iterable[str], studies: Iterable[str]) -> list[str]:
    """Runs `<name>-<trial>`, but for those of a study whose name begins so, too."""
    others = tuple(f"{one}-" for one in studies if one.startswith(f"{name}-"))
    found = {one for one in started if one.startswith(f"{name}-") and not one.startswith(others)}
    return sorted(one for one in found if not _set_aside(one, found))


def _set_aside(name: str, names: Iterable[str]) -> bool:
    older = SET_ASIDE.fullmatch(name)
    return older is not None and older[1] in names


def _unknown(name: str, runs: Path, trials: dict[str, list[str]]) -> str:
    known = sorted(one for one, found in trials.items() if found)
    if not known:
        return f"{runs} holds no sweep; name the folder of all runs with --runs DIR"
    near = difflib.get_close_matches(name, known, n=3)
    hint = f"did you mean {' or '.join(near)}?" if near else f"there are: {', '.join(known)}"
    return f"no such sweep in {runs}, {hint}"


def _member(folder: Path, title: str) -> Member:
    settings = recorded(folder)
    if settings is None:
        raise ConfigError(f"{folder}: no {CONFIG} found, expected the folder of a run")
    try:
        find(folder / "adapter")
    except CheckpointError as error:
        raise CheckpointError(
            f"{folder}: no adapter in it, which a run writes at its first evaluation; "
            "train it on, or leave it out"
        ) from error
    return Member(title, folder, settings)


def differing(members: Sequence[Member]) -> dict[str, list[Any]]:
    """Dotted path -> value of each run, where they are not all the same; None where it has none."""
    paths = dict.fromkeys(path for member in members for path in member.settings)
    values = {path: [member.settings.get(path) for member in members] for path in paths}
    return {
        path: found
        for path, found in values.items()
        if path not in LEFT_OUT and any(value != found[0] for value in found)
    }


def common_images(members: Sequence[Member], *, shards: str | None, split: str | None) -> Index:
    """The samples all runs are scored on: by default those each was validated on.

    Args:
        members: the runs.
        shards: folder or URL; None: each run's own.
        split: key list; None: each run's `data.val_split`.

    Raises:
        ConfigError: these are not the same images for all runs.
        DataError: no such shards or key list.
    """
    places = [
        (shards or str(one.settings["data.shards"]), split or str(one.settings["data.val_split"]))
        for one in members
    ]
    opened = {place: _opened(*place, moved=shards is None) for place in dict.fromkeys(places)}
    first = opened[places[0]]
    for member, place in zip(members, places, strict=True):
        if _content(opened[place]) != _content(first):
            raise ConfigError(
                f"the runs were not validated on the same images: {members[0].title} was "
                f"scored on {_described(first)}, {member.title} on {_described(opened[place])}; "
                "name the same for all with --shards and --split"
            )
    return first


def _opened(shards: str, split: str, *, moved: bool) -> Index:
    try:
        return open_index(shards, split)
    except DataError as error:
        if moved:
            raise DataError(f"{error}; name them with --shards and --split") from error
        raise


def _content(index: Index) -> set[tuple[str, str]]:
    return {(entry.key, entry.sha256) for entry in index.entries}


def _described(index: Index) -> str:
    return f"{index.split} of {index.folder} ({len(index.entries)} images)"


def trained_on(members: Sequence[Member], index: Index) -> dict[str, int]:
    """Title -> how many of the images a run has trained on, as far as the shards tell; none: 0."""
    keys = {entry.key for entry in index.entries}
    lists = {one.title: f"splits/{one.settings['data.train_split']}.txt" for one in members}
    held = {
        name: set(read_keys(index.folder, name)) if index.folder.exists(name) else set()
        for name in set(lists.values())
    }
    return {title: len(keys & held[name]) for title, name in lists.items()}
