"""Ray's side of a trial without Ray, and what a failed program's log says."""

import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llm_mde.studies.live import Live
from llm_mde.studies.programs import SCORE, TIME, Place, Row, _reason
from llm_mde.studies.trials import END, ERROR, Ended, _Trial

closed: list[str] = []


def work(place: Place, settings: dict[str, Any]) -> Iterator[Row]:
    try:
        for step in range(1, settings["rows"] + 1):
            yield {TIME: step, SCORE: 1 / step}
        if settings["rows"] == 1:
            raise RuntimeError("no luck")
    finally:
        closed.append(place.name)


def trial(name: str, rows: int) -> _Trial:
    made = object.__new__(_Trial)  # Ray's own constructor asks for Ray
    made._trial_info = SimpleNamespace(trial_name=name)
    config = {"trial": {"name": name, "settings": {"rows": rows}}}
    made.setup(config, work=work, folder=Path("sweep"), run_of=None, gpus=False, threads=1)
    return made


def test_a_step_is_an_evaluation_and_the_last_one_says_that_it_ended() -> None:
    one = trial("good", 2)
    assert [one.step(), one.step()] == [{TIME: 1, SCORE: 1.0}, {TIME: 2, SCORE: 0.5}]
    assert one.step() == {TIME: 2, SCORE: 0.5, "done": True, END: True}


def test_a_failed_program_ends_its_trial_with_the_reason() -> None:
    one = trial("bad", 1)
    one.step()
    assert one.step() == {TIME: 1, SCORE: 1.0, "done": True, END: True, ERROR: "no luck"}


def test_a_trial_that_is_stopped_early_is_closed_and_its_process_takes_another() -> None:
    closed.clear()
    one = trial("first", 5)
    one.step()
    one.cleanup()
    assert closed == ["first"]
    one._trial_info = SimpleNamespace(trial_name="second")
    assert one.reset_config({"trial": {"name": "second", "settings": {"rows": 2}}})
    assert one.step() == {TIME: 1, SCORE: 1.0}
    one.cleanup()
    assert closed == ["first", "second"]


@pytest.mark.parametrize(
    ("log", "code", "expected"),
    [
        ("step 1\nValueError: x\nbye", 1, "ValueError: x"),
        ("llm-mde train: data.shards: expected", 2, "llm-mde train: data.shards: expected"),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB\nError: bye",
            1,
            "out of memory: torch.OutOfMemoryError: CUDA out of memory. Tried",
        ),
        (
            "RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes.",
            1,
            "out of memory: RuntimeError: [enforce fail] DefaultCPUAllocator: can't allocate",
        ),
        ("step 1", -signal.SIGKILL, "out of memory, perhaps: killed"),
        ("step 1", 7, "ended with exit code 7"),
    ],
)
def test_a_log_tells_the_reason(tmp_path: Path, log: str, code: int, expected: str) -> None:
    path = tmp_path / "a.log"
    path.write_text(log + "\n")
    assert _reason(path, code).startswith(expected)


def test_time_left_goes_by_steps_and_a_stopped_trial_counts_as_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [100.0]
    monkeypatch.setattr("llm_mde.studies.live.time.monotonic", lambda: now[0])
    live = Live({"a": 10, "b": 10, "c": 20}, total=3)
    assert live.eta() == "unknown"
    live.started("a", {})
    now[0] = 110.0
    live.row("a", {TIME: 5, SCORE: 0.5})
    assert live.eta() == "1m10s"  # 5 of 40 steps in 10 s
    live.ended("a", Ended(10.0, None, stopped=True))
    assert live.eta() == "30s"  # 10 of 40 in 10 s
