import hashlib
import os
import pickle
import signal
import subprocess
import sys
import uuid
from itertools import islice

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from llm_mde.config import AugmentConfig
from llm_mde.data import samples as samples_module
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.pixels import Shape, depths, resize_image, resize_nearest, to_metres
from llm_mde.data.plan import Part, Plan
from llm_mde.data.samples import Shards
from llm_mde.data.stream import Batches, evaluation_batches, training_batches
from llm_mde.errors import ConfigError, DataError, StoreError
from tests.support.rawscene import write_scene
from tests.support.shards import frame, rows, write_rows, write_shards

# Small machines have fewer cores than the loader processes of these tests.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

COUNTS = [9, 2, 14, 8]  # 33 samples
SHAPE = Shape((16, 24), "bicubic", 10.0)
BATCH, MICRO = 8, 2
STEPS = 4  # of an epoch: 33 // 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_shards(tmp_path_factory.mktemp("shards"), COUNTS)
    return write_shards(made, [5, 2], split="val")


def batches_of(folder, *, part=None, augmentation=None, **settings):
    index = open_index(folder, "train")
    plan = Plan(index.counts, batch=BATCH, micro_batch=MICRO, window=3, seed=5)
    return training_batches(
        index,
        plan,
        SHAPE,
        part=part or Part(),
        augmentation=augmentation or AugmentConfig(),
        **settings,
    )


def global_steps(folder, *, ranks, workers, steps, **settings):
    """Micro-batches of each step in the plan's order, put together from all ranks."""
    each = BATCH // MICRO // ranks
    shares = []
    for rank in range(ranks):
        batches = batches_of(folder, part=Part(rank, ranks), workers=workers, **settings)
        shares.append(list(islice(batches, steps * each)))
    return [
        [share[step * each + turn] for turn in range(each) for share in shares]
        for step in range(steps)
    ]


def assert_same(left, right):
    assert left["key"] == right["key"]
    assert left["epoch"] == right["epoch"]
    for name in ("image", "depth", "valid"):
        assert torch.equal(left[name], right[name])


@pytest.fixture(scope="module")
def reference(folder):
    return global_steps(folder, ranks=1, workers=0, steps=STEPS + 2)


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_steps_are_the_same_for_any_ranks_and_workers(folder, reference, ranks, workers):
    steps = global_steps(folder, ranks=ranks, workers=workers, steps=STEPS + 2)
    for left, right in zip(steps, reference, strict=True):
        for mine, expected in zip(left, right, strict=True):
            assert_same(mine, expected)


def test_epoch_holds_each_sample_once_and_the_next_goes_on(reference):
    keys = [key for step in reference[:STEPS] for batch in step for key in batch["key"]]
    assert len(set(keys)) == len(keys) == STEPS * BATCH
    assert {batch["epoch"] for step in reference[:STEPS] for batch in step} == {0}
    assert {batch["epoch"] for step in reference[STEPS:] for batch in step} == {1}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("step", [1, 3, STEPS, STEPS + 1])
def test_resumed_stream_goes_on_bit_by_bit(folder, reference, workers, step):
    epoch, start = divmod(step, STEPS)
    left = STEPS + 2 - step
    resumed = global_steps(folder, ranks=2, workers=workers, steps=left, epoch=epoch, start=start)
    for mine, expected in zip(resumed, reference[step:], strict=True):
        for batch, other in zip(mine, expected, strict=True):
            assert_same(batch, other)


def test_cache_changes_nothing(folder, reference):
    for mine, expected in zip(
        global_steps(folder, ranks=1, workers=0, steps=STEPS + 2, cache=True),
        reference,
        strict=True,
    ):
        for batch, other in zip(mine, expected, strict=True):
            assert_same(batch, other)


@pytest.mark.parametrize("cache", [False, True])
def test_filled_depth_trains_only_where_it_is_asked_for(tmp_path, cache):
    write_shards(tmp_path, [8], filled=True)
    still = AugmentConfig(enabled=False)
    raw = next(iter(batches_of(tmp_path, augmentation=still, cache=cache)))
    filled = next(iter(batches_of(tmp_path, augmentation=still, cache=cache, filled=True)))
    assert raw["key"] == filled["key"]
    assert torch.equal(raw["image"], filled["image"])
    assert filled["valid"].all() and not raw["valid"].all()
    assert torch.equal(filled["depth"][raw["valid"]], raw["depth"][raw["valid"]])
    index = open_index(tmp_path, "train")
    (evaluated,) = evaluation_batches(index, SHAPE, batch=8, part=Part())
    assert not evaluated["valid"][:, :, :4, :5].any()
    assert not next(depths(index, max_depth=10.0))[1][:4, :5].any()


def test_shards_without_filled_depth_say_so(folder):
    with pytest.raises(
        DataError, match=r"train-00000\d.tar, sample .*: there is no filled depth; "
    ):
        next(iter(batches_of(folder, filled=True)))


def test_stream_from_a_url_is_the_same(folder, reference):
    url = f"memory://{uuid.uuid4().hex}/pack"
    for path in folder.rglob("*"):
        if path.is_file():
            ShardFolder(url).write(path.relative_to(folder).as_posix(), path.read_bytes())
    steps = global_steps(url, ranks=2, workers=0, steps=STEPS)
    for left, right in zip(steps, reference, strict=False):
        for mine, expected in zip(left, right, strict=True):
            assert_same(mine, expected)


def test_training_sample_is_the_whole_frame_resized(folder):
    batch = next(iter(batches_of(folder, augmentation=AugmentConfig(enabled=False))))
    assert batch["image"].shape == (MICRO, 3, 16, 24)
    assert batch["image"].dtype == torch.uint8
    assert batch["depth"].shape == batch["valid"].shape == (MICRO, 1, 16, 24)
    assert (batch["depth"].dtype, batch["valid"].dtype) == (torch.float32, torch.bool)
    number = int(batch["key"][0].rpartition("-")[2])
    source = frame(number, (32, 40))
    expected = resize_nearest(source.depth_mm, (16, 24)).astype(np.float32) / 1000
    np.testing.assert_array_equal(batch["depth"][0, 0].numpy(), expected)
    np.testing.assert_array_equal(batch["valid"][0, 0].numpy(), expected > 0)
    image = resize_image(source.rgb, (16, 24), "bicubic").astype(int)
    error = np.abs(batch["image"][0].permute(1, 2, 0).numpy().astype(int) - image)
    assert error.mean() < 8  # JPEG's loss


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_resize_is_pillows_antialiased_resize_of_the_whole_frame(interpolation):
    rgb = np.random.default_rng(0).integers(0, 256, (60, 83, 3), dtype=np.uint8)
    mode = Image.Resampling[interpolation.upper()]
    expected = np.asarray(Image.fromarray(rgb).resize((24, 16), mode)).astype(int)
    got = resize_image(rgb, (16, 24), interpolation)
    assert (got.shape, got.dtype) == ((16, 24, 3), np.uint8)
    assert np.abs(got.astype(int) - expected).max() <= 1
    same = resize_image(rgb, (60, 83), interpolation)
    np.testing.assert_array_equal(same, rgb)


def test_resize_that_cannot_be_antialiased_is_refused():
    with pytest.raises(ConfigError, match="^interpolation: expected bilinear or bicubic, got 'x'"):
        resize_image(np.zeros((4, 4, 3), np.uint8), (2, 2), "x")


def test_depth_takes_the_pixel_under_each_centre():
    # Centres of 2 columns over 6 lie at 1.5 and 4.5, of 3 over 6 at 1, 3, 5, of 4 over 2 twice.
    grid = np.arange(36).reshape(6, 6)
    assert resize_nearest(grid, (2, 3)).tolist() == [[7, 9, 11], [25, 27, 29]]
    assert resize_nearest(np.array([[1, 2]]), (1, 4)).tolist() == [[1, 1, 2, 2]]


def test_valid_is_between_nothing_and_the_largest_depth():
    mm = np.array([0, 1, 2500, 9999, 10000, 65535], dtype=np.uint16)
    metres, valid = to_metres(mm, 10.0)
    assert valid.tolist() == [False, True, True, True, False, False]
    assert metres.dtype == np.float32
    np.testing.assert_array_equal(metres, mm / np.float32(1000))
    assert to_metres(mm, 2.5)[1].tolist() == [False, True, False, False, False, False]


@pytest.mark.parametrize("ranks", [1, 2, 4])
@pytest.mark.parametrize("workers", [0, 2])
def test_evaluation_reads_every_sample_once(folder, ranks, workers):
    index = open_index(folder, "val")
    shares = [
        list(evaluation_batches(index, SHAPE, batch=2, part=Part(rank, ranks), workers=workers))
        for rank in range(ranks)
    ]
    assert len({len(share) for share in shares}) == 1
    counted = [
        key
        for turn in zip(*shares, strict=True)
        for batch in turn
        for key, weight in zip(batch["key"], batch["weight"].tolist(), strict=True)
        if weight
    ]
    assert counted == [entry.key for entry in index.entries]
    first = shares[0][0]
    assert first["image"].shape == (2, 3, 16, 24)
    np.testing.assert_array_equal(
        first["depth"][1, 0].numpy(), frame(1, (32, 40)).depth_mm / np.float32(1000)
    )
    assert not first["valid"][0, 0, :4, :5].any()


def test_frames_of_several_sizes_train_together_but_are_not_evaluated_so(tmp_path):
    write_shards(tmp_path, [8], split="small", size=(24, 24))
    write_shards(tmp_path, [8], split="large")
    both = (tmp_path / "splits/small.txt").read_text() + (tmp_path / "splits/large.txt").read_text()
    (tmp_path / "splits" / "train.txt").write_text(both)
    assert next(iter(batches_of(tmp_path)))["image"].shape == (MICRO, 3, 16, 24)
    index = open_index(tmp_path, "train")
    assert len(list(evaluation_batches(index, SHAPE, batch=8, part=Part()))) == 2
    with pytest.raises(DataError, match=r"split train: frames of several sizes \[\(24, 24\), \(32"):
        list(evaluation_batches(index, SHAPE, batch=16, part=Part()))


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
        "import sys, time; from tests.unit.test_stream import batches_of\n"
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
        "import sys; from tests.unit.test_stream import batches_of\n"
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


def test_packed_raw_scenes_become_batches(tmp_path):
    from llm_mde.data import layout, pack

    write_scene(tmp_path / "raw", "study_9001", frames=4)
    write_scene(tmp_path / "raw", "office_9001", frames=4, seed=5)
    settings = layout.PackSettings(splits="scene")
    pack.pack([tmp_path / "raw"], out=tmp_path / "shards", settings=settings, jobs=1)
    splits = {path.stem: path.read_text().split() for path in tmp_path.glob("shards/splits/*")}
    (tmp_path / "shards/splits/all.txt").write_text(
        "".join(f"{key}\n" for keys in splits.values() for key in keys)
    )
    index = open_index(tmp_path / "shards", "all")
    plan = Plan(index.counts, batch=8, micro_batch=4)
    shape = Shape((96, 128), "bicubic", 10.0)
    batches = training_batches(index, plan, shape, part=Part(), augmentation=AugmentConfig())
    first, second = islice(batches, 2)
    assert sorted(first["key"] + second["key"]) == sorted(e.key for e in index.entries)
    assert first["image"].shape == (4, 3, 96, 128)
    metres = first["depth"][first["valid"]]
    assert 0.5 < metres.min() < metres.max() < 10
    maps = list(depths(index, max_depth=10.0, every=4))
    assert [depth.shape for depth, _ in maps] == [(480, 640)] * 2
