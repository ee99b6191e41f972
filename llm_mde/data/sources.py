"""From the paths a user gives to registered frames, one work item at a time.

Items are small and picklable, so that worker processes can load any of them by themselves.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from llm_mde.errors import DataError
from llm_mde.nyu.frame import Frame
from llm_mde.nyu.kinect import RGB_CAMERA, register
from llm_mde.nyu.raw import Pair, RawScene, Store, find_scenes, parse_pgm, parse_ppm
from llm_mde.nyu.scenes import BAD_FRAMES, check_scene_name

# The toolbox pairs at any distance; half a second apart (15 frames) the two show different views.
MAX_GAP_S = 0.5


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One frame to load: where it is, what it is called."""

    scene: str
    store: Store
    pair: Pair
    index: int
    """Position among the synchronised frames of the scene."""


@dataclass(frozen=True)
class Skipped:
    """A frame that cannot be used, the raw file that is to blame, and why."""

    scene: str
    file: str
    reason: str


def collect_scenes(sources: Iterable[Path]) -> list[RawScene]:
    """All scenes of all sources, sorted by name.

    Raises:
        DataError: a source without scenes, a scene name that cannot be a key, a name met twice.
    """
    scenes: dict[str, RawScene] = {}
    for source in sources:
        for scene in find_scenes(source):
            check_scene_name(scene.name)
            if scene.name in scenes:
                first, second = scenes[scene.name].store.label(""), scene.store.label("")
                raise DataError(
                    f"scene {scene.name}: found twice, in {first} and in {second}; give one of them"
                )
            scenes[scene.name] = scene
    return [scenes[name] for name in sorted(scenes)]


def work_items(scene: RawScene, *, stride: int = 1) -> list[WorkItem]:
    """Every `stride`-th synchronised frame of a scene; indices count all of them."""
    return [
        WorkItem(scene.name, scene.store, pair, index)
        for index, pair in enumerate(scene.pairs())
        if index % stride == 0
    ]


def load_frame(item: WorkItem) -> Frame | Skipped:
    """Read, check and register one frame; what is wrong with it comes back as a value."""
    pair = item.pair
    if pair.depth in BAD_FRAMES:
        return Skipped(item.scene, pair.depth, "known bad frame of NYU Depth V2")
    if pair.gap_s > MAX_GAP_S:
        reason = (
            f"unpaired: the nearest rgb is {pair.gap_s:.2f} s away, expected {MAX_GAP_S} or less"
        )
        return Skipped(item.scene, pair.depth, reason)
    at = pair.depth
    try:
        disparity = parse_pgm(item.store.read(at), name=at)
        at = pair.rgb
        rgb = parse_ppm(item.store.read(at), name=at)
    except DataError as error:
        return Skipped(item.scene, at, str(error).removeprefix(f"{at}: "))
    rgb, depth_mm = register(rgb, disparity)
    if not depth_mm.any():
        return Skipped(item.scene, pair.depth, "no pixel has a reading")
    return Frame(rgb, depth_mm, item.scene, item.index, pair.time_s, K=RGB_CAMERA.matrix())
