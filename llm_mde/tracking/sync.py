"""Replays the record of a run folder into MLflow: nothing is lost there, nothing twice."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_mde.config import TrackingConfig, tracking_uri
from llm_mde.errors import ConfigError
from llm_mde.recipes import flat, load
from llm_mde.tracking.about import describe
from llm_mde.tracking.mlflow import MlflowTracker
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics, read_status

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


def sync(run_dir: Path, *, uri: str | None = None) -> Synced:
    """Send what the store does not have of a run: parameters, numbers, figures, the adapter.

    Args:
        run_dir: the run's folder.
        uri: the store; None: that of the run's configuration.

    Raises:
        ConfigError: the folder holds no run; the store does not answer, or refuses.
    """
    settings = run_dir / "config.yaml"
    rows = read_metrics(run_dir / METRICS_FILE)
    if not settings.is_file() or not rows:
        raise ConfigError(f"{run_dir}: no config.yaml and metrics.jsonl, expected a run folder")
    config = load(settings)
    tracking = config.tracking
    if uri:
        tracking = TrackingConfig.model_validate(tracking.model_dump() | {"uri": uri})
    shown = tracking_uri(tracking)
    tracker = MlflowTracker(tracking, run_dir=run_dir, resume=True)
    if tracker.run_id is None:
        raise ConfigError(f"{shown}: {tracker.problem}; {LATER}")
    ds = json.loads((run_dir / "ds.json").read_text(encoding="utf-8"))
    tracker.params(flat(config) | {"ds_config": json.dumps(ds)})
    describe(tracker, run_dir)
    values = 0
    for row in rows:
        numbers = {name: value for name, value in row.items() if name not in CLOCKS}
        tracker.log_at(numbers, row["step"], time_s=row["time"])
        values += len(numbers)
    for path in sorted((run_dir / "figures").glob("*-*.png")):
        name, _, step = path.stem.rpartition("-")
        tracker.figure(path, name, int(step))
    if (run_dir / "adapter").is_dir():
        tracker.artifacts(run_dir / "adapter", "adapter")
    tracker.close(read_status(run_dir))
    if tracker.unsent:
        raise ConfigError(
            f"{shown}: {tracker.unsent} records were not sent ({tracker.problem}); {LATER}"
        )
    return Synced(str(run_dir), shown, tracker.run_id, values=values, known=tracker.known)
