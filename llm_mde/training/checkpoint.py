"""Checkpoints of a run: written aside, synced, given a manifest, renamed, then pointed to.

Only folders with a manifest of ours, all of whose files are as it says, are loaded. They hold the
trainable state (see `state`); frozen weights are named by the hash of their backbone. All ranks of
a run see one file system.
"""

import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_mde import dist
from llm_mde.errors import CheckpointError

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
FORMAT = "llm-mde checkpoint 3"
NAME, ASIDE = "step-", "tmp-"


def folder_name(step: int) -> str:
    """`step-000123`."""
    return f"{NAME}{step:06d}"


def save(
    folder: Path,
    write: Callable[[Path], None],
    *,
    step: int,
    state: dict[str, Any],
    best: bool,
    keep: int,
) -> None:
    """Save at an optimizer step, point `last` (and `best`) to it, drop older ones; collective.

    Later ones are dropped, too: the run went back behind them.

    Args:
        folder: of the run's checkpoints.
        write: puts files into a folder that rank 0 has made; collective.
        step: optimizer steps so far.
        state: JSON beside the files.
        best: whether this is the best so far.
        keep: checkpoints kept beside the best one.

    Raises:
        CheckpointError: the disk is full, say; the checkpoints before are as they were.
    """
    aside = folder / (ASIDE + folder_name(step))
    try:
        dist.on_rank_0(lambda: _make_aside(aside))
        write(aside)
        dist.on_rank_0(lambda: _publish(aside, step=step, state=state, best=best, keep=keep))
    except OSError as error:
        dist.on_rank_0(lambda: shutil.rmtree(aside, ignore_errors=True))
        raise CheckpointError(
            f"{folder}: can't save step {step}: {error}; make room, then the same command goes on "
            "from the checkpoint before"
        ) from error


def _make_aside(aside: Path) -> None:
    for left in aside.parent.glob(f"{ASIDE}*"):
        shutil.rmtree(left)
    aside.mkdir(parents=True)


def _publish(aside: Path, *, step: int, state: dict[str, Any], best: bool, keep: int) -> None:
    folder, name = aside.parent, folder_name(step)
    before = _target(folder / "best")
    best_name = name if best else before.name if before else None
    _seal(aside, state, best=best_name)
    shutil.rmtree(folder / name, ignore_errors=True)
    os.rename(aside, folder / name)
    _point(folder, last=name, best=best_name)
    _prune(folder, step=step, keep=keep)


def point_again(found: Path) -> None:
    """Make `last` and `best` as they were after this checkpoint was saved; collective.

    A run that was killed before they were may have nothing more to do, and would leave them so.
    """
    best = json.loads((found / MANIFEST).read_text(encoding="utf-8"))["best"]
    dist.on_rank_0(lambda: _point(found.parent, last=found.name, best=best))


def _seal(folder: Path, state: dict[str, Any], *, best: str | None) -> None:
    files = {}
    for name in _files(folder):
        _sync(folder / name)
        files[name] = {"size": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    manifest = {"format": FORMAT, "best": best, "state": state, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def _files(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _point(folder: Path, *, last: str, best: str | None) -> None:
    for pointer, name in (("last", last), ("best", best)):
        if name and (folder / name).is_dir():
            aside = folder / f"{pointer}.tmp"
            aside.write_text(name + "\n", encoding="utf-8")
            os.replace(aside, folder / pointer)
    _sync(folder)


def _prune(folder: Path, *, step: int, keep: int) -> None:
    best = _target(folder / "best")
    found = _candidates(folder)
    later = [path for path in found if _step(path) > step]
    older = [path for path in found if _step(path) <= step][keep:]
    for path in later + [path for path in older if path != best]:
        shutil.rmtree(path)
    if best is not None and not best.is_dir():
        (folder / "best").unlink()


def copy_last(folder: Path, into: Path, *, patience_s: float = 600.0) -> None:
    """Copy the newest checkpoint of a run that goes on meanwhile, with a `last` that points to it.

    Args:
        folder: the run's checkpoints; waits for the first one.
        into: a folder.
        patience_s: for how long.

    Raises:
        CheckpointError: there was none.
    """
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = _target(folder / "last")
        copy = into / found.name if found else into
        with suppress(OSError, shutil.Error):  # it was the oldest, and went
            if found:
                shutil.copytree(found, copy)
        if found and problem(copy) is None:
            (into / "last").write_text(copy.name + "\n", encoding="utf-8")
            return
        if found:
            shutil.rmtree(copy, ignore_errors=True)
        time.sleep(0.1)
    raise CheckpointError(f"{folder}: no checkpoint came in {patience_s:g} s")


def last_step(folder: Path) -> int:
    """Step of the newest checkpoint as `last` has it; 0 without one."""
    found = _target(folder / "last")
    return _step(found) if found else 0


def _target(pointer: Path) -> Path | None:
    """The folder that `last` or `best` names."""
    return (
        pointer.parent / pointer.read_text(encoding="utf-8").strip() if pointer.exists() else None
    )


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints, the newest first."""
    return sorted(filter(Path.is_dir, folder.glob(f"{NAME}*")), key=_step, reverse=True)


def _step(folder: Path) -> int:
    digits = folder.name.removeprefix(NAME)
    return int(digits) if digits.isdecimal() else -1


def problem(folder: Path) -> str | None:
    """Why a checkpoint folder cannot be used, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return f"no {MANIFEST}, so it was not written by this program or not finished"
    except ValueError as error:
        return f"{MANIFEST} is unreadable: {error}"
    form = manifest.get("format") if isinstance(manifest, dict) else None
    if form != FORMAT:
        return f"{MANIFEST}: expected format {FORMAT!r}, got {form!r}"
    for name, want in manifest["files"].items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != want["size"] or _sha256(path) != want["sha256"]:
            return f"{name} differs from {MANIFEST}"
    foreign = set(_files(folder)) - {MANIFEST, *manifest["files"]}
    return f"{min(foreign)} is not in {MANIFEST}" if foreign else None


def choose(folder: Path, resume: str) -> Path | None:
    """The checkpoint to go on from: `auto` = the newest good one, `never` = none, or the one named.

    Every rank verifies and all agree: a file that one rank cannot see rules a folder out for all.
    A run without any checkpoint starts; one whose checkpoints are all damaged does not. `best` and
    `last` name the folders they point to.

    Raises:
        CheckpointError: the named checkpoint, or every one, is damaged or not ours.
    """
    if resume == "never":
        return None
    if resume != "auto":
        named = Path(resume) if Path(resume).is_dir() else _target(Path(resume)) or Path(resume)
        reason = problem(named)
        if not dist.all_agree(reason is None):
            raise CheckpointError(f"{named}: {reason or ELSEWHERE}")
        return named.absolute()
    found: list[Path] = dist.from_rank_0(_candidates(folder))
    for path in found:
        reason = problem(path)
        if dist.all_agree(reason is None):
            return path
        if reason or dist.rank() == 0:
            logger.warning("%s: %s; trying the one before", path, reason or ELSEWHERE)
    if found:
        raise CheckpointError(f"{folder}: no usable checkpoint; start over with --resume never")
    return None


ELSEWHERE = "damaged or missing as seen by another rank"


def read_state(folder: Path) -> dict[str, Any]:
    """What `save` was given as state."""
    state: dict[str, Any] = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["state"]
    return state
