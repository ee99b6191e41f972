"""One trial of an experiment, as a Ray worker does it: train, score on every test, record."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from llm_mde.config import Config
from llm_mde.studies.paper import UNTRAINED
from llm_mde.studies.plan import Trial
from llm_mde.studies.programs import Place, Row, below, run_program, train
from llm_mde.studies.results import Cost, cost_of, tracked, write_result
from llm_mde.tracking.mlflow import MlflowTracker


def attempt(
    place: Place,
    _: dict[str, Any],
    *,
    trials: Mapping[str, Trial],
    parent_run_id: str | None,
    ds_config: Path,
) -> Iterator[Row]:
    """Train unless that is done, score, tell MLflow, and at the end write the result.

    Args:
        place: where, and which of the trials.
        trials: by name of their runs.
        parent_run_id: the experiment's run in MLflow.
        ds_config: DeepSpeed's JSON.

    Raises:
        RuntimeError: a program failed; why, in one line.
    """
    trial = trials[place.name]
    config = below(trial.config, parent_run_id)
    if trial.name == UNTRAINED:
        cost = _save_untrained(config)
    else:
        yield from train(place, config, ds_config)
        cost = cost_of(config.run_dir)
    scored = {test: _score(place, config, test, keys) for test, keys in trial.tests.items()}
    if config.tracking.mlflow:
        record(config, trial, scored, step=cost.steps)
    write_result(trial, scored, cost)


def _save_untrained(config: Config) -> Cost:
    """The adapter of the model as training would find it."""
    # Seconds to import, which the trials that train do not spend.
    from llm_mde.inference import adapter
    from llm_mde.inference.card import Provenance, described
    from llm_mde.model.depth_model import DepthModel

    model = DepthModel(config.model, seed=config.seed).eval()
    provenance = Provenance(data=described(config.data))
    adapter.replace(model, config.run_dir / "adapter", config=config.model, provenance=provenance)
    return Cost(trainable=0, parameters=sum(one.numel() for one in model.parameters()))


def _score(place: Place, config: Config, test: str, keys: str) -> dict[str, Any]:
    """What `llm-mde eval` says of a key list."""
    words = ["eval", str(config.run_dir), "--shards", str(config.data.shards)]
    words += ["--baselines", config.data.train_split]  # blind, but for what the model saw, too
    log = place.log(test)
    said = list(run_program(place, [*words, "--split", keys, "--json"], log=log))
    payload = next((line for line in said if line.startswith("{")), None)
    if payload is None:
        raise RuntimeError(f"no scores of {keys}; see {log}")
    found: dict[str, Any] = json.loads(payload)
    return found


def record(
    config: Config, trial: Trial, scored: Mapping[str, Mapping[str, Any]], *, step: int
) -> None:
    """Add a trial's scores on its tests to its run in MLflow, those that it lacks."""
    tracker = MlflowTracker(config.tracking, run_dir=config.run_dir, resume=True)
    tracker.params({"row": trial.name, "seed": trial.seed})
    for test, said in scored.items():
        tracker.log(tracked(said, test), step)
    tracker.close(whole=False)
