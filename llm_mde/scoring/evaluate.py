"""Scores of a split: per image under every protocol, then the mean, beside two blind baselines."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from llm_mde.scoring.baselines import Baselines, nearest
from llm_mde.scoring.losses import Loss
from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import (
    CROP_COLS,
    CROP_ROWS,
    PROTOCOLS,
    Protocol,
    is_cropped,
    resized,
    score_pixels,
    scored_pixels,
)

Predict = Callable[[Tensor], Tensor]
"""Image (B, 3, h, w) uint8 to depth (B, 1, h', w') fp32 metres."""
Batch = Mapping[str, Any]
"""image (B, 3, h, w), depth and valid (B, 1, H, W), weight (B,) with 0 = padding."""

BASELINES = ("constant", "mean_map")
METRIC_ONLY = {"metric": PROTOCOLS["metric"]}
# A map of one value has no min-max normalisation, and any value in its place is our choice. The
# nearest would flatter it: its abs_rel stays below 1, where others pay for each pixel at the floor.
UNDEFINED = frozenset({("constant", "paper")})
CONSTANT_NOTE = (
    "a constant aligned is each image's own median or mean, what aligning alone gives; "
    "under paper it has no range to normalise and no score"
)
COUNTS = ("images", "left_out", "cropped")


def baseline_group(baseline: str, protocol: str) -> str:
    """The group a baseline's numbers under a protocol are kept in: `mean_map_aligned_median`."""
    return baseline if protocol == "metric" else f"{baseline}_{protocol}"


class Scores:
    """Named numbers of images, and their means.

    Sums are exact (Shewchuk 1997, https://doi.org/10.1007/PL00009321, as Python's `math.fsum` has
    it), so that the order of the images, which ranks share out, moves no bit of a mean.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._column = {name: i for i, name in enumerate(self.names)}
        self._tables = [torch.zeros(0, 2, len(self.names), dtype=torch.float64)]

    def add(self, values: Mapping[str, float]) -> None:
        """Take in one image's numbers; a name that is absent does not count for this image."""
        columns = [self._column[name] for name in values]
        row = torch.zeros(1, 2, len(self.names), dtype=torch.float64)
        row[0, 0, columns] = torch.tensor(list(values.values()), dtype=torch.float64)
        row[0, 1, columns] = 1
        self._tables.append(row)

    def table(self) -> Tensor:
        """Float64 (images, 2, names): the numbers, and whether they count."""
        return torch.cat(self._tables)

    def add_table(self, table: Tensor) -> None:
        """Take in what another process counted under the same names."""
        self._tables.append(table)

    def count(self, name: str) -> int:
        """Images that had this number."""
        return int(self.table()[:, 1, self._column[name]].sum())

    def means(self) -> dict[str, float]:
        """Mean of every name that was counted."""
        table = self.table()
        counted = {name: table[table[:, 1, i] > 0, 0, i] for name, i in self._column.items()}
        return {name: _sum(one.tolist()) / len(one) for name, one in counted.items() if len(one)}


def _sum(values: list[float]) -> float:
    # The exact sum raises where infinities of both signs meet.
    return math.fsum(values) if all(map(math.isfinite, values)) else sum(values)


@dataclass(frozen=True)
class EvalResult:
    """Means over the images of a split."""

    means: dict[str, float]
    """`<protocol or baseline>/<metric>` and `loss`."""
    images: int
    """Images scored."""
    left_out: int
    """Images without a pixel that counts."""
    cropped: int
    """Images scored inside the Eigen crop."""

    @property
    def crop(self) -> str:
        """The crop that was used, in words."""
        if not self.cropped:
            return "none"
        box = f"eigen rows {CROP_ROWS[0]}:{CROP_ROWS[1]} cols {CROP_COLS[0]}:{CROP_COLS[1]}"
        return box if self.cropped == self.images else f"{box} in {self.cropped} of {self.images}"

    def named(self, split: str) -> dict[str, float]:
        """Numbers under the tracker's names: `val/abs_rel`, `val_constant/rmse`."""
        counts = {"images": self.images, "left_out": self.left_out, "cropped": self.cropped}
        return {_tracked(name, split): value for name, value in self.means.items()} | {
            f"{split}/{name}": float(count) for name, count in counts.items()
        }


def _tracked(name: str, split: str) -> str:
    group, _, number = name.rpartition("/")
    return f"{split}/{number}" if group in ("", "metric") else f"{split}_{group}/{number}"


@torch.no_grad()
def evaluate(
    predict: Predict,
    batches: Iterable[Batch],
    *,
    loss: Loss,
    baselines: Baselines | None = None,
    baseline_protocols: Mapping[str, Protocol] = METRIC_ONLY,
    max_depth: float = 10.0,
    gather: Callable[[Tensor], Tensor] = torch.clone,
) -> EvalResult:
    """Score a split; every image alone, so that neither batch mates nor ranks move a number.

    Baselines are scored under `baseline_protocols`, in the groups `baseline_group` names, but for
    the UNDEFINED pairs.
    `gather` puts the float64 (images, ...) tables of all ranks one after another and is called
    once, at the end, on every rank.
    The loss is taken at the prediction's size, with the truth brought to it by nearest neighbour.
    """
    blind = baseline_protocols if baselines else {}
    scores = Scores(_names(blind))
    for batch in batches:
        pred = predict(batch["image"]).float().cpu()  # (B, 1, h, w)
        for i in (batch["weight"] > 0).nonzero().flatten().tolist():
            depth, valid = batch["depth"][i, 0].cpu(), batch["valid"][i, 0].cpu()
            pixels = scored_pixels(depth, valid, max_depth=max_depth)
            row = _score(pred[i, 0], depth, pixels, max_depth=max_depth)
            if baselines and pixels.numel():
                row |= _score_baselines(
                    baselines, depth, pixels, protocols=blind, max_depth=max_depth
                )
            scores.add(row | _loss(loss, pred[i, 0], depth, valid))
    total = Scores(scores.names)
    total.add_table(gather(scores.table()))
    images, left_out, cropped = (total.count(name) for name in COUNTS)
    means = {name: value for name, value in total.means().items() if name not in COUNTS}
    return EvalResult(means=means, images=images, left_out=left_out, cropped=cropped)


def _pairs(protocols: Iterable[str]) -> list[tuple[str, str]]:
    """Baseline and protocol of every group that is scored."""
    pairs = [(baseline, protocol) for baseline in BASELINES for protocol in protocols]
    return [pair for pair in pairs if pair not in UNDEFINED]


def _names(blind: Iterable[str]) -> list[str]:
    groups = [*PROTOCOLS, *(baseline_group(*pair) for pair in _pairs(blind))]
    return [f"{group}/{metric}" for group in groups for metric in METRICS] + ["loss", *COUNTS]


def _score(pred: Tensor, depth: Tensor, pixels: Tensor, *, max_depth: float) -> dict[str, float]:
    if not pixels.numel():
        return {"left_out": 1.0}
    size = (depth.shape[0], depth.shape[1])
    gt = depth.flatten()[pixels]
    groups = score_pixels(resized(pred, size).flatten()[pixels], gt, max_depth=max_depth)
    return _flat(groups) | {"images": 1.0} | ({"cropped": 1.0} if is_cropped(size) else {})


def _score_baselines(
    baselines: Baselines,
    depth: Tensor,
    pixels: Tensor,
    *,
    protocols: Mapping[str, Protocol],
    max_depth: float,
) -> dict[str, float]:
    gt = depth.flatten()[pixels]
    groups: dict[str, dict[str, float]] = {}
    for name, blind in baselines.predictions((depth.shape[0], depth.shape[1])).items():
        asked = {key: p for key, p in protocols.items() if (name, key) not in UNDEFINED}
        rows = score_pixels(blind.flatten()[pixels], gt, max_depth=max_depth, protocols=asked)
        groups |= {baseline_group(name, protocol): row for protocol, row in rows.items()}
    return _flat(groups)


def _flat(groups: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    return {f"{group}/{name}": v for group, row in groups.items() for name, v in row.items()}


def _loss(loss: Loss, pred: Tensor, depth: Tensor, valid: Tensor) -> dict[str, float]:
    size = (pred.shape[0], pred.shape[1])
    depth, valid = nearest(depth, size), nearest(valid, size)
    if not valid.any():
        return {}
    log_depth = pred.clamp(min=torch.finfo(torch.float32).tiny).log()
    value = loss(log_depth[None, None], depth[None, None], valid[None, None])
    return {"loss": value.item()}
