"""NYU Depth V2, raw or ready-made, to tar shards that any webdataset reader can read.

The format is described in `shards/README.md`. The same input gives the same bytes, whatever the
number of workers and however often it was interrupted: a shard is a fixed run of frames, written
whole by one worker, and a note in the folder `unfinished` says that it is done.
"""

import contextlib
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from llm_mde.data.claim import check_ours, claimed, finished, tidy
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import MANIFEST
from llm_mde.data.layout import Layout, PackSettings, lay_out
from llm_mde.data.merge import merge
from llm_mde.data.report import RunStats, problems, write_report
from llm_mde.data.shard import (
    DAMAGED,
    ShardPlan,
    ShardResult,
    ShardSettings,
    is_finished,
)
from llm_mde.data.sources import collect
from llm_mde.data.workers import on_processes, on_ray
from llm_mde.errors import ConfigError, DataError, LlmMdeError
from llm_mde.launcher import cores, peak_memory
from llm_mde.nyu.aligned import Pattern
from llm_mde.progress import Report, lines

logger = logging.getLogger(__name__)

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
    check_ours(folder)
    inputs = collect(sources, pattern=pattern, list_file=list_file)
    layout = lay_out(inputs, settings, progress=lines("list", "scene"))
    shard_settings = ShardSettings(
        folder,
        stride=settings.stride,
        depth_codec=settings.depth_codec,
        fill=settings.fill,
        on_corrupt=on_corrupt,
    )
    manifest = finished(folder, layout)
    already_packed = manifest is not None
    if manifest is None:
        with claimed(folder, layout):
            manifest = finished(folder, layout) or _write(
                folder,
                layout,
                shard_settings,
                jobs=jobs or cores(),
                ray=ray,
                max_lost=max_lost,
                progress=progress,
            )
    counts = {split: entry["samples"] for split, entry in manifest["splits"].items()}
    shown = tuple(problems(folder, SHOWN))
    if on_corrupt == "raise" and any(row["verdict"] in DAMAGED for row in shown):
        raise DataError(
            f"{folder}: packed before with damaged files left out, the first "
            f"{shown[0]['scene']}/{shown[0]['file']}; mend them and pack into another folder"
        )
    return PackReport(str(folder), counts, manifest["verdicts"], shown, already_packed)


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
        written = (
            on_processes(todo, settings, jobs=jobs)
            if ray is None
            else on_ray(todo, settings, address=ray)
        )
        with contextlib.closing(written):
            for result in written:
                results.append(result)
                tally.add(result.frames, result.lost, result.problem)
                if progress is not None:
                    progress(tally.done, layout.frames)
    except (KeyboardInterrupt, LlmMdeError):
        logger.info("%s is unfinished; the same command continues", folder)
        raise
    manifest = merge(folder, layout)
    if not manifest["samples"]:
        raise DataError(f"none of {layout.frames} frames is usable{_for_example(folder)}")
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
    folder.write(MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    tidy(folder)
    return manifest


def _for_example(folder: ShardFolder) -> str:
    for row in problems(folder, 1):
        return f"; one of them, {row['scene']}/{row['file']}: {row['verdict']}: {row['reason']}"
    return ": all are excluded"


@dataclass
class _Tally:
    """Frames done and lost, over this run and those before it."""

    folder: ShardFolder
    layout: Layout
    max_lost: float
    done: int = 0
    lost: int = 0

    def resume(self) -> list[ShardPlan]:
        """The shards to write; the others count as done."""
        sizes, todo = self.folder.sizes(), []
        planned = {plan.name for plan in self.layout.shards}
        for name in sizes:
            if name.endswith(".tar") and name not in planned:
                self.folder.remove(name)  # of an earlier listing of the input
        for plan in self.layout.shards:
            if is_finished(self.folder, plan, sizes):
                self.done += plan.frames
            else:
                todo.append(plan)
        done = len(self.layout.shards) - len(todo)
        if done:
            logger.info("%d of %d shards are done already", done, len(self.layout.shards))
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
