"""Generated raw dumps: the camera model against numbers made by hand, the files, the settings."""

import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.kinect import DEPTH_CAMERA, RGB_CAMERA, register
from llm_mde.nyu.rooms.design import TYPES, Room, design
from llm_mde.nyu.rooms.paint import PATTERNS
from llm_mde.nyu.rooms.raycast import Rays, cast
from llm_mde.nyu.rooms.sensor import (
    accelerometer,
    colour_picture,
    depth_picture,
    depth_pose,
    disparity,
    lens_rays,
    projector_shadow,
)
from llm_mde.nyu.rooms.solids import BOX, CYLINDER, SPHERE
from llm_mde.nyu.rooms.views import camera_pose
from llm_mde.nyu.synth import synth, true_depth, true_pose

NAME = re.compile(r"([dra])-(\d+\.\d{6})-(\d+)\.(pgm|ppm|dump)")
AHEAD = camera_pose((3.0, 3.0, 1.5, 0.0, 0.0, 0.0))  # looks along +x, at a wall 3 m away


def empty_room() -> Room:
    """A room of 6 x 6 x 3 m without furniture."""
    middle = np.array([[3.0, 3.0, 1.5]], np.float32)
    bare = {name: getattr(ROOM, name)[:1] for name in ("shape", "turn", "material")}
    return replace(ROOM, size=(6.0, 6.0, 3.0), centre=middle, half=middle, **bare)


def room_with(shape: int, half: tuple[float, float, float], yaw: float = 0.0) -> Room:
    """The empty room with one solid around (4, 3, 1.5), 1 m before the camera."""
    bare = empty_room()
    return replace(
        bare,
        shape=np.append(bare.shape, np.uint8(shape)),
        centre=np.vstack([bare.centre, np.array([4.0, 3.0, 1.5], np.float32)]),
        half=np.vstack([bare.half, np.array(half, np.float32)]),
        turn=np.vstack([bare.turn, np.array([math.cos(yaw), math.sin(yaw)], np.float32)]),
        material=np.vstack([bare.material, bare.material]),
    )


ROOM = design("bathroom", np.random.default_rng(0))


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "raw"
    synth(out, scenes=2, frames=3, seed=7, jobs=1)
    return out


def contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


# camera_params.m by hand: fx, fy, cx, cy, k1, k2, k3, p1, p2
RGB = (518.8579, 519.4696, 325.58245, 253.73617, 0.2079662, -0.5861383, 0.4985699, 7.22314e-4)
RGB += (1.047963e-3,)
DEPTH = (582.62448, 582.69103, 313.04476, 238.4439, -0.0998972, 0.3906532, -0.5103173, 1.929059e-3)
DEPTH += (-1.942202e-3,)


@pytest.mark.parametrize(("numbers", "camera"), [(RGB, RGB_CAMERA), (DEPTH, DEPTH_CAMERA)])
@pytest.mark.parametrize("ray", [(0.0, 0.0), (0.3, -0.2), (-0.4, 0.3), (-0.45, -0.35)])
def test_a_point_projected_by_hand_lies_on_the_ray_of_its_pixel(numbers, camera, ray):
    fx, fy, cx, cy, k1, k2, k3, p1, p2 = numbers
    u, v = fx * ray[0] + cx - 1, fy * ray[1] + cy - 1  # registration counts pixels from 1
    x, y = (u - cx) / fx, (v - cy) / fy  # undistortion counts from 0
    r2 = x * x + y * y
    radial = 1 + k1 * r2 + k2 * r2**2 + k3 * r2**3
    u = fx * (x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x)) + cx
    v = fy * (y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y) + cy
    i, j = math.floor(u), math.floor(v)
    rays = lens_rays(camera)
    for field, want in ((rays.x, ray[0]), (rays.y, ray[1])):
        rows = field[j : j + 2, i : i + 2] @ [1 - (u - i), u - i]
        assert rows @ [1 - (v - j), v - j] == pytest.approx(want, abs=2e-5)


def test_depth_camera_stands_25_mm_to_the_left_and_is_turned_as_in_the_toolbox():
    seen = depth_pose(np.eye(4)) @ [0.0, 0.0, 2.0, 1.0]
    # -(R p + T) with R = inv(-M), M orthonormal: 2 m times the third row of M, less T
    want = [-0.0086393 - 0.0250319, 0.0073325 + 0.0002934, 1.9999679 - 0.0006624, 1.0]
    np.testing.assert_allclose(seen, want, atol=2e-6)


def test_wall_three_metres_ahead_has_its_disparity():
    assert round(1092.5 - 351.3 / 3) == 975
    assert float(disparity(np.float32(3.0))) == pytest.approx(975.4, abs=1e-3)
    picture = depth_picture(empty_room(), AHEAD, np.random.default_rng(0))
    assert np.median(picture[200:280, 280:360]) == 975


def test_nothing_is_read_below_half_a_metre_and_in_the_last_eight_columns():
    near = camera_pose((5.6, 3.0, 1.5, 0.0, 0.0, 0.0))
    picture = depth_picture(empty_room(), near, np.random.default_rng(0))
    assert (picture == 2047).all()
    picture = depth_picture(empty_room(), AHEAD, np.random.default_rng(0))
    assert (picture[:, -8:] == 2047).all() and picture[240, -9] < 2047


def test_projector_shadow_falls_to_the_left_as_wide_as_the_geometry_says():
    x = np.linspace(-0.3, 0.3, 601, dtype=np.float32)[None]
    z = np.where((x >= 0) & (x <= 0.1), np.float32(1), np.float32(4))
    shadow = projector_shadow(x, z)[0]
    # seen by the projector, 7.5 cm to the right, the post's left edge lies at 0 - 0.075 / 1,
    # the wall's points at x - 0.075 / 4: hidden from x = -0.05625 to 0
    assert shadow.sum() == pytest.approx(56, abs=2)
    assert not shadow[x[0] < -0.058].any() and not shadow[x[0] > 0].any()


@pytest.mark.parametrize(
    ("room", "depth"),
    [
        (empty_room(), 3.0),
        (room_with(BOX, (0.2, 0.3, 0.3)), 0.8),
        (room_with(BOX, (0.2, 0.2, 0.3), math.pi / 4), 1 - 0.2 * math.sqrt(2)),
        (room_with(CYLINDER, (0.25, 0.25, 0.3)), 0.75),
        (room_with(SPHERE, (0.3, 0.3, 0.3)), 0.7),
    ],
)
def test_the_middle_ray_meets_each_solid_at_its_distance(room, depth):
    grid = np.linspace(-0.5, 0.5, 101, dtype=np.float32)
    z = cast(room, AHEAD, Rays(*np.meshgrid(grid, grid), 100.0)).z
    assert z[50, 50] == pytest.approx(depth, abs=1e-5)
    assert z[50, 0] == pytest.approx(3.0, abs=1e-5)  # past the solid


def test_accelerometer_feels_one_g_upwards_and_the_pitch():
    def level(pitch: float) -> np.ndarray:
        return camera_pose((1.0, 1.0, 1.0, 0.4, math.radians(pitch), 0.0))

    assert accelerometer(level(0)) == bytes([0, 0, 0x33, 0x03, 0, 0, 0, 0, 0, 0, 0, 0])  # 819
    x, y, z = np.frombuffer(accelerometer(level(-30))[:6], "<i2")
    assert (x, y) == (0, 709) and z in (409, 410)  # 819 cos 30, 819 sin 30
    assert np.frombuffer(accelerometer(level(-30)), "i1")[6] == -60  # half degrees


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_finer_than_a_pixel_fades(name):
    u, v = np.random.default_rng(0).uniform(0.1, 3, (2, 4000)).astype(np.float32)
    fine, coarse = (PATTERNS[name](u, v, np.full_like(u, pixel), 0.2) for pixel in (0.001, 2.0))
    assert coarse[0].std() + coarse[1].std() <= fine[0].std() + fine[1].std() + 1e-6
    assert np.abs(fine[0].mean() - coarse[0].mean()) < 0.1


def test_scene_folders_hold_whole_files_and_their_index(dump):
    assert sorted(path.name for path in dump.iterdir()) == [
        "bedroom_9001",
        "kitchen_9002",
        "synth.json",
    ]
    sizes = {"d": 614_417, "r": 921_615, "a": 12}
    for folder in (dump / "bedroom_9001", dump / "kitchen_9002"):
        names = sorted(path.name for path in folder.iterdir() if path.name != "INDEX.txt")
        assert (folder / "INDEX.txt").read_text() == "".join(f"{name}\n" for name in names)
        assert [name[0] for name in names] == ["a"] * 3 + ["d"] * 3 + ["r"] * 3
        for name in names:
            assert (folder / name).stat().st_size == sizes[name[0]]


def test_disparity_is_little_endian_eleven_bits(dump):
    data = next(dump.glob("*/d-*.pgm")).read_bytes()
    assert data.startswith(b"P5 640 480 65535\n")
    little, big = (np.frombuffer(data[17:], order) for order in ("<u2", ">u2"))
    assert little.max() == 2047 and little.min() > 300
    assert big.max() > 2047


def test_host_stamps_ascend_at_30_hz_with_jitter_and_device_ticks_at_60_mhz(dump):
    stamps = [NAME.fullmatch(path.name) for path in sorted(dump.glob("bedroom_9001/[dra]-*"))]
    for kind in "dra":
        host = np.array([float(m[2]) for m in stamps if m and m[1] == kind])
        ticks = [int(m[3]) for m in stamps if m and m[1] == kind]
        steps = np.diff(host)
        assert (np.abs(steps - 1 / 30) < 0.006).all() and np.ptp(steps) > 1e-5
        assert all((b - a) % 2**32 == 2_000_000 for a, b in zip(ticks, ticks[1:], strict=False))
        assert max(ticks) < 2**32
    assert len({m[2] for m in stamps if m}) == 9  # depth and RGB never share a stamp


def test_same_seed_gives_the_same_bytes_with_any_number_of_jobs(dump, tmp_path):
    seen = []
    synth(tmp_path / "raw", scenes=2, frames=3, seed=7, jobs=2, progress=lambda *n: seen.append(n))
    assert contents(tmp_path / "raw") == contents(dump)
    assert seen == [(1, 2), (2, 2)]


def test_another_seed_gives_another_room():
    assert np.abs(true_depth(0, 1, 0, stride=16) - true_depth(1, 1, 0, stride=16)).max() > 0.1
    assert not np.allclose(true_pose(0, 1, 0), true_pose(0, 1, 3))


def test_second_run_keeps_finished_scenes_and_makes_missing_ones_again(dump):
    before = contents(dump)
    kept = dump / "bedroom_9001" / "INDEX.txt"
    stamp = kept.stat().st_mtime_ns
    (dump / "kitchen_9002").rename(dump / "kitchen_9002.tmp_out")  # as if it had been stopped
    synth(dump, scenes=2, frames=3, seed=7, jobs=1)
    assert contents(dump) == before
    assert kept.stat().st_mtime_ns == stamp


def test_other_settings_and_other_peoples_folders_are_refused(dump, tmp_path):
    with pytest.raises(DataError, match=r"synth\.json: generated with .*'seed': 7"):
        synth(dump, scenes=2, frames=3, seed=8)
    (tmp_path / "photo.jpg").write_bytes(b"")
    with pytest.raises(DataError, match="not empty and without a synth.json"):
        synth(tmp_path, scenes=1, frames=1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scenes": 0}, "synth.scenes: expected 1 or more, got 0"),
        ({"frames": -1}, "synth.frames: expected 1 or more, got -1"),
        ({"truncate": 2.0}, "synth.truncate: expected a share 0..1, got 2.0"),
        ({"types": ["attic"]}, r"synth.types: expected some of bedroom, .*, got \['attic'\]"),
    ],
)
def test_impossible_settings_are_named(wrong, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        synth(tmp_path, **{"scenes": 1, "frames": 1, **wrong})
    assert not list(tmp_path.iterdir())


def test_truncated_files_come_on_request(tmp_path):
    synth(tmp_path / "cut", scenes=1, frames=6, seed=3, truncate=0.5, types=["office"], jobs=1)
    full = {".pgm": 614_417, ".ppm": 921_615, ".dump": 12}
    files = [path for path in (tmp_path / "cut/office_9001").iterdir() if path.suffix in full]
    short = [path for path in files if path.stat().st_size < full[path.suffix]]
    assert len(files) == 18
    assert 1 <= len(short) <= 11 and all(path.suffix != ".dump" for path in short)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_has_furniture_and_a_camera_clear_of_it(kind):
    number = 1 + list(TYPES).index(kind)
    assert len(design(kind, np.random.default_rng(5)).shape) > 10
    for frame in (0, 3, 5):
        assert true_depth(0, number, frame, stride=16).min() > 0.2


def test_registered_depth_is_the_true_depth(dump):
    pose, rng = true_pose(7, 1, 0), np.random.default_rng(0)
    room = design("bedroom", np.random.default_rng([7, 1, 0]))
    rgb = colour_picture(room, pose, rng)
    _, depth_mm = register(rgb, depth_picture(room, depth_pose(pose), rng))
    valid = depth_mm > 0
    error = np.abs(depth_mm / 1000 - true_depth(7, 1, 0))[valid]
    assert valid.mean() > 0.5
    assert np.median(error) < 0.015 and (error < 0.1).mean() > 0.97


def test_mean_depth_map_is_a_poor_guess_on_unseen_rooms():
    def depths(rooms: range) -> np.ndarray:
        return np.stack([true_depth(0, n, f, stride=32) for n in rooms for f in (0, 3, 6)])

    known, unseen = depths(range(1, 25)), depths(range(25, 43))
    abs_rel = np.abs(known.mean(0) - unseen) / unseen
    assert abs_rel.mean() >= 0.25
