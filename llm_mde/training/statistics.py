"""Batch norm's running statistics: everything a rank changes outside the optimizer."""

import torch
from torch import Tensor, nn

from llm_mde import dist

STATISTICS = ("running_mean", "running_var")


def running_statistics(model: nn.Module) -> dict[str, Tensor]:
    """The float statistics of the batch norms, by name."""
    return {name: value for name, value in model.named_buffers() if name.endswith(STATISTICS)}


class StepStatistics:
    """Moves running statistics once an optimizer step, by the mean of its micro-batches.

    A batch norm by itself moves them in every forward pass of its rank, so that they would depend
    on how a global batch is shared out over ranks and accumulation.
    """

    def __init__(self, model: nn.Module, *, decay: float | None = None) -> None:
        """Of a model; with a decay, `means` are running means beside those of the weights."""
        named = running_statistics(model)
        self.buffers, self.decay = list(named.values()), decay
        self.means = {name: value.clone() for name, value in named.items()} if decay else {}
        self._begin()

    def _begin(self) -> None:
        self.before = [buffer.clone() for buffer in self.buffers]
        self.sums = [torch.zeros_like(buffer) for buffer in self.buffers]
        self.count = 0

    def take(self) -> None:
        """After a micro-batch's backward pass, which needs them: note what it made, and undo it."""
        torch._foreach_add_(self.sums, self.buffers)
        torch._foreach_copy_(self.buffers, self.before)
        self.count += 1

    def step(self, *, applied: bool) -> None:
        """After the optimizer's step: the mean over its micro-batches on all ranks; collective.

        Where the step was left out, they stay as they were.
        """
        if applied:
            torch._foreach_div_(self.sums, self.count)
            dist.average(self.sums)
            torch._foreach_copy_(self.buffers, self.sums)
            if self.decay:
                torch._foreach_lerp_(list(self.means.values()), self.buffers, 1 - self.decay)
        self._begin()
