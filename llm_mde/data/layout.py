"""What goes where: scenes to splits, frames to shards. Grows with scenes and shards alone."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from llm_mde.data.record import DEPTH_CODECS
from llm_mde.data.shard import Run, ShardPlan, plan_shards, selected
from llm_mde.data.sources import Inputs
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import Scene
from llm_mde.nyu.scenes import RULES, SPLITS, assign_splits, looks_official, resolve_rule
from llm_mde.progress import Report

logger = logging.getLogger(__name__)

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
    sha256: str
    """Of the names and sizes of its files."""


@dataclass(frozen=True)
class Layout:
    """A pack before its first byte."""

    scenes: tuple[PlacedScene, ...]
    shards: tuple[ShardPlan, ...]
    settings: dict[str, Any]
    """All that decides the bytes of the pack but the input files."""

    @property
    def frames(self) -> int:
        """Frames to load."""
        return sum(scene.frames for scene in self.scenes)

    @property
    def input_bytes(self) -> int:
        """Bytes of all input files."""
        return sum(scene.input_bytes for scene in self.scenes)

    @property
    def input_sha256(self) -> str:
        """Of the names and sizes of all input files."""
        return hashlib.sha256("".join(scene.sha256 for scene in self.scenes).encode()).hexdigest()


def lay_out(inputs: Inputs, settings: PackSettings, *, progress: Report | None = None) -> Layout:
    """Assign scenes to splits and frames to shards; every scene is listed once.

    progress: called as progress(done, total) in scenes.

    Raises:
        DataError: a scene that cannot be listed, or no frame at all.
    """
    found = []
    for number, scene in enumerate(inputs.scenes, 1):
        digest = hashlib.sha256(f"{scene.source} {scene.name}\n".encode())
        files = scene.files()
        for name, size in files.items():
            digest.update(f"{name} {size}\n".encode())
        frames = len(selected(scene, settings.stride))
        found.append(PlacedScene(scene, "", frames, sum(files.values()), digest.hexdigest()))
        if progress is not None and number < len(inputs.scenes):  # no word of a quick listing
            progress(number, len(inputs.scenes))
    if not any(placed.frames for placed in found):
        raise DataError(_nothing(inputs))
    rule = _rule(inputs, settings)
    split_of = _splits(inputs, {p.scene.name for p in found if p.frames}, rule, settings.seed)
    placed = [replace(p, split=split_of(p.scene)) for p in found]
    placed.sort(key=lambda scene: SPLITS.index(scene.split))  # stable: by name inside a split
    shards = [
        shard
        for split in SPLITS
        for shard in plan_shards(
            split,
            [
                Run(number, p.scene, 0, p.frames, p.sha256)
                for number, p in enumerate(placed)
                if p.split == split
            ],
            shard_size=settings.shard_size,
        )
    ]
    pattern = None if inputs.pattern is None else asdict(inputs.pattern)
    # through JSON, as it comes back: tuples are lists there
    described = json.loads(json.dumps(vars(settings) | {"splits": rule, "pattern": pattern}))
    return Layout(tuple(placed), tuple(shards), described)


def _nothing(inputs: Inputs) -> str:
    first = inputs.scenes[0]
    files = first.files()
    return (
        f"no frame with both RGB and depth in any scene ({len(inputs.scenes)} looked at); "
        f"{first.name} has {len(files)} files, such as {next(iter(files), 'none')}"
    )


def _rule(inputs: Inputs, settings: PackSettings) -> str:
    """`official` or `scene`."""
    names = [scene.name for scene in inputs.scenes]
    labelled = any(scene.part is not None for scene in inputs.scenes)
    rule = resolve_rule(names, settings.splits, labelled=labelled)
    if rule == "scene" and (doubtful := sorted(filter(looks_official, names))):
        logger.warning(
            "%s may hold an official test image and can be trained on here; --splits official "
            "holds such scenes out",
            doubtful[0],
        )
    return rule


def _splits(inputs: Inputs, filled: set[str], rule: str, seed: int) -> Callable[[Scene], str]:
    """The split of each scene: official test images are `test`, everything else goes by name.

    filled: names of the scenes with frames; the others take no share.
    """
    by_name = assign_splits(
        {scene.name for scene in inputs.scenes if scene.part != "test"} & filled,
        rule=rule,
        seed=seed,
        test_scenes=inputs.test_scenes,
        trainable=frozenset(scene.name for scene in inputs.scenes if scene.part == "train"),
    )
    return lambda scene: "test" if scene.part == "test" else by_name.get(scene.name, "heldout")
