import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llm_mde.errors import DataError
from llm_mde.nyu import raw
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

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
needs_data = pytest.mark.skipif(
    not TESTDATA,
    reason="LLM_MDE_TESTDATA is not set: the real NYU frame is not part of the project",
)


def test_name_tells_kind_time_and_tick():
    stamp = raw.parse_name("d-1316653580.471513-1316138413.pgm")
    assert stamp == raw.Stamp("d", 1316653580.471513, 1316138413)


@pytest.mark.parametrize(
    "name",
    ["INDEX.txt", "device.json", "d-1.5-2.ppm", "r-1.5-2.ppm.tmp", "x-1.5-2.pgm", "d-1-2.pgm"],
)
def test_other_names_are_no_raw_files(name):
    assert raw.parse_name(name) is None


def test_pgm_payload_is_little_endian():
    disparity = np.full((480, 640), 2047, np.uint16)
    disparity[1, 2] = 0x0103
    payload = pgm_bytes(disparity)
    assert payload[17 + 2 * (640 + 2) :][:2] == b"\x03\x01"
    np.testing.assert_array_equal(raw.parse_pgm(payload, name="d"), disparity)


def test_ppm_keeps_rows_columns_and_channels():
    image = rgb_image(3)
    np.testing.assert_array_equal(raw.parse_ppm(ppm_bytes(image), name="r"), image)


def test_dump_is_in_g_and_degrees():
    accel = raw.parse_dump(dump_bytes(-819, 1638, 0, 31, 4), name="a")
    assert accel == raw.Accel(-1.0, 2.0, 0.0, 15.5, 4)


@pytest.mark.parametrize(
    ("parse", "size"), [(raw.parse_pgm, 614417), (raw.parse_ppm, 921615), (raw.parse_dump, 12)]
)
def test_truncated_files_are_named_with_both_sizes(parse, size):
    with pytest.raises(DataError, match=rf"x-1\.f: expected {size} bytes, got 5 \(truncated\); "):
        parse(b"12345", name="x-1.f")


def test_wrong_header_is_shown():
    payload = b"P5 480 640 65535\n" + bytes(614400)
    with pytest.raises(DataError, match="expected the header .*640 480.*got .*480 640"):
        raw.parse_pgm(payload, name="d")


def test_byte_swapped_payload_is_told_from_garbage():
    swapped = pgm_bytes(disparity_image(0).byteswap())
    with pytest.raises(DataError, match=r"d-1\.pgm: expected values up to 2047.*byte-swapped"):
        raw.parse_pgm(swapped, name="d-1.pgm")
    garbage = pgm_bytes(np.full((480, 640), 0x7777, np.uint16))
    with pytest.raises(DataError, match="no Kinect disparity image"):
        raw.parse_pgm(garbage, name="d-1.pgm")


def test_synchronisation_takes_the_nearest_and_ties_go_to_the_later():
    names = ["d-10.0-1.pgm", "d-11.0-1.pgm", "d-12.5-1.pgm"]
    names += ["r-10.25-1.ppm", "r-12.0-1.ppm", "r-13.0-1.ppm", "a-10.0-1.dump"]
    pairs = raw.synchronise(names)
    assert [pair.rgb for pair in pairs] == ["r-10.25-1.ppm", "r-10.25-1.ppm", "r-13.0-1.ppm"]
    assert [pair.gap_s for pair in pairs] == [0.25, 0.75, 0.5]
    assert {pair.accel for pair in pairs} == {"a-10.0-1.dump"}


def test_synchronisation_does_not_depend_on_the_order_of_names():
    names = [name for frame in range(5) for name in raw_names(frame)]
    assert raw.synchronise(names) == raw.synchronise(reversed(names))


def test_scene_without_accelerometer_still_pairs():
    assert raw.synchronise(["d-1.0-1.pgm", "r-1.0-1.ppm"])[0].accel is None


@needs_data
def test_synchronisation_equals_the_toolbox():
    folder = Path(TESTDATA) / "sync_names"
    names = (folder / "sync_input_filenames.txt").read_text().split()
    want = [tuple(x.split()) for x in (folder / "sync_matches_octave.txt").read_text().splitlines()]
    assert len(want) == 121
    assert [(pair.depth, pair.rgb, pair.accel) for pair in raw.synchronise(names)] == want


def test_zip_and_folder_hold_the_same_scenes(tmp_path):
    for name in ("kitchen_0001a", "den_0002"):
        write_scene(tmp_path / "raw", name, frames=1)
    folders = raw.find_scenes(tmp_path / "raw")
    zipped = raw.find_scenes(zip_scenes(tmp_path / "raw", tmp_path / "part.zip"))
    assert [scene.name for scene in folders] == ["den_0002", "kitchen_0001a"]
    assert [(s.name, s.names) for s in folders] == [(s.name, s.names) for s in zipped]
    assert all("INDEX.txt" not in scene.names for scene in folders)
    for left, right in zip(folders, zipped, strict=True):
        assert [left.read(name) for name in left.names] == [right.read(n) for n in right.names]


def test_scenes_survive_pickling(tmp_path):
    write_scene(tmp_path / "raw", "den_0001", frames=1)
    scene = raw.find_scenes(zip_scenes(tmp_path / "raw", tmp_path / "part.zip"))[0]
    assert scene.read(scene.names[0]) == pickle.loads(pickle.dumps(scene)).read(scene.names[0])


def test_one_scene_a_folder_of_zips_and_nested_folders_are_found(tmp_path):
    scene = write_scene(tmp_path / "raw" / "part1", "den_0001", frames=1)
    (tmp_path / "zips").mkdir()
    zip_scenes(tmp_path / "raw" / "part1", tmp_path / "zips" / "a.zip")
    for source in (scene, tmp_path / "raw", tmp_path / "zips"):
        assert [found.name for found in raw.find_scenes(source)] == ["den_0001"]


def test_folders_of_other_scripts_are_ignored(tmp_path):
    write_scene(tmp_path, "den_0001", frames=1)
    write_scene(tmp_path, "den_0001_out", frames=1)
    assert [scene.name for scene in raw.find_scenes(tmp_path)] == ["den_0001"]


def test_missing_and_empty_sources_say_what_was_expected(tmp_path):
    with pytest.raises(DataError, match="nowhere: does not exist, expected a raw NYU scene folder"):
        raw.find_scenes(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no r-\*\.ppm found, expected a raw NYU scene folder or"):
        raw.find_scenes(tmp_path)
    (tmp_path / "bad.zip").write_bytes(b"no zip")
    with pytest.raises(DataError, match=r"bad\.zip: not a readable zip"):
        raw.find_scenes(tmp_path / "bad.zip")


@pytest.mark.parametrize(("kind", "pattern"), [("r", r"r-\*\.ppm"), ("d", r"d-\*\.pgm")])
def test_scene_with_half_its_files_is_named(tmp_path, kind, pattern):
    scene = write_scene(tmp_path, "den_0001", frames=1)
    for path in scene.glob(f"{kind}-*"):
        path.unlink()
    with pytest.raises(DataError, match=rf"den_0001: no {pattern} found"):
        raw.find_scenes(tmp_path)


def test_damaged_zip_member_is_a_data_error(tmp_path):
    write_scene(tmp_path / "raw", "den_0001", frames=1)
    archive = zip_scenes(tmp_path / "raw", tmp_path / "part.zip")
    scene = raw.find_scenes(archive)[0]
    payload = bytearray(archive.read_bytes())
    at = payload.index(b".pgm") + 100
    payload[at : at + 50] = bytes(50)
    archive.write_bytes(payload)
    depth = next(name for name in scene.names if name.startswith("d-"))
    with pytest.raises(DataError, match=rf"part\.zip/den_0001/{depth}: cannot be read"):
        scene.read(depth)


def test_packing_needs_no_torch():
    code = (
        "import sys, llm_mde.nyu.raw, llm_mde.data.pack;"
        "print([m for m in ('torch', 'webdataset', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
