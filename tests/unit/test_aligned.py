"""Ready-made pairs: which files are frames."""

import pickle
from pathlib import Path

import numpy as np
import pytest

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.aligned import Pattern, pattern_scenes, sync_scenes
from llm_mde.nyu.kinect import RGB_CAMERA
from tests.support.aligned import (
    FREE,
    KITCHEN,
    load_only,
    write_depth,
    write_free,
    write_rgb,
    write_sync,
)

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
