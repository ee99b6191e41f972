"""Who may stop a trial early, in Ray's words."""

import math

from ray.tune.schedulers import AsyncHyperBandScheduler, MedianStoppingRule, TrialScheduler

from llm_mde.errors import ConfigError
from llm_mde.studies.space import Search
from llm_mde.studies.trials import TIME

GRACE = 9  # by default a trial has a ninth of the longest run before it may be stopped
PEERS = 3  # trials that a median is taken of


def scheduler_of(search: Search, *, steps: int) -> TrialScheduler | None:
    """The scheduler that a search names; None lets every trial run to its end.

    Asynchronous successive halving: Li et al. 2018, https://arxiv.org/abs/1810.05934. Median
    stopping: Golovin et al. 2017, Vizier.

    Args:
        search: as the space says.
        steps: optimizer steps of the longest trial.

    Raises:
        ConfigError: a grace period as long as that.
    """
    if search.scheduler == "fifo":
        return None
    grace = search.grace or math.ceil(steps / GRACE)
    if grace >= steps:
        raise ConfigError(
            f"search.grace {grace}: expected fewer steps than the longest trial has, {steps}"
        )
    if search.scheduler == "median":
        return MedianStoppingRule(time_attr=TIME, grace_period=grace, min_samples_required=PEERS)
    return AsyncHyperBandScheduler(
        time_attr=TIME,
        max_t=steps,
        grace_period=grace,
        reduction_factor=search.reduction,
        stop_last_trials=False,  # a run that comes to its end saves before it ends
    )
