"""What the trials of a sweep came to: a row each, and the board that ranks them."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.trials import SCORE

BOARD = "leaderboard.csv"


@dataclass(frozen=True)
class Row:
    """One configuration under one seed, finished or failed."""

    trial: str
    """Its name in the sweep, the same under every seed."""
    seed: int
    run: Path
    """The run's folder."""
    settings: dict[str, Any]
    """What the trial sets, by dotted path, as it ran."""
    scores: dict[str, float]
    """Numbers of its best evaluation, as `val/abs_rel`; empty if it failed."""
    seconds: float
    """Of the whole trial."""
    steps: int
    """Optimizer steps made."""
    error: str | None
    """Why it failed."""


@dataclass(frozen=True)
class Leaderboard:
    """Trials of a sweep, best first, failed ones last."""

    name: str
    folder: Path
    rows: list[Row]

    @property
    def paths(self) -> list[str]:
        """Dotted paths that trials set."""
        return sorted({path for row in self.rows for path in row.settings})

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "trials": [vars(row) | {"run": str(row.run)} for row in self.rows],
        }

    def table(self) -> list[list[str]]:
        """Header and rows as text."""
        metrics = [f"val/{name}" for name in METRICS]
        head = ["trial", "seed", *self.paths, *metrics, "steps", "seconds", "error"]
        body = [
            [row.trial, f"{row.seed}", *(f"{row.settings.get(path, '')}" for path in self.paths)]
            + [f"{row.scores[m]:.4f}" if m in row.scores else "" for m in metrics]
            + [f"{row.steps}", f"{row.seconds:.0f}", row.error or ""]
            for row in self.rows
        ]
        return [head, *body]

    def csv(self) -> str:
        """The table as CSV."""
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows(self.table())
        return file.getvalue()

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
        return [*lines, f"leaderboard: {self.folder / BOARD}"]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Best first, failed ones last."""
    return sorted(rows, key=lambda row: row.scores.get(SCORE, float("inf")))
