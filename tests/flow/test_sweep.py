"""A sweep through Ray Tune: trials are processes of their own, children of one MLflow run."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llm_mde.studies.board import Leaderboard
from llm_mde.studies.records import Records
from llm_mde.studies.sweep_plan import RECORDS
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from tests.support.sweep import run_space, write_place

SPACE = """
name: pair
trials:
  small: {model.vit.lora.r: 2, model.vit.lora.alpha: 4, train.batch: 2}
  large: {model.vit.lora.r: 8, model.vit.lora.alpha: 16, train.batch: 4}
  broken: {train.batch: 4096}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("sweep"), SPACE, val=2)


@pytest.fixture(scope="module")
def board(place: Path) -> Leaderboard:
    return run_space(place)


def test_good_trials_are_ranked_and_a_failing_one_keeps_its_reason(board: Leaderboard) -> None:
    *good, broken = board.rows
    assert {row.trial for row in good} == {"small", "large"}
    scores = [row.scores["val/abs_rel"] for row in good]
    assert scores == sorted(scores)
    assert broken.trial == "broken" and not broken.scores
    assert broken.error is not None and "too few for a global batch of 4096" in broken.error


def test_the_board_holds_what_each_run_recorded(board: Leaderboard, place: Path) -> None:
    for row in board.rows[:2]:
        rows = read_metrics(place / "runs" / f"pair-{row.trial}" / METRICS_FILE)
        recorded = [line["val/abs_rel"] for line in rows if "val/abs_rel" in line]
        assert row.scores["val/abs_rel"] == min(recorded)
    ranks = {row.trial: row.settings["model.vit.lora.r"] for row in board.rows[:2]}
    assert ranks == {"small": 2, "large": 8}
    csv = (board.folder / "leaderboard.csv").read_text()
    assert csv.count("\n") == 4 and "model.vit.lora.alpha" in csv


def test_trials_are_children_of_the_sweep_in_mlflow(board: Leaderboard, place: Path) -> None:
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("llm-mde")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_name: run for run in runs}
    parent = names["pair"]
    for trial in ("pair-small", "pair-large"):
        assert names[trial].data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert "val/abs_rel" in names[trial].data.metrics
    assert parent.info.status == "FINISHED"
    assert names["pair-small"].data.params["model.vit.lora.r"] == "2"


def start_sweep(place: Path, *words: str, space: str = "two") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llm_mde", "sweep", "--space", str(place / f"{space}.yaml")]
    return subprocess.Popen(
        [*command, "--config", str(place / "base.yaml"), "--concurrent", "1", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # Where the tests run in the background, a shell has turned ctrl-C off for all below it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


def test_ctrl_c_saves_and_the_same_command_goes_on(place: Path) -> None:
    (place / "two.yaml").write_text(
        "name: two\ncommon: {train.batch: 2, train.epochs: 8, train.save_steps: 1}\n"
        "trials: {short: {train.epochs: 1}, long: {train.patience: 99}}\n"
    )
    folder, long = place / "runs" / "two", place / "runs" / "two-long"
    child = start_sweep(place)
    deadline = time.monotonic() + 300
    while not (long / "checkpoints" / "last").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    child.send_signal(signal.SIGINT)
    said, _ = child.communicate(timeout=120)
    assert child.returncode == 130 and "Traceback" not in said, said
    assert "the same command goes on" in said and not list(folder.glob("*.pid"))
    states = {name: record.state for name, record in Records(folder / RECORDS).all.items()}
    assert states == {"short": "done", "long": "begun"}
    assert (folder / "leaderboard.csv").read_text().count("\n") == 2
    saved = int((long / "checkpoints" / "last").read_text().split("-")[1])
    before = (folder / "short.log").stat().st_mtime_ns

    child = start_sweep(place, "--resume")
    said, _ = child.communicate(timeout=300)
    assert child.returncode == 0, said
    assert "2 trials, 1 of them done" in said
    assert (folder / "short.log").stat().st_mtime_ns == before
    assert f"step {saved} of 16" in (folder / "long.log").read_text()
    assert {row["step"] for row in read_metrics(long / METRICS_FILE)} == {*range(17)}


def test_two_sweeps_at_once_on_one_store_lose_nothing(place: Path) -> None:
    """They share runs, store and experiment, but not their names."""
    for name in ("left", "right"):
        (place / f"{name}.yaml").write_text(
            f"name: {name}\ntrials: {{a: {{train.batch: 2}}, b: {{train.batch: 4}}}}\n"
        )
    both = [start_sweep(place, space=name) for name in ("left", "right")]
    for child in both:
        said, _ = child.communicate(timeout=400)
        assert child.returncode == 0, said
    client = MlflowClient(f"sqlite:///{place}/mlflow.db")
    experiment = client.get_experiment_by_name("llm-mde")
    runs = client.search_runs([experiment.experiment_id])
    names = {run.info.run_name: run for run in runs}
    for name in ("left", "right"):
        for trial in (f"{name}-a", f"{name}-b"):
            assert names[trial].data.tags["mlflow.parentRunId"] == names[name].info.run_id
            assert names[trial].info.status == "FINISHED"
            recorded = read_metrics(place / "runs" / trial / METRICS_FILE)
            sent = client.get_metric_history(names[trial].info.run_id, "train/loss")
            wanted = [(row["step"], row["train/loss"]) for row in recorded if "train/loss" in row]
            assert sorted((one.step, one.value) for one in sent) == wanted
        assert (place / "runs" / name / "leaderboard.csv").read_text().count("\n") == 3


def test_a_server_that_is_away_does_not_stop_a_sweep_and_gets_all_later(place: Path) -> None:
    (place / "away.yaml").write_text("name: away\ntrials: {a: {train.batch: 2}}\n")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        child = start_sweep(place, "--set", f"tracking.uri={uri}", space="away")
        said, _ = child.communicate(timeout=400)
    assert child.returncode == 0, said
    assert "records were not sent" in said and "Traceback" not in said
    assert (place / "runs/away/leaderboard.csv").read_text().count("\n") == 2
    uri = f"sqlite:///{place}/later.db"
    child = start_sweep(place, "--set", f"tracking.uri={uri}", space="away")
    said, _ = child.communicate(timeout=400)
    assert child.returncode == 0 and "1 trials, 1 of them done" in said, said
    client = MlflowClient(uri)
    trial, parent = client.search_runs(
        [client.get_experiment_by_name("llm-mde").experiment_id],
        order_by=["attributes.run_name ASC"],
    )[::-1]
    assert (parent.info.run_name, trial.info.run_name) == ("away", "away-a")
    assert trial.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert trial.data.metrics["val/abs_rel"] > 0
