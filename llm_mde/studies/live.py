"""What is to be seen of trials while they run: a table on a terminal, else a line as each ends."""

import logging
import math
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from llm_mde.progress import duration, live_table
from llm_mde.studies.programs import SCORE, TIME, Row
from llm_mde.studies.trials import Ended, Watch

logger = logging.getLogger(__name__)

SHOWN = 5  # of the trials that have ended, the best


@dataclass
class Seen:
    """A trial as far as it has come."""

    began: float
    step: int = 0
    last: float = math.nan
    best: float = math.nan
    ended: Ended | None = None

    @property
    def state(self) -> str:
        """In a word."""
        if self.ended is None:
            return "running"
        return "failed" if self.ended.error else "stopped" if self.ended.stopped else "done"


class Live(Watch):
    """Follows trials and says how long the rest will take."""

    def __init__(self, steps: Mapping[str, int], *, total: int, typical: int = 1) -> None:
        """Begin.

        Args:
            steps: optimizer steps of each trial to its end, as far as they are known.
            total: trials to run.
            typical: steps of a trial that is not among them.
        """
        self._steps = dict(steps)
        self._typical = max(steps.values(), default=typical)
        self._total = total
        self._began = time.monotonic()
        self.seen: dict[str, Seen] = {}

    def shown(self) -> AbstractContextManager[None]:
        """While the block runs a terminal shows the table."""
        return live_table(("trial", "", "step", SCORE, "best", "time"), self._rows, self._title)

    def started(self, name: str, settings: dict[str, Any]) -> None:
        """A trial has got its devices; again where its node was lost."""
        self.seen.setdefault(name, Seen(time.monotonic()))

    def row(self, name: str, row: Row) -> None:
        """It recorded an evaluation."""
        seen = self.seen[name]
        seen.step, seen.last = row[TIME], row.get(SCORE, math.nan)
        seen.best = seen.last if math.isnan(seen.best) else min(seen.best, seen.last)

    def ended(self, name: str, ended: Ended) -> None:
        """It is over."""
        seen = self.seen.setdefault(name, Seen(time.monotonic()))
        seen.ended = ended
        score = "" if math.isnan(seen.best) else f" {SCORE} {seen.best:.4f}"
        reason = f": {ended.error}" if ended.error else ""
        logger.info(
            "trial %d/%d %s %s%s%s | ETA %s",
            *(self._done, self._total, name, seen.state, score, reason, self.eta()),
        )

    @property
    def _done(self) -> int:
        return sum(seen.ended is not None for seen in self.seen.values())

    def eta(self) -> str:
        """Time the rest will take, by the steps made; a trial that ended early counts as whole."""
        made = sum(
            self._of(name) if seen.ended else min(seen.step, self._of(name))
            for name, seen in self.seen.items()
        )
        known = {*self._steps, *self.seen}
        every = sum(map(self._of, known)) + self._typical * (self._total - len(known))
        if not made:
            return "unknown"
        return duration((time.monotonic() - self._began) / made * (every - made))

    def _of(self, name: str) -> int:
        return self._steps.get(name, self._typical)

    def _title(self) -> str:
        return f"{self._done} of {self._total} trials, ETA {self.eta()}"

    def _rows(self) -> list[list[str]]:
        now = time.monotonic()
        seen = list(self.seen.items())
        running = [(name, one) for name, one in seen if one.ended is None]
        over = [(name, one) for name, one in seen if one.ended is not None]
        best = sorted(over, key=lambda pair: (math.isnan(pair[1].best), pair[1].best))[:SHOWN]
        return [
            [name, one.state, f"{one.step}/{self._of(name)}"]
            + ["" if math.isnan(number) else f"{number:.4f}" for number in (one.last, one.best)]
            + [duration(one.ended.seconds if one.ended else now - one.began)]
            for name, one in (*running, *best)
        ]
