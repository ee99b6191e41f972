"""Bootstrap intervals of means over images: how far a mean would move with other images."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
LEVEL = 0.95
DRAWN = 2**22  # image numbers drawn at a time, 32 MiB


class Interval(NamedTuple):
    """A mean over images and the percentile interval around it."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside."""
        return self.low > 0 or self.high < 0


def intervals(
    values: NDArray[np.float64],
    *,
    resamples: int = RESAMPLES,
    level: float = LEVEL,
    seed: int = 0,
) -> list[Interval]:
    """Mean of each column of `values` (images, numbers) with its percentile bootstrap interval.

    A resample is as many images drawn with replacement, the same ones for all columns: give a
    column the difference of two runs image by image, and the interval is that of paired runs.
    Efron 1979, https://doi.org/10.1214/aos/1176344552; percentiles as numpy interpolates them. At
    least one image.
    """
    # Moved by the first image's, so that a column of one value has an interval of no width.
    moved = values - values[:1]
    means = np.concatenate([counts @ moved for counts in _counts(len(values), resamples, seed)])
    tail = 50 * (1 - level)
    low, high = np.percentile(means / len(values), (tail, 100 - tail), axis=0) + values[0]
    centre = moved.mean(axis=0) + values[0]
    return [Interval(*map(float, each)) for each in zip(centre, low, high, strict=True)]


def _counts(images: int, resamples: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """How often each image is in each resample, (some, images) at a time."""
    rng = np.random.default_rng(seed)
    left, at_once = resamples, max(1, DRAWN // images)
    while left:
        some = min(left, at_once)
        drawn = rng.integers(0, images, (some, images))
        places = drawn + images * np.arange(some)[:, None]
        counts = np.bincount(places.ravel(), minlength=some * images).reshape(some, images)
        yield counts.astype(np.float64)
        left -= some
