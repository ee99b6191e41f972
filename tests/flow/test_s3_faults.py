"""Training from an object store over a network that breaks, seeded: the batches of the disk."""

import os
import random
import re
import threading
import time
from collections import Counter
from itertools import islice

import pytest
import s3fs
import torch

from llm_mde.config import AugmentConfig
from llm_mde.data import samples, store
from llm_mde.data.cache import DiskCache
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.samples import Shards
from llm_mde.data.stream import evaluation_batches, training_batches
from llm_mde.data.verify import verify
from llm_mde.errors import DataError
from tests.support.faults import Faults, faulty_s3
from tests.support.shards import seal, write_shards

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
URL = "s3://faulty/nyu/pack"
SHAPE = Shape((16, 24), "bicubic", 10.0)
EPOCH = 5  # batches: 21 samples, 4 a batch
SAMPLES = 21 + 3


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = write_shards(tmp_path_factory.mktemp("pack"), [9, 5, 7], size=(240, 320))
    return seal(write_shards(folder, [3], split="val", size=(240, 320)))


@pytest.fixture(scope="module")
def proxy(local):
    with faulty_s3() as faults:
        for path in local.rglob("*"):
            if path.is_file():
                ShardFolder(URL).write(path.relative_to(local).as_posix(), path.read_bytes())
        ShardFolder(URL).write("large", content())
        yield faults


@pytest.fixture
def faults(proxy, monkeypatch):
    """No fault yet, nothing served yet, short pauses, little read ahead."""
    fresh = Faults()
    for name in ("share", "kinds", "latency_s", "stall_s", "draw"):
        setattr(proxy, name, getattr(fresh, name))
    proxy.served.clear()
    monkeypatch.setattr(samples, "AHEAD_ITEMS", 2)  # of a pack this small all epochs at once else
    monkeypatch.setattr(store, "OUTAGES", store.Outages())
    monkeypatch.setattr(store, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(store, "LONGEST_PAUSE_S", 0.05)
    yield proxy
    join_threads()  # what they were still at belongs to this test


def join_threads():
    for thread in threading.enumerate():
        if thread.name == "shards":
            thread.join(timeout=30)
            assert not thread.is_alive()


def content():
    return bytes(range(256)) * 2**14  # 4 MiB


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def batches(folder, *, workers, epochs=1):
    index = open_index(folder, "train")
    plan = Plan(index.counts, batch=4, micro_batch=2, window=3, seed=5)
    train = training_batches(
        index,
        plan,
        SHAPE,
        part=Part(),
        augmentation=AugmentConfig(),
        workers=workers,
    )
    yield from islice(train, 2 * epochs * EPOCH)
    val = open_index(folder, "val")
    yield from evaluation_batches(val, SHAPE, batch=2, part=Part(), workers=workers)


def assert_same(left, right):
    for near, far in zip(left, right, strict=True):
        assert near["key"] == far["key"]
        for name in ("image", "depth", "valid"):
            assert torch.equal(near[name], far[name])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cached", [False, True])
def test_batches_are_those_of_the_local_pack(local, faults, tmp_path, workers, cached):
    faults.share, faults.kinds = 0.4, ("cut", "reset", "hang up", "busy", "broken")
    cache = DiskCache(tmp_path, limit=2**30) if cached else None
    if cached:
        cache.prepare()
    folder = ShardFolder(URL, cache=cache)
    near = batches(local, workers=workers, epochs=2)
    assert_same(near, batches(folder, workers=workers, epochs=2))
    assert {one.fault for one in faults.served} == {*faults.kinds, None}


def test_broken_download_goes_on_at_the_byte_where_it_broke(faults, caplog):
    faults.share, faults.kinds, faults.draw = 0.7, ("cut", "reset"), random.Random(1)
    assert ShardFolder(URL).read("large") == content()
    tries = faults.of("large")
    breaks = [one for one in tries if one.fault]
    assert len(breaks) >= 2
    assert [one.start for one in tries] == sorted(one.start for one in tries)
    # What has arrived but is not yet read when a connection breaks is lost.
    again = sum(one.sent for one in tries) - len(content())
    assert (
        0
        <= again
        <= len(breaks) * 4 * store.PIECE_BYTES
        + sum(one.sent for one in breaks if one.fault == "reset")
    )
    [said] = warnings(caplog)  # once for all breaks
    assert said.startswith(f"{URL}/large, byte ")


def test_server_that_says_nothing_more_is_left(faults, monkeypatch):
    monkeypatch.setattr(s3fs.S3FileSystem, "read_timeout", 0.3)
    s3fs.S3FileSystem.clear_instance_cache()
    faults.share, faults.kinds, faults.stall_s = 0.5, ("stall",), 3.0
    assert ShardFolder(URL).read("large") == content()
    s3fs.S3FileSystem.clear_instance_cache()


def test_pack_is_verified_over_a_bad_network(faults):
    faults.share = 0.3
    assert verify(URL).problems == ()


def test_resumed_run_asks_for_what_is_left_alone(local, faults, monkeypatch):
    monkeypatch.setattr(samples, "AHEAD_ITEMS", 0)
    index = open_index(URL, "train")
    plan = Plan(index.counts, batch=4, micro_batch=2, window=3, seed=5)
    train = training_batches(
        index, plan, SHAPE, part=Part(), augmentation=AugmentConfig(), start=EPOCH - 1
    )
    list(islice(train, 2))
    places = [plan.epoch(0).sample(at) for at in range((EPOCH - 1) * 4, EPOCH * 4)]
    left = sorted(
        (index.shards[shard][at].shard, index.shards[shard][at].offset) for shard, at in places
    )
    assert sorted((one.path.rpartition("/")[2], one.start) for one in faults.of(".tar")) == left


@pytest.mark.parametrize("workers", [0, 2])
def test_second_epoch_from_a_large_enough_cache_asks_for_nothing(local, faults, tmp_path, workers):
    cache = DiskCache(tmp_path, limit=2**30)
    cache.prepare()
    folder = ShardFolder(URL, cache=cache)
    index = open_index(folder, "train")
    for entry in [*index.entries, *open_index(folder, "val").entries]:
        Shards(folder).read(entry)  # an epoch leaves the remainder out
    assert len(faults.of(".tar")) == SAMPLES
    faults.served.clear()
    assert_same(
        batches(local, workers=workers, epochs=2), batches(folder, workers=workers, epochs=2)
    )
    assert faults.of(".tar") == []


@pytest.mark.parametrize("workers", [0, 2])
def test_small_cache_keeps_its_bound_and_is_of_use(local, faults, tmp_path, workers):
    sizes = [entry.size for entry in open_index(local, "train").entries]
    cache = DiskCache(tmp_path, limit=sum(sizes) // 2)
    cache.prepare()
    folder = ShardFolder(URL, cache=cache)
    far = []
    for batch in batches(folder, workers=workers, epochs=5):
        far.append(batch)
        with cache._ledger():
            held = sum(
                os.path.getsize(path)
                for part in ("samples", "writing")
                for path in tmp_path.joinpath(part).rglob("*")
                if path.is_file()
            )
        assert held <= cache.limit
    assert_same(batches(local, workers=workers, epochs=5), far)
    # Fewer than were read, though some were asked for ahead and never read.
    assert len(faults.of(".tar")) < 5 * EPOCH * 4


def test_damaged_sample_in_the_cache_heals(local, faults, tmp_path, caplog):
    cache = DiskCache(tmp_path, limit=2**30)
    cache.prepare()
    folder = ShardFolder(URL, cache=cache)
    list(batches(folder, workers=0))
    files = [path for path in tmp_path.joinpath("samples").rglob("*") if path.is_file()]
    damaged = files[3].read_bytes()
    files[3].write_bytes(damaged[:100] + b"?" + damaged[101:])
    faults.served.clear()
    assert_same(batches(local, workers=0), batches(folder, workers=0))
    assert f"{files[3]}: damaged; it is dropped and fetched again" in caplog.messages
    assert files[3].read_bytes() == damaged


@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_refused_ends_at_once(faults, workers):
    index = open_index(URL, "train")
    faults.share, faults.kinds = 1.0, ("no",)
    plan = Plan(index.counts, batch=4, micro_batch=2)
    train = training_batches(
        index, plan, SHAPE, part=Part(), augmentation=AugmentConfig(), workers=workers
    )
    expected = (
        rf"^{URL}/train-00000\d.tar, sample train_0001-.*: {URL}/train-00000\d.tar: cannot be "
        r"read \(AccessDenied!\); see to its permissions and your credentials$"
    )
    with pytest.raises(DataError, match=expected):
        list(islice(train, 5))
    # Once by each process, which may have come to the same sample in its next epoch.
    tries = Counter((one.path, one.start) for one in faults.of(".tar"))
    assert len(tries) <= 21 and max(tries.values()) <= max(workers, 1)


def test_missing_shard_is_named(local, faults):
    index = open_index(URL, "val")
    folder = ShardFolder("s3://faulty/other")
    with pytest.raises(DataError, match=r"val-000000.tar: not found$"):
        Shards(folder).read(index.entries[0])
    assert len(faults.of(".tar")) == 1


@pytest.mark.parametrize("kind", ["busy", "hang up"])
def test_store_that_never_recovers_ends_the_run_in_bounded_time(faults, monkeypatch, kind):
    monkeypatch.setattr(store, "PATIENCE_S", 0.5)
    index = open_index(URL, "val")
    faults.share, faults.kinds = 1.0, (kind,)
    with pytest.raises(DataError) as caught:
        Shards(URL).read(index.entries[0])
    said = re.search(r"byte 0: nothing came in (\d+) tries, .* run the same com", str(caught.value))
    # A connection that ends unused is made anew once by the HTTP client itself.
    most = int(said[1]) * (2 if kind == "hang up" else 1)
    assert 2 <= len(faults.of(".tar")) <= most


def test_reading_that_is_left_leaves_no_thread_waiting(faults, monkeypatch):
    """A stop in an outage need not wait for the tries of what was to come."""
    monkeypatch.setattr(store, "FIRST_PAUSE_S", 60.0)
    monkeypatch.setattr(store, "LONGEST_PAUSE_S", 60.0)
    index = open_index(URL, "train")
    faults.share, faults.kinds = 1.0, ("busy",)
    shards = Shards(URL)
    coming = shards.ahead(index.entries, lambda entry: [entry])
    next(coming)
    while len(faults.of(".tar")) < 3:
        time.sleep(0.01)
    coming.close()
    join_threads()
