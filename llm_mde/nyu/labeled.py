"""The labelled set of NYU Depth V2: `nyu_depth_v2_labeled.mat`, 1,449 registered frames.

A MATLAB v7.3 file, which is HDF5; h5py sees MATLAB's arrays with their axes reversed. Read are
`images` (N, 3, 640, 480) uint8; `rawDepths` (N, 640, 480) float32 metres, the sensor's depth
projected onto the RGB pixels, 0 = no reading; `depths`, the same with its holes filled; and
`rawDepthFilenames` (1, N), references to `<folder>/d-<host s>-<tick>.pgm` (Silberman et al. 2012,
https://cs.nyu.edu/~silberman/datasets/nyu_depth_v2.html). `accelData` is left alone: its page calls
it angles, the toolbox that made it accelerations, and neither gives a unit.
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import h5py
import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError
from llm_mde.nyu.frame import Finding, Frame, Pair
from llm_mde.nyu.kinect import RGB_CAMERA
from llm_mde.nyu.raw import HEIGHT, WIDTH, parse_name
from llm_mde.nyu.scenes import check_scene_name, official_test_images

IMAGES = 1449
MAX_DEPTH_MM = 10_000  # the toolbox stores 10 m for 10 m and more
SHAPES = {
    "images": ((3, WIDTH, HEIGHT), "uint8"),
    "rawDepths": ((WIDTH, HEIGHT), "float32"),
    "depths": ((WIDTH, HEIGHT), "float32"),
}
NAMES = "rawDepthFilenames"
EXPECTED = "expected nyu_depth_v2_labeled.mat (HDF5, 2.8 GB)"
_AGAIN = "download the file again"
_MAX_NAME = 256  # characters of a raw file name; the real ones have about 60
_CACHE_BYTES = 32 * 2**20  # a dataset: neighbouring images may share compressed chunks
# What h5py raises on damaged content, besides DataError.
_BROKEN = (OSError, RuntimeError, LookupError, ValueError, TypeError)


class Origin(NamedTuple):
    """Where one labelled image was taken."""

    folder: str
    """Its raw folder, exact name."""
    time_s: float | None
    """Host time of its raw depth image, seconds; None where the name does not tell."""


@dataclass(frozen=True)
class LabeledScene:
    """The labelled images of one raw folder that are in the same official part."""

    path: Path
    name: str
    part: Literal["train", "test"]
    indices: tuple[int, ...]
    """Labelled numbers, counted from 1."""
    source = "nyu_labeled"

    def files(self) -> dict[str, int]:
        """`images#17` and the like: the arrays of its images, bytes before compression."""
        sizes = {
            name: int(np.prod(shape)) * np.dtype(dtype).itemsize
            for name, (shape, dtype) in SHAPES.items()
        }
        found = {f"{name}#{n}": size for name, size in sizes.items() for n in self.indices}
        return dict(sorted(found.items()))

    def pairs(self) -> list[Pair]:
        """Its images by number."""
        origins = _origins(self.path)
        return [
            Pair(n, f"rawDepths#{n}", f"images#{n}", time_s=origins[n - 1].time_s)
            for n in self.indices
        ]

    def load(self, pair: Pair) -> tuple[Frame | None, list[Finding]]:
        """One image; nothing where one of its three arrays is damaged."""
        n = pair.index
        findings: list[Finding] = []
        found = {name: _array(self.path, name, n, findings) for name in SHAPES}
        rgb, depth, filled = found["images"], found["rawDepths"], found["depths"]
        if rgb is None or depth is None or filled is None:
            return None, findings
        depth_mm = _millimetres(depth.T)  # (480, 640)
        if not depth_mm.any():
            empty = Finding(pair.depth, "empty", "no pixel has a reading")
            return None, [empty if f.file == pair.depth else f for f in findings]
        frame = Frame(
            np.ascontiguousarray(rgb.transpose(2, 1, 0)),  # (480, 640, 3)
            depth_mm,
            self.name,
            n,
            pair.time_s,
            source=self.source,
            K=RGB_CAMERA.matrix(),
            key=f"labeled-{n:06d}",
            filled_mm=_millimetres(filled.T),
        )
        return frame, findings


def labeled_scenes(path: Path) -> list[LabeledScene]:
    """The labelled images by raw folder and official part, sorted.

    Raises:
        DataError: not the labelled file, or a damaged one.
    """
    path = Path(os.path.abspath(path))
    groups: dict[tuple[str, Literal["train", "test"]], list[int]] = {}
    for n, origin in enumerate(_origins(path), 1):
        part: Literal["train", "test"] = "test" if n in official_test_images() else "train"
        groups.setdefault((origin.folder, part), []).append(n)
    return [
        LabeledScene(path, folder, part, tuple(numbers))
        for (folder, part), numbers in sorted(groups.items())
    ]


def test_folders(path: Path) -> frozenset[str]:
    """The raw folders that hold an official test image.

    Raises:
        DataError: not the labelled file, or a damaged one.
    """
    return frozenset(scene.name for scene in labeled_scenes(path) if scene.part == "test")


@lru_cache(maxsize=2)
def _open(path: Path, process: int) -> h5py.File:
    """The file with its layout checked; one handle a process."""
    if not path.is_file():
        raise DataError(f"{path}: does not exist or is no file, {EXPECTED}")
    try:
        # No locks: the data may lie on a read-only or network disk. 10007: a prime, as HDF5 asks.
        file = h5py.File(path, "r", locking=False, rdcc_nbytes=_CACHE_BYTES, rdcc_nslots=10007)
    except _BROKEN as error:
        raise DataError(
            f"{path}: is not readable as HDF5 ({error}), {EXPECTED}; {_AGAIN}"
        ) from error
    count = _dataset(file, path, NAMES).size
    if not 1 <= count <= IMAGES:
        raise DataError(f"{path}: {NAMES} has {count} entries, expected 1 to {IMAGES}, {EXPECTED}")
    _check(file, path, NAMES, shape=(1, count), dtype="object")
    for name, (shape, dtype) in SHAPES.items():
        _check(file, path, name, shape=(count, *shape), dtype=dtype)
    return file


def _dataset(file: h5py.File, path: Path, name: str) -> h5py.Dataset:
    """A dataset of this very file: other files that it may point to are not followed."""
    try:
        kept_here = isinstance(file.get(name, getlink=True), h5py.HardLink)
        dataset = file[name] if kept_here else None
    except _BROKEN as error:
        raise DataError(f"{path}: has no readable {name} ({error}), {EXPECTED}") from error
    if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
        raise DataError(f"{path}: {name} is no array kept in this file, {EXPECTED}")
    return dataset


def _check(file: h5py.File, path: Path, name: str, *, shape: tuple[int, ...], dtype: str) -> None:
    dataset = _dataset(file, path, name)
    if dataset.shape != shape or dataset.dtype != np.dtype(dtype):
        got = f"{dataset.shape} {dataset.dtype}"
        raise DataError(f"{path}: {name} is {got}, expected {shape} {dtype}; {EXPECTED}")


@lru_cache(maxsize=4)
def _origins(path: Path) -> tuple[Origin, ...]:
    """The origin of every labelled image, in order."""
    file = _open(path, os.getpid())
    try:
        return tuple(_origin(_text(file, reference)) for reference in file[NAMES][0])
    except (*_BROKEN, DataError) as error:
        raise DataError(
            f"{path}: {NAMES} is not readable ({error}), {EXPECTED}; {_AGAIN}"
        ) from error


def _text(file: h5py.File, reference: h5py.Reference) -> str:
    """A MATLAB char array: (L, 1) uint16."""
    letters = file[reference]
    if letters.dtype != np.uint16 or not 1 <= letters.size <= _MAX_NAME:
        raise DataError(f"expected uint16 letters, got {letters.shape} {letters.dtype}")
    return "".join(map(chr, letters[()].ravel()))


def _origin(text: str) -> Origin:
    """`basement_0001a/d-1316653580.471513-1316138413.pgm` to folder and time."""
    name = PurePosixPath(text)
    if len(name.parts) != 2:
        raise DataError(f"expected '<folder>/<file>', got {text!r}")
    check_scene_name(name.parts[0])
    stamp = parse_name(name.parts[1])
    return Origin(name.parts[0], None if stamp is None else stamp.host_s)


def _array(path: Path, name: str, n: int, findings: list[Finding]) -> NDArray | None:
    """One image's part of a dataset; the verdict is added to the findings."""
    try:
        array: NDArray = _open(path, os.getpid())[name][n - 1]
    except _BROKEN as error:
        findings.append(Finding(f"{name}#{n}", "undecodable", f"{error}; {_AGAIN}"))
        return None
    findings.append(Finding(f"{name}#{n}", "ok"))
    return array


def _millimetres(metres: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounded to millimetres, at most 10 m; 0 where there is no number above 0."""
    mm = np.rint(np.nan_to_num(metres.astype(np.float64) * 1000.0, posinf=MAX_DEPTH_MM))
    return np.ascontiguousarray(np.clip(mm, 0, MAX_DEPTH_MM).astype(np.uint16))
