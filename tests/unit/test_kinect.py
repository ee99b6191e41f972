import io
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.pack import register_plain
from llm_mde.errors import DataError
from llm_mde.nyu import kinect
from tests.support.rawscene import disparity_image, rgb_image

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
needs_data = pytest.mark.skipif(
    not TESTDATA,
    reason="LLM_MDE_TESTDATA is not set: the real NYU frame is not part of the project",
)


@pytest.fixture(scope="module")
def real_frame():
    folder = Path(TESTDATA) / "raw" / "basement_0001a"
    pgm, ppm = next(folder.glob("d-*")).read_bytes(), next(folder.glob("r-*")).read_bytes()
    disparity = np.frombuffer(pgm[17:], "<u2").reshape(480, 640)
    rgb = np.frombuffer(ppm[15:], np.uint8).reshape(480, 640, 3)
    return kinect.register(rgb, disparity)


@needs_data
def test_depth_equals_the_toolbox_in_every_pixel(real_frame):
    reference = Path(TESTDATA) / "sync" / "basement_0001a" / "sync_depth_00000.png"
    np.testing.assert_array_equal(real_frame[1], np.asarray(Image.open(reference)))


@needs_data
def test_undistorted_rgb_gives_the_toolbox_jpeg_byte_for_byte(real_frame):
    buffer = io.BytesIO()
    Image.fromarray(real_frame[0]).save(buffer, "JPEG", quality=75, subsampling="4:2:0")
    reference = Path(TESTDATA) / "sync" / "basement_0001a" / "rgb_00000.jpg"
    assert buffer.getvalue() == reference.read_bytes()


def hand_undistort(u, v, *, f, c, k, p):
    """Source position of one 0-based pixel, in plain floats (Brown's model)."""
    x, y = (u - c[0]) / f[0], (v - c[1]) / f[1]
    r2 = x * x + y * y
    radial = 1 + k[0] * r2 + k[1] * r2**2 + k[2] * r2**3
    xd = x * radial + 2 * p[0] * x * y + p[1] * (r2 + 2 * x * x)
    yd = y * radial + p[0] * (r2 + 2 * y * y) + 2 * p[1] * x * y
    return f[0] * xd + c[0], f[1] * yd + c[1]


def hand_project(u, v, z):
    """1-based RGB pixel of a 1-based depth pixel at z metres, in plain floats.

    R = inv(-M) = -M^T up to 1e-9, because M is a rotation.
    """
    m = [
        [0.99997798940829263, 0.0050518419386157446, 0.0043011152014118693],
        [-0.0050359919480810989, 0.99998051861143999, -0.0036879781309514218],
        [-0.0043196624923060242, 0.0036662365748484798, 0.99998394948385538],
    ]
    t = [0.025031875059141302, -2.9342312935846411e-4, 6.6238747008330102e-4]
    point = [
        (u - 313.04475870804731) * z / 582.62448167737955,
        (v - 238.44389626620386) * z / 582.69103270988637,
        z,
    ]
    moved = [-sum(m[j][i] * point[j] for j in range(3)) + t[i] for i in range(3)]
    x = 518.85790117450188 * moved[0] / moved[2] + 325.58244941119034
    y = 519.46961112127485 * moved[1] / moved[2] + 253.73616633400465
    return math.floor(x + 0.5), math.floor(y + 0.5)


def test_undistortion_samples_where_the_hand_computation_says():
    ramp = np.zeros((480, 640, 3), np.uint8)
    ramp[..., 0] = np.arange(480)[:, None] // 2
    ramp[..., 1] = np.arange(640)[None] // 4
    out = kinect.undistort_rgb(ramp)
    rgb_camera = {
        "f": (518.85790117450188, 519.46961112127485),
        "c": (325.58244941119034, 253.73616633400465),
        "k": (0.20796615318809061, -0.58613825163911781, 0.49856986684705107),
        "p": (7.2231363135888329e-4, 1.0479627195765181e-3),
    }
    for u, v in ((100, 70), (320, 240), (600, 400)):
        x, y = hand_undistort(u, v, **rgb_camera)
        assert abs(out[v, u, 0] - y / 2) <= 1.0  # steps of two rows, and the rounding
        assert abs(out[v, u, 1] - x / 4) <= 1.0


def test_undistortion_keeps_a_flat_image_and_whitens_the_border():
    out = kinect.undistort_rgb(np.full((480, 640, 3), 77, np.uint8))
    assert set(np.unique(out)) == {77, 255}
    assert (out[200:300, 200:400] == 77).all()


def test_channels_are_undistorted_alike():
    image = rgb_image(1)
    out, swapped = kinect.undistort_rgb(image), kinect.undistort_rgb(image[..., ::-1])
    np.testing.assert_array_equal(swapped, out[..., ::-1])


@pytest.mark.parametrize("disparity", [600, 800, 1000])
def test_disparity_to_metres_by_hand(disparity):
    got = kinect.disparity_to_metres(np.array([float(disparity)]))
    assert got[0] == pytest.approx(351.3 / (1092.5 - disparity), rel=1e-15)


def test_far_readings_are_ten_metres_and_none_is_zero():
    got = kinect.disparity_to_metres(np.array([1057.37, 1080.0, 1092.5, 1093.0, 2047.0]))
    np.testing.assert_allclose(got, [10.0, 10.0, 10.0, 0.0, 0.0], atol=1e-3)


@pytest.mark.parametrize(("u", "v", "z"), [(320, 240, 2.0), (100, 60, 1.25), (600, 420, 9.5)])
def test_one_point_lands_where_the_hand_computation_says(u, v, z):
    metres = np.zeros((480, 640))
    metres[v - 1, u - 1] = z
    out = kinect.project_to_rgb(metres)
    x, y = hand_project(u, v, z)
    assert np.argwhere(out).tolist() == [[y - 1, x - 1]]
    assert out[y - 1, x - 1] == z * 1000  # the depth camera's own z


def test_nearest_point_wins_a_shared_pixel():
    rng = np.random.default_rng(0)
    near = np.where(rng.random((480, 640)) < 0.5, 1.0, 0.0)
    both = np.where(near > 0, near, 3.0)
    near_only, out = kinect.project_to_rgb(near), kinect.project_to_rgb(both)
    assert (out[near_only > 0] == 1000).all()
    assert set(np.unique(out)) == {0, 1000, 3000}


def test_only_pixels_strictly_inside_the_picture_receive_depth(monkeypatch):
    """Rays that aim at 1-based RGB pixels: the real lens never reaches the edges."""
    inside = {
        (0.6, 6.0): (0, 5),
        (639.4, 7.0): (638, 6),
        (10.0, 0.6): (9, 0),
        (11.0, 479.4): (10, 478),
    }
    outside = [(0.4, 5.0), (639.6, 8.0), (9.0, 0.4), (12.0, 479.6), (-30.0, 9.0), (13.0, 700.0)]
    z, (tx, ty, tz), camera = 2.0, kinect.TRANSLATION, kinect.RGB_CAMERA
    rays, metres = np.zeros((480 * 640, 3)), np.zeros((480, 640))
    for at, (x, y) in enumerate([*inside, *outside]):
        rays[at, 0] = ((x - camera.cx) / camera.fx * (tz - z) - tx) / z
        rays[at, 1] = ((y - camera.cy) / camera.fy * (tz - z) - ty) / z
        rays[at, 2] = -1.0
        metres.flat[at] = z
    monkeypatch.setattr(kinect, "_rays", lambda: rays)
    hit = {(x, y) for y, x in np.argwhere(kinect.project_to_rgb(metres)).tolist()}
    assert hit == set(inside.values())


def test_last_row_and_column_never_receive_depth():
    out = kinect.project_to_rgb(np.full((480, 640), 2.0))
    assert not out[-1].any() and not out[:, -1].any()


def test_too_near_readings_and_their_absence_give_no_depth():
    disparity = np.full((480, 640), 599, np.uint16)
    disparity[0, 0] = 2047
    assert not kinect.register(rgb_image(0), disparity)[1].any()
    assert not kinect.register(rgb_image(0), np.full((480, 640), 2047, np.uint16))[1].any()


def test_pixels_that_touch_a_missing_reading_are_missing():
    disparity = np.full((480, 640), 900, np.uint16)
    disparity[240, 320] = 2047
    missing = np.argwhere(kinect.undistort_disparity(disparity)[5:-5, 5:-5] == 2047) + 5
    assert 1 <= len(missing) <= 9
    assert np.abs(missing - [240, 320]).max() <= 5  # the lens moves the centre by a few pixels


def test_a_frame_without_2047_loses_its_largest_reading():
    disparity = np.full((480, 640), 900, np.uint16)
    disparity[200:280, 300:340] = 950
    inside = kinect.undistort_disparity(disparity)[5:-5, 5:-5]
    assert set(np.unique(inside.round(6))) == {900.0, 2047.0}


def test_readings_beside_a_hole_are_not_mixed_with_it():
    disparity = np.full((480, 640), 900, np.uint16)
    disparity[200:280, 300:340] = 2047
    depth = kinect.register(rgb_image(0), disparity)[1]
    assert set(np.unique(depth)) == {0, round(351300 / (1092.5 - 900))}


def test_registration_leaves_its_input_alone():
    rgb, disparity = rgb_image(2), disparity_image(2)
    before = rgb.copy(), disparity.copy()
    kinect.register(rgb, disparity)
    np.testing.assert_array_equal(rgb, before[0])
    np.testing.assert_array_equal(disparity, before[1])


def test_other_sizes_are_refused():
    with pytest.raises(DataError, match=r"expected rgb \(480, 640, 3\).*got \(240, 320, 3\)"):
        kinect.register(np.zeros((240, 320, 3), np.uint8), np.zeros((480, 640), np.uint16))


def blocks(low, high, *, side, holes):
    """Random disparities in squares of `side` pixels, a share of them missing; (480, 640)."""
    rng = np.random.default_rng(side)
    small = rng.integers(low, high, (480 // side, 640 // side))
    disparity = small.repeat(side, 0).repeat(side, 1)
    return np.where(rng.random((480, 640)) < holes, 2047, disparity).astype(np.uint16)


def kitchen(number):
    """A real Kinect frame as raw disparities: metres turned back by the toolbox's formula."""
    path = Path(TESTDATA) / "redkitchen" / f"frame-{number:06d}.depth.png"
    depth_mm = np.asarray(Image.open(path)).astype(float)
    missing = (depth_mm == 0) | (depth_mm == 65535)
    disparity = 1092.5 - 351.3 / np.where(missing, 1, depth_mm / 1000)
    return np.where(missing, 2047, disparity.round()).astype(np.uint16)


DISPARITIES = {
    "noise": blocks(0, 2048, side=1, holes=0.0),
    "planes with holes": blocks(700, 1050, side=16, holes=0.02),
    "no 2047": blocks(580, 1093, side=8, holes=0.0),
    "around 10 metres": blocks(1050, 1100, side=4, holes=0.02),
    "around the nearest reading": blocks(585, 615, side=2, holes=0.01),
    "two depths": np.where(blocks(0, 2, side=5, holes=0.0) == 1, 700, 1000).astype(np.uint16),
    "nothing": np.full((480, 640), 2047, np.uint16),
}


@pytest.mark.parametrize("name", DISPARITIES)
def test_registration_equals_the_plain_formulas_in_every_pixel(name):
    rgb = np.random.default_rng(3).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    got = kinect.register(rgb, DISPARITIES[name])
    for image, expected in zip(got, register_plain(rgb, DISPARITIES[name]), strict=True):
        np.testing.assert_array_equal(image, expected)


@needs_data
@pytest.mark.parametrize("number", range(0, 701, 140))
def test_registration_of_real_frames_equals_the_plain_formulas(number):
    disparity = kitchen(number)
    depth_mm = kinect.register(rgb_image(0), disparity)[1]
    np.testing.assert_array_equal(depth_mm, register_plain(rgb_image(0), disparity)[1])


def test_no_number_gives_no_depth():
    assert not kinect.project_to_rgb(np.full((480, 640), np.nan)).any()


def test_works_where_no_folder_can_hold_compiled_code():
    code = (
        "import numpy as np; from llm_mde.nyu import kinect; "
        "assert kinect.project_to_rgb(np.full((480, 640), 2.0)).max() == 2000"
    )
    # numba's own switch: the only place left to look is a zip, which this package is not
    environ = os.environ | {"NUMBA_CACHE_LOCATOR_CLASSES": "ZipCacheLocator"}
    subprocess.run([sys.executable, "-c", code], env=environ, check=True)
