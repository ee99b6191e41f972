import hashlib
import json
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from llm_mde.data import pack as pack_module
from llm_mde.data import record
from llm_mde.data.pack import pack
from llm_mde.data.sources import MAX_GAP_S, Skipped
from llm_mde.errors import ConfigError, DataError
from tests.support.rawscene import (
    disparity_image,
    pgm_bytes,
    ppm_bytes,
    raw_names,
    rgb_image,
    write_scene,
    zip_scenes,
)

SCENES = {"den_0001a": 2, "den_0001b": 1, "hall_0002": 1, "attic_0003": 2}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for seed, (name, frames) in enumerate(SCENES.items()):
        write_scene(root, name, frames=frames, seed=10 * seed)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    out = tmp_path_factory.mktemp("packed") / "shards"
    report = pack([source], out=out, jobs=1, shard_size=2)
    return out, report


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def test_report_and_manifest_count_every_frame(packed):
    out, report = packed
    manifest = json.loads((out / "pack.json").read_text())
    assert sum(report.counts.values()) == sum(SCENES.values()) == manifest["samples"]
    assert {name: entry["samples"] for name, entry in manifest["scenes"].items()} == SCENES
    assert manifest["format_version"] == 1 and manifest["skipped"] == []
    index = (out / "index.jsonl").read_bytes()
    assert manifest["index_sha256"] == hashlib.sha256(index).hexdigest()
    assert report.lines()[0].startswith(f"packed 6 samples into {out}: train ")


def test_index_points_at_each_sample_and_its_hash(packed):
    out, _ = packed
    for entry in index_of(out):
        with (out / entry["shard"]).open("rb") as file:
            file.seek(entry["offset"])
            span = file.read(entry["size"])
        assert hashlib.sha256(span).hexdigest() == entry["sha256"]
        assert span.startswith(f"{entry['key']}.rgb.jpg".encode())


def test_plain_tarfile_reads_shards_and_finds_the_indexed_offsets(packed):
    out, _ = packed
    starts = {(entry["shard"], entry["offset"]): entry["key"] for entry in index_of(out)}
    found = {}
    for path in out.glob("*.tar"):
        assert path.stat().st_size % tarfile.RECORDSIZE == 0
        with tarfile.open(path) as tar:
            for info in tar:
                assert (info.mtime, info.uid, info.gid, info.mode) == (0, 0, 0, 0o644)
                if info.name.endswith(".rgb.jpg"):
                    found[(path.name, info.offset)] = info.name.removesuffix(".rgb.jpg")
    assert found == starts


def test_shards_hold_at_most_shard_size_samples_and_split_lists_match(packed):
    out, _ = packed
    index = index_of(out)
    assert max(Counter(entry["shard"] for entry in index).values()) == 2
    for split in ("train", "val", "test", "heldout"):
        keys = [entry["key"] for entry in index if entry["shard"].startswith(f"{split}-")]
        assert (out / "splits" / f"{split}.txt").read_text().split() == keys


def test_stock_webdataset_reads_what_the_index_lists(packed):
    wds = pytest.importorskip("webdataset")
    out, _ = packed
    urls = sorted(str(path) for path in out.glob("*.tar"))
    samples = {s["__key__"]: s for s in wds.WebDataset(urls, shardshuffle=False)}
    assert sorted(samples) == sorted(entry["key"] for entry in index_of(out))
    for sample in samples.values():
        members = {k: v for k, v in sample.items() if not k.startswith("__") or k == "__key__"}
        decoded = record.decode(members)
        assert decoded.rgb.shape == (480, 640, 3)
        assert (decoded.depth_mm > 0).mean() > 0.5
        assert decoded.meta["scene"] in SCENES


@pytest.mark.parametrize("how", ["again", "two jobs", "zip"])
def test_same_input_gives_same_bytes(packed, source, tmp_path, how):
    if how == "zip":
        source = zip_scenes(source, tmp_path / "part.zip")
    jobs = 2 if how == "two jobs" else 1
    pack([source], out=tmp_path / "shards", jobs=jobs, shard_size=2)
    assert contents(tmp_path / "shards") == contents(packed[0])


def test_packing_into_a_finished_pack_changes_nothing(packed, source):
    out, before = packed[0], contents(packed[0])
    report = pack([source], out=out, jobs=1, shard_size=2)
    assert report.already_packed and report.counts == packed[1].counts
    assert contents(out) == before
    with pytest.raises(DataError, match="holds a pack with shard_size 2, asked for 3"):
        pack([source], out=out, jobs=1, shard_size=3)


def test_another_input_is_not_taken_for_already_packed(packed, source):
    with pytest.raises(DataError, match="holds a pack with input_sha256"):
        pack([source / "hall_0002"], out=packed[0], jobs=1, shard_size=2)


def test_bad_frames_are_skipped_and_named(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=5)
    (scene / raw_names(1)[0]).write_bytes(pgm_bytes(disparity_image(0))[:1000])
    (scene / raw_names(2)[1]).write_bytes(b"")
    (scene / raw_names(3)[0]).write_bytes(pgm_bytes(np.full((480, 640), 2047)))
    (scene / raw_names(900)[0]).write_bytes(pgm_bytes(disparity_image(0)))
    report = pack([scene], out=tmp_path / "out", jobs=1)
    reasons = {skipped.file: skipped.reason for skipped in report.skipped}
    assert "got 1000 (truncated)" in reasons.pop(raw_names(1)[0])
    assert "got 0 (truncated)" in reasons.pop(raw_names(2)[1])
    assert reasons.pop(raw_names(3)[0]) == "no pixel has a reading"
    assert reasons.pop(raw_names(900)[0]).startswith("unpaired: the nearest rgb is 29.86 s away")
    assert not reasons
    keys = [entry["key"] for entry in index_of(tmp_path / "out")]
    assert keys == ["den_0001-000000", "den_0001-000004"]  # indices count the skipped frames
    manifest = json.loads((tmp_path / "out" / "pack.json").read_text())
    assert [Skipped(**entry) for entry in manifest["skipped"]] == list(report.skipped)
    assert report.lines()[0].endswith("; skipped 4") and len(report.lines()) == 5


def test_the_known_bad_frame_is_left_out(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=1)
    (scene / "d-1315166703.129542-2466101449.pgm").write_bytes(pgm_bytes(disparity_image(0)))
    (scene / "r-1315166703.129542-2466101449.ppm").write_bytes(ppm_bytes(rgb_image(0)))
    report = pack([scene], out=tmp_path / "out", jobs=1)
    assert [s.reason for s in report.skipped] == ["known bad frame of NYU Depth V2"]
    assert sum(report.counts.values()) == 1 and MAX_GAP_S > 0


def test_stride_keeps_every_nth_frame_under_its_own_index(tmp_path):
    scene = write_scene(tmp_path, "den_0001", frames=5)
    pack([scene], out=tmp_path / "out", jobs=1, stride=2)
    keys = [entry["key"][-6:] for entry in index_of(tmp_path / "out")]
    assert keys == ["000000", "000002", "000004"]


def test_official_heldout_scenes_never_reach_train_shards(tmp_path):
    for name in ("bookstore_0001a", "bookstore_0001d", "kitchen_0003"):
        write_scene(tmp_path / "raw", name, frames=1)
    report = pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    shards = {entry["key"]: entry["shard"].split("-")[0] for entry in index_of(tmp_path / "out")}
    assert shards.pop("bookstore_0001a-000000") == "heldout"
    assert sorted(shards.values()) == ["train", "val"]
    assert report.counts == {"train": 1, "val": 1, "test": 0, "heldout": 1}


def test_progress_counts_up_to_all_frames(tmp_path):
    scene, seen = write_scene(tmp_path, "den_0001", frames=2), []
    pack([scene], out=tmp_path / "out", jobs=1, progress=lambda *at: seen.append(at))
    assert seen == [(1, 2), (2, 2)]


def test_no_usable_frame_is_an_error_and_leaves_nothing(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=1)
    next(scene.glob("d-*")).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 frames is usable; the first, den_0001/d-13"):
        pack([scene], out=tmp_path / "out", jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_crash_leaves_nothing_and_the_next_run_packs(tmp_path, monkeypatch):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=1)
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "load_frame", lambda item: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack([scene], out=tmp_path / "out", jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "pack.partial").touch()  # what a killed run leaves
    assert sum(pack([scene], out=tmp_path / "out", jobs=1).counts.values()) == 1
    assert not (tmp_path / "out.tmp").exists()


def test_folders_of_others_are_never_touched(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=1)
    for name, message in (("out", "exists and is no pack"), ("new.tmp", "is no unfinished pack")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "diary.txt").write_text("mine")
        with pytest.raises(DataError, match=message):
            pack([scene], out=tmp_path / name.removesuffix(".tmp"), jobs=1)
        assert (tmp_path / name / "diary.txt").read_text() == "mine"


def test_a_scene_given_twice_is_an_error(source):
    with pytest.raises(DataError, match="scene hall_0002: found twice, in .*; give one of them"):
        pack([source, source / "hall_0002"], out=source / "out", jobs=1)


@pytest.mark.parametrize("setting", [{"jobs": 0}, {"shard_size": 0}, {"stride": -1}])
def test_settings_out_of_range_are_refused(source, tmp_path, setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{name}: expected 1 or more, got {value}"):
        pack([source], out=tmp_path / "out", **setting)
