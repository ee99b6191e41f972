"""A server is as good a store as a sqlite file: the same tests, and a whole run by its commands."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from mlflow import MlflowClient
from PIL import Image

from llm_mde.cli import main
from llm_mde.config import TrackingConfig
from llm_mde.recipes import flat
from llm_mde.tracking.mlflow import MlflowTracker
from tests.support.servers import BUCKET, PASSWORD, Server, mlflow_server, sqlalchemy_address
from tests.support.training import make_shards

# The tests of a sqlite store, which take theirs from the fixtures `store` and `uri` of this file.
from tests.unit.test_mlflow import (  # noqa: F401, the tests and their fixtures
    client,
    no_pause,
    outage,
    test_a_deleted_experiment_is_named_with_the_command_that_brings_it_back,
    test_a_new_run_in_the_same_folder_is_a_new_mlflow_run,
    test_a_resumed_run_that_was_deleted_is_a_new_one,
    test_child_hangs_below_its_parent,
    test_more_parameters_and_longer_values_than_one_call_takes,
    test_resumed_run_goes_on_in_the_same_mlflow_run,
    test_run_can_be_read_back,
    test_what_the_store_refuses_does_not_hold_up_the_rest,
    test_what_was_logged_during_an_outage_is_sent_afterwards,
)
from tests.unit.test_registry import (  # noqa: F401
    test_a_registered_adapter_predicts_as_its_run,
    test_a_run_may_be_named_by_its_id_alone,
    test_a_version_stays_what_it_was,
    test_what_cannot_be_registered_is_said,
    trained,
)
from tests.unit.test_sync import (  # noqa: F401
    run,
    test_a_record_gets_there_whole_and_once,
    test_steps_done_again_after_a_kill_are_recorded_once,
    test_two_values_at_one_step_are_two,
    test_what_an_outage_lost_is_filled_in,
)

psycopg = pytest.importorskip("psycopg", reason="needs psycopg[binary]")
s3fs = pytest.importorskip("s3fs")

TOKEN = "opensesame"  # of the server, which lets anybody in


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with mlflow_server() as running:
        yield running


@pytest.fixture(scope="module")
def store(server: Server) -> TrackingConfig:
    return TrackingConfig(uri=server.uri, experiment="depth")


@pytest.fixture(scope="module")
def uri(server: Server) -> str:
    return server.uri


def train(words: list[str], cwd: Path) -> str:
    """What a training run says on both streams; it succeeds."""
    kept = {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"}
    done = subprocess.run(
        [sys.executable, "-m", "llm_mde", "train", *words],
        cwd=cwd,
        env=kept | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def command(*words: object) -> str:
    """What another command says, in this process."""
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        assert main([*map(str, words)]) == 0, said.getvalue()
    return said.getvalue()


@pytest.fixture(scope="module")
def whole(server: Server, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, str]:
    """A run trained, registered and used by its commands: folder, id, and all they said."""
    folder = tmp_path_factory.mktemp("whole")
    make_shards(folder / "shards")
    secret = server.uri.replace("http://", f"http://user:{TOKEN}@")
    sets = {
        "name": "run",
        "data.shards": "shards",
        "data.workers": 0,
        "tracking.uri": secret,
        "train.batch": 4,
        "train.max_steps": 3,
        "train.log_every": 1,
        "train.figures": 2,
    }
    words = [word for key, value in sets.items() for word in ("--set", f"{key}={value}")]
    said = train(["--config", "launch/demo.yaml", *words], folder)
    done, out = folder / "runs" / "run", folder / "out"
    Image.new("RGB", (64, 48), "gray").save(folder / "room.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", secret)
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        said += command("track", "sync", done)
        said += command("track", "register", done, "--name", "whole")
        adapter = "models:/whole/1"
        said += command("predict", folder / "room.png", "--adapter", adapter, "--out", out)
    return folder, (folder / "runs" / "run" / "mlflow_run_id").read_text().split()[0], said


def test_a_whole_run_is_on_the_server(whole, server: Server) -> None:
    folder, run_id, said = whole
    found = MlflowClient(tracking_uri=server.uri).get_run(run_id)
    assert found.info.status == "FINISHED"
    assert found.data.tags["mlflow.source.name"] == "llm-mde"
    assert found.data.params["tracking.uri"] == server.uri.replace("http://", "http://***@")
    rows = [json.loads(line) for line in (folder / "runs" / "run" / "metrics.jsonl").open()]
    sent = MlflowClient(tracking_uri=server.uri).get_metric_history(run_id, "train/loss")
    assert [point.value for point in sent] == [r["train/loss"] for r in rows if "train/loss" in r]
    assert (folder / "out" / "room_depth_mm.png").is_file()
    paths = s3fs.S3FileSystem().find(BUCKET)
    objects = {path.partition(f"{run_id}/artifacts/")[2] for path in paths}
    assert objects >= {"config.yaml", "ds.json", "legend.md", "environment.json"}
    assert any(name.startswith("registered/") for name in objects)


def test_nothing_that_is_kept_or_said_holds_a_password(whole, server: Server) -> None:
    folder, _, said = whole
    database = TrackingConfig(uri=sqlalchemy_address(server.database))
    direct = MlflowTracker(database, run_dir=folder / "direct")
    direct.params(flat(database))
    direct.close()
    assert direct.run_id is not None
    bucket = s3fs.S3FileSystem()
    kept = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    kept += [bucket.cat_file(path) for path in bucket.find(BUCKET)]
    kept += [said.encode(), *_texts(server.database)]
    for secret in (TOKEN, PASSWORD):
        assert [blob[:80] for blob in kept if secret.encode() in blob] == []


def test_an_artifact_store_that_refuses_holds_up_no_numbers(
    server: Server,
    tmp_path: Path,
    client: MlflowClient,  # noqa: F811
    caplog: pytest.LogCaptureFixture,
) -> None:
    client.create_experiment("lost", artifact_location="s3://no-such-bucket/lost")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "weights").write_text("w")
    tracker = MlflowTracker(TrackingConfig(uri=server.uri, experiment="lost"), run_dir=tmp_path)
    tracker.artifacts(tmp_path / "adapter", "adapter")
    tracker.log({"train/loss": 1.0}, 1)
    tracker.close()
    assert tracker.unsent == 0
    assert client.get_run(str(tracker.run_id)).data.metrics == {"train/loss": 1.0}
    [said] = [line.getMessage() for line in caplog.records if line.name.startswith("llm_mde")]
    assert "NoSuchBucket" in said and "'llm-mde track sync' sends it later" in said


def _texts(database: str) -> Iterator[bytes]:
    """Every row of every table, as text."""
    with psycopg.connect(database) as connection, connection.cursor() as cursor:
        cursor.execute("select tablename from pg_tables where schemaname = 'public'")
        for (table,) in cursor.fetchall():
            cursor.execute(f'select t::text from "{table}" t')
            yield from (row[0].encode() for row in cursor.fetchall())
