"""Does a shard folder hold what it says? Every file, list, sample and pixel is looked at once.

Memory holds the index and one sample: it does not grow with the bytes of the shards.
"""

import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import (
    INDEX,
    MANIFEST,
    Entry,
    check_finished,
    read_entry,
    read_keys,
    read_manifest,
    shard_folder,
)
from llm_mde.data.members import CHUNK_BYTES, Stream, sample_members
from llm_mde.data.scan import Problems, spans
from llm_mde.errors import DataError
from llm_mde.nyu.scenes import SPLITS, scene_group

LABELED = "labeled"  # keys of labelled images are this and a number; their scene is in meta.json
_SHARD = re.compile(rf"({'|'.join(SPLITS)})-\d{{6}}\.tar")

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class VerifyReport:
    """What `llm-mde verify` says."""

    folder: str
    samples: dict[str, int]
    """Sound samples of each split."""
    shards: int
    """Shards that were read."""
    bytes: int
    """Bytes of these."""
    seconds: float
    problems: tuple[str, ...]
    """One line each, the first hundred of them."""
    found: int
    """Number of all problems."""
    decoded: bool
    """Pictures were decoded, not only their bytes compared."""

    def lines(self) -> list[str]:
        """The report for people: a line a problem, then the counts."""
        counts = ", ".join(f"{split} {n}" for split, n in self.samples.items() if n)
        rate = self.bytes / 2**20 / max(self.seconds, 1e-9)
        more = self.found - len(self.problems)
        verb = "decoded" if self.decoded else "compared"
        return [
            *self.problems,
            *([f"and {more} more problems"] if more else []),
            f"{self.folder}: {self.found or 'no'} problem{'' if self.found == 1 else 's'}; "
            f"{verb} {sum(self.samples.values())} samples ({counts}) of {self.shards} shards, "
            f"{self.bytes / 2**20:.1f} MiB in {self.seconds:.1f} s ({rate:.1f} MiB/s)",
        ]

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return vars(self) | {"problems": list(self.problems)}


def verify(
    folder: ShardFolder | Path | str, *, decode: bool = True, progress: Progress | None = None
) -> VerifyReport:
    """Compare a finished shard folder with its pack.json, its index and its own rules.

    decode: False compares bytes and metadata and leaves the pictures alone; progress: called as
    progress(done, total) after each sample.

    Raises:
        DataError: no finished pack of this format; what is wrong inside one is in the report.
    """
    started = time.monotonic()
    folder = shard_folder(folder)
    check_finished(folder)
    check = _Check(folder, read_manifest(folder), decode=decode, progress=progress)
    check.index()
    check.names()
    for shard in sorted(check.manifest["shards"]):
        check.shard(shard)
    check.lists()
    check.scenes()
    return VerifyReport(
        folder=str(folder),
        samples={split: check.sound[split] for split in SPLITS},
        shards=check.shards,
        bytes=check.read_bytes,
        seconds=time.monotonic() - started,
        problems=tuple(check.problems.lines),
        found=check.problems.found,
        decoded=decode,
    )


@dataclass
class _Check:
    """The state of one verification; each method looks at one kind of thing."""

    folder: ShardFolder
    manifest: dict[str, Any]
    decode: bool
    progress: Progress | None
    problems: Problems = field(default_factory=Problems)
    shards: int = 0
    read_bytes: int = 0
    done: int = 0
    """Samples looked at."""
    sound: Counter[str] = field(default_factory=Counter)
    """Good samples of each split."""
    split_of: dict[str, str] = field(default_factory=dict)
    """Key to the split of its shard."""
    rows: dict[str, list[Entry]] = field(default_factory=dict)
    """Rows of the index by shard, in the order of their bytes; dropped once the shard is read."""
    seen: dict[str, dict[str, str]] = field(default_factory=lambda: {s: {} for s in SPLITS})
    """Scenes of each split with a key of theirs."""

    def index(self) -> None:
        """Read index.jsonl: its checksum, each row, no key twice."""
        where = self.folder.at(INDEX)
        try:
            content = self.folder.read(INDEX)
        except DataError as error:
            return self.problems.add(str(error))
        sha256 = hashlib.sha256(content).hexdigest()
        self.problems.compare(
            f"{where}: sha256", expected=self.manifest["index_sha256"], got=sha256
        )
        rows = content.splitlines()
        self.problems.compare(f"{where}: samples", expected=self.manifest["samples"], got=len(rows))
        for number, line in enumerate(rows, 1):
            try:
                entry = read_entry(line, f"{where}, line {number}")
            except DataError as error:
                self.problems.add(str(error))
                continue
            if entry.key in self.split_of:
                self.problems.add(
                    f"{where}, line {number}: sample {entry.key}: expected once, got twice"
                )
            self.split_of[entry.key] = _split(entry.shard)
            self.rows.setdefault(entry.shard, []).append(entry)
        for entries in self.rows.values():
            entries.sort(key=lambda entry: entry.offset)
        return None

    def names(self) -> None:
        """Shards of the folder or the index that pack.json does not know; its own sums."""
        listed, where = self.manifest["shards"], self.folder.at(MANIFEST)
        for name in self.folder.names():
            if "/" not in name and name.endswith(".tar") and name not in listed:
                self.problems.add(
                    f"{self.folder.at(name)}: expected a shard of {MANIFEST}; remove it"
                )
        for name in sorted(set(self.rows) - set(listed)):
            sample = f"{self.folder.at(INDEX)}: sample {self.rows[name][0].key}"
            self.problems.add(f"{sample}: expected a shard of {MANIFEST}, got {name}")
        for split, row in self.manifest["splits"].items():
            own = [shard["samples"] for name, shard in listed.items() if _split(name) == split]
            self.problems.compare(
                f"{where}: {split} shards", expected=row.get("shards"), got=len(own)
            )
            self.problems.compare(
                f"{where}: {split} samples", expected=row["samples"], got=sum(own)
            )

    def shard(self, name: str) -> None:
        """Read one shard front to back: its samples where the index says, and nothing else."""
        where, listed = self.folder.at(name), self.manifest["shards"][name]
        entries = self.rows.pop(name, [])
        if _SHARD.fullmatch(name) is None:
            return self.problems.add(f"{where}: expected a name like train-000000.tar; pack again")
        self.problems.compare(f"{where}: samples", expected=listed["samples"], got=len(entries))
        before, done = self.problems.found, self.done + len(entries)
        stream = Stream(self.folder, name)
        try:
            for entry, span in spans(stream, entries, where, self.problems):
                self._sample(entry, span, f"{where}, sample {entry.key}")
                self._tell(self.done + 1)
            while stream.read(CHUNK_BYTES):
                pass
        except DataError as error:
            self.problems.add(str(error))
        else:
            self.shards += 1
            self.read_bytes += stream.at
            self.problems.compare(f"{where}: bytes", expected=listed["bytes"], got=stream.at)
            if self.problems.found == before:  # other problems say more than that some byte differs
                got = stream.digest.hexdigest()
                self.problems.compare(f"{where}: sha256", expected=listed["sha256"], got=got)
        return self._tell(done)

    def _tell(self, done: int) -> None:
        if self.progress is not None and done > self.done:
            self.progress(done, len(self.split_of))
        self.done = done

    def _sample(self, entry: Entry, span: bytes, where: str) -> None:
        sha256 = hashlib.sha256(span).hexdigest()
        if not self.problems.compare(f"{where}: sha256", expected=entry.sha256, got=sha256):
            return None
        try:
            members = sample_members(span, key=entry.key, where=where)
        except DataError as error:
            return self.problems.add(str(error))
        try:
            scene = str(self._meta(entry.key, members)["scene"])
        except DataError as error:
            return self.problems.add(f"{self.folder.at(entry.shard)}, {error}")
        owner, split = entry.key.rpartition("-")[0], _split(entry.shard)
        if owner in (LABELED, scene):
            self.seen[split].setdefault(scene, entry.key)
            self.sound[split] += 1
        else:
            self.problems.add(f"{where}: scene of meta.json: expected {owner}, got {scene!a:.99}")
        return None

    def _meta(self, key: str, members: dict[str, bytes]) -> dict[str, Any]:
        """meta.json of a sample whose pictures, if they are looked at, are sound."""
        if self.decode:
            filled = any(name.startswith("filled.") for name in members)
            return record.decode({"__key__": key, **members}, filled=filled).meta
        try:
            meta = json.loads(members["meta.json"])
            return {"scene": meta["scene"]}
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise DataError(f"sample {key}: meta.json has no scene; pack again") from error

    def lists(self) -> None:
        """Key lists: known keys, each once; a split's list is what its shards hold."""
        held = Counter(self.split_of.values())
        said = self.manifest["lists"] | self.manifest["splits"]
        expected = {name: row["samples"] for name, row in said.items()}
        for name in self.folder.names("splits"):
            split, where = PurePosixPath(name).stem, self.folder.at(name)
            try:
                keys = read_keys(self.folder, name)
            except DataError as error:
                self.problems.add(str(error))
                continue
            for key, times in Counter(keys).items():
                self._listed(f"{where}: sample {key!a:.99}", key, times, split)
            if split in SPLITS:
                self.problems.compare(
                    f"{where}: keys of its shards", expected=held[split], got=len(keys)
                )
            count = expected.pop(split, len(keys))
            self.problems.compare(f"{where}: keys of {MANIFEST}", expected=count, got=len(keys))
        for name in sorted(name for name, count in expected.items() if count):
            where = self.folder.at(f"splits/{name}.txt")
            self.problems.add(f"{where}: expected {expected[name]} keys, got no such file")

    def _listed(self, where: str, key: str, times: int, split: str) -> None:
        if times > 1:
            self.problems.add(f"{where}: expected once, got {times} times")
        if key not in self.split_of:
            self.problems.add(f"{where}: expected a key of {INDEX}")
        elif split in SPLITS:
            self.problems.compare(
                f"{where}: split of its shard", expected=split, got=self.split_of[key]
            )

    def scenes(self) -> None:
        """No place in both train and val; no scene of test or heldout in either."""
        train, val = (
            {scene_group(scene): key for scene, key in self.seen[split].items()}
            for split in ("train", "val")
        )
        pairs = [("group", "train", train, "val", val)]
        pairs += [
            ("scene", ours, self.seen[ours], other, self.seen[other])
            for ours in ("train", "val")
            for other in ("test", "heldout")
        ]
        for what, left, ours, right, theirs in pairs:
            for name in sorted(set(ours) & set(theirs)):
                self.problems.add(
                    f"{self.folder}: {what} {name!a:.99}: expected in one of {left} and {right}, "
                    f"got {ours[name]} and {theirs[name]}"
                )


def _split(shard: str) -> str:
    return shard.rpartition("-")[0]
