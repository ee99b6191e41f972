"""The paper's experiments: trials trained and scored by the commands of a user, then the report.

An experiment is a run of MLflow with a child for each trial and seed. A trial that has finished
left a JSON and is not run again; one that was interrupted goes on.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from llm_mde.progress import duration
from llm_mde.recipes import find
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies import report
from llm_mde.studies.agenda import Planned
from llm_mde.studies.attempt import attempt, record
from llm_mde.studies.live import Live
from llm_mde.studies.paper import UNTRAINED, Outcome
from llm_mde.studies.plan import Plan, Trial
from llm_mde.studies.process import alone
from llm_mde.studies.programs import below
from llm_mde.studies.results import outcomes_of, read_result, tracked
from llm_mde.studies.share import Share
from llm_mde.studies.summary import OURS, blocks
from llm_mde.studies.trials import How, run_trials
from llm_mde.tracking.about import NOTE
from llm_mde.tracking.connection import FAILURES
from llm_mde.tracking.mlflow import MlflowTracker, known_run
from llm_mde.tracking.sync import catch_up
from llm_mde.tracking.tracker import Status
from llm_mde.training.legend import legend

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """An experiment that ran."""

    plan: Plan
    outcomes: list[Outcome]
    files: list[Path]
    """Tables and figure."""

    @property
    def errors(self) -> list[str]:
        """Why rows failed."""
        return [outcome.error for outcome in self.outcomes if outcome.error]

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        outcomes = [vars(one) | {"adapter": str(one.adapter)} for one in self.outcomes]
        files = [str(path) for path in self.files]
        return {"name": self.plan.experiment.name, "outcomes": outcomes, "files": files}

    def lines(self) -> list[str]:
        """The tables for people."""
        said = report.lines(self.plan.experiment, self.outcomes)
        return [*said, f"report: {' '.join(str(path) for path in self.files)}"]


def run_all(
    planned: Sequence[Planned], *, ds_config: Path, concurrent: int | None, about: dict[str, str]
) -> list[Finished]:
    """Run what is not done, one experiment after the other, and write every report.

    A failing trial is kept with its reason and does not stop the rest.

    Raises:
        ConfigError: another command runs one of them.
    """
    ds_config = find(ds_config).absolute()
    finished = []
    for one in planned:
        with alone(one.plan.folder):
            finished.append(_run(one, ds_config=ds_config, concurrent=concurrent, about=about))
    return finished


def _run(
    planned: Planned, *, ds_config: Path, concurrent: int | None, about: dict[str, str]
) -> Finished:
    made, states = planned.plan, planned.states
    todo = [trial for trial, state in zip(made.trials, states, strict=True) if state != "done"]
    name, total = made.experiment.name, len(made.trials)
    logger.info("%s: %d trials, %d of them done", name, total, total - len(todo))
    began = time.monotonic()
    figure = made.folder / report.FOLDER / report.FIGURE
    if todo:
        figure.unlink(missing_ok=True)  # the last file of a report: absent, it is to be made anew
    parent = _parent(made, about)
    status: Status = "failed"
    try:
        errors = _run_trials(todo, made, parent, ds_config=ds_config, concurrent=concurrent)
        outcomes = [
            one
            for trial in made.trials
            for one in outcomes_of(trial, errors.get(trial.config.name))
        ]
        files = _report(made, outcomes, about=about)
        if parent is not None:
            _record(parent, made, outcomes)
        status = "finished" if any(one.scores for one in outcomes) else "failed"
    except (KeyboardInterrupt, SystemExit):
        logger.warning("%s: stopped; the same command goes on", name)
        status = "killed"
        raise
    finally:
        if parent is not None:
            parent.close(status)
    if parent is not None:
        _catch_up(made, parent)
    logger.info("%s: %s for %d trials", name, duration(time.monotonic() - began), len(todo))
    return Finished(made, outcomes, files)


def _run_trials(
    todo: Sequence[Trial],
    made: Plan,
    parent: MlflowTracker | None,
    *,
    ds_config: Path,
    concurrent: int | None,
) -> dict[str, str]:
    """Run them; name -> reason of those that failed."""
    if not todo:
        return {}
    run_id = parent.run_id if parent else None
    trials = {trial.config.name: trial for trial in todo}
    work = partial(attempt, trials=trials, parent_run_id=run_id, ds_config=ds_config)
    settings: dict[str, dict[str, Any]] = {name: {} for name in trials}
    watch = Live({name: trial.steps for name, trial in trials.items()}, total=len(trials))
    how = How(made.folder, Share(concurrent))
    with watch.shown():
        ended = run_trials(work, settings, how, of=len(made.trials), watch=watch)
    return {name: end.error for name, end in ended.items() if end.error is not None}


def _report(made: Plan, outcomes: Sequence[Outcome], *, about: dict[str, str]) -> list[Path]:
    """The tables, and the figure unless it is there."""
    folder = made.folder / report.FOLDER
    config = made.trials[0].config
    seeds = ", ".join(f"{seed}" for seed in dict.fromkeys(trial.seed for trial in made.trials))
    told = about | {"shards": str(config.data.shards), "seeds": seeds}
    files = report.write(made.experiment, outcomes, folder=folder, about=told)
    figure = folder / report.FIGURE
    adapters = _adapters(made, outcomes)
    if adapters and not figure.is_file():
        report.draw(made.experiment, adapters, made.tests, figure)
    return [*files, figure] if figure.is_file() else files


def _adapters(made: Plan, outcomes: Sequence[Outcome]) -> dict[str, Path]:
    """Trial -> adapter of the first seed that has one, the model before training first."""
    lost = {one.adapter for one in outcomes if one.error}
    found: dict[str, Path] = {}
    for trial in made.trials:
        folder = trial.config.run_dir / "adapter"
        if folder not in lost:
            found.setdefault(trial.name, folder)
    return found


def _parent(made: Plan, about: dict[str, str]) -> MlflowTracker | None:
    config = made.trials[0].config
    if not config.tracking.mlflow:
        return None
    parent = MlflowTracker(config.tracking, run_dir=made.folder, resume=True)
    parent.tags({NOTE: legend()})
    parent.params(about | {"title": made.experiment.title, "table": made.experiment.table})
    return parent


def _catch_up(made: Plan, parent: MlflowTracker) -> None:
    """Send what MLflow lacks of the runs, and their scores on tests, which no run's record has."""
    catch_up([trial.config.run_dir for trial in made.trials], parent)
    if parent.run_id is None:
        return
    try:
        known = parent.children()
    except FAILURES:
        return  # it has been said
    for trial in made.trials:
        if not trial.result.is_file():
            continue
        found = read_result(trial)
        wanted = {name for test, said in found["tests"].items() for name in tracked(said, test)}
        child = known.get(known_run(trial.config.run_dir, parent.uri) or "")
        if child is None or not wanted.issubset(child.metrics):
            config = below(trial.config, parent.run_id)
            record(config, trial, found["tests"], step=found["cost"]["steps"])


def _record(parent: MlflowTracker, made: Plan, outcomes: Sequence[Outcome]) -> None:
    """Means over seeds under `metric`, and the report's files."""
    means = {}
    for block in blocks(made.experiment, outcomes):
        for line in block:
            row = line.test if line.row in ("", UNTRAINED) else line.row
            group = row if line.source == OURS else f"{line.source}_{row}"
            for metric in METRICS:
                if (found := line.spread("metric", metric)) is not None:
                    means[f"{group}/{metric}"] = found.mean
    parent.log(means, 0)
    parent.artifacts(made.folder / report.FOLDER, report.FOLDER)
