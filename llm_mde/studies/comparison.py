"""What a comparison of runs says: for the terminal, as JSON, as one HTML page."""

import json
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.inference.card import in_words
from llm_mde.scoring.bootstrap import LEVEL, RESAMPLES, Interval
from llm_mde.studies.document import Block, Picture, as_html
from llm_mde.studies.grid import Cell, Grid, columns, folded, grid
from llm_mde.studies.report import WIDTH
from llm_mde.studies.runs import Member, differing
from llm_mde.studies.tables import ABSENT, heading

DIGITS = 4
Table = Mapping[str, Sequence[Interval]]
"""Metric -> an interval for each run."""


@dataclass(frozen=True)
class Comparison:
    """Runs scored on the same images; the first is what the others are measured against."""

    members: list[Member]
    shards: str
    split: str
    images: int
    """Images with a pixel that counts."""
    scenes: int
    max_depth: float
    """Metres up to which the truth counts for all."""
    means: Mapping[str, Table]
    """By protocol."""
    differences: Mapping[str, Table]
    """By protocol: the run minus the first one, image by image."""
    notes: Sequence[str]
    """What a reader has to know of these runs."""

    def payload(self, files: Sequence[Path]) -> dict[str, Any]:
        """For JSON: intervals as [mean, low, high]."""
        titles = [member.title for member in self.members]
        groups = {"means": self.means, "differences": self.differences}
        return {
            "runs": {member.title: str(member.folder) for member in self.members},
            "settings": {
                path: dict(zip(titles, values, strict=True))
                for path, values in differing(self.members).items()
            },
            "shards": self.shards,
            "split": self.split,
            "images": self.images,
            "level": LEVEL,
            "resamples": RESAMPLES,
            **{
                group: {
                    title: {
                        f"{protocol}/{metric}": list(intervals[at])
                        for protocol, table in tables.items()
                        for metric, intervals in table.items()
                    }
                    for at, title in enumerate(titles)
                }
                for group, tables in groups.items()
            },
            "notes": list(self.notes),
            "files": [str(path) for path in files],
        }

    def lines(self, protocol: str) -> list[str]:
        """For people, under one protocol; under 120 wide."""
        return [
            *_wrapped(f"{self._images()}; {in_words(protocol)}"),
            "",
            "settings that differ",
            *_folded(settings_grid(self.members)),
            "",
            "means over the images, the best of each metric marked",
            *_folded(mean_grid(self, protocol, bounds=False)),
            "",
            *_wrapped(self._reading()),
            *_folded(difference_grid(self, protocol)),
            *(line for note in self.notes for line in ("", *_wrapped(note))),
        ]

    def page(self, sheets: Sequence[Path]) -> str:
        """One HTML page that needs no other file: the pictures are in it."""
        first, *others = self.means
        pictures = [Picture(path, "All on the scale of the truths, in metres.") for path in sheets]
        folders = [[Cell(one.title), Cell(str(one.folder))] for one in self.members]
        sections: dict[str, Sequence[Block]] = {
            "Images": [self._images(), list(self.notes)] if self.notes else [self._images()],
            "Settings that differ": [settings_grid(self.members)],
            **self._scores(first),
            "Predictions": pictures,
            **{heading: one for name in others for heading, one in self._scores(name).items()},
            "Folders": [grid(["run", "folder"], folders, texts=2)],
        }
        titles = " / ".join(member.title for member in self.members[:3])
        more = f" and {len(self.members) - 3} more" if self.members[3:] else ""
        return as_html(f"Runs compared: {titles}{more}", sections)

    def _scores(self, protocol: str) -> dict[str, Sequence[Block]]:
        words = in_words(protocol)
        means = mean_grid(self, protocol, bounds=True)
        differences = difference_grid(self, protocol)
        return {words[:1].upper() + words[1:]: [means, self._reading(), differences]}

    def _images(self) -> str:
        return (
            f"{self.split} of {self.shards}, images: {self.images}, scenes: {self.scenes}, depths "
            f"up to {self.max_depth:g} m"
        )

    def _reading(self) -> str:
        return (
            f"difference to {self.members[0].title} [{100 * LEVEL:.0f} % interval: percentile "
            f"bootstrap over images, {RESAMPLES} resamples, the same ones for all runs], marked "
            "where it leaves out 0, as 1 of 20 does by chance; frames of one scene resemble each "
            "other, so other scenes may move a mean further than the interval says"
        )


def settings_grid(members: Sequence[Member]) -> Grid:
    """The settings that differ, a row a setting; a row a run where that makes fewer columns."""
    found = differing(members)
    titles = [member.title for member in members]
    rows = [[path, *map(_text, values)] for path, values in found.items()]
    table = [["", *titles], *rows]
    if len(members) > len(found):
        table = [list(row) for row in zip(*table, strict=True)]
    return grid(table[0], [[Cell(text) for text in row] for row in table[1:]])


def _text(value: object) -> str:
    if value is None:
        return ABSENT
    return value if isinstance(value, str) else json.dumps(value)


def mean_grid(made: Comparison, protocol: str, *, bounds: bool) -> Grid:
    """A row a run, a column a metric; the best is bold. `bounds`: with intervals."""
    table = made.means[protocol]
    best = {
        metric: (max if metric.startswith("delta") else min)(_number(one) for one in found)
        for metric, found in table.items()
    }
    rows = [
        [
            Cell(member.title),
            *(
                Cell(
                    _number(found[at]) + (f" {_bounds(found[at], '')}" if bounds else ""),
                    _number(found[at]) == best[metric],
                )
                for metric, found in table.items()
            ),
        ]
        for at, member in enumerate(made.members)
    ]
    return grid(["", *_heads(table, protocol)], rows)


def difference_grid(made: Comparison, protocol: str) -> Grid:
    """A row a run but the first, a column a metric; bold where the interval leaves out zero."""
    table = made.differences[protocol]
    rows = [
        [
            Cell(member.title),
            *(
                Cell(
                    f"{found[at].mean:+.{DIGITS}f} {_bounds(found[at], '+')}",
                    found[at].excludes_zero,
                )
                for found in table.values()
            ),
        ]
        for at, member in enumerate(made.members)
        if at
    ]
    return grid(["", *_heads(table, protocol)], rows)


def _number(found: Interval) -> str:
    return f"{found.mean:.{DIGITS}f}"


def _bounds(found: Interval, sign: str) -> str:
    return f"[{found.low:{sign}.{DIGITS}f}, {found.high:{sign}.{DIGITS}f}]"


def _heads(table: Table, protocol: str) -> list[str]:
    return [heading(metric, {}, metres=protocol != "paper") for metric in table]


def _folded(table: Grid) -> list[str]:
    return [line for part in folded(table, width=WIDTH) for line in columns(part, width=WIDTH)]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH)
