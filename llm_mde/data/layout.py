"""What goes where: scenes to splits, frames to shards. Grows with scenes and shards alone."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from llm_mde.data.record import DEPTH_CODECS
from llm_mde.data.shard import ShardPlan, plan_shards, selected
from llm_mde.data.sources import Inputs
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import Scene
from llm_mde.nyu.scenes import RULES, SPLITS, assign_splits, resolve_rule

SHARD_SIZE = 256  # samples; about 70 MB of NYU frames


@dataclass(frozen=True)
class PackSettings:
    """What decides the bytes of a pack, beside its input.

    Raises:
        ConfigError: a value out of range.
    """

    splits: str = "auto"
    """`auto`, `official` or `scene`, see `llm_mde.nyu.scenes.assign_splits`."""
    depth_codec: str = "pco"
    """`pco` (fast) or `png` (portable), both lossless."""
    shard_size: int = SHARD_SIZE
    """Frames of one shard."""
    stride: int = 1
    """Keep every n-th frame of each scene."""
    seed: int = 0
    """Seed of the split by scene."""
    fill: bool = False
    """Add a depth map without holes to each sample."""

    def __post_init__(self) -> None:
        for name in ("shard_size", "stride"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {getattr(self, name)}")
        for name, known in (("depth_codec", DEPTH_CODECS), ("splits", RULES)):
            if getattr(self, name) not in known:
                expected = ", ".join(known)
                raise ConfigError(f"{name}: expected {expected}, got {getattr(self, name)!r}")


@dataclass(frozen=True)
class PlacedScene:
    """A scene in the order of the pack."""

    scene: Scene
    split: str
    frames: int
    """Frames selected by the stride."""
    input_bytes: int


@dataclass(frozen=True)
class Layout:
    """A pack before its first byte."""

    scenes: tuple[PlacedScene, ...]
    shards: tuple[ShardPlan, ...]
    settings: dict[str, Any]
    """All that decides the bytes of the pack, with a hash of the input's names and sizes."""

    @property
    def frames(self) -> int:
        """Frames to load."""
        return sum(scene.frames for scene in self.scenes)

    @property
    def input_bytes(self) -> int:
        """Bytes of all input files."""
        return sum(scene.input_bytes for scene in self.scenes)


def lay_out(
    inputs: Inputs,
    settings: PackSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> Layout:
    """Assign scenes to splits and frames to shards; every scene is listed once.

    Raises:
        DataError: a scene that cannot be listed, or no frame at all.
    """
    split_of = _splits(inputs, settings)
    digest = hashlib.sha256()
    placed = []
    for number, scene in enumerate(inputs.scenes, 1):
        files = scene.files()
        for name, size in files.items():
            digest.update(f"{scene.source}/{scene.name}/{name} {size}\n".encode())
        frames = len(selected(scene, settings.stride))
        placed.append(PlacedScene(scene, split_of(scene), frames, sum(files.values())))
        if progress is not None:
            progress(number, len(inputs.scenes))
    if not any(scene.frames for scene in placed):
        first = inputs.scenes[0]
        files = first.files()
        raise DataError(
            f"no frame with both RGB and depth in {len(inputs.scenes)} scenes; {first.name} has "
            f"{len(files)} files, such as {next(iter(files), 'none')}"
        )
    placed.sort(key=lambda scene: SPLITS.index(scene.split))  # stable: by name inside a split
    shards = [
        shard
        for split in SPLITS
        for shard in plan_shards(
            split,
            ((n, p.scene, p.frames) for n, p in enumerate(placed) if p.split == split),
            shard_size=settings.shard_size,
        )
    ]
    described = vars(settings) | {
        "splits": _rule(inputs, settings),
        "input_sha256": digest.hexdigest(),
    }
    return Layout(tuple(placed), tuple(shards), described)


def _rule(inputs: Inputs, settings: PackSettings) -> str:
    """`official` or `scene`."""
    labelled = any(scene.part is not None for scene in inputs.scenes)
    return resolve_rule([scene.name for scene in inputs.scenes], settings.splits, labelled=labelled)


def _splits(inputs: Inputs, settings: PackSettings) -> Callable[[Scene], str]:
    """The split of each scene: official test images are `test`, everything else goes by name."""
    by_name = assign_splits(
        {scene.name for scene in inputs.scenes if scene.part != "test"},
        rule=_rule(inputs, settings),
        seed=settings.seed,
        test_scenes=inputs.test_scenes,
        trainable=frozenset(scene.name for scene in inputs.scenes if scene.part == "train"),
    )
    return lambda scene: "test" if scene.part == "test" else by_name[scene.name]
