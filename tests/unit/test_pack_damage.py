"""Packing where files are damaged or missing."""

import numpy as np
import pytest

from llm_mde.data.pack import pack
from llm_mde.errors import DataError
from tests.support.packs import PAIRS, contents, files_of, index_of
from tests.support.rawscene import (
    disparity_image,
    pgm_bytes,
    raw_names,
    write_scene,
)


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
