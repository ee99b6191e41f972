"""A run's record replayed into MLflow."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from PIL import Image

from llm_mde.cli import main
from llm_mde.config import TrackingConfig
from llm_mde.errors import ConfigError
from llm_mde.tracking import mlflow as mlflow_module
from llm_mde.tracking.mlflow import RUN_ID_FILE, MlflowTracker
from llm_mde.tracking.sync import catch_up, sync
from llm_mde.tracking.tracker import RunFolderTracker

ROWS = [({"train/loss": 3.0}, 1), ({"train/loss": 2.0}, 2), ({"val/abs_rel": 0.5, "epoch": 1.0}, 2)]


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder whose training had no store."""
    folder = tmp_path / "night"
    record = RunFolderTracker(folder)
    for metrics, step in ROWS:
        record.log(metrics, step)
    record.close("finished")
    (folder / "config.yaml").write_text("name: night\n")
    (folder / "ds.json").write_text(json.dumps({"train_batch_size": 4}))
    (folder / "figures").mkdir()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "figures" / "val-000002.png")
    (folder / "adapter").mkdir()
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    return folder


def history(uri: str, run_id: str, name: str) -> list[tuple[int, float]]:
    points = MlflowClient(tracking_uri=uri).get_metric_history(run_id, name)
    return sorted((point.step, point.value) for point in points)


def pictures(uri: str, run_id: str) -> list[str]:
    return [one.path for one in MlflowClient(tracking_uri=uri).list_artifacts(run_id, "figures")]


def test_a_record_gets_there_whole_and_once(run: Path, uri: str) -> None:
    first = sync(run, uri=uri)
    again = sync(run, uri=uri)
    assert (first.values, first.known, again.known) == (4, 0, 4)
    assert first.run_id == again.run_id == (run / RUN_ID_FILE).read_text().split()[0]
    found = MlflowClient(tracking_uri=uri).get_run(first.run_id)
    assert (found.info.run_name, found.info.status) == ("night", "FINISHED")
    assert found.data.params["optim.lr"] == "2e-05"
    assert history(uri, first.run_id, "train/loss") == [(1, 3.0), (2, 2.0)]
    assert history(uri, first.run_id, "val/abs_rel") == [(2, 0.5)]
    assert pictures(uri, first.run_id) == ["figures/val-000002.png"]
    client = MlflowClient(tracking_uri=uri)
    assert [one.path for one in client.list_artifacts(first.run_id, "adapter")]
    times = [point.timestamp for point in client.get_metric_history(first.run_id, "train/loss")]
    logged = [json.loads(line)["time"] for line in (run / "metrics.jsonl").open()]
    assert times == [round(1000 * time) for time in logged[:2]]


def test_what_an_outage_lost_is_filled_in(
    run: Path, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracker = MlflowTracker(TrackingConfig(uri=uri), run_dir=run)
    tracker.log(*ROWS[0])
    with monkeypatch.context() as away:
        away.setattr(mlflow_module, "RETRY_S", 0.0)
        away.setattr(MlflowClient, "log_batch", _refuse)
        tracker.log(*ROWS[1])
        tracker.close()
    assert tracker.unsent
    done = sync(run, uri=uri)
    assert (done.run_id, done.known) == (tracker.run_id, 1)
    assert history(uri, done.run_id, "train/loss") == [(1, 3.0), (2, 2.0)]


def test_steps_done_again_after_a_kill_are_recorded_once(run: Path, uri: str) -> None:
    before = MlflowTracker(TrackingConfig(uri=uri), run_dir=run)
    for metrics, step in ROWS:
        before.log(metrics, step)
    picture = run / "figures" / "val-000002.png"
    before.figure(picture, "val", 2)
    after = MlflowTracker(TrackingConfig(uri=uri), run_dir=run, resume=True)
    for metrics, step in [*ROWS[1:], ({"train/loss": 1.0}, 3)]:
        after.log(metrics, step)
    after.figure(picture, "val", 2)
    after.close()
    assert after.run_id == before.run_id
    assert history(uri, str(after.run_id), "train/loss") == [(1, 3.0), (2, 2.0), (3, 1.0)]
    assert history(uri, str(after.run_id), "epoch") == [(2, 1.0)]
    assert pictures(uri, str(after.run_id)) == ["figures/val-000002.png"]


def test_two_values_at_one_step_are_two(run: Path, uri: str) -> None:
    record = RunFolderTracker(run, resume_step=2)
    for count in (1.0, 2.0):  # batches left out after one step
        record.log({"train/skipped_steps": count}, 2)
    record.close()
    first, again = sync(run, uri=uri), sync(run, uri=uri)
    assert (first.values, first.known, again.known) == (6, 0, 6)
    assert history(uri, first.run_id, "train/skipped_steps") == [(2, 1.0), (2, 2.0)]


def test_a_run_may_be_in_several_stores(run: Path, uri: str, tmp_path: Path) -> None:
    other = f"sqlite:///{tmp_path}/other.db"
    first, second, third = (sync(run, uri=one) for one in (uri, other, uri))
    assert first.run_id == third.run_id != second.run_id
    assert (second.known, third.known) == (0, 4)
    resumed = MlflowTracker(TrackingConfig(uri=uri), run_dir=run, resume=True)
    assert resumed.run_id == first.run_id


def test_a_run_that_is_going_on_is_left_to_itself(run: Path, uri: str, capsys) -> None:
    lock = FileLock(run.parent / ".night.lock")
    with lock:
        assert main(["track", "sync", str(run), "--uri", uri]) == 2
    assert "another program is training this run" in capsys.readouterr().err


def test_a_run_that_was_killed_is_said_to_be(run: Path, uri: str) -> None:
    (run / "status").unlink()
    done = sync(run, uri=uri)
    assert MlflowClient(tracking_uri=uri).get_run(done.run_id).info.status == "KILLED"


def test_a_store_that_does_not_answer_is_an_error(run: Path, monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(ConfigError, match="^http://127.0.0.1:9: .* the record stays"):
        sync(run, uri="http://127.0.0.1:9")


def test_children_that_a_store_lacks_get_there_below_their_parent(
    run: Path, uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    client = MlflowClient(tracking_uri=uri)
    names = ("complete", "begun", "scored", "empty")
    complete, begun, scored, empty = (shutil.copytree(run, tmp_path / name) for name in names)
    (empty / "config.yaml").unlink()
    parent = MlflowTracker(TrackingConfig(uri=uri), run_dir=tmp_path / "sweep")
    known = sync(complete, uri=uri, parent=parent.run_id).run_id
    ended = client.get_run(known).info.end_time
    MlflowTracker(TrackingConfig(uri=uri), run_dir=begun)  # the store went away behind its start
    addition = MlflowTracker(TrackingConfig(uri=uri), run_dir=scored, resume=True)
    addition.log({"test/abs_rel": 0.5}, 2)
    addition.close(whole=False)

    catch_up([empty, run, complete, begun, scored, tmp_path / "never trained"], parent)
    assert f"{empty}: no config.yaml" in caplog.text

    found = client.search_runs(
        [client.get_run(known).info.experiment_id],
        filter_string=f'tags."mlflow.parentRunId" = "{parent.run_id}"',
    )
    assert {one.info.run_name for one in found} == {"night", "complete", "begun", "scored"}
    for one in found:
        assert one.info.status == "FINISHED"
        assert history(uri, one.info.run_id, "train/loss") == [(1, 3.0), (2, 2.0)]
    assert client.get_run(known).info.end_time == ended
    ends = {one.info.run_id: one.info.end_time for one in found}
    catch_up([run, complete, begun, scored], parent)
    assert {one: client.get_run(one).info.end_time for one in ends} == ends


def test_a_parent_whose_store_is_away_says_so_and_no_more(
    run: Path, tmp_path: Path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    parent = MlflowTracker(TrackingConfig(uri="http://127.0.0.1:9"), run_dir=tmp_path / "sweep")
    catch_up([run], parent)
    assert len(caplog.records) == 1 and "the run goes on" in caplog.text


def test_the_command_says_what_it_sent(run: Path, uri: str, capsys) -> None:
    assert main(["track", "sync", str(run), "--uri", uri]) == 0
    assert "4 values, 0 of them there already" in capsys.readouterr().out
    assert main(["track", "sync", str(run.parent), "--uri", uri]) == 2
    assert "expected a run folder" in capsys.readouterr().err


def _refuse(*_: object, **__: object) -> None:
    raise MlflowException("connection refused")
