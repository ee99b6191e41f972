"""Whose a folder is: nobody's, a finished pack, or one that this process goes on with."""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import MANIFEST, PLAN, UNFINISHED
from llm_mde.data.layout import Layout
from llm_mde.errors import DataError


def check_ours(folder: ShardFolder) -> None:
    """Nobody else's files are in the folder: it is a pack, an unfinished one, or empty."""
    if folder.exists(MANIFEST) or folder.exists(PLAN):
        return
    for name in folder.names():
        own = name.startswith(f"{UNFINISHED}/") or re.fullmatch(r"(.*/)?\.[^/]*\.tmp", name)
        if not own:
            raise DataError(f"{folder}: exists and is no pack (it holds {name}); choose another")


def finished(folder: ShardFolder, layout: Layout) -> dict[str, Any] | None:
    """The manifest of a pack that is complete, None where there is work to do."""
    if not folder.exists(MANIFEST):
        return None
    manifest = _read_json(folder, MANIFEST)
    _check_same(folder, manifest.get("settings"), layout)
    if manifest.get("input_sha256") != layout.input_sha256:
        raise DataError(
            f"{folder}: holds a pack of other input files; choose another folder or remove this one"
        )
    if folder.exists(PLAN):
        tidy(folder)
    return manifest


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
            whole = "a" if folder.exists(MANIFEST) else "an unfinished"
            raise DataError(
                f"{folder}: holds {whole} pack with {name} {before.get(name)}, asked for {value}; "
                "choose another folder or remove this one"
            )


@contextlib.contextmanager
def claimed(folder: ShardFolder, layout: Layout) -> Iterator[None]:
    """The folder says what it will hold, and on a disk is this process's alone."""
    with contextlib.ExitStack() as stack:
        if folder.local is not None:
            stack.enter_context(_locked(folder, folder.local))
        if folder.exists(PLAN):
            _check_same(folder, _read_json(folder, PLAN), layout)
        folder.sweep()
        folder.write(PLAN, json.dumps(layout.settings).encode())
        stack.callback(folder.sweep)
        yield


@contextlib.contextmanager
def _locked(folder: ShardFolder, local: Path) -> Iterator[None]:
    path = local / UNFINISHED / "lock"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
        lock.acquire(blocking=False)
    except Timeout as error:
        raise DataError(f"{folder}: another process is packing into it; wait for it") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error}); choose another folder") from error
    try:
        yield
    finally:
        lock.release()


def tidy(folder: ShardFolder) -> None:
    """Remove the notes, the plan first: a folder without it is finished."""
    folder.remove(PLAN)
    folder.remove(UNFINISHED)
