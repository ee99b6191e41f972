"""Logging to stderr, and progress with rate and ETA: a live bar on a terminal, else plain lines."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

logger = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


class Report(Protocol):
    """What long work calls: how much is done, out of how much."""

    def __call__(self, done: int, total: int) -> None:
        """Called often; cheap."""


class _Stderr(logging.StreamHandler[TextIO]):
    """To stderr as it is at that moment: a live table puts lines above itself."""

    def __init__(self) -> None:
        logging.Handler.__init__(self)

    @property
    def stream(self) -> TextIO:  # type: ignore[override]
        return sys.stderr


def log_to_stderr(level: int = logging.INFO) -> None:
    """Send this project's log lines to stderr, plain, so that stdout holds results alone."""
    handler = _Stderr()
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("llm_mde")
    logger.handlers[:] = [handler]
    logger.setLevel(level)
    logger.propagate = False


def duration(seconds: float) -> str:
    """Seconds as `1h02m`, `3m05s` or `12s`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


def seconds(words: str) -> float:
    """What `duration` writes, and any of its parts, as seconds: `3h50m`, `90s`.

    Raises:
        ValueError: it is written otherwise.
    """
    found = DURATION.fullmatch(words)
    if not found or not words:
        raise ValueError(f"expected a duration like 3h50m, 20m or 90s, got {words!r}")
    hours, minutes, rest = (int(part or 0) for part in found.groups())
    return 3600.0 * hours + 60 * minutes + rest


def pace(done: int, total: int, seconds: float, unit: str) -> str:
    """`8.1 frames/s, ETA 1m12s`."""
    rate = done / seconds if seconds > 0 else 0.0
    eta = duration((total - done) / rate) if rate else "unknown"
    return f"{rate:.1f} {unit}/s, ETA {eta}"


@contextmanager
def progress(title: str, unit: str) -> Iterator[Report]:
    """Show progress of one piece of work while the block runs."""
    if not sys.stderr.isatty():
        yield lines(title, unit)
        return
    started = time.monotonic()
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    rate = [TextColumn("{task.fields[rate]}"), TimeRemainingColumn()]
    with Progress(*columns, *rate, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, rate="")

        def report(done: int, total: int) -> None:
            speed = done / max(time.monotonic() - started, 1e-9)
            bar.update(task, completed=done, total=total, rate=f"{speed:.1f} {unit}/s")

        yield report


def lines(title: str, unit: str) -> Report:
    """Progress as plain lines in the log, one in `LINE_EVERY_S` seconds and one at the end."""
    started = last = time.monotonic()

    def report(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if done >= total or now - last >= LINE_EVERY_S:
            last = now
            speed = pace(done, total, now - started, unit)
            logger.info("%s %d/%d | %s", title, done, total, speed)

    return report


@contextmanager
def live_table(
    head: Sequence[str], rows: Callable[[], list[list[str]]], title: Callable[[], str]
) -> Iterator[None]:
    """While the block runs a terminal shows rows that change; elsewhere nothing is to be seen."""
    if not sys.stderr.isatty():
        yield
        return

    def table() -> Table:
        made = Table(*head, title=title(), title_justify="left", box=None)
        for row in rows():
            made.add_row(*row)
        return made

    with Live(
        get_renderable=table, console=Console(stderr=True), refresh_per_second=1, transient=True
    ):
        yield
