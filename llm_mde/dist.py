"""Ranks: the only module that sees torch.distributed."""

import os
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from llm_mde.errors import ConfigError, LlmMdeError
from llm_mde.launcher import cores, launcher_variables, threads
from llm_mde.pulse import Pulse, announce

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    pulse: Pulse | None = None
    """Signs of life of all ranks."""


def join(*, timeout_s: float = 1800.0, deterministic: bool = False) -> Ranks:
    """Join the process group that the launcher describes; alone when there is no launcher.

    A collective that lasts longer than `timeout_s` is an error on every rank that waits in it.
    deterministic: kernels that repeat themselves alone; an operation that has none is an error.

    Raises:
        ConfigError: more ranks than GPUs on this host, or nothing says where the ranks meet.
    """
    os.environ.update(launcher_variables(os.environ))
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read as CUDA starts
        torch.use_deterministic_algorithms(True)
    cuda = torch.cuda.is_available()
    if cuda:
        _take_gpu()
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads(os.environ, cores=cores()))
    timeout = timedelta(seconds=timeout_s)
    store, rank, world = _met(timeout)
    announce(store, rank)  # here: `init_process_group` waits for all ranks
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )
    host, pulse = os.environ["MASTER_ADDR"], None
    if world > 1:
        pulse = Pulse(store, rank=rank, world=world, timeout_s=timeout_s, host=host)
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(rank, world, local_rank, device, pulse)


def _met(timeout: timedelta) -> tuple[dist.Store, int, int]:
    """The store in which ranks meet, this rank and their number.

    Raises:
        ConfigError: rank 0's port is taken.
    """
    try:
        found: tuple[dist.Store, int, int] = next(dist.rendezvous("env://", timeout=timeout))
    except dist.DistNetworkError as error:
        if "EADDRINUSE" not in str(error):
            raise
        raise ConfigError(
            f"MASTER_PORT {os.environ['MASTER_PORT']}: is taken on {socket.gethostname()}, perhaps "
            "by ranks of a run that was just stopped and still saves; start again in a moment, or "
            "with another --master_port"
        ) from error
    return found


def failed_in_group(error: RuntimeError) -> bool:
    """Whether others are the reason, who did not come to a collective, or left."""
    return isinstance(error, dist.DistError) or "/gloo/" in str(error)


def limit_waiting(groups: Iterable[Any], *, timeout_s: float) -> None:
    """The time-out of `join` for groups that others have made, with their own of half an hour."""
    # Its private name until torch 2.14 or so.
    set_timeout = getattr(dist, "set_timeout", dist.distributed_c10d._set_pg_timeout)
    for group in filter(None, groups):
        set_timeout(timedelta(seconds=timeout_s), group)


def gpu_memory(device: torch.device) -> int | None:
    """Bytes of a GPU; None for a CPU."""
    return torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None


def _take_gpu() -> None:
    """One GPU for this rank; a launcher that shows each rank only its own GPU calls it 0."""
    local_rank, visible = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if visible == 1:
        os.environ["LOCAL_RANK"] = "0"  # DeepSpeed picks its device by this variable
    elif local_rank >= visible:
        raise ConfigError(f"LOCAL_RANK {local_rank}: expected below {visible}, the GPUs seen here")
    torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))


def leave(ranks: Ranks) -> None:
    """Leave the process group that `join` joined."""
    if ranks.pulse:
        ranks.pulse.end()
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
    """What `action` returns on rank 0, on every rank; its error is one on every rank, too.

    So no rank waits for a rank 0 that has given up. Errors that users can cause arrive as they are.
    """
    value, error = None, None
    if rank() == 0:
        try:
            value = action()
        except Exception as caught:  # whatever it is, it must not leave the others waiting
            error = caught
    known = error is None or isinstance(error, LlmMdeError | OSError)
    value, told = from_rank_0((value, error if known else RuntimeError(f"rank 0: {error!r}")))
    if error is not None:
        raise error
    if told is not None:
        if isinstance(told, LlmMdeError):
            told.said_elsewhere = True
        raise told
    return cast(T, value)  # without an error it is the action's


def gather(values: list[T]) -> list[T]:
    """The items of all ranks, on every rank."""
    if world() == 1:
        return values
    parts: list[list[T]] = [[]] * world()
    dist.all_gather_object(parts, values)
    return [value for part in parts for value in part]


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
