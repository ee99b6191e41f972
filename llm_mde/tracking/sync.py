"""Replays the record of a run folder into MLflow: nothing is lost there, nothing twice."""

import json
import logging
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_mde.config import TrackingConfig, tracking_uri
from llm_mde.errors import ConfigError
from llm_mde.locks import training
from llm_mde.recipes import load
from llm_mde.tracking.about import describe, parameters
from llm_mde.tracking.connection import FAILURES, in_words
from llm_mde.tracking.mlflow import Child, MlflowTracker, known_run
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics, read_status

logger = logging.getLogger(__name__)

CLOCKS = ("step", "time")
LATER = "the record stays in the run folder, sync again later"


@dataclass(frozen=True)
class Synced:
    """What a run's record came to."""

    run: str
    uri: str
    run_id: str
    values: int
    """Numbers in the record."""
    known: int
    """Of those, what the store had already."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def line(self) -> str:
        """For people."""
        return (
            f"{self.run}: {self.values} values, {self.known} of them there already; run "
            f"{self.run_id} in {self.uri}"
        )


def sync(run_dir: Path, *, uri: str | None = None, parent: str | None = None) -> Synced:
    """Send what the store does not have of a run: parameters, numbers, figures, the adapter.

    Args:
        run_dir: the run's folder.
        uri: the store; None: that of the run's configuration.
        parent: id of the run there that it belongs below; None: that of the configuration.

    Raises:
        ConfigError: the folder holds no run, or one that is being trained and sends its own record;
            the store does not answer, or refuses.
    """
    with training(run_dir.absolute()):
        return _sync(run_dir, uri=uri, parent=parent)


def catch_up(runs: Iterable[Path], parent: MlflowTracker) -> None:
    """Send what an outage kept from the parent's store of runs that are over, as its children.

    One that cannot be sent is named and left; where the store does not answer, so are the others.
    """
    if parent.run_id is None:
        return  # it has said so
    sent = 0
    try:
        known = parent.children()
        for run in runs:
            if not _is_whole(run, known.get(known_run(run, parent.uri) or "")):
                sent += _sent(run, parent)
    except FAILURES as error:
        logger.warning("mlflow: runs that it lacks were not sent: %s", in_words(error))
    if sent:
        logger.info("mlflow: sent what it lacked of %d runs", sent)


def _is_whole(run: Path, child: Child | None) -> bool:
    """Whether the store has all of a run's record, or there is none."""
    rows = read_metrics(run / METRICS_FILE)
    whole = child.whole if child else None
    return not rows or whole == f"{max(row['step'] for row in rows)}"


def _sent(run: Path, parent: MlflowTracker) -> bool:
    """Send a run; of one that cannot be sent say why, if its store answers.

    Raises:
        Exception: one of FAILURES, where it does not.
    """
    try:
        sync(run, uri=parent.uri, parent=parent.run_id)
    except ConfigError as error:
        parent.children()
        logger.warning("mlflow: %s", error)
        return False
    return True


def _sync(run_dir: Path, *, uri: str | None, parent: str | None) -> Synced:
    settings = run_dir / "config.yaml"
    rows = read_metrics(run_dir / METRICS_FILE)
    if not settings.is_file() or not rows:
        raise ConfigError(f"{run_dir}: no config.yaml and metrics.jsonl, expected a run folder")
    config = load(settings)
    tracking = config.tracking
    told = {"uri": uri, "parent_run_id": parent}
    changed = {name: value for name, value in told.items() if value}
    tracking = TrackingConfig.model_validate(tracking.model_dump() | changed)
    shown = tracking_uri(tracking)
    tracker = MlflowTracker(tracking, run_dir=run_dir, resume=True)
    if tracker.run_id is None:
        raise ConfigError(f"{shown}: {tracker.problem}; {LATER}")
    ds = json.loads((run_dir / "ds.json").read_text(encoding="utf-8"))
    tracker.params(parameters(config, ds))
    describe(tracker, run_dir)
    values = 0
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in CLOCKS}
        tracker.log_at(numbers, row["step"], time_s=row["time"])
        values += len(numbers)
    pictures: dict[str, Path] = {}
    for path in sorted((run_dir / "figures").glob("*-*.png")):
        name, _, step = path.stem.rpartition("-")
        tracker.figure(path, name, int(step), latest=False)
        pictures[name] = path
    for name, path in pictures.items():
        tracker.latest(path, name)
    if (run_dir / "adapter").is_dir():
        tracker.artifacts(run_dir / "adapter", "adapter")
    tracker.close(read_status(run_dir))
    if tracker.unsent:
        raise ConfigError(
            f"{shown}: {tracker.unsent} records were not sent ({tracker.problem}); {LATER}"
        )
    return Synced(str(run_dir), shown, tracker.run_id, values=values, known=tracker.known)
