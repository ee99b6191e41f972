"""Which runs a comparison is of, where they differ, and on which images they can be scored."""

from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mde.errors import CheckpointError, ConfigError, DataError
from llm_mde.recipes import build, put
from llm_mde.studies.runs import common_images, differing, given, of_sweep, trained_on
from llm_mde.training.folder import claim
from tests.support.shards import write_shards

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A run's folder with settings and what passes for an adapter."""

    def run(name: str, *, adapter: bool = True, ds: dict | None = None, **settings: object) -> Path:
        tree: dict = {"name": name, "runs": str(tmp_path / "runs")}
        put(tree, "data.shards", str(tmp_path / "shards"))
        for dotted, value in settings.items():
            put(tree, dotted.replace("__", "."), value)
        config = build(tree)
        claim(config, ds or {}, resume="auto")
        if adapter:
            (config.run_dir / "adapter").mkdir()
            (config.run_dir / "adapter" / "llm_mde.json").write_text("{}")
        return config.run_dir

    return run


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = write_shards(tmp_path / "shards", [3])
    write_shards(folder, [2], split="val")
    return write_shards(folder, [2], split="test")


def test_only_what_differs_is_a_difference(make: Make) -> None:
    first = make("a", optim__lr=1e-3, ds={"zero_optimization": {"stage": 1}, "train_batch_size": 4})
    second = make("b", optim__lr=1e-4, ds={"zero_optimization": {"stage": 2}, "wall_clock": True})
    assert differing(given([first, second])) == {
        "optim.lr": [1e-3, 1e-4],
        "ds.zero_optimization.stage": [1, 2],
        "ds.wall_clock": [None, True],
    }
    assert differing(given([first, make("c", optim__lr=1e-3, ds={"zero_optimization": {"stage": 1}},
                                        tracking__parent_run_id="1234")])) == {}  # fmt: skip


def test_runs_of_one_name_are_told_apart_by_their_paths(make: Make, tmp_path: Path) -> None:
    first = make("a")
    second = make("a", runs=str(tmp_path / "other"))
    assert [one.title for one in given([first, second])] == [str(first), str(second)]
    assert [one.title for one in given([first, make("b")])] == ["a", "b"]


def test_folders_that_cannot_be_compared_are_refused(make: Make, tmp_path: Path) -> None:
    run = make("a")
    with pytest.raises(ConfigError, match=r"^expected two runs or more, got 1; or name a --sweep"):
        given([run])
    with pytest.raises(ConfigError, match="a: is named twice"):
        given([run, run.parent / "." / "a"])
    with pytest.raises(ConfigError, match=f"^{tmp_path}: no config.yaml found, expected the fold"):
        given([run, tmp_path])
    with pytest.raises(CheckpointError, match="runs/b: no adapter in it, .* leave it out"):
        given([run, make("b", adapter=False)])


def test_a_sweep_has_its_own_trials_and_no_others(make: Make) -> None:
    runs = make("lr-low").parent
    for name in ("lr-high", "lr-high.1", "lr-1.5", "lr-wide-low", "lr-wide-high", "lrx-low"):
        make(name)
    make("lr-failed", adapter=False)
    (runs / "lr").mkdir()
    (runs / "lr-wide").mkdir()  # a sweep whose name begins with the other's
    members, missing = of_sweep("lr", runs)
    assert [one.title for one in members] == ["1.5", "high", "low"]
    assert missing == ["lr-failed"]
    assert [one.title for one in of_sweep("lr-wide", runs)[0]] == ["high", "low"]


def test_an_unknown_sweep_names_the_nearest(make: Make, tmp_path: Path) -> None:
    runs = make("table5-scheme1").parent
    (runs / "table5").mkdir()
    with pytest.raises(ConfigError, match=r"--sweep tabel5: no such .* did you mean table5\?"):
        of_sweep("tabel5", runs)
    with pytest.raises(ConfigError, match="there are: table5$"):
        of_sweep("zzz", runs)
    with pytest.raises(ConfigError, match="nowhere holds no sweep; .* --runs DIR"):
        of_sweep("table5", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="1 of its 1 trials in .* have an adapter"):
        of_sweep("table5", runs)


def test_runs_validated_on_other_images_need_a_common_list(make: Make, shards: Path) -> None:
    members = given([make("a"), make("b", data__val_split="test")])
    with pytest.raises(ConfigError) as caught:
        common_images(members, shards=None, split=None)
    assert "a was scored on val of" in str(caught.value)
    assert "b on test of" in str(caught.value) and "--split" in str(caught.value)
    named = common_images(members, shards=None, split="test")
    assert [entry.key for entry in named.entries] == ["test_0001-000000", "test_0001-000001"]


def test_shards_that_were_copied_hold_the_same_images(
    make: Make, shards: Path, tmp_path: Path
) -> None:
    copy = write_shards(tmp_path / "copy", [2], split="val")
    other = write_shards(tmp_path / "more", [3], split="val")
    same = given([make("a"), make("b", data__shards=str(copy))])
    assert len(common_images(same, shards=None, split=None).entries) == 2
    with pytest.raises(ConfigError, match="not validated on the same"):
        members = given([make("c"), make("d", data__shards=str(other))])
        common_images(members, shards=None, split=None)


def test_shards_that_moved_are_asked_for(make: Make, shards: Path, tmp_path: Path) -> None:
    members = given([make("a", data__shards=str(tmp_path / "gone")), make("b")])
    with pytest.raises(DataError, match="gone.*; name them with --shards and --split"):
        common_images(members, shards=None, split=None)
    assert len(common_images(members, shards=str(shards), split=None).entries) == 2


def test_images_that_a_run_has_trained_on_are_counted(make: Make, shards: Path) -> None:
    members = given(
        [make("a"), make("b", data__train_split="val"), make("c", data__train_split="gone")]
    )
    index = common_images(members, shards=None, split="val")
    assert trained_on(members, index) == {"a": 0, "b": 2, "c": 0}
