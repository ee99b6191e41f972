"""The loop: optimizer steps, evaluations, checkpoints; it opens nothing and builds nothing."""

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial

import numpy as np
import torch

from llm_mde import dist
from llm_mde.data.stream import noting, training_batches
from llm_mde.errors import ConfigError, DataError
from llm_mde.scoring.losses import LOSSES
from llm_mde.training import checkpoint, state
from llm_mde.training.engine import cosine, take_step, trained_state
from llm_mde.training.meter import Meter
from llm_mde.training.record import written
from llm_mde.training.run import Run, Standing
from llm_mde.training.stopping import DONE, REQUEUE, Asked
from llm_mde.training.system import System
from llm_mde.training.validate import validate

logger = logging.getLogger(__name__)


def fit(run: Run, standing: Standing, *, asked: Asked) -> int:
    """The loop: optimizer steps until the plan, patience or somebody ends it; the exit code.

    Args:
        run: everything built.
        standing: where to begin; kept up to date.
        asked: whether to stop, on this rank.

    Raises:
        ConfigError: too many gradients in a row, or a score, are not finite.
        DataError: a sample cannot be read.
    """
    if standing.step >= run.steps or standing.stale >= run.config.train.patience:
        logger.info("nothing to do: the run is complete at step %d", standing.step)
        return DONE
    meter = Meter(
        run.tracker,
        system=System(run.config.run_dir, run.engine.device),
        steps=run.steps,
        per_epoch=run.plan.batches,
        batch=run.plan.batch,
        spent=standing.seconds,
    )
    run.engine.train()
    for applied, lost in _global_batches(run, standing, meter):
        standing.count(applied=applied)
        # Loader processes, ranks and signals are not in step: a rank's word counts for all.
        stop = asked()
        stops, losses = dist.totals([int(stop is not None), len(lost)])
        stopping = stops > 0
        if losses:
            _go_on_without(lost, run, standing)
        if not applied:
            _skip(run, standing, meter, stopping=stopping)
        elif _pause(run, standing, meter, stopping=stopping):
            return DONE
        if stopping:
            logger.warning(
                "stopped as asked, saved at step %d; the same command goes on", standing.step
            )
            return REQUEUE if stop is None else stop
    raise AssertionError("the training stream is endless")


def _global_batches(
    run: Run, standing: Standing, meter: Meter
) -> Iterator[tuple[bool, dict[str, str]]]:
    """Train, global batch by global batch; endless.

    Of each: whether it moved the weights, and what is wrong with damaged samples of this rank.
    """
    config, engine, plan = run.config, run.engine, run.plan
    loss_of = LOSSES[config.train.loss]
    epoch, start = divmod(standing.batches, plan.batches)
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
        blanks=True,
    )
    lost: dict[str, str] = {}
    turn = standing.batches * (plan.batch // plan.micro_batch) + run.ranks.rank
    for batch in noting(meter.waited(batches), lost):
        torch.manual_seed(_dropout_seed(config.seed, turn))
        turn += run.ranks.world
        image, depth, valid = (
            batch[name].to(engine.device, non_blocking=True) for name in ("image", "depth", "valid")
        )
        if run.ranks.pulse:
            run.ranks.pulse.turns += 1
        loss = loss_of(engine(image), depth, valid)
        engine.backward(loss)
        run.statistics.take()
        meter.add(loss, batch["key"])
        if not engine.is_gradient_accumulation_boundary():  # ask before step(): step() moves on
            engine.step()
            continue
        share = cosine(standing.step, run.steps, warmup=config.optim.warmup)
        applied = take_step(engine, share=share)
        if applied and config.optim.ema is not None:
            state.move_mean(engine, decay=config.optim.ema)
        run.statistics.step(applied=applied)
        yield applied, lost
        lost.clear()


def _dropout_seed(seed: int, turn: int) -> int:
    # A function of the micro-batch: a resumed run, or other ranks, draw the same masks.
    return int(np.random.SeedSequence((seed, turn)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _go_on_without(lost: dict[str, str], run: Run, standing: Standing) -> None:
    """Name damaged samples of this rank, the first time each is met; collective.

    Raises:
        DataError: there were more than the configuration allows.
    """
    limit, known = run.config.data.max_lost, set(standing.lost)
    standing.lost = sorted(known | set(dist.gather(list(lost))))
    count = len(standing.lost)
    run.tracker.log({"train/lost_samples": float(count)}, standing.step)
    new = [why for key, why in lost.items() if key not in known]
    if count <= limit:
        for why in new:
            logger.warning("left out a sample: %s", why)
        return
    more = f"; with it {count} are lost, data.max_lost allows {limit}" if limit else ""
    dist.raise_together(DataError(new[0] + more) if new else None)


def _skip(run: Run, standing: Standing, meter: Meter, *, stopping: bool) -> None:
    """Name the samples of a global batch that moved nothing; save if asked to stop.

    Raises:
        ConfigError: there were too many in a row.
    """
    keys, limit = meter.drop(run.accumulation), run.config.train.max_skips
    if keys or run.ranks.rank == 0:
        why = f"a loss of samples {', '.join(keys)}" if keys else "the gradient"
        logger.warning("left out a batch after step %d: %s is not finite", standing.step, why)
    run.tracker.log({"train/skipped_steps": float(standing.skipped)}, standing.step)
    if standing.skips_in_row >= limit:
        raise ConfigError(
            f"{limit} batches in a row had a gradient that is not finite, the last after step "
            f"{standing.step}; look at the samples named above, lower optim.lr, or allow more by "
            "train.max_skips"
        )
    if stopping:
        with meter.paused():
            standing.seconds = meter.spent
            save(run, standing, best=False)


def _pause(run: Run, standing: Standing, meter: Meter, *, stopping: bool) -> bool:
    """Report, evaluate and save where the schedule says so; whether the run is over."""
    train, step = run.config.train, standing.step
    last = step >= run.steps
    if last or step % train.log_every == 0:
        meter.report(step, lr=max(run.engine.get_lr()), skipped=standing.skipped)
    with meter.paused():
        standing.seconds = meter.spent
        better = over = False
        due = stopping or (train.save_steps is not None and step % train.save_steps == 0)
        if last or step % (train.eval_every * run.plan.batches) == 0:
            meter.check(step)
            with state.averaged(run.engine, run.statistics.means):
                scores = validate(run, step)
                better = standing.judge(scores)
                if better:
                    # Before the checkpoint that calls it best: a crash in between repeats both.
                    _export(run, scores)
            over = last or standing.stale >= train.patience
            evaluations = step // (train.eval_every * run.plan.batches)
            due = due or better or over or evaluations % train.save_every == 0
        if due:
            meter.check(step)
            save(run, standing, best=better)
    if over and not last:
        logger.info("early stop: val/loss without a new minimum in %d evaluations", train.patience)
    return over


def save(run: Run, standing: Standing, *, best: bool) -> None:
    """A checkpoint of this step; collective."""
    checkpoint.save(
        run.config.run_dir / "checkpoints",
        partial(state.write, run.engine, run.statistics.means),
        step=standing.step,
        state={"standing": asdict(standing), "settings": run.settings},
        best=best,
        keep=run.config.train.keep,
    )


def _export(run: Run, scores: dict[str, float]) -> None:
    trained = trained_state(run.engine)
    config, folder = run.config, run.config.run_dir / "adapter"
    model = run.engine.module.config  # with the hub's commits that this run loaded

    def write() -> None:
        run.export(model, trained, folder, seed=config.seed, scores=scores, data=config.data)

    written(config.run_dir, write)
    run.tracker.artifacts(folder, "adapter")
