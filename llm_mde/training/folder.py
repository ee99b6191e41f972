"""The folder of a run: its settings as written, and whether a run may go on with other ones."""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import yaml

from llm_mde import dist, locks
from llm_mde.config import Config
from llm_mde.data.index import Index
from llm_mde.errors import ConfigError, DataError
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import build, dump, settings_of

CONFIG = "config.yaml"

# Settings that may differ when a run goes on: they move no number but by rounding.
FREE_TO_CHANGE = (
    "name",
    "runs",
    "data.shards",
    "data.workers",
    "data.cache",
    "data.disk_cache",  # and its bound
    "data.max_lost",
    "train.log_every",
    "train.save_every",
    "train.save_steps",
    "train.keep",
    "train.max_skips",
    "train.compile",
    "train.deterministic",
    "train.timeout",
    "train.figures",
    "tracking.",
    # How the work is shared out: by another number of ranks, or another stage.
    "ds.gradient_accumulation_steps",
    "ds.train_micro_batch_size_per_gpu",  # a run that goes on keeps its own
    "ds.data_types.",
    "ds.zero_optimization.",
)


# Settings that may also differ where a run is told to go on with changes: shapes and samples stay.
CHANGEABLE = (
    "optim.lr",  # and its scales
    "optim.betas",
    "optim.eps",
    "optim.warmup",
    "optim.weight_decay",
    "optim.clip",
    "train.loss",
    "data.augment.",
    "model.vit.lora.dropout",
    "model.llm.lora.dropout",
    "model.llm.dropout",
    "model.reprogram.dropout",
)


def identities(model: DepthModel, *, train: Index, val: Index) -> dict[str, Any]:
    """Hashes of what a run's folder does not hold: the backbones as loaded, the samples."""
    return {
        "model.vit weights": model.vit.identity.sha256,
        "model.llm weights": model.language.identity.sha256,
        "data.train_split samples": _digest(train),
        "data.val_split samples": _digest(val),
    }


def _digest(index: Index) -> str:
    digest = hashlib.sha256()
    for shard in index.shards:
        digest.update(f"shard of {len(shard)}\n".encode())
        for entry in shard:
            digest.update(f"{entry.key} {entry.sha256}\n".encode())
    return digest.hexdigest()


def check_same(
    where: Path, before: Mapping[str, Any], now: Mapping[str, Any], *, changes: bool = False
) -> None:
    """Refuse to go on with other settings; `changes`: but for CHANGEABLE ones.

    Raises:
        ConfigError: names every differing key.
    """
    free = FREE_TO_CHANGE + (CHANGEABLE if changes else ())
    changed = differences(before, now, free=free)
    if not changed:
        return
    remedy = "--set name=..., or start over with --resume never"
    if not changes and not differences(before, now, free=FREE_TO_CHANGE + CHANGEABLE):
        remedy += ", or go on with them by --change-settings"
    raise ConfigError(
        f"{where}: holds a run with other settings: {changed}; choose another one with {remedy}"
    )


def differences(
    before: Mapping[str, Any], now: Mapping[str, Any], *, free: tuple[str, ...] = FREE_TO_CHANGE
) -> str:
    """Settings that are not the same, but for the free ones, in words; empty if there are none."""
    return "; ".join(
        f"{key} was {before.get(key)!r}, now {now.get(key)!r}"
        for key in dict.fromkeys([*before, *now])
        if before.get(key) != now.get(key) and not key.startswith(free)
    )


@contextmanager
def alone(config: Config) -> Iterator[None]:
    """Train a run while nobody else does; collective.

    Raises:
        ConfigError: another program trains it.
    """
    with ExitStack() as stack:
        dist.on_rank_0(lambda: stack.enter_context(locks.training(config.run_dir)))
        yield


def claim(config: Config, ds: Mapping[str, Any], *, resume: str, changes: bool = False) -> None:
    """Make the run's folder with config.yaml and ds.json; `never` sets an older run aside.

    Collective; `changes` as in `check_same`.

    Raises:
        ConfigError: the folder holds a run with other settings.
    """
    dist.on_rank_0(lambda: _claim(config, ds, resume=resume, changes=changes))


def _claim(config: Config, ds: Mapping[str, Any], *, resume: str, changes: bool) -> None:
    folder = config.run_dir
    if resume == "never" and (folder / CONFIG).exists():
        os.rename(folder, _aside(folder))
    before = recorded(folder)
    if before is not None:
        check_same(folder, before, settings_of(config, ds), changes=changes)
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "ds.json", json.dumps(ds, indent=2) + "\n")
    write_whole(folder / CONFIG, dump(config))  # the last one: with it the folder is a run's


def recorded(folder: Path) -> dict[str, Any] | None:
    """Settings as a run left them, new ones at their defaults; None where there is no run.

    Raises:
        ConfigError: they cannot be read.
    """
    path = folder / CONFIG
    if not path.exists():
        return None
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        ds = json.loads((folder / "ds.json").read_text(encoding="utf-8"))
    except (yaml.YAMLError, ValueError, OSError) as error:
        raise ConfigError(f"{folder}: not readable as a run: {error}") from error
    return settings_of(build(tree, where=str(path)), ds)


def make_folder(out: Path) -> None:
    """Make a folder for results, unless it is there.

    Raises:
        DataError: none can be made.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: no folder can be made there ({error.strerror})") from error


def write_whole(path: Path, text: str) -> None:
    """Write a text file, whole or not at all, its line ends as they are."""
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8", newline="")
    os.replace(aside, path)


def _aside(folder: Path) -> Path:
    number = 1
    while (moved := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    return moved
