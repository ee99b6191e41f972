"""The Kinect's two cameras and its accelerometer in a generated room, as the recorder sees them.

The toolbox's camera model backwards: a pixel of a raw picture is the ray that undistortion and
registration give it (`llm_mde.nyu.kinect`), so that pixel i of an undistorted picture is the ray
(i + 1 - cx) / fx, 1-based as there.

Disparity is rounded to whole numbers. There is no reading where the projector beside the depth
camera casts a shadow, on glass and mirrors, on dark, grazing and far surfaces, nearer than 0.5 m
and in the last eight columns (so in the real files). Noise is Gaussian in disparity, so in metres
it grows with the square of the depth (Khoshelham and Elberink 2012,
https://doi.org/10.3390/s120201437, section 4).
"""

import math
import struct
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from llm_mde.nyu.kinect import (
    DEPTH_CAMERA,
    DISPARITY_A,
    DISPARITY_B,
    HEIGHT,
    MAX_DISPARITY,
    MAX_METRES,
    RGB_CAMERA,
    ROTATION,
    TRANSLATION,
    WIDTH,
    Camera,
)
from llm_mde.nyu.rooms.design import Room
from llm_mde.nyu.rooms.paint import NOISE_SIDE, Floats, smooth_noise
from llm_mde.nyu.rooms.raycast import Rays, cast, radiance, surfaces

PROJECTOR_X = 0.075  # metres from the depth camera to the infrared projector, to its right
NEAREST_METRES = 0.5  # below it a Kinect v1 gives no reading
FAINTEST_ECHO = 0.006  # reflectance * cosine / metres^2: a wall is seen up to 10 m, black up to 3 m
LEAST_COSINE = 0.08  # surfaces more slanted than 85 degrees give no reading
BLIND_COLUMNS = 8  # at the right of every real depth picture
COUNTS_PER_G = 819  # the recorder's accelerometer struct

Pose = NDArray[np.float64]


@cache
def lens_rays(camera: Camera) -> Rays:
    """The ray of every pixel of a raw picture: the distortion undone by fixed-point iteration.

    Undistortion samples the raw picture at distort((i - cx) / fx) for a 0-based i, registration
    takes the result's pixel i for the ray (i + 1 - cx) / fx; hence the one pixel added at the end.
    """
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    xd, yd = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    x, y = xd, yd
    for _ in range(20):  # converges to 1e-9 of a pixel
        r2 = x * x + y * y
        radial = 1 + r2 * (camera.k1 + r2 * (camera.k2 + r2 * camera.k3))
        dx = 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x)
        dy = camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y
        x, y = (xd - dx) / radial, (yd - dy) / radial
    right, down = (x + 1 / camera.fx).astype(np.float32), (y + 1 / camera.fy).astype(np.float32)
    return Rays(right, down, camera.fx)


@cache
def pinhole_rays(camera: Camera, stride: int = 1) -> Rays:
    """The rays of every `stride`-th pixel of an undistorted picture, 1-based as in registration."""
    v, u = np.mgrid[1 : HEIGHT + 1 : stride, 1 : WIDTH + 1 : stride].astype(np.float32)
    return Rays(
        (u - np.float32(camera.cx)) / np.float32(camera.fx),
        (v - np.float32(camera.cy)) / np.float32(camera.fy),
        camera.fx / stride,
    )


def depth_pose(pose: Pose) -> Pose:
    """Pose of the depth camera (4, 4) beside an RGB camera at `pose`, both camera to room, metres.

    The toolbox maps depth to RGB as R p + T with a negative Z: the RGB camera sees -(R p + T).
    """
    beside = np.eye(4)
    beside[:3, :3] = -ROTATION
    beside[:3, 3] = [-t for t in TRANSLATION]
    return pose @ beside


def disparity(metres: Floats) -> Floats:
    """Kinect disparity, not yet rounded: the toolbox's 351.3 / (1092.5 - disparity) inverted."""
    return np.float32(DISPARITY_B) - np.float32(DISPARITY_A) / metres


def projector_shadow(x: Floats, z: Floats) -> NDArray[np.bool_]:
    """Pixels (H, W) that the infrared projector does not see, from the rays' x and the depth z.

    Along a row the projector sees a point at x - b / z. Whatever is to its right in the picture but
    to its left for the projector stands before it; a running minimum from the right finds that.
    """
    seen = x - np.float32(PROJECTOR_X) / z
    least = np.minimum.accumulate(seen[:, ::-1], axis=1)[:, ::-1]
    return seen > least + np.float32(0.5 / DEPTH_CAMERA.fx)


def _patchy(rng: Generator) -> Floats:
    """Smooth normal noise (480, 640): holes come in patches, not as single pixels."""
    row, column = rng.integers(NOISE_SIDE, size=2)
    rows = (np.arange(HEIGHT) + row) % NOISE_SIDE
    columns = (np.arange(WIDTH) + column) % NOISE_SIDE
    return smooth_noise().reshape(NOISE_SIDE, NOISE_SIDE)[np.ix_(rows, columns)]


def depth_picture(room: Room, pose: Pose, rng: Generator) -> NDArray[np.uint16]:
    """Raw disparity (480, 640), 2047 without a reading, of the depth camera at `pose` (4, 4)."""
    rays = lens_rays(DEPTH_CAMERA)
    hits = cast(room, pose, rays)
    seen = surfaces(room, pose, rays, hits)
    z, patchy = hits.z, _patchy(rng)
    lost = [NormalDist().inv_cdf(min(max(m.gloss, 1e-9), 1 - 1e-9)) for m in room.materials]
    infrared = np.array([m.infrared for m in room.materials], np.float32)
    cosine = seen.cosine.reshape(z.shape)
    echo = infrared[seen.material].reshape(z.shape) * cosine * np.exp(0.4 * patchy) / np.square(z)
    missing = (
        (patchy < np.array(lost, np.float32)[seen.material].reshape(z.shape))
        | (echo < FAINTEST_ECHO)
        | (cosine < LEAST_COSINE)
        | (z < NEAREST_METRES)
        | (z > MAX_METRES)
        | projector_shadow(rays.x, z)
    )
    missing[:, -BLIND_COLUMNS:] = True
    noise = rng.standard_normal(z.shape, np.float32) * (0.3 + 0.03 * z)
    levels = np.rint(disparity(z) + noise)
    return np.where(missing, MAX_DISPARITY, levels).astype(np.uint16)


@cache
def _response() -> NDArray[np.float32]:
    """Display value 0..255 of 4096 steps of linear light, gamma 2.2."""
    return (255 * np.linspace(0, 1, 4096) ** (1 / 2.2)).astype(np.float32)


def colour_picture(room: Room, pose: Pose, rng: Generator) -> NDArray[np.uint8]:
    """Raw RGB picture (480, 640, 3) of the camera at `pose` (4, 4), a little soft and noisy."""
    light = radiance(room, pose, lens_rays(RGB_CAMERA)) * np.float32(rng.uniform(0.95, 1.05))
    for axis in (0, 1):
        before, after = (np.roll(light, shift, axis) for shift in (1, -1))
        light = 0.5 * light + 0.25 * (before + after)
    display = _response()[np.minimum(light * 4095, 4095).astype(np.int16)]
    noise = 2.0 * rng.standard_normal(display.shape, np.float32)
    return np.clip(np.rint(display + noise), 0, 255).astype(np.uint8)


def accelerometer(pose: Pose) -> bytes:
    """The recorder's 12 bytes: counts right, up and backwards, tilt in half degrees, status."""
    right, down, forward = (float(a) for a in pose[2, :3])  # the room's up in the camera's frame
    counts = [round(COUNTS_PER_G * a) for a in (right, -down, -forward)]
    tilt = round(2 * math.degrees(math.asin(forward)))
    return struct.pack("<hhhbxi", *counts, tilt, 0)
