"""Ranks: the only module that sees torch.distributed."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from llm_mde.errors import ConfigError, LlmMdeError
from llm_mde.launcher import cores, launcher_variables, local_ranks

T = TypeVar("T")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ranks:
    """This process among its peers."""

    rank: int
    world: int
    local_rank: int
    device: torch.device
    pulse: "Pulse | None" = None
    """Signs of life of all ranks."""


PULSE_S = 2.0
NEARLY = 0.8  # of the time-out
NO_STORE = "rank 0 on %s, which keeps the list of ranks, does not answer"
GO_ON = "the same command goes on from the last checkpoint"
LATE = 2.5  # pulses, after which a rank without one shows no sign of life


class Pulse:
    """Signs of life of all ranks, kept where they met: who is it that the others wait for?

    A thread of each rank goes on while the rank waits in a collective, not where it is stopped or
    dead; `turns` tells who has come how far. Where a rank has waited nearly as long as it may, the
    thread says for whom: on GPUs NCCL ends the process without a word to Python.
    """

    def __init__(self, store: dist.Store, *, rank: int, world: int, timeout_s: float) -> None:
        """Begins to beat."""
        self.rank, self.world, self.turns, self._store = rank, world, 0, store
        self._patience_s, self._told = NEARLY * timeout_s, False
        self._no_store = NO_STORE % os.environ["MASTER_ADDR"]
        self._over, self._blaming = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._beat, args=(store.clone(),), daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Stop beating."""
        self._over.set()
        self._thread.join(2 * PULSE_S)  # not for ever, where rank 0 no longer answers

    def _beat(self, store: dist.Store) -> None:
        beats, host = 0, socket.gethostname()
        turns, since = 0, time.monotonic()
        while not self._over.is_set():
            beats += 1
            if turns != self.turns:
                turns, since = self.turns, time.monotonic()
            if turns and time.monotonic() - since > self._patience_s:
                since = time.monotonic()
                threading.Thread(target=self.blame, daemon=True).start()  # this one goes on beating
            try:
                store.set(f"pulse/{self.rank}", f"{beats} {self.turns} {host}")
            except RuntimeError:  # rank 0 keeps the store, and is gone
                return
            self._over.wait(PULSE_S)

    def blame(self) -> bool:
        """Say, once, which ranks this one waits for; whether there are any. Takes some seconds."""
        with self._blaming:
            missing = [] if self._told else self.missing()
            if missing:
                self._told = True
                who = "; ".join(missing)
                logger.error("rank %d waits in vain: %s; %s", self.rank, who, GO_ON)
        return self._told

    def missing(self) -> list[str]:
        """Ranks that show no sign of life or are behind, in words."""
        found: list[list[str]] = []
        reader = threading.Thread(target=lambda: found.append(self._missing()), daemon=True)
        reader.start()
        reader.join(2 * LATE * PULSE_S)  # a store whose host is stopped does not even time out
        return found[0] if found else [self._no_store]

    def _missing(self) -> list[str]:
        before = self._read()
        time.sleep(LATE * PULSE_S)
        after = self._read()
        if before is None or after is None:
            return [self._no_store]
        most = max((turns for _, turns, _ in after.values()), default=0)
        found = []
        for rank in (one for one in range(self.world) if one != self.rank):
            beats, turns, host = after.get(rank, (0, 0, "an unknown host"))
            if beats == before.get(rank, (0, 0, ""))[0]:
                found.append(f"rank {rank} on {host} shows no sign of life")
            elif turns < most:
                found.append(f"rank {rank} on {host} is at micro-batch {turns}, others at {most}")
        return found

    def _read(self) -> dict[int, tuple[int, int, str]] | None:
        """Beats, turns and host of each rank that has beaten; None without the store."""
        found = {}
        try:
            for rank in range(self.world):
                if self._store.check([f"pulse/{rank}"]):
                    beats, turns, host = self._store.get(f"pulse/{rank}").decode().split(" ", 2)
                    found[rank] = int(beats), int(turns), host
        except RuntimeError:
            return None
        return found


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
        torch.set_num_threads(max(1, cores() // local_ranks(os.environ)))
    timeout = timedelta(seconds=timeout_s)
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo",
        store=dist.PrefixStore("group", store),
        rank=rank,
        world_size=world,
        timeout=timeout,
    )
    pulse = Pulse(store, rank=rank, world=world, timeout_s=timeout_s) if world > 1 else None
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
    return Ranks(rank, world, local_rank, device, pulse)


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
