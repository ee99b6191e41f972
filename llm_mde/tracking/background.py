"""MLflow from a thread of its own: however slow the store is, training does not wait for it."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

from llm_mde.config import TrackingConfig
from llm_mde.tracking.mlflow import MlflowTracker
from llm_mde.tracking.tracker import Status, Tracker

logger = logging.getLogger(__name__)

CLOSE_S = 30.0  # that the end of a run may wait for what is not sent yet


class Background(Tracker):
    """An `MlflowTracker` that is made and called, in order, by a thread."""

    def __init__(self, config: TrackingConfig, *, run_dir: Path, resume: bool = False) -> None:
        """As `MlflowTracker`, but returns at once."""
        self._run_dir = run_dir
        self._calls: SimpleQueue[Callable[[MlflowTracker], None] | None] = SimpleQueue()
        self._error: Exception | None = None
        make = partial(MlflowTracker, config, run_dir=run_dir, resume=resume)
        self._thread = Thread(target=self._work, args=(make,), daemon=True)
        self._thread.start()

    def _work(self, make: Callable[[], MlflowTracker]) -> None:
        try:
            tracker = make()
            for call in iter(self._calls.get, None):
                call(tracker)
        except Exception as error:  # a store's failures are dealt with: a mistake of ours
            self._error = error

    def _put(self, call: Callable[[MlflowTracker], None]) -> None:
        if self._error:
            raise self._error
        self._calls.put(call)

    def params(self, params: Mapping[str, object]) -> None:
        """Record the configuration."""
        self._put(lambda tracker: tracker.params(params))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at an optimizer step, with the time of now."""
        now_s = time.time()
        self._put(lambda tracker: tracker.log_at(metrics, step, time_s=now_s))

    def figure(self, path: Path, name: str, step: int) -> None:
        """Record a picture."""
        self._put(lambda tracker: tracker.figure(path, name, step))

    def artifacts(self, folder: Path, name: str) -> None:
        """Record a folder of files."""
        self._put(lambda tracker: tracker.artifacts(folder, name))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record what the run is."""
        self._put(lambda tracker: tracker.tags(tags))

    def files(self, paths: Sequence[Path]) -> None:
        """Record single files."""
        self._put(lambda tracker: tracker.files(paths))

    def close(self, status: Status = "finished") -> None:
        """Send what waits and end the run, in at most CLOSE_S seconds."""
        self._calls.put(lambda tracker: tracker.close(status))
        self._calls.put(None)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            logger.warning(
                "mlflow: the store is slow, not everything was sent in %g s; "
                "'llm-mde track sync %s' sends it", CLOSE_S, self._run_dir,
            )  # fmt: skip
        elif self._error:  # not raised: perhaps another error has ended the run
            logger.error("mlflow: the record ended early", exc_info=self._error)
