"""Shards written by processes of this machine or by a Ray cluster; results in any order."""

import os
import signal
import threading
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from types import FrameType

from llm_mde.data.shard import ShardPlan, ShardResult, ShardSettings, write_shard
from llm_mde.errors import ConfigError, DataError, LlmMdeError
from llm_mde.launcher import check_cluster

RAY_AHEAD = 2  # tasks a core of the cluster may have waiting


def on_processes(
    plans: Sequence[ShardPlan], settings: ShardSettings, *, jobs: int
) -> Generator[ShardResult, None, None]:
    """Write shards on `jobs` processes of this machine.

    Raises:
        DataError: as `write_shard`, or a worker that was killed.
    """
    jobs = min(jobs, len(plans))
    if jobs <= 1 or settings.out.scheme == "memory":  # memory:// is seen by one process alone
        yield from (write_shard(plan, settings) for plan in plans)
        return
    todo = iter(plans)
    # "spawn": a fork of a process that runs threads (torch, a progress bar) may hang
    with ProcessPoolExecutor(jobs, get_context("spawn"), _enter_worker) as pool:
        others = set(active_children())
        waiting: set[Future[ShardResult]] = set()
        try:
            while True:
                for plan in todo:
                    with _held_back(signal.SIGINT):  # workers start here, deaf until they are ready
                        waiting.add(pool.submit(write_shard, plan, settings))
                    if len(waiting) > jobs:  # one ahead, so that nobody waits
                        break
                if not waiting:
                    return
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in done:
                    yield future.result()
        except BrokenProcessPool as error:
            raise DataError(
                f"{settings.out}: a worker process was killed (out of memory?); run the same "
                "command again to continue, with fewer --jobs if memory is short"
            ) from error
        except BaseException:
            for worker in set(active_children()) - others:
                worker.terminate()  # a shard may take minutes, and would be thrown away
            raise


def _enter_worker() -> None:
    """Ctrl-C ends a worker without a traceback, and none outlives a parent that was killed."""
    signal.signal(signal.SIGINT, _leave)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    threading.Thread(target=_watch_parent, daemon=True).start()


@contextmanager
def _held_back(number: signal.Signals) -> Iterator[None]:
    """A signal that comes in the block is delivered after it; processes born in it are deaf too."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    os._exit(130)


def _watch_parent() -> None:
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


def on_ray(
    plans: Sequence[ShardPlan], settings: ShardSettings, *, address: str
) -> Generator[ShardResult, None, None]:
    """Write shards on every core of a Ray cluster; each node sees the same sources and folder.

    Raises:
        ConfigError: no cluster at this address.
        DataError: as `write_shard`.
    """
    import ray

    mine = not ray.is_initialized()
    if mine:
        check_cluster(address, option="--ray", otherwise="give --ray local")
        try:
            ray.init(address=address, log_to_driver=False, include_dashboard=False)
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"ray: no cluster at {address!r} ({error}); start one with 'ray start --head', "
                "or give --ray local"
            ) from error
    try:
        task = ray.remote(num_cpus=1)(write_shard)
        slots = RAY_AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)))
        shared = ray.put(settings)
        todo, waiting = iter(plans), []
        while True:
            for plan in todo:
                waiting.append(task.remote(plan, shared))
                if len(waiting) >= slots:
                    break
            if not waiting:
                return
            done, waiting = ray.wait(waiting)
            yield from ray.get(done)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, LlmMdeError):
            raise error.cause from error
        raise
    finally:
        if mine:
            ray.shutdown()
