"""What training changes, whole and belonging to no rank: weights, AdamW's moments, statistics.

DeepSpeed keeps pieces of it on each rank, whose shape depends on stage and number of ranks, and
saves them as pickled code. Here every tensor is whole and fp32 in safetensors, so that any stage
and any number of ranks can go on from it, to the last bit where both stay as they were.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from llm_mde import dist
from llm_mde.training.engine import Engine, deepspeed, whole
from llm_mde.training.statistics import running_statistics

WEIGHTS, MOMENTS = "weights", ("exp_avg", "exp_avg_sq")
MEAN = "ema"  # kept where AdamW keeps its moments, and shared out, offloaded and saved with them
SUFFIX = ".safetensors"
STEPS = "adam_steps"


def write(engine: Engine, means: dict[str, Tensor], folder: Path) -> None:
    """Write `weights`, with batch-norm statistics, and a file for each moment; collective.

    means: running means of the statistics, where there is one of the weights.

    Raises:
        OSError: rank 0 can't write; raised on every rank.
    """
    about = {STEPS: str(_adam_steps(engine))}
    for kind in _kinds(engine):
        kept = {}
        for name, weight in _trainable(engine.module):
            value = _whole(engine, weight, kind)  # one at a time, and on rank 0's CPU alone
            if dist.rank() == 0:
                kept[name] = value.cpu().contiguous()
        if kind == WEIGHTS:
            statistics = running_statistics(engine.module)
            kept |= {name: value.cpu() for name, value in statistics.items()}
        if kind == MEAN:
            kept |= {name: value.cpu() for name, value in means.items()}
        dist.on_rank_0(partial(_save, kept, folder / f"{kind}{SUFFIX}", about))


def _save(tensors: dict[str, Tensor], path: Path, about: dict[str, str]) -> None:
    try:
        save_file(tensors, path, about)
    except SafetensorError as error:  # its own kind, also for a full disk
        raise OSError(f"{path.name}: {error}") from error


def read_weights(model: nn.Module, folder: Path) -> None:
    """Weights and batch-norm statistics into a model that DeepSpeed has not taken over yet."""
    unknown = model.load_state_dict(load_file(folder / f"{WEIGHTS}{SUFFIX}"), strict=False)
    assert not unknown.unexpected_keys, unknown.unexpected_keys


def restore(engine: Engine, means: dict[str, Tensor], folder: Path) -> None:
    """Masters, moments and means into the engine of a model that has read its weights.

    DeepSpeed made the masters from weights that it had rounded to bf16.
    """
    for kind in _kinds(engine):
        with safe_open(folder / f"{kind}{SUFFIX}", framework="pt") as file:
            for name, weight in _trainable(engine.module):
                _put(engine, weight, kind, file.get_tensor(name))
            if kind == MEAN:
                for name, value in means.items():
                    value.copy_(file.get_tensor(name))
            steps = int(file.metadata()[STEPS])
    for state in _adam(engine).state.values():
        state["step"].fill_(steps)


def _kinds(engine: Engine) -> list[str]:
    """The files of a checkpoint."""
    return [WEIGHTS, *MOMENTS] + [MEAN] * keeps_mean(engine)


def _trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    return ((name, weight) for name, weight in model.named_parameters() if weight.requires_grad)


def _adam(engine: Engine) -> torch.optim.Optimizer:
    """The AdamW inside ZeRO's optimizer, if there is one around it."""
    return getattr(engine.optimizer, "optimizer", engine.optimizer)


def make_moments(engine: Engine, *, mean: bool = False) -> None:
    """AdamW's state as it stands before the first step; before `write` and `restore`.

    mean: with a running mean of the weights, which begins as they are.

    AdamW makes it in its first step. DeepSpeed's ZeRO 1 and 2 note which piece of it is whose after
    the step of the first of several parameter groups, and so lose those of all others.
    """
    adam = _adam(engine)
    for master in _masters(engine):
        if not adam.state[master]:  # bf16 without ZeRO has made it
            moments = {name: torch.zeros_like(master) for name in MOMENTS}
            adam.state[master] = {"step": torch.tensor(0.0), **moments}
        if mean:
            adam.state[master][MEAN] = master.detach().clone()
    link = getattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state", None)
    if link is not None:  # ZeRO 1 and 2
        link()


def _masters(engine: Engine) -> list[Tensor]:
    """What AdamW steps on this rank; ZeRO 3 shows it one of its own at a time."""
    shown = [master for group in _adam(engine).param_groups for master in group["params"]]
    return getattr(engine.optimizer, "fp32_partitioned_groups_flat", shown)


def keeps_mean(engine: Engine) -> bool:
    """Whether there is a running mean of the weights."""
    return any(MEAN in state for state in _adam(engine).state.values())


@torch.no_grad()
def move_mean(engine: Engine, *, decay: float) -> None:
    """After a step: mean = decay mean + (1 - decay) weights (Polyak and Juditsky 1992)."""
    for master in _masters(engine):
        _adam(engine).state[master][MEAN].lerp_(master, 1 - decay)


@contextmanager
def averaged(engine: Engine, means: dict[str, Tensor]) -> Iterator[None]:
    """Meanwhile the network has running means as its weights, if there are any; collective.

    means: those of the batch norms' statistics.
    """
    weights = [weight for _, weight in _trainable(engine.module)] if keeps_mean(engine) else []
    kept = [_exchange(weight, _whole(engine, weight, MEAN)) for weight in weights]
    statistics = running_statistics(engine.module)
    buffers = [_exchange(statistics[name], value) for name, value in means.items()]
    try:
        yield
    finally:
        for weight, value in zip(weights, kept, strict=True):
            _exchange(weight, value)
        for name, value in zip(means, buffers, strict=True):
            _exchange(statistics[name], value)


@torch.no_grad()
def _exchange(weight: Tensor, value: Tensor) -> Tensor:
    """Put another value in, on all ranks; the one before."""
    with whole(weight, changed=True):
        before = weight.detach().to("cpu", copy=True)  # whole, also of what ZeRO 3 shares out
        weight.copy_(value)
    return before


def _adam_steps(engine: Engine) -> int:
    steps = {int(state["step"]) for state in _adam(engine).state.values()}
    assert len(steps) == 1, f"parameters at different steps: {steps}"
    return steps.pop()


def _whole(engine: Engine, weight: nn.Parameter, kind: str) -> Tensor:
    """A master or a moment; collective."""
    if _shared_out(weight):
        if kind == WEIGHTS:
            return deepspeed.utils.safe_get_full_fp32_param(weight)
        return deepspeed.utils.safe_get_full_optimizer_state(weight, kind)
    master = _master(engine, weight)
    return master.detach() if kind == WEIGHTS else _adam(engine).state[master][kind]


def _put(engine: Engine, weight: nn.Parameter, kind: str, value: Tensor) -> None:
    if not _shared_out(weight):
        _whole(engine, weight, kind).copy_(value)
    elif hasattr(weight, "ds_id"):
        _put_piece(weight, kind, value)
    elif kind == WEIGHTS:
        deepspeed.utils.safe_set_full_fp32_param(weight, value)
    else:
        deepspeed.utils.safe_set_full_optimizer_state(weight, value, kind)


def _shared_out(weight: nn.Parameter) -> bool:
    """Whether ranks have pieces of it: under ZeRO 3 (the first name), or 1 and 2."""
    return hasattr(weight, "ds_id") or hasattr(weight, "_hp_mapping")


def _master(engine: Engine, weight: nn.Parameter) -> Tensor:
    """What AdamW steps without ZeRO: the weight itself, or the master of a bf16 weight."""
    masters = getattr(engine.optimizer, "fp32_groups", None)
    if masters is None:
        return weight
    weights = engine.optimizer.fp16_groups
    pairs = (
        pair for groups in zip(weights, masters, strict=True) for pair in zip(*groups, strict=True)
    )
    return next(master for low, master in pairs if low is weight)


def _put_piece(weight: Any, kind: str, value: Tensor) -> None:
    """This rank's piece under ZeRO-3.

    DeepSpeed's own cutting fails where a weight has fewer numbers than there are ranks.
    """
    size = weight.ds_tensor.numel()
    padded = value.new_zeros(size * dist.world())
    padded[: value.numel()] = value.flatten()
    piece = padded[size * dist.rank() :][:size]
    if kind == WEIGHTS:
        deepspeed.utils.safe_set_local_fp32_param(weight, piece)
    else:
        deepspeed.utils.safe_set_local_optimizer_state(weight, piece, kind)
