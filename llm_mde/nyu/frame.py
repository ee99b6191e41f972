"""A registered frame, and what was found out about the files it came from."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError

Verdict = Literal["ok", "truncated", "empty", "missing", "unpaired", "undecodable", "excluded"]
Matrix = list[list[float]]
MAX_PIXELS = 2**24  # 4096 x 4096; an image that claims more is refused unread


@dataclass(frozen=True)
class Frame:
    """A registered frame: what packing receives from this room."""

    rgb: NDArray[np.uint8]
    """(H, W, 3), undistorted."""
    depth_mm: NDArray[np.uint16]
    """(H, W) millimetres on the RGB pixels, 0 = no reading."""
    scene: str
    index: int
    """Position among the frames of the scene."""
    time_s: float | None
    """Host time of the depth image, seconds; None where the source does not tell."""
    source: str = "nyu_raw"
    """Kind of source, as written into the metadata."""
    K: Matrix | None = None
    """3x3 intrinsics of the RGB pixels; None where the source does not tell."""
    key: str | None = None
    """Sample key; None: scene and index."""
    filled_mm: NDArray[np.uint16] | None = None
    """(H, W) millimetres without holes, where such a map was made or delivered."""
    accel_g: tuple[float, float, float] | None = None
    """Acceleration in g along the camera's axes, as recorded."""


class DamagedFile(DataError):
    """An input file that cannot be used, with its verdict."""

    def __init__(self, verdict: Verdict, message: str) -> None:
        super().__init__(message)
        self.verdict: Verdict = verdict


class Finding(NamedTuple):
    """What one look at an input file found."""

    file: str
    """Its name inside the scene."""
    verdict: Verdict
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Pair:
    """One frame to load: the names of the files it is made of."""

    index: int
    """Position among the frames of its scene, or the number its files carry."""
    depth: str
    rgb: str
    accel: str | None = None
    time_s: float | None = None
    """Host time of the depth image, seconds."""
    gap_s: float = 0.0
    """Host time between depth and RGB, seconds, 0 or more."""


class Scene(Protocol):
    """One recording of one source. Small, picklable and hashable: worker processes list it anew."""

    @property
    def name(self) -> str:
        """Its name; the scene type is the part before the first digit."""

    @property
    def source(self) -> str:
        """Kind of source, as written into the metadata."""

    @property
    def part(self) -> Literal["train", "test"] | None:
        """Official part of its labelled images, None for anything else."""

    def files(self) -> dict[str, int]:
        """Every input file of the scene and its size in bytes, sorted by name."""

    def pairs(self) -> list[Pair]:
        """Its frames in order."""

    def load(self, pair: Pair) -> tuple[Frame | None, list[Finding]]:
        """A frame, None where it cannot be used, and a finding for each file looked at."""
