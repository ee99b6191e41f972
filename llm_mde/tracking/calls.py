"""What takes more than one call of MLflow's client: parameters and pictures."""

import json
from collections.abc import Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param
from PIL import Image

from llm_mde.tracking.recorded import FIGURES

MAX_PARAMS = 100  # MLflow's limit of one log_batch
MAX_VALUE = 6000  # characters of a parameter, MLflow's limit


def log_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Record those that are new; what changed becomes a tag `resumed.<path>`."""
    known = client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(new), MAX_PARAMS):
        client.log_batch(run_id, params=new[start : start + MAX_PARAMS])
    changed = {key: value for key, value in values.items() if known.get(key, value) != value}
    for key, value in changed.items():
        client.set_tag(run_id, f"resumed.{key}", value)


def log_figure(client: MlflowClient, run_id: str, path: Path, name: str, step: int) -> None:
    """A picture in the page's image grid, as a file, and as the latest of its name."""
    with Image.open(path) as picture:
        client.log_image(run_id, picture, key=name, step=step, synchronous=True)
    client.log_artifact(run_id, str(path), FIGURES)
    log_latest(client, run_id, path, name)


def log_latest(client: MlflowClient, run_id: str, path: Path, name: str) -> None:
    """A picture as `<name>.png`, in place of an older one."""
    with Image.open(path) as picture:
        client.log_image(run_id, picture, artifact_file=f"{name}.png")


def text(value: object) -> str:
    """A parameter's value, as long as MLflow takes it."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:MAX_VALUE]
