"""Who may stop a trial early, or let it go on from another one, in Ray's words."""

import math
import random
from collections.abc import Callable, Mapping
from typing import Any

from ray.tune.schedulers import (
    AsyncHyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from llm_mde.studies.programs import SCORE, TIME
from llm_mde.studies.rules import Rule, grace_of, settled
from llm_mde.studies.space import Base, Search

PEERS = 3  # trials that a median is taken of


def scheduler_of(search: Search, base: Base, *, steps: int) -> TrialScheduler | None:
    """The scheduler that a search names; None lets every trial run to its end.

    Asynchronous successive halving: Li et al. 2018, https://arxiv.org/abs/1810.05934. Median
    stopping: Golovin et al. 2017, Vizier. Population-based training: Jaderberg et al. 2017,
    https://arxiv.org/abs/1711.09846.

    Args:
        search: as the space says.
        base: what trials start from.
        steps: optimizer steps of the longest trial.

    Raises:
        ConfigError: a grace period as long as that.
    """
    if search.scheduler == "fifo":
        return None
    grace = grace_of(search.grace, steps)
    if search.scheduler == "median":
        return _Median(
            time_attr=TIME,
            grace_period=grace,
            min_samples_required=PEERS,
            min_time_slice=math.inf,  # none is paused: a run is not stopped and started for nothing
        )
    if search.scheduler == "pbt":
        return _population(base, every=grace, seed=search.seed)
    return AsyncHyperBandScheduler(
        time_attr=TIME,
        max_t=steps,
        grace_period=grace,
        reduction_factor=search.reduction,
        stop_last_trials=False,  # a run that comes to its end saves before it ends
    )


class _Median(MedianStoppingRule):
    """Ray's, but for trials that fail before their first evaluation, of which it dies."""

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Ray's hook."""
        if TIME in result and SCORE in result:
            super().on_trial_complete(tune_controller, trial, result)


def _population(base: Base, *, every: int, seed: int) -> PopulationBasedTraining:
    """Every so many steps the worst quarter goes on from the best, with other values.

    Draws follow the seed; whose they are follows from which trial comes first.
    """
    random.seed(seed)  # Ray draws from Python's own generator
    own = random.Random(seed)
    rules = base.space.parameters
    changed = {path: _other(rule, own) for path, rule in rules.items() if rule.drawn or rule.grid}

    def settle(config: dict[str, Any]) -> dict[str, Any]:
        """Perturbed numbers are taken back into their ranges, and references follow."""
        one = config["trial"]
        now: Mapping[str, Any] = one["settings"]
        values = settled(rules, lambda path, rule: within(rule, now[path]), base.plain)
        return config | {"trial": one | {"settings": {**now, **values}}}

    return PopulationBasedTraining(
        time_attr=TIME,
        perturbation_interval=every,
        hyperparam_mutations={"trial": {"settings": changed}},
        custom_explore_fn=settle,
        log_config=False,
        require_attrs=False,  # a trial that fails at once has no score
    )


def _other(rule: Rule, generator: random.Random) -> list[Any] | Callable[[], Any]:
    return rule.choice or rule.grid or (lambda: rule.draw(generator))


def within(rule: Rule, value: Any) -> Any:
    """A number that was moved, back in the range of its rule."""
    ends = rule.uniform or rule.loguniform or rule.randint
    if ends is None:
        return value
    moved = min(max(value, ends[0]), ends[1])
    return round(moved) if rule.randint else moved
