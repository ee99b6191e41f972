"""Evaluation of a run: scores of its validation split, and the same samples drawn each time."""

import logging
import math
from collections.abc import Callable

import torch
from torch import Tensor

from llm_mde import dist
from llm_mde.data.plan import Part
from llm_mde.data.stream import evaluation_batches, noting
from llm_mde.errors import ConfigError, DataError
from llm_mde.figures import Sample, sample_sheet
from llm_mde.scoring.evaluate import evaluate
from llm_mde.scoring.losses import LOSSES
from llm_mde.training.record import written
from llm_mde.training.run import Run

logger = logging.getLogger(__name__)


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
        blanks=True,
    )
    lost: dict[str, str] = {}
    result = evaluate(
        predict,
        noting(batches, lost),
        loss=LOSSES[config.train.loss],
        baselines=run.baselines,
        max_depth=config.model.max_depth,
        gather=dist.gather_rows,
    )
    dist.raise_together(DataError(next(iter(lost.values()))) if lost else None)
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
    path = run.config.run_dir / "figures" / f"val-{step:06d}.png"

    def draw() -> None:
        path.parent.mkdir(exist_ok=True)
        sample_sheet(rows, path)

    written(run.config.run_dir, draw)
    run.tracker.figure(path, "val", step)
