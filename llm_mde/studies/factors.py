"""Which settings a sweep varied, which of them moved together, and by what design.

A factor is a dotted path with more than one value among the runs, failed ones too. One that is a
function of another has no effect of its own to find: it is tied to that one.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from llm_mde.studies.board import OF_A_RUN, Row, values_of
from llm_mde.studies.labels import UNSET, identity, label

FEW = 4  # values that are levels however few configurations there are
MAX_BINS = 5
PROPORTIONAL = 1e-6  # relative
LINEAR = 1e-9  # how far a correlation may be from 1

Kind = Literal["grid", "one at a time", "scattered"]


@dataclass(frozen=True)
class Factor:
    """A setting that varied, with those that moved with it."""

    path: str
    values: tuple[Any, ...]
    """The distinct ones in order."""
    continuous: bool
    """So many numbers that only ranges of them occur repeatedly."""
    bounds: tuple[float, ...]
    """Inner bounds of the ranges of a continuous one, each the first value of a range."""
    tied: Mapping[str, str]
    """Path -> how it is bound to this one."""

    @property
    def paths(self) -> tuple[str, ...]:
        """This one and what is tied to it."""
        return self.path, *self.tied

    def level(self, row: Row) -> int:
        """The number of the row's value or, for a continuous factor, of its range."""
        value = value_of(row, self.path)
        if self.continuous:
            return int(np.searchsorted(self.bounds, value, side="right"))
        return [identity(one) for one in self.values].index(identity(value))


@dataclass(frozen=True)
class Design:
    """The factors of a sweep and how its configurations combine them."""

    factors: tuple[Factor, ...]
    kind: Kind
    """`grid`: every combination of levels (one factor alone, too); `one at a time`: every
    configuration differs from the centre in one factor."""
    centre: Row | None
    """A row of the centre of a design of one factor at a time."""

    def rows_of(self, told: Collection[Factor], rows: Sequence[Row]) -> list[Row]:
        """The rows that tell of some factors: the others are at the centre, if there is one."""
        if self.centre is None:
            return list(rows)
        others = [factor for factor in self.factors if factor not in told]
        return [
            row
            for row in rows
            if all(other.level(row) == other.level(self.centre) for other in others)
        ]

    def factor_of(self, path: str) -> Factor:
        """The factor that a path is, or is tied to."""
        return next(factor for factor in self.factors if path in factor.paths)


def value_of(row: Row, path: str) -> Any:
    """A row's setting; UNSET where its trial leaves it alone."""
    return row.settings.get(path, UNSET)


def numeric(values: Sequence[Any]) -> bool:
    """Whether all are numbers."""
    return all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)


def logarithmic(values: Sequence[Any]) -> bool:
    """Whether numbers want a logarithmic axis: over a decade or more, or each so many times one."""
    if not numeric(values) or min(values) <= 0:
        return False
    steps = [high / low for low, high in pairwise(sorted(values))]
    even = len(steps) > 1 and max(steps) <= min(steps) * (1 + PROPORTIONAL)
    return even or max(values) >= 10 * min(values)


def _place(value: Any) -> tuple[int, float, str]:
    if numeric([value]):
        return 1, float(value), ""
    return (0 if value == UNSET else 2), 0.0, label(value)


def design_of(rows: Sequence[Row]) -> Design:
    """The factors of a sweep's rows and their design, whatever became of them."""
    one_each = list({row.trial: row for row in rows}.values())
    found = _factors(one_each)
    exact = tuple(replace(factor, continuous=False) for factor in found)
    configurations = {_levels(exact, row): row for row in one_each}
    alone, repeated = len(found) == 1, len(rows) > len(one_each)
    if len(configurations) == math.prod(len(factor.values) for factor in found):
        if alone and found[0].continuous and not repeated:
            return Design(found, "scattered", None)  # only ranges of it hold several runs
        return Design(exact, "grid", None)
    centre = _centre(configurations)
    return Design(exact, "one at a time", centre) if centre else Design(found, "scattered", None)


def _levels(factors: Sequence[Factor], row: Row) -> tuple[int, ...]:
    return tuple(factor.level(row) for factor in factors)


def _centre(configurations: Mapping[tuple[int, ...], Row]) -> Row | None:
    """The configuration that every other one differs from in exactly one factor."""
    for levels, row in configurations.items():
        apart = [
            sum(a != b for a, b in zip(levels, other, strict=True)) for other in configurations
        ]
        if sorted(apart)[1:] == [1] * (len(configurations) - 1):
            return row
    return None


def _factors(rows: Sequence[Row]) -> tuple[Factor, ...]:
    """Those of one row for each configuration; tied ones with the one that sets them."""
    columns = {
        path: [value_of(row, path) for row in rows]
        for path in sorted({path for row in rows for path in row.settings} - {*OF_A_RUN})
        if len(values_of(rows, path)) > 1
    }
    leads = {path: _lead(path, columns) for path in columns}
    followers: dict[str, list[str]] = {path: [] for path, lead in leads.items() if lead is None}
    for path, lead in leads.items():
        while lead is not None and leads[lead] is not None:
            lead = leads[lead]
        if lead is not None:
            followers[lead].append(path)
    return tuple(
        _factor(path, columns[path], {one: _bond(columns[path], columns[one]) for one in tied})
        for path, tied in followers.items()
    )


def _factor(path: str, column: Sequence[Any], tied: Mapping[str, str]) -> Factor:
    continuous = _continuous(column)
    return Factor(
        path=path,
        values=distinct(column),
        continuous=continuous,
        bounds=_bounds(column) if continuous else (),
        tied=tied,
    )


def distinct(column: Sequence[Any]) -> tuple[Any, ...]:
    """The distinct values: numbers by size behind what is not set, others by their label."""
    return tuple(sorted({identity(value): value for value in column}.values(), key=_place))


def _continuous(column: Sequence[Any]) -> bool:
    """Whether most configurations have a number of their own."""
    levels = len(distinct(column))
    return numeric(column) and levels > FEW and 2 * levels > len(column)


def _bounds(column: Sequence[float]) -> tuple[float, ...]:
    """Inner bounds of ranges that hold about equally many configurations."""
    bins = max(2, min(MAX_BINS, round(math.sqrt(len(column)))))
    placed = sorted(column)
    starts = (placed[len(placed) * number // bins] for number in range(1, bins))
    return tuple(sorted({float(start) for start in starts if start > placed[0]}))


def _lead(path: str, columns: Mapping[str, Sequence[Any]]) -> str | None:
    """The factor that sets this one; of two that set each other, the one last by name."""

    def standing(other: str) -> tuple[int, str]:
        return len(distinct(columns[other])), other

    above = [
        other
        for other in columns
        if standing(other) > standing(path) and _sets(columns[other], columns[path])
    ]
    return max(above, key=standing, default=None)


def _sets(lead: Sequence[Any], other: Sequence[Any]) -> bool:
    """Whether `other` is a function of `lead`, told by more than chance.

    A number of its own for each configuration sets everything; then only a straight line, of the
    numbers or their logarithms, counts.
    """
    if _continuous(lead):
        return numeric(other) and (_straight(lead, other) or _straight(_logs(lead), _logs(other)))
    found: dict[str, str] = {}
    return all(
        found.setdefault(identity(a), identity(b)) == identity(b)
        for a, b in zip(lead, other, strict=True)
    )


def _logs(column: Sequence[float]) -> list[float]:
    return [math.log(value) for value in column] if min(column) > 0 else []


def _straight(a: Sequence[float], b: Sequence[float]) -> bool:
    return bool(a and b) and 1 - abs(float(np.corrcoef(a, b)[0, 1])) < LINEAR


def _bond(lead: Sequence[Any], other: Sequence[Any]) -> str:
    """How a factor is bound to the one that sets it, to follow its name."""
    if numeric([*lead, *other]) and all(lead):
        ratios = sorted(b / a for a, b in zip(lead, other, strict=True))
        if ratios[-1] - ratios[0] <= PROPORTIONAL * abs(ratios[-1]):
            return f"is always {label(float(ratios[0]))} times"
    same = len(distinct(lead)) == len(distinct(other))
    return "changes only and always with" if same else "changes only with"


def ranges(factor: Factor) -> list[str]:
    """A name for each level: its value or, for a continuous factor, the values from-to."""
    if not factor.continuous:
        return [label(value) for value in factor.values]
    edges = [factor.values[0], *factor.bounds, factor.values[-1]]
    return [f"{label(float(low))} to {label(float(high))}" for low, high in pairwise(edges)]
