"""What the trials of a sweep came to: a row each, and the board that ranks them."""

import csv
import io
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from llm_mde.recipes import short
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.grid import Cell, Grid, columns, grid
from llm_mde.studies.labels import UNSET, identity, label
from llm_mde.studies.programs import SCORE
from llm_mde.studies.summary import Spread, spread

BOARD = "leaderboard.csv"
WIDTH = 119  # characters of a terminal line
FIRST = 10  # configurations that a terminal shows
OF_A_RUN = ("seed", "name")  # no factors: a row says its seed, and every run has its own name
LEAST_WANTED = ("steps", "seconds", "rmse", "delta1")  # columns that a narrow table leaves out


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

    @property
    def score(self) -> float | None:
        """What ranks it; None if it failed or its score is not a finite number."""
        found = self.scores.get(SCORE, math.nan)
        return found if self.error is None and math.isfinite(found) else None

    @property
    def failure(self) -> str | None:
        """Why it has no score."""
        if self.score is not None:
            return None
        return self.error or f"{SCORE}: expected a number, got {self.scores.get(SCORE)}"


@dataclass(frozen=True)
class Standing:
    """One configuration over its seeds."""

    trial: str
    rows: tuple[Row, ...]
    """One a seed, failed ones among them."""

    @property
    def settings(self) -> dict[str, Any]:
        """What the trial sets, by dotted path."""
        return self.rows[0].settings

    @property
    def scored(self) -> list[Row]:
        """The rows that have a score."""
        return [row for row in self.rows if row.score is not None]

    def spread(self, metric: str) -> Spread | None:
        """A number as `val/abs_rel` over the seeds that have it."""
        return spread(row.scores[metric] for row in self.scored if metric in row.scores)


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

    @property
    def varied(self) -> list[str]:
        """Dotted paths that have more than one value, but for what each run has of its own."""
        paths = (path for path in self.paths if path not in OF_A_RUN)
        return [path for path in paths if len(values_of(self.rows, path)) > 1]

    @property
    def standings(self) -> list[Standing]:
        """A line for each configuration, best mean first, those without any score last."""
        return standings(self.rows)

    @property
    def winner(self) -> Standing | None:
        """The configuration with the best mean; None if every trial failed."""
        first = next(iter(self.standings), None)
        return first if first is not None and first.scored else None

    def filled(self, defaults: Mapping[str, Any]) -> "Leaderboard":
        """The board where trials that leave a path alone have its value, as far as known."""
        known = {path: defaults[path] for path in self.paths if path in defaults}
        rows = [replace(row, settings=known | row.settings) for row in self.rows]
        return replace(self, rows=rows)

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "folder": str(self.folder),
            "trials": [vars(row) | {"run": str(row.run)} for row in self.rows],
        }

    def csv(self) -> str:
        """A line for each seed: settings, every number of its best evaluation, under its own name.

        Those that rank come first.
        """
        metrics = list(dict.fromkeys(
            [f"val/{name}" for name in METRICS] + [name for row in self.rows for name in row.scores]
        ))  # fmt: skip
        head = ["trial", "seed", *self.paths, *metrics, "steps", "seconds", "error"]
        body = [
            [row.trial, row.seed, *(row.settings.get(path, "") for path in self.paths)]
            + [row.scores.get(metric, "") for metric in metrics]
            + [row.steps, round(row.seconds), row.error or ""]
            for row in self.rows
        ]
        file = io.StringIO()
        csv.writer(file, lineterminator="\n").writerows([head, *body])
        return file.getvalue()

    def grid(self, metrics: Sequence[str] = tuple(METRICS)) -> Grid:
        """The table for people: a line for each configuration, mean ± standard deviation."""
        names = [short(self.paths)[path] for path in self.varied]
        head = ["trial", "seeds", *names, *metrics, "steps", "seconds"]
        return grid(head, [_line(one, self.varied, metrics) for one in self.standings])

    def lines(self, first: int | None = None) -> list[str]:
        """The table for a terminal, under 120 wide, the `first` configurations; failures below."""
        table = _narrowed(self.grid(("abs_rel", "rmse", "delta1")), len(self.varied))
        head, *body = columns(table, width=WIDTH)
        hidden = body[first:] if first else []
        return [
            head,
            *body[: len(body) - len(hidden)],
            *([f"and {len(hidden)} more"] if hidden else []),
            *(line for said in self.notes() for line in wrapped(said)),
            f"leaderboard: {self.folder / BOARD}",
        ]

    def notes(self) -> list[str]:
        """What all trials share, and why some failed."""
        same = [path for path in self.paths if path not in (*self.varied, *OF_A_RUN)]
        shared = ", ".join(f"{path} {label(self.rows[0].settings[path])}" for path in same)
        return [*([f"the same in all: {shared}"] if same else []), *self.failures()]

    def failures(self) -> list[str]:
        """Why trials failed."""
        return [
            f"failed: {row.trial} (seed {row.seed}): {row.failure}"
            for row in self.rows
            if row.failure is not None
        ]


def ranked(rows: Iterable[Row]) -> list[Row]:
    """By the mean of their configuration, best first, failed ones last; then by score."""
    return [
        row
        for one in standings(rows)
        for row in sorted(one.rows, key=lambda row: (row.score is None, row.score or 0.0, row.seed))
    ]


def standings(rows: Iterable[Row]) -> list[Standing]:
    """Rows by configuration, best mean first, those without any score last."""
    by_trial: dict[str, list[Row]] = {}
    for row in rows:
        by_trial.setdefault(row.trial, []).append(row)
    found = [Standing(trial, tuple(some)) for trial, some in by_trial.items()]
    return sorted(found, key=_mean)


def _mean(standing: Standing) -> float:
    found = standing.spread(SCORE)
    return found.mean if found else math.inf


def values_of(rows: Iterable[Row], path: str) -> dict[str, Any]:
    """The distinct values of a path, by their identity; rows that leave it alone have UNSET."""
    values = (row.settings.get(path, UNSET) for row in rows)
    return {identity(value): value for value in values}


def _line(one: Standing, paths: Sequence[str], metrics: Sequence[str]) -> list[Cell]:
    scored, seeds = len(one.scored), len(one.rows)
    told = [one.trial, f"{seeds}" if scored == seeds else f"{scored} of {seeds}"]
    told += [label(one.settings.get(path, UNSET)) for path in paths]
    numbers = [_number(one.spread(f"val/{metric}")) for metric in metrics]
    steps = max(row.steps for row in one.rows)
    seconds = spread(row.seconds for row in one.rows)
    assert seconds is not None  # a standing has rows
    return [Cell(text) for text in (*told, *numbers, f"{steps}", f"{seconds.mean:.0f}")]


def _number(found: Spread | None) -> str:
    if found is None:
        return "–"
    return f"{found.mean:.4f}" + ("" if found.std is None else f" ± {found.std:.4f}")


def _narrowed(table: Grid, settings: int) -> Grid:
    """The table without what it needs least, as far as its lines are too long; settings go last."""
    first = 2  # behind the trial and its seeds
    wanted = [*LEAST_WANTED, *reversed(table.head[first : first + settings])]
    while wanted and max(map(len, columns(table, width=10**6))) > WIDTH:
        without = table.head.index(wanted.pop(0))
        rows = [row[:without] + row[without + 1 :] for row in table.rows]
        table = grid(table.head[:without] + table.head[without + 1 :], rows)
    return table


def wrapped(text: str) -> list[str]:
    """Lines of a terminal."""
    return textwrap.wrap(" ".join(text.split()), WIDTH, subsequent_indent="  ")
