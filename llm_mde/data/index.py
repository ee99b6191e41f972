"""The index of a shard folder: where each sample lies. No torch."""

import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from llm_mde.data.columns import Chain, Column, Entry, columns
from llm_mde.data.folder import ShardFolder
from llm_mde.data.members import KEY, MAX_SAMPLE_BYTES
from llm_mde.errors import DataError

FORMAT_VERSION = 2
INDEX = "index.jsonl"
FILES = "files.jsonl"
MANIFEST = "pack.json"
UNFINISHED = "unfinished"  # folder of notes, gone when the pack is complete
PLAN = f"{UNFINISHED}/plan.json"
DIGEST = re.compile(r"[0-9a-f]{64}")
MAX_OFFSET = 2**50  # a shard of a pebibyte; far above, an offset is no number the system takes
SHARD = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,99}\.tar")


@dataclass(frozen=True)
class Index:
    """The samples of one split, shard by shard, in the written order."""

    folder: ShardFolder
    split: str
    shards: tuple[Column, ...]

    @property
    def entries(self) -> Sequence[Entry]:
        """Every sample in the written order."""
        return Chain(self.shards)

    @property
    def counts(self) -> tuple[int, ...]:
        """Samples of each shard."""
        return tuple(len(shard) for shard in self.shards)

    def spread(self, number: int) -> "Index":
        """At most `number` samples, evenly spaced over the split."""
        entries = self.entries
        number = min(number, len(entries))
        chosen = (entries[at * len(entries) // number] for at in range(number))
        return Index(self.folder, self.split, columns(chosen))


def shard_folder(folder: ShardFolder | Path | str) -> ShardFolder:
    """A shard folder by its path or URL.

    Raises:
        ConfigError: a URL of an unknown scheme.
    """
    return folder if isinstance(folder, ShardFolder) else ShardFolder(folder)


def check_finished(folder: ShardFolder) -> None:
    """Refuse a folder that `llm-mde pack` is still writing, or was when it ended.

    Raises:
        DataError: says how to finish it.
    """
    if folder.exists(PLAN):
        raise DataError(
            f"{folder}: an unfinished pack; run the same 'llm-mde pack' command again to finish it"
        )


def open_index(folder: ShardFolder | Path | str, split: str) -> Index:
    """Read the index of a shard folder, restricted to one named key list.

    Raises:
        DataError: no finished shard folder, no such split, or a key that the index does not know.
    """
    folder = shard_folder(folder)
    check_finished(folder)
    if not folder.exists(INDEX):
        raise DataError(f"{folder}: no {INDEX} found, expected a folder written by 'llm-mde pack'")
    return Index(folder, split, columns(_listed(folder, split)))


def _listed(folder: ShardFolder, split: str) -> Iterator[Entry]:
    """Of the index the samples that a list names; each of the list is there, once."""
    keys = _split_keys(folder, split)
    missing = set(keys)
    for entry in read_entries(folder.read(INDEX), folder.at(INDEX)):
        if entry.key in keys:
            if entry.key not in missing:
                raise DataError(
                    f"{folder.at(INDEX)}: sample {entry.key} is there twice; pack again"
                )
            missing.remove(entry.key)
            yield entry
    if missing:
        listed = folder.at(f"splits/{split}.txt")
        raise DataError(
            f"{listed}: lists {len(keys)} keys, {INDEX} holds {len(keys) - len(missing)} of them; "
            "pack again"
        )


def _split_keys(folder: ShardFolder, split: str) -> set[str]:
    """The keys of a list, at least one."""
    name = f"splits/{split}.txt"
    if not folder.exists(name):
        known = ", ".join(PurePosixPath(listed).stem for listed in folder.names("splits"))
        raise DataError(f"{folder}: no split {split!r}, this folder has: {known or 'none'}")
    keys = set(read_keys(folder, name))
    if not keys:
        lists = folder.names("splits")
        has = ", ".join(PurePosixPath(listed).stem for listed in lists if folder.read(listed))
        raise DataError(
            f"{folder.at(name)}: the split is empty; this folder has samples in: "
            f"{has or 'no split'}"
        )
    return keys


def read_keys(folder: ShardFolder, name: str) -> list[str]:
    """The keys of `splits/<name>.txt`, one a line.

    Raises:
        DataError: missing, or no text.
    """
    try:
        return folder.read(name).decode("ascii").split()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{folder.at(name)}: expected a key a line ({error}); pack again"
        ) from error


def read_entries(content: bytes, where: str) -> Iterator[Entry]:
    """The rows of an index.

    Raises:
        DataError: names the line and what is wrong with it.
    """
    for number, line in enumerate(content.splitlines(), 1):
        yield read_entry(line, f"{where}, line {number}")


def read_entry(line: bytes, where: str) -> Entry:
    """One row of an index.

    Raises:
        DataError: what is wrong with it, after `where`.
    """
    try:
        row = json.loads(line)
        entry = Entry(row["key"], row["shard"], row["offset"], row["size"], row["sha256"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: expected key, shard, offset, size, sha256: {error!r}") from error
    key, shard, offset, size, sha256 = entry
    if not all(isinstance(word, str) for word in (key, shard, sha256)):
        raise DataError(f"{where}: expected key, shard and sha256 as text; pack again")
    if KEY.fullmatch(key) is None:
        raise DataError(f"{where}: expected letters, digits, '_' and '-', got key {key!a:.99}")
    if SHARD.fullmatch(shard) is None:
        raise DataError(f"{where}: expected a tar of this folder, got {shard!a:.99}; pack again")
    if not all(type(number) is int and 0 <= number <= MAX_OFFSET for number in (offset, size)):
        raise DataError(f"{where}: expected offset and size in bytes, 0 or more; pack again")
    if size > MAX_SAMPLE_BYTES:
        raise DataError(f"{where}: {size} bytes, expected at most {MAX_SAMPLE_BYTES}")
    if DIGEST.fullmatch(sha256) is None:  # it names files of a cache
        raise DataError(f"{where}: expected a sha256 in hex, got {sha256!a:.99}; pack again")
    return entry._replace(shard=sys.intern(shard))  # one text for all samples of a shard


def read_manifest(folder: ShardFolder) -> dict[str, Any]:
    """What pack.json holds, as far as it is needed to check the rest.

    Raises:
        DataError: missing, of another format, or without what it should say.
    """
    where = folder.at(MANIFEST)
    if not folder.exists(MANIFEST):
        raise DataError(
            f"{folder}: no {MANIFEST} found, expected a folder written by 'llm-mde pack'"
        )
    try:
        manifest = json.loads(folder.read(MANIFEST))
        version = manifest["format_version"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{where}: expected JSON with a format_version; pack again") from error
    if version != FORMAT_VERSION:
        raise DataError(
            f"{where}: format_version {version!a:.20}, expected {FORMAT_VERSION}; pack again"
        )
    for name in ("shards", "splits", "lists"):
        rows = manifest.get(name)
        if not isinstance(rows, dict):
            raise DataError(f"{where}: expected an object {name}; pack again")
        for key, row in rows.items():
            if not _countable(row) or (name == "shards" and not _described(row)):
                raise DataError(f"{where}: {name}: {key!a:.99} has no numbers; pack again")
    if not _count(manifest.get("samples")) or not isinstance(manifest.get("index_sha256"), str):
        raise DataError(f"{where}: expected samples and index_sha256; pack again")
    return dict(manifest)


def _count(value: object) -> bool:
    return type(value) is int and value >= 0


def _countable(row: object) -> bool:
    return isinstance(row, dict) and _count(row.get("samples"))


def _described(row: Mapping[str, Any]) -> bool:
    return _count(row.get("bytes")) and DIGEST.fullmatch(str(row.get("sha256"))) is not None
