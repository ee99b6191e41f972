"""Raw NYU Depth V2 to tar shards that any webdataset reader can read.

The format is described in `shards/README.md`. The same input gives the same bytes, whatever the
number of jobs: headers hold no time or user, frames are written in the order of scene and index.
"""

import hashlib
import json
import os
import shutil
import signal
import tarfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from llm_mde.data import record
from llm_mde.data.sources import Skipped, WorkItem, collect_scenes, load_frame, work_items
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.raw import RawScene
from llm_mde.nyu.scenes import SPLITS, assign_splits, resolve_rule

FORMAT_VERSION = 1
SHARD_SIZE = 256  # samples; about 80 MB of NYU frames
IN_FLIGHT = 4  # frames a worker may be ahead of the writer, so that memory stays flat
_PARTIAL = "pack.partial"  # marks an unfinished folder as ours

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PackReport:
    """What a pack holds."""

    out: Path
    counts: dict[str, int]
    """Samples of each split."""
    skipped: tuple[Skipped, ...]
    already_packed: bool
    """The folder was there before, from the same input and settings; nothing was written."""

    def lines(self) -> list[str]:
        """The report for people: one line of counts, then one line a skipped frame."""
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items() if count)
        verb = "already packed" if self.already_packed else "packed"
        first = f"{verb} {sum(self.counts.values())} samples into {self.out}: {counts}"
        if self.skipped:
            again = f"; remove {self.out} to pack mended files" if self.already_packed else ""
            first += f"; skipped {len(self.skipped)}{again}"
        return [first, *(f"skipped {s.scene}/{s.file}: {s.reason}" for s in self.skipped)]


def pack(
    sources: list[Path],
    *,
    out: Path,
    splits: str = "auto",
    depth_codec: str = "png",
    jobs: int | None = None,
    shard_size: int = SHARD_SIZE,
    stride: int = 1,
    seed: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Register every frame of the sources and write them to numbered tars under `out`.

    splits: `auto`, `official` or `scene` (see `llm_mde.nyu.scenes.assign_splits`); jobs: processes,
    None = one a core; shard_size: samples in a shard; stride: keep every n-th synchronised frame;
    progress: called as progress(done, total) after each frame. Frames that cannot be used are
    skipped, counted and named. `out` appears only when it is complete.

    Raises:
        ConfigError: a setting out of range.
        DataError: no usable frame, or an `out` that holds something else.
    """
    jobs = _check_settings(
        depth_codec,
        jobs=len(os.sched_getaffinity(0)) if jobs is None else jobs,
        shard_size=shard_size,
        stride=stride,
    )
    out = out.resolve()
    scenes = collect_scenes(sources)
    settings: dict[str, Any] = {
        "splits": resolve_rule([scene.name for scene in scenes], splits),
        "depth_codec": depth_codec,
        "shard_size": shard_size,
        "stride": stride,
        "seed": seed,
        "input_sha256": _fingerprint(scenes),
    }
    manifest = _existing(out, settings)
    already_packed = manifest is not None
    if manifest is None:
        with _staging(out) as folder:
            manifest = _write(folder, scenes, settings=settings, jobs=jobs, progress=progress)
    counts = {split: entry["samples"] for split, entry in manifest["splits"].items()}
    skipped = tuple(Skipped(**entry) for entry in manifest["skipped"])
    return PackReport(out, counts, skipped, already_packed)


def _check_settings(depth_codec: str, *, jobs: int | None, shard_size: int, stride: int) -> int:
    """The number of jobs, once everything is in range."""
    jobs = 1 if jobs is None else jobs
    for name, value in (("jobs", jobs), ("shard_size", shard_size), ("stride", stride)):
        if value < 1:
            raise ConfigError(f"{name}: expected 1 or more, got {value}")
    if depth_codec not in record.DEPTH_CODECS:
        raise ConfigError(
            f"depth_codec: expected {', '.join(record.DEPTH_CODECS)}, got {depth_codec!r}"
        )
    return jobs


def _fingerprint(scenes: list[RawScene]) -> str:
    """Hash of all scene and file names: tells another input, not where it lies."""
    digest = hashlib.sha256()
    for scene in scenes:
        digest.update("\n".join((scene.name, *scene.names, "\n")).encode())
    return digest.hexdigest()


def _existing(out: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The manifest of a pack that is already there, None where `out` is free."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    path = out / "pack.json"
    if not path.is_file():
        raise DataError(f"{out}: exists and is no pack (no pack.json); choose another folder")
    try:
        manifest = json.loads(path.read_text("utf-8"))
        before = manifest["settings"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not readable; remove the folder and pack again") from error
    for name, value in settings.items():
        if before.get(name) != value:
            raise DataError(
                f"{out}: holds a pack with {name} {before.get(name)}, asked for {value}; "
                "choose another folder or remove this one"
            )
    return manifest


@contextmanager
def _staging(out: Path) -> Iterator[Path]:
    """A folder `<out>.tmp` that becomes `out` at the end and vanishes on any failure."""
    folder = out.with_name(out.name + ".tmp")
    if folder.exists() and not (folder / _PARTIAL).exists():
        raise DataError(f"{folder}: exists and is no unfinished pack; remove or rename it")
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / _PARTIAL).touch()
        yield folder
        (folder / _PARTIAL).unlink()
        folder.replace(out)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error}); free space or choose another folder"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class Packed:
    """One sample ready to be appended to a tar."""

    key: str
    span: bytes
    sha256: str


def pack_item(item: WorkItem, depth_codec: str) -> Packed | Skipped:
    """Work of one process: raw files to the bytes of a sample inside a tar."""
    frame = load_frame(item)
    if isinstance(frame, Skipped):
        return frame
    members = record.encode(frame, depth_codec=depth_codec)
    key = members.pop("__key__")
    span = record.tar_span(key, members)
    return Packed(key, span, hashlib.sha256(span).hexdigest())


class _ShardWriter:
    """Appends the samples of one split to numbered tars and remembers where they went."""

    def __init__(self, folder: Path, split: str, shard_size: int) -> None:
        self.folder, self.split, self.shard_size = folder, split, shard_size
        self.entries: list[dict[str, Any]] = []
        self.shards = 0
        self._offset = 0

    def add(self, sample: Packed) -> None:
        if len(self.entries) % self.shard_size == 0:
            self.close()
            self.shards += 1
        place = {"shard": self._path().name, "offset": self._offset, "size": len(sample.span)}
        self._append(sample.span)
        self.entries.append({"key": sample.key, **place, "sha256": sample.sha256})

    def close(self) -> None:
        """End the shard as tarfile does: two empty blocks, then up to a full record."""
        if self._offset:
            end = self._offset + 2 * tarfile.BLOCKSIZE
            self._append(bytes(end + -end % tarfile.RECORDSIZE - self._offset))
        self._offset = 0

    def _append(self, payload: bytes) -> None:
        with self._path().open("ab") as file:
            file.write(payload)
        self._offset += len(payload)

    def _path(self) -> Path:
        return self.folder / f"{self.split}-{self.shards - 1:06d}.tar"


def _write(
    folder: Path,
    scenes: list[RawScene],
    *,
    settings: dict[str, Any],
    jobs: int,
    progress: Progress | None,
) -> dict[str, Any]:
    """All files of a pack; returns what pack.json holds."""
    split_of = assign_splits(
        [scene.name for scene in scenes], rule=settings["splits"], seed=settings["seed"]
    )
    scenes = sorted(scenes, key=lambda scene: (SPLITS.index(split_of[scene.name]), scene.name))
    items = [item for scene in scenes for item in work_items(scene, stride=settings["stride"])]
    writers = {split: _ShardWriter(folder, split, settings["shard_size"]) for split in SPLITS}
    frames = dict.fromkeys(split_of, 0)
    skipped: list[Skipped] = []
    for done, (item, result) in enumerate(_results(items, settings["depth_codec"], jobs=jobs), 1):
        if isinstance(result, Skipped):
            skipped.append(result)
        else:
            writers[split_of[item.scene]].add(result)
            frames[item.scene] += 1
        if progress is not None:
            progress(done, len(items))
    for writer in writers.values():
        writer.close()
    if not any(frames.values()):
        first = skipped[0]
        raise DataError(
            f"none of {len(skipped)} frames is usable; "
            f"the first, {first.scene}/{first.file}: {first.reason}"
        )
    index = "".join(json.dumps(e) + "\n" for writer in writers.values() for e in writer.entries)
    (folder / "index.jsonl").write_text(index, "utf-8")
    (folder / "splits").mkdir()
    for split, writer in writers.items():
        keys = "".join(f"{entry['key']}\n" for entry in writer.entries)
        (folder / "splits" / f"{split}.txt").write_text(keys, "utf-8")
    manifest = {
        "format_version": FORMAT_VERSION,
        "samples": sum(frames.values()),
        "splits": {
            split: {"samples": len(writer.entries), "shards": writer.shards}
            for split, writer in writers.items()
        },
        "scenes": {
            name: {"split": split_of[name], "samples": frames[name]} for name in sorted(frames)
        },
        "skipped": [asdict(entry) for entry in skipped],
        "settings": settings,
        "index_sha256": hashlib.sha256(index.encode()).hexdigest(),
    }
    (folder / "pack.json").write_text(json.dumps(manifest, indent=1) + "\n", "utf-8")
    return manifest


def _results(
    items: list[WorkItem], depth_codec: str, *, jobs: int
) -> Iterator[tuple[WorkItem, Packed | Skipped]]:
    """Each item with its result, in order; at most `IN_FLIGHT` items a worker are under way."""
    work = partial(pack_item, depth_codec=depth_codec)
    jobs = min(jobs, len(items))
    if jobs <= 1:
        yield from ((item, work(item)) for item in items)
        return
    waiting: deque[tuple[WorkItem, Future[Packed | Skipped]]] = deque()
    # "spawn": a fork of a process that runs threads (torch, a progress bar) may hang
    with ProcessPoolExecutor(
        jobs, get_context("spawn"), signal.signal, (signal.SIGINT, signal.SIG_IGN)
    ) as pool:
        for item in items:
            waiting.append((item, pool.submit(work, item)))
            if len(waiting) >= jobs * IN_FLIGHT:
                first, future = waiting.popleft()
                yield first, future.result()
        yield from ((item, future.result()) for item, future in waiting)
