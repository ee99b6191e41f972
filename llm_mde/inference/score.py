"""Scores of an adapter on a split of a shard folder, under every protocol."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from llm_mde import dist
from llm_mde.config import DataConfig
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import Index
from llm_mde.data.kept import disk_cache
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part
from llm_mde.data.stream import evaluation_batches, noting
from llm_mde.errors import DataError
from llm_mde.inference.adapter import load
from llm_mde.inference.card import in_words
from llm_mde.model.depth_model import DepthModel
from llm_mde.scoring.baselines import Baselines, baselines_of
from llm_mde.scoring.evaluate import CONSTANT_NOTE, EvalResult, baseline_group, evaluate
from llm_mde.scoring.losses import silog
from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import PROTOCOLS, score_image

BLIND = {"mean_map": "mean depth map", "constant": "median depth"}


@dataclass(frozen=True)
class Scores:
    """What `llm-mde eval` says."""

    source: Path
    split: str
    baselines: str
    """The key list that they were fitted on."""
    result: EvalResult

    def payload(self) -> dict[str, Any]:
        """For JSON: which pixels, then every number."""
        return {
            "source": str(self.source),
            "split": self.split,
            "baselines": self.baselines,
            "images": self.result.images,
            "left_out": self.result.left_out,
            "crop": self.result.crop,
            "scores": self.result.named(self.split),
        }

    def lines(self) -> list[str]:
        """A table: a block a protocol, a row the model or a baseline, a column a metric."""
        width = 2 + max(map(len, BLIND.values()))
        seen = f"{self.result.images} images, crop {self.result.crop}"
        lines = [f"{self.split}: {seen}, baselines of {self.baselines}"]
        lines.append(" " * width + "".join(f"{name:>10}" for name in METRICS))
        for protocol in PROTOCOLS:
            lines.append(in_words(protocol))
            lines.append(self._line("model", protocol, width))
            for name, title in BLIND.items():
                lines.append(self._line(title, baseline_group(name, protocol), width))
        return [*lines, *CONSTANT_NOTE.split("; ")]

    def _line(self, title: str, group: str, width: int) -> str:
        values = [self.result.means.get(f"{group}/{name}") for name in METRICS]
        cells = "".join(f"{'-':>10}" if v is None else f"{v:10.4f}" for v in values)
        return f"{'  ' + title:<{width}}{cells}"


def score(
    source: Path, index: Index, *, train_index: Index, batch: int, cache: Path | None = None
) -> Scores | None:
    """Score an adapter or run folder on the samples of `index`.

    Every rank takes its share; None on every rank but 0, and where another rank met an error.

    Args:
        source: an adapter folder or the folder of a run.
        index: the samples to score.
        train_index: the samples whose depths make the baselines.
        batch: images of one forward pass.
        cache: keeps samples of a URL.

    Raises:
        DataError: a damaged shard, on the rank that read it; a cache that cannot be written.
        CheckpointError: the adapter cannot be used.
    """
    ranks = dist.join()
    try:
        url = index.folder.url
        kept = disk_cache(DataConfig(shards=url, disk_cache=cache))
        index, train_index = (
            replace(one, folder=ShardFolder(url, cache=kept)) for one in (index, train_index)
        )
        model = load(source).to(ranks.device)
        max_depth = model.config.max_depth
        baselines = dist.on_rank_0(lambda: baselines_of(train_index, max_depth=max_depth))
        result = _score(model, index, baselines=baselines, batch=batch)
        if result is None:
            return None
        return Scores(source, index.split, train_index.split, result)
    finally:
        dist.leave(ranks)


def _score(
    model: DepthModel, index: Index, *, baselines: Baselines, batch: int
) -> EvalResult | None:
    config, device = model.config, model.mean.device
    shape = Shape(config.image_size, model.vit.interpolation, config.max_depth)
    part = Part(dist.rank(), dist.world())
    lost: dict[str, str] = {}
    result = evaluate(
        lambda image: model.predict(image.to(device)),
        noting(evaluation_batches(index, shape, batch=batch, part=part, blanks=True), lost),
        loss=silog,
        baselines=baselines,
        baseline_protocols=PROTOCOLS,
        max_depth=config.max_depth,
        gather=dist.gather_rows,
    )
    dist.raise_together(DataError(next(iter(lost.values()))) if lost else None)
    return None if part.rank else result


class ImageScore(NamedTuple):
    """One image of a split."""

    key: str
    pred: Tensor
    """(h, w) metres, at the network's size."""
    scores: dict[str, dict[str, float]] | None
    """Protocol -> metric -> number; None where no pixel counts."""


@torch.inference_mode()
def image_scores(
    model: DepthModel, index: Index, *, max_depth: float, batch: int
) -> Iterator[ImageScore]:
    """Each image of a split with its own scores, whose means are those of `score`; in one process.

    max_depth: of the truth in metres; models of different ranges are scored on the same pixels by
    the smaller one.

    Raises:
        DataError: a damaged shard.
    """
    shape = Shape(model.config.image_size, model.vit.interpolation, max_depth)
    for read in evaluation_batches(index, shape, batch=batch, part=Part()):
        preds = model.predict(read["image"].to(model.mean.device)).cpu()  # (B, 1, h, w)
        for at in read["weight"].nonzero().flatten().tolist():
            pred, depth, valid = preds[at, 0], read["depth"][at, 0], read["valid"][at, 0]
            scores = score_image(pred, depth, valid, max_depth=max_depth)
            yield ImageScore(read["key"][at], pred, scores)
