"""Calls of MLflow's client that need more than the client: parameters, pictures, uploads."""

import json
import logging
from collections.abc import Callable, Mapping
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Param
from PIL import Image

from llm_mde.tracking.connection import FAILURES, in_words
from llm_mde.tracking.recorded import FIGURES

logger = logging.getLogger(__name__)

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
    """A picture in the page's image grid, and as a file."""
    with Image.open(path) as picture:
        client.log_image(run_id, picture, key=name, step=step, synchronous=True)
    client.log_artifact(run_id, str(path), FIGURES)


def log_latest(client: MlflowClient, run_id: str, path: Path, name: str) -> None:
    """A picture as `<name>.png`, in place of an older one."""
    with Image.open(path) as picture:
        client.log_image(run_id, picture, artifact_file=f"{name}.png")


def text(value: object) -> str:
    """A parameter's value, as long as MLflow takes it."""
    return (value if isinstance(value, str) else json.dumps(value, default=str))[:MAX_VALUE]


def upload(put: Callable[[], object]) -> None:
    """Put files into the artifact store; what its own library cannot do is left out.

    Such a library (boto3, azure, google) has exceptions of its own and may not be installed.
    """
    try:
        put()
    except ImportError as error:
        logger.warning("mlflow: left out: %s; install what the artifact store needs", error)
    except FAILURES:
        raise
    except Exception as error:
        said = in_words(error)
        logger.warning("mlflow: left out: %s; 'llm-mde track sync' sends it later", said)
