"""One sample's pixels: decoded, resized, in metres, as tensors."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm_mde.data import record
from llm_mde.data.index import Entry, Index
from llm_mde.data.samples import Shards
from llm_mde.errors import ConfigError, DataError, StoreError

Frame = tuple[NDArray[np.uint8], NDArray[np.uint16]]
"""Rgb (H, W, 3) and depth (H, W) in mm."""
RESIZES = ("bilinear", "bicubic")  # what torch antialiases


def decode(
    shards: Shards,
    entry: Entry,
    *,
    draft: tuple[int, int] | None = None,
    filled: bool = False,
) -> Frame:
    """One sample's rgb (H, W, 3), at a scale no smaller than `draft`, and depth (H, W) in mm.

    filled: the depth without holes that the sample carries, instead of the readings.

    Raises:
        DataError: names shard, sample and cause.
    """
    sample = shards.read(entry)
    try:
        decoded = record.decode(sample, draft=draft, filled=filled)
    except DataError as error:
        raise DataError(f"{sample['__url__']}, {error}") from error
    return decoded.rgb, decoded.depth_mm if decoded.filled_mm is None else decoded.filled_mm


def resize_image(
    rgb: NDArray[np.uint8], size: tuple[int, int], interpolation: str
) -> NDArray[np.uint8]:
    """The whole frame (H, W, 3) antialiased to (h, w, 3) uint8, within 1 of Pillow's result.

    Raises:
        ConfigError: an interpolation other than bilinear and bicubic.
    """
    if interpolation not in RESIZES:
        raise ConfigError(f"interpolation: expected {' or '.join(RESIZES)}, got {interpolation!r}")
    # On channels-last uint8 torch is four to six times as fast as Pillow.
    image = torch.tensor(rgb).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W)
    image = F.interpolate(image, size, mode=interpolation, antialias=True)
    return image[0].permute(1, 2, 0).numpy()


def resize_nearest(array: NDArray[Any], size: tuple[int, int]) -> NDArray[Any]:
    """(H, W) to (h, w), each pixel from the one that holds its centre."""
    rows, columns = (
        np.minimum(((np.arange(n) + 0.5) * old / n).astype(int), old - 1)
        for n, old in zip(size, array.shape, strict=True)
    )
    return array[rows[:, None], columns]


def to_metres(
    depth_mm: NDArray[np.uint16], max_depth: float
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Depth in metres, and valid = 0 < mm < 1000 D_max; same shapes."""
    valid = (depth_mm > 0) & (depth_mm < 1000 * max_depth)
    return depth_mm.astype(np.float32) / np.float32(1000), valid


@dataclass(frozen=True)
class Shape:
    """What the network wants to see."""

    size: tuple[int, int]
    """Height and width in pixels."""
    interpolation: str
    """`bilinear` or `bicubic`, as the image backbone was trained."""
    max_depth: float
    """D_max in metres."""


def to_images(rgbs: Sequence[NDArray[np.uint8]]) -> Tensor:
    """Images (h, w, 3) to one uint8 tensor (B, 3, h, w)."""
    return torch.from_numpy(np.stack(rgbs)).permute(0, 3, 1, 2).contiguous()  # (B, 3, h, w)


def to_depths(depths_mm: Sequence[NDArray[np.uint16]], max_depth: float) -> tuple[Tensor, Tensor]:
    """Depths (H, W) in mm to metres and valid, both (B, 1, H, W)."""
    metres, valid = to_metres(np.stack(depths_mm)[:, None], max_depth)  # (B, 1, H, W)
    return torch.from_numpy(metres), torch.from_numpy(valid)


def blank(size: tuple[int, int]) -> Frame:
    """A black image without depth, in the place of a damaged sample."""
    return np.zeros((*size, 3), np.uint8), np.zeros(size, np.uint16)


def depths(
    index: Index, *, max_depth: float, every: int = 1, skip_damaged: bool = False
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Depth in metres and valid, (H, W), of every n-th sample: what the baselines are fitted on."""
    shards = Shards(index.folder)
    for entry in shards.ahead(index.entries[::every], lambda entry: [entry]):
        try:
            depth_mm = decode(shards, entry, draft=(1, 1))[1]
        except DataError as error:
            if skip_damaged and not isinstance(error, StoreError):
                continue
            raise
        yield to_metres(depth_mm, max_depth)
