"""Small shard folders written sample by sample, without registration."""

import hashlib
import json
from pathlib import Path

import numpy as np

from llm_mde.data import record
from llm_mde.nyu.frame import Frame


def frame(number: int, size: tuple[int, int]) -> Frame:
    """Smooth colours and slanted depth that differ from frame to frame; depth 0 in a corner."""
    height, width = size
    v, u = np.mgrid[0:height, 0:width]
    rgb = np.stack([u * 255 // width, v * 255 // height, (u + v + 13 * number) % 256], axis=-1)
    depth_mm = 1000 + 10 * number + 5 * u + 3 * v
    depth_mm[: height // 8, : width // 8] = 0
    return Frame(rgb.astype(np.uint8), depth_mm.astype(np.uint16), "office_0001", number, 0.0)


def write_shards(
    folder: Path, counts: list[int], *, split: str = "train", size: tuple[int, int] = (32, 40)
) -> Path:
    """One split with `counts[i]` samples in shard i, beside the splits already there."""
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    keys, number = [], 0
    with (folder / "index.jsonl").open("a") as index:
        for shard, count in enumerate(counts):
            name, offset = f"{split}-{shard:06d}.tar", 0
            with (folder / name).open("wb") as tar:
                for _ in range(count):
                    members = record.encode(frame(number, size))
                    del members["__key__"]
                    key = f"{split}_0001-{number:06d}"
                    span = record.tar_span(key, members)
                    tar.write(span)
                    place = {"key": key, "shard": name, "offset": offset, "size": len(span)}
                    digest = hashlib.sha256(span).hexdigest()
                    index.write(json.dumps(place | {"sha256": digest}) + "\n")
                    offset += len(span)
                    keys.append(key)
                    number += 1
                tar.write(bytes(1024))
    (folder / "splits" / f"{split}.txt").write_text("".join(f"{key}\n" for key in keys))
    return folder
