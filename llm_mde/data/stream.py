"""Shards to batches through the shard plan; webdataset's only home.

The pipeline is a `wds.DataPipeline` behind a source stage of ours that follows the plan through the
index (shard, offset, size, checksum): the stock readers lose half a damaged shard without an error.
"""

import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, get_worker_info

from llm_mde.config import AugmentConfig
from llm_mde.data import record
from llm_mde.data.augment import augment, draw
from llm_mde.data.index import Entry, Index, Shards
from llm_mde.data.plan import Part, Plan, every_sample_once
from llm_mde.errors import ConfigError, DataError, LlmMdeError

Batch = dict[str, Any]
RESIZES = ("bilinear", "bicubic")  # what torch antialiases


def decode(
    shards: Shards,
    entry: Entry,
    *,
    draft: tuple[int, int] | None = None,
    filled: bool = False,
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
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


def _images(rgbs: Sequence[NDArray[np.uint8]]) -> Tensor:
    return torch.from_numpy(np.stack(rgbs)).permute(0, 3, 1, 2).contiguous()  # (B, 3, h, w)


def _depths(depths_mm: Sequence[NDArray[np.uint16]], max_depth: float) -> tuple[Tensor, Tensor]:
    metres, valid = to_metres(np.stack(depths_mm)[:, None], max_depth)  # (B, 1, H, W)
    return torch.from_numpy(metres), torch.from_numpy(valid)


def _worker() -> tuple[int, int]:
    info = get_worker_info()
    return (info.id, info.num_workers) if info else (0, 1)


class Planned:
    """Source stage: the micro-batches of one rank, epoch after epoch, from one global batch on.

    Each item is (epoch, positions, entries). Inside a DataLoader the worker takes its own share.
    """

    def __init__(self, index: Index, plan: Plan, *, part: Part, epoch: int, start: int) -> None:
        self.index, self.plan, self.part, self.at = index, plan, part, (epoch, start)

    def __call__(self) -> Iterator[tuple[int, list[int], list[Entry]]]:
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
    ) -> None:
        self.shards = Shards(index.folder)
        self.shape, self.augmentation, self.seed, self.filled = shape, augmentation, seed, filled
        self.cache: dict[str, tuple[NDArray[np.uint8], NDArray[np.uint16]]] | None = (
            {} if cache else None
        )

    def _resized(self, entry: Entry) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
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

    def __call__(self, source: Iterable[tuple[int, list[int], list[Entry]]]) -> Iterator[Batch]:
        """Micro-batches: image uint8 (B, 3, h, w), depth (B, 1, h, w) metres, valid, key, epoch."""
        for epoch, positions, entries in source:
            rgbs, depths_mm = zip(*[self._resized(entry) for entry in entries], strict=True)
            image, (depth, valid) = _images(rgbs), _depths(depths_mm, self.shape.max_depth)
            config = self.augmentation
            draws = draw(config, seed=self.seed, epoch=epoch, positions=positions)
            image, depth, valid = augment(image, depth, valid, config=config, draws=draws)
            keys = [entry.key for entry in entries]
            yield {"image": image, "depth": depth, "valid": valid, "key": keys, "epoch": epoch}


class Evaluation:
    """Source and stage of an evaluation: every sample once, at the packed size."""

    def __init__(self, index: Index, shape: Shape, *, batch: int, part: Part) -> None:
        self.index, self.shape, self.batch, self.part = index, shape, batch, part
        self.shards = Shards(index.folder)

    def __call__(self) -> Iterator[Batch]:
        """Batches: image uint8 (B, 3, h, w), depth (B, 1, H, W) metres, valid, weight (B,), key."""
        worker, workers = _worker()
        entries = self.index.entries
        for turn, batch in enumerate(every_sample_once(len(entries), self.batch, self.part)):
            if turn % workers == worker:
                yield self._batch([entries[at] for at, _ in batch], [real for _, real in batch])

    def _batch(self, entries: list[Entry], real: list[bool]) -> Batch:
        frames = {entry: decode(self.shards, entry) for entry in dict.fromkeys(entries)}
        sizes = sorted({depth_mm.shape for _, depth_mm in frames.values()})
        if len(sizes) > 1:
            raise DataError(
                f"{self.index.folder}, split {self.index.split}: frames of several sizes {sizes} "
                "in one evaluation batch; evaluate one at a time or pack each size apart"
            )
        size, interpolation = self.shape.size, self.shape.interpolation
        images = [resize_image(frames[entry][0], size, interpolation) for entry in entries]
        depth, valid = _depths([frames[entry][1] for entry in entries], self.shape.max_depth)
        return {
            "image": _images(images),
            "depth": depth,
            "valid": valid,
            "weight": torch.tensor([float(counts) for counts in real]),
            "key": [entry.key for entry in entries],
        }


def _as_value(source: Iterable[Batch]) -> Iterator[Batch | LlmMdeError]:
    # A DataLoader would hand on a worker's error with its whole traceback as the message.
    try:
        yield from source
    except LlmMdeError as error:
        yield error


def _start_worker(worker: int) -> None:
    # A launcher signals every process of a job; the rank itself decides what to do, and stays fed.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)


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
                worker_init_fn=_start_worker,
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
) -> Iterable[Batch]:
    """Endless micro-batches of one rank in the plan's order, from batch `start` of `epoch` on.

    filled: train on the depth without holes; evaluation and baselines always take the readings.
    """
    plan.check_ranks(part.ranks)
    return Batches(
        Planned(index, plan, part=part, epoch=epoch, start=start),
        Prepare(
            index, shape, augmentation=augmentation, seed=plan.seed, cache=cache, filled=filled
        ),
        workers=workers,
    )


def evaluation_batches(
    index: Index, shape: Shape, *, batch: int, part: Part, workers: int = 0
) -> Iterable[Batch]:
    """Every sample of a split once over all ranks, in the written order."""
    return Batches(Evaluation(index, shape, batch=batch, part=part), workers=workers)


def depths(
    index: Index, *, max_depth: float, every: int = 1
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Depth in metres and valid, (H, W), of every n-th sample: what the baselines are fitted on."""
    shards = Shards(index.folder)
    for entry in index.entries[::every]:
        yield to_metres(decode(shards, entry, draft=(1, 1))[1], max_depth)
