import errno
import json
import logging
import resource
import shutil

import pytest
import torch

from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.training import checkpoint, state
from llm_mde.training.checkpoint import (
    MANIFEST,
    choose,
    copy_last,
    point_again,
    problem,
    read_state,
    save,
)
from llm_mde.training.folder import check_same


def files(folder):
    (folder / "deep").mkdir()
    for name in ("weights.pt", "deep/moments.pt"):
        (folder / name).write_text(f"{folder.name} {name}")


def write(folder, step, *, best=False, keep=9):
    save(folder, files, step=step, state={"step": step}, best=best, keep=keep)
    return folder / f"step-{step:06d}"


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_checkpoint_is_written_aside_sealed_and_pointed_to(tmp_path):
    (tmp_path / "tmp-step-000002").mkdir()  # left by a crash
    save(tmp_path, files, step=3, state={"a": [1.5]}, best=True, keep=1)
    assert names(tmp_path) == ["best", "last", "step-000003"]
    assert (tmp_path / "best").read_text() == (tmp_path / "last").read_text() == "step-000003\n"
    manifest = json.loads((tmp_path / "step-000003" / MANIFEST).read_text())
    assert manifest["files"]["deep/moments.pt"]["size"] == len("tmp-step-000003 deep/moments.pt")
    assert read_state(tmp_path / "step-000003") == {"a": [1.5]}
    assert problem(tmp_path / "step-000003") is None


def test_the_newest_and_the_best_are_kept(tmp_path):
    for step in (5, 999_999, 1_000_000):
        write(tmp_path, step, best=step == 5, keep=1)
    assert names(tmp_path) == ["best", "last", "step-000005", "step-1000000"]
    assert choose(tmp_path, "auto") == tmp_path / "step-1000000"


def test_a_save_drops_the_later_ones_that_the_run_went_back_behind(tmp_path):
    for step in (2, 4, 6):
        write(tmp_path, step, best=step == 6)
    (tmp_path / "step-000006" / "weights.pt").unlink()
    assert choose(tmp_path, "auto") == tmp_path / "step-000004"
    write(tmp_path, 5, keep=1)
    assert names(tmp_path) == ["last", "step-000005"]


def test_pointers_lost_in_a_kill_are_made_again(tmp_path):
    write(tmp_path, 1, best=True)
    pointers = {"last": "step-000002\n", "best": "step-000001\n"}
    write(tmp_path, 2)
    for lost in pointers:
        (tmp_path / lost).unlink()
    point_again(tmp_path / "step-000002")
    assert {name: (tmp_path / name).read_text() for name in pointers} == pointers
    assert names(tmp_path) == ["best", "last", "step-000001", "step-000002"]


def test_no_checkpoint_starts_a_run(tmp_path):
    assert choose(tmp_path / "nothing", "auto") is None
    write(tmp_path, 1)
    assert choose(tmp_path, "never") is None


def damage_byte(folder):
    (folder / "weights.pt").write_bytes(b"Tmp-step-000002 weights.pt")


def damage_size(folder):
    (folder / "weights.pt").write_bytes(b"")


def lose(folder):
    (folder / "deep" / "moments.pt").unlink()


def lose_manifest(folder):
    (folder / MANIFEST).unlink()


def cut_manifest(folder):
    (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40])


def other_format(folder):
    (folder / MANIFEST).write_text('{"format": "something else"}')


def add_file(folder):
    (folder / "deep" / "code.pt").write_bytes(b"pickle")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damage_byte, "weights.pt differs from manifest.json"),
        (damage_size, "weights.pt differs from manifest.json"),
        (lose, "deep/moments.pt is missing"),
        (lose_manifest, "no manifest.json, so it was not written by this program or not finished"),
        (cut_manifest, "manifest.json is unreadable"),
        (other_format, "expected format 'llm-mde checkpoint 3', got 'something else'"),
        (add_file, "deep/code.pt is not in manifest.json"),
    ],
)
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, caplog, damage, said):
    write(tmp_path, 1)
    damage(write(tmp_path, 2))
    with caplog.at_level(logging.WARNING):
        assert choose(tmp_path, "auto") == tmp_path / "step-000001"
    assert said in caplog.text and "step-000002" in caplog.text
    with pytest.raises(CheckpointError, match="step-000002"):
        choose(tmp_path, str(tmp_path / "step-000002"))


def test_a_run_with_damaged_checkpoints_alone_does_not_start_over(tmp_path):
    lose(write(tmp_path, 1))
    with pytest.raises(CheckpointError, match="no usable checkpoint; start over with --resume"):
        choose(tmp_path, "auto")


def test_best_and_last_name_checkpoints(tmp_path):
    write(tmp_path, 1, best=True)
    write(tmp_path, 2)
    assert choose(tmp_path, str(tmp_path / "best")) == tmp_path / "step-000001"
    assert choose(tmp_path, str(tmp_path / "last")) == tmp_path / "step-000002"
    with pytest.raises(CheckpointError, match="nowhere: no manifest.json"):
        choose(tmp_path, str(tmp_path / "nowhere"))


def test_a_disk_that_is_full_for_tensors_is_said_as_for_any_file(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OSError, match="weights.safetensors: .*File too large"):
            state._save({"a": torch.zeros(10_000)}, tmp_path / "weights.safetensors", {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("moment", ["files", "manifest"])
def test_a_full_disk_leaves_the_checkpoints_before_as_they_were(tmp_path, monkeypatch, moment):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    def half(folder):
        files(folder)
        full()

    before = write(tmp_path, 1)
    if moment == "manifest":
        monkeypatch.setattr(checkpoint, "_seal", full)
    with pytest.raises(CheckpointError, match="can't save step 2: .*No space left.*; make room"):
        save(tmp_path, half if moment == "files" else files, step=2, state={}, best=True, keep=1)
    assert names(tmp_path) == ["last", "step-000001"]
    assert choose(tmp_path, "auto") == before


def test_the_newest_is_copied_from_a_run_that_goes_on(tmp_path):
    own, other = tmp_path / "own", tmp_path / "other"
    for step in (2, 4):
        write(own, step, best=step == 2)
    other.mkdir()
    copy_last(own, other)
    assert names(other) == ["last", "step-000004"]
    assert choose(other, "auto") == other / "step-000004" and names(own)[0] == "best"


def test_a_copy_that_was_pruned_under_way_is_made_of_the_next_one(tmp_path, monkeypatch):
    own, other = tmp_path / "own", tmp_path / "other"
    write(own, 2)
    other.mkdir()
    copytree = shutil.copytree

    def pruned(source, target):
        monkeypatch.setattr(checkpoint.shutil, "copytree", copytree)
        copytree(source, target)
        (target / "weights.pt").unlink()
        write(own, 3, keep=1)

    monkeypatch.setattr(checkpoint.shutil, "copytree", pruned)
    copy_last(own, other)
    assert names(other) == ["last", "step-000003"] and problem(other / "step-000003") is None


def test_a_run_without_a_checkpoint_is_waited_for_not_for_ever(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint came in 0.3 s"):
        copy_last(tmp_path, tmp_path / "other", patience_s=0.3)


def test_settings_that_change_in_a_run_are_refused_unless_asked_for(tmp_path):
    before = {"optim.lr": 1e-4, "model.vit.lora.r": 8, "data.workers": 2}
    check_same(tmp_path, before, before | {"data.workers": 0})  # moves no number
    slower = before | {"optim.lr": 1e-5}
    with pytest.raises(ConfigError, match=r"optim\.lr was 0\.0001, now 1e-05.*--change-settings"):
        check_same(tmp_path, before, slower)
    check_same(tmp_path, before, slower, changes=True)
    for changes in (False, True):
        with pytest.raises(ConfigError, match=r"lora\.r was 8, now 4") as refused:
            check_same(tmp_path, before, before | {"model.vit.lora.r": 4}, changes=changes)
        assert "--change-settings" not in str(refused.value)
