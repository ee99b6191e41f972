"""A registered frame, and what was found out about the files it came from."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError

Verdict = Literal["ok", "truncated", "empty", "unpaired", "undecodable", "excluded"]
Matrix = list[list[float]]


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
