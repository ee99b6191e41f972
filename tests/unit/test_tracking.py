import errno
import json
import math
from pathlib import Path

import pytest

from llm_mde.errors import DataError
from llm_mde.recipes import build
from llm_mde.tracking.tracker import RunFolderTracker, Tracker, Trackers, read_metrics, read_status
from llm_mde.training.record import open_record


def steps(run_dir: Path) -> list[int]:
    return [row["step"] for row in read_metrics(run_dir / "metrics.jsonl")]


def record(run_dir: Path, last: int) -> None:
    tracker = RunFolderTracker(run_dir)
    for step in range(1, last + 1):
        tracker.log({"train/loss": 1 / step}, step)
    tracker.close()


def test_each_log_is_one_json_line_on_disk_at_once(tmp_path: Path) -> None:
    tracker = RunFolderTracker(tmp_path)
    tracker.log({"train/loss": 2.5, "train/lr": 2e-5}, 20)
    text = (tmp_path / "metrics.jsonl").read_text()  # before close
    tracker.close()
    row = json.loads(text)
    assert text.endswith("\n")
    assert row.pop("time") > 1.6e9
    assert row == {"step": 20, "train/loss": 2.5, "train/lr": 2e-5}


def test_resume_drops_the_lines_after_the_checkpoint(tmp_path: Path) -> None:
    record(tmp_path, 5)
    before = read_metrics(tmp_path / "metrics.jsonl")
    tracker = RunFolderTracker(tmp_path, resume_step=3)
    assert read_metrics(tmp_path / "metrics.jsonl") == before[:3]
    tracker.log({"train/loss": 0.1}, 4)
    tracker.close()
    assert steps(tmp_path) == [1, 2, 3, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["metrics.jsonl", "status"]


def test_a_new_run_starts_an_empty_record(tmp_path: Path) -> None:
    record(tmp_path, 5)
    RunFolderTracker(tmp_path).close()
    assert steps(tmp_path) == []


def test_resume_without_a_record_starts_one(tmp_path: Path) -> None:
    RunFolderTracker(tmp_path / "run", resume_step=7).close()
    assert steps(tmp_path / "run") == []


def test_a_line_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    record(tmp_path, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "train/lo')
    assert steps(tmp_path) == [1, 2]
    RunFolderTracker(tmp_path, resume_step=9).close()
    assert steps(tmp_path) == [1, 2]


def test_a_loss_that_is_not_a_number_is_kept_in_the_record(tmp_path: Path) -> None:
    tracker = RunFolderTracker(tmp_path)
    tracker.log({"train/loss": math.nan}, 1)
    tracker.close()
    assert math.isnan(read_metrics(tmp_path / "metrics.jsonl")[0]["train/loss"])


def test_several_trackers_all_hear_everything() -> None:
    heard: list[tuple] = []

    class Listener(Tracker):
        def params(self, params: object) -> None:
            heard.append(("params", params))

        def log(self, metrics: object, step: int) -> None:
            heard.append(("log", metrics, step))

        def figure(self, path: Path, name: str, step: int) -> None:
            heard.append(("figure", path, name, step))

        def artifacts(self, folder: Path, name: str) -> None:
            heard.append(("artifacts", folder, name))

        def close(self, status: str = "finished") -> None:
            heard.append(("close", status))

    calls: list[tuple] = [
        ("params", {"seed": 0}),
        ("log", {"val/loss": 1.0}, 3),
        ("figure", Path("a.png"), "val", 3),
        ("artifacts", Path("adapter"), "adapter"),
        ("close", "killed"),
    ]
    for tracker in (Trackers(Listener(), Listener()), Tracker()):
        for name, *args in calls:
            getattr(tracker, name)(*args)
    assert heard == [call for call in calls for _ in range(2)]


def test_a_record_that_can_not_be_opened_is_closed(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = build({"runs": str(tmp_path), "name": "run", "tracking": {"mlflow": False}})
    monkeypatch.setattr(RunFolderTracker, "params", full)
    with pytest.raises(DataError, match="No space left on device; make room"):
        open_record(config, {}, resume_step=None)
    assert read_status(tmp_path / "run") == "failed"
