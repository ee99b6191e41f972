"""Where numbers go: the run folder's `metrics.jsonl`, the primary record, and others beside it."""

import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, cast

Status = Literal["finished", "failed", "killed"]
METRICS_FILE = "metrics.jsonl"
STATUS_FILE = "status"  # absent while a run goes on, and where it was killed


class Tracker:
    """Where a run is recorded. This one drops everything: every rank but 0, tracking turned off."""

    def params(self, params: Mapping[str, object]) -> None:
        """Record the configuration: dotted path -> value."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers named `split/metric` at an optimizer step."""

    def figure(self, path: Path, name: str, step: int) -> None:
        """Record a picture that lies in the run folder; `name` is the same at every step."""

    def artifacts(self, folder: Path, name: str) -> None:
        """Record a folder of files under a name."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record what a run is: names and words."""

    def files(self, paths: Sequence[Path]) -> None:
        """Record single files of the run folder, under their names."""

    def close(self, status: Status = "finished") -> None:
        """End the record; nothing may be recorded afterwards."""


class RunFolderTracker(Tracker):
    """The primary record: `metrics.jsonl`, one JSON object a line, on disk when `log` returns.

    Figures, artifacts and the configuration are files of the run folder already.
    """

    def __init__(self, run_dir: Path, *, resume_step: int | None = None) -> None:
        """Start the record, or go on with it.

        Args:
            run_dir: the run's folder.
            resume_step: the step of the checkpoint the run goes on from; later lines are dropped.
                None starts an empty record.
        """
        path = run_dir / METRICS_FILE
        self._run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / STATUS_FILE).unlink(missing_ok=True)
        kept = [] if resume_step is None else _until(read_metrics(path), resume_step)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(map(_line, kept)), encoding="utf-8")
        os.replace(temporary, path)
        self._file = path.open("a", encoding="utf-8")

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Append one line: step, time in seconds since 1970, then the metrics."""
        self._file.write(_line({"step": step, "time": round(time.time(), 3), **metrics}))
        self._file.flush()

    def close(self, status: Status = "finished") -> None:
        """Close the file, and leave how the run ended beside it."""
        path = self._run_dir / STATUS_FILE
        aside = path.with_name(path.name + ".tmp")
        # On a full disk there is none, as after a kill: the error that ended the run is to be seen.
        with suppress(OSError):
            self._file.close()
            aside.write_text(status + "\n", encoding="utf-8")
            os.replace(aside, path)


class Trackers(Tracker):
    """Several trackers as one, served in order."""

    def __init__(self, *trackers: Tracker) -> None:
        self._trackers = trackers

    def params(self, params: Mapping[str, object]) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.params(params)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.log(metrics, step)

    def figure(self, path: Path, name: str, step: int) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.figure(path, name, step)

    def artifacts(self, folder: Path, name: str) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.artifacts(folder, name)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.tags(tags)

    def files(self, paths: Sequence[Path]) -> None:
        """Record in each."""
        for tracker in self._trackers:
            tracker.files(paths)

    def close(self, status: Status = "finished") -> None:
        """End each."""
        for tracker in self._trackers:
            tracker.close(status)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`, in order; none if there is no file.

    A line that a crash cut short, always the last, is left out.
    """
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    whole = text[: text.rfind("\n") + 1]
    return [json.loads(line) for line in whole.splitlines()]


def read_status(run_dir: Path) -> Status:
    """How a run ended."""
    path = run_dir / STATUS_FILE
    said = path.read_text(encoding="utf-8").strip() if path.is_file() else "killed"
    return cast(Status, said)


def _until(rows: list[dict[str, Any]], step: int) -> list[dict[str, Any]]:
    return [row for row in rows if row["step"] <= step]


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row) + "\n"
