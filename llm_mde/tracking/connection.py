"""A store of MLflow: the client, the experiment, and in words what is wrong with it."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow.telemetry
from alembic.util import CommandError
from filelock import FileLock
from mlflow import MlflowClient
from mlflow.entities import LifecycleStage
from mlflow.environment_variables import (
    MLFLOW_DISABLE_TELEMETRY,
    MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR,
    MLFLOW_HTTP_REQUEST_MAX_RETRIES,
    MLFLOW_HTTP_REQUEST_TIMEOUT,
    MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT,
)
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import SQLAlchemyError

from llm_mde.config import TrackingConfig
from llm_mde.credentials import redacted
from llm_mde.errors import ConfigError

HTTP_RETRIES, HTTP_TIMEOUT_S = (
    1,
    10,
)  # MLflow's own 7 and 120 s would hold the other ranks for minutes
LOCK_S = 120.0  # creating a sqlite store takes seconds

# requests' errors are OSErrors, and so is filelock's time-out; a driver that is not installed.
FAILURES = (MlflowException, OSError, SQLAlchemyError, CommandError, ImportError, ConfigError)
NOT_ALLOWED = re.compile(
    r"error code (401|403)\b|\b(401|403) (?:Client )?Error|^(PERMISSION_DENIED)"
)
UNREACHED = re.compile(r"Max retries exceeded.*?(\[Errno -?\d+\] [^'\")]+|timed out|refused)")


def connect(uri: str) -> MlflowClient:
    """A client of the store at a whole address."""
    _quiet()
    return MlflowClient(tracking_uri=uri)


def in_words(error: Exception) -> str:
    """Why a store does not do what it is asked, in one line that tells no password."""
    said = redacted(str(error)).strip()
    line = said.splitlines()[0] if said else type(error).__name__
    if found := NOT_ALLOWED.search(said):
        code = next(filter(None, found.groups()))
        return (
            f"the store refuses ({code}): give it MLFLOW_TRACKING_USERNAME and "
            "MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN, of somebody who may write there"
        )
    if found := UNREACHED.search(said):
        return f"the server does not answer ({found.group(1)}); start it, or name another store"
    if isinstance(error, ImportError):
        return (
            f"{line}; install the driver of the store (PostgreSQL: pip install 'psycopg[binary]')"
        )
    return line


def problem(uri: str) -> str | None:
    """Why a store can't be used, or None; a sqlite file that is not there yet is not made."""
    database = sqlite_file(uri)
    if database and not database.exists():
        folder = next(one for one in database.parents if one.exists())
        return None if os.access(folder, os.W_OK) else f"{folder} can't be written"
    try:
        connect(uri).search_experiments(max_results=1)
    except FAILURES as error:
        return in_words(error)
    return None


def _quiet() -> None:
    """No usage reports, no words about tables, links, files; no minutes of waiting for the dead.

    A variable of MLflow that the user has set stays as it is.
    """
    for variable, value in (
        (MLFLOW_DISABLE_TELEMETRY, True),
        (MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, False),
        (MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
        (MLFLOW_HTTP_REQUEST_MAX_RETRIES, HTTP_RETRIES),
        (MLFLOW_HTTP_REQUEST_TIMEOUT, HTTP_TIMEOUT_S),
    ):
        if not variable.is_set():
            variable.set(value)
    mlflow.telemetry.set_telemetry_client()  # importing mlflow has started one
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)


def sqlite_file(uri: str) -> Path | None:
    """The file of a sqlite store; None for other stores."""
    prefix = "sqlite:///"
    return Path(uri.removeprefix(prefix)).absolute() if uri.startswith(prefix) else None


@contextmanager
def _alone(uri: str) -> Iterator[None]:
    """Keep other processes from making the tables of one new sqlite store at the same time."""
    database = sqlite_file(uri)
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{database}.lock", timeout=LOCK_S):
        yield


def open_experiment(config: TrackingConfig, uri: str) -> tuple[MlflowClient, str]:
    """A client, and the id of the experiment, which is made if need be.

    Raises:
        ConfigError: the experiment was deleted.
        Exception: one of FAILURES, where the store can't be used.
    """
    with _alone(uri):
        client = connect(uri)
        return client, _experiment(client, config.experiment, uri)


def _experiment(client: MlflowClient, name: str, uri: str) -> str:
    """Id of the experiment, made if need be; beside a sqlite file lie its artifacts."""
    database = sqlite_file(uri)
    found = client.get_experiment_by_name(name)
    if found is None:
        folder = (database.parent / "mlartifacts" / name).as_uri() if database else None
        try:
            return client.create_experiment(name, artifact_location=folder)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
            found = client.get_experiment_by_name(name)
    if found.lifecycle_stage == LifecycleStage.DELETED:
        raise ConfigError(
            f"experiment {name!r} was deleted; bring it back by 'MLFLOW_TRACKING_URI="
            f"{redacted(uri)} mlflow experiments restore --experiment-id {found.experiment_id}', "
            "or choose another name with --set tracking.experiment=..."
        )
    return found.experiment_id
