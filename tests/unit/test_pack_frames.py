"""Which frames of a dump are packed, and into which split."""

import json
import tarfile
from collections import Counter

import numpy as np

from llm_mde.data import record
from llm_mde.data.index import open_index
from llm_mde.data.layout import PackSettings
from llm_mde.data.pack import pack
from tests.support.mat import write as write_mat
from tests.support.packs import files_of, index_of
from tests.support.rawscene import (
    disparity_image,
    pgm_bytes,
    raw_names,
    write_scene,
)


def test_labelled_images_are_all_packed_whatever_the_stride(tmp_path):
    report = pack(
        [write_mat(tmp_path / "labeled.mat")],
        out=tmp_path / "out",
        settings=PackSettings(stride=7),
        jobs=1,
    )
    assert sum(report.counts.values()) == 5 and report.counts["test"] == 2
    assert report.verdicts == {"ok": 15}


def test_filling_leaves_out_a_frame_that_is_far_away_everywhere(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=2)
    far = np.full((480, 640), 1070)  # 15.6 m, stored as 10 m
    far[0, 0] = 2047
    (scene / raw_names(0)[0]).write_bytes(pgm_bytes(far))
    settings = PackSettings(fill=True)
    report = pack([scene], out=tmp_path / "out", jobs=1, settings=settings, max_lost=1)
    assert sum(report.counts.values()) == 1
    row = files_of(tmp_path / "out")[f"den_0001/{raw_names(0)[0]}"]
    assert (row["verdict"], row["reason"]) == ("empty", "no reading below 10 m to fill from")


def test_scenes_without_frames_take_no_share_of_the_splits(tmp_path):
    for number in range(4):
        scene = write_scene(tmp_path / "raw", f"den_{number:04d}", frames=1)
        if number:
            (scene / raw_names(0)[1]).unlink()
    report = pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    assert report.counts == {"train": 1, "val": 0, "test": 0, "heldout": 0}


def test_a_scene_that_may_hold_a_test_image_is_named_where_it_can_be_trained_on(tmp_path, caplog):
    write_scene(tmp_path / "raw", "kitchen_0004a", frames=1)
    pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    assert "kitchen_0004a may hold an official test image" in caplog.text


def test_stride_keeps_every_nth_frame_under_its_own_index(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=5)
    pack([scene], out=tmp_path / "out", jobs=1, settings=PackSettings(stride=2))
    keys = [entry["key"][-6:] for entry in index_of(tmp_path / "out")]
    assert keys == ["000000", "000002", "000004"]
    verdicts = Counter(row["verdict"] for row in files_of(tmp_path / "out").values())
    assert verdicts == {"ok": 9, "excluded": 6}


def test_the_sampled_set_leaves_out_the_known_bad_frame_and_moves_no_other(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=14)
    bad = "d-1315166703.129542-2466101449.pgm"  # sorts behind the others: the 15th, picked by 7
    (scene / bad).write_bytes(pgm_bytes(disparity_image(0)))
    report = pack([scene], out=tmp_path / "out", jobs=1, settings=PackSettings(stride=7))
    assert [entry["key"][-6:] for entry in index_of(tmp_path / "out")] == ["000000", "000007"]
    row = files_of(tmp_path / "out")[f"den_0001/{bad}"]
    assert (row["verdict"], row["reason"]) == ("excluded", "known bad frame of NYU Depth V2")
    assert sum(report.counts.values()) == 2  # and it does not count as lost


def test_official_heldout_scenes_never_reach_train_shards(tmp_path):
    for name in ("bookstore_0001a", "bookstore_0001d", "kitchen_0003"):
        write_scene(tmp_path / "raw", name, frames=1)
    report = pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    assert report.counts == {"train": 1, "val": 1, "test": 0, "heldout": 1}
    heldout = (tmp_path / "out" / "splits" / "heldout.txt").read_text().split()
    assert heldout == ["bookstore_0001a-000000"]


def test_named_lists_are_written_beside_the_splits(tmp_path):
    for number in range(1, 7):
        write_scene(tmp_path / "raw", f"bedroom_900{number}", frames=1, seed=number)
    pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    train = (tmp_path / "out" / "splits" / "train.txt").read_text()
    assert (tmp_path / "out" / "splits" / "few-shot-1.txt").read_text() == train
    assert (tmp_path / "out" / "splits" / "zero-shot-train.txt").read_text() == train
    assert len(open_index(tmp_path / "out", "few-shot-1").entries) == len(train.split())
    lists = json.loads((tmp_path / "out" / "pack.json").read_text())["lists"]
    assert lists["zero-shot-kitchen"]["samples"] == 0
    assert not (tmp_path / "out" / "splits" / "zero-shot-kitchen.txt").exists()


def test_filled_depth_is_added_beside_the_readings(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=1)
    pack([scene], out=tmp_path / "out", jobs=1, settings=PackSettings(fill=True))
    (entry,) = index_of(tmp_path / "out")
    with tarfile.open(tmp_path / "out" / entry["shard"]) as tar:
        members = {m.name.partition(".")[2]: tar.extractfile(m).read() for m in tar}
    sample = record.decode(members | {"__key__": entry["key"]}, filled=True)
    assert (sample.depth_mm == 0).mean() > 0.01 and sample.filled_mm.min() > 0
    known = sample.depth_mm > 0
    apart = np.abs(sample.filled_mm[known].astype(int) - sample.depth_mm[known])
    assert np.median(apart) < 20  # known pixels move a little, as in the reference
