"""Sweeps: every trial is one run of the training program, a child of the sweep's run in MLflow."""

import logging
import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from llm_mde.config import Config
from llm_mde.errors import ConfigError
from llm_mde.progress import duration
from llm_mde.recipes import find
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.board import BOARD, Leaderboard, Row, ranked
from llm_mde.studies.process import alone
from llm_mde.studies.space import Space, read_space, trial_configs
from llm_mde.studies.trials import SCORE, Ended, below, evaluations, run_trials, train
from llm_mde.tracking.mlflow import MlflowTracker
from llm_mde.tracking.tracker import Status
from llm_mde.training.folder import write_whole

logger = logging.getLogger(__name__)


def sweep(
    space_file: Path,
    *,
    base: Path | None,
    tiny: bool,
    sets: list[str],
    ds_config: Path,
    concurrent: int | None,
) -> Leaderboard:
    """Run all trials of a space; a failing one is kept with its reason and does not stop the rest.

    Args:
        space_file: YAML of the space.
        base: YAML the trials start from; None: the space's tiny one.
        tiny: the base is a tiny model, so divide as the space says.
        sets: `a.b=c` words for all trials.
        ds_config: DeepSpeed's JSON of all trials.
        concurrent: trials at once; None: one a GPU, or one a core.

    Raises:
        ConfigError: a trial that cannot be built, before any has started; all trials failed;
            another command runs this sweep.
    """
    space = read_space(space_file)
    configs = trial_configs(space, base, tiny=tiny, sets=sets)
    first = next(iter(configs.values()))
    if first.data.shards is None:
        raise ConfigError("data.shards: expected a folder written by 'llm-mde pack', got nothing")
    about = {"trials": len(configs), "space": str(space_file), "base": str(base or "")}
    with alone(first.runs / space.name):
        return _run(space, configs, ds_config=ds_config, concurrent=concurrent, about=about)


def _run(
    space: Space,
    configs: Mapping[str, Config],
    *,
    ds_config: Path,
    concurrent: int | None,
    about: dict[str, Any],
) -> Leaderboard:
    first = next(iter(configs.values()))
    folder = first.runs / space.name
    parent = (
        MlflowTracker(first.tracking, run_dir=folder, resume=True)
        if first.tracking.mlflow
        else None
    )
    if parent is not None:
        parent.params(about)
    run_id = parent.run_id if parent else None
    works = {
        name: partial(train, config=below(config, run_id), ds_config=find(ds_config).absolute())
        for name, config in configs.items()
    }
    logger.info("%d trials of %s", len(works), space.name)
    began = time.monotonic()
    status: Status = "failed"
    try:
        ended = run_trials(works, folder=folder, concurrent=concurrent, of=len(works))
        rows = _rows(space, configs, ended)
        board = Leaderboard(space.name, folder, rows)
        write_whole(folder / BOARD, board.csv())
        if parent is not None:
            _record(parent, board)
        status = "finished" if any(row.scores for row in rows) else "failed"
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        if parent is not None:
            parent.close(status)
    logger.info("%s for %d trials", duration(time.monotonic() - began), len(rows))
    if not any(row.scores for row in rows):
        raise ConfigError(f"{space.name}: every trial failed; the first: {rows[0].error}")
    return board


def _record(parent: MlflowTracker, board: Leaderboard) -> None:
    best = board.rows[0].scores
    if best:
        parent.log({f"best/{name}": best[f"val/{name}"] for name in METRICS}, 0)
    parent.artifacts(board.folder, "sweep")


def _rows(space: Space, configs: Mapping[str, Config], ended: Mapping[str, Ended]) -> list[Row]:
    """One a trial, best first."""
    rows = (_row(name, configs[name], ended[name], settings=space.trials[name]) for name in configs)
    return ranked(list(rows))


def _row(name: str, config: Config, ended: Ended, *, settings: dict[str, Any]) -> Row:
    found = list(evaluations(config.run_dir))
    error = ended.error or (None if found else "no evaluation")
    best = {} if error else min(found, key=lambda row: row[SCORE])
    return Row(
        trial=name,
        seed=config.seed,
        run=config.run_dir,
        settings={path: _value(config, path) for path in settings},
        scores={key: value for key, value in best.items() if "/" in key},
        seconds=ended.seconds,
        steps=found[-1]["step"] if found else 0,
        error=error,
    )


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
