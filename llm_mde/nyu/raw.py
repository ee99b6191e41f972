"""Raw NYU Depth V2 scenes as recorded: file names, formats, synchronisation, folders and zips.

A scene is a folder (or a folder inside a downloaded zip) of `d-<host s>-<tick>.pgm` depth,
`r-...ppm` RGB and `a-...dump` accelerometer files. Zips are read in place, never unpacked.
"""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError

HEIGHT, WIDTH = 480, 640
MAX_DISPARITY = 2047  # the Kinect v1 reports 11 bits; 2047 itself is "no reading"
PGM_HEADER = b"P5 640 480 65535\n"
PPM_HEADER = b"P6 640 480 255\n"
PGM_BYTES = len(PGM_HEADER) + 2 * HEIGHT * WIDTH  # 614417
PPM_BYTES = len(PPM_HEADER) + 3 * HEIGHT * WIDTH  # 921615
DUMP_STRUCT = struct.Struct("<3hbxi")  # the recorder's struct: ax, ay, az, tilt, pad, status
COUNTS_PER_G = 819.0  # accelerometer counts for 1 g
AGAIN = "download or extract this file again, or leave it out"
NO_SCENE = "no r-*.ppm found, expected a raw NYU scene folder or its .zip"

_NAME = re.compile(r"(?P<kind>[dra])-(?P<host>\d+\.\d+)-(?P<tick>\d+)\.(?P<ext>pgm|ppm|dump)")
_EXTENSION = {"d": "pgm", "r": "ppm", "a": "dump"}
_MAX_DEPTH = 2  # folders between the given one and a scene
UNREADABLE = (OSError, LookupError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Stamp:
    """What a raw file name says: kind `d`, `r` or `a`, host seconds, 60 MHz device tick."""

    kind: str
    host_s: float
    tick: int


@dataclass(frozen=True)
class Accel:
    """One accelerometer reading: acceleration in g, tilt in degrees, motor status."""

    x_g: float
    y_g: float
    z_g: float
    tilt_deg: float
    status: int


@dataclass(frozen=True, slots=True)
class Pair:
    """Names of one synchronised frame; `accel` is None in a scene without accelerometer files."""

    depth: str
    rgb: str
    accel: str | None
    time_s: float
    """Host time of the depth image, seconds."""
    gap_s: float
    """Host time between depth and RGB, seconds, 0 or more."""


def parse_name(name: str) -> Stamp | None:
    """The stamp of a raw file name, None for any other file (INDEX.txt, device.json, ...)."""
    match = _NAME.fullmatch(name)
    if match is None or match["ext"] != _EXTENSION[match["kind"]]:
        return None
    return Stamp(match["kind"], float(match["host"]), int(match["tick"]))


def _check_size(payload: bytes, expected: int, *, name: str) -> None:
    if len(payload) != expected:
        what = "truncated" if len(payload) < expected else "too long"
        raise DataError(f"{name}: expected {expected} bytes, got {len(payload)} ({what}); {AGAIN}")


def _check_header(payload: bytes, header: bytes, *, name: str) -> None:
    if not payload.startswith(header):
        got = payload[: len(header)]
        raise DataError(f"{name}: expected the header {header!r}, got {got!r}; {AGAIN}")


def parse_pgm(payload: bytes, *, name: str) -> NDArray[np.uint16]:
    """Disparity (480, 640), 0..2047, 2047 = no reading.

    The recorder wrote little-endian values although PGM says big-endian.

    Raises:
        DataError: wrong size, header or byte order, naming the file.
    """
    _check_size(payload, PGM_BYTES, name=name)
    _check_header(payload, PGM_HEADER, name=name)
    disparity = np.frombuffer(payload, "<u2", offset=len(PGM_HEADER)).reshape(HEIGHT, WIDTH)
    largest = int(disparity.max())
    if largest > MAX_DISPARITY:
        swapped = int(disparity.byteswap().max()) <= MAX_DISPARITY
        problem = (
            "the payload is byte-swapped (big-endian); use the recorder's file, not a converted one"
            if swapped
            else f"this is no Kinect disparity image; {AGAIN}"
        )
        raise DataError(f"{name}: expected values up to {MAX_DISPARITY}, got {largest}: {problem}")
    return disparity


def parse_ppm(payload: bytes, *, name: str) -> NDArray[np.uint8]:
    """RGB (480, 640, 3).

    Raises:
        DataError: wrong size or header, naming the file.
    """
    _check_size(payload, PPM_BYTES, name=name)
    _check_header(payload, PPM_HEADER, name=name)
    return np.frombuffer(payload, np.uint8, offset=len(PPM_HEADER)).reshape(HEIGHT, WIDTH, 3)


def parse_dump(payload: bytes, *, name: str) -> Accel:
    """One 12-byte accelerometer dump.

    Raises:
        DataError: wrong size, naming the file.
    """
    _check_size(payload, DUMP_STRUCT.size, name=name)
    ax, ay, az, tilt, status = DUMP_STRUCT.unpack(payload)
    return Accel(ax / COUNTS_PER_G, ay / COUNTS_PER_G, az / COUNTS_PER_G, tilt / 2, status)


def synchronise(names: Iterable[str]) -> list[Pair]:
    """One pair for each depth file, in name order (get_synched_frames.m of the toolbox).

    The RGB and accelerometer pointers only move forward, while the next file is at least as near in
    host time (ties advance). No largest gap; an RGB image may serve twice.

    Raises:
        DataError: depth files without a single RGB file.
    """
    files: dict[str, list[tuple[str, float]]] = {"d": [], "r": [], "a": []}
    for name in sorted(names):
        stamp = parse_name(name)
        if stamp is not None:
            files[stamp.kind].append((name, stamp.host_s))
    if not files["d"]:
        return []
    if not files["r"]:
        raise DataError(NO_SCENE)
    times = [time for _, time in files["d"]]
    rgb = _follow(times, files["r"])
    accel = [name for name, _ in _follow(times, files["a"])] if files["a"] else [None] * len(rgb)
    return [
        Pair(depth, r, a, time, abs(time - r_time))
        for (depth, time), (r, r_time), a in zip(files["d"], rgb, accel, strict=True)
    ]


def _follow(times: list[float], files: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """For each time the nearest file, never going back, ties to the later one."""
    out, at = [], 0
    for time in times:
        while at + 1 < len(files) and abs(time - files[at + 1][1]) <= abs(time - files[at][1]):
            at += 1
        out.append(files[at])
    return out


@dataclass(frozen=True)
class Store:
    """Where a scene's bytes are: a folder, or a folder inside a zip. Small and picklable."""

    path: Path
    prefix: str | None = None
    """Folder inside the zip `path`, "" or ending in "/"; None when `path` is a folder."""

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
            DataError: the file is missing, unreadable or damaged inside the zip.
        """
        try:
            if self.prefix is None:
                return (self.path / name).read_bytes()
            with _open_zip(self.path, os.getpid()).open(self.prefix + name) as member:
                return member.read(PPM_BYTES + 1)  # no raw file is longer, whatever the zip says
        except UNREADABLE as error:
            raise DataError(f"{self.label(name)}: cannot be read ({error}); {AGAIN}") from error

    def label(self, name: str) -> str:
        """How messages name the file."""
        return str(self.path / name if self.prefix is None else self.path / (self.prefix + name))


@lru_cache(maxsize=4)
def _open_zip(path: Path, process: int) -> zipfile.ZipFile:
    """One handle a zip and process: a forked child must not share its parent's file position."""
    try:
        return zipfile.ZipFile(path)
    except (OSError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: not a readable zip ({error}); download it again") from error


@dataclass(frozen=True)
class RawScene:
    """One scene: its name, its raw file names (sorted), and where their bytes are."""

    name: str
    store: Store
    names: tuple[str, ...]

    def read(self, name: str) -> bytes:
        """The bytes of one of its files."""
        return self.store.read(name)

    def pairs(self) -> list[Pair]:
        """Its synchronised frames."""
        return synchronise(self.names)


def _scene(name: str, store: Store, names: Iterable[str]) -> RawScene:
    scene = RawScene(name, store, tuple(sorted(names)))
    where = store.label("").rstrip("/")
    for kind, message in (("r", NO_SCENE), ("d", NO_SCENE.replace("r-*.ppm", "d-*.pgm"))):
        if not any(name.startswith(f"{kind}-") for name in scene.names):
            raise DataError(f"{where}: {message}")
    return scene


def _zip_scenes(path: Path) -> list[RawScene]:
    members: dict[str, list[str]] = {}
    for member in _open_zip(path, os.getpid()).namelist():
        folder, _, name = member.rpartition("/")
        if parse_name(name) and "_out/" not in f"{folder}/":
            members.setdefault(folder, []).append(name)
    return [
        _scene(
            folder.rpartition("/")[2] or path.stem,
            Store(path, f"{folder}/" if folder else ""),
            names,
        )
        for folder, names in sorted(members.items())
    ]


def _folder_scenes(path: Path, depth: int) -> list[RawScene]:
    entries = sorted(path.iterdir())
    names = [entry.name for entry in entries if parse_name(entry.name)]
    if names:
        return [_scene(path.resolve().name, Store(path), names)]
    scenes: list[RawScene] = []
    for entry in entries:
        if entry.suffix == ".zip" and entry.is_file():
            scenes += _zip_scenes(entry)
        elif depth and entry.is_dir() and not entry.name.endswith("_out"):
            scenes += _folder_scenes(entry, depth - 1)
    return scenes


def find_scenes(source: Path) -> list[RawScene]:
    """Scenes of a scene folder, a folder of scenes or zips (up to two levels down), or one zip.

    Folders that end in `_out` hold another script's results and are left out.

    Raises:
        DataError: nothing there, no scene in it, or a scene without RGB or depth.
    """
    if not source.exists():
        raise DataError(f"{source}: does not exist, expected a raw NYU scene folder or its .zip")
    if source.is_dir():
        scenes = _folder_scenes(source, _MAX_DEPTH)
    elif source.suffix == ".zip":
        scenes = _zip_scenes(source)
    else:
        raise DataError(f"{source}: is a file, expected a raw NYU scene folder or its .zip")
    if not scenes:
        raise DataError(f"{source}: {NO_SCENE}")
    return scenes
