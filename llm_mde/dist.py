"""Ranks: the only module that sees torch.distributed."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from llm_mde.errors import ConfigError, LlmMdeError
from llm_mde.launcher import cores, launcher_variables

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    device: torch.device


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
        torch.set_num_threads(max(1, cores() // local))
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


def gather_rows(values: torch.Tensor) -> torch.Tensor:
    """Tensors (n, ...) of all ranks, n may differ, one after another on every rank."""
    if world() == 1:
        return values
    parts: list[torch.Tensor] = [values] * world()
    dist.all_gather_object(parts, values.cpu())
    return torch.cat(parts)


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


def on_rank_0(action: Callable[[], T]) -> T:
    """What `action` returns on rank 0, on every rank; an error that users can cause likewise.

    So no rank waits for a rank 0 that has given up.
    """
    value, error = None, None
    if rank() == 0:
        try:
            value = action()
        except (LlmMdeError, OSError) as caught:
            error = caught
    value, error = from_rank_0((value, error))
    if error is not None:
        if isinstance(error, LlmMdeError):
            error.said_elsewhere = rank() != 0
        raise error
    return cast(T, value)  # without an error it is the action's


def all_agree(condition: bool) -> bool:
    """True on every rank only if true on all of them."""
    if world() == 1:
        return condition
    votes = torch.tensor([int(condition)])
    dist.all_reduce(votes, op=dist.ReduceOp.MIN)
    return bool(votes.item())


def raise_together(problem: LlmMdeError | None) -> None:
    """Raise a rank's problem there, and on every other rank an error that leaves it to say.

    Collective. For what one rank alone has met: the others would wait for it, or die of its end.
    """
    if all_agree(problem is None):
        return
    if problem is None:
        problem = LlmMdeError("another rank met an error")
        problem.said_elsewhere = True
    raise problem


def totals(counts: list[int]) -> list[int]:
    """Sums over ranks, on every rank."""
    return [int(total) for total in all_reduce_sum(torch.tensor(counts)).tolist()]


def barrier() -> None:
    """Wait for every rank."""
    if world() > 1:
        dist.barrier()
