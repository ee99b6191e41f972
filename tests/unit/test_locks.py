"""Folders that one program at a time may work in."""

import threading
from pathlib import Path

import pytest

from llm_mde.errors import ConfigError
from llm_mde.locks import training, wait_for_training


def test_a_run_has_one_program_at_a_time(tmp_path: Path) -> None:
    with (
        training(tmp_path / "a"),
        training(tmp_path / "b"),
        pytest.raises(ConfigError, match="a: another program is training this run"),
        training(tmp_path / "a"),
    ):
        pytest.fail("two programs train one run")


def test_who_waits_goes_on_once_the_other_has_saved(tmp_path: Path) -> None:
    begun, saved = threading.Event(), threading.Event()

    def train() -> None:
        with training(tmp_path / "run"):
            begun.set()
            saved.wait(0.3)
            saved.set()

    other = threading.Thread(target=train)
    other.start()
    assert begun.wait(10)
    wait_for_training(tmp_path / "run", timeout_s=60)
    assert saved.is_set()
    with training(tmp_path / "run"):
        other.join()


def test_who_waits_long_enough_goes_on_all_the_same(tmp_path: Path) -> None:
    with training(tmp_path / "run"):
        wait_for_training(tmp_path / "run", timeout_s=0.1)
    wait_for_training(tmp_path / "folder" / "that is new", timeout_s=0.1)
