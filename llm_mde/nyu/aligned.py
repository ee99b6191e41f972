"""Ready-made pairs: RGB images and 16-bit depth images on the same pixels.

The registered NYU frames as published by the authors of BTS (Lee et al. 2019,
https://arxiv.org/abs/1907.10326), `<scene>/rgb_00045.jpg` with `sync_depth_00045.png`, with the
folders `official_splits/{train,test}/<type>/` that their script makes of the labelled set; and any
folder of pairs that a `Pattern` describes.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from numpy.typing import NDArray

from llm_mde.errors import DataError
from llm_mde.nyu.frame import DamagedFile, Finding, Frame, Pair
from llm_mde.nyu.kinect import RGB_CAMERA
from llm_mde.nyu.pattern import Match, Pattern, matches, read_depth, read_rgb
from llm_mde.nyu.scenes import SCENE_TYPES, check_scene_name, official_test_images

Part = Literal["train", "test"]
_MAX_DEPTH = 2  # folders between the given one and a scene
_SYNC_NAME = re.compile(r"rgb_[0-9]+\.jpg|sync_depth_[0-9]+\.png")
_LINE = re.compile(  # folder, image and depth of one number; a focal length or a further path
    r"/?(?P<folder>\S+)/(?P<rgb>rgb_(?P<index>[0-9]{1,9})\.jpg)\s+"
    r"/?(?P=folder)/(?P<depth>sync_depth_(?P=index)\.png)(?:\s+\S+)?"
)
_K = tuple(tuple(row) for row in RGB_CAMERA.matrix())
SYNC = Pattern("rgb_{index}.jpg", "sync_depth_{index}.png", invalid=(0,), K=_K)


@dataclass(frozen=True)
class SyncScene:
    """A folder of registered NYU frames, or those frames of it that a list names."""

    path: Path
    name: str
    part: Part | None = None
    """Where the folder is named by a bare type: its numbers are labelled numbers minus 1."""
    list_file: Path | None = None
    listed: str = ""
    """The folder as the list writes it."""
    source = "nyu_sync"

    def files(self) -> dict[str, int]:
        """Its images and their bytes; a listed file that is missing has 0."""
        return dict(_sync_listing(self).files)

    def pairs(self) -> list[Pair]:
        """Frames by number; with a list all that it names, there or not."""
        return list(_sync_listing(self).pairs)

    def load(self, pair: Pair) -> tuple[Frame | None, list[Finding]]:
        """One frame; a listed file that is not there is found `missing`."""
        return _load(self, pair, folder=self.path, pattern=SYNC)


@dataclass(frozen=True)
class PatternScene:
    """One scene of a folder that a pattern describes."""

    path: Path
    name: str
    pattern: Pattern
    source = "pattern"
    part: Part | None = None

    def files(self) -> dict[str, int]:
        """Every file that fits the patterns, by its path inside the folder, and its bytes."""
        return dict(_pattern_listing(self).files)

    def pairs(self) -> list[Pair]:
        """Frames by number: those with both images."""
        return list(_pattern_listing(self).pairs)

    def load(self, pair: Pair) -> tuple[Frame | None, list[Finding]]:
        """One frame."""
        return _load(self, pair, folder=self.path, pattern=self.pattern)


def sync_scenes(root: Path, list_file: Path | None = None) -> list[SyncScene]:
    """The scenes of a folder of registered frames, or of such folders up to two levels down.

    list_file: lines `<scene>/rgb_00045.jpg <scene>/sync_depth_00045.png 518.8579`, as published;
    then only its frames count, and those that are not below root are missing files.

    Raises:
        DataError: a root or list that is missing, malformed or holds no such frames.
    """
    _sync_listing.cache_clear()  # an earlier look in this process may be out of date
    _listed.cache_clear()
    root = _folder(root)
    if list_file is None:
        found = [(path, "") for path in _sync_folders(root, _MAX_DEPTH)]
        if not found:
            raise DataError(f"{root}: expected {SYNC.rgb} and {SYNC.depth}, in it or 2 levels down")
    else:
        list_file = Path(os.path.abspath(list_file))
        found = [(root / folder, folder) for folder in sorted(_listed(list_file))]
        if not any(path.is_dir() for path, _ in found):
            raise DataError(
                f"{root}: none of the {len(found)} folders of {list_file} is there, such as "
                f"{found[0][1]}; give the folder that the list's paths start from"
            )
    scenes = []
    for path, listed in found:
        check_scene_name(path.name)
        parts: tuple[Part | None, ...] = ("train", "test") if path.name in SCENE_TYPES else (None,)
        scenes += [SyncScene(path, path.name, part, list_file, listed) for part in parts]
    return [scene for scene in scenes if scene.part is None or scene.files()]


def pattern_scenes(root: Path, pattern: Pattern) -> list[PatternScene]:
    """The scenes of a folder; without `{scene}` in the pattern one, named like the folder.

    Raises:
        DataError: a missing folder, no file that fits, or a scene name that cannot be used.
    """
    _pattern_listing.cache_clear()  # an earlier look in this process may be out of date
    root = _folder(root)
    found = [*matches(root, pattern.rgb), *matches(root, pattern.depth)]
    if not found:
        raise DataError(f"{root}: expected files {pattern.rgb} and {pattern.depth}, found none")
    names = sorted({match.scene or root.name for match in found})
    for name in names:
        check_scene_name(name)
    return [PatternScene(root, name, pattern) for name in names]


class _Listing(NamedTuple):
    files: dict[str, int]
    pairs: list[Pair]


def _folder(path: Path) -> Path:
    if not path.is_dir():
        raise DataError(f"{path}: does not exist or is no folder, expected RGB and depth images")
    return Path(os.path.abspath(path))


def _sync_folders(folder: Path, depth: int) -> Iterator[Path]:
    """The nearest folders that hold registered frames, sorted."""
    try:
        with os.scandir(folder) as scan:
            entries = list(scan)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    if any(_SYNC_NAME.fullmatch(entry.name) for entry in entries):
        yield folder
    elif depth:
        for name in sorted(entry.name for entry in entries if entry.is_dir()):
            yield from _sync_folders(folder / name, depth - 1)


def _paired(folder: Path, rgb: list[Match], depth: list[Match]) -> _Listing:
    """Files and pairs of one scene.

    Raises:
        DataError: two files of one number (`7` and `07`).
    """
    sides: list[dict[int, str]] = [{}, {}]
    for side, found in zip(sides, (rgb, depth), strict=True):
        for match in found:
            first = side.setdefault(match.number, match.file)
            if first != match.file:
                raise DataError(f"{folder}: {first} and {match.file} are one number; rename one")
    common = sorted(sides[0].keys() & sides[1].keys())
    files = {match.file: match.size for match in sorted([*rgb, *depth])}
    return _Listing(files, [Pair(n, sides[1][n], sides[0][n]) for n in common])


@lru_cache(maxsize=4)
def _pattern_listing(scene: PatternScene) -> _Listing:
    rgb, depth = (
        matches(scene.path, path, scene=scene.name)
        for path in (scene.pattern.rgb, scene.pattern.depth)
    )
    return _paired(scene.path, rgb, depth)


@lru_cache(maxsize=4)
def _sync_listing(scene: SyncScene) -> _Listing:
    def wanted(index: int) -> bool:
        part = "test" if index + 1 in official_test_images() else "train"
        return scene.part in (None, part)

    there = scene.list_file is None or scene.path.is_dir()
    rgb, depth = (
        [match for match in matches(scene.path, path) if wanted(match.number)] if there else []
        for path in (SYNC.rgb, SYNC.depth)
    )
    found = _paired(scene.path, rgb, depth)
    if scene.list_file is None:
        return found
    pairs = [pair for pair in _listed(scene.list_file)[scene.listed] if wanted(pair.index)]
    names = sorted(name for pair in pairs for name in (pair.depth, pair.rgb))
    return _Listing({name: found.files.get(name, 0) for name in names}, pairs)


@lru_cache(maxsize=4)
def _listed(path: Path) -> dict[str, list[Pair]]:
    """The frames of each folder of a list, by number."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: is no readable list ({error})") from error
    frames: dict[str, dict[int, Pair]] = {}
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line.strip())
        if match is None or {"", ".", ".."}.intersection(match["folder"].split("/")):
            raise DataError(
                f"{path}, line {number}: expected '<scene>/rgb_00045.jpg "
                f"<scene>/sync_depth_00045.png 518.8579', got {line[:200]!r}"
            )
        pair = Pair(int(match["index"]), match["depth"], match["rgb"])
        frames.setdefault(match["folder"], {})[pair.index] = pair
    if not frames:
        raise DataError(f"{path}: is empty, expected a list of frames")
    return {folder: [found[n] for n in sorted(found)] for folder, found in frames.items()}


def _load(
    scene: SyncScene | PatternScene, pair: Pair, *, folder: Path, pattern: Pattern
) -> tuple[Frame | None, list[Finding]]:
    findings: list[Finding] = []
    found: list[NDArray[Any]] = []
    for name, read in ((pair.depth, read_depth), (pair.rgb, read_rgb)):
        try:
            found.append(read(folder / name))
            findings.append(Finding(name, "ok"))
        except DamagedFile as error:
            findings.append(Finding(name, error.verdict, str(error)))
    if len(found) < 2:
        return None, findings
    depth, rgb = found
    if depth.shape != rgb.shape[:2]:
        sizes = f"rgb is {rgb.shape[1]}x{rgb.shape[0]}, depth is {depth.shape[1]}x{depth.shape[0]}"
        findings[0] = Finding(pair.depth, "undecodable", f"{sizes}: depth not registered to rgb?")
        return None, findings
    depth_mm = pattern.millimetres(depth)
    if not depth_mm.any():
        findings[0] = Finding(pair.depth, "empty", "no pixel has a reading")
        return None, findings
    frame = Frame(
        rgb, depth_mm, scene.name, pair.index, None, source=scene.source, K=pattern.matrix()
    )
    return frame, findings
