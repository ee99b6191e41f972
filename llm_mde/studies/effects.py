"""The rows of a sweep as what charts show: effects of factors, pairs of alpha and rank, lines."""

from collections.abc import Iterable, Sequence
from typing import Any

from llm_mde.axis import Axis
from llm_mde.charts import Level, Panel
from llm_mde.studies.board import Row, Standing
from llm_mde.studies.factors import (
    Design,
    Factor,
    distinct,
    logarithmic,
    numeric,
    value_of,
)
from llm_mde.studies.labels import identity, label
from llm_mde.studies.programs import SCORE
from llm_mde.studies.summary import spread

MOST_TICKS = 12  # levels that are named on an axis one by one


def level_of(rows: Iterable[Row], at: float) -> Level:
    """The mean of some rows' scores, and how it spreads over seeds."""
    by_seed: dict[int, list[float]] = {}
    for row in rows:
        if row.score is not None:
            by_seed.setdefault(row.seed, []).append(row.score)
    means = {seed: sum(some) / len(some) for seed, some in by_seed.items()}
    every = spread(score for some in by_seed.values() for score in some)
    seeds = spread(means.values())
    assert every is not None and seeds is not None  # a level is what some row has
    return Level(at, every.mean, seeds.std, means)


def axis_of(values: Sequence[object], title: str) -> Axis:
    """An axis for the distinct values of a setting, in order."""
    if not numeric(values):
        return Axis(title, tuple((float(at), label(value)) for at, value in enumerate(values)))
    named = tuple((place(value, values), label(value)) for value in values)
    return Axis(title, named if len(named) <= MOST_TICKS else (), logarithmic(values))


def place(value: Any, values: Sequence[object]) -> float:
    """Where a value lies on that axis."""
    if numeric(values):
        return float(value)
    return float([identity(one) for one in values].index(identity(value)))


def panel(rows: Sequence[Row], factor: Factor, design: Design, *, title: str) -> Panel:
    """The effect of a factor on the score, over the rows that tell of it."""
    told = [row for row in design.rows_of([factor], rows) if row.score is not None]
    by_level: dict[int, list[Row]] = {}
    for row in told:
        by_level.setdefault(factor.level(row), []).append(row)

    def at(row: Row) -> float:
        return place(value_of(row, factor.path), factor.values)

    axis = axis_of(factor.values, title)
    levels = [
        level_of(some, _middle([at(row) for row in some])) for _, some in sorted(by_level.items())
    ]
    runs = tuple((at(row), row.score) for row in told if row.score is not None)
    return Panel(axis, tuple(levels), runs, joined=numeric(factor.values))


def _middle(values: Sequence[float]) -> float:
    placed = sorted(values)
    return placed[len(placed) // 2]


def pairs(paths: Iterable[str]) -> list[tuple[str, str]]:
    """Rank and alpha of each place that has both among the paths."""
    known = set(paths)
    ranks = sorted(path for path in known if path.rpartition(".")[2] == "r")
    found = [(path, path.removesuffix("r") + "alpha") for path in ranks]
    return [(r, alpha) for r, alpha in found if alpha in known]


def cells(rows: Sequence[Row], x: str, y: str) -> dict[tuple[float, float], Level]:
    """The mean score of every pair of two numbers that was run."""
    by_pair: dict[tuple[float, float], list[Row]] = {}
    for row in rows:
        if row.score is not None and numeric([value_of(row, x), value_of(row, y)]):
            pair = float(value_of(row, x)), float(value_of(row, y))
            by_pair.setdefault(pair, []).append(row)
    return {pair: level_of(some, pair[0]) for pair, some in by_pair.items()}


def lines_of(
    standings: Sequence[Standing], paths: Sequence[str], titles: Sequence[str]
) -> tuple[list[Axis], list[list[float]], list[float | None]]:
    """Axes, and for each configuration its values on them and its mean score."""
    columns = [[value_of(one.rows[0], path) for one in standings] for path in paths]
    levels = [distinct(column) for column in columns]
    axes = [axis_of(values, title) for values, title in zip(levels, titles, strict=True)]
    placed = [
        [place(column[at], values) for column, values in zip(columns, levels, strict=True)]
        for at in range(len(standings))
    ]
    means = [one.spread(SCORE) for one in standings]
    return axes, placed, [found.mean if found else None for found in means]
