"""What an experiment will run: every trial under every seed, checked before anything starts."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from llm_mde.config import Config
from llm_mde.data.index import Index, open_index, read_manifest, shard_folder
from llm_mde.errors import ConfigError, DataError
from llm_mde.recipes import flat
from llm_mde.studies.paper import UNTRAINED, Experiment
from llm_mde.studies.space import trial_configs
from llm_mde.training.ds import read_ds


@dataclass(frozen=True)
class Trial:
    """One configuration under one seed, and the key lists it is scored on."""

    name: str
    """A trial of the experiment, or UNTRAINED."""
    seed: int
    config: Config
    tests: dict[str, str]
    """Test -> key list."""
    images: int
    """Training images."""
    steps: int
    """Optimizer steps planned; early stopping may make fewer."""
    settings: dict[str, Any]
    """What its result depends on: dotted path -> JSON value."""
    result: Path
    """Its scores as JSON, once it has finished."""


@dataclass(frozen=True)
class Plan:
    """An experiment with all its trials."""

    experiment: Experiment
    folder: Path
    """Of results, logs and the report."""
    trials: list[Trial]
    tests: dict[str, Index]
    """Test -> its samples."""


def plan(
    experiment: Experiment,
    base: Path | None,
    *,
    tiny: bool,
    sets: list[str],
    ds_config: Path,
    seeds: int,
) -> Plan:
    """Every trial under the base's seed and those that follow it; one model before training each.

    Arguments as in `trial_configs`.

    Raises:
        ConfigError: a trial that cannot be built, or that has fewer images than one batch; an
            unusable `ds_config`.
        DataError: a key list that the shards lack.
    """
    configs = trial_configs(experiment, base, tiny=tiny, sets=sets)
    first = next(iter(configs.values()))
    if experiment.untrained:
        unnamed = {"name": f"{experiment.name}-{UNTRAINED}"}
        configs = {UNTRAINED: first.model_copy(update=unnamed)} | configs
    folder = first.runs / experiment.name
    ds = {f"ds.{key}": value for key, value in read_ds(ds_config).items()}
    trials = [
        _trial(experiment, name, _seeded(config, config.seed + number), folder=folder, ds=ds)
        for number in range(seeds)
        for name, config in configs.items()
    ]
    shards = str(first.data.shards)
    tests = {test: open_index(shards, keys) for test, keys in experiment.tests.items()}
    return Plan(experiment, folder, trials, tests)


def _seeded(config: Config, seed: int) -> Config:
    return config.model_copy(update={"seed": seed, "name": f"{config.name}-s{seed}"})


def _trial(
    experiment: Experiment, name: str, config: Config, *, folder: Path, ds: dict[str, Any]
) -> Trial:
    where = f"experiment {experiment.name}, trial {name}"
    if config.data.shards is None:
        raise ConfigError(
            f"{where}: data.shards: expected a folder written by 'llm-mde pack', got nothing; "
            "add --set data.shards=DIR"
        )
    uses = {"data.train_split": config.data.train_split, "data.val_split": config.data.val_split}
    uses |= {f"test {test}": keys for test, keys in experiment.tests.items()}
    found = {
        use: _listed(config.data.shards, keys, f"{where}, {use}") for use, keys in uses.items()
    }
    images, batch = found["data.train_split"][0], config.train.batch
    if images < batch:
        raise ConfigError(
            f"{where}: data.train_split {config.data.train_split} has {images} images, fewer than "
            f"one train.batch of {batch}; pack more of them, or lower train.batch"
        )
    settings = flat(config) | ds | {f"{use} samples": digest for use, (_, digest) in found.items()}
    trains = name != UNTRAINED
    steps = planned_steps(config, images)
    return Trial(
        name=name,
        seed=config.seed,
        config=config,
        tests=experiment.tests,
        images=images if trains else 0,
        steps=steps if trains else 0,
        settings=settings,
        result=folder / f"{name}-s{config.seed}.json",
    )


def planned_steps(config: Config, images: int) -> int:
    """Optimizer steps of a run on so many images, if nothing ends it early."""
    return config.train.max_steps or config.train.epochs * (images // config.train.batch)


def _listed(shards: str, keys: str, where: str) -> tuple[int, str]:
    """Samples of a key list and their digest.

    Raises:
        DataError: there is none, or it is empty; says why, as far as the pack tells.
    """
    try:
        return counted(shards, keys)
    except DataError as error:
        raise DataError(f"{where} needs the key list {keys}: {error}{_remedy(shards, keys)}") from (
            error
        )


@cache
def counted(shards: str, keys: str) -> tuple[int, str]:
    """Samples of a key list, and their digest."""
    entries = open_index(shards, keys).entries
    text = "".join(f"{entry.key} {entry.sha256}\n" for entry in entries)
    return len(entries), hashlib.sha256(text.encode()).hexdigest()


def _remedy(shards: str, keys: str) -> str:
    """What the pack says about a list that it lacks, or that it is older than the lists."""
    if keys == "test":
        return "; pack the labelled images, or score another list: --test val"
    if not keys.startswith(("few-shot", "zero-shot")):
        return ""
    try:
        lists = read_manifest(shard_folder(shards))["lists"]
    except DataError:  # of an older version, or of another program: it has no lists to tell of
        lists = {}
    if keys in lists:
        why = lists[keys].get("note") or "it is empty"
        return f"; {why}: pack scenes of these types, too (bedroom_0001 is a bedroom)"
    return "; lists of scene types are written by 'llm-mde pack': pack again with this version"
