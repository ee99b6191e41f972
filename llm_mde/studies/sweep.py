"""Sweeps: every trial is one process of the training program on the devices Ray Tune gave it.

The trial function follows the run's `metrics.jsonl` and reports to Ray; the child logs itself to
MLflow under the sweep's run.
"""

import csv
import logging
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from llm_mde.config import Config
from llm_mde.errors import ConfigError
from llm_mde.launcher import cores
from llm_mde.progress import duration
from llm_mde.recipes import dump, find
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.process import environment, gpu_ids, run_logged, single_command
from llm_mde.studies.space import Space, read_space, trial_configs
from llm_mde.tracking.mlflow import MlflowTracker
from llm_mde.tracking.tracker import METRICS_FILE, Status, read_metrics

logger = logging.getLogger(__name__)

SCORE = "val/abs_rel"


@dataclass(frozen=True)
class Row:
    """One finished or failed trial."""

    trial: str
    settings: dict[str, Any]
    """What the trial sets, by dotted path, as it ran."""
    scores: dict[str, float]
    """Numbers of its best evaluation; empty if it failed."""
    seconds: float
    error: str | None
    """Why it failed."""


@dataclass(frozen=True)
class Leaderboard:
    """Trials of a sweep, best first, failed ones last."""

    name: str
    folder: Path
    rows: list[Row]

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "trials": [vars(r) for r in self.rows],
        }

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        paths = sorted({path for row in self.rows for path in row.settings})
        metrics = [f"val/{name}" for name in METRICS]
        head = ["trial", *paths, *metrics, "seconds", "error"]
        body = [
            [row.trial, *(f"{row.settings.get(path, '')}" for path in paths)]
            + [f"{row.scores[m]:.4f}" if m in row.scores else "" for m in metrics]
            + [f"{row.seconds:.0f}", row.error or ""]
            for row in self.rows
        ]
        return [head, *body]

    def lines(self) -> list[str]:
        """The table for people: settings by their last two names, three metrics."""
        head, *body = self.table()
        keep = [
            at for at, name in enumerate(head)
            if not name.startswith("val/") or name in (SCORE, "val/rmse", "val/delta1")
        ]  # fmt: skip
        short = [head[at].removeprefix("model.").replace(".lora", "") for at in keep]
        rows = [short] + [[row[at] for at in keep] for row in body]
        widths = [max(len(row[at]) for row in rows) for at in range(len(short))]
        lines = [
            "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
            for row in rows
        ]
        return [*lines, f"leaderboard: {self.folder / 'leaderboard.csv'}"]


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
        ConfigError: a trial that cannot be built, before any has started; all trials failed.
    """
    space = read_space(find(space_file))
    configs = trial_configs(space, base, tiny=tiny, sets=sets)
    first = next(iter(configs.values()))
    if first.data.shards is None:
        raise ConfigError("data.shards: expected a folder written by 'llm-mde pack', got nothing")
    folder = first.runs / space.name
    parent = (
        MlflowTracker(first.tracking, run_dir=folder, resume=True)
        if first.tracking.mlflow
        else None
    )
    if parent is not None:
        parent.params({"trials": len(configs), "space": str(space_file), "base": str(base or "")})
    jobs = [
        _Job(name, _below(config, parent), find(ds_config).absolute(), folder)
        for name, config in configs.items()
    ]
    logger.info("%d trials of %s", len(jobs), space.name)
    began = time.monotonic()
    status: Status = "failed"
    try:
        rows = _run(jobs, folder=folder, concurrent=concurrent, space=space)
        board = Leaderboard(space.name, folder, rows)
        _write_board(board)
        if parent is not None:
            _record(parent, board)
        status = "finished" if any(row.scores for row in rows) else "failed"
    finally:
        if parent is not None:
            parent.close(status)
    logger.info("%s for %d trials", duration(time.monotonic() - began), len(rows))
    if not any(row.scores for row in rows):
        raise ConfigError(f"{space.name}: every trial failed; the first: {rows[0].error}")
    return board


@dataclass(frozen=True)
class _Job:
    """What a trial process needs, in a form that Ray can send."""

    name: str
    config: Config
    ds_config: Path
    folder: Path


def _below(config: Config, parent: MlflowTracker | None) -> Config:
    tracking = config.tracking.model_copy(
        update={"parent_run_id": parent.run_id if parent else None}
    )
    return config.model_copy(update={"tracking": tracking})


def _write_board(board: Leaderboard) -> None:
    path = board.folder / "leaderboard.csv"
    aside = path.with_name(path.name + ".tmp")
    with aside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(board.table())
    os.replace(aside, path)


def _record(parent: MlflowTracker, board: Leaderboard) -> None:
    best = board.rows[0].scores
    if best:
        parent.log({f"best/{name}": best[f"val/{name}"] for name in METRICS}, 0)
    parent.artifacts(board.folder, "sweep")


def _run(
    jobs: list[_Job],
    *,
    folder: Path,
    concurrent: int | None,
    space: Space,
) -> list[Row]:
    folder.mkdir(parents=True, exist_ok=True)
    gpus = len(gpu_ids())
    at_once = concurrent or gpus or cores()
    resources = (
        {"cpu": 1, "gpu": 1 / math.ceil(at_once / gpus)}
        if gpus
        else {"cpu": max(1, cores() // at_once)}
    )
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # read by Ray's own processes
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failed trials speak through the board
    ray.init(
        include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR, num_cpus=cores()
    )
    try:
        tuner = tune.Tuner(
            tune.with_resources(tune.with_parameters(_trial, jobs=jobs, gpus=gpus > 0), resources),
            param_space={"trial": tune.grid_search([job.name for job in jobs])},
            tune_config=tune.TuneConfig(metric=SCORE, mode="min", max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(folder), verbose=0, callbacks=[_Lines(len(jobs))]
            ),
        )
        with redirect_stdout(sys.stderr):  # stdout is for the board
            results = {result.config["trial"]: result for result in tuner.fit()}
    finally:
        ray.shutdown()
    rows = [_row(job, results[job.name], settings=space.trials[job.name]) for job in jobs]
    return sorted(rows, key=lambda row: row.scores.get(SCORE, float("inf")))


class _Lines(tune.Callback):
    """A line as each trial ends, with the time the rest will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()

    def _line(self, trial: Any, how: str) -> None:
        self.done += 1
        eta = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        name = trial.config["trial"]
        logger.info("trial %d/%d %s %s | ETA %s", self.done, self.total, name, how, duration(eta))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self._line(trial, f"last {SCORE} {trial.last_result.get(SCORE, float('nan')):.4f}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self._line(trial, "failed")


def _trial(config: dict[str, Any], jobs: list[_Job], gpus: bool) -> None:
    """Ray's side of one trial: start the program, pass on what it records."""
    job = next(job for job in jobs if job.name == config["trial"])
    run = job.config.run_dir
    recipe = job.folder / f"{job.name}.yaml"
    recipe.write_text(dump(job.config), encoding="utf-8")
    command = single_command(["train", "--config", str(recipe), "--ds_config", str(job.ds_config)])
    sent = 0

    def report_new(_: str) -> None:
        nonlocal sent
        sent = _pass_on(run, after=sent)

    log = job.folder / f"{job.name}.log"
    code = run_logged(command, env=environment(gpus=gpus, threads=1), log=log, each=report_new)
    report_new("")
    if code:
        raise RuntimeError(f"training ended with exit code {code}")


def _pass_on(run: Path, *, after: int) -> int:
    for row in _scored(run, after=after):
        tune.report(row)
        after = row["step"]
    return after


def _scored(run: Path, *, after: int) -> Iterator[dict[str, Any]]:
    for row in read_metrics(run / METRICS_FILE):
        if SCORE in row and row["step"] > after:
            yield row


def _row(job: _Job, result: Any, *, settings: dict[str, Any]) -> Row:
    as_ran = {path: _value(job.config, path) for path in settings}
    seconds = float((result.metrics or {}).get("time_total_s", 0.0))
    rows = list(_scored(job.config.run_dir, after=0))
    if result.error is not None or not rows:
        return Row(job.name, as_ran, {}, seconds, _reason(job.folder / f"{job.name}.log"))
    best = min(rows, key=lambda row: row[SCORE])
    return Row(job.name, as_ran, {k: v for k, v in best.items() if "/" in k}, seconds, None)


def _reason(log: Path) -> str:
    """The last line of a failed trial's log that tells of an error, and where to read on."""
    said = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    telling = (line for line in reversed(said) if "Error" in line or line.startswith("llm-mde "))
    return f"{next(telling, 'no evaluation')}; see {log}"


def _value(config: Config, path: str) -> Any:
    value: Any = config
    for name in path.split("."):
        value = getattr(value, name)
    return value
