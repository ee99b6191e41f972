"""The record of a run: rank 0 writes it, and where it cannot all ranks learn of it."""

import errno
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError

from llm_mde import dist
from llm_mde.config import Config
from llm_mde.errors import DataError
from llm_mde.tracking.about import describe, parameters
from llm_mde.tracking.tracker import RunFolderTracker, Status, Tracker, Trackers

T = TypeVar("T")

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def written(folder: Path, write: Callable[[], T]) -> T:
    """What `write` returns on rank 0, which puts something into a run's folder; collective.

    Raises:
        DataError: the disk is full.
    """

    def attempt() -> T:
        try:
            return write()
        except (OSError, SafetensorError) as error:
            if not _full(error):
                raise
            raise DataError(
                f"{folder}: {error}; make room, then the same command goes on from the last "
                "checkpoint"
            ) from error

    return dist.on_rank_0(attempt)


def _full(error: OSError | SafetensorError) -> bool:
    if isinstance(error, OSError):
        return error.errno in FULL
    return any(f"(os error {number})" in str(error) for number in FULL)


class Record(Tracker):
    """Rank 0's trackers as one on every rank: its methods are collective, except `close`.

    Raises:
        DataError: the disk is full.
    """

    def __init__(self, tracker: Tracker, folder: Path) -> None:
        """Around the tracker of this rank: one that drops everything, but on rank 0."""
        self._tracker, self._folder = tracker, folder

    @property
    def local(self) -> Tracker:
        """The tracker of this rank alone, inside a collective of its own."""
        return self._tracker

    def params(self, params: Mapping[str, object]) -> None:
        """Record the configuration: dotted path -> value."""
        written(self._folder, lambda: self._tracker.params(params))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers named `split/metric` at an optimizer step."""
        written(self._folder, lambda: self._tracker.log(metrics, step))

    def figure(self, path: Path, name: str, step: int) -> None:
        """Record a picture that lies in the run folder."""
        written(self._folder, lambda: self._tracker.figure(path, name, step))

    def artifacts(self, folder: Path, name: str) -> None:
        """Record a folder of files under a name."""
        written(self._folder, lambda: self._tracker.artifacts(folder, name))

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record what the run is."""
        written(self._folder, lambda: self._tracker.tags(tags))

    def files(self, paths: Sequence[Path]) -> None:
        """Record single files of the run folder."""
        written(self._folder, lambda: self._tracker.files(paths))

    def close(self, status: Status = "finished") -> None:
        """End the record, on this rank: the others may have ended otherwise."""
        self._tracker.close(status)


def open_record(config: Config, ds: dict[str, Any], *, resume_step: int | None) -> Record:
    """Start a run's record, or go on with it after a step; collective.

    Whatever of `tracking.about` lies in the run's folder goes into it.

    Raises:
        DataError: the disk is full.
    """
    trackers: list[Tracker] = []

    def start() -> None:
        trackers.append(RunFolderTracker(config.run_dir, resume_step=resume_step))
        if config.tracking.mlflow:
            from llm_mde.tracking.background import Background  # rank 0 alone pays for the import

            resume = resume_step is not None
            trackers.append(Background(config.tracking, run_dir=config.run_dir, resume=resume))

    with ExitStack() as failing:
        failing.callback(lambda: Trackers(*trackers).close("failed"))
        written(config.run_dir, start)
        record = Record(Trackers(*trackers), config.run_dir)
        record.params(parameters(config, ds))
        written(config.run_dir, lambda: describe(record.local, config.run_dir))
        failing.pop_all()
    return record
