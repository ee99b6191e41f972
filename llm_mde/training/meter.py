"""Progress of the training loop: loss, rate, memory, ETA."""

import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from llm_mde import dist
from llm_mde.errors import ConfigError
from llm_mde.launcher import peak_memory
from llm_mde.progress import duration
from llm_mde.tracking.tracker import Tracker
from llm_mde.training.system import System

logger = logging.getLogger(__name__)

Batch = dict[str, Any]
NUMBERS = {
    "train/lr": ("", "", "largest learning rate of any part"),
    "train/img_per_s": ("images/s", "higher", "over all ranks; evaluations and saves left out"),
    "train/data_wait": (
        "share",
        "lower",
        "of that time spent waiting for samples, mean over ranks; a GPU may be busy meanwhile",
    ),
    "train/memory_gb": ("GiB", "lower", "most that rank 0 held: allocated on a GPU, else resident"),
    "train/seconds": ("s", "", "of training so far; evaluations and saves left out"),
}
"""What a report records beside loss and machine: name -> unit, which way is better, meaning."""


class Meter:
    """Losses, rate and memory between two progress lines; waits for the device only to report."""

    def __init__(
        self,
        tracker: Tracker,
        *,
        system: System,
        steps: int,
        per_epoch: int,
        batch: int,
        spent: float = 0.0,
    ) -> None:
        """Begins to count; `spent` seconds of training lie behind a run that goes on."""
        self.tracker, self.system = tracker, system
        self.steps, self.per_epoch, self.batch = steps, per_epoch, batch
        self.before = spent
        self._restart()

    @property
    def spent(self) -> float:
        """Seconds of training since the run began, evaluations and saves left out."""
        return self.before + self.seconds

    def _restart(self) -> None:
        self.began, self.seconds, self.waiting = time.monotonic(), 0.0, 0.0
        self.losses: list[Tensor] = []
        self.keys: list[list[str]] = []

    def waited(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The batches; counts the time that each is waited for."""
        turns = iter(batches)
        while True:
            began = time.monotonic()
            batch = next(turns, None)
            self.waiting += time.monotonic() - began
            if batch is None:
                return
            yield batch

    def add(self, loss: Tensor, keys: list[str]) -> None:
        """Count one micro-batch of this rank: its loss, still on the device, and its samples."""
        self.losses.append(loss.detach())
        self.keys.append(keys)

    def drop(self, count: int) -> list[str]:
        """Take the last `count` micro-batches back; the samples of those with a loss not finite."""
        lost = zip(self.losses[-count:], self.keys[-count:], strict=True)
        keys = [key for loss, mine in lost if not loss.isfinite() for key in mine]
        del self.losses[-count:], self.keys[-count:]
        return keys

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Keep evaluations and saves out of the training rate."""
        self.seconds += time.monotonic() - self.began
        yield
        self.began = time.monotonic()

    def check(self, step: int) -> None:
        """Stop a run that no longer learns, before it is reported or saved; collective.

        Raises:
            ConfigError: a loss since the last report is not finite; names its samples.
        """
        finite = torch.stack(self.losses).isfinite().tolist() if self.losses else []
        reason = "on another rank"
        if not all(finite):
            reason = "samples " + ", ".join(self.keys[finite.index(False)])
        if not dist.all_agree(all(finite)):
            raise ConfigError(
                f"train/loss is not finite at or before step {step}: {reason}; lower optim.lr "
                "and start over with --resume never"
            )

    def report(self, step: int, *, lr: float, skipped: int) -> None:
        """One progress line, and the same numbers to the tracker; collective.

        Args:
            step: optimizer steps so far.
            lr: largest learning rate of any part.
            skipped: batches left out so far because of a gradient that is not finite.

        Raises:
            ConfigError: as `check`.
        """
        self.check(step)
        mine = torch.stack(self.losses).double().sum().cpu()
        samples = sum(map(len, self.keys))
        passed = self.seconds + time.monotonic() - self.began
        wait = self.waiting / max(passed, 1e-9)
        rest = torch.tensor([len(self.losses), wait], dtype=torch.float64)
        sums = dist.all_reduce_sum(torch.stack([mine, *rest]))
        loss = (sums[0] / sums[1]).item()
        self.seconds += time.monotonic() - self.began
        rate = samples * dist.world() / self.seconds
        numbers = {
            "epoch": step / self.per_epoch,
            "train/loss": loss,
            "train/lr": lr,
            "train/img_per_s": rate,
            "train/data_wait": (sums[2] / dist.world()).item(),
            "train/memory_gb": _peak(self.system.device) / 2**30,
            "train/seconds": self.spent,
            **self.system.read(),
        }
        extra = ""
        if skipped:
            numbers["train/skipped_steps"] = float(skipped)
            extra = f" | {skipped} batches left out"
        self.tracker.log(numbers, step)
        logger.info(
            "step %d/%d | loss %.3f | lr %.2g | %.1f img/s%s | %.1f GB | ETA %s",
            step, self.steps, loss, lr, rate, extra, numbers["train/memory_gb"],
            duration((self.steps - step) * self.batch / rate),
        )  # fmt: skip
        self.before = self.spent
        self._restart()


def _peak(device: torch.device) -> int:
    """Most bytes this process has held: allocated on a GPU, resident beside a CPU."""
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory()
