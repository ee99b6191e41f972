"""A trial without training; here, where Ray's workers can import it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_mde.studies.programs import SCORE, TIME, Place, Row

STEPS = 9


def work(place: Place, settings: dict[str, Any], *, notes: Path) -> Iterator[Row]:
    """A row a step; tells by files how it began and ended."""
    began = notes / f"{place.name}.began"
    before = len(began.read_text()) if began.is_file() else 0
    began.write_text("x" * (before + 1))
    try:
        for step in range(1, STEPS + 1):
            if step == 3 and place.name == "dies" and not before:
                os.kill(os.getpid(), signal.SIGKILL)  # as where a node is lost
            if step == 3 and place.name == "fails":
                raise RuntimeError("no luck")
            yield {TIME: step, SCORE: settings["score"]}
    except GeneratorExit:
        (notes / f"{place.name}.closed").touch()
        raise
