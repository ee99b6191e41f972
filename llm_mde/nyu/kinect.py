"""From a raw Kinect pair to a registered frame: the mathematics of the NYU Depth V2 toolbox.

Silberman et al. 2012, https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html, `camera_params.m`,
`project_depth_map.m`, `undistort.m` and `rgb_world2rgb_plane.m` of its toolbox. Their oddities are
kept on purpose (1-based pixels in one half, the border of 255, the noise mask read at source
pixels): frames then equal the ones others train and evaluate on, pixel by pixel.

What depends on the cameras alone (sampling positions, rays) is computed once a process.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from llm_mde.errors import DataError
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


@dataclass(frozen=True)
class _Sampling:
    """Where the pixels inside an undistorted image come from: (4, N) flat sources and weights."""

    inside: NDArray[np.intp]  # (N,) flat positions of the pixels with a source
    sources: NDArray[np.intp]  # (4, N) flat positions of the four neighbours
    weights: NDArray[np.float64]  # (4, N), sum 1


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
    inside = np.flatnonzero((x0 >= 0) & (x0 <= WIDTH - 2) & (y0 >= 0) & (y0 <= HEIGHT - 2))
    px, py, x0, y0 = (a.ravel()[inside] for a in (px, py, x0, y0))
    right, below = px - x0, py - y0
    corner = (y0 * WIDTH + x0).astype(np.intp)
    return _Sampling(
        inside=inside,
        sources=np.stack([corner, corner + 1, corner + WIDTH, corner + WIDTH + 1]),
        weights=np.stack(
            [
                (1 - right) * (1 - below),
                right * (1 - below),
                (1 - right) * below,
                right * below,
            ]
        ),
    )


@cache
def _rays() -> NDArray[np.float64]:
    """(3, H*W): for each depth pixel, 1-based, R times its ray (x, y, 1)."""
    v, u = np.mgrid[1 : HEIGHT + 1, 1 : WIDTH + 1].astype(np.float64)
    x = (u.ravel() - DEPTH_CAMERA.cx) / DEPTH_CAMERA.fx
    y = (v.ravel() - DEPTH_CAMERA.cy) / DEPTH_CAMERA.fy
    return ROTATION @ np.stack([x, y, np.ones_like(x)])


def undistort_rgb(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """RGB without lens distortion, same K (undistort.m); pixels without a source are white.

    rgb: (480, 640, 3). Returns the same shape.
    """
    table = _sampling(RGB_CAMERA)
    out = np.full((3, HEIGHT * WIDTH), RGB_BORDER, np.uint8)
    for channel in range(3):
        plane = rgb[..., channel].astype(np.float64).ravel()
        value = table.weights[0] * plane.take(table.sources[0])
        for k in (1, 2, 3):
            value += table.weights[k] * plane.take(table.sources[k])
        out[channel, table.inside] = (value + 0.5).astype(np.uint8)
    return np.ascontiguousarray(out.reshape(3, HEIGHT, WIDTH).transpose(1, 2, 0))  # (H, W, 3)


def undistort_disparity(disparity: NDArray[np.uint16]) -> NDArray[np.float64]:
    """Disparity (480, 640) without lens distortion; 2047 where there is no reading.

    As project_depth_map.m: the frame's largest value is noise, any touch of it is noise, and the
    remaining weights are renormalised with the *undistorted* noise mask read at the source pixels.
    """
    table = _sampling(DEPTH_CAMERA)
    raw = disparity.ravel()
    raw_noise = raw == raw.max()
    touched = raw_noise.take(table.sources[0])
    for source in table.sources[1:]:
        touched |= raw_noise.take(source)
    clean = np.zeros(raw.size, np.float64)  # 1 where the undistorted pixel is no noise
    clean[table.inside[~touched]] = 1.0
    keep = np.flatnonzero(~touched)
    value, total = np.zeros(keep.size), np.zeros(keep.size)
    readings = raw * clean
    for source, weight in zip(table.sources, table.weights, strict=True):
        at, w = source[keep], weight[keep]
        value += w * readings.take(at)
        total += w * clean.take(at)
    np.divide(value, total, out=value, where=total > 0)
    value[value < MIN_DISPARITY] = MAX_DISPARITY
    out = np.full(raw.size, float(MAX_DISPARITY))
    out[table.inside[keep]] = value
    return out.reshape(disparity.shape)


def disparity_to_metres(disparity: NDArray[np.float64]) -> NDArray[np.float64]:
    """Metres, 0..10, of any shape; 0 where the disparity is beyond 1092.5 (2047 = no reading)."""
    with np.errstate(divide="ignore"):
        metres = DISPARITY_A / (DISPARITY_B - disparity)
    return np.clip(metres, 0.0, MAX_METRES)


def project_to_rgb(metres: NDArray[np.float64]) -> NDArray[np.uint16]:
    """Undistorted depth (480, 640), metres, seen from the RGB camera.

    Returns (480, 640) uint16 millimetres, 0 = no reading. The value kept is the *depth* camera's z,
    and the nearest wins (rgb_world2rgb_plane.m). Rounding to millimetres keeps the order, so the
    z-buffer runs on the rounded values.
    """
    z = metres.ravel()
    seen = np.flatnonzero(z > 0)
    z = z[seen]
    rays = _rays().take(seen, axis=1)  # (3, N)
    tx, ty, tz = TRANSLATION
    back = 1.0 / (rays[2] * z + tz)
    x = RGB_CAMERA.fx * ((rays[0] * z + tx) * back) + RGB_CAMERA.cx
    y = RGB_CAMERA.fy * ((rays[1] * z + ty) * back) + RGB_CAMERA.cy
    column, row = (x + 0.5).astype(np.intp), (y + 0.5).astype(np.intp)  # 1-based
    fits = (column > 0) & (column < WIDTH) & (row > 0) & (row < HEIGHT)
    target = ((row - 1) * WIDTH + column - 1)[fits]
    return _nearest(target, np.rint(z[fits] * 1000).astype(np.uint16)).reshape(metres.shape)


def _nearest(target: NDArray[np.intp], value: NDArray[np.uint16]) -> NDArray[np.uint16]:
    """(H*W,): the smallest value written to each target pixel, 0 where none was."""
    none = np.iinfo(np.uint16).max
    out = np.full(HEIGHT * WIDTH, none, np.uint16)
    np.minimum.at(out, target, value)
    out[out == none] = 0
    return out


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
