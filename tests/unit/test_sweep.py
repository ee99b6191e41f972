"""Sweeps with trials that end as told, without training: what is kept, goes on, is refused."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from llm_mde.cli import main
from llm_mde.errors import ConfigError
from llm_mde.recipes import shipped
from llm_mde.studies import sweep as module
from llm_mde.studies.board import Leaderboard
from llm_mde.studies.records import Record, Records
from llm_mde.studies.share import Share
from llm_mde.studies.sweep import run_sweep
from llm_mde.studies.sweep_plan import Sweep, begun, claim, plan_sweep
from llm_mde.studies.trials import Ended
from tests.support.shards import write_shards

SPACE = "name: pair\nparameters: {optim.lr: {grid: [1.0e-3, 2.0e-3]}}\n"
TEXTS = (".json", ".jsonl", ".csv", ".md", ".html", ".yaml", ".log")
Plan = Callable[..., Sweep]
Run = Callable[..., Leaderboard]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    for split in ("train", "val"):
        write_shards(tmp_path / "shards", [4], split=split)
    (tmp_path / "base.yaml").write_text(
        f"data: {{shards: {tmp_path}/shards}}\nruns: {tmp_path}/runs\n"
        "train: {batch: 2, epochs: 3}\ntracking: {mlflow: false}\n"
    )

    def plan(text: str = SPACE, *, seeds: int = 1, sets: tuple[str, ...] = (), **search) -> Sweep:
        (tmp_path / "space.yaml").write_text(text)
        return plan_sweep(
            tmp_path / "space.yaml",
            base=tmp_path / "base.yaml",
            tiny=False,
            sets=list(sets),
            ds_config=shipped("launch/ds/zero1.json"),
            search=search,
            seeds=seeds,
            max_trials=500,
        )

    return plan


@pytest.fixture
def started() -> list[str]:
    """Names of the trials that were started."""
    return []


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, started: list[str]) -> Run:
    def run(
        sweep: Sweep, *, fail: tuple[str, ...] = (), stop: tuple[str, ...] = (), cut: int = 99
    ) -> Leaderboard:
        def run_trials(work, trials, how, *, of, watch, more=None, samples=0):
            for number, (name, settings) in enumerate(trials.items()):
                if number == cut:
                    raise KeyboardInterrupt
                started.append(name)
                watch.started(name, settings)
                if number == cut - 1:
                    continue  # it was at work when the sweep was cut off
                config = sweep.base.config_of(name, settings)
                config.run_dir.mkdir(parents=True, exist_ok=True)
                rows = [
                    {"step": step, "time": 0.0, "val/abs_rel": 100 * config.optim.lr / step}
                    for step in (1, 2)
                ]
                if name not in fail:
                    lines = "".join(json.dumps(row) + "\n" for row in rows)
                    (config.run_dir / "metrics.jsonl").write_text(lines)
                    for row in rows:
                        watch.row(name, row)
                watch.ended(name, Ended(3.0, "no luck" if name in fail else None, name in stop))

        monkeypatch.setattr(module, "run_trials", run_trials)
        return run_sweep(sweep, share=Share(), about={}).board

    return run


def test_the_board_ranks_by_the_best_evaluation(plan: Plan, run: Run) -> None:
    board = run(plan())
    got = [(row.trial, row.settings, row.scores, row.steps) for row in board.rows]
    assert got == [
        ("t000", {"optim.lr": 1e-3}, {"val/abs_rel": 0.05}, 2),
        ("t001", {"optim.lr": 2e-3}, {"val/abs_rel": 0.1}, 2),
    ]
    assert (board.folder / "leaderboard.csv").read_text().count("\n") == 3


def test_a_trial_that_is_over_does_not_run_again_a_failed_one_does(
    plan: Plan, run: Run, started: list[str]
) -> None:
    board = run(plan(), fail=("t001",))
    assert [row.error for row in board.rows] == [None, "no luck"]
    board = run(plan())
    assert started == ["t000", "t001", "t001"]
    assert [row.error for row in board.rows] == [None, None]
    assert board.rows[1].seconds == 6.0  # of both attempts
    run(plan())
    assert len(started) == 3


def test_a_sweep_that_was_cut_off_goes_on(plan: Plan, run: Run, started: list[str]) -> None:
    text = "name: four\nparameters: {optim.lr: {grid: [1.0e-3, 2.0e-3, 3.0e-3, 4.0e-3]}}\n"
    with pytest.raises(KeyboardInterrupt):
        run(plan(text), cut=2)
    folder = plan(text).folder
    assert (folder / "leaderboard.csv").read_text().count("\n") == 2  # what had ended
    begun(plan(text))
    board = run(plan(text))
    assert started == ["t000", "t001", "t001", "t002", "t003"]
    assert len(board.rows) == 4


def test_a_record_cut_short_by_a_crash_is_dropped(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    Records(path).add(Record("a", {"seed": 1}, "done", 2.0, 0.5))
    path.write_text(path.read_text() + '{"name": "b", "sett')
    records = Records(path)
    assert list(records.all) == ["a"]
    records.add(Record("c", {}))
    assert list(Records(path).all) == ["a", "c"]


def test_a_scheduler_hears_of_finished_trials_again_and_their_end_stays(
    plan: Plan, run: Run, started: list[str]
) -> None:
    run(plan(scheduler="asha"), stop=("t001",))
    board = run(plan(scheduler="asha"))
    assert started == ["t000", "t001"]  # nothing is left to be judged
    assert [row.seconds for row in board.rows] == [3.0, 3.0]
    assert Records(board.folder / "trials.jsonl").all["t001"].state == "stopped"


def test_seeds_share_a_trial_s_name_and_more_of_them_run_the_new_ones(
    plan: Plan, run: Run, started: list[str]
) -> None:
    run(plan())
    board = run(plan(seeds=2))
    assert started == ["t000", "t001", "t000-s1", "t001-s1"]
    assert sorted((row.trial, row.seed) for row in board.rows) == [
        ("t000", 0), ("t000", 1), ("t001", 0), ("t001", 1)
    ]  # fmt: skip
    assert {row.run.name for row in board.rows} >= {"pair-t000", "pair-t000-s1"}
    with pytest.raises(ConfigError, match="it sets seeds itself"):
        plan("name: s\ntrials: {a: {seed: 1}}\n", seeds=2)


def test_a_name_with_another_space_or_base_is_refused(plan: Plan, run: Run) -> None:
    run(plan())
    other = SPACE.replace("2.0e-3", "5.0e-3")
    with pytest.raises(
        ConfigError, match=r"runs/pair: holds a sweep with other settings: .*0\.005"
    ):
        run(plan(other))
    with pytest.raises(ConfigError, match=r"optim\.clip was 1\.0, now 2\.0"):
        run(plan(sets=("optim.clip=2.0",)))
    run(plan(sets=("data.workers=0",)))  # moves no number


def test_more_samples_go_on_with_the_same_ones(plan: Plan, run: Run, started: list[str]) -> None:
    text = "name: drawn\nparameters: {optim.lr: {loguniform: [1.0e-5, 1.0e-2]}}\n"
    run(plan(text, samples=2))
    run(plan(text, samples=4))
    assert started == ["t000", "t001", "t002", "t003"]


def test_other_draws_under_the_same_name_are_refused(plan: Plan, run: Run) -> None:
    text = "name: drawn\nparameters: {optim.lr: {choice: [1.0e-3, 2.0e-3, 3.0e-3, 4.0e-3]}}\n"
    run(plan(text, samples=2))
    with pytest.raises(ConfigError, match=r"runs/drawn: trial t00. ran with .* now "):
        run(plan(text, searcher="grid"))
    with pytest.raises(ConfigError, match=r"runs/drawn: trial t00. ran with .* now "):
        run(plan(text.replace("}}", "}}\nsearch: {seed: 5}"), samples=2))


def test_a_board_of_fewer_seeds_still_knows_the_others(plan: Plan, run: Run) -> None:
    run(plan(seeds=3))
    board = run(plan())
    assert {row.trial for row in board.rows} == {"t000", "t001"} and len(board.rows) == 6


def test_a_population_s_finished_trials_are_left_alone(
    plan: Plan, run: Run, started: list[str]
) -> None:
    run(plan(scheduler="pbt"), cut=2)
    run(plan(scheduler="pbt"))
    assert started == ["t000", "t001", "t001"]
    for words, text in (
        ({"seeds": 2}, SPACE),
        ({}, SPACE.replace("}}", "}, seed: {value: 1}}")),
        ({}, SPACE.replace("]}", "], when: {train.loss: silog}}")),
    ):
        with pytest.raises(ConfigError, match="space pair: .*pbt"):
            plan(text, scheduler="pbt", **words)


def test_a_password_in_the_words_of_a_sweep_stays_out_of_its_files(
    plan: Plan, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    sweep = plan(sets=("tracking.uri=postgresql://me:secret@host/db",))
    board = run(sweep)
    said = "".join(path.read_text() for path in board.folder.rglob("*") if path.suffix in TEXTS)
    assert "postgresql://***@host/db" in said and "secret" not in said


def test_every_trial_lost_is_an_error_that_says_why(plan: Plan, run: Run) -> None:
    with pytest.raises(ConfigError, match="pair: every trial failed; the first: no luck"):
        run(plan(), fail=("t000", "t001"))


def test_resume_of_nothing_is_refused(plan: Plan) -> None:
    with pytest.raises(ConfigError, match="--resume: .*runs/pair holds no sweep"):
        begun(plan())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--searcher", "annealing"], "'annealing' is not one of"),
        (["--scheduler", "hyper"], "'hyper' is not one of"),
        (["--max-trials", "1"], "2 trials, more than --max-trials 1"),
        (["--searcher", "optuna", "--seeds", "2"], "optuna suggests each trial once"),
        (["--searcher", "optuna", "--samples", "9999"], "9999 trials, more than --max-trials 500"),
        (["--resume"], "holds no sweep"),
        (["--space", "tune/spaces/table5.yaml", "--samples", "3"], "--samples: draws parameters"),
        (["--scheduler", "asha", "--set", "train.max_steps=1"], "search.grace 1: expected fewer"),
        (["--cpus-per-trial", "999"], "--cpus-per-trial 999: no machine has as many"),
        (["--gpus-per-trial", "2"], "--gpus-per-trial 2: no machine has as many, the largest has "),
        (["--address", "127.0.0.1:9"], "--address 127.0.0.1:9: no Ray cluster answers there"),
    ],
)
def test_bad_words_end_with_one_line(
    plan: Plan, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    plan()
    space, base = str(tmp_path / "space.yaml"), str(tmp_path / "base.yaml")
    code = main(["sweep", "--space", space, "--config", base, *words])
    said = capsys.readouterr().err
    assert code == 2 and message in said and said.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_finished_sweep_is_told_again_without_its_devices(plan: Plan, run: Run) -> None:
    board = run(plan())
    told = run_sweep(plan(), share=Share(gpus=99), about={}).board
    assert [row.trial for row in told.rows] == [row.trial for row in board.rows]
    with pytest.raises(ConfigError, match="--gpus-per-trial 99: no machine has as many"):
        run_sweep(plan(seeds=2), share=Share(gpus=99), about={})


def test_a_dry_run_refuses_what_the_run_would(plan: Plan, run: Run, tmp_path: Path, capsys) -> None:
    run(plan())
    (tmp_path / "space.yaml").write_text(SPACE.replace("2.0e-3", "5.0e-3"))
    words = ["--space", str(tmp_path / "space.yaml"), "--config", str(tmp_path / "base.yaml")]
    assert main(["sweep", *words, "--dry-run"]) == 2
    assert "holds a sweep with other settings" in capsys.readouterr().err


def test_a_sweep_of_which_no_trial_began_goes_on_but_keeps_no_name(plan: Plan) -> None:
    plan().folder.mkdir(parents=True)
    claim(plan())
    begun(plan())
    claim(plan(SPACE.replace("2.0e-3", "5.0e-3")))
