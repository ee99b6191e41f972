"""Shards to batches through the shard plan; webdataset's only home.

The pipeline is a `wds.DataPipeline` behind a source stage of ours that follows the plan through the
index (shard, offset, size, checksum): the stock readers lose half a damaged shard without an error.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import torch
import webdataset as wds
from torch.utils.data import DataLoader, get_worker_info

from llm_mde.config import AugmentConfig
from llm_mde.data.augment import augment, draw
from llm_mde.data.index import Entry, Index
from llm_mde.data.loaders import loader_settings
from llm_mde.data.pixels import (
    Frame,
    Shape,
    blank,
    decode,
    resize_image,
    resize_nearest,
    to_depths,
    to_images,
)
from llm_mde.data.plan import Part, Plan, every_sample_once
from llm_mde.data.samples import Shards
from llm_mde.errors import DataError, LlmMdeError, StoreError

Batch = dict[str, Any]
Micro = tuple[int, list[int], list[Entry]]
"""Epoch, positions in it and samples of one micro-batch."""


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


class Planned:
    """Source stage: the micro-batches of one rank, epoch after epoch, from one global batch on.

    Each item is (epoch, positions, entries). Inside a DataLoader the worker takes its own share.
    """

    def __init__(self, index: Index, plan: Plan, *, part: Part, epoch: int, start: int) -> None:
        self.index, self.plan, self.part, self.at = index, plan, part, (epoch, start)

    def __call__(self) -> Iterator[Micro]:
        """Endless; workers take micro-batches in turn, and turns go on across epochs."""
        worker, workers = _worker()
        epoch, start = self.at
        turn = 0
        while True:
            order = self.plan.epoch(epoch)
            for positions in order.micro_batches(self.part, start=start):
                if turn % workers == worker:
                    places = [order.sample(at) for at in positions]
                    yield epoch, positions, [self.index.shards[shard][at] for shard, at in places]
                turn += 1
            epoch, start = epoch + 1, 0


class Prepare:
    """Stage: entries to resized, augmented micro-batches; `cache` keeps resized samples."""

    def __init__(
        self,
        index: Index,
        shape: Shape,
        *,
        augmentation: AugmentConfig,
        seed: int,
        cache: bool,
        filled: bool,
        blanks: bool,
    ) -> None:
        self.shards, self.blanks = Shards(index.folder), blanks
        self.shape, self.augmentation, self.seed, self.filled = shape, augmentation, seed, filled
        self.cache: dict[str, Frame] | None = {} if cache else None

    def _resized(self, entry: Entry) -> Frame:
        if self.cache is not None and entry.key in self.cache:
            return self.cache[entry.key]
        size, interpolation = self.shape.size, self.shape.interpolation
        # Twice the network's size keeps the antialiasing ours; the JPEG is cheaper to decode small.
        draft = (2 * size[0], 2 * size[1])
        rgb, depth_mm = decode(self.shards, entry, draft=draft, filled=self.filled)
        pair = resize_image(rgb, size, interpolation), resize_nearest(depth_mm, size)
        if self.cache is not None:
            self.cache[entry.key] = pair
        return pair

    def _resized_or_blank(self, entry: Entry, lost: dict[str, str]) -> Frame:
        try:
            return self._resized(entry)
        except DataError as error:
            if not self.blanks or isinstance(error, StoreError):
                raise
            lost[entry.key] = str(error)
            return blank(self.shape.size)

    def _wanted(self, item: Micro) -> list[Entry]:
        return [entry for entry in item[2] if self.cache is None or entry.key not in self.cache]

    def __call__(self, source: Iterable[Micro]) -> Iterator[Batch]:
        """Micro-batches: image uint8 (B, 3, h, w), depth (B, 1, h, w) metres, valid, key, epoch.

        And lost: why samples of the batch are blank, by key.
        """
        for epoch, positions, entries in self.shards.ahead(source, self._wanted):
            lost: dict[str, str] = {}
            pairs = [self._resized_or_blank(entry, lost) for entry in entries]
            rgbs, depths_mm = zip(*pairs, strict=True)
            image, (depth, valid) = to_images(rgbs), to_depths(depths_mm, self.shape.max_depth)
            config = self.augmentation
            draws = draw(config, seed=self.seed, epoch=epoch, positions=positions)
            image, depth, valid = augment(image, depth, valid, config=config, draws=draws)
            keys = [entry.key for entry in entries]
            tensors = {"image": image, "depth": depth, "valid": valid}
            yield {**tensors, "key": keys, "epoch": epoch, "lost": lost}


class Evaluation:
    """Source and stage of an evaluation: every sample once, at the packed size."""

    def __init__(self, index: Index, shape: Shape, *, batch: int, part: Part, blanks: bool) -> None:
        self.index, self.shape, self.batch, self.part = index, shape, batch, part
        self.shards, self.blanks = Shards(index.folder), blanks

    def __call__(self) -> Iterator[Batch]:
        """Batches: image uint8 (B, 3, h, w), depth (B, 1, H, W) metres, valid, weight (B,), key.

        And lost: why samples of the batch are blank, by key; they have weight 0.
        """
        worker, workers = _worker()
        entries = self.index.entries
        batches = every_sample_once(len(entries), self.batch, self.part)
        mine = islice(batches, worker, None, workers)
        for batch in self.shards.ahead(mine, lambda batch: [entries[at] for at, _ in batch]):
            yield self._batch([entries[at] for at, _ in batch], [real for _, real in batch])

    def _batch(self, entries: list[Entry], real: list[bool]) -> Batch:
        frames, lost = self._frames(entries)
        sizes = sorted({depth_mm.shape for _, depth_mm in frames.values()})
        if len(sizes) > 1:
            why = (
                f"{self.index.folder}, split {self.index.split}: frames of several sizes {sizes} "
                "in one evaluation batch; evaluate one at a time or pack each size apart"
            )
            if not self.blanks:
                raise DataError(why)
            lost = dict.fromkeys(frames, why)
            frames = dict.fromkeys(frames, blank(self.shape.size))
        size, interpolation = self.shape.size, self.shape.interpolation
        images = [resize_image(frames[entry][0], size, interpolation) for entry in entries]
        depth, valid = to_depths([frames[entry][1] for entry in entries], self.shape.max_depth)
        return {
            "image": to_images(images),
            "depth": depth,
            "valid": valid,
            "weight": torch.tensor(
                [float(counts and e not in lost) for e, counts in zip(entries, real, strict=True)]
            ),
            "key": [entry.key for entry in entries],
            "lost": {entry.key: why for entry, why in lost.items()},
        }

    def _frames(self, entries: list[Entry]) -> tuple[dict[Entry, Frame], dict[Entry, str]]:
        """Each sample once, and why those that are blank cannot be read."""
        frames: dict[Entry, Frame] = {}
        lost: dict[Entry, str] = {}
        for entry in dict.fromkeys(entries):
            try:
                frames[entry] = decode(self.shards, entry)
            except DataError as error:
                if not self.blanks or isinstance(error, StoreError):
                    raise
                lost[entry] = str(error)
        sizes = [depth_mm.shape for _, depth_mm in frames.values()] or [self.shape.size]
        return frames | dict.fromkeys(lost, blank(sizes[0])), lost


def _as_value(source: Iterable[Batch]) -> Iterator[Batch | LlmMdeError]:
    # A DataLoader would hand on a worker's error with its whole traceback as the message.
    try:
        yield from source
    except LlmMdeError as error:
        yield error


class Batches:
    """What stages make, in this process or in loader processes; each pass starts anew."""

    def __init__(self, *stages: Callable[..., Any], workers: int) -> None:
        self._source: Iterable[Batch | LlmMdeError] = wds.DataPipeline(*stages, _as_value)
        if workers:
            self._source = DataLoader(
                self._source,
                batch_size=None,
                num_workers=workers,
                pin_memory=torch.cuda.is_available(),
                **loader_settings(),
            )

    def __iter__(self) -> Iterator[Batch]:
        """Batches in the plan's order, whatever the number of loader processes.

        Raises:
            DataError: names shard, sample and cause, from loader processes too.
        """
        for item in self._source:
            if isinstance(item, LlmMdeError):
                raise item
            yield item


def training_batches(
    index: Index,
    plan: Plan,
    shape: Shape,
    *,
    part: Part,
    augmentation: AugmentConfig,
    workers: int = 0,
    cache: bool = False,
    filled: bool = False,
    epoch: int = 0,
    start: int = 0,
    blanks: bool = False,
) -> Iterable[Batch]:
    """Endless micro-batches of one rank in the plan's order, from batch `start` of `epoch` on.

    filled: train on the depth without holes; evaluation and baselines always take the readings.
    blanks: put a black image without depth where a damaged sample would be an error, so that a rank
    stays in step with the others; the batch's `lost` says why.
    """
    plan.check_ranks(part.ranks)
    return Batches(
        Planned(index, plan, part=part, epoch=epoch, start=start),
        Prepare(
            index,
            shape,
            augmentation=augmentation,
            seed=plan.seed,
            cache=cache,
            filled=filled,
            blanks=blanks,
        ),
        workers=workers,
    )


def evaluation_batches(
    index: Index,
    shape: Shape,
    *,
    batch: int,
    part: Part,
    workers: int = 0,
    blanks: bool = False,
) -> Iterable[Batch]:
    """Every sample of a split once over all ranks, in the written order; `blanks` as above."""
    stage = Evaluation(index, shape, batch=batch, part=part, blanks=blanks)
    return Batches(stage, workers=workers)


def noting(batches: Iterable[Batch], lost: dict[str, str]) -> Iterator[Batch]:
    """The batches, while what they have lost goes to `lost`: why, by key."""
    for batch in batches:
        lost |= batch["lost"]
        yield batch
