import hashlib
import json
import os
import subprocess
import sys
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from llm_mde.data import pack as pack_module
from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.layout import PackSettings, lay_out
from llm_mde.data.pack import pack
from llm_mde.data.sources import collect
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.aligned import Pattern
from tests.support.mat import write as write_mat
from tests.support.rawscene import (
    disparity_image,
    pgm_bytes,
    raw_names,
    write_scene,
    zip_scenes,
)

SCENES = {"den_0001a": 2, "den_0001b": 1, "hall_0002": 1, "attic_0003": 2}
PAIRS = PackSettings(shard_size=2)
TINY = Pattern("{scene}/rgb_{index}.png", "{scene}/depth_{index}.png")


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


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Four scenes of five ready-made pairs of 24x32 pixels: quick to pack."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for scene in ("den_1", "den_2", "hall_3", "attic_4"):
        (root / scene).mkdir()
        for index in range(5):
            rgb = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            depth = rng.integers(500, 5000, (24, 32)).astype(np.uint16)
            Image.fromarray(rgb).save(root / scene / f"rgb_{index}.png")
            Image.fromarray(depth).save(root / scene / f"depth_{index}.png")
    return root


def pack_tiny(tiny: Path, out: Path | str, **words):
    return pack([tiny], out=out, pattern=TINY, settings=PAIRS, **{"jobs": 1} | words)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the report, which tells the speed of its run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.stem != "report"
    }


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, dict]:
    rows = map(json.loads, (folder / "files.jsonl").read_text().splitlines())
    return {f"{row['scene']}/{row['file']}": row for row in rows}


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


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Five frames, four of them damaged in four ways, and an RGB image that nothing needs."""
    scene = write_scene(tmp_path_factory.mktemp("damaged"), "den_0001", frames=5)
    (scene / raw_names(1)[0]).write_bytes(pgm_bytes(disparity_image(0))[:1000])
    (scene / raw_names(2)[1]).write_bytes(b"")
    (scene / raw_names(3)[0]).write_bytes(pgm_bytes(np.full((480, 640), 2047)))
    (scene / raw_names(900)[0]).write_bytes(pgm_bytes(disparity_image(0)))
    (scene / raw_names(3)[1].replace("r-", "r-1")).write_bytes(b"far away")
    return scene


def test_bad_frames_are_skipped_and_every_file_has_its_verdict(damaged, tmp_path):
    report = pack([damaged], out=tmp_path / "out", jobs=1, max_lost=1)
    keys = [entry["key"] for entry in index_of(tmp_path / "out")]
    assert keys == ["den_0001-000000", "den_0001-000004"]  # indices count the skipped frames
    rows = files_of(tmp_path / "out")
    verdicts = {
        name.removeprefix("den_0001/"): (row["verdict"], row["reason"])
        for name, row in rows.items()
        if row["verdict"] != "ok"
    }
    verdict, reason = verdicts.pop(raw_names(1)[0])
    assert verdict == "truncated" and "got 1000 (truncated)" in reason
    assert verdicts.pop(raw_names(2)[1])[0] == "empty"
    assert verdicts.pop(raw_names(3)[0]) == ("empty", "no pixel has a reading")
    verdict, reason = verdicts.pop(raw_names(900)[0])
    assert verdict == "unpaired" and reason.startswith("depth and rgb are ")
    assert {verdict for verdict, _ in verdicts.values()} == {"unpaired"}
    assert len(rows) == 17 and sum(report.verdicts.values()) == 17
    assert any(
        line.startswith(f"skipped den_0001/{raw_names(1)[0]}: truncated: ")
        for line in report.lines()
    )


def test_a_damaged_file_ends_the_run_where_that_is_asked_for(damaged, tmp_path):
    with pytest.raises(DataError, match=rf"{raw_names(1)[0]}: truncated: .*--on-corrupt skip"):
        pack([damaged], out=tmp_path / "out", jobs=1, on_corrupt="raise")
    assert not (tmp_path / "out" / "pack.json").exists()


def test_too_many_lost_frames_end_the_run_and_a_higher_cap_continues(damaged, tmp_path):
    with pytest.raises(DataError, match=r"3 of 6 frames cannot be used, more than .* 0\.4 that"):
        pack([damaged], out=tmp_path / "out", jobs=1, max_lost=0.4)
    assert not (tmp_path / "out" / "pack.json").exists()
    report = pack([damaged], out=tmp_path / "out", jobs=1, max_lost=0.5)
    assert sum(report.counts.values()) == 2


@pytest.mark.parametrize("cut", [1000, 614417])
def test_mended_files_are_packed_when_an_unfinished_pack_goes_on(tmp_path, cut):
    """Whether the file was cut short, or damaged at its full size; whole shards stay."""
    scene = write_scene(tmp_path / "raw", "den_0001", frames=4)
    path = scene / raw_names(3)[0]
    whole = path.read_bytes()
    path.write_bytes((b"x" * len(whole))[:cut])
    with pytest.raises(DataError, match="1 of 4 frames cannot be used"):
        pack([scene], out=tmp_path / "out", jobs=1, settings=PAIRS)
    path.write_bytes(whole)
    first = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns
    assert sum(pack([scene], out=tmp_path / "out", jobs=1, settings=PAIRS).counts.values()) == 4
    kept = (tmp_path / "out" / "train-000000.tar").stat().st_mtime_ns == first
    assert kept == (cut == 614417)  # another size: the scene's shards are written anew
    pack([scene], out=tmp_path / "whole", jobs=1, settings=PAIRS)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_finished_pack_with_damaged_files_is_no_answer_to_raise(damaged, tmp_path):
    pack([damaged], out=tmp_path / "out", jobs=1, max_lost=1)
    with pytest.raises(DataError, match="packed before with damaged files left out"):
        pack([damaged], out=tmp_path / "out", jobs=1, on_corrupt="raise")


def test_another_meaning_of_the_files_is_another_pack(tmp_path, tiny):
    pack_tiny(tiny, tmp_path / "out")
    other = Pattern(TINY.rgb, TINY.depth, depth_scale=5000)
    with pytest.raises(DataError, match="holds a pack with pattern .*1000.0.*5000"):
        pack([tiny], out=tmp_path / "out", pattern=other, settings=PAIRS, jobs=1)


def test_a_shard_that_vanished_is_written_again(tmp_path, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack_tiny(tiny, tmp_path / "out")
    (tmp_path / "out" / "train-000000.tar").unlink()
    (tmp_path / "out" / "train-000099.tar").write_bytes(b"of a longer plan")
    pack_tiny(tiny, tmp_path / "out")
    pack_tiny(tiny, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_the_first_moments_of_a_killed_run_leave_is_no_hindrance(tmp_path, tiny):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    (tmp_path / "out" / "unfinished" / ".plan.json.0a1b.tmp").write_text("{")
    assert sum(pack_tiny(tiny, tmp_path / "out").counts.values()) == 20


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


def test_nothing_usable_is_an_error(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=1)
    (scene / raw_names(0)[0]).write_bytes(b"")
    with pytest.raises(DataError, match=r"none of 1 frames is usable; one of them, den_0001/d-.*"):
        pack([scene], out=tmp_path / "out", jobs=1, max_lost=1)


def test_frames_whose_partners_are_too_far_away_make_no_empty_pack(tmp_path):
    scene = write_scene(tmp_path / "raw", "den_0001", frames=1)
    (scene / raw_names(0)[1]).rename(scene / raw_names(900)[1])  # 30 s later
    for _ in range(2):  # what the first attempt left must not count as done
        with pytest.raises(
            DataError, match="none of 1 frames is usable; one of them, .*: unpaired: "
        ):
            pack([scene], out=tmp_path / "out", jobs=1)
    assert not (tmp_path / "out" / "pack.json").exists()


def test_listed_files_that_are_not_there_count_as_lost(tmp_path):
    folder = tmp_path / "den_1"
    folder.mkdir()
    chosen = tmp_path / "list.txt"
    chosen.write_text("den_1/rgb_00001.jpg den_1/sync_depth_00001.png 518.8579\n")
    with pytest.raises(DataError, match=r"1 of 1 frames cannot be used.*missing: listed, but not"):
        pack([tmp_path], out=tmp_path / "out", jobs=1, list_file=chosen)
    with pytest.raises(DataError, match="none of 1 frames is usable; one of them, den_1/"):
        pack([tmp_path], out=tmp_path / "out", jobs=1, list_file=chosen, max_lost=1)


def test_a_scene_without_rgb_costs_that_scene_only(tmp_path):
    whole, half = (write_scene(tmp_path / "raw", f"den_000{n}", frames=1) for n in (1, 2))
    (half / raw_names(0)[1]).unlink()
    report = pack([tmp_path / "raw"], out=tmp_path / "out", jobs=1)
    assert sum(report.counts.values()) == 1
    row = files_of(tmp_path / "out")[f"den_0002/{raw_names(0)[0]}"]
    assert (row["verdict"], row["reason"]) == ("unpaired", "no frame uses it")
    (whole / raw_names(0)[1]).unlink()
    with pytest.raises(
        DataError, match=r"no frame with both RGB and depth in any scene \(2 looked"
    ):
        pack([tmp_path / "raw"], out=tmp_path / "none", jobs=1)


def test_folders_of_others_are_never_touched(tmp_path, tiny):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match=r"exists and is no pack \(it holds diary\.txt\)"):
        pack_tiny(tiny, tmp_path / "out")
    assert contents(tmp_path / "out") == {"diary.txt": b"mine"}


def test_two_processes_never_pack_into_one_folder(tmp_path, tiny):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    plan = lay_out(collect([tiny], pattern=TINY), PAIRS).settings
    (tmp_path / "out" / "unfinished" / "plan.json").write_text(json.dumps(plan))
    with (
        FileLock(tmp_path / "out" / "unfinished" / "lock"),
        pytest.raises(DataError, match="another process is packing into it"),
    ):
        pack_tiny(tiny, tmp_path / "out")


class Killed(BaseException):
    """What a kill looks like from inside: no handler runs."""


@pytest.mark.parametrize("moment", ["before a file has its name", "after a file has its name"])
def test_stopped_at_any_file_it_continues_to_the_same_bytes(tmp_path, tiny, monkeypatch, moment):
    """Stops at the first, second, third ... file written, each run continuing the one before."""
    pack_tiny(tiny, tmp_path / "whole")
    replace, rename, stops, finished = Path.replace, [], 0, {}

    def stop(path: Path, target: Path) -> Path:
        rename.append(target)
        if len(rename) == stops + 1 and moment.startswith("before"):
            raise Killed
        done = replace(path, target)
        if len(rename) == stops + 1:
            raise Killed
        return done

    monkeypatch.setattr(Path, "replace", stop)
    out = tmp_path / "out"
    while not (out / "pack.json").exists():
        rename.clear()
        try:
            pack_tiny(tiny, out)
        except Killed:
            stops += 1
        notes = {path.stem for path in (out / "unfinished").glob("*.tar.json")}
        for name in notes:
            when = (out / name).stat().st_mtime_ns
            assert finished.setdefault(name, when) == when, f"{name} was written again"
        assert stops < 60
    monkeypatch.undo()
    pack_tiny(tiny, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert stops >= 10


def test_a_full_disk_is_said_and_the_same_command_continues(tmp_path, tiny):
    """A limit on the size of files stands for the full disk: the same error on writing."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from llm_mde.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["pack", str(tiny), "--rgb", TINY.rgb, "--depth", TINY.depth, "--shard-size", "2"]
    words += ["--jobs", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "train-000000.tar: cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert "the same command continues" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == []
    pack_tiny(tiny, tmp_path / "out")
    pack_tiny(tiny, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_object_store_holds_the_same_files(tmp_path, tiny):
    pack_tiny(tiny, tmp_path / "local")
    url = f"memory://bucket-{os.getpid()}/nyu"
    assert not pack_tiny(tiny, url, jobs=2).already_packed
    stored = ShardFolder(url)
    names = [name for name in stored.names() if not name.startswith("report")]
    assert {name: stored.read(name) for name in names} == contents(tmp_path / "local")
    assert pack_tiny(tiny, url).already_packed


@pytest.mark.parametrize("url", ["ftp://host/nyu", "simplecache::s3://bucket/nyu", "github://a/b"])
def test_other_schemes_are_refused(tiny, url):
    with pytest.raises(ConfigError, match="expected a folder or a URL with one of file://, s3://"):
        pack_tiny(tiny, url)


def test_a_scene_given_twice_is_an_error(source, tmp_path):
    with pytest.raises(DataError, match="scene hall_0002: found twice, .*; give one of them"):
        pack([source, source / "hall_0002"], out=tmp_path / "out", jobs=1)


@pytest.mark.parametrize("setting", [{"shard_size": 0}, {"stride": -1}])
def test_settings_out_of_range_are_refused(setting):
    ((name, value),) = setting.items()
    with pytest.raises(ConfigError, match=f"{name}: expected 1 or more, got {value}"):
        PackSettings(**setting)


def test_jobs_and_cap_out_of_range_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="jobs: expected 1 or more, got 0"):
        pack_tiny(tiny, tmp_path / "out", jobs=0)
    with pytest.raises(ConfigError, match="max_lost: expected a share from 0 to 1, got 2"):
        pack_tiny(tiny, tmp_path / "out", max_lost=2)


def test_the_labelled_file_goes_with_pairs_of_any_names(tmp_path, tiny):
    inputs = collect([tiny, write_mat(tmp_path / "labeled.mat")], pattern=TINY)
    assert {scene.source for scene in inputs.scenes} == {"pattern", "nyu_labeled"}
    assert inputs.test_scenes == {"kitchen_0004a"}


def test_an_object_store_that_does_not_answer_is_no_empty_one(monkeypatch, tiny):
    folder = ShardFolder("memory://bucket/silent")

    def gone(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(folder._remote()), "info", gone)
    with pytest.raises(DataError, match=r"pack\.json: cannot be read \(no route to host\)"):
        pack_tiny(tiny, str(folder))
