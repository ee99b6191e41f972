"""Charts of a sweep where the score is a colour: heat maps, parallel coordinates, as PNG files.

Dark is low. The colours, viridis (van der Walt and Smith 2015, https://bids.github.io/colormap/),
are told apart with any kind of colour vision.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.ticker import NullLocator

from llm_mde.axis import (
    LONG_TITLE,
    SMALL,
    TEXT,
    Axis,
    apart,
    cut,
    horizontal,
    marks_of,
    share,
    tail,
    ticks,
)
from llm_mde.charts import DPI, VERMILION, Level, columns_of
from llm_mde.figures import save

SCORES = "viridis"
BETWEEN = 20  # letters of a title of parallel axes


def heat_map(
    cells: Mapping[tuple[float, float], Level], path: Path, *, x: Axis, y: Axis, score: str
) -> Path:
    """Mean scores of pairs of settings, pairs that were not run hatched, the best one framed.

    Axes without ticks make it a plane of points. `at` of a cell's level is not used.
    """
    limits = _limits([level.mean for level in cells.values()])
    if not (x.ticks and y.ticks):
        return _plane(cells, path, x=x, y=y, score=score, limits=limits)
    size = (max(0.78 * len(x.ticks), 1.6) + 2.0, max(0.62 * len(y.ticks), 1.3) + 1.0)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    best = min(cells, key=lambda at: cells[at].mean)
    for column, (r, _) in enumerate(x.ticks):
        for line, (alpha, _) in enumerate(y.ticks):
            _cell(axes, (column, line), cells.get((r, alpha)), limits)
            if (r, alpha) == best:
                axes.add_patch(
                    _box(column, line, fill=False, ec=VERMILION, lw=2, zorder=4, clip_on=False)
                )
    axes.set_xlim(-0.5, len(x.ticks) - 0.5)
    axes.set_ylim(-0.5, len(y.ticks) - 0.5)
    axes.set_xticks(range(len(x.ticks)), [text for _, text in x.ticks], parse_math=False)
    axes.set_yticks(range(len(y.ticks)), [text for _, text in y.ticks], parse_math=False)
    return _mapped(figure, axes, path, x=x, y=y, score=score, limits=limits)


def _box(column: int, line: int, **style: Any) -> Rectangle:
    return Rectangle((column - 0.5, line - 0.5), 1, 1, **style)


def _cell(
    axes: Axes, at: tuple[int, int], level: Level | None, limits: tuple[float, float]
) -> None:
    if level is None:
        axes.add_patch(_box(*at, fill=False, ec="0.8", hatch="////", lw=0))
        return
    colour = colormaps[SCORES](Normalize(*limits)(level.mean))
    axes.add_patch(_box(*at, fc=colour, ec="white", lw=1))
    ink = "black" if np.dot(colour[:3], (0.299, 0.587, 0.114)) > 0.5 else "white"
    text = f"{level.mean:.4f}" + ("" if level.std is None else f"\n±{level.std:.4f}")
    axes.text(*at, text, ha="center", va="center", fontsize=SMALL, color=ink, zorder=5)


def _plane(
    cells: Mapping[tuple[float, float], Level], path: Path,
    *, x: Axis, y: Axis, score: str, limits: tuple[float, float],
) -> Path:  # fmt: skip
    figure = Figure(figsize=(4.2, 3.2), layout="constrained")
    axes = figure.subplots()
    points = sorted(cells, key=lambda at: -cells[at].mean)  # the best on top
    colours = [cells[at].mean for at in points]
    axes.scatter(
        *columns_of(points), c=colours, cmap=SCORES, vmin=limits[0], vmax=limits[1], s=34,
        ec=["0.3"] * (len(points) - 1) + [VERMILION], lw=[0.4] * (len(points) - 1) + [1.8],
    )  # fmt: skip
    horizontal(axes, x, [at for at, _ in points])
    marks, limits_y = marks_of(y, [at for _, at in points])
    axes.set_yscale("log" if y.log else "linear")
    axes.set_ylim(*limits_y)
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks([at for at, _ in marks], [text for _, text in marks], parse_math=False)
    return _mapped(figure, axes, path, x=x, y=y, score=score, limits=limits)


def _mapped(
    figure: Figure, axes: Axes, path: Path,
    *, x: Axis, y: Axis, score: str, limits: tuple[float, float],
) -> Path:  # fmt: skip
    axes.set_xlabel(tail(x.title, LONG_TITLE), fontsize=TEXT, parse_math=False)
    axes.set_ylabel(tail(y.title, LONG_TITLE), fontsize=TEXT, parse_math=False)
    axes.tick_params(labelsize=SMALL)
    axes.spines[["top", "right"]].set_visible(False)
    _colour_bar(figure, axes, limits, score)
    return save(figure, path, dpi=DPI)


def _limits(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _colour_bar(figure: Figure, axes: Axes, limits: tuple[float, float], score: str) -> None:
    bar = figure.colorbar(ScalarMappable(Normalize(*limits), SCORES), ax=axes, pad=0.02)
    bar.set_label(score, fontsize=TEXT, parse_math=False)
    bar.ax.tick_params(labelsize=SMALL)
    bar.outline.set_visible(False)


def parallel(
    axes: Sequence[Axis],
    lines: Sequence[Sequence[float]],
    scores: Sequence[float | None],
    path: Path,
    *,
    score: str,
) -> Path:
    """A line for each configuration through its settings to its score, the best one thick.

    lines: for each configuration a value on each axis; those without a score are dotted and end
    before the last axis. At least one has a score.
    """
    figure = Figure(figsize=(1.35 * len(axes) + 2.6, 3.4), layout="constrained")
    canvas = figure.subplots()
    known = [one for one in scores if one is not None]
    columns = [*zip(*lines, strict=True)]
    for column, (axis, values) in enumerate(zip(axes, columns, strict=True)):
        _vertical(canvas, column, axis, values)
    last = Axis(score)
    _vertical(canvas, len(axes), last, known)
    limits, norm = (min(known), max(known)), Normalize(*_limits(known))
    order = sorted(range(len(scores)), key=lambda at: -_last(scores[at]))
    for place, at in enumerate(order, start=1):
        heights = [
            share(value, min(all_), max(all_), log=axis.log)
            for value, all_, axis in zip(lines[at], columns, axes, strict=True)
        ]
        one = scores[at]
        if one is not None:
            heights.append(share(one, *limits, log=False))
        colour = "0.75" if one is None else colormaps[SCORES](norm(one))
        best = place == len(order)
        style = {"lw": 2.8 if best else 1.3, "ls": ":" if one is None else "-", "zorder": 2 + place}
        canvas.add_patch(PathPatch(_curve(heights), fill=False, ec=colour, **style))
        if best:
            halo = {"lw": 5, "zorder": 1.5 + place}
            canvas.add_patch(PathPatch(_curve(heights), fill=False, ec=VERMILION, **halo))
    canvas.set_xlim(-0.35, len(axes) + 0.6)
    canvas.set_ylim(-0.06, 1.04)
    titles = [tail(axis.title, BETWEEN) for axis in (*axes, last)]
    canvas.set_xticks(range(len(titles)), titles, fontsize=TEXT, parse_math=False)
    canvas.tick_params(length=0)
    canvas.set_yticks([])
    canvas.spines[:].set_visible(False)
    _colour_bar(figure, canvas, _limits(known), score)
    return save(figure, path, dpi=DPI)


def _last(score: float | None) -> float:
    return math.inf if score is None else score


def _vertical(canvas: Axes, column: int, axis: Axis, values: Sequence[float]) -> None:
    low, high = min(values), max(values)
    canvas.plot([column, column], [0, 1], color="0.3", lw=1, zorder=500)
    for at, text in apart(ticks(axis, low, high), low, high, log=axis.log):
        height = share(at, low, high, log=axis.log)
        canvas.plot([column - 0.03, column], [height, height], color="0.3", lw=1, zorder=500)
        canvas.text(
            column - 0.06, height, cut(text), ha="right", va="center", fontsize=SMALL,
            parse_math=False, zorder=501,
            bbox={"fc": "white", "ec": "none", "alpha": 0.75, "pad": 0.8},
        )  # fmt: skip


def _curve(heights: Sequence[float]) -> Curve:
    """A smooth line through a height on each axis, level where it crosses it."""
    points, codes = [(0.0, heights[0])], [Curve.MOVETO]
    for at, (a, b) in enumerate(zip(heights, heights[1:], strict=False)):
        points += [(at + 0.45, a), (at + 0.55, b), (at + 1, b)]
        codes += [Curve.CURVE4] * 3
    return Curve(points, codes)
