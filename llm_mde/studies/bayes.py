"""Trials suggested by Optuna from the scores of those before (an extra: `pip install optuna`)."""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ray.tune.search import Searcher

from llm_mde.errors import ConfigError
from llm_mde.studies.programs import SCORE
from llm_mde.studies.records import Record
from llm_mde.studies.rules import Rule, Rules, rounded, settled
from llm_mde.studies.space import trial_name
from llm_mde.studies.trials import ERROR

logger = logging.getLogger(__name__)

TRIES = 100  # suggestions in a row that are no configuration


class Bayes(Searcher):
    """A tree-structured Parzen estimator (Bergstra et al. 2011) over the rules of a space."""

    def __init__(
        self,
        rules: Rules,
        base: Mapping[str, Any],
        records: Sequence[Record],
        *,
        seed: int,
        check: Callable[[str, dict[str, Any]], object],
    ) -> None:
        """Begin, or go on.

        Args:
            rules: of the space.
            base: path -> value of the base's configuration.
            records: of trials begun before: it learns from those that ended, and suggests the
                others first.
            seed: of its draws.
            check: raises ConfigError for a trial's name and settings that cannot be run.
        """
        super().__init__(metric=SCORE, mode="min")
        self._optuna = _optuna()
        sampler = self._optuna.samplers.TPESampler(seed=seed + len(records), constant_liar=True)
        self._study = self._optuna.create_study(sampler=sampler)
        self._rules, self._base, self._check = rules, base, check
        self._again = [record for record in records if not record.over]
        self._asked: dict[str, Any] = {}
        self._best: dict[str, float] = {}
        self._number = len(records)
        for record in records:
            if record.over:
                self._learn(record)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """Ray's hook."""
        if self._again:
            record = self._again.pop(0)
            self._study.enqueue_trial(self._parameters(record.settings))
            asked, settings = self._ask()
            name, settings = record.name, record.settings
        else:
            name = trial_name(self._number)
            self._number += 1
            asked, settings = self._checked(name)
        self._asked[trial_id] = asked
        return {"trial": {"name": name, "settings": settings}}

    def _checked(self, name: str) -> tuple[Any, dict[str, Any]]:
        problem = ConfigError("no suggestion")
        for _ in range(TRIES):
            asked, settings = self._ask()
            try:
                self._check(name, settings)
            except ConfigError as error:
                problem = error
                self._study.tell(asked, state=self._optuna.trial.TrialState.FAIL)
            else:
                return asked, settings
        raise problem

    def _ask(self) -> tuple[Any, dict[str, Any]]:
        asked = self._study.ask()
        return asked, settled(self._rules, lambda path, rule: _value(asked, path, rule), self._base)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Ray's hook."""
        score = result.get(SCORE, math.nan)
        self._best[trial_id] = min(self._best.get(trial_id, math.inf), score)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Ray's hook; a trial that was stopped early counts with its best evaluation."""
        if trial_id not in self._asked:
            return
        if result:
            self.on_trial_result(trial_id, result)
        score = self._best.get(trial_id, math.nan)
        failed = error or not math.isfinite(score) or (result or {}).get(ERROR) is not None
        state = self._optuna.trial.TrialState.FAIL if failed else None
        self._study.tell(self._asked.pop(trial_id), None if failed else score, state=state)

    def _learn(self, record: Record) -> None:
        if record.score is None:
            return
        parameters = self._parameters(record.settings)
        distributions = {path: self._distribution(self._rules[path]) for path in parameters}
        trial = self._optuna.trial.create_trial(
            params=parameters, distributions=distributions, value=record.score
        )
        self._study.add_trial(trial)

    def _parameters(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What Optuna was asked for, of a trial's settings."""
        return {
            path: json.dumps(value) if _values(self._rules[path]) else value
            for path, value in settings.items()
            if path in self._rules and _open(self._rules[path])
        }

    def _distribution(self, rule: Rule) -> Any:
        kinds = self._optuna.distributions
        if values := _values(rule):
            return kinds.CategoricalDistribution([json.dumps(value) for value in values])
        if rule.randint:
            return kinds.IntDistribution(*rule.randint)
        if rule.loguniform:
            return kinds.FloatDistribution(*rule.loguniform, log=True)
        assert rule.uniform
        return kinds.FloatDistribution(*rule.uniform)

    def save(self, checkpoint_path: str) -> None:
        """Ray's hook; our own records tell what was tried."""

    def restore(self, checkpoint_path: str) -> None:
        """Ray's hook."""


def _open(rule: Rule) -> bool:
    return rule.drawn or rule.grid is not None


def _values(rule: Rule) -> list[Any] | None:
    return rule.choice or rule.grid


def _value(asked: Any, path: str, rule: Rule) -> Any:
    """One parameter, asked for by its rule."""
    if values := _values(rule):
        return json.loads(asked.suggest_categorical(path, [json.dumps(value) for value in values]))
    if rule.randint:
        return asked.suggest_int(path, *rule.randint)
    if rule.loguniform:
        return rounded(asked.suggest_float(path, *rule.loguniform, log=True), rule.loguniform)
    if rule.uniform:
        return rounded(asked.suggest_float(path, *rule.uniform), rule.uniform)
    return rule.value


def _optuna() -> Any:
    import optuna  # an extra

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
