"""What experiments would run, checked before anything starts, and what their results are."""

import json
from pathlib import Path

import pytest

from llm_mde.errors import ConfigError, DataError
from llm_mde.recipes import shipped
from llm_mde.studies import agenda
from llm_mde.studies.agenda import plan_all, state_of
from llm_mde.studies.paper import UNTRAINED, Experiment, read_experiments
from llm_mde.studies.plan import Plan, Trial, plan
from llm_mde.studies.results import (
    Cost,
    by_protocol,
    cost_of,
    outcomes_of,
    tracked,
    write_result,
)
from llm_mde.studies.space import trial_configs
from llm_mde.training.folder import CONFIG
from tests.support.experiment import RECIPE
from tests.support.shards import seal, write_shards

ZERO1 = shipped("launch/ds/zero1.json")
SEVERAL = """
name: cross
title: One trial, two tests
table: IX
figure: "9"
trials: {office: {seed: 0}}
tests: {den: zero-shot-bathroom, hall: val}
untrained: true
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_shards(tmp_path / "shards", [4, 3])
    write_shards(tmp_path / "shards", [2], split="val")
    write_shards(tmp_path / "shards", [1], split="test")
    seal(tmp_path / "shards")
    path = tmp_path / "base.yaml"
    path.write_text(
        f"data: {{shards: {tmp_path}/shards}}\nruns: {tmp_path}/runs\nseed: 7\n"
        "train: {batch: 3, epochs: 2, patience: 9}\n"
    )
    return path


def recipe(folder: Path, text: str = RECIPE) -> Experiment:
    path = folder / "recipe.yaml"
    path.write_text(text)
    (found,) = read_experiments([str(path)])
    return found


def planned(experiment: Experiment, base: Path, *sets: str, seeds: int = 1) -> Plan:
    return plan(experiment, base, tiny=False, sets=list(sets), ds_config=ZERO1, seeds=seeds)


def said(keys: str, abs_rel: float = 0.25) -> dict:
    scores = {f"{keys}/abs_rel": abs_rel, f"{keys}/loss": 3.0, f"{keys}/images": 2.0}
    scores |= {f"{keys}_paper/rmse": 0.5, f"{keys}_mean_map/delta1": 0.75}
    return {"split": keys, "images": 2, "scores": scores | {f"{keys}_mean_map_paper/rmse": 0.125}}


def test_the_trial_is_stronger_than_set_than_tiny_than_recipe_than_base(
    base: Path, tmp_path: Path
) -> None:
    experiment = recipe(tmp_path)
    small, large = trial_configs(
        experiment, base, tiny=True, sets=["train.batch=1", "optim.clip=3"]
    ).values()
    assert (small.train.batch, large.train.batch) == (1, 4)  # --set, trial
    assert (small.optim.clip, small.train.epochs) == (3.0, 5)  # --set over tiny; tiny over recipe
    assert (small.optim.lr, small.train.patience) == (1e-3, 9)  # recipe over base; base
    whole = trial_configs(experiment, base, tiny=False, sets=[])["small"]
    assert (whole.train.epochs, whole.optim.clip) == (3, 1.0)


def test_a_trial_runs_under_every_seed_and_a_name_of_its_own(base: Path, tmp_path: Path) -> None:
    made = planned(recipe(tmp_path), base, seeds=2)
    got = [(trial.name, trial.config.seed, trial.config.name) for trial in made.trials]
    assert got == [
        ("small", 7, "pair-small-s7"),
        ("large", 7, "pair-large-s7"),
        ("small", 8, "pair-small-s8"),
        ("large", 8, "pair-large-s8"),
    ]
    assert made.trials[3].result == tmp_path / "runs" / "pair" / "large-s8.json"
    assert [(trial.images, trial.steps) for trial in made.trials[:2]] == [(7, 9), (7, 3)]
    assert {test: len(index.entries) for test, index in made.tests.items()} == {"test": 1}


def test_every_list_is_looked_for_before_anything_runs(base: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as error:
        planned(recipe(tmp_path), base, "data.val_split=x")
    assert "experiment pair, trial small, data.val_split needs the key list x: " in str(error.value)
    assert "this folder has: test, train, val" in str(error.value)
    with pytest.raises(DataError, match="pack again with this version"):
        planned(recipe(tmp_path), base, "data.train_split=few-shot-2")
    manifest = json.loads((tmp_path / "shards" / "pack.json").read_text())
    manifest["lists"]["zero-shot-bathroom"] = {"samples": 0, "note": "no bathroom in test"}
    (tmp_path / "shards" / "pack.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"test den .*; no bathroom in test: pack scenes of these"):
        planned(recipe(tmp_path, SEVERAL), base)
    (tmp_path / "shards" / "pack.json").write_text('{"format_version": 1}')
    with pytest.raises(DataError, match=r"test den .* pack again with this version"):
        planned(recipe(tmp_path, SEVERAL), base)
    assert not (tmp_path / "runs").exists()


def test_another_list_may_be_scored_where_there_is_one_test(tmp_path: Path, base: Path) -> None:
    recipe = tmp_path / "pair.yaml"
    recipe.write_text(RECIPE)
    how = {"base": base, "tiny": False, "sets": [], "ds_config": ZERO1, "seeds": 1, "test": "val"}
    (planned,) = plan_all([str(recipe)], **how)
    assert {name: len(index.entries) for name, index in planned.plan.tests.items()} == {"test": 2}
    assert {tuple(trial.tests.items()) for trial in planned.plan.trials} == {(("test", "val"),)}
    several = tmp_path / "several.yaml"
    several.write_text(SEVERAL)
    with pytest.raises(ConfigError, match="--test val: it is scored on several key lists"):
        plan_all([str(several)], **how)
    found = agenda._on(read_experiments(["all"]), "val")
    tests = {one.name: tuple(one.tests.values()) for one in found}
    assert tests.pop("zero-shot")[0] == "zero-shot-bathroom"  # keeps its own
    assert set(tests.values()) == {("val",)}


def test_a_training_list_holds_a_batch(base: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("train.batch: 4", "train.batch: 8")
    with pytest.raises(ConfigError, match="trial large: data.train_split train has 7 images, few"):
        planned(recipe(tmp_path, text), base)
    with pytest.raises(ConfigError, match=r"data\.shards: expected a folder"):
        planned(recipe(tmp_path), base, "data.shards=null")


def finish(trial: Trial) -> None:
    trial.result.parent.mkdir(parents=True, exist_ok=True)
    cost = Cost(trainable=10, parameters=100, memory_gb=1.5, seconds=60.0, steps=9)
    write_result(trial, {test: said(keys) for test, keys in trial.tests.items()}, cost)


def test_what_is_done_or_begun_is_known_and_other_settings_are_refused(
    base: Path, tmp_path: Path
) -> None:
    small, large = planned(recipe(tmp_path), base).trials
    assert (state_of(small), state_of(large)) == ("to do", "to do")
    finish(small)
    large.config.run_dir.mkdir(parents=True)
    (large.config.run_dir / CONFIG).write_text(base.read_text() + "optim: {lr: 1.0e-3}\n")
    with pytest.raises(
        ConfigError, match=r"pair-large-s7: .* other settings: .*train\.batch was 3"
    ):
        state_of(large)
    assert state_of(small) == "done"
    assert state_of(planned(recipe(tmp_path), base, "train.log_every=3").trials[0]) == "done"
    other = planned(recipe(tmp_path), base, "optim.clip=4").trials[0]
    with pytest.raises(ConfigError) as error:
        state_of(other)
    assert f"{small.result}: " in str(error.value)
    assert "optim.clip was 1.0, now 4.0; choose another folder with --set runs" in str(error.value)


def test_other_samples_make_another_result(base: Path, tmp_path: Path) -> None:
    trial = planned(recipe(tmp_path), base).trials[0]
    finish(trial)
    keys = (tmp_path / "shards" / "splits" / "train.txt").read_text().splitlines()
    (tmp_path / "shards" / "splits" / "some.txt").write_text("\n".join(keys[:-1]) + "\n")
    again = planned(recipe(tmp_path), base, "data.train_split=some").trials[0]
    with pytest.raises(ConfigError, match=r"data\.train_split samples was"):
        state_of(again)


def test_a_damaged_result_is_named(base: Path, tmp_path: Path) -> None:
    trial = planned(recipe(tmp_path), base).trials[0]
    finish(trial)
    for text in ("{", "[]", '{"tests": {}}'):
        trial.result.write_text(text)
        with pytest.raises(ConfigError, match="small-s7.json: expected a trial's result as JSON"):
            state_of(trial)


def test_one_trial_on_several_tests_fills_a_row_of_each(base: Path, tmp_path: Path) -> None:
    text = SEVERAL.replace("zero-shot-bathroom", "test")
    before, trained = planned(recipe(tmp_path, text), base).trials
    assert (before.name, before.steps, before.config.name) == (
        *(UNTRAINED, 0, "cross-untrained-s0"),
    )
    finish(before)
    got = [(one.row, one.test, one.seed) for one in outcomes_of(before, None)]
    assert got == [(UNTRAINED, "den", 0), (UNTRAINED, "hall", 0)]
    lost = outcomes_of(trained, "no memory")
    assert [(one.row, one.test, one.error) for one in lost] == [
        ("den", "den", "no memory"),
        ("hall", "hall", "no memory"),
    ]
    assert not lost[0].scores
    (done, _) = outcomes_of(before, None)
    assert (done.images, done.trainable, done.steps) == (2, 10, 9)


def test_scores_are_renamed_for_the_report_and_for_the_tracker() -> None:
    assert by_protocol(said("zero-shot-kitchen")) == {
        "metric/abs_rel": 0.25,
        "paper/rmse": 0.5,
        "mean_map/delta1": 0.75,
        "mean_map_paper/rmse": 0.125,
    }
    got = tracked(said("zero-shot-kitchen"), "kitchen")
    assert got["kitchen/abs_rel"] == 0.25 and got["kitchen_mean_map_paper/rmse"] == 0.125
    assert got["kitchen/images"] == 2


def test_the_cost_is_what_the_run_recorded(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "model/trainable": 5, "model/parameters": 9},
        {"step": 2, "train/memory_gb": 1.5, "train/seconds": 3.0},
        {"step": 4, "train/memory_gb": 1.25, "train/seconds": 6.5},
        {"step": 4, "val/abs_rel": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert cost_of(tmp_path) == Cost(5, 9, 1.5, 6.5, 4)
