"""From a raw Kinect pair to a registered frame: the mathematics of the NYU Depth V2 toolbox.

Silberman et al. 2012, https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, `camera_params.m`,
`project_depth_map.m`, `undistort.m` and `rgb_world2rgb_plane.m` of its toolbox. Their oddities are
kept on purpose (1-based pixels in one half, the border of 255, the noise mask read at source
pixels): frames then equal the ones others train and evaluate on, pixel by pixel.

What depends on the cameras alone (sampling positions, rays) is computed once a process. The loops
over pixels are machine code (numba): one core registers a frame in a few milliseconds. The first
call on a machine compiles them, which takes seconds.
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError
from llm_mde.nyu.compiled import compiled
from llm_mde.nyu.raw import HEIGHT, MAX_DISPARITY, WIDTH


@dataclass(frozen=True)
class Camera:
    """Pinhole intrinsics in pixels and Brown distortion: k1, k2, k3 radial, p1, p2 tangential."""

    fx: float
    fy: float
    cx: float
    cy: float
    k1: float
    k2: float
    p1: float
    p2: float
    k3: float

    def matrix(self) -> list[list[float]]:
        """The 3x3 matrix K as nested lists, pixels."""
        return [[self.fx, 0.0, self.cx], [0.0, self.fy, self.cy], [0.0, 0.0, 1.0]]


# camera_params.m: fx_rgb ... p2_rgb
RGB_CAMERA = Camera(
    fx=518.85790117450188,
    fy=519.46961112127485,
    cx=325.58244941119034,
    cy=253.73616633400465,
    k1=0.20796615318809061,
    k2=-0.58613825163911781,
    p1=7.2231363135888329e-4,
    p2=1.0479627195765181e-3,
    k3=0.49856986684705107,
)
# camera_params.m: fx_d ... p2_d
DEPTH_CAMERA = Camera(
    fx=582.62448167737955,
    fy=582.69103270988637,
    cx=313.04475870804731,
    cy=238.44389626620386,
    k1=-0.099897236553084481,
    k2=0.39065324602765344,
    p1=1.9290592870229277e-3,
    p2=-1.9422022475975055e-3,
    k3=-0.51031725053400578,
)
# camera_params.m: R = inv(-M), so that points come out with a negative Z and the signs cancel
ROTATION = np.linalg.inv(
    -np.array(
        [
            [0.99997798940829263, 0.0050518419386157446, 0.0043011152014118693],
            [-0.0050359919480810989, 0.99998051861143999, -0.0036879781309514218],
            [-0.0043196624923060242, 0.0036662365748484798, 0.99998394948385538],
        ]
    )
)
# camera_params.m: t_x, t_z, t_y, in this order (the toolbox's own), metres
TRANSLATION = (0.025031875059141302, -2.9342312935846411e-4, 6.6238747008330102e-4)
# camera_params.m: metres = A / (B - disparity)
DISPARITY_A, DISPARITY_B = 351.3, 1092.5
MAX_METRES = 10.0  # camera_params.m: maxDepth
MIN_DISPARITY = 600  # project_depth_map.m: below it a reading counts as none
RGB_BORDER = 255  # undistort.m: value of pixels whose source lies outside


class _Sampling(NamedTuple):
    """Where each pixel of an undistorted image comes from; (H*W,) each."""

    corner: NDArray[np.int32]
    """Flat position of the upper left of the four source pixels; -1 where they lie outside."""
    right: NDArray[np.float64]
    """Distance from that pixel, 0..1, to the right."""
    below: NDArray[np.float64]
    """Distance from that pixel, 0..1, downwards."""


@cache
def _sampling(camera: Camera) -> _Sampling:
    """Bilinear undistortion of one camera, 0-based pixels (undistort.m)."""
    v, u = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float64)
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    r2 = x * x + y * y
    radial = 1 + camera.k1 * r2 + camera.k2 * r2**2 + camera.k3 * r2**3
    xd = x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x * x)
    yd = y * radial + camera.p1 * (r2 + 2 * y * y) + 2 * camera.p2 * x * y
    px, py = camera.fx * xd + camera.cx, camera.fy * yd + camera.cy
    x0, y0 = np.floor(px), np.floor(py)
    inside = (x0 >= 0) & (x0 <= WIDTH - 2) & (y0 >= 0) & (y0 <= HEIGHT - 2)
    corner = np.where(inside, y0 * WIDTH + x0, -1).astype(np.int32)
    return _Sampling(corner.ravel(), (px - x0).ravel(), (py - y0).ravel())


@cache
def _rays() -> NDArray[np.float64]:
    """(H*W, 3): for each depth pixel, 1-based, R times its ray (x, y, 1)."""
    v, u = np.mgrid[1 : HEIGHT + 1, 1 : WIDTH + 1].astype(np.float64)
    x = (u.ravel() - DEPTH_CAMERA.cx) / DEPTH_CAMERA.fx
    y = (v.ravel() - DEPTH_CAMERA.cy) / DEPTH_CAMERA.fy
    return np.ascontiguousarray((ROTATION @ np.stack([x, y, np.ones_like(x)])).T)  # (N, 3)


@compiled
def _weights(right: float, below: float) -> tuple[float, float, float, float]:
    """Bilinear weights of the upper left, upper right, lower left and lower right pixel."""
    return (1 - right) * (1 - below), right * (1 - below), (1 - right) * below, right * below


@compiled
def _sample_rgb(pixels: NDArray[np.uint8], table: _Sampling) -> NDArray[np.uint8]:
    """Bilinear samples of (H*W, 3) pixels."""
    out = np.full_like(pixels, RGB_BORDER)
    for at in range(len(pixels)):
        p = table.corner[at]
        if p < 0:
            continue
        w0, w1, w2, w3 = _weights(table.right[at], table.below[at])
        for c in range(3):
            value = w0 * pixels[p, c] + w1 * pixels[p + 1, c]
            value = value + w2 * pixels[p + WIDTH, c] + w3 * pixels[p + WIDTH + 1, c]
            out[at, c] = np.uint8(value + 0.5)
    return out


def undistort_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB without lens distortion, same K (undistort.m); pixels without a source are white.

    rgb: (480, 640, 3). Returns the same shape.
    """
    pixels = rgb.flatten().reshape(-1, 3)  # (H*W, 3); a copy, as numba compiles read-only apart
    return _sample_rgb(pixels, _sampling(RGB_CAMERA)).reshape(rgb.shape)


@compiled
def _sample_disparity(raw: NDArray[np.uint16], table: _Sampling) -> NDArray[np.float64]:
    """Bilinear samples of (H*W,) disparities with the noise left out."""
    noise = raw.max()
    clean = np.zeros(raw.size, np.bool_)  # pixels of the result none of whose sources is noise
    for at in range(raw.size):
        p = table.corner[at]
        clean[at] = (
            p >= 0
            and raw[p] != noise
            and raw[p + 1] != noise
            and raw[p + WIDTH] != noise
            and raw[p + WIDTH + 1] != noise
        )
    out = np.full(raw.size, float(MAX_DISPARITY))
    for at in range(raw.size):
        if not clean[at]:
            continue
        p = table.corner[at]
        w0, w1, w2, w3 = _weights(table.right[at], table.below[at])
        w0, w1 = w0 * clean[p], w1 * clean[p + 1]  # the toolbox's slip: p is a source pixel
        w2, w3 = w2 * clean[p + WIDTH], w3 * clean[p + WIDTH + 1]
        total = w0 + w1 + w2 + w3
        value = w0 * raw[p] + w1 * raw[p + 1] + w2 * raw[p + WIDTH] + w3 * raw[p + WIDTH + 1]
        if total > 0 and value / total >= MIN_DISPARITY:
            out[at] = value / total
    return out


def undistort_disparity(disparity: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Disparity (480, 640) without lens distortion; 2047 where there is no reading.

    As project_depth_map.m: the frame's largest value is noise, any touch of it is noise, and the
    remaining weights are renormalised with the *undistorted* noise mask read at the source pixels.
    Where a whole neighbourhood reads `MIN_DISPARITY` exactly, the last bit of a float64 decides
    whether it counts, there as here; these pixels alone may differ from the toolbox's.
    """
    raw = disparity.flatten()  # (H*W,)
    return _sample_disparity(raw, _sampling(DEPTH_CAMERA)).reshape(disparity.shape)


def disparity_to_metres(disparity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Metres, 0..10, of any shape; 0 where the disparity is beyond 1092.5 (2047 = no reading)."""
    with np.errstate(divide="ignore"):
        metres = DISPARITY_A / (DISPARITY_B - disparity)
    return np.clip(metres, 0.0, MAX_METRES)


@compiled
def _project(
    metres: NDArray[np.float64],
    rays: NDArray[np.float64],
    translation: tuple[float, float, float],
    intrinsics: tuple[float, float, float, float],
) -> NDArray[np.uint16]:
    """(H*W,) metres along (H*W, 3) rays to (H*W,) millimetres on the RGB pixels."""
    tx, ty, tz = translation
    fx, fy, cx, cy = intrinsics
    out = np.zeros(metres.size, np.uint16)
    for at in range(metres.size):
        z = metres[at]
        if not z > 0:
            continue
        back = 1.0 / (rays[at, 2] * z + tz)
        x = fx * ((rays[at, 0] * z + tx) * back) + cx + 0.5  # 1-based; its whole part is the column
        y = fy * ((rays[at, 1] * z + ty) * back) + cy + 0.5
        if 1 <= x < WIDTH and 1 <= y < HEIGHT:
            target = (int(y) - 1) * WIDTH + int(x) - 1
            millimetres = np.uint16(np.rint(z * 1000))
            if out[target] == 0 or millimetres < out[target]:
                out[target] = millimetres
    return out


def project_to_rgb(metres: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Undistorted depth (480, 640), metres, seen from the RGB camera.

    Returns (480, 640) uint16 millimetres, 0 = no reading. The value kept is the *depth* camera's z,
    and the nearest wins (rgb_world2rgb_plane.m). Rounding to millimetres keeps the order, so the
    z-buffer runs on the rounded values.
    """
    intrinsics = (RGB_CAMERA.fx, RGB_CAMERA.fy, RGB_CAMERA.cx, RGB_CAMERA.cy)
    z = np.ascontiguousarray(metres).ravel()  # (H*W,)
    return _project(z, _rays(), TRANSLATION, intrinsics).reshape(metres.shape)


def register(
    rgb: NDArray[np.uint8], disparity: NDArray[np.uint16]
) -> tuple[NDArray[np.uint8], NDArray[np.uint16]]:
    """A raw pair to undistorted RGB and depth on the RGB pixels (project_depth_map.m).

    rgb: (480, 640, 3) uint8; disparity: (480, 640) uint16, 0..2047. Returns RGB of the same shape
    and depth (480, 640) uint16, millimetres, 0 = no reading, 10000 = 10 m and more.

    Raises:
        DataError: an image of another size than the Kinect's.
    """
    if rgb.shape != (HEIGHT, WIDTH, 3) or disparity.shape != (HEIGHT, WIDTH):
        raise DataError(
            f"register: expected rgb {(HEIGHT, WIDTH, 3)} and disparity {(HEIGHT, WIDTH)}, "
            f"got {rgb.shape} and {disparity.shape}; only raw Kinect frames can be registered"
        )
    depth_mm = project_to_rgb(disparity_to_metres(undistort_disparity(disparity)))
    return undistort_rgb(rgb), depth_mm
