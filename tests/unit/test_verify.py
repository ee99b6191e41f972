"""Shards against their index, key lists and manifest."""

import json
import os
import tracemalloc
import uuid

import numpy as np
import pytest

from llm_mde.data import members as members_module
from llm_mde.data import record, scan
from llm_mde.data.folder import ShardFolder
from llm_mde.data.verify import verify
from llm_mde.errors import DataError
from tests.support.shards import row, rows, seal, write_pack, write_rows, write_shards
from tests.support.verifying import LAST, SHARD, only, problems, sample


@pytest.fixture
def folder(tmp_path):
    return write_pack(tmp_path / "pack")


def test_sound_pack_has_no_problem_and_its_numbers(folder):
    calls = []
    report = verify(folder, progress=lambda done, total: calls.append((done, total)))
    assert (report.problems, report.found) == ((), 0)
    assert report.samples == {"train": 5, "val": 2, "test": 1, "heldout": 0}
    assert report.shards == 4
    assert report.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert calls == [(n, 8) for n in range(1, 9)]
    last = report.lines()[-1]
    assert last.startswith(
        f"{folder}: no problems; decoded 8 samples (train 5, val 2, test 1) of 4"
    )
    assert json.loads(json.dumps(report.payload()))["samples"]["val"] == 2


def test_flipped_byte_is_named_with_its_sample(folder):
    line = rows(folder)[3]
    content = bytearray((folder / SHARD).read_bytes())
    content[line["offset"] + 600] ^= 4
    (folder / SHARD).write_bytes(content)
    found = only(folder)
    assert found.startswith(f"DIR/{SHARD}, sample office_0001-000003: sha256: expected ")
    assert f"expected {line['sha256']}, got " in found


def test_flipped_byte_behind_the_samples_changes_the_shards_checksum(folder):
    content = bytearray((folder / SHARD).read_bytes())
    content[-700] ^= 4  # the first of the two empty blocks
    (folder / SHARD).write_bytes(content)
    assert f"DIR/{SHARD}, byte {len(content) - 1024}: expected the end, index.jsonl " in only(
        folder
    )
    content[-700] ^= 4
    content[-100] ^= 4  # and the second one
    (folder / SHARD).write_bytes(content)
    assert "got something behind the end" in only(folder)


def test_other_shard_than_the_manifest_says_is_found(folder):
    manifest = json.loads((folder / "pack.json").read_text())
    manifest["shards"][SHARD]["sha256"] = "0" * 64
    (folder / "pack.json").write_text(json.dumps(manifest))
    assert only(folder).startswith(f"DIR/{SHARD}: sha256: expected {'0' * 64}, got ")


def test_truncated_shard_says_where_and_how_many_samples_are_lost(folder):
    line = rows(folder)[3]
    os.truncate(folder / SHARD, line["size"] - 10)
    found = problems(folder)
    assert len(found) == 2
    assert f"{SHARD}, sample office_0001-000003: expected to end at byte {line['size']}" in found[0]
    assert f"got the end of the shard at {line['size'] - 10}; 2 samples are cut off" in found[0]
    assert f"{SHARD}: bytes: expected " in found[1]


def test_shard_without_its_end_is_truncated(folder):
    path = folder / SHARD
    os.truncate(path, path.stat().st_size - 512)
    found = problems(folder)
    assert "expected two empty blocks at its end, got 512 bytes" in found[0]
    assert f"{SHARD}: bytes: expected " in found[1]


def test_missing_and_extra_shards_are_named(folder):
    (folder / SHARD).rename(folder / "train-000007.tar")
    found = problems(folder)
    assert len(found) == 2
    assert found[0].startswith(f"{folder}/train-000007.tar: expected a shard of pack.json")
    assert found[1] == f"{folder}/{SHARD}: not found"


def test_key_twice_in_the_index_is_named(folder):
    lines = rows(folder)
    write_rows(folder, [*lines[:5], lines[4], *lines[5:]])
    seal(folder)
    found = problems(folder)
    assert f"index.jsonl, line 6: sample {LAST}: expected once, got twice" in found[0]
    assert any(f"{SHARD}, sample {LAST}: expected at byte" in line for line in found)


def test_changed_index_is_found_with_its_broken_lines(folder):
    path = folder / "index.jsonl"
    path.write_text(path.read_text() + '{"key": "a/b"}\n')
    found = problems(folder)
    assert f"{path}: sha256: expected " in found[0]
    assert found[1] == f"{path}: samples: expected 8, got 9"
    assert f"{path}, line 9: expected key, shard, offset, size, sha256" in found[2]
    path.unlink()
    assert problems(folder)[0] == f"{path}: not found"


def test_index_of_an_unlisted_shard_is_found(folder):
    manifest = json.loads((folder / "pack.json").read_text())
    del manifest["shards"][SHARD]
    (folder / "pack.json").write_text(json.dumps(manifest))
    found = "\n".join(problems(folder)).replace(str(folder), "DIR")
    assert f"DIR/{SHARD}: expected a shard of pack.json; remove it" in found
    assert "DIR/index.jsonl: sample office_0001-000003: expected a shard of pack.json" in found
    assert "DIR/pack.json: train shards: expected 2, got 1" in found
    assert "DIR/pack.json: train samples: expected 5, got 3" in found


def test_counts_of_the_manifest_are_compared(folder):
    manifest = json.loads((folder / "pack.json").read_text())
    manifest["samples"] = 9
    manifest["splits"]["val"]["samples"] = 3
    manifest["shards"][SHARD] |= {"samples": 4, "bytes": 5}
    manifest["lists"]["few"]["samples"] = 4
    manifest["lists"]["gone"] = {"samples": 1}
    manifest["lists"]["none"] = {"samples": 0, "note": "no such scene"}
    (folder / "pack.json").write_text(json.dumps(manifest))
    found = [line.replace(f"{folder}/", "") for line in problems(folder)]
    size = (folder / SHARD).stat().st_size
    assert found == [
        "index.jsonl: samples: expected 9, got 8",
        "pack.json: train samples: expected 5, got 7",
        "pack.json: val samples: expected 3, got 2",
        f"{SHARD}: samples: expected 4, got 2",
        f"{SHARD}: bytes: expected 5, got {size}",
        "splits/few.txt: keys of pack.json: expected 4, got 2",
        "splits/val.txt: keys of pack.json: expected 3, got 2",
        "splits/gone.txt: expected 1 keys, got no such file",
    ]


def test_key_lists_are_compared_with_the_shards(folder):
    (folder / "splits" / "few.txt").write_text("office_0001-000001\nnobody-000001\n")
    (folder / "splits" / "val.txt").write_text("study_0002-000000\noffice_0001-000000\n")
    found = [line.replace(f"{folder}/splits/", "") for line in problems(folder)]
    assert found == [
        "few.txt: sample 'nobody-000001': expected a key of index.jsonl",
        "val.txt: sample 'office_0001-000000': split of its shard: expected val, got train",
    ]
    (folder / "splits" / "val.txt").write_text("study_0002-000000\n" * 2)
    (folder / "splits" / "few.txt").write_bytes(b"\xff")
    found = [line.replace(f"{folder}/splits/", "") for line in problems(folder)]
    assert found[0].startswith("few.txt: expected a key a line (")
    assert found[1] == "val.txt: sample 'study_0002-000000': expected once, got 2 times"
    (folder / "splits" / "val.txt").write_text("study_0002-000000\n")
    assert "val.txt: keys of its shards: expected 2, got 1" in "\n".join(problems(folder))


def test_places_of_train_and_val_and_scenes_of_test_are_apart(tmp_path):
    write_shards(tmp_path, [2], split="train", scene="office_0001a")
    write_shards(tmp_path, [2], split="val", scene="office_0001b")
    write_shards(tmp_path, [2], split="heldout", scene="office_0001c")  # a part may be held out
    expected = "expected in one of train and val, got office_0001a-000000 and office_0001b-000000"
    assert only(seal(tmp_path)) == f"DIR: group 'office_0001': {expected}"
    other = tmp_path / "other"
    write_shards(other, [2], split="train", scene="office_0001a")
    path = other / "splits" / "train.txt"
    key, made = sample(7, "office_0001a")
    span = record.tar_span("labeled-000007", made)
    (other / "test-000000.tar").write_bytes(span + bytes(1024))
    write_rows(other, [*rows(other), row("labeled-000007", "test-000000.tar", 0, span)])
    path.with_name("test.txt").write_text("labeled-000007\n")
    expected = "expected in one of train and test, got office_0001a-000000 and labeled-000007"
    assert only(seal(other)) == f"DIR: scene 'office_0001a': {expected}"


def test_shard_in_which_no_frame_was_usable_is_sound(folder):
    (folder / "train-000002.tar").write_bytes(bytes(10240))
    assert problems(seal(folder)) == []


def test_all_problems_are_counted_and_the_first_are_kept(folder, monkeypatch):
    monkeypatch.setattr(scan, "SHOWN", 3)
    (folder / "splits" / "few.txt").write_text("".join(f"x-{n}\n" for n in range(9)))
    report = verify(folder)
    assert (len(report.problems), report.found) == (3, 10)
    assert report.lines()[3] == "and 7 more problems"
    assert ": 10 problems; " in report.lines()[4]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"{", "expected JSON with a format_version"),
        (b"\xff", "expected JSON with a format_version"),
        (b"[]", "expected JSON with a format_version"),
        (b"[" * 100_000, "expected JSON with a format_version"),
        (b'{"format_version": 1}', "format_version 1, expected 2; pack again"),
        (b'{"format_version": 2}', "expected an object shards"),
        (b'{"format_version": 2, "shards": {"a": 1}}', "shards: 'a' has no numbers"),
        (
            b'{"format_version": 2, "shards": {}, "splits": {}, "lists": {}, "samples": -1}',
            "expected samples and index_sha256",
        ),
    ],
)
def test_unreadable_manifest_is_a_mistake(folder, content, problem):
    (folder / "pack.json").write_bytes(content)
    with pytest.raises(DataError) as caught:
        verify(folder)
    assert str(caught.value).startswith(f"{folder}/pack.json: {problem}")


def test_folder_that_is_no_finished_pack_is_a_mistake(folder):
    (folder / "unfinished").mkdir()
    (folder / "unfinished" / "plan.json").write_text("{}")
    with pytest.raises(DataError, match="an unfinished pack; run the same 'llm-mde pack' command"):
        verify(folder)
    with pytest.raises(DataError, match="no pack.json found, expected a folder written by"):
        verify(folder / "splits")


def test_pack_behind_a_url_is_verified(folder):
    url = f"memory://{uuid.uuid4().hex}/pack"
    remote = ShardFolder(url)
    for path in folder.rglob("*"):
        if path.is_file():
            remote.write(path.relative_to(folder).as_posix(), path.read_bytes())
    assert verify(url).lines()[-1].startswith(f"{url}: no problems; decoded 8 samples")
    remote.remove(SHARD)
    assert problems(url) == [f"{url}/{SHARD}: not found"]


def test_fuzzed_packs_end_in_a_report_or_a_mistake(folder):
    random = np.random.default_rng(7)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for _ in range(60):
        path = files[random.integers(len(files))]
        before = path.read_bytes()
        changed = bytearray(before)
        for at in random.integers(0, len(changed), random.integers(1, 20)):
            changed[at] ^= 1 << int(random.integers(8))
        path.write_bytes(changed)
        try:
            assert verify(folder).found
        except DataError:
            assert path.name == "pack.json"
        path.write_bytes(before)


def test_memory_does_not_grow_with_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(members_module, "CHUNK_BYTES", 2**16)

    def peak(samples):
        folder = seal(write_shards(tmp_path / str(samples), [samples] * 2, size=(120, 160)))
        tracemalloc.start()
        assert verify(folder).found == 0
        used = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return used

    peak(1)
    few, many = peak(4), peak(128)
    assert (tmp_path / "128" / "train-000000.tar").stat().st_size > 1_000_000
    assert many < few + 300_000  # the index of 248 more samples
