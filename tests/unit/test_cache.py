import hashlib
import logging
import multiprocessing
import os
import pickle
import random
import time
import uuid

import pytest

from llm_mde.config import Config, DataConfig
from llm_mde.data import cache as cache_module
from llm_mde.data.cache import DiskCache
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.kept import disk_cache
from llm_mde.data.samples import Shards
from llm_mde.errors import ConfigError, DataError
from tests.support.shards import write_shards


def sample(number, size=1000):
    span = random.Random(number).randbytes(size)
    return hashlib.sha256(span).hexdigest(), span


def held(folder):
    """Bytes of all files but the ledger."""
    total = 0
    for path in folder.rglob("*"):
        if path.name != "used":
            try:
                total += path.stat().st_size if path.is_file() else 0
            except FileNotFoundError:
                continue
    return total


@pytest.fixture
def cache(tmp_path):
    made = DiskCache(tmp_path / "a" / "cache", limit=5500)
    assert made.prepare() == 0
    return made


def test_what_is_kept_comes_back(cache):
    sha256, span = sample(1)
    assert cache.get(sha256) is None
    cache.put(sha256, span)
    cache.put(sha256, span)
    assert cache.get(sha256) == span
    other = pickle.loads(pickle.dumps(cache))
    assert other.get(sha256) == span
    assert DiskCache(cache.folder, limit=5500).prepare() == 1000
    assert (cache.folder.stat().st_mode & 0o777) == 0o700


def test_longest_unused_make_room_but_not_those_of_this_run(cache, caplog):
    for number in range(5):
        cache.put(*sample(number))
        aged = time.time() - 1000 + number
        os.utime(cache._path(sample(number)[0]), (aged, aged))
    now = DiskCache(cache.folder, limit=5500)
    assert now.get(sample(0)[0])  # used again, so it stays
    now.put(*sample(10))
    kept = {number for number in (*range(5), 10) if now.get(sample(number)[0])}
    assert kept == {0, 2, 3, 4, 10}
    with caplog.at_level(logging.INFO, "llm_mde"):
        for number in range(11, 20):
            now.put(*sample(number))
    assert {n for n in range(20) if now.get(sample(n)[0])} == kept
    assert caplog.messages == [
        f"{now.folder}: full of samples of this run; others are fetched anew"
    ]
    assert held(now.folder) == 5000


def test_room_is_looked_for_in_vain_once_by_all_processes_of_a_run(cache, monkeypatch):
    loaders = [pickle.loads(pickle.dumps(cache)) for _ in range(3)]
    walked = []
    files = DiskCache._files
    monkeypatch.setattr(
        DiskCache, "_files", lambda self, part: walked.append(part) or files(self, part)
    )
    for number in range(6):
        loaders[0].put(*sample(number))
    assert walked and held(cache.folder) == 5000
    walked.clear()
    for number, loader in enumerate(loaders):
        loader.put(*sample(10 + number))
    assert walked == [] and held(cache.folder) == 5000
    later = DiskCache(cache.folder, limit=5500)  # of another run, for which there is room
    later.put(*sample(20))
    assert later.get(sample(20)[0]) and held(cache.folder) <= 5500


def test_smaller_bound_is_kept_at_once(cache):
    for number in range(5):
        cache.put(*sample(number))
    time.sleep(0.02)  # the clock of files is coarse
    assert DiskCache(cache.folder, limit=2500).prepare() == 2000
    assert held(cache.folder) == 2000


def test_damaged_file_is_dropped(cache, caplog):
    sha256, span = sample(1)
    cache.put(sha256, span)
    for damage in (b"", span[:-1], span[:-1] + b"?"):
        cache._path(sha256).write_bytes(damage)
        assert cache.get(sha256) is None
        assert not cache._path(sha256).exists()
        assert "damaged; it is dropped" in caplog.messages[-1]
        cache.put(sha256, span)
        assert cache.get(sha256) == span


def test_left_overs_of_the_killed_count_and_are_cleared_away(cache):
    left = cache.folder / "writing" / uuid.uuid4().hex
    left.write_bytes(bytes(5000))
    (cache.folder / "used").unlink()  # so that it is counted anew
    cache.put(*sample(1))
    assert held(cache.folder) == 5000  # perhaps still written: no room
    aged = time.time() - 2 * cache_module.STALE_S
    os.utime(left, (aged, aged))
    again = DiskCache(cache.folder, limit=5500)
    again.prepare()
    again.put(*sample(1))
    assert again.get(sample(1)[0])
    assert held(cache.folder) == 1000


def test_ledger_that_says_nothing_is_counted_anew(cache):
    cache.put(*sample(1))
    for words in (b"", b"what?"):
        (cache.folder / "used").write_bytes(words)
        assert DiskCache(cache.folder, limit=5500).prepare() == 1000


def test_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        ConfigError, match="^data.disk_cache: .*/file/cache cannot be written .Not a"
    ):
        DiskCache(tmp_path / "file" / "cache", limit=1).prepare()


def test_full_disk_is_said_once_and_nothing_more_is_kept(cache, caplog, monkeypatch):
    cache.put(*sample(1))

    def full(path, *words, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.open", full)
    cache.put(*sample(2))
    cache.put(*sample(3))
    monkeypatch.undo()
    (message,) = caplog.messages
    assert "a sample cannot be kept (No space left on device); this process goes on" in message
    assert cache.get(sample(1)[0]) and cache.get(sample(2)[0]) is None
    assert held(cache.folder) == 1000


def hammer(cache, seed, began):
    draw = random.Random(seed)
    began.wait()
    for _ in range(400):
        number = draw.randrange(40)
        sha256, span = sample(number, 500 + number)
        cache.began = time.time() - 0.05  # so that there is always something to remove
        got = cache.get(sha256)
        assert got in (None, span)
        if got is None:
            cache._keeps = True
            cache.put(sha256, span)


def test_processes_share_it_and_its_bound_holds_at_every_moment(cache):
    context = multiprocessing.get_context("fork")
    began = context.Event()
    processes = [context.Process(target=hammer, args=(cache, seed, began)) for seed in range(4)]
    for process in processes:
        process.start()
    began.set()
    most = 0
    while any(process.is_alive() for process in processes):
        with cache._ledger():  # nothing is removed or added; a file may move from here to there
            most = max(most, held(cache.folder / "samples") + held(cache.folder / "writing"))
    assert [process.exitcode for process in processes] == [0] * 4
    assert 3000 < most <= 5500
    assert not list((cache.folder / "writing").iterdir())


def test_killed_process_leaves_it_usable(cache):
    context = multiprocessing.get_context("fork")
    for turn in range(10):
        began = context.Event()
        process = context.Process(target=hammer, args=(cache, turn, began))
        process.start()
        began.set()
        time.sleep(0.005 * turn)
        process.kill()
        process.join()
        assert held(cache.folder) <= 5500
    for left in (cache.folder / "writing").iterdir():
        os.utime(left, (0, 0))
    again = DiskCache(cache.folder, limit=5500)
    again.prepare()
    again.put(*sample(100))
    assert again.get(sample(100)[0])
    assert all(again.get(path.name) for path in cache.folder.glob("samples/*/*"))
    assert held(cache.folder) <= 5500


def test_shards_of_a_url_are_kept_and_heal(tmp_path, cache, monkeypatch):
    local = write_shards(tmp_path / "pack", [3])
    url = f"memory://{uuid.uuid4().hex}/pack"
    for path in local.rglob("*"):
        if path.is_file():
            ShardFolder(url).write(path.relative_to(local).as_posix(), path.read_bytes())
    cache.limit = 10**6
    index = open_index(ShardFolder(url, cache=cache), "train")
    asked = []
    read_range = ShardFolder.read_range

    def counted(self, name, offset, size, **settings):
        asked.append(offset)
        return read_range(self, name, offset, size, **settings)

    monkeypatch.setattr(ShardFolder, "read_range", counted)
    first, second = Shards(index.folder), Shards(pickle.loads(pickle.dumps(index.folder)))
    samples = [first.read(entry) for entry in index.entries]
    assert [second.read(entry) for entry in index.entries] == samples
    assert asked == [entry.offset for entry in index.entries]
    damaged = cache._path(index.entries[1].sha256)
    damaged.write_bytes(damaged.read_bytes()[:-7])
    assert [second.read(entry) for entry in index.entries] == samples
    assert asked[3:] == [index.entries[1].offset]
    assert [first.read(entry) for entry in index.entries] == samples
    assert len(asked) == 4


def test_folder_of_this_machine_has_no_cache(tmp_path, cache):
    assert ShardFolder(tmp_path, cache=cache).cache is None
    assert Config().data.disk_cache is None


def test_run_prepares_it_for_a_url_alone_and_may_change_it(tmp_path):
    from llm_mde.recipes import settings_of
    from llm_mde.training.folder import differences

    there = {"disk_cache": tmp_path / "kept", "disk_cache_gb": 2.0}
    assert disk_cache(DataConfig(shards="s3://a/b")) is None
    assert disk_cache(DataConfig(shards=str(tmp_path), **there)) is None
    assert disk_cache(DataConfig(shards="s3://a/b", **there), dry_run=True) is None
    assert not (tmp_path / "kept").exists()
    made = disk_cache(DataConfig(shards="s3://a/b", **there))
    assert (made.folder, made.limit) == (tmp_path / "kept", 2**31)
    assert (tmp_path / "kept" / "writing").is_dir()
    in_a_file = DataConfig(shards="s3://a/b", disk_cache=tmp_path / "kept" / "used" / "x")
    for dry_run in (False, True):
        with pytest.raises(DataError, match=r"^data.disk_cache: .* cannot be written"):
            disk_cache(in_a_file, dry_run=dry_run)
    other = Config(data=DataConfig(**there))
    assert differences(settings_of(Config(), {}), settings_of(other, {})) == ""
