"""What experiments have before them: every trial, and which are done or begun."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.config import Config
from llm_mde.errors import ConfigError
from llm_mde.recipes import flat, load
from llm_mde.studies.paper import UNTRAINED, Experiment, read_experiments
from llm_mde.studies.plan import Plan, Trial, plan
from llm_mde.studies.results import read_result
from llm_mde.training.folder import CONFIG, differences


@dataclass(frozen=True)
class Planned:
    """What `--dry-run` says of an experiment."""

    plan: Plan
    states: list[str]
    """Of each trial: done, begun or to do."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.plan.experiment.name,
            "folder": str(self.plan.folder),
            "tests": {test: len(index.entries) for test, index in self.plan.tests.items()},
            "trials": [
                {"trial": trial.name, "seed": trial.seed, "images": trial.images}
                | {"steps": trial.steps, "state": state}
                for trial, state in zip(self.plan.trials, self.states, strict=True)
            ],
        }

    def lines(self) -> list[str]:
        """A table: a row a trial and seed."""
        experiment, tests = self.plan.experiment, self.plan.tests
        counts = ", ".join(f"{test} ({len(index.entries)} images)" for test, index in tests.items())
        head = ["trial", "seed", "train list", "images", "batch", "steps", "state"]
        rows = [head]
        for trial, state in zip(self.plan.trials, self.states, strict=True):
            split, batch = trial.config.data.train_split, trial.config.train.batch
            what = [split, f"{trial.images}", f"{batch}", f"{trial.steps}"]
            if trial.name == UNTRAINED:
                what = ["-"] * len(what)
            rows.append([trial.name, f"{trial.seed}", *what, state])
        widths = [max(len(row[at]) for row in rows) for at in range(len(head))]
        table = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        title = f"{experiment.name}: {experiment.title} (Table {experiment.table})"
        return [title, *table, f"tests: {counts}", f"folder: {self.plan.folder}"]


def plan_all(
    names: list[str],
    *,
    base: Path | None,
    tiny: bool,
    sets: list[str],
    ds_config: Path,
    seeds: int,
    test: str | None = None,
) -> list[Planned]:
    """All trials of all experiments, and which of them are done; nothing is started.

    Args:
        names: experiments of the paper, `all`, or recipe files.
        base: YAML the trials start from; None: the recipe's tiny one.
        tiny: the base is a tiny model.
        sets: `a.b=c` words for all trials.
        ds_config: DeepSpeed's JSON of all trials.
        seeds: runs of each trial, under the base's seed and those that follow it.
        test: key list to score on in place of an experiment's single one; experiments of several
            tests keep their own.

    Raises:
        ConfigError: a recipe or trial that cannot be used, or was run with other settings; `test`
            for experiments of several tests alone.
        DataError: a key list that the shards lack.
    """
    plans = [
        plan(experiment, base, tiny=tiny, sets=sets, ds_config=ds_config, seeds=seeds)
        for experiment in _on(read_experiments(names), test)
    ]
    return [Planned(made, [state_of(trial) for trial in made.trials]) for made in plans]


def _on(experiments: list[Experiment], test: str | None) -> list[Experiment]:
    """The experiments, those of one test scored on another key list."""
    if test is None:
        return experiments
    single = [one for one in experiments if len(one.tests) == 1]
    if not single:
        lists = ", ".join(experiments[0].tests.values())
        raise ConfigError(
            f"experiment {experiments[0].name}: --test {test}: it is scored on several key lists "
            f"({lists}); run it without --test"
        )
    return [
        one.model_copy(update={"tests": dict.fromkeys(one.tests, test)}) if one in single else one
        for one in experiments
    ]


def state_of(trial: Trial) -> str:
    """`done`, `begun` or `to do`.

    Raises:
        ConfigError: it was done or begun with other settings; names every one.
    """
    if trial.result.is_file():
        before = flat(Config()) | read_result(trial)["settings"]  # new settings at their defaults
        _check_same(trial.result, before, trial.settings)
        return "done"
    begun = trial.config.run_dir / CONFIG
    if begun.is_file():
        _check_same(trial.config.run_dir, flat(load(begun)), flat(trial.config))
        return "begun"
    return "to do"


def _check_same(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    if changed := differences(before, now):
        raise ConfigError(
            f"{where}: holds a trial with other settings: {changed}; choose another folder with "
            "--set runs=DIR, or remove this one and the trial's run"
        )
