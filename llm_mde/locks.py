"""Folders that one program at a time may work in."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from llm_mde.errors import ConfigError


@contextmanager
def locked(path: Path, refusal: str) -> Iterator[None]:
    """Hold a lock that nobody else has, until the block or this process ends, however.

    Raises:
        ConfigError: somebody has it; `refusal` says what that means.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(path)
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise ConfigError(refusal) from error
    try:
        yield
    finally:
        lock.release()


def training(run_dir: Path) -> AbstractContextManager[None]:
    """Hold a run while nobody else trains it: ranks outlive a launcher that is killed.

    Raises:
        ConfigError: another program trains it.
    """
    refusal = (
        f"{run_dir}: another program is training this run (perhaps ranks whose launcher was "
        "killed); wait for its end or stop it, or choose another name with --set name=..."
    )
    return locked(_of_training(run_dir), refusal)


def wait_for_training(run_dir: Path, *, timeout_s: float) -> None:
    """Return once nobody trains a run, or after the time: ranks on another host save and end."""
    path = _of_training(run_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(Timeout), FileLock(path, timeout=timeout_s):
        pass


def _of_training(run_dir: Path) -> Path:
    """Beside the folder, which --resume never sets aside."""
    return run_dir.parent / f".{run_dir.name}.lock"
