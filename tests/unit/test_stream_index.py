"""The index that batches are read by, and the shards behind it."""

import os
import pickle

import pytest

from llm_mde.data import samples as samples_module
from llm_mde.data.index import open_index
from llm_mde.data.samples import Shards
from llm_mde.errors import DataError
from tests.support.shards import write_shards
from tests.support.streams import COUNTS


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_shards(tmp_path_factory.mktemp("shards"), COUNTS)
    return write_shards(made, [5, 2], split="val")


def test_unknown_split_names_those_there_are(folder):
    with pytest.raises(DataError, match="no split 'tarin', this folder has: train, val$"):
        open_index(folder, "tarin")


def test_folder_without_index_is_no_pack(tmp_path):
    with pytest.raises(DataError, match="no index.jsonl found, expected a folder written by"):
        open_index(tmp_path, "train")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ("{", "line 1: expected key, shard, offset, size, sha256"),
        ("[]", "line 1: expected key, shard, offset, size, sha256"),
        ('{"key": "a"}', "line 1: expected key, shard, offset, size, sha256"),
        (
            '{"key": "a", "shard": "../b.tar", "offset": 0, "size": 1, "sha256": ""}',
            "line 1: expected a tar of this folder, got '../b.tar'",
        ),
        (
            '{"key": "a", "shard": "b.tar", "offset": -1, "size": 1, "sha256": ""}',
            "line 1: expected offset and size in bytes, 0 or more",
        ),
        (
            '{"key": "a", "shard": "b.tar", "offset": 0, "size": 1e15, "sha256": ""}',
            "line 1: expected offset and size in bytes, 0 or more",
        ),
        (
            '{"key": "a", "shard": "b.tar", "offset": 0, "size": 10000000000000, "sha256": ""}',
            "line 1: 10000000000000 bytes, expected at most",
        ),
        (
            '{"key": "a", "shard": 3, "offset": 0, "size": 1, "sha256": ""}',
            "line 1: expected key, shard and sha256 as text",
        ),
    ],
)
def test_damaged_index_names_the_line(tmp_path, row, problem):
    write_shards(tmp_path, [1])
    (tmp_path / "index.jsonl").write_text(row + "\n")
    with pytest.raises(DataError) as caught:
        open_index(tmp_path, "train")
    assert str(caught.value).startswith(f"{tmp_path}/index.jsonl, {problem}")


def test_split_with_unknown_keys_or_none_is_refused(tmp_path):
    write_shards(tmp_path, [2])
    listed = tmp_path / "splits" / "train.txt"
    listed.write_text(listed.read_text() + "another-000001\n")
    with pytest.raises(DataError, match="train.txt: lists 3 keys, index.jsonl holds 2 of them"):
        open_index(tmp_path, "train")
    listed.write_text("")
    with pytest.raises(DataError, match="the split is empty; this folder has samples in: no split"):
        open_index(tmp_path, "train")


def test_spread_takes_evenly_spaced_samples(folder):
    index = open_index(folder, "train")
    keys = [entry.key for entry in index.entries]
    assert [entry.key for entry in index.spread(3).entries] == [keys[0], keys[11], keys[22]]
    assert index.spread(1000) == index


def test_shards_keep_few_files_open_and_travel_without_them(folder, monkeypatch):
    monkeypatch.setattr(samples_module, "OPEN_SHARDS", 2)
    index = open_index(folder, "train")
    shards = Shards(folder)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        for entries in index.shards:
            assert shards.read(entries[0])["__key__"] == entries[0].key
    assert len(os.listdir("/proc/self/fd")) == before + 2
    other = pickle.loads(pickle.dumps(shards))
    shards.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert other.read(index.entries[0])["__key__"] == index.entries[0].key
