"""A setting as an axis of a chart: where its labels stand, and how long they may be."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import Locator, LogLocator, MaxNLocator, NullLocator

TEXT, SMALL = 8, 7  # points of letters
TICK_GAP = 0.12  # of an axis' length, between labels
LONG_LABEL = 16  # letters
LONG_TITLE = 30  # letters below an axis
MOST_LETTERS = 32  # of all labels side by side
MOST_TICKS = 5  # round numbers on an axis
LEAST, MOST = 1e-3, 1e4  # numbers between them are written without an exponent


@dataclass(frozen=True)
class Axis:
    """One setting as an axis."""

    title: str
    ticks: tuple[tuple[float, str], ...] = ()
    """Where its levels lie and what they are called; none: any number."""
    log: bool = False


def cut(text: str) -> str:
    """A label that is not too long."""
    return text if len(text) <= LONG_LABEL else f"{text[: LONG_LABEL - 1]}…"


def tail(text: str, most: int) -> str:
    """The end of a title, where dotted paths say most."""
    return text if len(text) <= most else f"…{text[1 - most :]}"


def padded(low: float, high: float, *, log: bool) -> tuple[float, float]:
    """Room beside the outermost values."""
    if log:
        room = max((high / low) ** 0.1, 1.2)
        return low / room, high * room
    room = 0.1 * (high - low) or 0.5
    return low - room, high + room


def ticks(axis: Axis, low: float, high: float) -> list[tuple[float, str]]:
    """The levels, or round numbers between the ends."""
    if axis.ticks:
        return list(axis.ticks)
    found: list[float] = []
    for locator in _locators(axis):
        at = (float(one) for one in locator.tick_values(low, high))
        found = [one for one in at if low * (1 - 1e-9) <= one <= high * (1 + 1e-9)]
        if len(found) <= MOST_TICKS:
            break
    digits = max((_decimals(at) for at in found), default=0)
    short = axis.log or high <= LEAST
    return [(at, number(at) if short else f"{at:.{digits}f}") for at in found]


def _locators(axis: Axis) -> list[Locator]:
    """From many ticks to few."""
    if axis.log:
        return [LogLocator(subs=subs) for subs in ((1, 2, 5), (1, 3), (1,))]
    return [MaxNLocator(5)]


def _decimals(value: float) -> int:
    return len(f"{value:.6f}".rstrip("0").partition(".")[2])


def apart(
    ticks: Sequence[tuple[float, str]], low: float, high: float, *, log: bool
) -> list[tuple[float, str]]:
    """The ticks whose labels have room, from the first."""
    kept: list[tuple[float, str]] = []
    last = -math.inf
    for at, text in sorted(ticks):
        place = share(at, low, high, log=log)
        if place - last > TICK_GAP:
            kept.append((at, text))
            last = place
    return kept


def share(value: float, low: float, high: float, *, log: bool) -> float:
    """Where a value lies between the ends, 0 to 1; in the middle if they are one."""
    if log:
        value, low, high = math.log(value), math.log(low), math.log(high)
    return (value - low) / (high - low) if high > low else 0.5


def number(value: float) -> str:
    """Four digits at most; very small and large numbers with an exponent, 0.00002 as 2e-5."""
    if value == 0 or not math.isfinite(value) or LEAST < abs(value) < MOST:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3e}".partition("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def percent(share: float) -> str:
    """A share of 1 in whole percent; one that would round to nothing is not nothing."""
    return "< 1 %" if 0 < share < 0.005 else f"{100 * share:.0f} %"


def horizontal(axes: Axes, axis: Axis, values: Sequence[float]) -> None:
    """Make a setting the horizontal axis of axes that hold these values."""
    marks, limits = marks_of(axis, values)
    axes.set_xscale("log" if axis.log else "linear")
    axes.set_xlim(*limits)
    labels = [cut(text) for _, text in marks]
    turned: dict[str, Any] = {"rotation": 25, "ha": "right", "rotation_mode": "anchor"}
    letters = [len(text) for text in labels]
    crowded = max(letters, default=0) > LONG_LABEL // 2 or sum(letters) > MOST_LETTERS
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(
        [at for at, _ in marks], labels, parse_math=False, **(turned if crowded else {})
    )
    axes.set_xlabel(tail(axis.title, LONG_TITLE), fontsize=TEXT, parse_math=False)


def marks_of(
    axis: Axis, values: Sequence[float]
) -> tuple[list[tuple[float, str]], tuple[float, float]]:
    """Ticks that have room, and the ends of an axis with all levels and values."""
    every = [*values, *(at for at, _ in axis.ticks)]
    low, high = padded(min(every), max(every), log=axis.log)
    return apart(ticks(axis, min(every), max(every)), low, high, log=axis.log), (low, high)
