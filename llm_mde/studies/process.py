"""The training program as a child process group, as a user would start it."""

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil
import torch

from llm_mde.launcher import alive, cores, free_port, visible_devices
from llm_mde.locks import locked
from llm_mde.training.stopping import REQUEUE

logger = logging.getLogger(__name__)

PATIENCE_S = 60.0  # for programs that were asked to end: a checkpoint of the reference run and some


def gpu_ids() -> list[str]:
    """CUDA devices this process may use, as the launcher names them."""
    count = torch.cuda.device_count()  # 0 without a driver, whatever the variable names
    return (visible_devices() or [str(at) for at in range(count)])[:count]


def here() -> tuple[int, int]:
    """CPU cores and GPUs of this machine."""
    return cores(), len(gpu_ids())


def launch_command(words: list[str], *, gpus: list[str], cpu_ranks: int) -> list[str]:
    """`llm-mde <words>` under the DeepSpeed launcher on the given GPUs, or on CPU ranks."""
    # The module of the console command `deepspeed`, run by this very interpreter.
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner"]
    # --num_gpus would take the first ones, whatever CUDA_VISIBLE_DEVICES says.
    on_gpus = ["--include", f"localhost:{','.join(gpus)}"]
    place = on_gpus if gpus else ["--num_accelerators", str(cpu_ranks)]
    return [*launcher, *place, "--master_port", str(free_port()), "--module", "llm_mde", *words]


def single_command(words: list[str]) -> list[str]:
    """`llm-mde <words>` in one process without a launcher."""
    return [sys.executable, "-m", "llm_mde", *words]


def environment(*, gpus: bool, threads: int) -> dict[str, str]:
    """The variables of a child: no other group's rank or port, its accelerator and cores."""
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    }
    accelerator = {} if gpus else {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    return inherited | accelerator | {"OMP_NUM_THREADS": str(threads)}


class ProgramFailed(RuntimeError):
    """A program ended with an exit code that is not 0."""

    def __init__(self, code: int) -> None:
        super().__init__(f"ended with exit code {code}")
        self.code = code


def run_logged(command: list[str], *, env: dict[str, str], log: Path) -> Iterator[str]:
    """Run a command and write all it prints to `log`; yields every line.

    The child does not outlive the generator: closed early, it is asked to end, and waited for.

    Raises:
        ProgramFailed: it did.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as record:
        child = subprocess.Popen(
            command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        try:
            assert child.stdout is not None
            for line in child.stdout:
                record.write(line)
                record.flush()
                yield line.rstrip("\n")
            if code := child.wait():
                raise ProgramFailed(code)
        finally:
            if child.poll() is None:
                child.terminate()
                for _ in child.stdout or ():  # ranks that outlive their launcher still save
                    pass
                child.wait()


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Run trials in a folder, which is made, while no other command does.

    Raises:
        ConfigError: another one does.
    """
    refusal = (
        f"{folder}: another command runs trials in it; wait for its end, or choose another "
        "folder with --set runs=DIR"
    )
    with locked(folder / "lock", refusal):
        yield


def end(files: Iterable[Path]) -> None:
    """Ask the programs whose process ids lie in files to save and end, and wait for that.

    Those below them are waited for as well: ranks save after their launcher has gone. Ctrl-C
    meanwhile ends all of them at once.
    """
    found = {file: _running(file) for file in files if _is_here(file)}
    programs = [program for program in found.values() if program]
    everything = [one for program in programs for one in _with_children(program)]
    try:
        _signal(programs, signal.SIGTERM)
        deadline = time.monotonic() + PATIENCE_S
        # Not psutil's waiting, which takes a child's exit code from who started it.
        while any(map(alive, everything)) and time.monotonic() < deadline:
            time.sleep(0.1)
    except KeyboardInterrupt:
        _signal(everything, signal.SIGKILL)
        raise
    for file, program in found.items():
        if program and alive(program):
            logger.warning("%s: process %d was asked to end and still runs", file, program.pid)
        else:
            file.unlink(missing_ok=True)


def _with_children(program: psutil.Process) -> list[psutil.Process]:
    try:
        return [program, *program.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _signal(programs: Iterable[psutil.Process], number: signal.Signals) -> None:
    for program in programs:
        with contextlib.suppress(psutil.NoSuchProcess):
            program.send_signal(number)


def _is_here(file: Path) -> bool:
    """Whether a program's host is this one; elsewhere it ends by itself, as its Ray worker does."""
    try:
        return file.read_text().split()[1:] in ([], [socket.gethostname()])
    except OSError:
        return False


def _running(file: Path) -> psutil.Process | None:
    """The program whose process id a file holds; None once it has ended."""
    try:
        program = psutil.Process(int(file.read_text().split()[0]))
        command = " ".join(program.cmdline())  # none where nobody has waited for its end
    except (OSError, ValueError, IndexError, psutil.Error):  # gone, or not written yet
        return None
    return program if file.stem in command else None  # ids of the dead are given to others


@contextlib.contextmanager
def ending(folder: Path) -> Iterator[None]:
    """Leave no program behind: those still running are asked to save and end, and waited for.

    SIGTERM, which would end Ray at once, ends us here as Ctrl-C does, and with the exit code of a
    training run.
    """
    end(_pid_files(folder))  # those of a command that was killed, and could not
    asked: list[int] = []

    def stop(*_: object) -> None:
        asked.append(REQUEUE)
        raise KeyboardInterrupt  # the one exception that Ray's waiting passes on as it is

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        logger.warning("stopping: trials save and end; ctrl-C again ends them at once")
        if asked:
            raise SystemExit(asked[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        end(_pid_files(folder))


def _pid_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.pid"))
