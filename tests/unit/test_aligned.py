import os
import pickle
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.aligned import Pattern, pattern_scenes, sync_scenes
from llm_mde.nyu.kinect import RGB_CAMERA

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
real = pytest.mark.skipif(
    not TESTDATA, reason="LLM_MDE_TESTDATA is not set: the real pictures are not in the project"
)
KITCHEN = Pattern(
    "frame-{index}.color.jpg",
    "frame-{index}.depth.png",
    K=((585.0, 0.0, 320.0), (0.0, 585.0, 240.0), (0.0, 0.0, 1.0)),
)
FREE = Pattern("rgb/{index}.png", "depth/{index}.png", depth_scale=5000)


def write_rgb(path: Path, *, size=(32, 24), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def write_depth(path: Path, value=2500, *, size=(32, 24), dtype=np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(1).integers(0, 40, (size[1], size[0]))
    values[0, 0] = 0
    values[0, 1:] = value
    Image.fromarray(values.astype(dtype)).save(path)


def write_sync(folder: Path, *numbers: int) -> None:
    for number in numbers:
        write_rgb(folder / f"rgb_{number:05d}.jpg")
        write_depth(folder / f"sync_depth_{number:05d}.png")


def write_free(folder: Path) -> None:
    write_rgb(folder / "rgb" / "7.png")
    write_depth(folder / "depth" / "0007.png", 5000)


def load_only(scene):
    [pair] = scene.pairs()
    return scene.load(pair)


# Registered NYU frames


def test_a_sync_folder_is_a_scene_of_registered_frames(tmp_path):
    write_sync(tmp_path / "sync" / "basement_0001a", 50, 0)
    [scene] = sync_scenes(tmp_path)
    assert (scene.name, scene.source, scene.part) == ("basement_0001a", "nyu_sync", None)
    assert [pair.index for pair in scene.pairs()] == [0, 50]
    frame, findings = scene.load(scene.pairs()[1])
    assert [tuple(finding) for finding in findings] == [
        ("sync_depth_00050.png", "ok", ""),
        ("rgb_00050.jpg", "ok", ""),
    ]
    assert (frame.index, frame.time_s, frame.key) == (50, None, None)
    assert (frame.rgb.shape, frame.depth_mm.shape) == ((24, 32, 3), (24, 32))
    assert frame.depth_mm.dtype == np.uint16
    assert frame.depth_mm[0, :3].tolist() == [0, 2500, 2500]
    assert RGB_CAMERA.matrix() == frame.K


def test_the_scene_folder_itself_will_do(tmp_path, monkeypatch):
    write_sync(tmp_path / "den_1", 3)
    monkeypatch.chdir(tmp_path / "den_1")
    [scene] = sync_scenes(Path("."))
    monkeypatch.chdir("/")
    assert scene.name == "den_1"
    assert load_only(scene)[0] is not None


def test_an_image_without_its_partner_is_a_file_and_no_pair(tmp_path):
    write_sync(tmp_path / "den_1", 1)
    write_rgb(tmp_path / "den_1" / "rgb_00002.jpg")
    write_depth(tmp_path / "den_1" / "sync_depth_00003.png")
    (tmp_path / "den_1" / "notes.txt").write_text("not an input")
    [scene] = sync_scenes(tmp_path)
    assert list(scene.files()) == [
        "rgb_00001.jpg",
        "rgb_00002.jpg",
        "sync_depth_00001.png",
        "sync_depth_00003.png",
    ]
    assert [pair.index for pair in scene.pairs()] == [1]
    for name, size in scene.files().items():
        assert size == (tmp_path / "den_1" / name).stat().st_size


def test_bare_types_are_cut_at_the_official_test_images(tmp_path):
    write_sync(tmp_path / "train" / "kitchen", 2, 3)  # labelled images 3 and 4: training
    write_sync(tmp_path / "test" / "kitchen", 0, 1, 8)  # 1, 2, 9: test
    write_sync(tmp_path / "mixed" / "bathroom", 0, 2)
    found = [(s.name, s.part, [p.index for p in s.pairs()]) for s in sync_scenes(tmp_path)]
    assert found == [
        ("bathroom", "train", [2]),
        ("bathroom", "test", [0]),
        ("kitchen", "test", [0, 1, 8]),
        ("kitchen", "train", [2, 3]),
    ]
    for scene in sync_scenes(tmp_path):
        assert len(scene.files()) == 2 * len(scene.pairs())


def test_a_list_chooses_the_frames(tmp_path):
    write_sync(tmp_path / "sync" / "den_1", 1, 2, 3)
    write_sync(tmp_path / "sync" / "den_2", 1)
    chosen = tmp_path / "list.txt"
    chosen.write_text(
        "/den_1/rgb_00003.jpg /den_1/sync_depth_00003.png 518.8579\n"
        "den_1/rgb_00001.jpg den_1/sync_depth_00001.png den_1/dense/sync_depth_dense_00001.png\n"
    )
    [scene] = sync_scenes(tmp_path / "sync", chosen)
    assert [pair.index for pair in scene.pairs()] == [1, 3]
    assert len(scene.files()) == 4
    assert scene.load(scene.pairs()[0])[0] is not None


def test_a_listed_file_that_is_not_there_is_missing(tmp_path):
    write_sync(tmp_path / "den_1", 1)
    (tmp_path / "den_1" / "rgb_00001.jpg").unlink()
    chosen = tmp_path / "list.txt"
    chosen.write_text(
        "den_1/rgb_00001.jpg den_1/sync_depth_00001.png 518.8579\n"
        "den_2/rgb_00009.jpg den_2/sync_depth_00009.png 518.8579\n"
    )
    near, far = sync_scenes(tmp_path, chosen)
    assert near.files()["rgb_00001.jpg"] == 0 < near.files()["sync_depth_00001.png"]
    frame, findings = load_only(near)
    assert frame is None
    assert [f.verdict for f in findings] == ["ok", "missing"]
    assert findings[1].reason == "listed, but not there"
    assert far.files() == {"rgb_00009.jpg": 0, "sync_depth_00009.png": 0}
    assert [f.verdict for f in load_only(far)[1]] == ["missing", "missing"]


@pytest.mark.parametrize(
    "line",
    [
        "den_1/rgb_00001.jpg",
        "den_1/rgb_00001.jpg den_1/sync_depth_00002.png 518.8579",
        "den_1/rgb_00001.jpg den_2/sync_depth_00001.png 518.8579",
        "den_1/rgb_00001.jpg den_1/sync_depth_00001.png 518.8579 more",
        "../den_1/rgb_00001.jpg ../den_1/sync_depth_00001.png 518.8579",
        "a/../../den_1/rgb_00001.jpg a/../../den_1/sync_depth_00001.png 518.8579",
        "//den_1/rgb_00001.jpg //den_1/sync_depth_00001.png 518.8579",
        "rgb_00001.jpg sync_depth_00001.png 518.8579",
        "",
    ],
)
def test_a_malformed_line_is_refused_by_its_number(tmp_path, line):
    write_sync(tmp_path / "den_1", 1)
    chosen = tmp_path / "list.txt"
    good = "den_1/rgb_00001.jpg den_1/sync_depth_00001.png 518.8579"
    chosen.write_text(f"{good}\n{line}\n{good}\n")
    with pytest.raises(DataError, match=r"list\.txt, line 2: expected '<scene>/rgb_00045\.jpg"):
        sync_scenes(tmp_path, chosen)


def test_a_list_of_other_folders_tells_where_paths_start(tmp_path):
    write_sync(tmp_path / "sync" / "den_1", 1)
    chosen = tmp_path / "list.txt"
    chosen.write_text("den_1/rgb_00001.jpg den_1/sync_depth_00001.png 518.8579\n")
    with pytest.raises(DataError, match="none of the 1 folders .* such as den_1; give the folder"):
        sync_scenes(tmp_path, chosen)
    with pytest.raises(DataError, match="no.txt: is no readable list"):
        sync_scenes(tmp_path, tmp_path / "no.txt")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="empty.txt: is empty"):
        sync_scenes(tmp_path, tmp_path / "empty.txt")


def test_a_folder_of_anything_else_is_no_sync_folder(tmp_path):
    write_free(tmp_path)
    with pytest.raises(DataError, match=r"expected rgb_\{index\}\.jpg and sync_depth_"):
        sync_scenes(tmp_path)
    for wrong in (tmp_path / "missing", tmp_path / "rgb" / "7.png"):
        with pytest.raises(DataError, match=f"{wrong.name}: does not exist or is no folder"):
            sync_scenes(wrong)


def test_a_scene_name_that_cannot_be_a_key_is_refused(tmp_path):
    write_sync(tmp_path / "den.1", 1)
    with pytest.raises(DataError, match="rename the folder"):
        sync_scenes(tmp_path)


# Folders that a pattern describes


def test_a_pattern_pairs_files_by_number_and_converts_depth(tmp_path):
    write_free(tmp_path / "den_1")
    [scene] = pattern_scenes(tmp_path / "den_1", FREE)
    assert (scene.name, scene.source, scene.part) == ("den_1", "pattern", None)
    assert list(scene.files()) == ["depth/0007.png", "rgb/7.png"]
    frame, findings = load_only(scene)
    assert [f.file for f in findings] == ["depth/0007.png", "rgb/7.png"]
    assert frame.index == 7
    assert frame.depth_mm[0, :2].tolist() == [0, 1000]
    assert frame.K is None


def test_a_pattern_with_scenes_finds_them_by_folder(tmp_path):
    for name in ("den_1", "den_2"):
        write_rgb(tmp_path / name / "rgb" / "c-1.jpg")
        write_depth(tmp_path / name / "d-1.png")
    pattern = Pattern("{scene}/rgb/c-{index}.jpg", "{scene}/d-{index}.png")
    scenes = pattern_scenes(tmp_path, pattern)
    assert [scene.name for scene in scenes] == ["den_1", "den_2"]
    assert list(scenes[1].files()) == ["den_2/d-1.png", "den_2/rgb/c-1.jpg"]
    assert load_only(scenes[1])[0].scene == "den_2"


def test_dots_in_a_pattern_are_dots(tmp_path):
    write_rgb(tmp_path / "frame-1-color.jpg")
    with pytest.raises(DataError, match=r"expected files frame-\{index\}\.color\.jpg"):
        pattern_scenes(tmp_path, KITCHEN)


def test_two_files_of_one_number_are_refused(tmp_path):
    write_free(tmp_path)
    write_rgb(tmp_path / "rgb" / "07.png")
    [scene] = pattern_scenes(tmp_path, FREE)
    with pytest.raises(DataError, match=r"rgb/07\.png and rgb/7\.png are one number; rename one"):
        scene.pairs()


@pytest.mark.parametrize(
    ("scale", "invalid", "values", "expected"),
    [
        (1000, (0, 65535), [1, 10000, 65534, 65535], [1, 10000, 65534, 0]),
        (1000, (0,), [65535], [65535]),
        (5000, (0,), [7, 8, 12500], [1, 2, 2500]),  # 1.4 and 1.6 mm
        (100, (), [6553, 6554], [65530, 0]),  # no room for 65540 mm
        (1e-300, (), [1], [0]),
    ],
)
def test_depth_is_rounded_to_millimetres(scale, invalid, values, expected):
    pattern = Pattern("r{index}", "d{index}", depth_scale=scale, invalid=invalid)
    found = pattern.millimetres(np.array([values], np.uint16))
    assert (found.dtype, found.tolist()) == (np.uint16, [expected])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb": "rgb.png"}, r"pattern\.rgb: 'rgb\.png': expected \{index\} once"),
        ({"rgb": "{index}/{index}.png"}, r"expected \{index\} once"),
        ({"depth": "{scene}/{scene}/{index}.png"}, r"pattern\.depth: .*\{scene\} at most once"),
        ({"rgb": "{frame}/{index}.png"}, "no other braces"),
        ({"rgb": "{index:06d}.png"}, r"expected \{index\} once"),
        ({"rgb": "{}{index}.png"}, "no other braces"),
        ({"rgb": "/data/{index}.png"}, "a path inside the folder"),
        ({"rgb": "../{index}.png"}, "a path inside the folder"),
        ({"rgb": "a/./{index}.png"}, "a path inside the folder"),
        ({"depth": "a\\{index}.png"}, "a path inside the folder"),
        ({"rgb": "{scene}/{index}.jpg"}, r"both with \{scene\} or both without"),
        ({"rgb": "depth/{index}.png"}, "expected two different paths"),
        ({"depth_scale": 0}, r"pattern\.depth_scale: .* above 0 .* got 0"),
        ({"depth_scale": float("nan")}, "depth_scale"),
        ({"depth_scale": float("inf")}, "depth_scale"),
        ({"invalid": (70000,)}, r"pattern\.invalid: expected values 0 to 65535"),
        ({"K": ((1.0, 0.0), (0.0, 1.0))}, r"pattern\.K: expected 3 rows of 3 numbers"),
        ({"K": ((float("nan"),) * 3,) * 3}, r"pattern\.K"),
    ],
)
def test_a_pattern_that_cannot_be_used_is_refused(change, message):
    fields = {"rgb": "rgb/{index}.png", "depth": "depth/{index}.png"} | change
    with pytest.raises(ConfigError, match=message):
        Pattern(**fields)


def test_scenes_are_small_and_travel(tmp_path):
    write_free(tmp_path / "den_1")
    write_sync(tmp_path / "den_2", *range(20))
    for scene in (
        *pattern_scenes(tmp_path / "den_1", FREE),
        *sync_scenes(tmp_path / "den_2"),
    ):
        payload = pickle.dumps(scene)
        assert len(payload) < 1000
        copy = pickle.loads(payload)
        assert (copy, hash(copy)) == (scene, hash(scene))
        assert copy.pairs() == scene.pairs()


# Files that cannot be used


def test_images_of_two_sizes_are_not_registered(tmp_path):
    write_free(tmp_path)
    write_rgb(tmp_path / "rgb" / "7.png", size=(64, 48))
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert [f.verdict for f in findings] == ["undecodable", "ok"]
    assert findings[0].reason == "rgb is 64x48, depth is 32x24: depth not registered to rgb?"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_rgb_of_another_kind_is_refused(tmp_path, mode):
    write_free(tmp_path)
    write_rgb(tmp_path / "rgb" / "7.png", mode=mode)
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert findings[1].verdict == "undecodable"
    assert findings[1].reason == f"JPEG or PNG of mode {mode}, expected RGB; convert it"


def test_depth_of_eight_bits_is_refused(tmp_path):
    write_free(tmp_path)
    write_depth(tmp_path / "depth" / "0007.png", 40, dtype=np.uint8)
    _, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert findings[0].reason == "PNG of mode L, expected I;16; convert it"


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        (b"", "empty", "0 bytes"),
        (b"GIF89a" * 9, "undecodable", "image"),
        (b"\x89PNG\r\n\x1a\n", "undecodable", ""),
    ],
)
def test_a_file_that_is_no_image_has_its_verdict(tmp_path, at, content, verdict, reason):
    write_free(tmp_path)
    (tmp_path / ("depth/0007.png", "rgb/7.png")[at]).write_bytes(content)
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert findings[at].verdict == verdict
    assert reason in findings[at].reason
    assert str(tmp_path) not in findings[at].reason
    assert findings[1 - at].verdict == "ok"


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_truncated(tmp_path, at, share):
    write_sync(tmp_path / "den_1", 7)
    path = tmp_path / "den_1" / ("sync_depth_00007.png", "rgb_00007.jpg")[at]
    whole = path.read_bytes()
    start = len(whole) // 2 if at else 100  # behind the tables of a JPEG
    path.write_bytes(whole[: start + int(share * (len(whole) - start))])
    frame, findings = load_only(sync_scenes(tmp_path)[0])
    assert frame is None
    assert findings[at].verdict == "truncated"


@pytest.mark.parametrize("name", ["sync_depth_00007.png", "rgb_00007.jpg"])
def test_no_damage_is_more_than_a_verdict(tmp_path, name):
    write_sync(tmp_path / "den_1", 7)
    [scene] = sync_scenes(tmp_path)
    whole = (tmp_path / "den_1" / name).read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.randint(0, len(whole))])
        for _ in range(rng.randint(0, 4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "den_1" / name).write_bytes(damaged)
        frame, findings = load_only(scene)
        assert (frame is None) == any(finding.verdict != "ok" for finding in findings)


@pytest.mark.parametrize("side", [5000, 12_000, 60_000])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, side):
    """5,000 is over our limit, 12,000 over Pillow's warning, 60,000 over Pillow's error."""
    write_free(tmp_path)
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    payload = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "depth" / "0007.png").write_bytes(b"\x89PNG\r\n\x1a\n" + payload)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert findings[0].verdict == "undecodable"
    assert findings[0].reason == "more than 16777216 pixels; make it smaller"


def test_a_depth_image_without_a_reading_is_empty(tmp_path):
    write_free(tmp_path)
    Image.fromarray(np.full((24, 32), 65535, np.uint16)).save(tmp_path / "depth" / "0007.png")
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert tuple(findings[0]) == ("depth/0007.png", "empty", "no pixel has a reading")


# Real pictures


@real
def test_every_pair_of_the_real_kitchen_loads():
    [scene] = pattern_scenes(Path(TESTDATA) / "redkitchen", KITCHEN)
    pairs = scene.pairs()
    assert (scene.name, len(pairs), len(scene.files())) == ("redkitchen", 176, 352)
    assert [pair.index for pair in pairs] == list(range(0, 701, 4))
    for pair in pairs:
        frame, findings = scene.load(pair)
        assert frame is not None, findings
        assert frame.rgb.shape == (480, 640, 3)
        known = frame.depth_mm[frame.depth_mm > 0]
        assert 300 < np.median(known) < 10_000
        assert known.max() < 65535
        assert frame.K[0][0] == 585.0


@real
def test_the_real_registered_frames_load():
    [scene] = sync_scenes(Path(TESTDATA) / "sync")
    assert scene.name == "basement_0001a"
    assert [pair.index for pair in scene.pairs()][:2] == [0, 50]
    for pair in scene.pairs():
        frame, _ = scene.load(pair)
        with Image.open(Path(TESTDATA) / "sync" / scene.name / pair.depth) as image:
            np.testing.assert_array_equal(frame.depth_mm, np.asarray(image))


@real
def test_the_published_lists_are_read(tmp_path):
    splits = Path(TESTDATA) / "splits"
    (tmp_path / "bathroom").mkdir()
    (tmp_path / "basement_0001a").mkdir()
    train = sync_scenes(tmp_path, splits / "nyudepthv2_train_files_with_gt.txt")
    assert len(train) == 284
    assert sum(len(scene.pairs()) for scene in train) == 24231
    assert all(scene.part is None for scene in train)
    test = sync_scenes(tmp_path, splits / "nyudepthv2_test_files_with_gt.txt")
    assert sum(len(scene.pairs()) for scene in test) == 654
    assert {scene.part for scene in test} == {"test"}
