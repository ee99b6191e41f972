"""What a pack would hold, and the bytes and time it would take, measured on a few of its frames."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llm_mde.data.layout import Layout, PackSettings, lay_out
from llm_mde.data.shard import load_sample, selected
from llm_mde.data.sources import collect
from llm_mde.launcher import cores
from llm_mde.nyu.aligned import Pattern
from llm_mde.nyu.scenes import SPLITS
from llm_mde.progress import duration

TRIED = 8  # frames packed in memory, spread over the scenes


@dataclass(frozen=True)
class Estimate:
    """What would be packed."""

    scenes: int
    frames: dict[str, int]
    """Frames of each split."""
    shards: int
    input_bytes: int
    output_bytes: int
    """Estimated."""
    seconds: float
    """Estimated."""
    jobs: int
    ms_per_frame: float
    """Median of the frames tried, on one core."""
    tried: int
    unusable: int
    """Of those tried."""

    def lines(self) -> list[str]:
        """The estimate for people."""
        frames = ", ".join(f"{split} {count}" for split, count in self.frames.items() if count)
        total = sum(self.frames.values())
        unusable = f", {self.unusable} of them unusable" if self.unusable else ""
        return [
            f"would pack {total} frames, scenes: {self.scenes}, shards: {self.shards}: {frames}",
            f"input {_size(self.input_bytes)}, output about {_size(self.output_bytes)}, "
            f"time about {duration(self.seconds)} on {self.jobs} processes "
            f"({self.ms_per_frame:.0f} ms a frame, {self.tried} tried{unusable})",
        ]

    def payload(self) -> dict[str, Any]:
        """The estimate as one JSON object."""
        return asdict(self)


def estimate(
    sources: Sequence[Path],
    settings: PackSettings,
    *,
    pattern: Pattern | None = None,
    list_file: Path | None = None,
    jobs: int | None = None,
) -> Estimate:
    """Lay out a pack and try a few frames of it; nothing is written.

    Arguments and errors as `llm_mde.data.pack.pack`.
    """
    layout = lay_out(collect(sources, pattern=pattern, list_file=list_file), settings)
    jobs = min(jobs or cores(), len(layout.shards))
    tried = _try(layout, settings)
    spans = [size for size, _ in tried if size]
    seconds = sorted(second for _, second in tried)[len(tried) // 2]
    frames = Counter({split: 0 for split in SPLITS})
    for placed in layout.scenes:
        frames[placed.split] += placed.frames
    return Estimate(
        scenes=len(layout.scenes),
        frames=dict(frames),
        shards=len(layout.shards),
        input_bytes=layout.input_bytes,
        output_bytes=round(sum(spans) / max(1, len(tried)) * layout.frames),
        seconds=seconds * layout.frames / jobs,
        jobs=jobs,
        ms_per_frame=1000 * seconds,
        tried=len(tried),
        unusable=len(tried) - len(spans),
    )


def _try(layout: Layout, settings: PackSettings) -> list[tuple[int, float]]:
    """Bytes (0 where it cannot be used) and seconds of a few frames, the first one unmeasured."""
    filled = [placed.scene for placed in layout.scenes if placed.frames]
    count = min(TRIED, layout.frames)
    results = []
    for number in range(-1, count):  # the first time builds tables and compiles
        at = max(number, 0)
        scene = filled[at * len(filled) // count]
        pairs = selected(scene, settings.stride)
        started = time.perf_counter()
        pair = pairs[at * len(pairs) // count]
        sample, _ = load_sample(scene, pair, depth_codec=settings.depth_codec, fill=settings.fill)
        size = 0 if sample is None else len(sample[1])
        if number >= 0:
            results.append((size, time.perf_counter() - started))
    return results


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
