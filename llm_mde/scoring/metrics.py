"""Depth metrics as pure functions: (P,) metres of one image's valid pixels, to a float64 scalar.

Masking, cropping, aligning and clamping are done before, in `protocols`. Pixels keep their
precision, means are taken in float64. Definitions: Eigen et al. 2014,
https://arxiv.org/abs/1406.2283, and, for log10, Saxena et al. 2009 (Make3D).
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

Metric = Callable[[Tensor, Tensor], Tensor]


def abs_rel(pred: Tensor, gt: Tensor) -> Tensor:
    """Mean of |pred - gt| / gt."""
    return _mean((pred - gt).abs() / gt)


def sq_rel(pred: Tensor, gt: Tensor) -> Tensor:
    """Mean of (pred - gt)^2 / gt, in metres."""
    return _mean((pred - gt).square() / gt)


def rmse(pred: Tensor, gt: Tensor) -> Tensor:
    """Root of the mean of (pred - gt)^2, in metres."""
    return _mean((pred - gt).square()).sqrt()


def rmse_log(pred: Tensor, gt: Tensor) -> Tensor:
    """Root of the mean of (ln pred - ln gt)^2."""
    return _mean((pred.log() - gt.log()).square()).sqrt()


def log10(pred: Tensor, gt: Tensor) -> Tensor:
    """Mean of |log10 pred - log10 gt|."""
    return _mean((pred.log10() - gt.log10()).abs())


def delta(pred: Tensor, gt: Tensor, order: int) -> Tensor:
    """Share of pixels with max(pred / gt, gt / pred) < 1.25^order."""
    return _mean(torch.maximum(pred / gt, gt / pred) < 1.25**order)


def silog(pred: Tensor, gt: Tensor) -> Tensor:
    """100 times the standard deviation of ln pred - ln gt, as the KITTI benchmark prints it."""
    d = (pred.log() - gt.log()).double()
    return 100 * _mean((d - d.mean()).square()).sqrt()


METRICS: dict[str, Metric] = {
    "abs_rel": abs_rel,
    "sq_rel": sq_rel,
    "rmse": rmse,
    "rmse_log": rmse_log,
    "log10": log10,
    "delta1": partial(delta, order=1),
    "delta2": partial(delta, order=2),
    "delta3": partial(delta, order=3),
    "silog": silog,
}
"""Every metric by name, in the order of the tables."""
IN_METRES = ("sq_rel", "rmse")
"""Of those, the ones with a unit; the others are ratios, logarithms and shares."""


def higher_is_better(metric: str) -> bool:
    """Which way a metric is to go."""
    return metric.startswith("delta")


def score(pred: Tensor, gt: Tensor) -> dict[str, float]:
    """Every metric of one image; both (P,) metres, P >= 1."""
    return {name: metric(pred, gt).item() for name, metric in METRICS.items()}


def _mean(values: Tensor) -> Tensor:
    return values.mean(dtype=torch.float64)
