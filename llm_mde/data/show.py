"""One sample of a shard as a picture and in words, from a pack or from any tar of such samples."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import INDEX, Entry, read_entries
from llm_mde.data.members import BLOCK, Place, Stream, walk
from llm_mde.data.samples import Shards
from llm_mde.errors import ConfigError, DataError

ENDS = 3  # keys named at each end of a shard
_TARGET = re.compile(r"(?:(?P<folder>.*)/)?(?P<shard>[^/:]+\.tar)(?::(?P<key>[^/:]+))?")
_SAMPLE = re.compile(r"(?P<folder>.+):(?P<key>[^/:]+)")


@dataclass(frozen=True)
class Inspection:
    """What `llm-mde inspect` says of a sample."""

    key: str
    shard: str
    offset: int
    """Bytes before the sample in its shard."""
    bytes: dict[str, int]
    """Of each member, without header and padding."""
    sha256: str | None
    """Of the sample, as the index says and its bytes are; None where no index lies beside it."""
    size: tuple[int, int]
    """Height and width in pixels."""
    depth_m: tuple[float, float] | None
    """Least and largest reading, metres; None without one."""
    holes: float
    """Share of pixels without a reading."""
    meta: dict[str, Any]
    keys: tuple[str, ...]
    """First and last keys of the shard; empty where one sample was asked for."""
    samples: int
    """Samples of the shard; 0 where one was asked for."""
    picture: Path

    def lines(self) -> list[str]:
        """For people."""
        lines = []
        if self.samples:
            lines += [f"{self.shard}: {self.samples} samples: {', '.join(self.keys)}"]
        place = f"byte {self.offset} of {self.shard}"
        members = ", ".join(f"{name} {size}" for name, size in self.bytes.items())
        checksum = f"{self.sha256} ok" if self.sha256 else f"unknown, no {INDEX} beside the shard"
        depth = "no reading"
        if self.depth_m is not None:
            depth = f"{self.depth_m[0]:.3f} to {self.depth_m[1]:.3f} m"
        return [
            *lines,
            f"{self.key}: {place}",
            f"bytes: {members}",
            f"sha256: {checksum}",
            f"size: {self.size[1]}x{self.size[0]}",
            f"depth: {depth}, {100 * self.holes:.1f} % without a reading",
            *(
                f"{json.dumps(name):.40}: {json.dumps(value):.200}"
                for name, value in self.meta.items()
            ),
            f"picture: {self.picture}",
        ]

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"picture": str(self.picture)}


def inspect(target: str, *, out: Path | None = None) -> Inspection:
    """Draw one sample beside its depth and say what it holds.

    target: `FOLDER/train-000000.tar:KEY`, `FOLDER/train-000000.tar` (its first sample, and what
    else there is) or, in a pack, `FOLDER:KEY`; a folder is a path or a URL. out: the PNG,
    `<KEY>.png` in the working folder by default.

    Raises:
        ConfigError: another form of target.
        DataError: no such shard or sample, or a damaged one.
    """
    folder, shard, key = _parse(target)
    rows = read_entries(folder.read(INDEX), folder.at(INDEX)) if folder.exists(INDEX) else ()
    entries = [entry for entry in rows if shard == entry.shard or (not shard and key == entry.key)]
    if entries:
        entry = _choose(entries, key, target)
        sample = Shards(folder).read(entry)
    elif shard is None:
        raise DataError(f"{folder}: {INDEX} holds no sample {key}; name its shard")
    else:
        places = list(walk(Stream(folder, shard), folder.at(shard)))
        entries = [Entry(key, shard, at, 0, "") for key, at in _starts(places).items()]
        entry = _choose(entries, key, target)
        sample = _read(folder, entry, places)
    return _inspection(folder, entry, sample, keys=[] if key else [e.key for e in entries], out=out)


def _parse(target: str) -> tuple[ShardFolder, str | None, str | None]:
    """Folder, shard and key, the latter two where the target names them."""
    found = _TARGET.fullmatch(target)
    if found is not None:
        folder = "." if found["folder"] is None else found["folder"] or "/"
        return ShardFolder(folder), found["shard"], found["key"]
    found = _SAMPLE.fullmatch(target)
    if found is None:
        raise ConfigError(
            f"{target}: expected FOLDER/SHARD.tar, FOLDER/SHARD.tar:KEY or FOLDER:KEY"
        )
    return ShardFolder(found["folder"]), None, found["key"]


def _choose(entries: list[Entry], key: str | None, target: str) -> Entry:
    """The sample asked for, the first one by default."""
    for entry in entries:
        if key in (None, entry.key):
            return entry
    held = f"{len(entries)} samples, the first {entries[0].key}" if entries else "no sample"
    raise DataError(f"{target}: no such sample, the shard holds {held}")


def _starts(places: Iterable[Place]) -> dict[str, int]:
    """Key to the byte at which its first member's header begins."""
    starts: dict[str, int] = {}
    for place in places:
        starts.setdefault(place.header.key, place.offset - BLOCK)
    return starts


def _read(folder: ShardFolder, entry: Entry, places: Iterable[Place]) -> dict[str, Any]:
    """The members of one sample of a tar without index."""
    sample: dict[str, Any] = {}
    for (key, member, size), offset in places:
        if key != entry.key:
            continue
        if member in sample:
            raise DataError(f"{folder.at(entry.shard)}, sample {key}: {member} is there twice")
        sample[member] = folder.read_range(entry.shard, offset, size) if size else b""
    return {"__key__": entry.key, **sample}


def _inspection(
    folder: ShardFolder,
    entry: Entry,
    sample: dict[str, Any],
    *,
    keys: list[str],
    out: Path | None,
) -> Inspection:
    from llm_mde.figures import depth_panels

    members = {name: len(part) for name, part in sample.items() if not name.startswith("__")}
    try:
        decoded = record.decode(sample, filled=any(name.startswith("filled.") for name in members))
    except DataError as error:
        raise DataError(f"{folder.at(entry.shard)}, {error}") from error
    depths = {"depth": decoded.depth_mm / 1000}
    if decoded.filled_mm is not None:
        depths["filled depth"] = decoded.filled_mm / 1000
    readings = decoded.depth_mm[decoded.depth_mm > 0]
    title = entry.key
    picture = depth_panels(decoded.rgb, depths, out or Path(f"{entry.key}.png"), title=title)
    ends = keys if len(keys) <= 2 * ENDS else [*keys[:ENDS], "...", *keys[-ENDS:]]
    return Inspection(
        key=entry.key,
        shard=folder.at(entry.shard),
        offset=entry.offset,
        bytes=members,
        sha256=entry.sha256 or None,
        size=(decoded.rgb.shape[0], decoded.rgb.shape[1]),
        depth_m=(float(readings.min() / 1000), float(readings.max() / 1000))
        if readings.size
        else None,
        holes=1 - readings.size / decoded.depth_mm.size,
        meta=decoded.meta,
        keys=tuple(ends),
        samples=len(keys),
        picture=picture,
    )
