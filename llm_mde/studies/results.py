"""What a finished trial leaves: a JSON of its scores, its cost and the settings it ran with."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.errors import ConfigError
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.paper import UNTRAINED, Outcome
from llm_mde.studies.plan import Trial
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.folder import write_whole

WHOLE = ("tests", "cost", "settings")


@dataclass(frozen=True)
class Cost:
    """What a run took."""

    trainable: int
    parameters: int
    memory_gb: float = 0.0
    seconds: float = 0.0
    steps: int = 0


def cost_of(run: Path) -> Cost:
    """As the run recorded it."""
    rows = read_metrics(run / METRICS_FILE)
    latest: dict[str, Any] = {}
    for row in rows:
        latest |= row
    return Cost(
        trainable=int(latest.get("model/trainable", 0)),
        parameters=int(latest.get("model/parameters", 0)),
        memory_gb=max((row.get("train/memory_gb", 0.0) for row in rows), default=0.0),
        seconds=latest.get("train/seconds", 0.0),
        steps=latest.get("step", 0),
    )


def write_result(trial: Trial, scored: Mapping[str, Mapping[str, Any]], cost: Cost) -> None:
    """The JSON of a trial, whole or not at all.

    scored: test -> what `llm-mde eval --json` said.
    """
    payload = {
        "trial": trial.name,
        "seed": trial.seed,
        "run": str(trial.config.run_dir),
        "tests": scored,
        "cost": vars(cost),
        "settings": trial.settings,
    }
    write_whole(trial.result, json.dumps(payload, indent=1) + "\n")


def read_result(trial: Trial) -> dict[str, Any]:
    """The JSON of a trial.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        payload: dict[str, Any] = json.loads(trial.result.read_text(encoding="utf-8"))
        whole = payload["tests"].keys() >= trial.tests.keys() and payload.keys() >= {*WHOLE}
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        whole = False
    if not whole:
        raise ConfigError(
            f"{trial.result}: expected a trial's result as JSON; remove it, and the same command "
            "scores the trial again"
        )
    return payload


def outcomes_of(trial: Trial, error: str | None) -> list[Outcome]:
    """The rows that a trial fills: one, or one a test; without scores where it failed."""
    payload = None if error else read_result(trial)
    cost = Cost(**payload["cost"]) if payload else cost_of(trial.config.run_dir)
    rows = {test: trial.name if len(trial.tests) == 1 else test for test in trial.tests}
    return [
        Outcome(
            row=UNTRAINED if trial.name == UNTRAINED else row,
            test=test,
            seed=trial.seed,
            scores=by_protocol(payload["tests"][test]) if payload else {},
            images=payload["tests"][test]["images"] if payload else 0,
            adapter=trial.config.run_dir / "adapter",
            error=error,
            **vars(cost),
        )
        for test, row in rows.items()
    ]


def by_protocol(said: Mapping[str, Any]) -> dict[str, float]:
    """`metric/abs_rel`, `mean_map/abs_rel` ... of what `llm-mde eval --json` said."""
    named = _renamed(said, "metric", "")
    return {name: value for name, value in named.items() if name.rpartition("/")[2] in METRICS}


def tracked(said: Mapping[str, Any], test: str) -> dict[str, float]:
    """The same under the tracker's names: `bathroom/abs_rel`, `bathroom_mean_map/abs_rel` ..."""
    return _renamed(said, test, f"{test}_")


def _renamed(said: Mapping[str, Any], metric: str, prefix: str) -> dict[str, float]:
    split, named = said["split"], {}
    for name, value in said["scores"].items():
        group, _, number = name.rpartition("/")
        group = group.removeprefix(split).removeprefix("_")
        named[f"{prefix}{group}/{number}" if group else f"{metric}/{number}"] = value
    return named
