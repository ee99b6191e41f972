"""Experiments as a user starts them: trials are trained, scored, reported, and not run twice."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from mlflow import MlflowClient

from llm_mde.cli import main
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from tests.support.shards import seal, write_shards

BASE = """
model:
  image_size: [32, 48]
  vit: {{name: "random:tiny:0", tune: lora, lora: {{r: 2, alpha: 4}}}}
  llm: {{name: "random:tiny:0", tune: frozen}}
  reprogram: {{prototypes: 8}}
  head: {{widths: [16, 16, 8, 8]}}
data: {{shards: {place}/shards, workers: 0}}
runs: {place}/runs
seed: 3
train: {{batch: 2, max_steps: 2, eval_every: 9, log_every: 1, figures: 0}}
tracking: {{uri: "sqlite:///{place}/mlflow.db"}}
"""
PAIR = """
name: pair
title: One that works, one that does not
table: IX
figure: "9"
trials:
  good: {model.prompt: none}
  broken: {optim.lr: 1.0e+30}
paper: {good: {abs_rel: 0.5}, broken: {abs_rel: 0.75}}
better: [[good, broken]]
"""
CROSS = """
name: cross
title: One trial, two tests
table: X
figure: "10"
trials: {office: {model.llm.tune: lora}}
tests: {den: den-list, hall: test}
untrained: true
better: [[den, untrained]]
"""
Command = Callable[..., tuple[int, dict]]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("experiments")
    write_shards(folder / "shards", [4])
    write_shards(folder / "shards", [1], split="val")
    write_shards(folder / "shards", [3], split="test")
    keys = (folder / "shards" / "splits" / "test.txt").read_text().splitlines()
    (folder / "shards" / "splits" / "den-list.txt").write_text("\n".join(keys[:2]) + "\n")
    seal(folder / "shards")
    for name, text in (("base", BASE.format(place=folder)), ("pair", PAIR), ("cross", CROSS)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


CHILDREN = {"cross": ["untrained", "office"]}


@pytest.fixture
def command(place: Path, capfd: pytest.CaptureFixture[str]) -> Command:
    """`llm-mde experiment` on both recipes; exit code and what it says as JSON."""

    def run(*words: str) -> tuple[int, dict]:
        recipes = [str(place / "pair.yaml"), str(place / "cross.yaml")]
        base = ["--config", str(place / "base.yaml"), "--json"]
        capfd.readouterr()
        code = main(["experiment", *recipes, *base, *words])
        return code, json.loads(capfd.readouterr().out)

    return run


def test_experiments_run_once_and_leave_a_report(place: Path, command: Command) -> None:
    code, said = command("--dry-run")
    assert code == 0 and not (place / "runs").exists() and not (place / "mlflow.db").exists()
    pair, cross = said["experiments"]
    states = [(row["trial"], row["images"], row["steps"], row["state"]) for row in pair["trials"]]
    assert states == [("good", 4, 2, "to do"), ("broken", 4, 2, "to do")]
    assert cross["tests"] == {"den": 2, "hall": 3}

    code, said = command()
    assert code == 1  # one trial failed, and the others went on
    good, broken = said["experiments"][0]["outcomes"]
    assert "not finite" in broken["error"] and not broken["scores"]
    assert (good["row"], good["seed"], good["images"], good["steps"]) == ("good", 3, 3, 2)
    assert 0 < good["trainable"] < good["parameters"] and good["memory_gb"] > 0
    result = json.loads((place / "runs" / "pair" / "good-s3.json").read_text())
    scored = result["tests"]["test"]["scores"]
    assert good["scores"]["metric/abs_rel"] == scored["test/abs_rel"]
    assert good["scores"]["mean_map/rmse"] == scored["test_mean_map/rmse"]
    rows = {(one["row"], one["test"]) for one in said["experiments"][1]["outcomes"]}
    assert rows == {("untrained", "den"), ("untrained", "hall"), ("den", "den"), ("hall", "hall")}
    for name in ("pair", "cross"):
        folder = place / "runs" / name / "report"
        assert {path.name for path in folder.iterdir()} == {
            *("table.md", "table.csv", "table.tex", "figure.png"),
        }
    table = (place / "runs" / "pair" / "report" / "table.csv").read_text().splitlines()
    ours = [row for row in csv.DictReader(table) if row["source"] == "ours"]
    assert float(ours[0]["abs_rel"]) == pytest.approx(good["scores"]["metric/abs_rel"])
    assert not list((place / "runs").rglob("*.pid"))

    check_mlflow(place / "mlflow.db", good, {"pair": ["good", "broken"], **CHILDREN})

    before = {path: path.stat().st_mtime_ns for path in (place / "runs").glob("*/*.json*")}
    assert len(before) >= 4
    (place / "pair.yaml").write_text(PAIR.replace("  broken: {optim.lr: 1.0e+30}\n", "").replace(
        ", broken: {abs_rel: 0.75}", "").replace("better: [[good, broken]]", ""))  # fmt: skip
    code, said = command("--set", f"tracking.uri=sqlite:///{place}/later.db")
    assert code == 0 and said["experiments"][0]["outcomes"] == [good]
    check_mlflow(place / "later.db", good, {"pair": ["good"], **CHILDREN})
    assert {path: path.stat().st_mtime_ns for path in before} == before
    _, said = command("--dry-run")
    assert {row["state"] for one in said["experiments"] for row in one["trials"]} == {"done"}


def check_mlflow(store: Path, good: dict, parents: dict[str, list[str]]) -> None:
    """Each experiment is a run with a child for every trial, and has the report's files."""
    client = MlflowClient(f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("llm-mde")
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    assert runs.keys() == {*parents, *(f"{p}-{t}-s3" for p, ts in parents.items() for t in ts)}
    for parent, trials in parents.items():
        run_id = runs[parent].info.run_id
        assert runs[parent].info.status == "FINISHED"
        assert "report/table.md" in [one.path for one in client.list_artifacts(run_id, "report")]
        for trial in trials:
            child = runs[f"{parent}-{trial}-s3"]
            assert child.data.tags["mlflow.parentRunId"] == run_id
    child, parent = runs["pair-good-s3"].data, runs["pair"].data
    assert child.metrics["test/abs_rel"] == good["scores"]["metric/abs_rel"]
    assert parent.metrics["good/abs_rel"] == good["scores"]["metric/abs_rel"]
    assert (child.params["row"], child.params["seed"]) == ("good", "3")
    if "broken" in parents["pair"]:
        assert runs["pair-broken-s3"].info.status == "FAILED"
    assert {"den/abs_rel", "hall_mean_map/rmse"} <= runs["cross-office-s3"].data.metrics.keys()
    recorded = read_metrics(store.parent / "runs" / "pair-good-s3" / METRICS_FILE)
    assert max(row["step"] for row in recorded) == good["steps"]
