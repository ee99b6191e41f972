"""What a sweep will run: every trial under every seed, checked before anything starts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from llm_mde.config import Config
from llm_mde.credentials import redacted
from llm_mde.errors import ConfigError
from llm_mde.recipes import find, flat
from llm_mde.studies.board import BOARD, Leaderboard, Row, ranked
from llm_mde.studies.plan import counted, planned_steps
from llm_mde.studies.programs import SCORE, TIME, evaluations
from llm_mde.studies.records import Record, Records
from llm_mde.studies.rules import grace_of, key
from llm_mde.studies.space import Base, Search, Space, base_of, read_space, settings_of
from llm_mde.training.ds import read_ds
from llm_mde.training.folder import CHANGEABLE, differences, write_whole

RECORDS = "trials.jsonl"
CLAIM = "sweep.json"
SEED = "seed"


@dataclass(frozen=True)
class Sweep:
    """A space with all that is needed to run it."""

    base: Base
    ds_config: Path
    config: Config
    """Of a trial: what all of them share."""
    trials: dict[str, dict[str, Any]]
    """Name -> settings, the seed among them; none where Optuna suggests them."""

    @property
    def search(self) -> Search:
        """How the space is gone through."""
        return self.base.space.search

    @property
    def name(self) -> str:
        """Of the space."""
        return self.base.space.name

    @property
    def folder(self) -> Path:
        """Of records, logs and the board."""
        return self.config.runs / self.name

    @property
    def bayes(self) -> bool:
        """Whether trials are suggested by the scores of those before."""
        return self.search.searcher == "optuna"

    @property
    def judged(self) -> bool:
        """Whether a scheduler may stop trials early."""
        return self.search.scheduler != "fifo"

    @property
    def changing(self) -> bool:
        """Whether trials go on from each other with other values."""
        return self.search.scheduler == "pbt"

    @property
    def total(self) -> int:
        """Trials in all."""
        return self.search.samples if self.bayes else len(self.trials)

    @cached_property
    def steps(self) -> dict[str, int]:
        """Optimizer steps of each trial that is known."""
        return {name: steps_of(self.base, name, one) for name, one in self.trials.items()}

    @property
    def longest(self) -> int:
        """Optimizer steps of the longest trial."""
        return max(self.steps.values()) if self.steps else steps_of(self.base, "t", {})

    def as_run(self, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Settings as the configuration has them: ranks divided for a tiny model."""
        values = flat(self.base.config_of(name, settings))
        return {path: values[path] for path in settings}


def plan_sweep(
    space_file: Path,
    *,
    base: Path | None,
    tiny: bool,
    sets: list[str],
    ds_config: Path,
    search: Mapping[str, Any],
    seeds: int = 1,
    max_trials: int | None = None,
) -> Sweep:
    """Read a space and check every trial.

    Args:
        space_file: YAML of the space.
        base: YAML the trials start from; None: the space's tiny one.
        tiny: the base is a tiny model, so divide as the space says.
        sets: `a.b=c` words for all trials.
        ds_config: DeepSpeed's JSON of all trials.
        search: what differs from the space's own `search`.
        seeds: runs of each trial, under the base's seed and those that follow it.
        max_trials: a larger space is refused.

    Raises:
        ConfigError: a trial that cannot be built; a larger space; an unusable `ds_config`.
        DataError: a key list that the shards lack.
    """
    space = read_space(space_file)
    # Not model_copy, which checks nothing.
    chosen = Search(**(space.search.model_dump() | dict(search)))
    space = space.model_copy(update={"search": chosen})
    start = base_of(space, base, tiny=tiny, sets=sets)
    ds = find(ds_config).absolute()
    read_ds(ds)
    bayes = space.search.searcher == "optuna"
    if "samples" in search and not space.parameters:
        raise ConfigError(f"--samples: draws parameters, space {space.name} has none")
    if bayes and find_spec("optuna") is None:
        raise ConfigError(
            "search.searcher optuna: needs the package; pip install 'llm-mde[optuna]'"
        )
    if bayes and not space.parameters:
        raise ConfigError(f"space {space.name}: optuna draws parameters, this space has none")
    if bayes and max_trials is not None and space.search.samples > max_trials:
        raise ConfigError(
            f"space {space.name}: {space.search.samples} trials, "
            f"more than --max-trials {max_trials}"
        )
    if bayes and seeds > 1:
        raise ConfigError("--seeds: optuna suggests each trial once; give one seed")
    if space.search.scheduler == "pbt":
        _check_changeable(space, seeds)
    trials = {} if bayes else _under_seeds(start, seeds, max_trials=max_trials)
    named = trials or {"t": {}}
    configs = [start.config_of(name, values) for name, values in named.items()]
    shards = configs[0].data.shards
    if shards is None:
        raise ConfigError("data.shards: expected a folder written by 'llm-mde pack', got nothing")
    for config in configs:
        counted(str(config.data.shards), config.data.train_split)
        counted(str(config.data.shards), config.data.val_split)
    sweep = Sweep(start, ds, configs[0], trials)
    if sweep.judged:
        grace_of(sweep.search.grace, sweep.longest)
    return sweep


def _check_changeable(space: Space, seeds: int) -> None:
    """What population-based training changes in the middle of a run can be changed there."""
    if not space.parameters:
        raise ConfigError(f"space {space.name}: pbt changes parameters, this space has none")
    if seeds > 1 or any(rule.when for rule in space.parameters.values()):
        raise ConfigError(
            f"space {space.name}: pbt lets trials go on from each other: give one seed, and "
            "parameters without `when`"
        )
    fixed = [path for path in space.parameters if not path.startswith(CHANGEABLE)]
    if fixed:
        raise ConfigError(
            f"space {space.name}: {fixed[0]}: pbt changes values in the middle of a run, expected "
            f"paths that begin with one of {', '.join(CHANGEABLE)}; fix it in the base"
        )


def _under_seeds(base: Base, seeds: int, *, max_trials: int | None) -> dict[str, dict[str, Any]]:
    """Each trial under the base's seed by its own name, under others with the seed behind it."""
    trials = settings_of(base, seeds=seeds, max_trials=max_trials)
    if seeds == 1:
        return trials
    if any(SEED in values for values in trials.values()):
        raise ConfigError(f"space {base.space.name}: --seeds {seeds}: it sets seeds itself")
    first = base.plain[SEED]
    return {
        name if seed == first else f"{name}-s{seed}": values | {SEED: seed}
        for seed in range(first, first + seeds)
        for name, values in trials.items()
    }


def steps_of(base: Base, name: str, settings: Mapping[str, Any]) -> int:
    """Optimizer steps of a trial, if nothing ends it early."""
    config = base.config_of(name, settings)
    images, _ = counted(str(config.data.shards), config.data.train_split)
    return planned_steps(config, images)


def begun(sweep: Sweep) -> None:
    """There is something to go on with.

    Raises:
        ConfigError: there is not.
    """
    if not (sweep.folder / CLAIM).is_file():
        raise ConfigError(
            f"--resume: {sweep.folder} holds no sweep; leave --resume out to begin one, or name "
            "the runs folder it lies in (--set runs=DIR)"
        )


def claim(sweep: Sweep) -> None:
    """Write what the sweep is into its folder, or find the same there.

    How many samples, seeds and devices may change when it goes on.

    Raises:
        ConfigError: the folder holds another sweep.
    """
    check_claim(sweep)
    write_whole(sweep.folder / CLAIM, redacted(json.dumps(_identity(sweep), indent=1)) + "\n")


def _identity(sweep: Sweep) -> dict[str, dict[str, Any]]:
    return {
        "space": flat(sweep.base.space.model_copy(update={"search": Search()})),
        "base": sweep.base.plain,
        "ds": {f"ds.{key}": value for key, value in read_ds(sweep.ds_config).items()},
    }


def check_claim(sweep: Sweep) -> None:
    """Read what the folder holds: nothing, a sweep of which no trial began, or this one.

    Raises:
        ConfigError: another sweep.
    """
    path = sweep.folder / CLAIM
    records = Records(sweep.folder / RECORDS, write=False).all
    if path.is_file() and records:
        before = json.loads(path.read_text(encoding="utf-8"))
        now: dict[str, dict[str, Any]] = json.loads(redacted(json.dumps(_identity(sweep))))
        parts = (differences(before[part], now[part]) for part in now)
        if changed := "; ".join(filter(None, parts)):
            raise ConfigError(
                f"{sweep.folder}: holds a sweep with other settings: {changed}; give the space "
                "another name, or choose another folder with --set runs=DIR"
            )
    _check_settings(sweep, records)


def _check_settings(sweep: Sweep, records: Mapping[str, Record]) -> None:
    """A trial that was begun has the settings it began with.

    Raises:
        ConfigError: another searcher or seed of the draws gives its name to other ones.
    """
    if sweep.changing:
        return
    seed = {SEED: sweep.base.plain[SEED]}  # which one seed alone does not say
    for name, settings in sweep.trials.items():
        if name in records and key(seed | records[name].settings) != key(seed | settings):
            raise ConfigError(
                f"{sweep.folder}: trial {name} ran with {records[name].settings}, now {settings}: "
                "other draws or another searcher need another name of the space, or another folder "
                "(--set runs=DIR)"
            )


def board_of(sweep: Sweep, records: Records) -> Leaderboard:
    """The board of all trials that ended, written to the sweep's folder."""
    rows = [_row(sweep, record) for record in records.all.values() if record.state != "begun"]
    board = Leaderboard(sweep.name, sweep.folder, ranked(rows))
    write_whole(sweep.folder / BOARD, board.csv())
    return board


def _row(sweep: Sweep, record: Record) -> Row:
    config = sweep.base.config_of(record.name, record.settings)
    values = flat(config)
    found = list(evaluations(config.run_dir))
    best = min(found, key=lambda row: row[SCORE]) if found and not record.error else {}
    return Row(
        trial=record.name.removesuffix(f"-s{record.settings.get(SEED)}"),
        seed=config.seed,
        run=config.run_dir,
        settings={path: values[path] for path in record.settings if path != SEED},
        scores={key: value for key, value in best.items() if "/" in key},
        seconds=record.seconds,
        steps=found[-1][TIME] if found else 0,
        error=record.error,
    )
