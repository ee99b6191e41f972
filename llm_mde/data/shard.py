"""One shard: which frames it holds, its bytes, and the note that it is finished.

A shard is a fixed run of frames, whether they prove usable or not. So shards can be written in any
order, by any process, and after any interruption, and always hold the same bytes.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

from threadpoolctl import threadpool_limits

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import UNFINISHED
from llm_mde.errors import DataError
from llm_mde.launcher import peak_memory
from llm_mde.nyu.fill import NO_READING_M, fill_mm
from llm_mde.nyu.frame import Finding, Pair, Scene

# Verdicts that cost a frame that should be there.
DAMAGED = ("truncated", "empty", "missing", "undecodable")


class Run(NamedTuple):
    """Consecutive selected frames of one scene."""

    number: int
    """Place of the scene in the pack's order."""
    scene: Scene
    start: int
    stop: int
    sha256: str
    """Of the names and sizes of the scene's files."""

    @property
    def identity(self) -> list[Any]:
        """What a note keeps, to tell whether the shard would still hold the same."""
        scene = self.scene
        return [scene.name, scene.source, scene.part, self.start, self.stop, self.sha256]


@dataclass(frozen=True)
class ShardPlan:
    """What one shard is to hold."""

    name: str
    runs: tuple[Run, ...]

    @property
    def frames(self) -> int:
        """Frames to load."""
        return sum(run.stop - run.start for run in self.runs)

    @property
    def note(self) -> str:
        """Name of the note that says the shard is finished."""
        return f"{UNFINISHED}/{self.name}.json"


@dataclass(frozen=True)
class ShardSettings:
    """How every shard of a pack is written."""

    out: ShardFolder
    stride: int
    depth_codec: str
    fill: bool
    on_corrupt: Literal["skip", "raise"]


@dataclass(frozen=True)
class ShardResult:
    """What became of one shard."""

    frames: int
    """Frames loaded or tried."""
    lost: int
    """Frames that should be there and are not."""
    problem: str
    """The first damaged file and why, "" for none."""
    input_bytes: int
    output_bytes: int
    peak_bytes: int
    """Largest memory of the process so far."""


def selected(scene: Scene, stride: int) -> list[Pair]:
    """Every `stride`-th frame of a recording; labelled images are all of interest."""
    return scene.pairs()[:: stride if scene.part is None else 1]


def plan_shards(split: str, scenes: Iterable[Run], *, shard_size: int) -> Iterator[ShardPlan]:
    """The shards of one split; `scenes` are runs of all selected frames of each, in order."""
    runs: list[Run] = []
    room, count = shard_size, 0
    for whole in scenes:
        at = whole.start
        while at < whole.stop:
            take = min(room, whole.stop - at)
            runs.append(whole._replace(start=at, stop=at + take))
            at, room = at + take, room - take
            if not room:
                yield ShardPlan(f"{split}-{count:06d}.tar", tuple(runs))
                runs, room, count = [], shard_size, count + 1
    if runs:
        yield ShardPlan(f"{split}-{count:06d}.tar", tuple(runs))


def load_sample(
    scene: Scene, pair: Pair, *, depth_codec: str, fill: bool
) -> tuple[tuple[str, bytes] | None, list[Finding]]:
    """Key and tar bytes of a frame, None where it cannot be used; and a finding for each file."""
    frame, findings = scene.load(pair)
    if frame is None:
        return None, findings
    if fill and frame.filled_mm is None:
        if not ((frame.depth_mm > 0) & (frame.depth_mm < 1000 * NO_READING_M)).any():
            empty = Finding(pair.depth, "empty", "no reading below 10 m to fill from")
            return None, [empty, *(found for found in findings if found.file != pair.depth)]
        frame = replace(frame, filled_mm=fill_mm(frame.rgb, frame.depth_mm))
    members = record.encode(frame, depth_codec=depth_codec)
    key = str(members.pop("__key__"))
    return (key, record.tar_span(key, members)), findings


def write_shard(plan: ShardPlan, settings: ShardSettings) -> ShardResult:
    """Write one shard, then the note of what it holds. Runs in any process or machine.

    Raises:
        DataError: the folder cannot be written, or a damaged file with `on_corrupt` "raise".
    """
    entries: list[dict[str, Any]] = []
    findings: list[tuple[int, Finding]] = []
    lost = input_bytes = offset = 0
    problem = ""
    digest = hashlib.sha256()
    # one core a worker, and sums in the same order however many there are
    with (
        threadpool_limits(1),
        settings.out.staged(plan.name) as path,
        path.open("wb") as tar,
    ):
        for run, sizes, pair in _pairs(plan, settings.stride):
            sample, found = load_sample(
                run.scene, pair, depth_codec=settings.depth_codec, fill=settings.fill
            )
            problem = problem or _problem(run.scene, found)
            if problem and settings.on_corrupt == "raise":
                raise DataError(f"{problem}; mend it, or leave such files out: --on-corrupt skip")
            findings += [(run.number, finding) for finding in found]
            input_bytes += sum(sizes.get(finding.file, 0) for finding in found)
            if sample is None:
                lost += any(finding.verdict in DAMAGED for finding in found)
                continue
            key, span = sample
            place = {"shard": plan.name, "offset": offset, "size": len(span)}
            checksum = hashlib.sha256(span).hexdigest()
            entries.append({"key": key, **place, "sha256": checksum, "scene": run.number})
            digest.update(span)
            tar.write(span)
            offset += len(span)
        end = offset + 2 * tarfile.BLOCKSIZE  # as tarfile ends: two empty blocks, a full record
        tail = bytes(end + -end % tarfile.RECORDSIZE - offset)
        digest.update(tail)
        tar.write(tail)
        tar.flush()
    note = {
        "runs": [run.identity for run in plan.runs],
        "bytes": offset + len(tail),
        "sha256": digest.hexdigest(),
        "problem": problem,
        "entries": entries,
        "findings": [[number, *finding] for number, finding in findings],
    }
    settings.out.write(plan.note, json.dumps(note).encode())
    return ShardResult(
        plan.frames,
        lost,
        problem,
        input_bytes=input_bytes,
        output_bytes=offset + len(tail),
        peak_bytes=peak_memory(),
    )


def _pairs(plan: ShardPlan, stride: int) -> Iterator[tuple[Run, dict[str, int], Pair]]:
    """Each frame to load, with the sizes of its scene's files."""
    for run in plan.runs:
        sizes = run.scene.files()
        for pair in selected(run.scene, stride)[run.start : run.stop]:
            yield run, sizes, pair


def _problem(scene: Scene, findings: list[Finding]) -> str:
    """The first damaged file of a frame, "" for none."""
    for file, verdict, reason in findings:
        if verdict in DAMAGED:
            return f"{scene.name}/{file}: {verdict}: {reason}"
    return ""


def read_note(out: ShardFolder, plan: ShardPlan) -> dict[str, Any]:
    """The note of a finished shard.

    Raises:
        DataError: it is missing or not readable.
    """
    try:
        note: dict[str, Any] = json.loads(out.read(plan.note))
    except ValueError as error:
        raise DataError(f"{out.at(plan.note)}: not readable ({error}); remove it") from error
    return note


def is_finished(out: ShardFolder, plan: ShardPlan, sizes: dict[str, int]) -> bool:
    """Whether a shard is written as planned, from the same files, and met no damaged one.

    One that did is written again: its files may be mended. sizes: files of `out` by name.
    """
    if plan.note not in sizes:
        return False
    note = read_note(out, plan)
    same = note["runs"] == [run.identity for run in plan.runs]
    return same and not note["problem"] and sizes.get(plan.name) == note["bytes"]
