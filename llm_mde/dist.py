"""Ranks: the only module that sees torch.distributed and the launchers' variables."""

import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from llm_mde.errors import ConfigError

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    device: torch.device


def launcher_variables(found: Mapping[str, str]) -> dict[str, str]:
    """The launcher variables as `found`, those that are missing filled in.

    deepspeed and torchrun set all of them, srun has its own names, plain python has none.

    Raises:
        ConfigError: several ranks, and nothing says where they meet.
    """
    guess = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    # An allocation's own shell has SLURM's rank variables too; only a step of several tasks counts.
    if "RANK" not in found and int(found.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        job, step = int(found["SLURM_JOB_ID"]), int(found["SLURM_STEP_ID"])
        guess = {
            "RANK": found["SLURM_PROCID"],
            "WORLD_SIZE": found["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": found["SLURM_LOCALID"],
            "MASTER_ADDR": first_host(found["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(12000 + (job + step) % 20000),  # below Linux's ephemeral ports
        }
    variables = {name: found.get(name) or guess.get(name, "") for name in VARIABLES}
    if not variables["MASTER_PORT"]:
        if variables["WORLD_SIZE"] != "1":
            raise ConfigError(
                f"MASTER_PORT: expected the port of rank 0 of {variables['WORLD_SIZE']} ranks, "
                "got nothing; start with deepspeed, torchrun or srun"
            )
        variables["MASTER_PORT"] = str(free_port())
    return variables


def first_host(nodelist: str) -> str:
    """`gpu01` of SLURM's `gpu[01-04,07],big3`: the node of task 0."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodelist)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def join(*, timeout_s: float = 1800.0) -> Ranks:
    """Join the process group that the launcher describes; alone when there is no launcher.

    Raises:
        ConfigError: more ranks than GPUs on this host, or nothing says where the ranks meet.
    """
    os.environ.update(launcher_variables(os.environ))
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu()
    elif "OMP_NUM_THREADS" not in os.environ:
        local = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local))
    if not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo", timeout=timedelta(seconds=timeout_s)
        )
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(dist.get_rank(), dist.get_world_size(), local_rank, device)


def _take_gpu() -> None:
    """One GPU for this rank; a launcher that shows each rank only its own GPU calls it 0."""
    local_rank, visible = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if visible == 1:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed picks its device by this variable
    elif local_rank >= visible:
        raise ConfigError(f"LOCAL_RANK {local_rank}: expected below {visible}, the GPUs seen here")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def leave() -> None:
    """Leave the process group, if there is one."""
    if dist.is_initialized():
        dist.destroy_process_group()


def rank() -> int:
    """This process's rank; 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """Number of ranks; 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def all_reduce_sum(values: torch.Tensor) -> torch.Tensor:
    """The sum over ranks, on every rank; a new tensor."""
    total = values.clone()
    if world() > 1:
        dist.all_reduce(total)
    return total


def average(tensors: list[torch.Tensor]) -> None:
    """Replace float tensors by their mean over ranks, in place, in one collective."""
    if world() == 1 or not tensors:
        return
    line = all_reduce_sum(torch.cat([tensor.reshape(-1).float() for tensor in tensors])) / world()
    for tensor, part in zip(
        tensors, line.split([tensor.numel() for tensor in tensors]), strict=True
    ):
        tensor.copy_(part.view_as(tensor))


def from_rank_0(value: Any) -> Any:
    """Rank 0's object on every rank."""
    if world() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def all_agree(condition: bool) -> bool:
    """True on every rank only if true on all of them."""
    if world() == 1:
        return condition
    votes = torch.tensor([int(condition)])
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()
