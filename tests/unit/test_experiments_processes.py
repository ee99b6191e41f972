"""What one command leaves to the next: a folder that is taken, programs that still run."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from llm_mde.errors import ConfigError
from llm_mde.studies import process, trials
from llm_mde.studies.process import alone, end, ending

# An argument tells whose it is. Short naps: a signal just before a long one would wait for its end.
PROGRAM = """
import signal, sys, time
{on_term}
print(flush=True)
while True: time.sleep(0.02)
"""
SAVING_S = 0.5
SAVES = f"signal.signal(signal.SIGTERM, lambda *_: (time.sleep({SAVING_S}), sys.exit(75)))"
DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Started:
    """Programs of one test."""

    def __init__(self) -> None:
        self.all: list[subprocess.Popen[bytes]] = []

    def __call__(self, on_term: str, word: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-S", "-c", PROGRAM.format(on_term=on_term), word]
        child = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.all.append(child)
        assert child.stdout is not None and child.stdout.readline()  # its handler is in place
        return child


@pytest.fixture
def start() -> Iterator[Started]:
    started = Started()
    yield started
    for child in started.all:
        child.kill()
        child.communicate()


def test_a_folder_is_one_command_s_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "pair"
    taken = pytest.raises(ConfigError, match="pair: another command runs trials in it; wait")
    with alone(folder), alone(tmp_path / "runs" / "other"), taken, alone(folder):
        pass
    with alone(folder):
        pass


def test_programs_are_asked_to_end_and_waited_for(start: Started, tmp_path: Path) -> None:
    child = start(SAVES, "pair-a-s0.yaml")
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid}\n")
    began = time.monotonic()
    end([file, tmp_path / "pair-b-s0.pid"])
    assert time.monotonic() - began >= SAVING_S
    assert child.wait(1) == 75 and not file.exists()


def test_what_a_killed_command_left_is_ended_before_trials_start(
    start: Started, tmp_path: Path
) -> None:
    child = start(SAVES, "pair-a-s0.yaml")
    place = trials.Place("pair-a-s0", tmp_path, gpus=False, threads=1)
    place.pid_file.write_text(f"{child.pid}\n")
    with ending(tmp_path):
        assert child.wait(0.2) == 75


def test_another_program_under_the_same_id_is_left_alone(start: Started, tmp_path: Path) -> None:
    child = start(SAVES, "somebody else's")
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid}\n")
    end([file])
    assert child.poll() is None and not file.exists()


def test_a_program_that_stays_keeps_its_file(
    start: Started,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(process, "PATIENCE_S", 0.2)
    child = start(DEAF, "pair-a-s0.yaml")
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid}\n")
    began = time.monotonic()
    end([file])
    assert time.monotonic() - began < 5 and file.exists()
    assert f"process {child.pid} was asked to end and still runs" in caplog.text


def test_those_below_a_program_are_waited_for(start: Started, tmp_path: Path) -> None:
    """DeepSpeed's launcher ends at once; its ranks still save."""
    code = (
        "import subprocess, sys, time\n"
        f"subprocess.Popen([sys.executable, '-S', '-c', 'import time; time.sleep({SAVING_S})'])\n"
        "print(flush=True)\ntime.sleep(60)"
    )
    command = [sys.executable, "-S", "-c", code, "pair-a-s0.yaml"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    start.all.append(child)
    assert child.stdout is not None and child.stdout.readline()
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid}\n")
    began = time.monotonic()
    end([file])
    assert time.monotonic() - began >= SAVING_S / 2 and child.wait(1) == -signal.SIGTERM


def test_ctrl_c_while_programs_save_ends_them_at_once(
    start: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start(DEAF, "pair-a-s0.yaml")
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid}\n")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=interrupted)
    monkeypatch.setattr(process, "time", clock)  # not `time.sleep`, which others call as well
    with pytest.raises(KeyboardInterrupt):
        end([file])
    assert child.wait(1) == -signal.SIGKILL


def test_programs_of_another_host_are_left_to_it(start: Started, tmp_path: Path) -> None:
    child = start(SAVES, "pair-a-s0.yaml")
    file = tmp_path / "pair-a-s0.pid"
    file.write_text(f"{child.pid} elsewhere\n")
    end([file])
    assert child.poll() is None and file.exists()


def test_ray_is_our_own_with_the_gpus_that_we_count(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, object] = {}
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr(process, "gpu_ids", lambda: ["2", "5"])
    monkeypatch.setattr(trials.ray, "init", lambda **words: asked.update(words))
    trials._set_up_ray(None)
    assert (asked["address"], asked["num_gpus"]) == ("local", 2)
