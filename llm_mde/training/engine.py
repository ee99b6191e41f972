"""A model under DeepSpeed: the JSON resolved against the configuration, AdamW, the cosine."""

import contextlib
import io
import json
import logging
import math
import sys
from collections.abc import Iterator
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor

from llm_mde import dist
from llm_mde.config import Config, OptimConfig
from llm_mde.errors import ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.training.statistics import running_statistics


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)


def _as_it_is(model: Any = None, **_: Any) -> Any:
    return (lambda one: one) if model is None else model  # as a decorator with words, or without


@contextlib.contextmanager
def _sparing() -> Iterator[None]:
    """Without MLflow and the compiler, two seconds of every rank.

    DeepSpeed imports them for its autotuner and for the kernels of Muon, which nobody here uses.
    """
    mlflow, compile_ = sys.modules.get("mlflow"), torch.compile
    sys.modules["mlflow"] = None  # type: ignore[assignment] # as if it were not installed
    torch.compile = _as_it_is
    try:
        yield
    finally:
        torch.compile = compile_
        del sys.modules["mlflow"]
        if mlflow is not None:
            sys.modules["mlflow"] = mlflow


# On import it warns that there is no GPU, and takes the stdout of that moment for its log.
with _no_warnings(), contextlib.redirect_stdout(sys.stderr), _sparing():
    import deepspeed
    import deepspeed.runtime.zero.muon.original_muon

# For inference by several ranks of a CPU, and a minute's work of a compiler at the first start.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

Engine: TypeAlias = deepspeed.DeepSpeedEngine

PEAK = "peak_lr"  # of a parameter group, of which the schedule takes a share


def micro_batch(config: Config, world: int) -> int:
    """Samples of one forward pass on one rank.

    Raises:
        ConfigError: the global batch cannot be shared out over the ranks.
    """
    train = config.train
    micro = train.micro_batch or train.batch // world
    if micro == 0 or train.batch % (micro * world):
        shared = f"train.micro_batch {micro} x {world} ranks"
        raise ConfigError(
            f"train.batch {train.batch} is not a multiple of {shared}; change one of the three"
        )
    return micro


def resolve_ds(
    ds: dict[str, Any], config: Config, *, micro: int, world: int, cuda: bool
) -> dict[str, Any]:
    """Fill in `"auto"` and missing keys from the configuration and the run's micro-batch.

    Raises:
        ConfigError: a key set in both with two values (names both), or an unusable precision.
    """
    ours = {
        "train_batch_size": ("train.batch", config.train.batch),
        "train_micro_batch_size_per_gpu": ("train.micro_batch", micro),
        "gradient_accumulation_steps": (
            "train.batch / (train.micro_batch x ranks)",
            config.train.batch // (micro * world),
        ),
        "gradient_clipping": ("optim.clip", config.optim.clip),
    }
    merged = json.loads(json.dumps(ds))
    for key, (name, value) in ours.items():
        if merged.get(key, "auto") not in ("auto", value):
            raise ConfigError(
                f"ds_config: {key} is {merged[key]}, but {name} is {value} "
                f'(micro_batch {micro}, {world} ranks); set one of them or write "auto"'
            )
        merged[key] = value
    if merged.get("fp16", {}).get("enabled"):
        raise ConfigError("ds_config: fp16.enabled is true, expected bf16 (or neither)")
    bf16 = merged.setdefault("bf16", {"enabled": "auto"})
    if bf16.get("enabled", "auto") == "auto":
        bf16["enabled"] = cuda  # bf16 on a CPU without bf16 units is ten times slower than fp32
    stage = merged.setdefault("zero_optimization", {"stage": 0}).get("stage", 0)
    if stage == 3 and config.train.compile:
        raise ConfigError(
            "train.compile: expected ZeRO 0, 1 or 2, got 3, which fetches weights inside the "
            "network; take another ds_config or leave it out"
        )
    if bf16["enabled"] and stage:
        merged.setdefault("data_types", {}).setdefault("grad_accum_dtype", "fp32")
    merged.setdefault("steps_per_print", 2**31 - 1)
    merged.setdefault("zero_force_ds_cpu_optimizer", False)
    for key in _still_auto(merged):
        raise ConfigError(
            f'ds_config: {key} is "auto", which nothing decides; write a value, or leave it out '
            "for DeepSpeed's default"
        )
    return merged


def _still_auto(tree: dict[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        if value == "auto":
            yield prefix + key
        elif isinstance(value, dict):
            yield from _still_auto(value, f"{prefix}{key}.")


def cosine(step: int, steps: int, *, warmup: int = 0) -> float:
    """Share of the peak rate after `step` optimizer steps: half a wave from 1 to 0.

    Before it the share rises in `warmup` equal parts, the last of which is the peak.
    """
    if step < warmup:
        return (step + 1) / warmup
    done, whole = min(step, steps) - warmup, max(steps - warmup, 1)
    return 0.5 * (1 + math.cos(math.pi * done / whole))


def parameter_groups(model: DepthModel, optim: OptimConfig) -> list[dict[str, Any]]:
    """AdamW groups by part of the model and weight decay; every trainable parameter is in one."""
    scale = {"prototypes": optim.lr_scale.prototypes, "head": optim.lr_scale.head}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    weights = dict(model.named_parameters())
    for name, (part, decays) in model.groups().items():
        group = {
            "params": [],
            "name": part if decays else f"{part}, no decay",
            "lr": optim.lr * scale.get(part, 1.0),
            PEAK: optim.lr * scale.get(part, 1.0),
            "weight_decay": optim.weight_decay if decays else 0.0,
        }
        groups.setdefault((part, decays), group)["params"].append(weights[name])
    return list(groups.values())


class GuardedAdamW(torch.optim.AdamW):
    """AdamW that leaves a step out where a gradient is not finite, as DeepSpeed's wrappers do.

    DeepSpeed wraps none around AdamW in fp32 without ZeRO. Gradients are averaged over ranks by
    then, so that all ranks find the same.
    """

    stepped = True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override] # no closure here
        """One step, if all gradients are finite."""
        weights = [weight for group in self.param_groups for weight in group["params"]]
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        finite = [gradient.isfinite().all() for gradient in gradients]
        self.stepped = bool(torch.stack(finite).all()) if finite else True
        if self.stepped:
            super().step()


def start(model: DepthModel, config: Config, *, ds: dict[str, Any]) -> Engine:
    """The model under DeepSpeed with torch's AdamW; collective.

    Raises:
        ConfigError: DeepSpeed does not know a key of its JSON or refuses its value.
    """
    optim, stage = config.optim, ds["zero_optimization"].get("stage", 0)
    plain = not (stage or ds["bf16"]["enabled"])
    if config.train.compile:
        _compile(model)
    optimizer = (GuardedAdamW if plain else torch.optim.AdamW)(
        parameter_groups(model, optim), lr=optim.lr, betas=optim.betas, eps=optim.eps
    )
    # M E sums over the whole vocabulary: its partial sums must not be rounded to bf16.
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    with _no_warnings(), contextlib.redirect_stdout(io.StringIO()):  # the op it builds, the GPU
        deepspeed.init_distributed(dist_init_required=False, verbose=False)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # tables of memory, on every rank
            engine, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=ds,
                dist_init_required=False,
            )
        groups = (engine.data_parallel_group, engine.seq_data_parallel_group)
        dist.limit_waiting(groups, timeout_s=config.train.timeout)
    except ValidationError as error:
        problems = [f"{_dotted(item['loc'])}: {item['msg']}" for item in error.errors()]
        raise ConfigError(f"ds_config: {error.title}: {'; '.join(problems)}") from error
    return engine


def _compile(model: DepthModel) -> None:
    from torch._inductor import config as inductor  # seconds, for those who compile

    inductor.fallback_random = True  # dropout draws what it draws without
    model.compile()


def take_step(engine: Engine, *, share: float) -> bool:
    """AdamW's step at a boundary, at `share` of the peak rates; whether it was made; collective.

    Where a gradient is not finite on some rank, no rank steps: neither weights nor moments change.
    """
    for group in engine.optimizer.param_groups:
        group["lr"] = group[PEAK] * share
    engine.step()
    if isinstance(engine.optimizer, GuardedAdamW):
        return engine.optimizer.stepped
    return bool(engine.was_step_applied())


def _dotted(place: tuple[int | str, ...]) -> str:
    return ".".join(map(str, place))


def whole(parameter: Tensor, *, changed: bool = False) -> Any:
    """All of a parameter, also of one of which ZeRO 3 keeps a piece, inside `with`; collective.

    changed: to a new value, the same on all ranks.
    """
    split = hasattr(parameter, "ds_id")
    source = 0 if changed else None
    return deepspeed.zero.GatheredParameters([parameter], modifier_rank=source, enabled=split)


def trained_state(engine: Engine) -> dict[str, Tensor]:
    """Trainable parameters, as the forward pass sees them, and batch-norm statistics; collective.

    New fp32 tensors on the CPU, whole on rank 0; other ranks get none.
    """
    state: dict[str, Tensor] = {}
    for name, parameter in engine.module.named_parameters():
        if parameter.requires_grad:
            with whole(parameter):  # one at a time
                if dist.rank() == 0:
                    state[name] = parameter.detach().float().cpu().clone()
    if dist.rank() == 0:
        for name, buffer in running_statistics(engine.module).items():
            state[name] = buffer.cpu().clone()
    return state
