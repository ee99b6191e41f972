import os
import pickle
import subprocess
import sys
import zipfile

import numpy as np
import pytest

from llm_mde.errors import DataError
from llm_mde.nyu.dumps import RawScene, find_stores, raw_scenes
from llm_mde.nyu.frame import DamagedFile, Finding
from tests.support.rawscene import (
    disparity_image,
    dump_bytes,
    pgm_bytes,
    ppm_bytes,
    raw_names,
    rgb_image,
    write_scene,
    zip_scenes,
)


def scenes_of(*sources) -> list[RawScene]:
    return raw_scenes(store for source in sources for store in find_stores(source))


def test_zip_and_folder_hold_the_same_scenes(tmp_path):
    for name in ("kitchen_0001a", "den_0002"):
        write_scene(tmp_path / "raw", name, frames=1)
    folders = scenes_of(tmp_path / "raw")
    zipped = scenes_of(zip_scenes(tmp_path / "raw", tmp_path / "part.zip"))
    assert [scene.name for scene in folders] == ["den_0002", "kitchen_0001a"]
    assert [(s.name, s.files()) for s in folders] == [(s.name, s.files()) for s in zipped]
    assert list(folders[0].files().values()) == [12, 614417, 921615]  # a, d, r; no INDEX.txt
    for left, right in zip(folders, zipped, strict=True):
        assert [left.read(name) for name in left.files()] == [right.read(n) for n in right.files()]


def test_a_scene_may_span_parts(tmp_path):
    whole = write_scene(tmp_path / "raw", "den_0001", frames=4)
    names = sorted(path.name for path in whole.iterdir() if path.name != "INDEX.txt")
    for part in (0, 1):
        with zipfile.ZipFile(tmp_path / f"dens_part{part + 1}.zip", "w") as archive:
            for name in names[part::2]:
                archive.write(whole / name, f"den_0001/{name}")
    (spread,) = scenes_of(tmp_path / "dens_part1.zip", tmp_path / "dens_part2.zip")
    (one,) = scenes_of(whole)
    assert spread.pairs() == one.pairs() and len(spread.pairs()) == 4
    for pair in one.pairs():
        np.testing.assert_array_equal(spread.load(pair)[0].depth_mm, one.load(pair)[0].depth_mm)


def test_a_file_in_two_places_is_an_error(tmp_path):
    whole = write_scene(tmp_path / "raw", "den_0001", frames=1)
    (scene,) = scenes_of(whole, zip_scenes(tmp_path / "raw", tmp_path / "part.zip"))
    with pytest.raises(DataError, match="scene den_0001: found twice, .* and .*; give one of them"):
        scene.files()


def test_scenes_survive_pickling_and_serve_as_keys(tmp_path):
    write_scene(tmp_path / "raw", "den_0001", frames=1)
    (scene,) = scenes_of(zip_scenes(tmp_path / "raw", tmp_path / "part.zip"))
    again = pickle.loads(pickle.dumps(scene))
    assert again == scene and hash(again) == hash(scene)
    assert again.pairs() == scene.pairs()


def test_one_scene_a_folder_of_zips_and_nested_folders_are_found(tmp_path):
    scene = write_scene(tmp_path / "raw" / "part1", "den_0001", frames=1)
    (tmp_path / "zips").mkdir()
    zip_scenes(tmp_path / "raw" / "part1", tmp_path / "zips" / "a.zip")
    for source in (scene, tmp_path / "raw", tmp_path / "zips"):
        assert [found.name for found in scenes_of(source)] == ["den_0001"]


def test_folders_of_other_scripts_are_ignored(tmp_path):
    write_scene(tmp_path, "den_0001", frames=1)
    write_scene(tmp_path, "den_0001_out", frames=1)
    assert [scene.name for scene in scenes_of(tmp_path)] == ["den_0001"]
    zipped = zip_scenes(tmp_path, tmp_path.with_suffix(".zip"))
    assert [scene.name for scene in scenes_of(zipped)] == ["den_0001"]


def test_missing_and_foreign_sources_say_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="nowhere: does not exist, expected raw NYU scene folders"):
        find_stores(tmp_path / "nowhere")
    assert find_stores(tmp_path) == []
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"bad\.zip: not a readable zip"):
        find_stores(tmp_path / "bad.zip")


def test_a_frame_carries_camera_time_and_acceleration(tmp_path):
    (scene,) = scenes_of(write_scene(tmp_path, "den_0001", frames=1))
    frame, findings = scene.load(scene.pairs()[0])
    assert frame.K[0] == [518.85790117450188, 0.0, 325.58244941119034]
    assert frame.time_s == 1300000000.0 and frame.accel_g == (0.0, 1.0, 0.0)
    assert findings == [Finding(name, "ok") for name in raw_names(0)]


def test_every_damaged_file_has_its_own_verdict(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=1)
    depth, rgb, accel = raw_names(0)
    (folder / depth).write_bytes(b"")
    (folder / rgb).write_bytes(ppm_bytes(rgb_image(0))[:-1])
    (folder / accel).write_bytes(dump_bytes(0, 0, 0, 0, 0) + b"x")
    (scene,) = scenes_of(folder)
    frame, findings = scene.load(scene.pairs()[0])
    assert frame is None
    verdicts = {finding.file: finding.verdict for finding in findings}
    assert verdicts == {depth: "empty", rgb: "truncated", accel: "undecodable"}


def test_a_frame_with_a_damaged_accelerometer_file_is_whole(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=1)
    (folder / raw_names(0)[2]).write_bytes(b"")
    (scene,) = scenes_of(folder)
    frame, findings = scene.load(scene.pairs()[0])
    assert frame is not None and frame.accel_g is None
    assert [finding.verdict for finding in findings] == ["ok", "ok", "empty"]


def test_a_frame_without_any_reading_is_empty(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=1)
    (folder / raw_names(0)[0]).write_bytes(pgm_bytes(np.full((480, 640), 2047)))
    (scene,) = scenes_of(folder)
    frame, findings = scene.load(scene.pairs()[0])
    assert frame is None
    assert findings[0] == Finding(raw_names(0)[0], "empty", "no pixel has a reading")


def test_images_half_a_second_apart_are_no_pair(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=1)
    (folder / raw_names(900)[0]).write_bytes(pgm_bytes(disparity_image(0)))
    (scene,) = scenes_of(folder)
    frame, findings = scene.load(scene.pairs()[1])
    assert frame is None and {finding.verdict for finding in findings} == {"unpaired"}
    assert findings[0].reason == "depth and rgb are 30.00 s apart, expected 0.5 or less"


def test_the_known_bad_frame_is_excluded(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=1)
    bad = "d-1315166703.129542-2466101449.pgm"
    (folder / bad).write_bytes(pgm_bytes(disparity_image(0)))
    (scene,) = scenes_of(folder)
    frame, findings = scene.load(scene.pairs()[1])
    assert frame is None
    assert findings[0] == Finding(bad, "excluded", "known bad frame of NYU Depth V2")


def test_a_damaged_zip_member_costs_that_member_only(tmp_path):
    write_scene(tmp_path / "raw", "den_0001", frames=2)
    archive = zip_scenes(tmp_path / "raw", tmp_path / "part.zip")
    payload = bytearray(archive.read_bytes())
    at = payload.index(b".pgm") + 100
    payload[at : at + 50] = bytes(50)
    archive.write_bytes(payload)
    (scene,) = scenes_of(archive)
    damaged, good = scene.pairs()
    with pytest.raises(DamagedFile, match=rf"part\.zip/den_0001/{damaged.depth}: cannot be read"):
        scene.read(damaged.depth)
    assert scene.load(damaged)[1][0].verdict == "undecodable"
    assert scene.load(good)[0] is not None


def test_links_to_nothing_and_pipes_cost_their_frame_only(tmp_path):
    folder = write_scene(tmp_path, "den_0001", frames=3)
    for frame, make in ((0, lambda path: path.symlink_to(tmp_path / "gone")), (1, os.mkfifo)):
        path = folder / raw_names(frame)[0]
        path.unlink()
        make(path)
    (scene,) = scenes_of(folder)
    results = [scene.load(pair) for pair in scene.pairs()]
    assert [frame is not None for frame, _ in results] == [False, False, True]
    assert [findings[0].verdict for _, findings in results] == ["undecodable", "undecodable", "ok"]


def test_packing_needs_no_torch():
    code = (
        "import sys, llm_mde.nyu.dumps, llm_mde.data.pack;"
        "print([m for m in ('torch', 'webdataset', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
