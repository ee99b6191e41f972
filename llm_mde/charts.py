"""Charts of a sweep: main effects and importance, as PNG files.

The colours, Okabe and Ito's blue and vermilion (https://jfly.uni-koeln.de/color/), are told apart
with any kind of colour vision.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from llm_mde.axis import LONG_TITLE, SMALL, TEXT, Axis, horizontal, percent, tail
from llm_mde.figures import save

DPI = 200  # two pixels for each of a screen's, and enough for print
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "0.55"


@dataclass(frozen=True)
class Level:
    """All runs at one level of a setting, or in one range of it."""

    at: float
    mean: float
    std: float | None
    """Over seeds."""
    seeds: Mapping[int, float] = field(default_factory=dict)
    """Seed -> its mean."""


@dataclass(frozen=True)
class Panel:
    """The effect of one setting."""

    axis: Axis
    levels: tuple[Level, ...]
    runs: tuple[tuple[float, float], ...]
    """Setting and score of each run."""
    joined: bool = True
    """Whether values between the levels mean something."""


@dataclass(frozen=True)
class Bar:
    """One bar: a factor, or what no factor explains."""

    name: str
    share: float
    note: str = ""
    factor: bool = True
    sure: bool = True
    """Whether what chance gives has been taken off."""


def _style(bar: Bar) -> dict[str, Any]:
    if not bar.factor:
        return {"fc": "white", "ec": GREY, "hatch": "////"}
    return {"color": BLUE} if bar.sure else {"fc": "white", "ec": BLUE, "ls": "--"}


def main_effects(panels: Sequence[Panel], path: Path, *, score: str) -> Path:
    """A panel for each setting on one scale: runs, seeds, mean and deviation. At least one."""
    count = len(panels)
    across = count if count <= 4 else min((3, 4), key=lambda columns: -count % columns)
    down = math.ceil(count / across)
    figure = Figure(figsize=(2.5 * across + 0.6, 2.4 * down + 0.3), layout="constrained")
    grid = figure.subplots(down, across, sharey=True, squeeze=False)
    for axes, panel in zip(grid.flat, panels, strict=False):
        main_effect(axes, panel)
    for axes in grid.flat[count:]:
        axes.axis("off")
    for axes in grid[:, 0]:
        axes.set_ylabel(score, fontsize=TEXT, parse_math=False)
    legend = {
        name: mark
        for axes in grid.flat
        for mark, name in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(
        legend.values(), legend.keys(),
        loc="outside lower center", ncols=3, frameon=False, fontsize=SMALL,
    )  # fmt: skip
    return save(figure, path, dpi=DPI)


def main_effect(axes: Axes, panel: Panel) -> None:
    """One panel. Runs stand left of their level's mean, seeds right of it; of any number, at it."""
    aside = 5 if panel.axis.ticks else 0
    if len(panel.runs) > sum(len(level.seeds) for level in panel.levels):
        _dots(axes, panel.runs, -aside, color="0.7", label="a run")
    several = any(level.std is not None for level in panel.levels)
    if several:
        _seeds(axes, panel, aside)
    axes.errorbar(
        [level.at for level in panel.levels],
        [level.mean for level in panel.levels],
        yerr=[level.std or 0.0 for level in panel.levels] if several else None,
        color=BLUE, ls="-" if panel.joined else "", lw=1.4, marker="o", ms=4.5, capsize=2.5,
        zorder=3, label="mean ± std over seeds" if several else "mean",
    )  # fmt: skip
    horizontal(axes, panel.axis, [x for x, _ in panel.runs])
    axes.grid(axis="y", alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=SMALL)


def _seeds(axes: Axes, panel: Panel, aside: float) -> None:
    """A dot for each seed and level, joined by seed: what moves all seeds alike is seen as such."""
    points = [(level.at, one) for level in panel.levels for one in level.seeds.values()]
    _dots(axes, points, aside, color=VERMILION, label="mean of a seed")
    if panel.joined:
        for seed in sorted({seed for level in panel.levels for seed in level.seeds}):
            line = [(one.at, one.seeds[seed]) for one in panel.levels if seed in one.seeds]
            axes.plot(
                *columns_of(line), color=VERMILION, lw=0.6, alpha=0.5, zorder=1,
                transform=axes.transData + _aside(axes, aside),
            )  # fmt: skip


def _dots(
    axes: Axes, points: Sequence[tuple[float, float]], aside: float, *, color: str, label: str
) -> None:
    """Points beside their places, by so many typographic points."""
    made = axes.scatter(*columns_of(points), s=10, color=color, lw=0, label=label, zorder=2)
    made.set_offset_transform(axes.transData + _aside(axes, aside))


def _aside(axes: Axes, points: float) -> ScaledTranslation:
    return ScaledTranslation(points / 72, 0, axes.figure.dpi_scale_trans)


def columns_of(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    """Points as their x and their y."""
    return [x for x, _ in points], [y for _, y in points]


def importance_bars(bars: Sequence[Bar], path: Path, *, label: str) -> Path:
    """What each factor explains, as horizontal bars from the top; what is no factor is hatched.

    Hollow where it may be chance.
    """
    figure = Figure(figsize=(5.2, 0.32 * len(bars) + 0.8), layout="constrained")
    axes = figure.subplots()
    for at, bar in enumerate(bars):
        axes.barh(at, 100 * bar.share, height=0.66, **_style(bar))
        text = percent(bar.share) + (f"   {bar.note}" if bar.note else "")
        axes.text(100 * bar.share + 1, at, text, va="center", fontsize=SMALL, parse_math=False)
    axes.set_yticks(
        range(len(bars)), [tail(bar.name, LONG_TITLE) for bar in bars], parse_math=False
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 118)  # room for what stands behind a whole bar
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel(label, fontsize=TEXT, parse_math=False)
    axes.tick_params(labelsize=TEXT)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return save(figure, path, dpi=DPI)
