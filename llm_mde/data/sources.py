"""From the paths a user gives to scenes, whatever kind of source they hold."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.aligned import Pattern, SyncScene, pattern_scenes, sync_scenes
from llm_mde.nyu.dumps import Store, find_stores, raw_scenes
from llm_mde.nyu.frame import Scene
from llm_mde.nyu.labeled import labeled_scenes, test_folders
from llm_mde.nyu.scenes import check_scene_name

logger = logging.getLogger(__name__)

LABELED = "labeled"  # keys of labelled images start with it
Number = TypeVar("Number", int, float)


@dataclass(frozen=True)
class Inputs:
    """All scenes of all sources."""

    scenes: tuple[Scene, ...]
    test_scenes: frozenset[str] | None
    """Raw folders that hold an official test image, None without the labelled file."""
    pattern: Pattern | None = None
    """What describes pairs of other names."""


def collect(
    sources: Sequence[Path], *, pattern: Pattern | None = None, list_file: Path | None = None
) -> Inputs:
    """All scenes of the sources, sorted by name.

    A source is a raw scene, a folder of raw scenes or zips, a zip, `nyu_depth_v2_labeled.mat`, or a
    folder of synchronised pairs; with `pattern`, any folder of RGB and 16-bit depth files; with
    `list_file`, the listed pairs of a folder of synchronised ones.

    Raises:
        ConfigError: a pattern that cannot be used.
        DataError: a source without scenes, a scene name that cannot be a key, a name met twice.
    """
    scenes: list[Scene] = []
    raw: list[tuple[str, Store]] = []
    test_scenes: frozenset[str] | None = None
    for source in (path.absolute() for path in sources):  # workers may have another folder
        if source.suffix == ".mat":
            scenes += labeled_scenes(source)
            test_scenes = (test_scenes or frozenset()) | test_folders(source)
        elif pattern is not None:
            scenes += pattern_scenes(source, pattern)
        elif list_file is not None:
            scenes += sync_scenes(source, list_file)
        elif stores := find_stores(source):
            raw += stores
            _mention_labelled(source)
        else:
            scenes += _ready_made(source)
    scenes += raw_scenes(raw)
    return Inputs(tuple(_checked(scenes)), test_scenes, pattern)


def _mention_labelled(source: Path) -> None:
    """A labelled file beside raw scenes is no part of them; say so."""
    for path in source.glob("*.mat") if source.is_dir() else ():
        logger.warning("%s is not read; give it as a source of its own to use it", path)


def _ready_made(source: Path) -> list[SyncScene]:
    """Synchronised pairs, the last kind of source that a folder may hold."""
    try:
        return sync_scenes(source)
    except DataError as error:
        raise DataError(
            f"{source}: no raw scene (d-*.pgm, r-*.ppm, their zips) and no synchronised pairs "
            "(rgb_*.jpg, sync_depth_*.png) found, up to two folders down; give --rgb and --depth "
            "patterns for other names"
        ) from error


def _checked(scenes: list[Scene]) -> list[Scene]:
    """The scenes by name, which no two of them share: keys are made of it."""
    seen: dict[tuple[str, str | None], Scene] = {}
    for scene in scenes:
        check_scene_name(scene.name)
        if scene.name == LABELED and scene.source != "nyu_labeled":
            raise DataError(f"scene {LABELED}: this name is kept for labelled images; rename it")
        other = seen.setdefault((scene.name, scene.part), scene)
        if other is not scene:
            raise DataError(
                f"scene {scene.name}: found twice, in a {other.source} and in a {scene.source} "
                "source; give one of them"
            )
    return sorted(scenes, key=lambda scene: (scene.name, scene.source, scene.part or ""))


def describe_pattern(
    rgb: str | None,
    depth: str | None,
    *,
    depth_scale: float | None,
    invalid: str | None,
    intrinsics: str | None,
) -> Pattern | None:
    """The pattern that words of a command line describe, None without any.

    Raises:
        ConfigError: half a description, or a word that is no number.
    """
    if rgb is None and depth is None:
        words = {"depth-scale": depth_scale, "invalid": invalid, "intrinsics": intrinsics}
        for name, value in words.items():
            if value is not None:
                raise ConfigError(f"--{name}: describes files of --rgb and --depth; give these too")
        return None
    if rgb is None or depth is None:
        raise ConfigError("--rgb and --depth: expected both or neither, as 'frame-{index}.png'")
    K = None
    if intrinsics is not None:
        fx, fy, cx, cy = _numbers("--intrinsics", intrinsics, float, count=4)
        K = ((fx, 0.0, cx), (0.0, fy, cy), (0.0, 0.0, 1.0))
    return Pattern(
        rgb,
        depth,
        depth_scale=1000.0 if depth_scale is None else depth_scale,
        invalid=_numbers("--invalid", "0,65535" if invalid is None else invalid, int),
        K=K,
    )


def _numbers(
    name: str, text: str, kind: Callable[[str], Number], count: int | None = None
) -> tuple[Number, ...]:
    try:
        numbers = tuple(kind(word) for word in text.split(",") if word.strip())
    except ValueError:
        numbers = ()
        count = count or 1
    if count is not None and len(numbers) != count:
        expected = f"{count} numbers" if count > 1 else "whole numbers"
        raise ConfigError(f"{name}: expected {expected} with commas, got {text!r}")
    return numbers
