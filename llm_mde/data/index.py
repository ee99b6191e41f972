"""The index of a shard folder: where each sample lies, and its verified bytes. No torch."""

import hashlib
import io
import json
import os
import tarfile
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from llm_mde.data.record import MAX_MEMBER_BYTES, MEMBERS
from llm_mde.errors import DataError

OPEN_SHARDS = 256  # more than the streams of a rank; well below the usual limit of 1024 files
MAX_SAMPLE_BYTES = len(MEMBERS) * (MAX_MEMBER_BYTES + 2 * tarfile.BLOCKSIZE)


class Entry(NamedTuple):
    """Where one sample lies: a byte range of one shard."""

    key: str
    shard: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """The samples of one split, shard by shard, in the written order."""

    folder: Path
    split: str
    shards: tuple[tuple[Entry, ...], ...]

    @property
    def entries(self) -> list[Entry]:
        """Every sample in the written order."""
        return [entry for shard in self.shards for entry in shard]

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(len(shard) for shard in self.shards)

    def spread(self, number: int) -> "Index":
        """At most `number` samples, evenly spaced over the split."""
        entries = self.entries
        number = min(number, len(entries))
        chosen = tuple(entries[at * len(entries) // number] for at in range(number))
        return Index(self.folder, self.split, (chosen,))


def open_index(folder: Path, split: str) -> Index:
    """Read the index of a shard folder, restricted to one named key list.

    Raises:
        DataError: no shard folder, no such split, or a key that the index does not know.
    """
    if not (folder / "index.jsonl").is_file():
        raise DataError(
            f"{folder}: no index.jsonl found, expected a folder written by 'llm-mde pack'"
        )
    listed = folder / "splits" / f"{split}.txt"
    if not listed.is_file():
        known = ", ".join(sorted(path.stem for path in (folder / "splits").glob("*.txt"))) or "none"
        raise DataError(f"{folder}: no split {split!r}, this folder has: {known}")
    keys = set(listed.read_text(encoding="utf-8").split())
    by_shard: dict[str, list[Entry]] = {}
    with (folder / "index.jsonl").open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            entry = _entry(line, f"{folder}/index.jsonl, line {number}")
            if entry.key in keys:
                by_shard.setdefault(entry.shard, []).append(entry)
    found = sum(map(len, by_shard.values()))
    if found != len(keys):
        raise DataError(
            f"{listed}: lists {len(keys)} keys, index.jsonl holds {found} of them; pack again"
        )
    if not found:
        filled = sorted(p.stem for p in listed.parent.glob("*.txt") if p.stat().st_size)
        has = ", ".join(filled) or "no split"
        raise DataError(f"{listed}: the split is empty; this folder has samples in: {has}")
    return Index(folder, split, tuple(tuple(shard) for _, shard in sorted(by_shard.items())))


def _entry(line: str, where: str) -> Entry:
    try:
        row = json.loads(line)
        entry = Entry(row["key"], row["shard"], row["offset"], row["size"], row["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: expected key, shard, offset, size, sha256: {error!r}") from error
    if not all(isinstance(word, str) for word in (entry.key, entry.shard, entry.sha256)):
        raise DataError(f"{where}: expected key, shard and sha256 as text; pack again")
    if "/" in entry.shard:
        raise DataError(f"{where}: expected a file of this folder, got {entry.shard}; pack again")
    if not all(isinstance(number, int) and number >= 0 for number in (entry.offset, entry.size)):
        raise DataError(f"{where}: expected offset and size in bytes, 0 or more; pack again")
    if entry.size > MAX_SAMPLE_BYTES:
        raise DataError(f"{where}: {entry.size} bytes, expected at most {MAX_SAMPLE_BYTES}")
    return entry


class Shards:
    """The shards of a folder, read by byte range; the latest ones stay open.

    Reads carry their own position, so forked loader processes may share the descriptors.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open: OrderedDict[str, int] = OrderedDict()

    def read(self, entry: Entry) -> dict[str, Any]:
        """One sample's members, verified: {"__key__", "__url__", "rgb.jpg", ...}.

        Raises:
            DataError: a missing shard, or bytes that differ from the index.
        """
        path = self.folder / entry.shard
        try:
            span = os.pread(self._descriptor(entry.shard), entry.size, entry.offset)
        except OSError as error:
            raise DataError(
                f"{path}, sample {entry.key}: {error.strerror}; the index lists it, pack again"
            ) from error
        if hashlib.sha256(span).hexdigest() != entry.sha256:
            raise DataError(
                f"{path}, sample {entry.key}: {len(span)} bytes at {entry.offset} do not match the "
                "index's checksum; the shard is damaged, pack again"
            )
        names = {"__key__": entry.key, "__url__": str(path)}
        return names | _members(span, f"{path}, sample {entry.key}")

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            if len(self._open) == OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.folder / shard, os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        """Close what is open; a later read opens again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "_open": OrderedDict()}  # descriptors stay in their process

    def __del__(self) -> None:
        self.close()


def _members(span: bytes, where: str) -> dict[str, bytes]:
    """Files of a piece of a tar by name without the key: {"rgb.jpg": ...}."""
    members: dict[str, bytes] = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(span), mode="r:") as tar:
            for member in tar:
                file = tar.extractfile(member)
                if file is not None:
                    members[member.name.partition(".")[2]] = file.read()
    except tarfile.TarError as error:
        raise DataError(f"{where}: no piece of a tar ({error}); pack again") from error
    return members
