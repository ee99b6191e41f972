"""The record of a run: a store that is away holds up nothing, a full disk ends it on all ranks."""

import errno
import json
import os
import sqlite3
import threading
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from unittest.mock import patch

import pytest
import torch
from mlflow import MlflowClient

from llm_mde.errors import DataError
from llm_mde.tracking import background
from llm_mde.tracking.sync import sync
from llm_mde.tracking.tracker import RunFolderTracker
from llm_mde.training import validate
from llm_mde.training.legend import row_of
from llm_mde.training.stopping import DONE
from tests.support.ranks import run_ranks
from tests.support.training import begin, ds_json, make_shards, tiny_config, watched_run

STEPS = 9  # an epoch, and an evaluation with figures
RUN = {"train__max_steps": STEPS, "train__figures": 2, "data__workers": 1}
FULL = OSError(errno.ENOSPC, "No space left on device")


def run_cases(rank, folder, stores):
    seen = {}
    patience = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "600"}  # of a user who does not mind waiting
    with patch.object(background, "CLOSE_S", 2.0), patch.dict(os.environ, patience):
        for name, uri in stores.items():
            tracking = {"tracking__mlflow": True, "tracking__uri": uri}
            config = tiny_config(folder / "shards", folder, name, **RUN, **tracking)
            seen[name] = watched_run(config, ds_json(1))
    places = ((validate, "sample_sheet"), (RunFolderTracker, "log"))
    for owner, name in places:
        config = tiny_config(folder / "shards", folder, f"full {name}", **RUN)
        run, _ = begin(config, ds_json(1))
        with patch.object(owner, name, side_effect=FULL), pytest.raises(DataError) as caught:
            validate.validate(run, 1)
        seen[name] = str(caught.value), caught.value.said_elsewhere
    torch.save(seen, folder / f"rank{rank}.pt")


class Silent(BaseHTTPRequestHandler):
    """A store that takes questions, and answers none before the test lets it."""

    asked, may_answer = threading.Event(), threading.Event()

    def do_POST(self):
        self.asked.set()
        self.may_answer.wait()
        self.send_error(503)

    do_GET = do_POST

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Runs beside a store that is down, one that does not answer and one that is locked."""
    folder = tmp_path_factory.mktemp("record")
    make_shards(folder / "shards")
    locked = f"sqlite:///{folder}/locked.db"
    MlflowClient(tracking_uri=locked).search_experiments()  # makes its tables
    server = ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    stores = {
        "down": "http://user:hunter2@127.0.0.1:9",
        "silent": f"http://127.0.0.1:{server.server_port}",
        "locked": locked,
    }
    with closing(sqlite3.connect(folder / "locked.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        run_ranks(run_cases, 2, folder, stores)
        other.rollback()
    assert Silent.asked.is_set()
    Silent.may_answer.set()
    server.shutdown()
    seen = [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]
    return folder, seen


@pytest.mark.parametrize("name", ["down", "silent", "locked"])
def test_a_run_goes_on_without_its_store_which_gets_all_of_it_later(ran, name, tmp_path):
    folder, seen = ran
    assert [rank[name].code for rank in seen] == [DONE, DONE]
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").open()]
    losses = [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))
    uri = f"sqlite:///{folder}/locked.db" if name == "locked" else f"sqlite:///{tmp_path}/store.db"
    first, again = sync(folder / name, uri=uri), sync(folder / name, uri=uri)
    assert again.run_id == first.run_id and again.known == first.values
    points = MlflowClient(tracking_uri=uri).get_metric_history(first.run_id, "train/loss")
    assert sorted((point.step, point.value) for point in points) == losses


def test_every_number_of_a_run_is_in_its_legend(ran):
    folder, _ = ran
    rows = [json.loads(line) for line in (folder / "down" / "metrics.jsonl").open()]
    names = {name for row in rows for name in row} - {"step", "time"}
    page = (folder / "down" / "legend.md").read_text()
    explained = {name: row_of(name) for name in names}
    assert [name for name, row in explained.items() if row is None] == []
    assert all(f"| `{row}` |" in page for row in explained.values())
    rare = {"train/skipped_steps", "train/lost_samples"}
    listed = {line.split("`")[1] for line in page.splitlines() if line.startswith("| `")}
    single = {row for row in listed if "/" in row and not row.endswith("/") and "gpu_N" not in row}
    assert single == {row for row in explained.values() if "/" in row} | rare
    assert all("epoch" in row for row in rows if "train/loss" in row or "val/abs_rel" in row)


def test_a_run_says_what_it_is(ran, tmp_path):
    folder, _ = ran
    uri = f"sqlite:///{tmp_path}/store.db"
    run = MlflowClient(tracking_uri=uri).get_run(sync(folder / "down", uri=uri).run_id)
    tags = {
        name: json.loads((folder / name / "tags.json").read_text()) for name in ("down", "silent")
    }
    assert tags["down"] == tags["silent"]  # other names and stores alone
    assert run.data.tags.items() >= tags["down"].items()
    assert run.data.tags["mlflow.note.content"] == (folder / "down" / "legend.md").read_text()
    assert tags["down"]["devices"].startswith("2 x cpu")
    root = {one.path for one in MlflowClient(tracking_uri=uri).list_artifacts(run.info.run_id)}
    assert root >= {"config.yaml", "ds.json", "environment.json", "legend.md", "figures"}
    environment = json.loads((folder / "down" / "environment.json").read_text())
    assert environment["packages"]["torch"] == version("torch")


@pytest.mark.parametrize("place", ["sample_sheet", "log"])
def test_a_full_disk_ends_every_rank_and_one_says_it(ran, place):
    _, seen = ran
    for rank in (0, 1):
        said, elsewhere = seen[rank][place]
        assert "No space left on device; make room, then the same command goes on" in said
        assert elsewhere is (rank == 1)


def test_a_password_of_the_store_is_nowhere_in_the_runs_folder(ran):
    folder, _ = ran
    files = [path for path in (folder / "down").rglob("*") if path.is_file()]
    assert "http://***@127.0.0.1:9" in (folder / "down" / "config.yaml").read_text()
    assert [path for path in files if b"hunter2" in path.read_bytes()] == []


def test_a_full_disk_leaves_no_half_status(tmp_path):
    record = RunFolderTracker(tmp_path)
    with patch("llm_mde.tracking.tracker.os.replace", side_effect=FULL):
        record.close("finished")
    assert not (tmp_path / "status").exists()
