"""Several ranks inside one test."""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
import torch.multiprocessing


def run_ranks(fn: Callable[..., None], world_size: int = 2, *args: Any) -> None:
    """Call fn(rank, *args) in `world_size` gloo processes; a failing rank fails the test.

    `fn` lives at the top of a module, so that the processes can find it; the processes meet in a
    file, so that no port has to be guessed. They are forks of one server, which has imported
    DeepSpeed once for all of them.
    """
    multiprocessing.set_forkserver_preload(["llm_mde.training.train"])
    with tempfile.TemporaryDirectory() as folder:
        meeting = f"file://{folder}/rendezvous"
        torch.multiprocessing.start_processes(
            _enter,
            (world_size, meeting, fn, args),
            nprocs=world_size,
            start_method="forkserver",
        )


def _enter(
    rank: int, world_size: int, meeting: str, fn: Callable[..., None], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": str(rank)}
    torch.distributed.init_process_group(
        "gloo", init_method=meeting, rank=rank, world_size=world_size
    )
    try:
        fn(rank, *args)
    finally:
        torch.distributed.destroy_process_group()
