"""Loader processes of a rank: how they start, what they hear, when they end."""

import logging
import os
import signal
from functools import cache, partial
from multiprocessing import forkserver, popen_forkserver, resource_tracker
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any

from llm_mde.progress import log_to_stderr

DEAF_TO = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class _Popen(popen_forkserver.Popen):
    def terminate(self) -> None:
        """As at the end of a program that left its loaders at work: they do not hear SIGTERM."""
        self.kill()


class _Loader(ForkServerProcess):
    _Popen = staticmethod(_Popen)


class _Context(ForkServerContext):
    Process = _Loader


def loader_settings() -> dict[str, Any]:
    """What a DataLoader of this rank needs to know: how its processes start, and with what."""
    logger = logging.getLogger("llm_mde")
    level = logger.level if logger.handlers else None  # None: what is said is left to others
    begin = partial(_begin, level=level, environment=dict(os.environ))
    return {"multiprocessing_context": _context(), "worker_init_fn": begin}


@cache
def _context() -> ForkServerContext:
    """Forks of a server without threads, with torch loaded.

    A rank has threads (signs of life, MLflow, CUDA); its fork would have their locks as they stand,
    held perhaps. The server and its forks hear no signals: a launcher sends them to every process
    of a job, but the rank itself decides what to do, and stays fed.
    """
    context = _Context()
    context.set_forkserver_preload(["llm_mde.data.stream"])
    resource_tracker.ensure_running()  # at its first start it would lift the block again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, DEAF_TO)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _begin(worker: int, *, level: int | None, environment: dict[str, str]) -> None:
    # The server ends, and its forks with it, once no one else holds this pipe: when the rank does,
    # however it dies. Forks have it from the server.
    os.close(forkserver._forkserver._forkserver_alive_fd)  # type: ignore[attr-defined]
    os.environ.update(environment)  # the server's is that of the first loader
    if level is not None:
        log_to_stderr(level)
