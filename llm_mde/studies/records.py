"""What a sweep remembers of its trials: a line of JSON as each begins and as it ends."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llm_mde.tracking.tracker import read_metrics
from llm_mde.training.folder import write_whole

State = Literal["begun", "done", "stopped", "failed"]


@dataclass(frozen=True)
class Record:
    """One trial under one seed."""

    name: str
    """Of its run, without the sweep's."""
    settings: dict[str, Any]
    """Dotted path -> value."""
    state: State = "begun"
    seconds: float = 0.0
    score: float | None = None
    """Its best, lower is better."""
    error: str | None = None
    """Why it failed."""

    @property
    def over(self) -> bool:
        """Whether it is not to be run again; a failed one is."""
        return self.state in ("done", "stopped")


class Records:
    """The latest record of each trial, in the order in which they began."""

    def __init__(self, path: Path, *, write: bool = True) -> None:
        """Read what there is; a line that a crash cut short is dropped, to `write` behind it."""
        self._path = path
        found = [Record(**row) for row in read_metrics(path)]
        self.all = {record.name: record for record in found}
        if write and path.is_file():
            write_whole(path, "".join(map(_line, self.all.values())))

    @property
    def over(self) -> set[str]:
        """Names of those that are not to be run again."""
        return {name for name, record in self.all.items() if record.over}

    def add(self, record: Record) -> None:
        """Append, on disk when it returns."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(_line(record))
        self.all[record.name] = record


def _line(record: Record) -> str:
    return json.dumps(asdict(record)) + "\n"
