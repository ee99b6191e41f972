"""Before the first step: does every trainable weight learn, is there memory and disk enough?"""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
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

    An estimate from below: buffers of collectives, of kernels and of the allocator come on top.
    """

    weights: int
    gradients: int
    optimizer: int
    activations: int
    checkpoint: int

    @property
    def memory(self) -> int:
        """Of a rank, at its peak: activations go as gradients come."""
        return self.weights + self.optimizer + max(self.gradients, self.activations)

    def line(self) -> str:
        """For people."""
        parts = ("weights", "gradients", "optimizer", "activations")
        shares = ", ".join(f"{name} {getattr(self, name) / GB:.2f}" for name in parts)
        return (
            f"a rank holds at least {self.memory / GB:.2f} GB ({shares}); "
            f"a checkpoint takes {self.checkpoint / GB:.2f} GB"
        )


def need(
    sizes: Mapping[bool, int],
    *,
    saved_per_image: int,
    micro_batch: int,
    stage: int,
    bf16: bool,
    ranks: int,
    offload: bool = False,
) -> Need:
    """What a run needs under a ZeRO stage.

    Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5: stage 1 shares out the
    optimizer's state over the ranks, 2 also gradients, 3 also weights.

    Args:
        sizes: numbers of parameters, trainable ones under True, frozen ones under False.
        saved_per_image: bytes that the forward pass of one image keeps for the backward pass, fp32.
        micro_batch: images of a forward pass.
        stage: ZeRO's.
        bf16: weights and activations take half of fp32; masters come on top.
        ranks: of the run.
        offload: whether the optimizer's state and gradients lie in the host's memory.
    """

    def share(of_stage: int) -> int:
        return ranks if stage >= of_stage else 1

    width = FP32 // 2 if bf16 else FP32
    trainable = sizes[True]
    return Need(
        weights=sum(sizes.values()) * width // share(3),
        gradients=0 if offload else trainable * FP32 // share(2),
        optimizer=0 if offload else trainable * FP32 * (3 if bf16 else 2) // share(1),
        activations=saved_per_image * micro_batch * width // FP32,
        checkpoint=3 * trainable * FP32,
    )


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
    saved = _saved_bytes(model, batch, config)
    sizes = {True: 0, False: 0}
    for weight in model.parameters():
        sizes[weight.requires_grad] += weight.numel()
    zero = ds["zero_optimization"]
    found = need(
        sizes,
        saved_per_image=saved,
        micro_batch=ds["train_micro_batch_size_per_gpu"],
        stage=zero.get("stage", 0),
        bf16=ds["bf16"]["enabled"],
        ranks=ranks,
        offload="offload_optimizer" in zero,
    )
    if memory is not None and found.memory > memory:
        raise ConfigError(
            f"{found.line()}, but the GPU has {memory / GB:.2f} GB; lower train.micro_batch, or "
            "take more ranks or a higher ZeRO stage (--ds_config launch/ds/zero3.json)"
        )
    _check_disk(config, found)
    return found


def _saved_bytes(model: DepthModel, batch: Mapping[str, Any], config: Config) -> int:
    """Bytes kept for the backward pass of one image, each storage once, weights left out."""
    known = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    storages: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    image, depth, valid = (batch[name][:1] for name in ("image", "depth", "valid"))
    training = model.training
    model.eval()  # no dropout is drawn, and batch norm's statistics stay
    with torch.enable_grad(), saved_tensors_hooks(keep, lambda tensor: tensor):
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
