"""What breaks while batches are read: shards, stores, loader processes."""

import hashlib
import os
import signal
import subprocess
import sys
from itertools import islice

import psutil
import pytest
import torch

from llm_mde.data.index import open_index
from llm_mde.data.pixels import depths
from llm_mde.data.plan import Part
from llm_mde.data.samples import Shards
from llm_mde.data.stream import Batches, evaluation_batches
from llm_mde.errors import DataError, StoreError
from tests.support.shards import rows, write_rows, write_shards
from tests.support.streams import BATCH, COUNTS, MICRO, SHAPE, STEPS, batches_of


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_shards(tmp_path_factory.mktemp("shards"), COUNTS)
    return write_shards(made, [5, 2], split="val")


def flip_a_byte(path, entry):
    data = bytearray(path.read_bytes())
    data[entry.offset + entry.size // 2] ^= 1
    path.write_bytes(data)


def cut(path, entry):
    os.truncate(path, entry.offset + entry.size // 2)


def remove(path, entry):
    path.unlink()


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("damage", "cause"),
    [
        (flip_a_byte, "do not match the index's checksum; the shard is damaged, pack again"),
        (cut, "do not match the index's checksum; the shard is damaged, pack again"),
        (remove, "No such file or directory; the index lists it, pack again"),
    ],
)
def test_broken_shard_is_named_with_its_sample(tmp_path, damage, cause, workers):
    write_shards(tmp_path, COUNTS)
    entry = open_index(tmp_path, "train").shards[3][-1]
    damage(tmp_path / entry.shard, entry)
    with pytest.raises(DataError) as caught:
        list(islice(batches_of(tmp_path, workers=workers), 2 * STEPS * BATCH // MICRO))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path / entry.shard}, sample train_0001-")
    assert message.endswith(cause)
    assert "\n" not in message
    if damage is not remove:
        assert f"sample {entry.key}: " in message


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_sample_may_be_blank_in_its_batch(tmp_path, workers):
    write_shards(tmp_path, COUNTS)
    entry = open_index(tmp_path, "train").shards[3][-1]
    steps = 2 * STEPS * BATCH // MICRO
    whole = list(islice(batches_of(tmp_path, workers=workers), steps))
    flip_a_byte(tmp_path / entry.shard, entry)
    got = list(islice(batches_of(tmp_path, workers=workers, blanks=True), steps))
    assert [batch["key"] for batch in got] == [batch["key"] for batch in whole]
    met = 0
    for mine, theirs in zip(got, whole, strict=True):
        hurt = [key == entry.key for key in mine["key"]]
        met += sum(hurt)
        assert len(mine["lost"]) == sum(hurt) and not theirs["lost"]
        assert all(key in why and "checksum" in why for key, why in mine["lost"].items())
        assert not mine["valid"][hurt].any()
        kept = [not one for one in hurt]
        for name in ("image", "depth", "valid"):
            assert torch.equal(mine[name][kept], theirs[name][kept])
    assert met >= 1


def test_a_broken_sample_does_not_count_in_an_evaluation(tmp_path):
    write_shards(tmp_path, [6], split="val")
    index = open_index(tmp_path, "val")
    for at in (1, 4, 5):  # one of two, then a whole batch
        flip_a_byte(tmp_path / index.entries[at].shard, index.entries[at])
    batches = list(evaluation_batches(index, SHAPE, batch=2, part=Part(), blanks=True))
    assert [batch["weight"].tolist() for batch in batches] == [[1, 0], [1, 1], [0, 0]]
    assert [len(batch["lost"]) for batch in batches] == [1, 0, 2]


def test_batches_before_a_broken_sample_arrive(tmp_path):
    write_shards(tmp_path, [6], split="val")
    entry = open_index(tmp_path, "val").entries[5]
    flip_a_byte(tmp_path / entry.shard, entry)
    index = open_index(tmp_path, "val")
    batches = iter(evaluation_batches(index, SHAPE, batch=2, part=Part(), workers=2))
    assert [next(batches)["key"][0][-1] for _ in range(2)] == ["0", "2"]
    with pytest.raises(DataError, match=entry.key):
        next(batches)


def test_sample_that_does_not_decode_is_named(tmp_path):
    write_shards(tmp_path, [1])
    index = open_index(tmp_path, "train")
    path = tmp_path / "train-000000.tar"
    tar = path.read_bytes()
    path.write_bytes(tar.replace(b'{"scene"', b'["scene"'))
    sealed = path.read_bytes()[: index.entries[0].size]
    assert sealed != tar[: len(sealed)]
    line = rows(tmp_path)[0] | {"sha256": hashlib.sha256(sealed).hexdigest()}
    write_rows(tmp_path, [line])
    with pytest.raises(DataError, match="train-000000.tar, sample train_0001-000000: meta.json"):
        list(depths(open_index(tmp_path, "train"), max_depth=10.0))


def test_loader_processes_outlive_the_signals_of_a_launcher(folder):
    batches = iter(batches_of(folder, workers=1))
    keys = [next(batches)["key"]]
    for child in torch.multiprocessing.active_children():
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            os.kill(child.pid, number)
    keys += [next(batches)["key"] for _ in range(12)]
    expected = [batch["key"] for batch in islice(batches_of(folder), 13)]
    assert keys == expected


def test_loader_processes_end_with_a_rank_that_is_killed(folder):
    code = (
        "import sys, time; from tests.support.streams import batches_of\n"
        "batches = iter(batches_of(sys.argv[1], workers=2))\n"
        "next(batches); print('fed', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    ) as rank:
        assert rank.stdout.readline() == "fed\n"
        left = psutil.Process(rank.pid).children(recursive=True)
        assert len(left) >= 3  # a server and two loaders
        rank.kill()
    assert psutil.wait_procs(left, timeout=30)[1] == []


def test_a_program_ends_that_leaves_its_loaders_at_work(folder):
    code = (
        "import sys; from tests.support.streams import batches_of\n"
        "batches = iter(batches_of(sys.argv[1], workers=2)); next(batches)\n"
        "sys.kept = batches"
    )
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True, timeout=60)


def test_a_store_that_is_away_is_no_damaged_sample(folder, monkeypatch):
    def away(*_, **__):
        raise StoreError("nothing came in 8 tries")

    monkeypatch.setattr(Shards, "_span", away)
    with pytest.raises(StoreError, match="nothing came"):
        next(iter(batches_of(folder, blanks=True)))
    index = open_index(folder, "val")
    with pytest.raises(StoreError, match="nothing came"):
        next(iter(evaluation_batches(index, SHAPE, batch=1, part=Part(), blanks=True)))


def test_mistake_of_ours_keeps_its_type():
    def broken():
        raise RuntimeError("a bug")
        yield

    with pytest.raises(RuntimeError, match="a bug"):
        list(Batches(broken, workers=0))
