"""MLflow beside the run folder: parameters, metrics by step, figures and the adapter.

A store that fails never stops training: what could not be sent waits and is sent again later.
"""

import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Metric, RunTag
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from llm_mde.config import TrackingConfig
from llm_mde.credentials import redacted
from llm_mde.tracking.about import origin
from llm_mde.tracking.address import address
from llm_mde.tracking.calls import log_figure, log_latest, log_params, text, upload
from llm_mde.tracking.connection import FAILURES, in_words, open_experiment
from llm_mde.tracking.recorded import Recorded
from llm_mde.tracking.tracker import Status, Tracker

logger = logging.getLogger(__name__)

RUN_ID_FILE = "mlflow_run_id"  # and `mlflow_run_id-<hash of a store>` where a run is in others, too
MAX_TAG = 8000
WHOLE = "llm_mde.whole_to_step"  # tag of a run that ended and was sent whole
RETRY_S = 60.0  # pause after a failure, so that a dead server costs one attempt a minute
SEARCHED = 50_000  # runs of one search, MLflow's limit
WAITING = 20_000  # calls kept while the store is away; the oldest go first
REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}


@dataclass(frozen=True)
class Child:
    """What the store has of a run."""

    whole: str | None
    """The step up to which it was sent whole when it ended; None: it was not."""
    metrics: Collection[str]
    """Names."""


class MlflowTracker(Tracker):
    """One MLflow run; the id lies in the run folder, so that a resumed run goes on in it."""

    def __init__(self, config: TrackingConfig, *, run_dir: Path, resume: bool = False) -> None:
        """Start a run named after the folder, or go on with the one it belongs to.

        Raises:
            ConfigError: the configuration names no store that can be, see `address`.
        """
        self._config = config
        self._uri = address(config)
        self._run_dir = run_dir
        self._resume = resume
        self._client: MlflowClient | None = None
        self._run_id: str | None = None
        self._waiting: deque[Callable[[MlflowClient, str], None]] = deque(maxlen=WAITING)
        self._retry_at = 0.0
        self._last_step, self._lost = 0, False
        self.problem: str | None = None
        """Why the store does not answer, as it was last asked."""
        self._recorded: Recorded | None = None
        self._drain()

    @property
    def known(self) -> int:
        """Values that a run gone on with had already."""
        return self._recorded.known if self._recorded else 0

    @property
    def unsent(self) -> int:
        """Records that wait for the store."""
        return len(self._waiting)

    @property
    def run_id(self) -> str | None:
        """MLflow's id of this run; None while the store has not answered yet."""
        return self._run_id

    @property
    def uri(self) -> str:
        """Address of the store, without credentials."""
        return redacted(self._uri)

    def children(self) -> dict[str, Child]:
        """By id, what the store has of the runs below this one, which it has.

        Raises:
            Exception: one of `connection.FAILURES`.
        """
        assert self._client and self._run_id
        found = self._client.search_runs(
            [self._client.get_run(self._run_id).info.experiment_id],
            filter_string=children_of(self._run_id),
            max_results=SEARCHED,
        )
        return {
            run.info.run_id: Child(
                None if run.info.status == "RUNNING" else run.data.tags.get(WHOLE),
                run.data.metrics.keys(),
            )
            for run in found
        }

    def params(self, params: Mapping[str, object]) -> None:
        """Record the configuration; what a resumed run changes becomes a tag `resumed.<path>`."""
        values = {key: text(value) for key, value in params.items()}
        self._send(lambda client, run_id: log_params(client, run_id, values))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Record numbers at an optimizer step; what a run gone on with has of it stays as it is."""
        self.log_at(metrics, step, time_s=time.time())

    def log_at(self, metrics: Mapping[str, float], step: int, *, time_s: float) -> None:
        """As `log`, of the past: `time_s` in seconds since 1970."""
        at_ms = round(time_s * 1000)
        self._last_step = max(self._last_step, step)
        batch = [Metric(name, float(value), at_ms, step) for name, value in metrics.items()]

        def send(client: MlflowClient, run_id: str) -> None:
            known = self._recorded
            new = known.without(client, batch) if known else batch
            if new:
                client.log_batch(run_id, metrics=new)
            if known:
                known.add(batch)

        self._send(send)

    def figure(self, path: Path, name: str, step: int, *, latest: bool = True) -> None:
        """Record a picture: in the page's image grid, by step, and as a file in `figures`.

        The latest one is `<name>.png` as well: MLflow's view of runs side by side shows files that
        all of them have, at the top of their artifacts alone. latest: it is.
        """

        def send(client: MlflowClient, run_id: str) -> None:
            if self._recorded is None or not self._recorded.has_figure(client, path.name):
                upload(lambda: log_figure(client, run_id, path, name, step))
                if latest:
                    upload(lambda: log_latest(client, run_id, path, name))

        self._send(send)

    def artifacts(self, folder: Path, name: str) -> None:
        """Record a folder of files."""

        def send(client: MlflowClient, run_id: str) -> None:
            upload(lambda: client.log_artifacts(run_id, str(folder), name))

        self._send(send)

    def tags(self, tags: Mapping[str, str]) -> None:
        """Record what the run is; a run gone on with takes new values."""
        own = [RunTag(key, value[:MAX_TAG]) for key, value in tags.items()]
        self._send(lambda client, run_id: client.log_batch(run_id, tags=own))

    def files(self, paths: Sequence[Path]) -> None:
        """Record single files, under their names."""

        def send(client: MlflowClient, run_id: str) -> None:
            for path in paths:
                upload(partial(client.log_artifact, run_id, str(path)))

        self._send(send)

    def latest(self, path: Path, name: str) -> None:
        """A picture as `<name>.png`, in place of an older one: see `figure`."""
        self._send(lambda client, run_id: upload(lambda: log_latest(client, run_id, path, name)))

    def close(self, status: Status = "finished", *, whole: bool = True) -> None:
        """Send what waits, once, and end the run.

        whole: this was all of its record, not an addition.
        """
        if whole and self._last_step and not self._lost:
            tag = RunTag(WHOLE, f"{self._last_step}")
            self._waiting.append(lambda client, run_id: client.log_batch(run_id, tags=[tag]))
        self._waiting.append(
            lambda client, run_id: client.set_terminated(run_id, status=status.upper())
        )
        self._retry_at = 0.0
        self._drain()
        if self._waiting:
            logger.warning(
                "mlflow: %d records were not sent; 'llm-mde track sync RUN' sends a run's later, "
                "and the same command again those of a sweep or an experiment",
                len(self._waiting),
            )

    def _send(self, call: Callable[[MlflowClient, str], None]) -> None:
        self._lost |= len(self._waiting) == WAITING
        self._waiting.append(call)
        self._drain()

    def _drain(self) -> None:
        """Send what waits, in order; after a failure not before RETRY_S have passed."""
        if time.monotonic() < self._retry_at:
            return
        try:
            if self._client is None or self._run_id is None:
                self._client, self._run_id = self._start()
            while self._waiting:
                _unless_refused(self._waiting[0], self._client, self._run_id)
                self._waiting.popleft()
        except FAILURES as error:
            self._retry_at = time.monotonic() + RETRY_S
            known, self.problem = self.problem, in_words(error)
            if known is None:
                logger.warning(
                    "mlflow: %s; the run goes on, metrics.jsonl is complete", self.problem
                )
        else:
            self.problem = None

    def _start(self) -> tuple[MlflowClient, str]:
        client, experiment = open_experiment(self._config, self._uri)
        file = _id_file(self._run_dir, self.uri) if self._resume else self._run_dir / RUN_ID_FILE
        known = known_run(self._run_dir, self.uri) if self._resume else None
        parent = self._config.parent_run_id
        below = {MLFLOW_PARENT_RUN_ID: parent} if parent else {}
        if known and _reopened(client, known):
            for tag, value in below.items():  # it may have begun while its parent's store was away
                client.set_tag(known, tag, value)
            self._recorded = Recorded(known)
            return client, known
        run = client.create_run(experiment, run_name=self._run_dir.name, tags=origin() | below)
        self._run_dir.mkdir(parents=True, exist_ok=True)
        temporary = file.with_name(file.name + ".tmp")
        temporary.write_text(f"{run.info.run_id}\n{self.uri}\n")
        temporary.replace(file)
        return client, run.info.run_id


def known_run(run_dir: Path, uri: str) -> str | None:
    """The id of a folder's run in a store, by its address as shown; None: it is not there."""
    file = _id_file(run_dir, uri)
    return file.read_text().split()[0] if file.is_file() else None


def children_of(run_id: str) -> str:
    """MLflow's filter for the runs below one."""
    return f'tags.{MLFLOW_PARENT_RUN_ID} = "{run_id}"'


def _id_file(run_dir: Path, uri: str) -> Path:
    """Where the run's id in this store lies: the first store it was in has the plain name."""
    first = run_dir / RUN_ID_FILE
    words = first.read_text().split() if first.is_file() else []
    if len(words) < 2 or words[1] == uri:
        return first
    digest = hashlib.sha256(uri.encode()).hexdigest()[:8]
    return first.with_name(f"{RUN_ID_FILE}-{digest}")


def _unless_refused(
    call: Callable[[MlflowClient, str], None], client: MlflowClient, run_id: str
) -> None:
    """Make the call; one that would fail however often it is made is dropped with a warning."""
    try:
        call(client, run_id)
    except FileNotFoundError as error:
        logger.warning("mlflow: left out: %s", error)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        logger.warning("mlflow: left out, the store refuses it: %s", in_words(error))


def _reopened(client: MlflowClient, run_id: str) -> bool:
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise  # the latter says that it was deleted
        logger.warning("mlflow: run %s is not in this store; starting a new one", run_id)
        return False
    return True
