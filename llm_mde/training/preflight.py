"""Before the first step: does every trainable weight learn, is there memory and disk enough?"""

import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from llm_mde.config import Config
from llm_mde.errors import ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.scoring.losses import LOSSES

logger = logging.getLogger(__name__)

FP32 = 4
GB = 2**30


@dataclass(frozen=True)
class Need:
    """Bytes that a rank holds in a step, and that a checkpoint takes on disk.

    An estimate from below: buffers of collectives, of kernels and of the allocator come on top,
    under ZeRO-3 gathered weights, too.
    """

    weights: int
    gradients: int
    """When there are most of them."""
    kept: int
    """Of them, what lies there in the last forward pass of a step."""
    optimizer: int
    activations: int
    host: int
    """Offloaded to the host's memory."""
    checkpoint: int

    @property
    def memory(self) -> int:
        """Of a rank, at its peak: activations go as gradients come."""
        return self.weights + self.optimizer + max(self.gradients, self.kept + self.activations)

    def line(self) -> str:
        """For people."""
        parts = ("weights", "gradients", "optimizer", "activations")
        shares = ", ".join(f"{name} {getattr(self, name) / GB:.2f}" for name in parts)
        host = f" and {self.host / GB:.2f} GB of the host's memory" if self.host else ""
        return (
            f"a rank holds at least {self.memory / GB:.2f} GB ({shares}){host}; "
            f"a checkpoint takes {self.checkpoint / GB:.2f} GB"
        )


def need(
    sizes: Mapping[bool, int],
    *,
    saved_per_image: int,
    ds: Mapping[str, Any],
    ranks: int,
    mean: bool = False,
) -> Need:
    """What a run needs under DeepSpeed's JSON.

    Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5: stage 1 shares out the
    optimizer's state over the ranks, 2 also gradients, 3 also weights. Which gradients there are in
    which precision is as DeepSpeed 0.19.8 does it, counted by `benchmarks/memory.py`.

    Args:
        sizes: numbers of parameters, trainable ones under True, frozen ones under False.
        saved_per_image: bytes that the forward pass of one image keeps for the backward pass, fp32.
        ds: DeepSpeed's JSON, resolved.
        ranks: of the run.
        mean: with a running mean of the weights.
    """
    zero, bf16 = ds["zero_optimization"], ds["bf16"]["enabled"]
    stage, width = zero.get("stage", 0), FP32 // 2 if bf16 else FP32
    accumulates = ds["gradient_accumulation_steps"] > 1
    trainable, part = sizes[True], sizes[True] * FP32 // ranks

    weights = sum(sizes.values()) * width // (ranks if stage >= 3 else 1)
    copies = 3 + mean  # masters, two moments
    optimizer = copies * part if stage else trainable * FP32 * (copies if bf16 else copies - 1)
    if stage >= 2:  # fp32
        gradients = part
        kept = part if stage == 3 or accumulates else 0
    else:  # bf16 ones, and whole fp32 copies: made as AdamW steps, or for good under ZeRO 1
        gradients = trainable * (FP32 + width if bf16 else FP32)
        kept = trainable * ((FP32 if bf16 and stage else 0) + (width if accumulates else 0))
    host = 0
    if _offloads(zero, "offload_optimizer"):
        host = optimizer + part * (2 if accumulates or stage == 3 else 1)
        # ZeRO 2 collects this rank's part in fp32 before it copies that.
        optimizer, gradients, kept = 0, part if bf16 and stage < 3 else 0, 0
    if stage == 3 and _offloads(zero, "offload_param"):
        host, weights = host + weights, 0
    return Need(
        weights=weights,
        gradients=gradients,
        kept=kept,
        optimizer=optimizer,
        activations=saved_per_image * ds["train_micro_batch_size_per_gpu"] * width // FP32,
        host=host,
        checkpoint=copies * trainable * FP32,
    )


def _offloads(zero: Mapping[str, Any], what: str) -> bool:
    return (zero.get(what) or {}).get("device", "none") != "none"


def check(
    model: DepthModel,
    batch: Mapping[str, Any],
    config: Config,
    *,
    ds: Mapping[str, Any],
    ranks: int,
    memory: int | None,
) -> Need:
    """One forward and backward pass of one image, in fp32 on the CPU; the model stays as it was.

    Args:
        model: before DeepSpeed takes it over.
        batch: one image at least, as it trains.
        config: the run.
        ds: DeepSpeed's JSON, resolved.
        ranks: of the run.
        memory: bytes of a rank's GPU.

    Raises:
        ConfigError: a trainable weight gets no gradient, or memory or disk are too small.
    """
    saved = saved_bytes(model, batch, config)
    mean = config.optim.ema is not None
    found = need(sizes(model), saved_per_image=saved, ds=ds, ranks=ranks, mean=mean)
    if memory is not None and found.memory > memory:
        raise ConfigError(
            f"{found.line()}, but the GPU has {memory / GB:.2f} GB; lower train.micro_batch, or "
            "take more ranks or a higher ZeRO stage (--ds_config launch/ds/zero3.json)"
        )
    _check_disk(config, found)
    return found


def sizes(model: DepthModel) -> dict[bool, int]:
    """Numbers of parameters, trainable ones under True, frozen ones under False."""
    found = {True: 0, False: 0}
    for weight in model.parameters():
        found[weight.requires_grad] += weight.numel()
    return found


@contextmanager
def saving(model: nn.Module) -> Iterator[dict[int, int]]:
    """What a forward pass keeps for the backward pass: bytes of each storage, weights left out."""
    storages: dict[int, int] = {}
    weights = list(model.parameters())  # once: the walk through all modules costs as much as a pass

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        # Asked each time: ZeRO-3 gathers weights as the pass goes on.
        if all(storage.data_ptr() != w.untyped_storage().data_ptr() for w in weights):
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield storages


def saved_bytes(model: DepthModel, batch: Mapping[str, Any], config: Config) -> int:
    """Bytes kept for the backward pass of one image."""
    image, depth, valid = (batch[name][:1] for name in ("image", "depth", "valid"))
    training = model.training
    model.eval()  # batch norm's statistics stay
    for module in model.modules():
        # Attention has its dropout in its kernel: with it a CPU, not a GPU, keeps whole matrices.
        if isinstance(module, nn.Dropout):
            module.train()
    with torch.enable_grad(), torch.random.fork_rng(devices=[]), saving(model) as storages:
        loss = LOSSES[config.train.loss](model(image), depth, valid)
    loss.backward()
    silent = [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None]
    model.zero_grad(set_to_none=True)
    model.train(training)
    if silent:
        raise ConfigError(
            f"{len(silent)} trainable weights get no gradient: {', '.join(silent[:5])}"
            f"{', ...' if silent[5:] else ''}; freeze their backbone (model.vit.tune, "
            "model.llm.tune), or choose another one"
        )
    return sum(storages.values())


def memory_full(error: torch.OutOfMemoryError) -> str:
    """What CUDA's allocator says of what does not fit, and what to do."""
    told = str(error).partition("If reserved but unallocated")[0].strip().rstrip(".")
    return (
        f"{told}; lower train.micro_batch (a run that has begun starts over: --resume never), or "
        "take a higher ZeRO stage (--ds_config launch/ds/zero3.json)"
    )


def _check_disk(config: Config, found: Need) -> None:
    """Room for `train.keep` checkpoints, the best one, and one that is being written."""
    kept = config.train.keep + 2
    wanted = kept * found.checkpoint
    free = shutil.disk_usage(_existing(config.runs)).free
    if free < wanted:
        raise ConfigError(
            f"{config.runs}: {free / GB:.1f} GB are free, expected {wanted / GB:.1f} GB for "
            f"{kept} checkpoints; make room, lower train.keep, or set runs=DIR elsewhere"
        )


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())
