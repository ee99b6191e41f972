"""A run: everything it uses, and where it stands."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from llm_mde import dist
from llm_mde.config import Config, DataConfig, ModelConfig
from llm_mde.data.index import Index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.scoring.baselines import Baselines
from llm_mde.tracking.tracker import Tracker
from llm_mde.training.engine import Engine
from llm_mde.training.statistics import StepStatistics


class Export(Protocol):
    """Writes what users share; `inference.adapter.save`, given by the command."""

    def __call__(
        self,
        config: ModelConfig,
        state: dict[str, Tensor],
        folder: Path,
        *,
        seed: int,
        scores: dict[str, float],
        data: DataConfig | None = None,
    ) -> None:
        """Called on rank 0 at every new best."""


@dataclass
class Standing:
    """Where a run stands: what a checkpoint keeps beside DeepSpeed's own state."""

    step: int = 0
    """Optimizer steps applied so far."""
    skipped: int = 0
    """Global batches left out, as their gradient was not finite."""
    skips_in_row: int = 0
    """Of those, the last without an applied step between them."""
    micro_batch: int = 0
    lost: list[str] = field(default_factory=list)
    """Keys of damaged samples met so far, on all ranks."""
    best_abs_rel: float = float("inf")
    best_loss: float = float("inf")
    stale: int = 0
    """Evaluations since the last minimum of `val/loss`."""
    best_scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Spent in training steps, evaluations and saves left out."""

    @property
    def batches(self) -> int:
        """Global batches read so far: with the plan, the cursor in the samples."""
        return self.step + self.skipped

    def count(self, *, applied: bool) -> None:
        """Take in the end of a global batch."""
        self.step += applied
        self.skipped += not applied
        self.skips_in_row = 0 if applied else self.skips_in_row + 1

    def judge(self, scores: dict[str, float]) -> bool:
        """Take in an evaluation; whether it is the best so far."""
        self.stale = 0 if scores["val/loss"] < self.best_loss else self.stale + 1
        self.best_loss = min(self.best_loss, scores["val/loss"])
        better = scores["val/abs_rel"] < self.best_abs_rel
        if better:
            self.best_abs_rel, self.best_scores = scores["val/abs_rel"], scores
        return better


@dataclass(frozen=True)
class Run:
    """Everything the loop uses, built once."""

    config: Config
    ranks: dist.Ranks
    engine: Engine
    statistics: StepStatistics
    plan: Plan
    train_index: Index
    val_index: Index
    shape: Shape
    baselines: Baselines
    tracker: Tracker
    export: Export
    steps: int
    settings: dict[str, Any]
    """What must be the same when the run goes on: dotted path to JSON value."""

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank in a global batch."""
        return self.plan.batch // self.plan.micro_batch // self.ranks.world

    @property
    def part(self) -> Part:
        """This rank's share of the batches."""
        return Part(self.ranks.rank, self.ranks.world)
