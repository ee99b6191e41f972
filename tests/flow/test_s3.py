"""A pack in an object store: verified, inspected and trained from, in loader processes too."""

from itertools import islice

import pytest
import torch

from llm_mde.config import AugmentConfig
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import open_index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.show import inspect
from llm_mde.data.stream import evaluation_batches, training_batches
from llm_mde.data.verify import verify
from llm_mde.errors import DataError
from tests.support.s3 import s3_server
from tests.support.shards import write_pack

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
URL = "s3://shards/nyu/pack"
SHAPE = Shape((16, 24), "bicubic", 10.0)


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack"))


@pytest.fixture(scope="module")
def remote(local):
    with s3_server("shards"):
        folder = ShardFolder(URL)
        for path in local.rglob("*"):
            if path.is_file():
                folder.write(path.relative_to(local).as_posix(), path.read_bytes())
        yield folder


def test_pack_is_verified_in_place(local, remote, monkeypatch):
    monkeypatch.setattr("llm_mde.data.members.CHUNK_BYTES", 1024)  # shards of whole chunks
    report = verify(URL)
    assert report.problems == ()
    assert report.bytes == sum(path.stat().st_size for path in local.glob("*.tar"))


def test_sample_is_inspected(remote, tmp_path):
    seen = inspect(f"{URL}/train-000001.tar:office_0001-000004", out=tmp_path / "a.png")
    assert seen.sha256 and seen.picture.is_file()
    assert inspect(f"{URL}:office_0001-000004", out=tmp_path / "b.png").shard.startswith(URL)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_local_pack(local, remote, workers):
    def batches(folder):
        index = open_index(folder, "train")
        plan = Plan(index.counts, batch=2, micro_batch=2)
        train = training_batches(
            index, plan, SHAPE, part=Part(), augmentation=AugmentConfig(), workers=workers
        )
        val = open_index(folder, "val")
        evaluation = evaluation_batches(val, SHAPE, batch=1, part=Part(), workers=workers)
        return [*islice(train, 6), *evaluation]

    for near, far in zip(batches(local), batches(remote), strict=True):
        assert near["key"] == far["key"]
        assert torch.equal(near["image"], far["image"])
        assert torch.equal(near["depth"], far["depth"])


def test_what_is_missing_is_named(remote):
    with pytest.raises(DataError, match=f"^{URL}/nothing: no index.jsonl found, expected a folder"):
        open_index(f"{URL}/nothing", "train")
    with pytest.raises(DataError, match=f"^{URL}: no split 'x', this folder has: few, test, train"):
        open_index(URL, "x")
    with pytest.raises(DataError, match="^s3://no-such-bucket/pack: no index.jsonl found"):
        open_index("s3://no-such-bucket/pack", "train")
