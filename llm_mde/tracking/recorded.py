"""What a run gone on with has in MLflow already; asked of a client that is given."""

from collections import Counter
from pathlib import Path
from typing import Any

FIGURES = "figures"  # folder of a run's pictures in the store


class Recorded:
    """What a run gone on with has in the store already, so that nothing gets there twice."""

    def __init__(self, run_id: str) -> None:
        """Asks the store for a metric when it first comes up."""
        self._run_id = run_id
        self._steps: dict[str, Counter[int]] = {}
        self._figures: set[str] | None = None
        self.known = 0
        """Values that were there before they were sent."""

    def has_figure(self, client: Any, name: str) -> bool:
        """Whether the store has a picture of this file name."""
        if self._figures is None:
            listed = client.list_artifacts(self._run_id, FIGURES)
            self._figures = {Path(one.path).name for one in listed}
        return name in self._figures

    def without(self, client: Any, metrics: list[Any]) -> list[Any]:
        """Those of the metrics that the store does not have at their step."""
        for name in {metric.key for metric in metrics} - self._steps.keys():
            history = client.get_metric_history(self._run_id, name)
            self._steps[name] = Counter(point.step for point in history)
        return [metric for metric in metrics if not self._steps[metric.key][metric.step]]

    def add(self, metrics: list[Any]) -> None:
        """Note that metrics are in the store now: each value there stands for one value sent."""
        for metric in metrics:
            if self._steps[metric.key][metric.step]:
                self._steps[metric.key][metric.step] -= 1
                self.known += 1
