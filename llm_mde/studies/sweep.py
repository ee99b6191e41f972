"""Sweeps: every trial is one run of the training program, a child of the sweep's run in MLflow."""

import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from llm_mde.data.index import open_index
from llm_mde.errors import ConfigError
from llm_mde.launcher import check_cluster
from llm_mde.progress import duration
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies import sensitivity
from llm_mde.studies.board import Leaderboard
from llm_mde.studies.live import Live
from llm_mde.studies.process import alone, here
from llm_mde.studies.programs import SCORE, Place, below, evaluations, train
from llm_mde.studies.programs import Row as Evaluation
from llm_mde.studies.records import Record, Records, State
from llm_mde.studies.schedule import scheduler_of
from llm_mde.studies.share import Share, devices_of
from llm_mde.studies.space import Base
from llm_mde.studies.sweep_plan import RECORDS, Sweep, board_of, claim, steps_of
from llm_mde.studies.trials import Ended, How, run_trials
from llm_mde.studies.winner import Training
from llm_mde.tracking.about import NOTE
from llm_mde.tracking.mlflow import MlflowTracker
from llm_mde.tracking.sync import catch_up
from llm_mde.tracking.tracker import Status
from llm_mde.training.legend import legend

logger = logging.getLogger(__name__)

SHORTENED = ("train.max_steps=", "train.epochs=", "name=")  # what the full run does not take over


@dataclass(frozen=True)
class Finished:
    """A sweep that ran."""

    board: Leaderboard
    files: list[Path]
    """Of the report."""
    said: list[str]
    """What the terminal shows."""
    winner: list[str]
    """The command that trains the best configuration in full."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        files = [str(path) for path in self.files]
        return self.board.payload() | {"report": files, "train_the_best": self.winner}


def run_sweep(
    sweep: Sweep, *, share: Share, address: str | None = None, about: Mapping[str, Any]
) -> Finished:
    """Run what is not done, and write the report.

    A failing trial is kept with its reason and does not stop the rest.

    Args:
        sweep: its trials, checked.
        share: devices of a trial.
        address: of a Ray cluster; None: this machine.
        about: what MLflow and the report are told of the sweep.

    Raises:
        ConfigError: all trials failed; another command runs this sweep; the folder holds another
            one; a trial asks for more devices than there are.
    """
    if len(Records(sweep.folder / RECORDS, write=False).over) < sweep.total:
        _check_devices(sweep, share=share, address=address)
    with alone(sweep.folder):
        claim(sweep)
        return _run(sweep, share=share, address=address, about=about)


def _check_devices(sweep: Sweep, *, share: Share, address: str | None) -> None:
    """What is known of them before Ray starts."""
    if address is None:
        devices_of(share, nodes=[here()], of=sweep.total)
    else:
        check_cluster(address, option="--address", otherwise="leave --address out")


def _run(sweep: Sweep, *, share: Share, address: str | None, about: Mapping[str, Any]) -> Finished:
    records = Records(sweep.folder / RECORDS)
    parent = _parent(sweep, about)
    run_id = parent.run_id if parent else None
    began = time.monotonic()
    status: Status = "failed"
    try:
        _run_trials(sweep, records, share=share, address=address, run_id=run_id)
        board = board_of(sweep, records)
        finished = _report(sweep, board, about)
        if parent is not None:
            _record(parent, board)
        status = "finished" if any(row.scores for row in board.rows) else "failed"
    except (KeyboardInterrupt, SystemExit):
        logger.warning("%s: stopped; the same command goes on", sweep.name)
        board_of(sweep, records)
        status = "killed"
        raise
    finally:
        if parent is not None:
            parent.close(status)
    if parent is not None:
        catch_up([row.run for row in board.rows], parent)
    logger.info("%s: %s", sweep.name, duration(time.monotonic() - began))
    if not any(row.scores for row in board.rows):
        raise ConfigError(f"{sweep.name}: every trial failed; the first: {board.rows[0].error}")
    return finished


def _report(sweep: Sweep, board: Leaderboard, about: Mapping[str, Any]) -> Finished:
    folder = sweep.folder / sensitivity.FOLDER
    base = sweep.base
    lasting = [word for word in base.words if not word.startswith(SHORTENED)]
    training = Training(base.config, sweep.ds_config, lasting)
    shards = str(sweep.config.data.shards)
    files = sensitivity.write(
        board,
        folder=folder,
        about=about,
        training=training,
        defaults=base.plain,
        val=open_index(shards, sweep.config.data.val_split),
    )
    said = sensitivity.lines(board, folder=folder, training=training, defaults=base.plain)
    return Finished(board, files, said, sensitivity.command_of(board, training))


def _run_trials(
    sweep: Sweep, records: Records, *, share: Share, address: str | None, run_id: str | None
) -> None:
    """Run those that are not over, and keep how each ends."""
    over = records.over
    todo = {
        # By `pbt` a trial's settings have changed since it began.
        name: records.all[name].settings if sweep.changing and name in records.all else settings
        for name, settings in sweep.trials.items()
        # A scheduler judges by the others: it hears again of trials that are over.
        if name not in over or (sweep.judged and not sweep.changing)
    }
    left = sweep.total - len(over)
    logger.info("%s: %d trials, %d of them done", sweep.name, sweep.total, len(over))
    if left <= 0:
        return
    steps = {name: sweep.steps[name] for name in todo}
    work = partial(
        _work,
        base=sweep.base,
        ds_config=sweep.ds_config,
        over=frozenset(over),
        changing=sweep.changing,
        parent_run_id=run_id,
        folder=Path.cwd(),
    )
    total = left if sweep.bayes else len(todo)
    watch = _Recorder(sweep, records, steps, total=total, typical=sweep.longest)
    scheduler = scheduler_of(sweep.search, sweep.base, steps=sweep.longest)
    run_of = partial(_run_of, sweep.base) if sweep.changing else None
    how = How(sweep.folder, share, address, scheduler, run_of)
    with watch.shown():
        run_trials(
            work,
            todo,
            how,
            of=sweep.total,
            watch=watch,
            more=_searcher(sweep, records) if sweep.bayes else None,
            samples=left,
        )


def _searcher(sweep: Sweep, records: Records) -> Any:
    from llm_mde.studies.bayes import Bayes  # Optuna is an extra

    return Bayes(
        sweep.base.space.parameters,
        sweep.base.plain,
        list(records.all.values()),
        seed=sweep.search.seed,
        check=sweep.base.config_of,
    )


def _work(
    place: Place,
    settings: dict[str, Any],
    *,
    base: Base,
    ds_config: Path,
    over: frozenset[str],
    changing: bool,
    parent_run_id: str | None,
    folder: Path,
) -> Iterator[Evaluation]:
    """Train one trial, in a Ray worker; of one that is over only tell.

    folder: the command's own, where relative paths begin; a cluster's workers begin elsewhere.
    """
    os.chdir(folder)
    config = below(base.config_of(place.name, settings), parent_run_id)
    if place.name in over:
        yield from evaluations(config.run_dir)
        return
    steps = steps_of(base, place.name, settings)
    yield from train(place, config, ds_config, steps=steps, changing=changing)


def _run_of(base: Base, name: str, settings: dict[str, Any]) -> Path:
    return base.config_of(name, settings).run_dir


class _Recorder(Live):
    """Keeps how trials end."""

    def __init__(
        self,
        sweep: Sweep,
        records: Records,
        steps: Mapping[str, int],
        *,
        total: int,
        typical: int,
    ) -> None:
        super().__init__(steps, total=total, typical=typical)
        self._sweep, self._records = sweep, records

    def started(self, name: str, settings: dict[str, Any]) -> None:
        """Kept as begun."""
        super().started(name, settings)
        known = self._records.all.get(name)
        if known is None or not known.over:
            self._records.add(Record(name, settings, seconds=known.seconds if known else 0.0))

    def ended(self, name: str, ended: Ended) -> None:
        """Kept as ended; one that was over before stays as it was.

        A trial that made its last step is not cut short, whatever its scheduler says then.
        """
        whole = self.seen[name].step >= self._steps.get(name, self._typical)
        ended = replace(ended, stopped=ended.stopped and not whole)
        super().ended(name, ended)
        before = self._records.all[name]
        if before.over:
            return
        run = self._sweep.base.config_of(name, before.settings).run_dir
        scores = [row[SCORE] for row in evaluations(run)]
        error = ended.error or (None if scores else "no evaluation")
        state: State = "failed" if error else "stopped" if ended.stopped else "done"
        self._records.add(
            Record(
                name,
                before.settings,
                state,
                before.seconds + ended.seconds,
                min(scores, default=None),
                error,
            )
        )


def _parent(sweep: Sweep, about: Mapping[str, Any]) -> MlflowTracker | None:
    tracking = sweep.config.tracking
    if not tracking.mlflow:
        return None
    parent = MlflowTracker(tracking, run_dir=sweep.folder, resume=True)
    parent.tags({NOTE: legend()})
    parent.params(dict(about))
    return parent


def _record(parent: MlflowTracker, board: Leaderboard) -> None:
    best = board.rows[0].scores
    if best:
        parent.log({f"best/{name}": best[f"val/{name}"] for name in METRICS}, 0)
    parent.artifacts(board.folder, "sweep")
