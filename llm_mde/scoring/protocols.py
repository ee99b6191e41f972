"""How a prediction meets the truth before it is scored; two protocols never share a table.

The same pixels for all: 1e-3 < truth < D_max, inside the Eigen crop when the truth is 480x640.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional

from llm_mde.scoring.metrics import score

MIN_DEPTH = 1e-3  # metres; BTS, pytorch/bts_eval.py, `--min_depth_eval`
CROPPED_SIZE = (480, 640)  # the one size the crop is made for: NYU Depth V2
CROP_ROWS, CROP_COLS = (45, 471), (41, 601)  # Eigen et al. 2014, as in BTS, pytorch/bts_eval.py:287
FLAT = 1e-6  # relative spread below which a prediction has no shape to fit, only float32 rounding

Protocol = Callable[[Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""(pred (P,), gt (P,), max_depth) to the pair that is scored."""


def metric(pred: Tensor, gt: Tensor, max_depth: float) -> tuple[Tensor, Tensor]:
    """Metres as they are, the prediction clamped to [1e-3, max_depth]."""
    return pred.clamp(MIN_DEPTH, max_depth), gt


def aligned_median(pred: Tensor, gt: Tensor, max_depth: float) -> tuple[Tensor, Tensor]:
    """The prediction times median(gt) / median(pred) of the image, then clamped.

    Zhou et al. 2017 (SfMLearner), https://arxiv.org/abs/1704.07813. Of an even count the lower
    median is taken.
    """
    tiny = torch.finfo(pred.dtype).tiny
    return metric(pred * (gt.median() / pred.median().clamp(min=tiny)), gt, max_depth)


def aligned_affine(pred: Tensor, gt: Tensor, max_depth: float) -> tuple[Tensor, Tensor]:
    """The prediction under the image's least-squares scale and shift in depth, then clamped.

    Ranftl et al. 2020 (MiDaS), https://arxiv.org/abs/1907.01341, who fit disparity; here depth. A
    flat prediction becomes the mean of the truth.
    """
    p, g = pred.double(), gt.double()
    centre = p.mean()
    spread = (p - centre).square().mean()
    flat = spread.sqrt() <= FLAT * centre.abs()
    scale = torch.where(flat, 0.0, ((p - centre) * g).mean() / spread)
    return metric((scale * (p - centre) + g.mean()).to(pred.dtype), gt, max_depth)


def paper(pred: Tensor, gt: Tensor, max_depth: float) -> tuple[Tensor, Tensor]:
    """Both (x - min) / (max - min) over the image's pixels, then clamped to [1e-3, 1]; not metres.

    Our reading of the tables of Xia et al. 2024, https://arxiv.org/abs/2409.01133, which cannot be
    rebuilt; abs_rel hangs on the floor 1e-3, so it is not to be compared digit by digit.
    """
    return _unit(pred), _unit(gt)


PROTOCOLS: dict[str, Protocol] = {
    "metric": metric,
    "aligned_median": aligned_median,
    "aligned_affine": aligned_affine,
    "paper": paper,
}
"""Every protocol by name, the headline first."""


def is_cropped(size: tuple[int, int]) -> bool:
    """Whether a truth of this (height, width) is scored inside the Eigen crop."""
    return size == CROPPED_SIZE


def scored_pixels(depth: Tensor, valid: Tensor, *, max_depth: float) -> Tensor:
    """Flat indices (P,) of the pixels that count; depth (H, W) metres, valid (H, W) bool."""
    inside = valid & (depth > MIN_DEPTH) & (depth < max_depth)
    if is_cropped((depth.shape[0], depth.shape[1])):
        crop = torch.zeros_like(inside)
        crop[slice(*CROP_ROWS), slice(*CROP_COLS)] = True
        inside &= crop
    return inside.flatten().nonzero().squeeze(1)


def resized(pred: Tensor, size: tuple[int, int]) -> Tensor:
    """A prediction (h, w) at the truth's size (H, W): bilinear, corners not aligned."""
    if tuple(pred.shape) == size:
        return pred
    return functional.interpolate(
        pred[None, None], size=size, mode="bilinear", align_corners=False
    )[0, 0]


def score_pixels(
    pred: Tensor,
    gt: Tensor,
    *,
    max_depth: float = 10.0,
    protocols: Mapping[str, Protocol] = PROTOCOLS,
) -> dict[str, dict[str, float]]:
    """Every metric under each protocol; pred, gt (P,) metres of the pixels that count, P >= 1."""
    return {name: score(*protocol(pred, gt, max_depth)) for name, protocol in protocols.items()}


def score_image(
    pred: Tensor, depth: Tensor, valid: Tensor, *, max_depth: float = 10.0
) -> dict[str, dict[str, float]] | None:
    """Every metric under every protocol, or None for an image without a pixel that counts.

    pred (h, w) metres, any size; depth (H, W) metres, anything where not valid; valid (H, W) bool.
    """
    pixels = scored_pixels(depth, valid, max_depth=max_depth)
    if not pixels.numel():
        return None
    size = (depth.shape[0], depth.shape[1])
    gt = depth.flatten()[pixels]
    return score_pixels(resized(pred, size).flatten()[pixels], gt, max_depth=max_depth)


def _unit(values: Tensor) -> Tensor:
    low, high = values.aminmax()
    span = torch.where(high > low, high - low, 1.0)
    return ((values - low) / span).clamp(MIN_DEPTH, 1.0)
