"""Blind baselines: what a prediction scores that never looks at the image."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from llm_mde.data.index import Index
from llm_mde.data.pixels import depths
from llm_mde.errors import DataError
from llm_mde.scoring.protocols import resized

Sizes = tuple[int, int]

SAMPLES = 2000  # training samples read for a baseline; enough for a stable median and mean map


@dataclass(frozen=True)
class Baselines:
    """Predictions made without looking at the image, from the training depths alone."""

    constant: float
    """Median of all valid training depths, metres."""
    mean_map: Tensor
    """(H, W) mean over the valid training depths of each pixel, metres."""

    def predictions(self, size: Sizes) -> dict[str, Tensor]:
        """Each baseline as a depth map (H, W) in metres."""
        constant = torch.tensor(self.constant).expand(size)
        return {"constant": constant, "mean_map": resized(self.mean_map, size)}


def baselines_of(index: Index, *, max_depth: float, skip_damaged: bool = False) -> Baselines:
    """Baselines from a training split, from at most SAMPLES evenly spaced samples of it."""
    every = max(1, len(index.entries) // SAMPLES)
    pairs = depths(index, max_depth=max_depth, every=every, skip_damaged=skip_damaged)
    return fit_baselines(
        ((torch.from_numpy(depth), torch.from_numpy(valid)) for depth, valid in pairs),
        max_depth=max_depth,
    )


def fit_baselines(
    samples: Iterable[tuple[Tensor, Tensor]], *, max_depth: float = 10.0
) -> Baselines:
    """Baselines from training samples (depth (H, W) metres, valid (H, W) bool), read once.

    The median is exact to a millimetre. The first sample gives the map its size; others are brought
    to it by nearest neighbour. A pixel that is never valid gets the constant.

    Raises:
        DataError: there is no valid depth at all.
    """
    histogram = torch.zeros(round(1000 * max_depth) + 1, dtype=torch.int64)
    total = count = torch.zeros(0)
    for depth, valid in samples:
        mm = (depth[valid].double() * 1000).round().long().clamp(0, len(histogram) - 1)
        histogram += mm.bincount(minlength=len(histogram))
        if not count.numel():
            total, count = (torch.zeros(depth.shape, dtype=torch.float64) for _ in range(2))
        size = (total.shape[0], total.shape[1])
        depth, valid = nearest(depth, size), nearest(valid, size)
        total += torch.where(valid, depth, 0.0)
        count += valid
    if not histogram.any():
        raise DataError("baselines: expected valid depths in the training samples, found none")
    constant = _median_mm(histogram) / 1000
    mean_map = torch.where(count > 0, total / count.clamp(min=1), constant)
    return Baselines(constant=constant, mean_map=mean_map.float())


def _median_mm(histogram: Tensor) -> float:
    upto = histogram.cumsum(0)
    n = int(upto[-1])
    ranks = torch.tensor([(n - 1) // 2, n // 2])
    return torch.searchsorted(upto, ranks, right=True).double().mean().item()


def nearest(values: Tensor, size: Sizes) -> Tensor:
    """A map (H, W) of any type at another size, each pixel from the one that holds its centre."""
    if tuple(values.shape) == size:
        return values
    rows, cols = (
        ((torch.arange(new) + 0.5) * (old / new)).long()
        for new, old in zip(size, values.shape, strict=True)
    )
    return values[rows[:, None], cols]
