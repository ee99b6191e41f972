import math
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.errors import DataError
from llm_mde.nyu import kinect
from llm_mde.nyu.fill import TOLERANCE, fill_colorization, fill_mm

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
needs_data = pytest.mark.skipif(
    not TESTDATA,
    reason="LLM_MDE_TESTDATA is not set: the toolbox's results are not part of the project",
)


@pytest.fixture(scope="module")
def crop():
    with np.load(Path(TESTDATA) / "colorization" / "colorization_basement_crop120x160.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def basement():
    """The registered frame: RGB, depth in metres before the toolbox rounds it, and millimetres."""
    folder = Path(TESTDATA) / "raw" / "basement_0001a"
    pgm, ppm = next(folder.glob("d-*")).read_bytes(), next(folder.glob("r-*")).read_bytes()
    disparity = np.frombuffer(pgm[17:], "<u2").reshape(480, 640)
    rgb, depth_mm = kinect.register(
        np.frombuffer(ppm[15:], np.uint8).reshape(480, 640, 3), disparity
    )
    z = kinect.disparity_to_metres(kinect.undistort_disparity(disparity))
    v, u = np.mgrid[1:481, 1:641]
    camera, to = kinect.DEPTH_CAMERA, kinect.RGB_CAMERA
    points = np.stack([(u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy, z])
    x, y, s = kinect.ROTATION @ points.reshape(3, -1) + np.array(kinect.TRANSLATION)[:, None]
    column = np.floor(to.fx * x / s + to.cx + 0.5).astype(int)
    row = np.floor(to.fy * y / s + to.cy + 0.5).astype(int)
    order = np.argsort(-z.ravel(), kind="stable")  # the nearest is written last
    order = order[((column > 0) & (column < 640) & (row > 0) & (row < 480))[order]]
    depth = np.zeros((480, 640))
    depth[row[order] - 1, column[order] - 1] = z.ravel()[order]
    np.testing.assert_array_equal(np.rint(depth * 1000), depth_mm)
    return rgb, depth, depth_mm


@needs_data
@pytest.mark.parametrize(("alpha", "name"), [(1.0, "fill_alpha1"), (0.8, "fill_alpha0p8")])
def test_crop_equals_the_toolbox(crop, alpha, name):
    filled = fill_colorization(crop["rgb"], crop["depth_in"], alpha=alpha)
    np.testing.assert_allclose(filled, crop[name], rtol=0, atol=1e-7)


@needs_data
def test_frame_equals_the_toolbox(basement):
    name = "colorization_basement_full427x561_alpha1.npz"
    with np.load(Path(TESTDATA) / "colorization" / name) as file:
        expected = file["fill_alpha1"]  # float32: 2.4e-7 m of rounding
    rgb, depth, _ = (image[44:471, 40:601] for image in basement)
    np.testing.assert_allclose(fill_colorization(rgb, depth), expected, rtol=0, atol=5e-7)


@needs_data
def test_labelled_frame_is_the_published_filling():
    folder = Path(TESTDATA) / "labelled"
    rgb, raw, published = (
        np.asarray(Image.open(folder / f"{name}.png")) for name in ("images", "rawdepth", "depth")
    )
    difference = np.abs(fill_mm(rgb, raw).astype(int) - published)[40:-40, 40:-40]
    # millimetres; theirs was filled before it was cropped, from depth before rounding
    assert np.median(difference) == 0 and difference.mean() < 0.3


@needs_data
def test_whole_frame_with_white_border_is_filled(basement):
    rgb, _, depth_mm = basement
    filled = fill_mm(rgb, depth_mm)
    known = depth_mm[(depth_mm > 0) & (depth_mm < 10000)]
    assert known.min() <= filled.min() and filled.max() <= known.max()


def solve_plain(rgb, depth, alpha):
    """fill_depth_colorization.m pixel by pixel, as a dense system of equations."""
    h, w = depth.shape
    grey = [
        [0.298936 * r / 255 + 0.587043 * g / 255 + 0.114021 * b / 255 for r, g, b in row]
        for row in rgb.astype(float)
    ]
    matrix, right = np.eye(h * w), np.zeros(h * w)
    for i in range(h):
        for j in range(w):
            near = [
                (a, b)
                for a in range(max(i - 1, 0), min(i + 2, h))
                for b in range(max(j - 1, 0), min(j + 2, w))
                if (a, b) != (i, j)
            ]
            values = [grey[a][b] for a, b in near]
            centre = grey[i][j]
            mean = (sum(values) + centre) / (len(values) + 1)
            variance = sum((v - mean) ** 2 for v in [*values, centre]) / (len(values) + 1)
            spread = 0.6 * variance
            spread = max(spread, -min((v - centre) ** 2 for v in values) / math.log(0.01))
            spread = max(spread, 0.000002)
            weights = [math.exp(-((v - centre) ** 2) / spread) for v in values]
            for (a, b), weight in zip(near, weights, strict=True):
                matrix[i * w + j, a * w + b] = -weight / sum(weights)
            if depth[i, j] not in (0, 10):
                matrix[i * w + j, i * w + j] += alpha
                right[i * w + j] = alpha * depth[i, j]
    return np.linalg.solve(matrix, right).reshape(h, w)


def made(h, w, *, missing, seed, smooth=False):
    """Random blocks of colour, or noise, with random depth of which a share is missing."""
    rng = np.random.default_rng(seed)
    rgb = rng.integers(0, 256, (h, w, 3), dtype=np.uint8)
    if smooth:
        rgb = np.repeat(np.repeat(rgb[::5, ::5], 5, 0), 5, 1)[:h, :w] // 2 + rgb // 32
    depth = rng.uniform(0.5, 9.5, (h, w)) * (rng.random((h, w)) >= missing)
    depth[h // 2, w // 2] = 3.0
    return rgb, depth


@pytest.mark.parametrize(
    ("h", "w", "missing", "alpha"),
    [
        (1, 2, 0.0, 1.0),
        (1, 30, 0.7, 1.0),
        (30, 1, 0.7, 1.0),
        (2, 2, 0.5, 1.0),
        (5, 4, 0.9, 1.0),
        (17, 23, 0.3, 1.0),
        (24, 31, 1.0, 1.0),  # one pixel known
        (16, 33, 0.6, 0.8),
        (20, 25, 0.6, 0.01),  # sweeps do not settle
        (44, 52, 0.9, 1.0),  # fronts large enough for LAPACK
    ],
)
@pytest.mark.parametrize("smooth", [False, True])
def test_filling_solves_the_equations(h, w, missing, alpha, smooth):
    rgb, depth = made(h, w, missing=missing, seed=h + w, smooth=smooth)
    expected = solve_plain(rgb, depth, alpha)
    filled = fill_colorization(rgb, depth, alpha=alpha)
    np.testing.assert_allclose(filled, expected, rtol=1e-9)


@pytest.mark.parametrize("alpha", [1.0, 0.05])
def test_far_known_pixels_are_within_the_tolerance(alpha):
    """A hole at a corner: most pixels are settled by sweeps, with 0.05 by the fallback."""
    rgb, depth = made(40, 50, missing=0, seed=5, smooth=True)
    depth[:4, :6] = 0
    expected = solve_plain(rgb, depth, alpha)
    filled = fill_colorization(rgb, depth, alpha=alpha)
    np.testing.assert_allclose(filled, expected, rtol=0, atol=TOLERANCE)


def test_frame_without_holes_is_smoothed_alike():
    rgb, depth = made(20, 20, missing=0, seed=2)
    np.testing.assert_allclose(
        fill_colorization(rgb, depth), solve_plain(rgb, depth, 1.0), rtol=0, atol=TOLERANCE
    )


def test_ten_metres_count_as_no_reading():
    rgb, depth = made(12, 15, missing=0, seed=3)
    depth[3:6, 4:9] = 10
    empty = np.where(depth == 10, 0, depth)
    np.testing.assert_array_equal(fill_colorization(rgb, depth), fill_colorization(rgb, empty))


def test_depth_and_result_scale_together():
    rgb, depth = made(30, 40, missing=0.5, seed=4, smooth=True)
    np.testing.assert_allclose(
        fill_colorization(rgb, depth * 0.5), fill_colorization(rgb, depth) * 0.5, atol=1e-9
    )


def test_constant_depth_stays_constant():
    rgb, depth = made(60, 70, missing=0.6, seed=6)
    np.testing.assert_allclose(fill_colorization(rgb, np.where(depth > 0, 2.5, 0)), 2.5, rtol=1e-9)


@pytest.mark.parametrize("mirror", [np.s_[::-1], np.s_[:, ::-1]])
def test_mirrored_image_gives_the_mirrored_result(mirror):
    rgb, depth = made(50, 61, missing=0.4, seed=7, smooth=True)
    depth[:, 40:] = 0
    np.testing.assert_allclose(
        fill_colorization(rgb[mirror], depth[mirror]), fill_colorization(rgb, depth)[mirror],
        atol=1e-9,
    )  # fmt: skip


def test_flat_grey_fills_a_ramp_by_the_mean_of_neighbours():
    """No edges: the middle column of three, unknown, between columns of 2 m and 4 m."""
    depth = np.tile([2.0, 2.0, 2.0, 0.0, 4.0, 4.0, 4.0], (40, 1))
    filled = fill_colorization(np.full((40, 7, 3), 90, np.uint8), depth)
    np.testing.assert_allclose(filled[:, 3], 3.0, rtol=1e-9)


def test_hole_takes_the_depth_of_its_own_side_of_an_edge():
    rgb = np.full((40, 60, 3), 30, np.uint8)
    rgb[:, 30:] = 220
    depth = np.where(np.arange(60) < 30, 2.0, 6.0) * np.ones((40, 1))
    depth[8:32, 10:50] = 0
    filled = fill_colorization(rgb, depth)
    assert abs(filled[20, 27] - 2) < 0.5 and abs(filled[20, 32] - 6) < 0.5


@pytest.mark.parametrize("kept", [0.002, 0.4])
def test_result_stays_within_the_known_depths(kept):
    rgb, depth = made(200, 230, missing=1 - kept, seed=8, smooth=True)
    filled = fill_colorization(rgb, depth)
    known = depth[depth > 0]
    assert filled.shape == depth.shape and filled.dtype == np.float64
    assert known.min() - 1e-9 <= filled.min() and filled.max() <= known.max() + 1e-9


def test_black_and_white_chessboard_with_a_large_hole_obeys_the_equations():
    """The largest contrast there is; 60 % missing, the hole touches the border."""
    rgb = np.zeros((40, 50, 3), np.uint8)
    rgb[(np.add.outer(np.arange(40), np.arange(50)) % 2) == 1] = 255
    _, depth = made(40, 50, missing=0, seed=9)
    depth[:, :30] = 0
    np.testing.assert_allclose(
        fill_colorization(rgb, depth), solve_plain(rgb, depth, 1.0), rtol=0, atol=TOLERANCE
    )


def test_single_pixel_stays():
    assert fill_colorization(np.zeros((1, 1, 3), np.uint8), np.array([[2.0]]))[0, 0] == 2.0


def test_same_input_gives_the_same_bytes_and_is_left_alone():
    rgb, depth = made(90, 80, missing=0.5, seed=10)
    before = depth.copy()
    first = fill_colorization(rgb, depth)
    assert first.tobytes() == fill_colorization(rgb, depth).tobytes()
    np.testing.assert_array_equal(depth, before)


def test_millimetres_are_rounded_metres():
    rgb, depth = made(30, 35, missing=0.4, seed=11)
    depth_mm = np.rint(depth * 1000).astype(np.uint16)
    filled = fill_mm(rgb, depth_mm)
    assert filled.dtype == np.uint16 and filled.min() > 0
    np.testing.assert_array_equal(filled, np.rint(1000 * solve_plain(rgb, depth_mm / 1000, 1.0)))


def test_millimetres_beyond_the_range_are_holes():
    rgb, depth = made(20, 20, missing=0, seed=12)
    depth_mm = np.rint(depth * 1000).astype(np.uint16)
    depth_mm[5:9, 5:9] = 0
    far = depth_mm.copy()
    far[5:9, 5:9] = [10000, 10001, 20000, 65535]
    np.testing.assert_array_equal(fill_mm(rgb, far), fill_mm(rgb, depth_mm))


GREY = np.zeros((3, 4, 3), np.uint8)


@pytest.mark.parametrize(
    ("rgb", "depth", "alpha", "message"),
    [
        (GREY, np.zeros((3, 4)), 1.0, "at least one reading"),
        (GREY, np.full((3, 4), 10.0), 1.0, "at least one reading"),
        (GREY, np.zeros((0, 0)), 1.0, "expected rgb"),
        (GREY, np.ones((4, 3)), 1.0, r"expected rgb .* got \(3, 4, 3\) uint8 and \(4, 3\)"),
        (GREY / 255, np.ones((3, 4)), 1.0, "float64"),
        (GREY, np.full((3, 4), np.nan), 1.0, "finite"),
        (GREY, np.full((3, 4), -1.0), 1.0, "negative"),
        (GREY, np.ones((3, 4)), 0.0, "alpha > 0, got 0"),
        (GREY, np.ones((3, 4)), np.inf, "alpha > 0, got inf"),
        (GREY, np.eye(3, 4) + 1e-3, 1e-14, "alpha = 1e-14 is too small"),
    ],
)
def test_bad_input_is_refused(rgb, depth, alpha, message):
    with pytest.raises(DataError, match=message):
        fill_colorization(rgb, depth, alpha=alpha)
