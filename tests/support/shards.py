"""Small shard folders written sample by sample, without registration."""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from llm_mde.data import record
from llm_mde.nyu.frame import Frame


def frame(
    number: int, size: tuple[int, int], *, scene: str = "office_0001", filled: bool = False
) -> Frame:
    """Smooth colours and slanted depth that differ from frame to frame; depth 0 in a corner.

    filled: the corner is there, too, in a second depth map.
    """
    height, width = size
    v, u = np.mgrid[0:height, 0:width]
    rgb = np.stack([u * 255 // width, v * 255 // height, (u + v + 13 * number) % 256], axis=-1)
    whole_mm = (1000 + 10 * number + 5 * u + 3 * v).astype(np.uint16)
    depth_mm = whole_mm.copy()
    depth_mm[: height // 8, : width // 8] = 0
    return Frame(
        rgb.astype(np.uint8),
        depth_mm,
        scene,
        number,
        0.0,
        filled_mm=whole_mm if filled else None,
    )


def write_shards(
    folder: Path,
    counts: list[int],
    *,
    split: str = "train",
    size: tuple[int, int] = (32, 40),
    scene: str | None = None,
    filled: bool = False,
) -> Path:
    """One split with `counts[i]` samples in shard i, beside the splits already there.

    All are of one scene, `<split>_0001` by default.
    """
    scene = scene or f"{split}_0001"
    (folder / "splits").mkdir(parents=True, exist_ok=True)
    keys, number = [], 0
    with (folder / "index.jsonl").open("a") as index:
        for shard, count in enumerate(counts):
            name, offset = f"{split}-{shard:06d}.tar", 0
            with (folder / name).open("wb") as tar:
                for _ in range(count):
                    members = record.encode(frame(number, size, scene=scene, filled=filled))
                    key = str(members.pop("__key__"))
                    span = record.tar_span(key, members)
                    tar.write(span)
                    index.write(json.dumps(row(key, name, offset, span)) + "\n")
                    offset += len(span)
                    keys.append(key)
                    number += 1
                tar.write(bytes(1024))
    (folder / "splits" / f"{split}.txt").write_text("".join(f"{key}\n" for key in keys))
    return folder


def row(key: str, shard: str, offset: int, span: bytes) -> dict[str, Any]:
    """A line of the index."""
    place = {"key": key, "shard": shard, "offset": offset, "size": len(span)}
    return place | {"sha256": hashlib.sha256(span).hexdigest()}


def rows(folder: Path) -> list[dict[str, Any]]:
    """The lines of the index."""
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def write_rows(folder: Path, changed: list[dict[str, Any]]) -> None:
    """Another index."""
    (folder / "index.jsonl").write_text("".join(json.dumps(line) + "\n" for line in changed))


def seal(folder: Path) -> Path:
    """A pack.json that agrees with the index, the shards and the key lists as they are."""
    content = (folder / "index.jsonl").read_bytes()
    held = Counter(line["shard"] for line in rows(folder))
    shards = {
        path.name: {
            "samples": held[path.name],
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(folder.glob("*.tar"))
    }
    splits = {}
    for split in ("train", "val", "test", "heldout"):
        own = [shard["samples"] for name, shard in shards.items() if name.startswith(f"{split}-")]
        splits[split] = {"samples": sum(own), "shards": len(own)}
    lists = {
        path.stem: {"samples": len(path.read_text().split())}
        for path in sorted(folder.glob("splits/*.txt"))
        if path.stem not in splits
    }
    manifest = {
        "format_version": 2,
        "samples": sum(held.values()),
        "splits": splits,
        "lists": lists,
        "shards": shards,
        "index_sha256": hashlib.sha256(content).hexdigest(),
    }
    (folder / "pack.json").write_text(json.dumps(manifest))
    return folder


def write_pack(folder: Path, **settings: Any) -> Path:
    """A whole pack: 5 samples of `train` in two shards, 2 of `val`, 1 of `test`, a key list."""
    write_shards(folder, [3, 2], split="train", scene="office_0001", **settings)
    write_shards(folder, [2], split="val", scene="study_0002", **settings)
    write_shards(folder, [1], split="test", scene="cafe_0003", **settings)
    (folder / "splits" / "few.txt").write_text("office_0001-000001\noffice_0001-000004\n")
    return seal(folder)
