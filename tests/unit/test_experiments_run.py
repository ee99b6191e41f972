"""Running experiments with trials that end as told, without training: what fails, what is kept."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mde import __version__
from llm_mde.errors import ConfigError
from llm_mde.recipes import shipped
from llm_mde.studies import experiments
from llm_mde.studies.agenda import plan_all
from llm_mde.studies.experiments import Finished, run_all
from llm_mde.studies.paper import UNTRAINED, Experiment, Outcome
from llm_mde.studies.plan import Plan
from llm_mde.studies.process import alone
from llm_mde.studies.results import Cost, write_result
from llm_mde.studies.told import told
from llm_mde.studies.trials import Ended
from tests.support.shards import write_shards

ZERO1 = shipped("launch/ds/zero1.json")
RECIPE = """
name: {name}
title: Two trials
table: IX
figure: "9"
trials: {{a: {{optim.lr: 1.0e-3}}, b: {{optim.lr: 2.0e-3}}}}
better: [[a, b]]
"""
Run = Callable[..., list[Finished]]


@pytest.fixture
def started() -> list[str]:
    """Names of the trials that were started."""
    return []


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[str]) -> Run:
    for split in ("train", "val", "test"):
        write_shards(tmp_path / "shards", [2], split=split)
    base = tmp_path / "base.yaml"
    base.write_text(
        f"data: {{shards: {tmp_path}/shards}}\nruns: {tmp_path}/runs\n"
        "train: {batch: 2}\ntracking: {mlflow: false}\n"
    )
    monkeypatch.setattr(experiments.report, "draw", lambda *_: None)

    def run(*names: str, fail: tuple[str, ...] = (), seeds: int = 1) -> list[Finished]:
        def run_trials(work, settings, how, *, of, watch):
            started.extend(settings)
            how.folder.mkdir(parents=True, exist_ok=True)
            for name, trial in work.keywords["trials"].items():
                if name not in fail:
                    scores = {"test/abs_rel": 0.5 + trial.seed}
                    said = {"split": "test", "images": 2, "scores": scores}
                    write_result(trial, {"test": said}, Cost(1, 2))
            return {name: Ended(1.0, "no luck" if name in fail else None) for name in settings}

        monkeypatch.setattr(experiments, "run_trials", run_trials)
        for name in names:
            (tmp_path / f"{name}.yaml").write_text(RECIPE.format(name=name))
        recipes = [str(tmp_path / f"{name}.yaml") for name in names]
        planned = plan_all(recipes, base=base, tiny=False, sets=[], ds_config=ZERO1, seeds=seeds)
        return run_all(planned, ds_config=ZERO1, concurrent=None, about={"base": "base.yaml"})

    return run


def test_a_failing_trial_is_kept_with_its_reason_and_tried_again(
    run: Run, started: list[str], tmp_path: Path
) -> None:
    (first,) = run("pair", fail=("pair-b-s0",))
    assert first.errors == ["no luck"]
    a, b = first.outcomes
    assert (a.scores, b.scores) == ({"metric/abs_rel": 0.5}, {})
    table = tmp_path / "runs" / "pair" / "report" / "table.md"
    assert "no luck" in table.read_text() and any("no luck" in line for line in first.lines())
    (again,) = run("pair")
    assert started == ["pair-a-s0", "pair-b-s0", "pair-b-s0"]
    assert not again.errors and "no luck" not in table.read_text()


def test_more_seeds_run_only_the_new_ones(run: Run, started: list[str]) -> None:
    run("pair")
    (done,) = run("pair", seeds=2)
    assert started == ["pair-a-s0", "pair-b-s0", "pair-a-s1", "pair-b-s1"]
    got = [(one.row, one.seed, one.scores["metric/abs_rel"]) for one in done.outcomes]
    assert got == [("a", 0, 0.5), ("b", 0, 0.5), ("a", 1, 1.5), ("b", 1, 1.5)]


def test_an_experiment_that_lost_every_row_says_so_and_keeps_the_others(
    run: Run, started: list[str], tmp_path: Path
) -> None:
    pair, other = run("pair", "other", fail=("pair-a-s0", "pair-b-s0"))
    assert pair.errors == ["no luck", "no luck"] and not other.errors
    assert sum("no luck" in line for line in pair.lines()) >= 2
    assert started[2:] == ["other-a-s0", "other-b-s0"]
    assert (tmp_path / "runs" / "other" / "report" / "table.csv").is_file()
    assert "no luck" in (tmp_path / "runs" / "pair" / "report" / "table.md").read_text()


def test_changed_settings_stop_everything_before_it_starts(
    run: Run, started: list[str], tmp_path: Path
) -> None:
    run("pair")
    (tmp_path / "base.yaml").write_text(
        (tmp_path / "base.yaml").read_text() + "optim: {clip: 2.0}\n"
    )
    with pytest.raises(ConfigError, match=r"a-s0\.json: .*optim\.clip was 1\.0, now 2\.0"):
        run("other", "pair")
    assert started == ["pair-a-s0", "pair-b-s0"]


def test_dry_run_says_trials_steps_tests_and_what_is_done(run: Run, tmp_path: Path) -> None:
    run("pair")
    (planned,) = plan_all(
        [str(tmp_path / "pair.yaml")],
        base=tmp_path / "base.yaml",
        tiny=False,
        sets=[],
        ds_config=ZERO1,
        seeds=2,
    )
    title, head, *rows, tests, folder = planned.lines()
    assert title == "pair: Two trials (Table IX)"
    assert head.split() == ["trial", "seed", "train", "list", "images", "batch", "steps", "state"]
    assert [row.split() for row in rows[:2]] == [
        ["a", "0", "train", "2", "2", "50", "done"],
        ["b", "0", "train", "2", "2", "50", "done"],
    ]
    assert [row.split()[-2:] for row in rows[2:]] == [["to", "do"], ["to", "do"]]
    assert (tests, folder) == ("tests: test (2 images)", f"folder: {tmp_path}/runs/pair")


def test_a_folder_that_another_command_works_in_is_left_alone(
    run: Run, started: list[str], tmp_path: Path
) -> None:
    with (
        alone(tmp_path / "runs" / "pair"),
        pytest.raises(ConfigError, match="runs/pair: another command runs trials in it"),
    ):
        run("pair")
    assert not started


def test_a_report_that_was_cut_short_is_made_by_the_next_command(
    run: Run, started: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []

    def draw(experiment, adapters, tests, path):
        assert [*adapters] == ["a", "b"]  # named by their titles in the figure itself
        drawn.append(path)
        if len(drawn) == 1:
            raise KeyboardInterrupt
        path.write_bytes(b"a picture")

    monkeypatch.setattr(experiments.report, "draw", draw)
    with pytest.raises(KeyboardInterrupt):
        run("pair")
    (done,) = run("pair")
    assert (len(started), len(drawn)) == (2, 2)
    assert drawn[-1] in done.files
    run("pair")
    assert len(drawn) == 2
    run("pair", seeds=2)
    assert len(drawn) == 3


def test_the_parent_tells_the_tests_of_the_model_before_training_apart(tmp_path: Path) -> None:
    class Parent:
        def log(self, metrics: dict[str, float], step: int) -> None:
            self.means = metrics

        def artifacts(self, folder: Path, name: str) -> None:
            pass

    experiment = Experiment(
        name="cross",
        title="x",
        table="II",
        figure="2",
        trials={"bedroom": {}},
        tests={"bath": "val", "den": "test"},
        untrained=True,
    )
    outcomes = [
        Outcome(
            row, test, 0, {"metric/abs_rel": value, "constant/abs_rel": 0.9}, 1, *([1] * 5), test
        )
        for row, test, value in (
            *((UNTRAINED, "bath", 0.75), (UNTRAINED, "den", 0.5)),
            *(("bath", "bath", 0.25), ("den", "den", 0.125)),
        )
    ]
    parent = Parent()
    experiments._record(parent, Plan(experiment, tmp_path, [], {}), outcomes)
    got = {name: value for name, value in parent.means.items() if "constant" not in name}
    assert got == {
        "bath/abs_rel": 0.25,
        "den/abs_rel": 0.125,
        "untrained_bath/abs_rel": 0.75,
        "untrained_den/abs_rel": 0.5,
    }
    assert {"constant_bath/abs_rel", "constant_den/abs_rel"} <= parent.means.keys()


def test_a_report_says_what_the_trials_started_from() -> None:
    def base(path: Path | None, *, tiny: bool) -> str:
        return told(base=path, tiny=tiny, sets=[], ds_config=ZERO1)["base"]

    assert base(Path("nyu.yaml"), tiny=False) == "nyu.yaml"
    version = told(base=None, tiny=True, sets=[], ds_config=ZERO1)["version"]
    git = ["git", "describe", "--always", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    assert version.removesuffix("-dirty") == f"{__version__}, commit {commit}"
    assert base(Path("nyu.yaml"), tiny=True) == "nyu.yaml, as a tiny model"
    assert base(None, tiny=False) == "the recipe's, as a tiny model"
