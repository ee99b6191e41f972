"""Where raw NYU Depth V2 scenes lie: folders and the downloaded zips, read in place.

A scene may be spread over several zips (`bedrooms_part1.zip`, `bedrooms_part2.zip`) and folders.
"""

import os
import zipfile
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

from llm_mde.errors import DataError
from llm_mde.nyu.frame import DamagedFile, Finding, Frame, Pair
from llm_mde.nyu.kinect import RGB_CAMERA, register
from llm_mde.nyu.raw import (
    AGAIN,
    PPM_BYTES,
    parse_dump,
    parse_name,
    parse_pgm,
    parse_ppm,
    synchronise,
)
from llm_mde.nyu.scenes import BAD_FRAMES

# The toolbox pairs at any distance; half a second apart (15 frames) the two show different views.
MAX_GAP_S = 0.5
T = TypeVar("T")
EXPECTED = "expected raw NYU scene folders (d-*.pgm, r-*.ppm) or their .zip files"
OPEN_ZIPS = 4  # a zip's list of members is held with it: some 30 MB for the largest download
_MAX_DEPTH = 2  # folders between the given one and a scene
UNREADABLE = (OSError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Store:
    """Where some of a scene's files are: a folder, or a folder inside a zip."""

    path: Path
    prefix: str | None = None
    """Folder inside the zip `path`, "" or ending in "/"; None when `path` is a folder."""

    def sizes(self) -> dict[str, int]:
        """The raw files here and their bytes.

        Raises:
            DataError: the folder or zip cannot be listed.
        """
        if self.prefix is None:
            try:
                with os.scandir(self.path) as entries:
                    return {e.name: _file_size(e) for e in entries if parse_name(e.name)}
            except OSError as error:
                raise DataError(f"{self.path}: cannot be listed ({error.strerror})") from error
        found = {}
        for member in _open_zip(self.path, os.getpid()).infolist():
            folder, name = _split(member.filename)
            if folder == self.prefix and parse_name(name):
                found[name] = member.file_size
        return found

    def read(self, name: str) -> bytes:
        """The bytes of one file, at most one more than the largest raw file has.

        Raises:
            DamagedFile: the file is missing, unreadable or damaged inside the zip.
        """
        try:
            if self.prefix is None:
                if not (self.path / name).is_file():  # a pipe would be waited for
                    raise FileNotFoundError("is no file, or a link to none")
                with (self.path / name).open("rb") as file:
                    return file.read(PPM_BYTES + 1)
            with _open_zip(self.path, os.getpid()).open(self.prefix + name) as member:
                return member.read(PPM_BYTES + 1)  # no raw file is longer, whatever the zip says
        except UNREADABLE as error:
            problem = f"{self.label(name)}: cannot be read ({error}); {AGAIN}"
            raise DamagedFile("undecodable", problem) from error

    def label(self, name: str) -> str:
        """How messages name the file."""
        return str(self.path / name if self.prefix is None else self.path / (self.prefix + name))


def _file_size(entry: os.DirEntry[str]) -> int:
    """Bytes of a file; 0 for a broken link or anything else that is none."""
    return entry.stat().st_size if entry.is_file() else 0


@lru_cache(maxsize=OPEN_ZIPS)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """One handle a zip and process: a forked child must not share its parent's file position."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip ({error}); download it again") from error


def _split(member: str) -> tuple[str, str]:
    """`a/b/c.pgm` to `a/b/` and `c.pgm`."""
    folder, slash, name = member.rpartition("/")
    return folder + slash, name


@dataclass(frozen=True)
class RawScene:
    """One raw scene: its name and the places that hold its files."""

    name: str
    stores: tuple[Store, ...]
    source = "nyu_raw"
    part: Literal["train", "test"] | None = None

    def files(self) -> dict[str, int]:
        """Every raw file of the scene and its size in bytes, sorted by name.

        Raises:
            DataError: a file that is in two places.
        """
        return {name: size for name, (size, _) in _listing(self).items()}

    def pairs(self) -> list[Pair]:
        """Its synchronised frames."""
        return synchronise(_listing(self))

    def read(self, name: str) -> bytes:
        """The bytes of one of its files.

        Raises:
            DamagedFile: it cannot be read.
        """
        return _listing(self)[name][1].read(name)

    def load(self, pair: Pair) -> tuple[Frame | None, list[Finding]]:
        """Read, check and register one frame; a frame without accelerometer data is whole."""
        files = (pair.depth, pair.rgb)
        if pair.depth in BAD_FRAMES:
            known = "known bad frame of NYU Depth V2"
            return None, [Finding(file, "excluded", known) for file in files]
        if pair.gap_s > MAX_GAP_S:
            reason = f"depth and rgb are {pair.gap_s:.2f} s apart, expected {MAX_GAP_S} or less"
            return None, [Finding(file, "unpaired", reason) for file in files]
        findings: list[Finding] = []
        disparity = self._parsed(pair.depth, parse_pgm, findings)
        rgb = self._parsed(pair.rgb, parse_ppm, findings)
        accel = self._parsed(pair.accel, parse_dump, findings) if pair.accel else None
        if disparity is None or rgb is None:
            return None, findings
        rgb, depth_mm = register(rgb, disparity)
        if not depth_mm.any():
            findings[0] = Finding(pair.depth, "empty", "no pixel has a reading")
            return None, findings
        frame = Frame(
            rgb,
            depth_mm,
            self.name,
            pair.index,
            pair.time_s,
            K=RGB_CAMERA.matrix(),
            accel_g=None if accel is None else (accel.x_g, accel.y_g, accel.z_g),
        )
        return frame, findings

    def _parsed(self, name: str, parse: Callable[..., T], findings: list[Finding]) -> T | None:
        """A file's content; the verdict is added to the findings."""
        try:
            content = parse(self.read(name), name=name)
        except DamagedFile as error:
            reason = str(error).removeprefix(f"{name}: ")
            findings.append(Finding(name, error.verdict, reason))
            return None
        findings.append(Finding(name, "ok"))
        return content


@lru_cache(maxsize=4)
def _listing(scene: RawScene) -> dict[str, tuple[int, Store]]:
    """Size and place of each file, sorted by name; kept for the scenes in use."""
    found: dict[str, tuple[int, Store]] = {}
    for store in scene.stores:
        for name, size in store.sizes().items():
            if name in found:
                first, second = found[name][1].label(name), store.label(name)
                raise DataError(
                    f"scene {scene.name}: found twice, {first} and {second}; give one of them"
                )
            found[name] = (size, store)
    return dict(sorted(found.items()))


def _zip_stores(path: Path) -> Iterable[tuple[str, Store]]:
    folders = {
        folder
        for folder, name in map(_split, _open_zip(path, os.getpid()).namelist())
        if parse_name(name) and "_out/" not in folder
    }
    for folder in sorted(folders):
        yield folder.rstrip("/").rpartition("/")[2] or path.stem, Store(path, folder)


def _folder_stores(path: Path, depth: int) -> Iterable[tuple[str, Store]]:
    try:
        entries = sorted(path.iterdir())
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    if any(parse_name(entry.name) for entry in entries):
        yield path.resolve().name, Store(path)
        return
    for entry in entries:
        if entry.suffix.lower() == ".zip" and entry.is_file():
            yield from _zip_stores(entry)
        elif depth and entry.is_dir() and not entry.name.endswith("_out"):
            yield from _folder_stores(entry, depth - 1)


def find_stores(source: Path) -> list[tuple[str, Store]]:
    """Places of raw scenes, by scene name: a scene folder, folders or zips in it, or a zip.

    Folders that end in `_out` hold another script's results and are left out.

    Raises:
        DataError: a source that is missing or cannot be read.
    """
    _listing.cache_clear()  # an earlier look in this process may be out of date
    _open_zip.cache_clear()
    if not source.exists():
        raise DataError(f"{source}: does not exist, {EXPECTED}")
    if source.is_dir():
        return list(_folder_stores(source, _MAX_DEPTH))
    if source.suffix.lower() == ".zip":
        return list(_zip_stores(source))
    raise DataError(f"{source}: is a file, {EXPECTED}")


def raw_scenes(stores: Iterable[tuple[str, Store]]) -> list[RawScene]:
    """Scenes by name; files of one may lie in several places."""
    scenes: dict[str, list[Store]] = {}
    for name, store in stores:
        scenes.setdefault(name, []).append(store)
    return [RawScene(name, tuple(scenes[name])) for name in sorted(scenes)]
