"""Where the hand-held camera of a generated scene stands: shots at very different distances."""

import math
from functools import lru_cache

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from llm_mde.nyu.rooms.design import Room
from llm_mde.nyu.rooms.paint import Floats
from llm_mde.nyu.rooms.raycast import Rays, cast

SHOT = 3  # frames; then the camera is somewhere else
NEAREST, FARTHEST = 0.9, 5.5  # metres; the median depth that a shot aims at
CLEAR = 0.3  # metres between the camera and anything solid
TRIES = 8  # views looked at for one shot

Stand = tuple[
    float, float, float, float, float, float
]  # x, y, z (metres), yaw, pitch, roll (radians)


def camera_pose(stand: Stand) -> NDArray[np.float64]:
    """Camera (x right, y down, z forward) to room (4, 4); pitch is positive upwards."""
    x, y, z, yaw, pitch, roll = stand
    forward = np.array(
        [math.cos(pitch) * math.cos(yaw), math.cos(pitch) * math.sin(yaw), math.sin(pitch)]
    )
    level = np.array([math.sin(yaw), -math.cos(yaw), 0.0])  # to the right
    down = np.cross(forward, level)
    pose = np.eye(4)
    pose[:3, 0] = math.cos(roll) * level + math.sin(roll) * down
    pose[:3, 1] = math.cos(roll) * down - math.sin(roll) * level
    pose[:3, 2] = forward
    pose[:3, 3] = x, y, z
    return pose


def _clear(room: Room, x: float, y: float, z: float) -> bool:
    """Whether a camera at this place touches neither walls nor furniture."""
    size = room.size
    if min(x, y, size[0] - x, size[1] - y) < CLEAR or not 0.5 < z < size[2] - 0.2:
        return False
    away = np.array([x, y, z]) - room.centre[1:]
    c, s = room.turn[1:, 0], room.turn[1:, 1]
    local = np.stack([c * away[:, 0] + s * away[:, 1], c * away[:, 1] - s * away[:, 0], away[:, 2]])
    outside = np.maximum(np.abs(local) - room.half[1:].T, 0)
    return bool((np.hypot.reduce(outside, axis=0) > CLEAR).all())


@lru_cache(maxsize=1)
def _coarse() -> Rays:
    """A 20 x 15 grid over the field of view of the RGB camera, to look round quickly."""
    x: Floats = np.linspace(-0.6, 0.6, 20, dtype=np.float32)
    y: Floats = np.linspace(-0.47, 0.45, 15, dtype=np.float32)
    columns, rows = np.meshgrid(x, y)
    return Rays(columns, rows, 16.0)


def _candidate(room: Room, rng: Generator, target: float) -> Stand:
    """A random stand; for a near target, one in front of a solid or a place on a wall."""
    height, pitch = rng.uniform(0.7, 1.9), math.radians(rng.uniform(-35, 10))
    yaw, roll = rng.uniform(-math.pi, math.pi), math.radians(rng.normal(0, 2))
    if target < 1.8:
        x, y, _ = room.centre[int(rng.integers(len(room.centre)))]
        x, y = x - target * math.cos(yaw), y - target * math.sin(yaw)
        yaw += rng.normal(0, 0.25)
    else:
        x, y = (rng.uniform(CLEAR, side - CLEAR) for side in room.size[:2])
    return float(x), float(y), height, yaw, pitch, roll


@lru_cache(maxsize=16)
def _shot(room: Room, seed: int, scene: int, shot: int) -> tuple[Stand, Stand]:
    """First stand of a shot, of a depth near a random target, and the change per frame."""
    rng = np.random.default_rng([seed, scene, 1, shot])
    target = math.exp(rng.uniform(math.log(NEAREST), math.log(FARTHEST)))
    best, least, looked = None, math.inf, 0
    for _ in range(100 * TRIES):
        stand = _candidate(room, rng, target)
        if not _clear(room, *stand[:3]):
            continue
        hits = cast(room, camera_pose(stand), _coarse())
        near, solids = float((hits.z < 0.6).mean()), len(np.unique(hits.solid))
        miss = abs(math.log(float(np.median(hits.z)) / target)) + 3.0 * near - 0.05 * min(solids, 8)
        if miss < least:
            best, least = stand, miss
        looked += 1
        if looked == TRIES:
            break
    assert best, "furniture fills the room"
    drift = (*rng.normal(0, 0.15, 2), rng.normal(0, 0.05), *rng.normal(0, (0.18, 0.06, 0.01)))
    return best, tuple(map(float, drift))  # type: ignore[return-value]  # six


def camera(room: Room, seed: int, scene: int, frame: int) -> NDArray[np.float64]:
    """Pose (4, 4) of the RGB camera in a frame, camera to room, metres.

    Three frames make a shot, in which the camera drifts and turns; between shots it jumps.
    """
    shot, step = divmod(frame, SHOT)
    start, drift = _shot(room, seed, scene, shot)
    moved = [a + step * b for a, b in zip(start, drift, strict=True)]
    if not _clear(room, moved[0], moved[1], moved[2]):
        moved[:3] = start[:3]
    moved[4] = min(max(moved[4], math.radians(-40)), math.radians(15))
    return camera_pose(tuple(moved))  # type: ignore[arg-type]  # six numbers
