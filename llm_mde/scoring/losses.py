"""Training losses on log depth: `silog` for metric depth, `ssi` (the paper's) up to scale.

Both measure the spread of d = log pred - log truth over the valid pixels of each image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(log_depth, depth, valid), each (B, 1, h, w), to a scalar."""

VARIANCE_FOCUS = 0.85  # lambda of BTS
SILOG_FACTOR = 10.0  # alpha of BTS


def silog(
    log_depth: Tensor, depth: Tensor, valid: Tensor, variance_focus: float = VARIANCE_FOCUS
) -> Tensor:
    """10 sqrt(mean d^2 - variance_focus mean(d)^2), per image, then the mean over images.

    log_depth (B, 1, h, w) natural log of metres; depth (B, 1, h, w) metres, anything where not
    valid; valid (B, 1, h, w) bool. A scalar, fp32. An image without a valid pixel contributes
    nothing; a batch without one gives 0 with zero gradients.

    Lee et al. 2019 (BTS), https://arxiv.org/abs/1907.10326, training loss. BTS pools the pixels of
    a batch; here each image counts alike.
    """
    mean, variance, some = _moments(log_depth, depth, valid)
    inside = variance + (1 - variance_focus) * mean.square()
    # The slope of sqrt at 0 is infinite; a perfect image gets the gradient 0 instead.
    positive = ~(inside <= 0)  # not `> 0`: a NaN must stay one
    root = torch.where(positive, torch.where(positive, inside, 1.0).sqrt(), 0.0)
    return SILOG_FACTOR * _mean_of_images(root, some)


def ssi(log_depth: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """Mean d^2 - mean(d)^2, per image, then the mean over images; it leaves the scale free.

    Arguments and images without a valid pixel as in `silog`.

    Xia et al. 2024 (LLM-MDE), https://arxiv.org/abs/2409.01133, Eq. 3: the loss of Eigen et al.
    2014, https://arxiv.org/abs/1406.2283, at lambda = 1.
    """
    _, variance, some = _moments(log_depth, depth, valid)
    return _mean_of_images(variance, some)


LOSSES: dict[str, Loss] = {"silog": silog, "ssi": ssi}
"""Losses by their name in `train.loss`."""


def _moments(log_depth: Tensor, depth: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of d over each image's valid pixels, and whether it has one; each (B,)."""
    log_truth = torch.where(valid, depth, 1.0).float().log()
    d = torch.where(valid, log_depth.float() - log_truth, 0.0).flatten(1)  # (B, h*w)
    inside = valid.flatten(1)  # (B, h*w)
    count = inside.sum(1).clamp(min=1)
    mean = d.sum(1) / count
    # Centred before squaring: mean d^2 - mean(d)^2 would cancel in fp32 when the scale is far off.
    centred = torch.where(inside, d - mean[:, None], 0.0)
    return mean, centred.square().sum(1) / count, inside.any(1)


def _mean_of_images(values: Tensor, some: Tensor) -> Tensor:
    return torch.where(some, values, 0.0).sum() / some.sum().clamp(min=1)
