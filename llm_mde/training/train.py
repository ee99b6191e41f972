"""One training run put together: shards, model, DeepSpeed, tracker, run folder."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from llm_mde import dist
from llm_mde.config import Config
from llm_mde.data.cache import DiskCache
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import Index, open_index
from llm_mde.data.kept import disk_cache
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import training_batches
from llm_mde.errors import ConfigError, MemoryFullError
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import settings_of
from llm_mde.scoring.baselines import Baselines, baselines_of
from llm_mde.tracking.tracker import Status
from llm_mde.training import checkpoint, state
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import Engine, micro_batch, resolve_ds, start
from llm_mde.training.folder import alone, check_same, claim, identities
from llm_mde.training.identity import identity, write_about
from llm_mde.training.loop import fit
from llm_mde.training.preflight import Need, check, memory_full
from llm_mde.training.record import open_record, written
from llm_mde.training.run import Export, Run, Standing
from llm_mde.training.statistics import StepStatistics
from llm_mde.training.stopping import DONE, LOST, Asked, stop_requests

logger = logging.getLogger(__name__)


def train(
    config: Config,
    ds_config: Path,
    *,
    resume: str,
    export: Export,
    deadline: float | None = None,
    dry_run: bool = False,
    changes: bool = False,
) -> int:
    """Train, evaluate, track and save one run; the exit code.

    Args:
        config: the run; `config.data.shards` must be set.
        ds_config: DeepSpeed's JSON.
        resume: `auto` (the run's newest good checkpoint, if any), `never`, or a checkpoint.
        export: writes the adapter folder at every new best.
        deadline: by `time.monotonic`: save at the next optimizer step and ask to be requeued.
        dry_run: stop before the first step; nothing is written.
        changes: settings of the optimizer, augmentation and dropout may differ from those that the
            run to go on with had.

    Raises:
        ConfigError: settings that contradict each other, DeepSpeed's JSON or the run to go on
            with; a loss that is not finite.
        DataError: no usable shards.
        CheckpointError: the named checkpoint, or all of them, are damaged.
        MemoryFullError: this rank's GPU has no room for all that training needs.
    """
    settings = config.train
    ranks = dist.join(timeout_s=settings.timeout, deterministic=settings.deterministic)
    try:
        if ranks.rank:
            logging.getLogger("llm_mde").setLevel(logging.WARNING)
        ds = read_ds(ds_config)
        if dry_run:
            disk_cache(config.data, dry_run=True)
            made = draft(config, ds, ranks=ranks, resume=resume, cache=None, changes=changes)
            _say_plan(made, ranks)
            if made.found:
                logger.info("goes on from %s, step %d", made.found, made.standing.step)
            logger.info("%s; nothing was written", preflight(made, ranks).line())
            return DONE
        with stop_requests(deadline) as asked, alone(config):
            run, standing = prepare(
                config, ds, ranks=ranks, resume=resume, export=export, changes=changes
            )
            return follow(run, standing, asked=asked)
    except torch.OutOfMemoryError as error:
        raise MemoryFullError(memory_full(error)) from error
    except RuntimeError as error:  # of torch, in a collective that others did not come to, perhaps
        if ranks.pulse and ranks.pulse.blame() and dist.failed_in_group(error):
            raise SystemExit(LOST) from error  # it is said who; where this rank waited says nothing
        raise
    finally:
        dist.leave(ranks)


def follow(run: Run, standing: Standing, *, asked: Asked) -> int:
    """`fit`, and the tracker told how it ended; the exit code."""
    status: Status = "failed"
    try:
        code = fit(run, standing, asked=asked)
        status = "finished" if code == DONE else "killed"
        return code
    except torch.OutOfMemoryError:
        raise  # this rank's own: others have nothing to do with it
    except RuntimeError:
        if run.ranks.pulse:
            run.ranks.pulse.blame()  # before others end, and seem to be missing
        raise
    finally:
        run.tracker.close(status)


@dataclass(frozen=True)
class Draft:
    """A run as far as it can be made without writing anything, and without DeepSpeed."""

    config: Config
    ds: dict[str, Any]
    """DeepSpeed's JSON, resolved."""
    found: Path | None
    """The checkpoint to go on from."""
    standing: Standing
    train_index: Index
    val_index: Index
    plan: Plan
    model: DepthModel
    steps: int
    settings: dict[str, Any]

    @property
    def shape(self) -> Shape:
        """What the network wants to see."""
        model = self.config.model
        return Shape(model.image_size, self.model.vit.interpolation, model.max_depth)


def draft(
    config: Config,
    ds: dict[str, Any],
    *,
    ranks: dist.Ranks,
    resume: str,
    cache: DiskCache | None,
    changes: bool = False,
) -> Draft:
    """Reads and checks everything that a run needs; collective, inside a process group.

    Arguments and errors as in `train`; `ds` is DeepSpeed's JSON as written.
    """
    found = checkpoint.choose(config.run_dir / "checkpoints", resume)
    before = checkpoint.read_state(found) if found else {}
    standing = _standing(config, before.get("standing"), world=ranks.world)
    micro, cuda = standing.micro_batch, ranks.device.type == "cuda"
    if config.data.shards is None:
        raise ConfigError(
            "data.shards: expected a folder written by 'llm-mde pack', got nothing; "
            "add --set data.shards=DIR"
        )
    folder = ShardFolder(config.data.shards, cache=cache)
    train_index = open_index(folder, config.data.train_split)
    val_index = open_index(folder, config.data.val_split)
    plan = Plan(
        train_index.counts,
        batch=config.train.batch,
        micro_batch=micro,
        window=config.data.shuffle_window,
        seed=config.seed,
    )
    plan.check_ranks(ranks.world)
    ds = resolve_ds(ds, config, micro=micro, world=ranks.world, cuda=cuda)
    steps = config.train.max_steps or config.train.epochs * plan.batches
    model = DepthModel(config.model, seed=config.seed)
    settings = settings_of(config, ds) | identities(model, train=train_index, val=val_index)
    if found:
        check_same(found, before["settings"], settings, changes=changes)
        state.read_weights(model, found)
    return Draft(config, ds, found, standing, train_index, val_index, plan, model, steps, settings)


def preflight(made: Draft, ranks: dist.Ranks) -> Need:
    """Rank 0 reads a batch and takes it through the model, forward and back; collective.

    Raises:
        ConfigError: as `check`.
        DataError: the first samples cannot be read.
    """
    config = made.config

    def one() -> Need:
        batches = training_batches(
            made.train_index,
            made.plan,
            made.shape,
            part=Part(),
            augmentation=config.data.augment,
            blanks=config.data.max_lost > 0,
        )
        batch = next(iter(batches))
        memory = dist.gpu_memory(ranks.device)
        return check(made.model, batch, config, ds=made.ds, ranks=ranks.world, memory=memory)

    return dist.on_rank_0(one)


def prepare(
    config: Config,
    ds: dict[str, Any],
    *,
    ranks: dist.Ranks,
    resume: str,
    export: Export,
    changes: bool = False,
) -> tuple[Run, Standing]:
    """Everything the loop uses, and where it begins; collective, inside a process group.

    Arguments and errors as in `draft` and `preflight`.
    """
    cache = disk_cache(config.data)
    made = draft(config, ds, ranks=ranks, resume=resume, cache=cache, changes=changes)
    found, standing = made.found, made.standing
    if not found:
        logger.info("%s", preflight(made, ranks).line())
    claim(config, made.ds, resume=resume, changes=changes)
    introduce(made, ranks)
    engine = start(made.model, config, ds=made.ds)
    statistics = StepStatistics(engine.module, decay=config.optim.ema)
    state.make_moments(engine, mean=config.optim.ema is not None)
    if found:
        if found.parent == config.run_dir / "checkpoints":
            checkpoint.point_again(found)
        state.restore(engine, statistics.means, found)
        logger.info("resuming from %s, step %d of %d", found, standing.step, made.steps)
    run = Run(
        config=config,
        ranks=ranks,
        engine=engine,
        statistics=statistics,
        plan=made.plan,
        train_index=made.train_index,
        val_index=made.val_index,
        shape=made.shape,
        baselines=dist.on_rank_0(lambda: _baselines(made.train_index, config)),
        tracker=open_record(config, made.ds, resume_step=standing.step if found else None),
        export=export,
        steps=made.steps,
        settings=made.settings,
    )
    _announce(run, standing)
    _say_plan(made, ranks)
    return run, standing


def introduce(made: Draft, ranks: dist.Ranks) -> None:
    """Leave in the run's folder what it is and what it runs on; collective."""
    folder, settings = made.config.run_dir, settings_of(made.config, made.ds)

    def write() -> None:
        tags = identity(settings, made.model, train=made.train_index, val=made.val_index)
        write_about(folder, tags, ranks=ranks)

    written(folder, write)


def _standing(config: Config, before: dict[str, Any] | None, *, world: int) -> Standing:
    if before is None:
        return Standing(micro_batch=micro_batch(config, world))
    return Standing(**before)  # another number of ranks changes the accumulation alone


def _baselines(train_index: Index, config: Config) -> Baselines:
    max_depth, skip = config.model.max_depth, config.data.max_lost > 0
    return baselines_of(train_index, max_depth=max_depth, skip_damaged=skip)


def _announce(run: Run, standing: Standing) -> None:
    engine, ranks = run.engine, run.ranks
    trainable, total = _sizes(engine)
    if not standing.step:
        run.tracker.log({"model/trainable": trainable, "model/parameters": total}, 0)
    logger.info(
        "%s trainable of %s parameters | ZeRO %d, %s | %d ranks on %s",
        f"{trainable:,}", f"{total:,}", engine.zero_optimization_stage(),
        "bf16" if engine.bfloat16_enabled() else "fp32", ranks.world, ranks.device.type,
    )  # fmt: skip


def _say_plan(made: Draft, ranks: dist.Ranks) -> None:
    plan = made.plan
    logger.info(
        "%d training samples | batch %d = micro_batch %d x accumulation %d x %d ranks | "
        "%d steps an epoch, %d steps in all, %d samples left out each epoch",
        plan.samples, plan.batch, plan.micro_batch, plan.batch // plan.micro_batch // ranks.world,
        ranks.world, plan.batches, made.steps, plan.samples - plan.batches * plan.batch,
    )  # fmt: skip


def _sizes(engine: Engine) -> tuple[int, int]:
    """Trainable and all parameters, whole even where ZeRO-3 keeps a piece of them."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in engine.parameters()]
    return sum(size for size, trains in sizes if trains), sum(size for size, _ in sizes)
