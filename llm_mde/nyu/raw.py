"""Files of NYU Depth V2 raw as recorded: names, formats and synchronisation.

A scene holds `d-<host s>-<tick>.pgm` depth, `r-...ppm` RGB and `a-...dump` accelerometer files.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm_mde.nyu.frame import DamagedFile, Pair, Verdict

HEIGHT, WIDTH = 480, 640
MAX_DISPARITY = 2047  # the Kinect v1 reports 11 bits; 2047 itself is "no reading"
PGM_HEADER = b"P5 640 480 65535\n"
PPM_HEADER = b"P6 640 480 255\n"
PGM_BYTES = len(PGM_HEADER) + 2 * HEIGHT * WIDTH  # 614417
PPM_BYTES = len(PPM_HEADER) + 3 * HEIGHT * WIDTH  # 921615
DUMP_STRUCT = struct.Struct("<3hbxi")  # the recorder's struct: ax, ay, az, tilt, pad, status
COUNTS_PER_G = 819.0  # accelerometer counts for 1 g
AGAIN = "download or extract this file again, or leave it out"

_NAME = re.compile(r"(?P<kind>[dra])-(?P<host>\d+\.\d+)-(?P<tick>\d+)\.(?P<ext>pgm|ppm|dump)")
_EXTENSION = {"d": "pgm", "r": "ppm", "a": "dump"}


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


def parse_name(name: str) -> Stamp | None:
    """The stamp of a raw file name, None for any other file (INDEX.txt, device.json, ...)."""
    match = _NAME.fullmatch(name)
    if match is None or match["ext"] != _EXTENSION[match["kind"]]:
        return None
    return Stamp(match["kind"], float(match["host"]), int(match["tick"]))


def _check_size(payload: bytes, expected: int, *, name: str) -> None:
    got = len(payload)
    if got != expected:
        verdict: Verdict = "undecodable" if got > expected else "truncated" if got else "empty"
        came = "more" if got > expected else f"{got} ({verdict})"
        raise DamagedFile(verdict, f"{name}: expected {expected} bytes, got {came}; {AGAIN}")


def _check_header(payload: bytes, header: bytes, *, name: str) -> None:
    if not payload.startswith(header):
        got = payload[: len(header)]
        problem = f"{name}: expected the header {header!r}, got {got!r}; {AGAIN}"
        raise DamagedFile("undecodable", problem)


def parse_pgm(payload: bytes, *, name: str) -> NDArray[np.uint16]:
    """Disparity (480, 640), 0..2047, 2047 = no reading.

    The recorder wrote little-endian values although PGM says big-endian.

    Raises:
        DamagedFile: wrong size, header or byte order, naming the file.
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
        expected = f"expected values up to {MAX_DISPARITY}, got {largest}"
        raise DamagedFile("undecodable", f"{name}: {expected}: {problem}")
    return disparity


def parse_ppm(payload: bytes, *, name: str) -> NDArray[np.uint8]:
    """RGB (480, 640, 3).

    Raises:
        DamagedFile: wrong size or header, naming the file.
    """
    _check_size(payload, PPM_BYTES, name=name)
    _check_header(payload, PPM_HEADER, name=name)
    return np.frombuffer(payload, np.uint8, offset=len(PPM_HEADER)).reshape(HEIGHT, WIDTH, 3)


def parse_dump(payload: bytes, *, name: str) -> Accel:
    """One 12-byte accelerometer dump.

    Raises:
        DamagedFile: wrong size, naming the file.
    """
    _check_size(payload, DUMP_STRUCT.size, name=name)
    ax, ay, az, tilt, status = DUMP_STRUCT.unpack(payload)
    return Accel(ax / COUNTS_PER_G, ay / COUNTS_PER_G, az / COUNTS_PER_G, tilt / 2, status)


def synchronise(names: Iterable[str]) -> list[Pair]:
    """One pair for each depth file, in name order (get_synched_frames.m of the toolbox).

    The RGB and accelerometer pointers only move forward, while the next file is at least as near in
    host time (ties advance). No largest gap; an RGB image may serve twice. No pair without RGB.
    """
    files: dict[str, list[tuple[str, float]]] = {"d": [], "r": [], "a": []}
    for name in sorted(names):
        stamp = parse_name(name)
        if stamp is not None:
            files[stamp.kind].append((name, stamp.host_s))
    if not files["d"] or not files["r"]:
        return []
    times = [time for _, time in files["d"]]
    rgb = _follow(times, files["r"])
    accel = [name for name, _ in _follow(times, files["a"])] if files["a"] else [None] * len(rgb)
    return [
        Pair(index, depth, r, a, time, abs(time - r_time))
        for index, ((depth, time), (r, r_time), a) in enumerate(
            zip(files["d"], rgb, accel, strict=True)
        )
    ]


def _follow(times: list[float], files: list[tuple[str, float]]) -> list[tuple[str, float]]:
    """For each time the nearest file, never going back, ties to the later one."""
    out, at = [], 0
    for time in times:
        while at + 1 < len(files) and abs(time - files[at + 1][1]) <= abs(time - files[at][1]):
            at += 1
        out.append(files[at])
    return out
