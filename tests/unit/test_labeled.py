import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from llm_mde.errors import DataError
from llm_mde.nyu import labeled
from llm_mde.nyu.kinect import RGB_CAMERA
from tests.support.mat import ORIGINS, arrays, write


@pytest.fixture(scope="module")
def mat(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("labeled") / "small.mat")


def test_a_scene_is_a_raw_folder_and_an_official_part(mat):
    assert [(s.name, s.part, s.indices) for s in labeled.labeled_scenes(mat)] == [
        ("kitchen_0004a", "test", (1, 2)),
        ("kitchen_0004b", "train", (5,)),
        ("office_0003", "train", (3, 4)),
    ]
    assert labeled.test_folders(mat) == {"kitchen_0004a"}


def test_pairs_name_the_arrays_and_know_the_time_of_the_raw_depth(mat):
    test, odd, _ = labeled.labeled_scenes(mat)
    first, second = test.pairs()
    assert (first.index, first.depth, first.rgb) == (1, "rawDepths#1", "images#1")
    assert (first.time_s, second.time_s) == (1294886360.720747, 1294886362.5)
    assert odd.pairs()[0].time_s is None


def test_every_array_of_an_image_is_a_file(mat):
    scene = labeled.labeled_scenes(mat)[0]
    assert scene.files() == {
        "depths#1": 1228800,
        "depths#2": 1228800,
        "images#1": 921600,
        "images#2": 921600,
        "rawDepths#1": 1228800,
        "rawDepths#2": 1228800,
    }
    assert list(scene.files()) == sorted(scene.files())


def test_a_frame_holds_upright_rgb_and_both_depths_in_millimetres(mat):
    scene = labeled.labeled_scenes(mat)[2]
    frame, findings = scene.load(scene.pairs()[1])
    assert frame is not None
    assert {finding.verdict for finding in findings} == {"ok"}
    assert {finding.file for finding in findings} == {"images#4", "rawDepths#4", "depths#4"}
    np.testing.assert_array_equal(frame.rgb, arrays(5)["images"][3].transpose(2, 1, 0))
    assert frame.depth_mm.shape == frame.filled_mm.shape == (480, 640)
    assert frame.depth_mm.dtype == frame.filled_mm.dtype == np.uint16
    assert frame.depth_mm[40, 50:53].tolist() == [1234, 10000, 2500]
    assert frame.depth_mm[0, 0] == 0
    assert frame.filled_mm[0, 0] == 3000
    assert (frame.scene, frame.index, frame.key) == ("office_0003", 4, "labeled-000004")
    assert (frame.source, frame.time_s, frame.accel_g) == ("nyu_labeled", 1294886371.25, None)
    assert RGB_CAMERA.matrix() == frame.K


def test_values_that_are_no_depth_are_no_reading(tmp_path):
    raw = arrays(1)["rawDepths"]
    raw[0, :4, 100] = np.nan, np.inf, -np.inf, -1
    [scene] = labeled.labeled_scenes(write(tmp_path / "a.mat", names=ORIGINS[:1], rawDepths=raw))
    frame, _ = scene.load(scene.pairs()[0])
    assert frame.depth_mm[100, :4].tolist() == [0, 10000, 0, 0]


def test_an_image_without_a_reading_is_empty(tmp_path):
    raw = np.zeros((1, 640, 480), np.float32)
    [scene] = labeled.labeled_scenes(write(tmp_path / "a.mat", names=ORIGINS[:1], rawDepths=raw))
    frame, findings = scene.load(scene.pairs()[0])
    assert frame is None
    assert {finding.file: finding.verdict for finding in findings} == {
        "images#1": "ok",
        "rawDepths#1": "empty",
        "depths#1": "ok",
    }


@pytest.mark.parametrize("name", ["images", "rawDepths", "depths"])
def test_a_damaged_chunk_costs_one_image(tmp_path, name):
    path = write(tmp_path / "a.mat")
    with h5py.File(path) as file:
        chunk = file[name].id.read_direct_chunk((3,) + (0,) * (file[name].ndim - 1))[1]
    whole = path.read_bytes()
    at = whole.index(chunk)  # of this image, or of one before with the same content
    path.write_bytes(whole[:at] + bytes(20) + whole[at + 20 :])
    broken = []
    for scene in labeled.labeled_scenes(path):
        for pair in scene.pairs():
            frame, findings = scene.load(pair)
            bad = [(f.file, f.verdict) for f in findings if f.verdict != "ok"]
            assert (frame is None) == bool(bad)
            broken += bad
    assert len(broken) == 1
    assert broken[0][0].startswith(f"{name}#")
    assert broken[0][1] == "undecodable"


def test_scenes_travel_to_other_processes(mat):
    scene = labeled.labeled_scenes(mat)[2]
    payload = pickle.dumps(scene)
    assert len(payload) < 1000
    assert hash(pickle.loads(payload)) == hash(scene)
    code = (
        "import pickle, sys; scene = pickle.load(sys.stdin.buffer);"
        "print(scene.load(scene.pairs()[0])[0].key)"
    )
    done = subprocess.run([sys.executable, "-c", code], input=payload, capture_output=True)
    assert done.stdout.split() == [b"labeled-000003"], done.stderr


def test_a_missing_file_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"no.mat: does not exist .*nyu_depth_v2_labeled\.mat"):
        labeled.labeled_scenes(tmp_path / "no.mat")


@pytest.mark.parametrize("kept", [0, 100, 600, 5000, -1])
def test_a_file_that_is_cut_short_is_refused(tmp_path, mat, kept):
    path = tmp_path / "cut.mat"
    path.write_bytes(mat.read_bytes()[:kept])
    with pytest.raises(DataError, match=r"cut\.mat: is not readable as HDF5 .*download"):
        labeled.labeled_scenes(path)


def test_another_matlab_file_is_refused(tmp_path):
    (tmp_path / "splits.mat").write_bytes(b"MATLAB 5.0 MAT-file".ljust(2000))
    with pytest.raises(DataError, match=r"splits\.mat: is not readable as HDF5"):
        labeled.test_folders(tmp_path / "splits.mat")


@pytest.mark.parametrize("name", ["images", "depths", "rawDepths", "rawDepthFilenames"])
def test_a_missing_array_is_named(tmp_path, name):
    path = write(tmp_path / "a.mat", leave_out=[name])
    with pytest.raises(DataError, match=f"a.mat: .*{name}.*expected nyu_depth_v2_labeled"):
        labeled.labeled_scenes(path)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"images": np.zeros((5, 480, 640, 3), np.uint8)}, r"images is \(5, 480, 640, 3\) uint8"),
        (
            {"depths": np.zeros((5, 640, 480), np.uint16)},
            r"depths is .* uint16, expected .*float32",
        ),
        ({"rawDepths": np.zeros((4, 640, 480), np.float32)}, r"expected \(5, 640, 480\) float32"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(tmp_path, changed, message):
    with pytest.raises(DataError, match=message):
        labeled.labeled_scenes(write(tmp_path / "a.mat", **changed))


@pytest.mark.parametrize("name", ["d-1.0-2.pgm", "a/b/d-1.0-2.pgm", "a.b/d-1.0-2.pgm", "x" * 300])
def test_a_raw_name_without_a_usable_folder_is_refused(tmp_path, name):
    with pytest.raises(DataError, match="rawDepthFilenames is not readable"):
        labeled.labeled_scenes(write(tmp_path / "a.mat", names=[name]))


def test_arrays_in_other_files_are_not_followed(tmp_path, mat):
    path = write(tmp_path / "a.mat", leave_out=["images"])
    with h5py.File(path, "r+") as file:
        file["images"] = h5py.ExternalLink(str(mat), "images")
    with pytest.raises(DataError, match="images is no array kept in this file"):
        labeled.labeled_scenes(path)
