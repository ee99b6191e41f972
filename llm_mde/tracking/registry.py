"""MLflow's model registry: an adapter becomes a version of a model, and comes back by its name."""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.exceptions import MlflowException

from llm_mde.config import TrackingConfig, cache_folder, tracking_uri
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.recipes import load
from llm_mde.tracking.address import address
from llm_mde.tracking.connection import FAILURES, connect, in_words, sqlite_file
from llm_mde.tracking.mlflow import known_run

MODEL = re.compile(r"models:/(?P<name>[^/@:]+)(/(?P<version>\d+|latest)|@(?P<alias>[^/]+))")
RUN_ID = re.compile(r"[0-9a-f]{32}")
ADAPTER = "adapter"  # of a run: replaced at every new best, so that a version has a copy
REGISTERED = "registered"


@dataclass(frozen=True)
class Registered:
    """A new version of a model."""

    name: str
    version: int
    run_id: str
    uri: str
    """The store."""

    @property
    def source(self) -> str:
        """How other commands name it."""
        return f"models:/{self.name}/{self.version}"

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"source": self.source}

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.name}, version {self.version}: the adapter of run {self.run_id} in {self.uri}",
            f"use it as: llm-mde predict IMAGE --adapter {self.source} --out DIR",
        ]


def register(run: str, *, name: str, uri: str | None, card: str) -> Registered:
    """Make a version of a model from a run's adapter; the model is made if need be.

    Args:
        run: a run folder, or a run's id in MLflow.
        name: the model's.
        uri: the store; None: that of the run's configuration, or of the environment.
        card: the file without which a folder is no adapter.

    Raises:
        ConfigError: no such run, it has no adapter, the store does not answer or refuses.
    """
    folder = Path(run)
    if not folder.is_dir() and not RUN_ID.fullmatch(run):
        raise ConfigError(f"{run}: expected a run folder, or the 32 digits of a run in MLflow")
    config = TrackingConfig()
    if folder.is_dir():
        _expect((folder / ADAPTER / card).is_file(), str(folder / ADAPTER), card)
        config = load(folder / "config.yaml").tracking
    if uri:
        config = TrackingConfig(uri=uri)
    shown = tracking_uri(config)
    try:
        client = _client(config)
        run_id = known_run(folder, shown) if folder.is_dir() else run
        if run_id is None:
            raise ConfigError(f"{run} is not there; 'llm-mde track sync {run}' sends it")
        artifacts = client.get_run(run_id).info.artifact_uri
        with tempfile.TemporaryDirectory(prefix="llm-mde-") as aside:
            if not folder.is_dir():
                _expect(f"{ADAPTER}/{card}" in _names(client, run_id), f"run {run_id}", card)
                folder = Path(client.download_artifacts(run_id, ADAPTER, aside)).parent
            place = f"{REGISTERED}/{_digest(folder / ADAPTER)}"
            client.log_artifacts(run_id, str(folder / ADAPTER), place)
        version = _version(client, name, source=f"{artifacts}/{place}", run_id=run_id)
    except FAILURES as error:
        raise ConfigError(f"{shown}: {in_words(error)}") from error
    return Registered(name, version, run_id, shown)


def _expect(there: bool, where: str, card: str) -> None:
    if not there:
        raise ConfigError(
            f"{where}: no {card}, expected an adapter; a run has one from its first evaluation on"
        )


def _names(client: MlflowClient, run_id: str) -> set[str]:
    return {one.path for one in client.list_artifacts(run_id, ADAPTER)}


def _client(config: TrackingConfig) -> MlflowClient:
    """A client of a store that is there: reading makes no new sqlite file.

    Raises:
        ConfigError: it is not there.
    """
    uri = address(config)
    database = sqlite_file(uri)
    if database and not database.is_file():
        raise ConfigError("no such file; name another store in MLFLOW_TRACKING_URI")
    return connect(uri)


def _version(client: MlflowClient, name: str, *, source: str, run_id: str) -> int:
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return int(client.create_model_version(name, source, run_id=run_id).version)


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def download(source: str) -> Path:
    """The folder of a registered adapter, `models:/NAME/3`, `.../latest` or `models:/NAME@ALIAS`.

    The store is that of MLFLOW_TRACKING_URI, else `mlflow.db` in the working folder. What came is
    kept in the user's cache: a version never changes.

    Raises:
        CheckpointError: no such version, or the store does not answer.
        ConfigError: the environment names no store that can be.
    """
    wanted = MODEL.fullmatch(source)
    if wanted is None:
        raise CheckpointError(
            f"{source}: expected models:/NAME/VERSION, models:/NAME/latest or models:/NAME@ALIAS"
        )
    config = TrackingConfig()
    shown = tracking_uri(config)
    try:
        client = _client(config)
        found = _find(client, **wanted.groupdict())
        place = hashlib.sha256(f"{shown} {found.source} {found.creation_timestamp}".encode())
        folder = cache_folder() / REGISTERED / place.hexdigest()[:16]
        if not folder.is_dir():
            _fetch(found.source, folder, uri=address(config))
    except FAILURES as error:
        raise CheckpointError(f"{source} in {shown}: {in_words(error)}") from error
    return folder


def _find(client: MlflowClient, *, name: str, version: str | None, alias: str | None) -> Any:
    if alias is not None:
        return client.get_model_version_by_alias(name, alias)
    if version != "latest":
        return client.get_model_version(name, version)
    versions = client.search_model_versions(f"name = '{name}'")
    if not versions:
        raise ConfigError(f"no versions of a model {name!r}")
    return max(versions, key=lambda one: int(one.version))


def _fetch(source: str, folder: Path, *, uri: str) -> None:
    """All files of an artifact folder, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".", dir=folder.parent))
    try:
        came = download_artifacts(artifact_uri=source, dst_path=str(aside), tracking_uri=uri)
        try:
            os.rename(came, folder)
        except OSError:
            if not folder.is_dir():  # else another process was faster
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
