"""The loop: optimizer steps, evaluations, checkpoints; it opens nothing and builds nothing."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from llm_mde import dist
from llm_mde.config import Config, DataConfig, ModelConfig
from llm_mde.data.index import Index
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import Shape, evaluation_batches, training_batches
from llm_mde.errors import ConfigError, DataError
from llm_mde.figures import Sample, sample_sheet
from llm_mde.scoring.baselines import Baselines
from llm_mde.scoring.evaluate import evaluate
from llm_mde.scoring.losses import LOSSES
from llm_mde.tracking.tracker import Tracker
from llm_mde.training import checkpoint, state
from llm_mde.training.engine import Engine, trained_state
from llm_mde.training.meter import Meter
from llm_mde.training.statistics import StepStatistics

logger = logging.getLogger(__name__)

# Exit codes: complete; saved after SIGTERM or SIGUSR1, so requeue it; saved after Ctrl-C.
DONE, REQUEUE, INTERRUPTED = 0, 75, 130


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
    """Optimizer steps so far; with the plan, the cursor in the samples."""
    micro_batch: int = 0
    best_abs_rel: float = float("inf")
    best_loss: float = float("inf")
    stale: int = 0
    """Evaluations since the last minimum of `val/loss`."""
    best_scores: dict[str, float] = field(default_factory=dict)
    seconds: float = 0.0
    """Spent in training steps, evaluations and saves left out."""

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
    def part(self) -> Part:
        """This rank's share of the batches."""
        return Part(self.ranks.rank, self.ranks.world)


def fit(run: Run, standing: Standing, *, stop: list[int]) -> int:
    """The loop: optimizer steps until the plan, patience or a signal ends it; the exit code.

    Args:
        run: everything built.
        standing: where to begin; kept up to date.
        stop: exit codes put there by signal handlers; acted upon at the next optimizer step.

    Raises:
        ConfigError: a loss is not finite.
        DataError: a sample cannot be read.
    """
    if standing.step >= run.steps or standing.stale >= run.config.train.patience:
        logger.info("nothing to do: the run is complete at step %d", standing.step)
        return DONE
    meter = Meter(
        run.tracker,
        device=run.engine.device,
        steps=run.steps,
        batch=run.plan.batch,
        spent=standing.seconds,
    )
    run.engine.train()
    for stepped in _micro_batches(run, standing, meter):
        if not stepped:
            continue
        standing.step += 1
        # Loader processes, ranks and signals are not in step: a rank's word counts for all.
        stopping = not dist.all_agree(not stop)
        if _pause(run, standing, meter, stopping=stopping):
            return DONE
        if stopping:
            logger.warning(
                "stopped by a signal, saved at step %d; start again to go on", standing.step
            )
            return stop[0] if stop else REQUEUE
    raise AssertionError("the training stream is endless")


def _micro_batches(run: Run, standing: Standing, meter: Meter) -> Iterator[bool]:
    """Train, micro-batch by micro-batch; whether each ended an optimizer step. Endless."""
    config, engine, plan = run.config, run.engine, run.plan
    loss_of = LOSSES[config.train.loss]
    epoch, start = divmod(standing.step, plan.batches)
    batches = training_batches(
        run.train_index,
        plan,
        run.shape,
        part=run.part,
        augmentation=config.data.augment,
        workers=config.data.workers,
        cache=config.data.cache,
        filled=config.data.depth == "filled",
        epoch=epoch,
        start=start,
    )
    turn = standing.step * (plan.batch // plan.micro_batch) + run.ranks.rank
    statistics = StepStatistics(engine.module)
    for batch in batches:
        torch.manual_seed(_dropout_seed(config.seed, turn))
        turn += run.ranks.world
        image, depth, valid = (
            batch[name].to(engine.device, non_blocking=True) for name in ("image", "depth", "valid")
        )
        loss = loss_of(engine(image), depth, valid)
        engine.backward(loss)
        statistics.take()
        meter.add(loss, batch["key"])
        stepped = engine.is_gradient_accumulation_boundary()  # ask before step(): step() moves on
        engine.step()
        if stepped:
            statistics.step()
        yield stepped


def _dropout_seed(seed: int, turn: int) -> int:
    # A function of the micro-batch: a resumed run, or other ranks, draw the same masks.
    return int(np.random.SeedSequence((seed, turn)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _pause(run: Run, standing: Standing, meter: Meter, *, stopping: bool) -> bool:
    """Report, evaluate and save where the schedule says so; whether the run is over."""
    train, step = run.config.train, standing.step
    last = step >= run.steps
    if last or step % train.log_every == 0:
        meter.report(step, lr=max(run.engine.get_lr()), skipped=run.engine.skipped_steps)
    with meter.paused():
        standing.seconds = meter.spent
        better = over = False
        due = stopping or (train.save_steps is not None and step % train.save_steps == 0)
        if last or step % (train.eval_every * run.plan.batches) == 0:
            meter.check(step)
            scores = validate(run, step)
            better = standing.judge(scores)
            over = last or standing.stale >= train.patience
            evaluations = step // (train.eval_every * run.plan.batches)
            due = due or better or over or evaluations % train.save_every == 0
        if due:
            meter.check(step)
        if better:
            # Before the checkpoint that calls it best: a crash in between repeats both.
            _export(run, scores)
        if due:
            save(run, standing, best=better)
    if over and not last:
        logger.info("early stop: val/loss without a new minimum in %d evaluations", train.patience)
    return over


def save(run: Run, standing: Standing, *, best: bool) -> None:
    """A checkpoint of this step; collective."""
    checkpoint.save(
        run.config.run_dir / "checkpoints",
        partial(state.write, run.engine),
        step=standing.step,
        state={"standing": asdict(standing), "settings": run.settings},
        best=best,
        keep=run.config.train.keep,
    )


def _export(run: Run, scores: dict[str, float]) -> None:
    trained = trained_state(run.engine)
    if run.ranks.rank == 0:
        folder = run.config.run_dir / "adapter"
        config = run.config
        model = run.engine.module.config  # with the hub's commits that this run loaded
        run.export(model, trained, folder, seed=config.seed, scores=scores, data=config.data)
        run.tracker.artifacts(folder, "adapter")
    dist.barrier()


def validate(run: Run, step: int) -> dict[str, float]:
    """Scores of the validation split under every protocol, fixed samples drawn; collective.

    Raises:
        ConfigError: a score is not finite.
        DataError: no pixel has a valid depth.
    """
    engine, config = run.engine, run.config
    engine.eval()

    @torch.no_grad()
    def predict(image: Tensor) -> Tensor:
        return engine(image.to(engine.device)).float().exp()

    batches = evaluation_batches(
        run.val_index,
        run.shape,
        batch=run.plan.micro_batch,
        part=run.part,
        workers=config.data.workers,
    )
    result = evaluate(
        predict,
        batches,
        loss=LOSSES[config.train.loss],
        baselines=run.baselines,
        max_depth=config.model.max_depth,
        gather=dist.gather_rows,
    )
    if not result.images:
        raise DataError(
            f"{run.val_index.folder}, split {run.val_index.split}: no pixel with a valid depth"
        )
    scores = result.named("val")
    for name in ("val/loss", "val/abs_rel"):
        if not math.isfinite(scores.get(name, math.nan)):
            raise ConfigError(
                f"{name} is not finite at step {step}; lower optim.lr and start over with "
                "--resume never"
            )
    if config.train.figures:
        _draw(run, predict, step)
    engine.train()
    run.tracker.log({"epoch": step / run.plan.batches, **scores}, step)
    logger.info(
        "step %d | val loss %.4f | abs_rel %.4f (mean map %.4f, constant %.4f) | "
        "rmse %.3f m | delta1 %.3f",
        step, scores["val/loss"], scores["val/abs_rel"], scores["val_mean_map/abs_rel"],
        scores["val_constant/abs_rel"], scores["val/rmse"], scores["val/delta1"],
    )  # fmt: skip
    return scores


def _draw(run: Run, predict: Callable[[Tensor], Tensor], step: int) -> None:
    """The same validation samples at each evaluation; all ranks predict (ZeRO-3), rank 0 draws."""
    chosen = run.val_index.spread(run.config.train.figures)
    rows = []
    for batch in evaluation_batches(chosen, run.shape, batch=1, part=Part()):
        image = batch["image"][0].permute(1, 2, 0)  # (h, w, 3)
        depth, valid = batch["depth"][0, 0], batch["valid"][0, 0]
        pred = predict(batch["image"])[0, 0].cpu()
        row = Sample(image.numpy(), depth.numpy(), valid.numpy(), pred.numpy(), batch["key"][0])
        rows.append(row)
    if run.ranks.rank == 0:
        path = run.config.run_dir / "figures" / f"val-{step:06d}.png"
        path.parent.mkdir(exist_ok=True)
        sample_sheet(rows, path)
        run.tracker.figure(path, "val", step)
