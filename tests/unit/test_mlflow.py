import logging
import multiprocessing
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import mlflow.telemetry
import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from llm_mde.config import Config, TrackingConfig
from llm_mde.errors import ConfigError
from llm_mde.recipes import flat
from llm_mde.tracking import mlflow as mlflow_module
from llm_mde.tracking.connection import problem
from llm_mde.tracking.mlflow import RUN_ID_FILE, MlflowTracker
from llm_mde.tracking.sync import sync
from llm_mde.tracking.tracker import RunFolderTracker

LATER = (
    "'llm-mde track sync RUN' sends a run's later, and the same command again those of a sweep or "
    "an experiment"
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TrackingConfig:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"
    return TrackingConfig(uri=uri, experiment="depth")


@pytest.fixture
def client(store: TrackingConfig) -> MlflowClient:
    return MlflowClient(tracking_uri=store.uri)


@pytest.fixture
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_module, "RETRY_S", 0.0)


class Outage:
    """MlflowClient.log_batch that fails until it is over."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.over = False
        self.calls = 0
        original = MlflowClient.log_batch

        def log_batch(client: MlflowClient, *args: object, **kwargs: object) -> object:
            self.calls += 1
            if not self.over:
                raise MlflowException("connection refused")
            return original(client, *args, **kwargs)

        monkeypatch.setattr(MlflowClient, "log_batch", log_batch)


@pytest.fixture
def outage(monkeypatch: pytest.MonkeyPatch) -> Outage:
    return Outage(monkeypatch)


def test_run_can_be_read_back(store: TrackingConfig, client: MlflowClient, tmp_path: Path) -> None:
    run_dir = tmp_path / "reference"
    (run_dir / "adapter").mkdir(parents=True)
    (run_dir / "adapter" / "adapter_config.json").write_text("{}")
    picture = run_dir / "step-000020.png"
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(picture)

    tracker = MlflowTracker(store, run_dir=run_dir)
    tracker.params(flat(Config()))
    tracker.log({"val/abs_rel": 0.5, "val_paper/rmse": 0.2}, 10)
    tracker.log({"val/abs_rel": 0.25}, 20)
    tracker.figure(picture, "val", 20)
    tracker.artifacts(run_dir / "adapter", "adapter")
    tracker.close()

    assert tracker.run_id is not None
    run = client.get_run(tracker.run_id)
    assert run.info.run_name == "reference"
    assert run.info.status == "FINISHED"
    assert set(run.data.params) == set(flat(Config()))
    assert run.data.params["model.vit.lora.r"] == "96"
    assert run.data.params["optim.lr"] == "2e-05"
    history = client.get_metric_history(tracker.run_id, "val/abs_rel")
    assert [(point.step, point.value) for point in history] == [(10, 0.5), (20, 0.25)]
    assert run.data.metrics["val_paper/rmse"] == 0.2
    names = {file.path for file in client.list_artifacts(tracker.run_id, "figures")}
    assert names == {"figures/step-000020.png"}
    assert "val.png" in {file.path for file in client.list_artifacts(tracker.run_id)}
    grid = [file.path for file in client.list_artifacts(tracker.run_id, "images")]
    assert sorted(Path(name).suffix for name in grid) == [".png", ".webp"]
    assert all(name.startswith("images/val+step+20+") for name in grid)
    files = client.list_artifacts(tracker.run_id, "adapter")
    assert [file.path for file in files] == ["adapter/adapter_config.json"]


def test_artifacts_lie_beside_the_sqlite_file(store: TrackingConfig, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    (folder / "weights").write_text("w")
    tracker = MlflowTracker(store, run_dir=tmp_path)
    tracker.artifacts(folder, "adapter")
    tracker.close()
    database = Path(str(store.uri).removeprefix("sqlite:///"))
    found = database.parent.glob(f"mlartifacts/depth/{tracker.run_id}/artifacts/adapter/weights")
    assert len(list(found)) == 1


def test_more_parameters_and_longer_values_than_one_call_takes(
    store: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    tracker = MlflowTracker(store, run_dir=tmp_path)
    tracker.params({f"p.{i:03d}": i for i in range(250)} | {"long": "x" * 9000, "none": None})
    tracker.close()
    params = client.get_run(str(tracker.run_id)).data.params
    assert len(params) == 252
    assert params["long"] == "x" * 6000
    assert params["none"] == "null"


def test_child_hangs_below_its_parent(
    store: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    parent = MlflowTracker(store, run_dir=tmp_path / "sweep")
    config = store.model_copy(update={"parent_run_id": parent.run_id})
    child = MlflowTracker(config, run_dir=tmp_path / "trial")
    tags = client.get_run(str(child.run_id)).data.tags
    assert tags["mlflow.parentRunId"] == parent.run_id
    assert "mlflow.parentRunId" not in client.get_run(str(parent.run_id)).data.tags


def test_resumed_run_goes_on_in_the_same_mlflow_run(
    store: TrackingConfig, client: MlflowClient, tmp_path: Path
) -> None:
    first = MlflowTracker(store, run_dir=tmp_path)
    first.params({"seed": 0, "train.max_steps": 10})
    first.log({"train/loss": 1.0}, 1)
    first.close("killed")
    assert client.get_run(str(first.run_id)).info.status == "KILLED"

    second = MlflowTracker(store, run_dir=tmp_path, resume=True)
    assert second.run_id == first.run_id
    assert client.get_run(str(first.run_id)).info.status == "RUNNING"
    second.params({"seed": 0, "train.max_steps": 20})
    second.log({"train/loss": 0.5}, 2)
    second.close()
    run = client.get_run(str(first.run_id))
    assert run.data.params == {"seed": "0", "train.max_steps": "10"}
    assert run.data.tags["resumed.train.max_steps"] == "20"
    assert "resumed.seed" not in run.data.tags
    history = client.get_metric_history(str(first.run_id), "train/loss")
    assert [point.step for point in history] == [1, 2]


def test_a_new_run_in_the_same_folder_is_a_new_mlflow_run(
    store: TrackingConfig, tmp_path: Path
) -> None:
    first = MlflowTracker(store, run_dir=tmp_path)
    second = MlflowTracker(store, run_dir=tmp_path)
    assert second.run_id != first.run_id
    assert (tmp_path / RUN_ID_FILE).read_text().split() == [second.run_id, store.uri]


def test_resume_in_another_store_starts_a_new_run(
    store: TrackingConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / RUN_ID_FILE).write_text("0" * 32 + "\n")
    tracker = MlflowTracker(store, run_dir=tmp_path, resume=True)
    assert tracker.run_id not in (None, "0" * 32)
    assert "is not in this store; starting a new one" in caplog.text


@pytest.mark.parametrize(
    "uri", ["sqlite:////proc/nowhere/mlflow.db", "nosuchdriver://host/db", "nonsense:"]
)
def test_broken_store_warns_once_and_never_raises(
    uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, no_pause: None
) -> None:
    tracker = MlflowTracker(TrackingConfig(uri=uri), run_dir=tmp_path)
    for step in range(3):
        tracker.log({"train/loss": 1.0}, step)
    tracker.figure(tmp_path / "missing.png", "val", 3)
    tracker.close()
    warnings = [item.getMessage() for item in caplog.records if item.name.startswith("llm_mde")]
    assert tracker.run_id is None
    assert len(warnings) == 2
    assert "the run goes on, metrics.jsonl is complete" in warnings[0]
    assert warnings[1] == f"mlflow: 6 records were not sent; {LATER}"


def test_a_store_that_cannot_be_one_is_the_users_mistake(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="mlflow migrate-filestore --source ./mlruns"):
        MlflowTracker(TrackingConfig(uri="file:./mlruns"), run_dir=tmp_path)


def test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back(
    store: TrackingConfig,
    client: MlflowClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    no_pause: None,
) -> None:
    config = store.model_copy(update={"experiment": "gone"})
    MlflowTracker(config, run_dir=tmp_path / "first").close()
    gone = client.get_experiment_by_name("gone").experiment_id
    client.delete_experiment(gone)

    tracker = MlflowTracker(config, run_dir=tmp_path / "second")
    tracker.log({"train/loss": 1.0}, 1)
    assert tracker.run_id is None and tracker.unsent == 1
    assert len(caplog.records) == 1
    assert f"{store.uri} mlflow experiments restore --experiment-id {gone}" in caplog.text
    client.restore_experiment(gone)
    tracker.close()
    assert client.get_run(str(tracker.run_id)).data.metrics == {"train/loss": 1.0}


def test_a_resumed_run_that_was_deleted_is_a_new_one(
    store: TrackingConfig, client: MlflowClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = MlflowTracker(store, run_dir=tmp_path)
    client.delete_run(str(first.run_id))
    second = MlflowTracker(store, run_dir=tmp_path, resume=True)
    assert second.run_id not in (None, first.run_id)
    assert "starting a new one" in caplog.text


@pytest.fixture
def guarded() -> Iterator[str]:
    """Address of a server that lets nobody in, with a password."""

    class Guard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_error(403 if "Authorization" in self.headers else 401)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Guard)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:hunter2@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_refuses_says_so_once_and_no_password_is_told(
    guarded: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    no_pause: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end, whatever we set it to
    tracker = MlflowTracker(TrackingConfig(uri=guarded), run_dir=tmp_path)
    for step in range(3):
        tracker.log({"train/loss": 1.0}, step)
    tracker.close()
    said = [record.getMessage() for record in caplog.records]
    assert "the store refuses (403): give it MLFLOW_TRACKING_USERNAME" in said[0]
    assert said[1:] == [f"mlflow: 5 records were not sent; {LATER}"]
    assert problem(guarded) == tracker.problem
    assert "hunter2" not in caplog.text + repr(tracker.problem)
    with pytest.raises(
        ConfigError, match=r"http://\*\*\*@127.*the store refuses \(403\)"
    ) as caught:
        sync(_recorded(tmp_path), uri=guarded)
    assert "hunter2" not in str(caught.value)


def _recorded(run_dir: Path) -> Path:
    """A run folder that can be sent."""
    record = RunFolderTracker(run_dir)
    record.log({"train/loss": 1.0}, 1)
    record.close()
    (run_dir / "config.yaml").write_text("name: night\n")
    (run_dir / "ds.json").write_text("{}")
    return run_dir


def test_what_was_logged_during_an_outage_is_sent_afterwards(
    store: TrackingConfig, client: MlflowClient, tmp_path: Path, no_pause: None, outage: Outage
) -> None:
    tracker = MlflowTracker(store, run_dir=tmp_path)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.log({"train/loss": 2.0}, 2)
    outage.over = True
    tracker.log({"train/loss": 3.0}, 3)
    history = client.get_metric_history(str(tracker.run_id), "train/loss")
    assert [(point.step, point.value) for point in history] == [(1, 1.0), (2, 2.0), (3, 3.0)]


def test_a_dead_store_is_asked_once_a_pause(
    store: TrackingConfig, tmp_path: Path, outage: Outage
) -> None:
    tracker = MlflowTracker(store, run_dir=tmp_path)
    for step in range(50):
        tracker.log({"train/loss": 1.0}, step)
    assert outage.calls == 1
    tracker.close()
    assert outage.calls == 2


def test_what_the_store_refuses_does_not_hold_up_the_rest(
    store: TrackingConfig,
    client: MlflowClient,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tracker = MlflowTracker(store, run_dir=tmp_path)
    tracker.params({"no: such* name?": 1})
    tracker.figure(tmp_path / "missing.png", "val", 1)
    tracker.log({"train/loss": 1.0}, 1)
    tracker.close()
    assert client.get_run(str(tracker.run_id)).data.metrics == {"train/loss": 1.0}
    assert "the store refuses it" in caplog.text
    assert "missing.png" in caplog.text


def test_mlflow_reports_nothing_about_its_use(store: TrackingConfig, tmp_path: Path) -> None:
    MlflowTracker(store, run_dir=tmp_path)
    assert mlflow.telemetry.get_telemetry_client() is None


WRITERS, STEPS = 8, 40


def write_one(uri: str, run_dir: Path) -> None:
    tracker = MlflowTracker(TrackingConfig(uri=uri), run_dir=run_dir)
    tracker.params(flat(Config()))
    for step in range(STEPS):
        tracker.log({"train/loss": step + 0.5, "train/lr": 1.0}, step)
    tracker.close()
    sys.exit(0 if tracker.run_id and not tracker.unsent else 1)


def test_eight_processes_write_to_one_new_store_at_once_and_nothing_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path}/new/mlflow.db"
    names = [f"run{number}" for number in range(WRITERS)]
    fork = multiprocessing.get_context("fork")  # spares them the import
    children = [fork.Process(target=write_one, args=(uri, tmp_path / name)) for name in names]
    for child in children:
        child.start()
    for child in children:
        child.join(240)
    said = capfd.readouterr()
    assert [child.exitcode for child in children] == [0] * WRITERS, said.err
    assert (said.out, said.err) == ("", "")
    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("llm-mde")
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == names
    want = [(step, step + 0.5) for step in range(STEPS)]
    for run in runs:
        assert run.data.params.keys() == flat(Config()).keys()
        points = client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted((point.step, point.value) for point in points) == want


def test_logging_levels_of_the_caller_stay(store: TrackingConfig, tmp_path: Path) -> None:
    before = logging.getLogger().level, logging.getLogger("mlflow").level
    MlflowTracker(store, run_dir=tmp_path)
    assert (logging.getLogger().level, logging.getLogger("mlflow").level) == before
