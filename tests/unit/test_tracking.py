import errno
import json
import math
import subprocess
from pathlib import Path

import pytest

from llm_mde.clone import commit
from llm_mde.errors import DataError
from llm_mde.recipes import build
from llm_mde.tracking.about import describe, origin
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

        def tags(self, tags: object) -> None:
            heard.append(("tags", tags))

        def files(self, paths: object) -> None:
            heard.append(("files", paths))

        def close(self, status: str = "finished") -> None:
            heard.append(("close", status))

    calls: list[tuple] = [
        ("params", {"seed": 0}),
        ("log", {"val/loss": 1.0}, 3),
        ("figure", Path("a.png"), "val", 3),
        ("artifacts", Path("adapter"), "adapter"),
        ("tags", {"host": "a"}),
        ("files", [Path("a.txt")]),
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


def test_what_a_run_is_gets_to_its_tracker_as_far_as_the_folder_has_it(tmp_path: Path) -> None:
    seen: dict[str, object] = {}

    class Listener(Tracker):
        def tags(self, tags: object) -> None:
            seen["tags"] = tags

        def files(self, paths: list[Path]) -> None:
            seen["files"] = [path.name for path in paths]

    describe(Listener(), tmp_path)  # a run of before
    assert seen == {"tags": {}, "files": []}
    (tmp_path / "config.yaml").write_text("name: night\n")
    (tmp_path / "tags.json").write_text('{"config.sha256": "ab"}')
    (tmp_path / "legend.md").write_text("# Metrics\n")
    describe(Listener(), tmp_path)
    assert seen["tags"] == {"config.sha256": "ab", "mlflow.note.content": "# Metrics\n"}
    assert seen["files"] == ["config.yaml", "legend.md"]


def test_a_commit_is_said_in_full_and_only_where_the_package_lies_in_a_clone(
    tmp_path: Path, monkeypatch
) -> None:
    def git(*words: str) -> str:
        command = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr("llm_mde.clone.PACKAGE", tmp_path)
    assert commit() is None  # no clone
    git("init", "-q")
    (tmp_path / "cli.py").write_text("")
    (tmp_path / "other.py").write_text("")
    git("add", "other.py")
    git("commit", "-qm", "first")
    assert commit() is None  # installed into an environment that lies in somebody's clone
    git("add", "cli.py")
    git("commit", "-qm", "second")
    found = commit()
    assert found is not None and not found.dirty
    assert found.sha == git("rev-parse", "HEAD") and found.sha.startswith(found.short)
    assert origin()["mlflow.source.git.commit"] == found.sha
    (tmp_path / "cli.py").write_text("changed\n")
    assert origin()["git.dirty"] == "true"
