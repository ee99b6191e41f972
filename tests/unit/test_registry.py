"""Adapters as versions of a model, and back."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient

from llm_mde import DepthModel
from llm_mde.cli import main
from llm_mde.config import TrackingConfig
from llm_mde.errors import CheckpointError
from llm_mde.inference.adapter import find
from llm_mde.tracking.mlflow import MlflowTracker
from tests.support.run import write_run

IMAGE = np.arange(30 * 50 * 3, dtype=np.uint8).reshape(30, 50, 3)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    return TrackingConfig(uri=f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db")


@pytest.fixture
def trained(store: TrackingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run folder whose adapter is in MLflow, where commands look without further words."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", str(store.uri))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").write_text("name: run\n")
    tracker = MlflowTracker(store, run_dir=folder)
    tracker.artifacts(folder / "adapter", "adapter")
    tracker.close()
    return folder


def registered(capsys: pytest.CaptureFixture[str], *words: object) -> dict:
    capsys.readouterr()
    assert main(["track", "register", *map(str, words), "--json"]) == 0
    made: dict = json.loads(capsys.readouterr().out)
    return made


def test_a_registered_adapter_predicts_as_its_run(trained: Path, store, capsys) -> None:
    made = registered(capsys, trained, "--name", "depth")
    assert made["source"] == f"models:/depth/{made['version']}"
    client = MlflowClient(tracking_uri=store.uri)
    assert client.get_model_version("depth", made["version"]).run_id == made["run_id"]
    want = DepthModel.from_pretrained(trained).predict(IMAGE)
    client.set_registered_model_alias("depth", "best", str(made["version"]))
    for source in (made["source"], "models:/depth/latest", "models:/depth@best"):
        np.testing.assert_array_equal(DepthModel.from_pretrained(source).predict(IMAGE), want)
    assert {one.name for one in find(Path(made["source"])).iterdir()} == {
        one.name for one in (trained / "adapter").iterdir()
    }


def test_a_version_stays_what_it_was(trained: Path, capsys) -> None:
    first = registered(capsys, trained, "--name", "kept")
    card = (trained / "adapter" / "llm_mde.json").read_bytes()
    (trained / "adapter" / "llm_mde.json").write_bytes(card + b"\n")  # a new best
    second = registered(capsys, trained, "--name", "kept")
    assert second["version"] == first["version"] + 1
    assert (find(Path(first["source"])) / "llm_mde.json").read_bytes() == card
    assert (find(Path(second["source"])) / "llm_mde.json").read_bytes() == card + b"\n"


def test_a_run_may_be_named_by_its_id_alone(trained: Path, capsys) -> None:
    by_folder = registered(capsys, trained, "--name", "ids")
    shutil.rmtree(trained)
    by_id = registered(capsys, by_folder["run_id"], "--name", "ids")
    assert by_id["version"] == by_folder["version"] + 1
    assert find(Path(by_id["source"])).is_dir()


def test_a_version_is_fetched_once(trained: Path, capsys, monkeypatch) -> None:
    source = registered(capsys, trained, "--name", "once")["source"]
    folder = find(Path(source))
    monkeypatch.setattr("llm_mde.tracking.registry.download_artifacts", None)
    assert find(Path(source)) == folder
    left = [path.name for path in folder.parent.iterdir()]
    assert left == [folder.name]


@pytest.mark.parametrize(
    ("source", "why"),
    [
        ("models:/depth", "expected models:/NAME/VERSION"),
        ("models:/depth/3/files", "expected models:/NAME/VERSION"),
        ("models:/no-such/3", "models:/no-such/3 in .*no-such.* not found"),
        ("models:/no-such/latest", "no versions of a model 'no-such'"),
        ("models:/no-such@best", "no-such.* not found"),
    ],
)
def test_a_version_that_is_not_there_is_named(trained: Path, source: str, why: str) -> None:
    with pytest.raises(CheckpointError, match=re.compile(why, re.IGNORECASE)):
        DepthModel.from_pretrained(source)


def test_a_store_that_is_not_there_is_not_made(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/none.db")
    words = ["predict", __file__, "--adapter", "models:/depth/3", "--out", str(tmp_path / "out")]
    with pytest.raises(CheckpointError, match="no such file; name another store"):
        find(Path("models:/depth/3"))
    assert main(["track", "register", "0" * 32]) == 2
    assert f"sqlite:///{tmp_path}/none.db: no such file" in capsys.readouterr().err
    assert main(words) == 2
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_registered_is_said(trained: Path, store, tmp_path, capsys) -> None:
    bare = MlflowTracker(store, run_dir=tmp_path / "bare").run_id
    for words, why in (
        ([tmp_path / "nothing"], "expected a run folder, or the 32 digits"),
        ([tmp_path], "no llm_mde.json, expected an adapter"),
        (["0" * 32], f"{store.uri}: .*Run with id=.* not found"),
        ([bare], f"{store.uri}: run {bare}: no llm_mde.json, expected an adapter"),
        ([trained, "--name", "a/b"], "Invalid model name"),
    ):
        assert main(["track", "register", *map(str, words)]) == 2
        said = capsys.readouterr().err
        assert re.search(why, said) and len(said.splitlines()) == 1
    (trained / "mlflow_run_id").unlink()
    assert main(["track", "register", str(trained)]) == 2
    assert f"'llm-mde track sync {trained}' sends it" in capsys.readouterr().err
