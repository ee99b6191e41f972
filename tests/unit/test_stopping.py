import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from llm_mde import launcher
from llm_mde.training import stopping
from llm_mde.training.stopping import INTERRUPTED, REQUEUE, stop_requests


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 75), (signal.SIGUSR1, 75), (signal.SIGINT, 130)],
)
def test_a_signal_asks_with_its_exit_code(number, code):
    before = signal.getsignal(number)
    with stop_requests() as asked:
        assert asked() is None
        os.kill(os.getpid(), number)
        assert asked() == code
        os.kill(os.getpid(), signal.SIGTERM)
        assert asked() == code  # the first one counts
    ignored = {signal.SIGTERM, signal.SIGUSR1}
    assert signal.getsignal(number) is (signal.SIG_IGN if number in ignored else before)
    for one in ignored:  # a second SIGTERM would spoil the exit code
        assert signal.getsignal(one) is signal.SIG_IGN
        signal.signal(one, signal.SIG_DFL)


def test_without_a_request_handlers_are_as_before():
    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    with stop_requests():
        pass
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before
    assert (REQUEUE, INTERRUPTED) == (75, 130)


def test_time_that_is_up_asks_to_be_requeued(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(stopping.time, "monotonic", lambda: clock[0])
    with stop_requests(deadline=160.0) as asked:
        assert asked() is None
        clock[0] = 160.0
        assert asked() == 75


def test_the_end_of_a_launcher_asks_to_be_requeued(tmp_path):
    # A process called deepspeed starts a rank, then is killed.
    rank = tmp_path / "rank.py"
    rank.write_text(
        textwrap.dedent(
            f"""
            import pathlib, sys, time
            from llm_mde.training.stopping import stop_requests
            with stop_requests() as asked:
                pathlib.Path({str(tmp_path / "ready")!r}).write_text(str(asked()))
                until = time.monotonic() + 30
                while asked() is None and time.monotonic() < until:
                    time.sleep(0.02)
                pathlib.Path({str(tmp_path / "code")!r}).write_text(str(asked()))
            """
        )
    )
    starter = tmp_path / "deepspeed"
    starter.write_text(f"import subprocess, sys\nsubprocess.run([sys.executable, {str(rank)!r}])\n")
    parent = subprocess.Popen([sys.executable, str(starter)])
    assert wait_for(tmp_path / "ready") == "None"
    parent.kill()
    parent.wait()
    assert wait_for(tmp_path / "code") == "75"


def wait_for(path):
    until = time.monotonic() + 60
    while not (path.exists() and path.read_text()) and time.monotonic() < until:
        time.sleep(0.02)
    return path.read_text()


@pytest.mark.parametrize(
    ("words", "launches"),
    [
        (["/v/bin/python", "/v/bin/deepspeed", "--num_gpus", "2"], True),
        (["/v/bin/python", "-u", "-m", "deepspeed.launcher.launch"], True),
        (["/v/bin/python", "-m", "torch.distributed.run", "--standalone"], True),
        (["/v/bin/python", "/v/bin/torchrun"], True),
        (["/bin/bash", "deepspeed_runs/start.sh"], False),
        (["vim", "notes/deepspeed.md"], False),
        (["/v/bin/python", "-m", "llm_mde", "train"], False),
    ],
)
def test_launchers_are_known_by_their_command(words, launches):
    class Process:
        def cmdline(self):
            return words

    assert launcher._launches(Process()) is launches
