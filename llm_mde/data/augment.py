"""Joint augmentation of a micro-batch of images and depth maps, reproducible sample by sample.

On few real frames the random affine is worth more than any choice in the model. Zooming by z shows
the scene z times nearer through the same camera, so depth is divided by z.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from llm_mde.config import AugmentConfig
from llm_mde.data.plan import AUGMENT, generator


def draw(
    config: AugmentConfig, *, seed: int, epoch: int, positions: list[int]
) -> NDArray[np.float64]:
    """Random numbers of each sample, (B, 8).

    Columns: flip (-1 or 1), zoom, angle (rad), shift x and y (in half image sides), then the
    relative change of brightness, contrast and saturation. They depend on (seed, epoch, position)
    alone, never on ranks, workers or batch mates.
    """
    unit = np.stack(
        [generator(seed, AUGMENT, epoch, at).uniform(-1, 1, 8) for at in positions]
    )  # (B, 8)
    low, high = config.zoom
    flip = np.where((unit[:, 0] + 1) / 2 < config.flip, -1.0, 1.0)
    zoom = low * (high / low) ** ((unit[:, 1] + 1) / 2)
    scales = [math.radians(config.rotate), 2 * config.shift, 2 * config.shift] + [config.jitter] * 3
    return np.concatenate([flip[:, None], zoom[:, None], unit[:, 2:] * scales], axis=1)


def affine(
    image: Tensor, depth: Tensor, valid: Tensor, draws: NDArray[np.float64]
) -> tuple[Tensor, Tensor, Tensor]:
    """Flip, zoom, rotate and shift image and depth together; the image is interpolated, depth not.

    Args:
        image: (B, 3, h, w) uint8.
        depth: (B, 1, h, w) metres.
        valid: (B, 1, h, w) bool; False too wherever the frame ends.
        draws: (B, 8) from `draw`.

    Returns:
        The image as float (B, 3, h, w) in 0..255, depth and valid.
    """
    grid = _grid(draws, height=image.shape[-2], width=image.shape[-1])  # (B, h, w, 2)
    moved = F.grid_sample(image.float(), grid, padding_mode="reflection", align_corners=False)
    maps = torch.cat([depth, valid.float()], 1)  # (B, 2, h, w)
    maps = F.grid_sample(maps, grid, mode="nearest", padding_mode="zeros", align_corners=False)
    zoom = torch.from_numpy(draws[:, 1]).float()
    return moved, maps[:, :1] / zoom.view(-1, 1, 1, 1), maps[:, 1:] > 0.5


def _grid(draws: NDArray[np.float64], *, height: int, width: int) -> Tensor:
    """Where each output pixel looks, (B, h, w, 2) as x, y in -1..1, as `F.grid_sample` wants it.

    Written out because `F.affine_grid` takes three times as long.
    """
    flip, zoom, angle, dx, dy = (
        torch.from_numpy(draws[:, at]).float().view(-1, 1, 1) for at in range(5)
    )
    cos, sin = torch.cos(angle) / zoom, torch.sin(angle) / zoom
    x = (2 * torch.arange(width) + 1) / width - 1
    y = ((2 * torch.arange(height) + 1) / height - 1).view(-1, 1)
    grid = torch.empty(len(draws), height, width, 2)
    torch.add(flip * (cos * x) + dx, -flip * sin * height / width * y, out=grid[..., 0])
    torch.add(cos * y + dy, sin * width / height * x, out=grid[..., 1])
    return grid


def jitter(image: Tensor, draws: NDArray[np.float64]) -> Tensor:
    """Brightness, contrast and saturation of float images (B, 3, h, w) in 0..255, as uint8.

    Brightness scales the image, contrast its distance from its mean, saturation that of each
    pixel from its grey: together one 3x3 matrix on the channels and one offset.
    """
    bright, contrast, colour = (
        1 + torch.from_numpy(draws[:, at]).float().view(-1, 1, 1) for at in (5, 6, 7)
    )
    mean = image.mean((1, 2, 3)).view(-1, 1, 1)
    mix = bright * contrast * (colour * torch.eye(3) + (1 - colour) / 3)  # (B, 3, 3)
    flat = torch.baddbmm(bright * (1 - contrast) * mean, mix, image.flatten(2))  # (B, 3, h w)
    return flat.round_().clamp_(0, 255).to(torch.uint8).view(image.shape)


def augment(
    image: Tensor,
    depth: Tensor,
    valid: Tensor,
    *,
    config: AugmentConfig,
    draws: NDArray[np.float64],
) -> tuple[Tensor, Tensor, Tensor]:
    """All of it: image (B, 3, h, w) uint8, depth (B, 1, h, w) metres, valid bool; same shapes."""
    if not config.enabled:
        return image, depth, valid
    moved, depth, valid = affine(image, depth, valid, draws)
    return jitter(moved, draws), depth, valid
