import pytest

from llm_mde.data.estimate import estimate
from llm_mde.data.layout import PackSettings
from llm_mde.data.pack import pack
from tests.support.rawscene import write_scene


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = tmp_path_factory.mktemp("raw")
    for number in range(3):
        write_scene(root, f"den_000{number}", frames=3, seed=number)
    return root


def test_an_estimate_says_what_packing_then_does(source, tmp_path):
    settings = PackSettings(shard_size=2)
    planned = estimate([source], settings, jobs=1)
    assert [path.name for path in tmp_path.iterdir()] == []
    done = pack([source], out=tmp_path / "out", settings=settings, jobs=1)
    assert planned.frames == done.counts
    assert planned.input_bytes == sum(path.stat().st_size for path in source.rglob("*-*"))
    written = [path.stat().st_size for path in (tmp_path / "out").glob("*.tar")]
    assert planned.shards == len(written)
    assert planned.output_bytes == pytest.approx(sum(written), rel=0.3)  # tars end in empty blocks
    assert planned.seconds == pytest.approx(9 * planned.ms_per_frame / 1000)


def test_time_is_shared_by_the_processes_that_shards_can_occupy(source):
    planned = estimate([source], PackSettings(shard_size=2), jobs=2)
    assert planned.jobs == 2
    assert planned.seconds == pytest.approx(9 * planned.ms_per_frame / 2000)
    assert estimate([source], PackSettings(splits="scene", shard_size=99), jobs=8).jobs == 3


def test_stride_counts(source):
    planned = estimate([source], PackSettings(stride=2), jobs=1)
    assert sum(planned.frames.values()) == 6  # 0 and 2 of each scene
