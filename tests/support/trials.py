"""A trial without training; here, where Ray's workers can import it."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llm_mde.studies.programs import SCORE, TIME, Place, Row
from llm_mde.training.checkpoint import choose, read_state, save

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
            if step == settings.get("fail_at", 3) and place.name == "fails":
                raise RuntimeError("no luck")
            yield {TIME: step, SCORE: settings["score"]}
    except GeneratorExit:
        (notes / f"{place.name}.closed").touch()
        raise


def saved_in(folder: Path, name: str, settings: dict[str, Any]) -> Path:
    """The run's folder of a trial."""
    return folder / f"run-{name}"


def inheriting(place: Place, settings: dict[str, Any], *, notes: Path) -> Iterator[Row]:
    """Saves at each step whose child it is, and goes on from what it finds saved."""
    folder = saved_in(notes, place.name, settings) / "checkpoints"
    found = choose(folder, "auto") if folder.is_dir() else None
    state = read_state(found) if found else {"step": 0, "of": place.name}
    for step in range(state["step"] + 1, STEPS + 1):
        now = {"step": step, "of": state["of"]}
        save(folder, lambda at: (at / "w").touch(), step=step, state=now, best=False, keep=2)
        time.sleep(0.3)  # so that the trials go side by side
        yield {TIME: step, SCORE: settings["optim.lr"]}
