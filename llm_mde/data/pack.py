"""NYU Depth V2, raw or ready-made, to tar shards that any webdataset reader can read.

The format is described in `shards/README.md`. The same input gives the same bytes, whatever the
number of workers and however often it was interrupted: a shard is a fixed run of frames, written
whole by one worker, and a note in the folder `unfinished` says that it is done.
"""

import contextlib
import json
import logging
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock, Timeout

from llm_mde.data.folder import ShardFolder
from llm_mde.data.layout import Layout, PackSettings, lay_out
from llm_mde.data.merge import merge
from llm_mde.data.report import RunStats, problems, write_report
from llm_mde.data.shard import (
    UNFINISHED,
    ShardPlan,
    ShardResult,
    ShardSettings,
    peak_memory,
    read_note,
)
from llm_mde.data.sources import collect
from llm_mde.data.workers import on_processes, on_ray
from llm_mde.errors import ConfigError, DataError, LlmMdeError
from llm_mde.nyu.aligned import Pattern
from llm_mde.progress import Report

logger = logging.getLogger(__name__)

PLAN = f"{UNFINISHED}/plan.json"
MAX_LOST = 0.05  # of the frames; more than that is a broken download, not a few bad files
SHOWN = 20  # damaged files named in the printed report; files.jsonl names all


@dataclass(frozen=True)
class PackReport:
    """What a pack holds."""

    out: str
    counts: dict[str, int]
    """Samples of each split."""
    verdicts: dict[str, int]
    """Input files by verdict."""
    problems: tuple[dict[str, Any], ...]
    """The first damaged files: scene, file, verdict, reason."""
    already_packed: bool
    """The pack was there before, from the same input and settings; nothing was written."""

    def lines(self) -> list[str]:
        """The report for people: one line of counts, one of verdicts, then the damaged files."""
        counts = ", ".join(f"{split} {count}" for split, count in self.counts.items() if count)
        verb = "already packed" if self.already_packed else "packed"
        lines = [f"{verb} {sum(self.counts.values())} samples into {self.out}: {counts}"]
        verdicts = ", ".join(f"{count} {name}" for name, count in self.verdicts.items())
        lines.append(f"input files: {verdicts}; see {self.out}/report.html")
        for row in self.problems:
            reason = f"{row['verdict']}: {row.get('reason', '')}"
            lines.append(f"skipped {row['scene']}/{row['file']}: {reason}")
        if self.already_packed and self.problems:
            lines.append(f"remove {self.out} to pack mended files")
        return lines

    def payload(self) -> dict[str, Any]:
        """The report as one JSON object."""
        payload = asdict(self)
        return {"out": payload.pop("out"), "samples": payload.pop("counts"), **payload}


def pack(
    sources: Sequence[Path],
    *,
    out: str | Path,
    settings: PackSettings | None = None,
    pattern: Pattern | None = None,
    list_file: Path | None = None,
    jobs: int | None = None,
    ray: str | None = None,
    on_corrupt: Literal["skip", "raise"] = "skip",
    max_lost: float = MAX_LOST,
    progress: Report | None = None,
) -> PackReport:
    """Register every frame of the sources and write them to numbered tars under `out`.

    sources, pattern, list_file: see `llm_mde.data.sources.collect`; out: a folder or URL; jobs:
    processes, None = one a core; ray: address of a Ray cluster that packs instead; on_corrupt:
    "skip" counts and names what cannot be used, "raise" stops at the first; max_lost: largest share
    of frames that may be lost so; progress: called as progress(done, total) in frames.

    `pack.json` appears when all is complete. After an interruption of any kind the same call goes
    on with the shards that are not finished.

    Raises:
        ConfigError: a setting out of range.
        DataError: no usable frame, too many lost ones, or an `out` that holds something else.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs: expected 1 or more, got {jobs}")
    if not 0 <= max_lost <= 1:
        raise ConfigError(f"max_lost: expected a share from 0 to 1, got {max_lost}")
    settings = settings or PackSettings()
    folder = ShardFolder(out)
    layout = lay_out(collect(sources, pattern=pattern, list_file=list_file), settings)
    manifest = _finished(folder, layout)
    already_packed = manifest is not None
    if manifest is None:
        shard_settings = ShardSettings(
            folder,
            stride=settings.stride,
            depth_codec=settings.depth_codec,
            fill=settings.fill,
            on_corrupt=on_corrupt,
        )
        with _claimed(folder, layout):
            manifest = _write(
                folder,
                layout,
                shard_settings,
                jobs=jobs or len(os.sched_getaffinity(0)),
                ray=ray,
                max_lost=max_lost,
                progress=progress,
            )
    counts = {split: entry["samples"] for split, entry in manifest["splits"].items()}
    shown = tuple(problems(folder, SHOWN))
    return PackReport(str(folder), counts, manifest["verdicts"], shown, already_packed)


def _finished(folder: ShardFolder, layout: Layout) -> dict[str, Any] | None:
    """The manifest of a pack that is complete, None where there is work to do."""
    if folder.exists("pack.json"):
        manifest = _read_json(folder, "pack.json")
        _check_same(folder, manifest.get("settings"), layout)
        _tidy(folder)
        return manifest
    if folder.exists(PLAN):
        _check_same(folder, _read_json(folder, PLAN), layout)
    elif names := folder.names():
        raise DataError(
            f"{folder}: exists and is no pack (it holds {names[0]}); choose another folder"
        )
    return None


def _read_json(folder: ShardFolder, name: str) -> dict[str, Any]:
    try:
        content = json.loads(folder.read(name))
    except ValueError as error:
        raise DataError(
            f"{folder.at(name)}: not readable; remove the folder and pack again"
        ) from error
    return content if isinstance(content, dict) else {}


def _check_same(folder: ShardFolder, before: Any, layout: Layout) -> None:
    """Nothing that decides the bytes may differ."""
    before = before if isinstance(before, dict) else {}
    for name, value in layout.settings.items():
        if before.get(name) != value:
            what = "other input files" if name == "input_sha256" else f"{name} {before.get(name)}"
            asked = "" if name == "input_sha256" else f", asked for {value}"
            whole = "a" if folder.exists("pack.json") else "an unfinished"
            raise DataError(
                f"{folder}: holds {whole} pack with {what}{asked}; choose another folder or "
                "remove this one"
            )


@contextlib.contextmanager
def _claimed(folder: ShardFolder, layout: Layout) -> Iterator[None]:
    """The folder says what it will hold, and on a disk is this process's alone."""
    folder.write(PLAN, json.dumps(layout.settings).encode())
    if folder.local is None:
        yield
        return
    lock = FileLock(folder.local / UNFINISHED / "lock")
    try:
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DataError(f"{folder}: another process is packing into it; wait for it") from error
    try:
        folder.sweep()
        yield
    finally:
        lock.release()


def _write(
    folder: ShardFolder,
    layout: Layout,
    settings: ShardSettings,
    *,
    jobs: int,
    ray: str | None,
    max_lost: float,
    progress: Report | None,
) -> dict[str, Any]:
    """All shards that are missing, then everything else; returns what pack.json holds."""
    started = time.monotonic()
    tally = _Tally(folder, layout, max_lost)
    todo = tally.resume()
    results: list[ShardResult] = []
    try:
        for result in (
            on_processes(todo, settings, jobs=jobs)
            if ray is None
            else on_ray(todo, settings, address=ray)
        ):
            results.append(result)
            tally.add(result.frames, result.lost, result.problem)
            if progress is not None:
                progress(tally.done, layout.frames)
    except (KeyboardInterrupt, LlmMdeError):
        logger.info("%s is unfinished; the same command continues", folder)
        raise
    manifest = merge(folder, layout)
    run = RunStats(
        seconds=time.monotonic() - started,
        frames=sum(result.frames for result in results),
        input_bytes=sum(result.input_bytes for result in results),
        output_bytes=sum(result.output_bytes for result in results),
        jobs=jobs,
        resumed_shards=len(layout.shards) - len(todo),
        peak_memory_bytes=max([peak_memory(), *(result.peak_bytes for result in results)]),
    )
    write_report(folder, manifest=manifest, run=run)
    folder.write("pack.json", (json.dumps(manifest, indent=1) + "\n").encode())
    _tidy(folder)
    return manifest


def _tidy(folder: ShardFolder) -> None:
    """Remove the notes, the plan first: a folder without it is finished."""
    folder.remove(PLAN)
    folder.remove(UNFINISHED)


@dataclass
class _Tally:
    """Frames done and lost, over this run and those before it."""

    folder: ShardFolder
    layout: Layout
    max_lost: float
    done: int = 0
    lost: int = 0

    def resume(self) -> list[ShardPlan]:
        """The shards to write; those that have a note count as done."""
        notes = set(self.folder.names(UNFINISHED))
        todo = []
        for plan in self.layout.shards:
            if plan.note in notes:
                note = read_note(self.folder, plan)
                self.add(plan.frames, note["lost"], note["problem"])
            else:
                todo.append(plan)
        if notes and len(todo) < len(self.layout.shards):
            finished = len(self.layout.shards) - len(todo)
            logger.info("%d of %d shards are done already", finished, len(self.layout.shards))
        return todo

    def add(self, frames: int, lost: int, problem: str) -> None:
        """One more shard.

        Raises:
            DataError: too many frames are lost.
        """
        self.done += frames
        self.lost += lost
        if self.lost > self.max_lost * self.layout.frames:
            raise DataError(
                f"{self.lost} of {self.layout.frames} frames cannot be used, more than the share "
                f"of {self.max_lost:g} that may be lost; one of them, {problem}; mend the input "
                "or give a higher --max-lost"
            )
        if self.lost == self.layout.frames:
            raise DataError(f"none of {self.lost} frames is usable; one of them, {problem}")
