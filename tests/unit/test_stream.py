"""Batches from shards: every sample once, in one order, whatever reads them."""

import uuid
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from llm_mde.config import AugmentConfig
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.pixels import Shape, depths, resize_image, resize_nearest, to_metres
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import evaluation_batches, training_batches
from llm_mde.errors import ConfigError, DataError
from tests.support.rawscene import write_scene
from tests.support.shards import frame, write_shards
from tests.support.streams import BATCH, COUNTS, MICRO, SHAPE, STEPS, batches_of

# Small machines have fewer cores than the loader processes of these tests.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = write_shards(tmp_path_factory.mktemp("shards"), COUNTS)
    return write_shards(made, [5, 2], split="val")


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
