"""A pack: what lies in it, and that the same input gives the same bytes."""

import hashlib
import json
import tarfile
from collections import Counter

import pytest

from llm_mde.data import record
from llm_mde.data.layout import PackSettings
from llm_mde.data.pack import pack
from llm_mde.errors import ConfigError, DataError
from tests.support.packs import PAIRS, contents, files_of, index_of
from tests.support.rawscene import (
    raw_names,
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
    report = pack([source], out=out, jobs=1, settings=PAIRS)
    return out, report


def test_report_and_manifest_count_every_frame(packed):
    out, report = packed
    manifest = json.loads((out / "pack.json").read_text())
    assert sum(report.counts.values()) == sum(SCENES.values()) == manifest["samples"]
    assert {row["name"]: row["samples"] for row in manifest["scenes"]} == SCENES
    assert manifest["format_version"] == 2
    assert report.verdicts == manifest["verdicts"] == {"ok": 18}
    index = (out / "index.jsonl").read_bytes()
    assert manifest["index_sha256"] == hashlib.sha256(index).hexdigest()
    for name, shard in manifest["shards"].items():
        assert shard["bytes"] == (out / name).stat().st_size
        assert shard["sha256"] == hashlib.sha256((out / name).read_bytes()).hexdigest()
    assert report.lines()[0].startswith(f"packed 6 samples into {out}: train ")
    assert not (out / "unfinished").exists()


def test_every_input_file_has_a_line_with_its_size_and_verdict(packed, source):
    rows = files_of(packed[0])
    on_disk = {
        path.relative_to(source).as_posix(): path.stat().st_size
        for path in source.rglob("*.*")
        if path.name != "INDEX.txt"
    }
    assert {name: row["bytes"] for name, row in rows.items()} == on_disk
    assert {row["verdict"] for row in rows.values()} == {"ok"}


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
    pack([source], out=tmp_path / "shards", jobs=2 if how == "two jobs" else 1, settings=PAIRS)
    assert contents(tmp_path / "shards") == contents(packed[0])


def test_packing_into_a_finished_pack_changes_nothing(packed, source):
    out, before = packed[0], contents(packed[0])
    report = pack([source], out=out, jobs=1, settings=PAIRS)
    assert report.already_packed and report.counts == packed[1].counts
    assert contents(out) == before
    with pytest.raises(DataError, match="holds a pack with shard_size 2, asked for 3"):
        pack([source], out=out, jobs=1, settings=PackSettings(shard_size=3))


def test_another_input_is_not_taken_for_already_packed(packed, source):
    with pytest.raises(DataError, match="holds a pack of other input files"):
        pack([source / "hall_0002"], out=packed[0], jobs=1, settings=PAIRS)


def test_a_mended_file_is_another_input(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=2)
    whole = (scene / raw_names(1)[0]).read_bytes()
    (scene / raw_names(1)[0]).write_bytes(whole[:1000])
    pack([scene], out=tmp_path / "out", jobs=1, max_lost=1)
    (scene / raw_names(1)[0]).write_bytes(whole)
    with pytest.raises(DataError, match="holds a pack of other input files"):
        pack([scene], out=tmp_path / "out", jobs=1)


def test_a_scene_given_twice_is_an_error(source, tmp_path):
    with pytest.raises(DataError, match="scene hall_0002: found twice, .*; give one of them"):
        pack([source, source / "hall_0002"], out=tmp_path / "out", jobs=1)


@pytest.mark.parametrize("setting", [{"shard_size": 0}, {"stride": -1}])
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{name}: expected 1 or more, got {value}"):
        PackSettings(**setting)
