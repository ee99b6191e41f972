"""MLflow's page: its server on the store of the runs, and links to where runs are compared."""

import difflib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import quote, urlsplit, urlunsplit

from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from llm_mde.config import TrackingConfig, tracking_uri
from llm_mde.errors import ConfigError
from llm_mde.launcher import free_port
from llm_mde.tracking.connection import problem
from llm_mde.tracking.mlflow import children_of

HOST, PORT = "127.0.0.1", 5000  # MLflow's usual port
START_S = 180.0  # it imports for ten seconds, and makes the tables of an old store new
PATIENCE_S = 10.0  # for a server that was asked to end
COMPARED = 50  # runs of one link, the first ones
SQLITE = "sqlite:///"
BY_SCORE = {"orderByKey": "metrics.`val/abs_rel`", "orderByAsc": "true"}
# MLflow 3 opens in its GenAI mode, which hides training runs. Sorted by date, runs are folded into
# their parents and the charts show those alone; sorted by a metric, each run stands for itself.
CHARTS = {"compareRunsMode": "CHART", **BY_SCORE}
TRAINING = {"workflowType": "machine_learning"}


@dataclass(frozen=True)
class Page:
    """Where MLflow shows runs."""

    store: str
    url: str
    links: dict[str, str]
    """What a link shows -> its URL."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        links = [line for title, url in self.links.items() for line in (f"{title}:", f"  {url}")]
        return [f"MLflow with the runs of {self.store} at {self.url}", *links]


def show(
    uri: str | None,
    *,
    experiment: str,
    port: int | None,
    announce: Callable[[Page], None],
) -> None:
    """Serve a store on this machine alone until Ctrl-C; of one that is a server only say where.

    Args:
        uri: the store; None: MLFLOW_TRACKING_URI, else the working folder's `mlflow.db`.
        experiment: whose runs the links show.
        port: of the page; None: MLflow's usual one, or another where that is taken.
        announce: called once the page answers.

    Raises:
        ConfigError: no such store, experiment or free port, or MLflow cannot serve it.
    """
    store = tracking_uri(TrackingConfig(uri=uri))
    _check_store(store)
    client = MlflowClient(tracking_uri=store)
    number = _experiment(client, experiment, store)
    if store.startswith(("http://", "https://")):
        url = without_password(store).rstrip("/")
        announce(Page(without_password(store), url, links(client, number, url=url)))
        return
    with served(store, port=port) as (url, ended):
        announce(Page(without_password(store), url, links(client, number, url=url)))
        ended()


def links(client: MlflowClient, experiment: str, *, url: str) -> dict[str, str]:
    """Where the runs of an experiment (by id) are compared, those of its last sweep apart."""
    runs = f"{url}/#/experiments/{experiment}/runs"
    found = {"charts of all runs, by their last val/abs_rel": f"{runs}?{_query(CHARTS | TRAINING)}"}
    sweep = _last_sweep(client, experiment)
    if sweep is None:
        return found
    filtered = {"searchFilter": children_of(sweep.info.run_id)}
    found[f"charts of the last sweep, {sweep.info.run_name}"] = (
        f"{runs}?{_query(CHARTS | filtered | TRAINING)}"
    )
    trials = client.search_runs(
        [experiment],
        filter_string=children_of(sweep.info.run_id),
        order_by=[f"{BY_SCORE['orderByKey']} ASC"],
        max_results=COMPARED,
    )
    scored = [run.info.run_id for run in trials if "val/abs_rel" in run.data.metrics]
    if len(scored) > 1:
        # `runs` has to come first: the page takes the question mark for a part of the first name.
        asked = {"runs": json.dumps(scored), "experiments": json.dumps([experiment])}
        found[f"settings and scores of {len(scored)} of its trials side by side"] = (
            f"{url}/#/compare-runs?{_query(asked | TRAINING)}"
        )
    return found


def _query(words: dict[str, str]) -> str:
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in words.items())


def _last_sweep(client: MlflowClient, experiment: str) -> Run | None:
    """The parent of the run that began last of those that have one."""
    newest = client.search_runs(
        [experiment],
        filter_string=f"tags.{MLFLOW_PARENT_RUN_ID} LIKE '%'",
        order_by=["attributes.start_time DESC"],
        max_results=1,
    )
    return client.get_run(newest[0].data.tags[MLFLOW_PARENT_RUN_ID]) if newest else None


def without_password(uri: str) -> str:
    """A URI as it may be shown: without the user and password of a server or database."""
    parts = urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _check_store(store: str) -> None:
    if store.startswith(SQLITE) and not Path(store.removeprefix(SQLITE)).is_file():
        raise ConfigError(
            f"{store}: there is no such file; runs trained in a folder are recorded in its "
            f"mlflow.db: go there, or name the store, as --uri {SQLITE}runs/mlflow.db"
        )
    if found := problem(store):
        raise ConfigError(f"{without_password(store)}: {found.replace(store, 'the store')}")


def _experiment(client: MlflowClient, name: str, store: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        known = [one.name for one in client.search_experiments()]
        near = difflib.get_close_matches(name, known, n=1) or known
        raise ConfigError(
            f"--experiment {name}: not in {without_password(store)}, which has: {', '.join(near)}"
        )
    if found.lifecycle_stage != "active":
        raise ConfigError(
            f"--experiment {name}: is deleted; bring it back with 'mlflow experiments restore "
            f"--experiment-id {found.experiment_id}'"
        )
    number: str = found.experiment_id
    return number


@contextmanager
def served(store: str, *, port: int | None) -> Iterator[tuple[str, Callable[[], None]]]:
    """MLflow's server on a store while the block runs: its address, and a wait for its end.

    Raises:
        ConfigError: the port is taken, or the server ends by itself.
    """
    number = _port(port)
    url = f"http://{HOST}:{number}"
    words = ["server", "--host", HOST, "--port", str(number), "--workers", "1"]
    # The store's password is not for the list of processes; jobs are of the GenAI mode, and would
    # be eight processes more.
    environment = {"MLFLOW_BACKEND_STORE_URI": store, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with tempfile.TemporaryFile("w+", encoding="utf-8") as log, _signals_interrupt():
        server = subprocess.Popen(
            [sys.executable, "-m", "mlflow", *words],
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C comes to us alone, and all of it can be ended at once
        )

        def ended() -> None:
            server.wait()
            _say_why(server, log)

        try:
            _await(url, server, log)
            yield url, ended
        finally:
            _end(server)


def _port(asked: int | None) -> int:
    if asked is None:
        return PORT if _is_free(PORT) else free_port()
    if not _is_free(asked):
        raise ConfigError(f"--port {asked}: is taken; choose another, or leave it out")
    return asked


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Being told to end, or losing the terminal, is as Ctrl-C: the server does not stay behind.

    A signal that somebody ignores, as nohup does, stays ignored.
    """

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    ours = [
        one for one in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(one) is signal.SIG_DFL
    ]
    for one in ours:
        signal.signal(one, interrupt)
    try:
        yield
    finally:
        for one in ours:
            signal.signal(one, signal.SIG_DFL)


def _await(url: str, server: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    """Returns once the server answers."""
    until = time.monotonic() + START_S
    while time.monotonic() < until:
        if server.poll() is not None:
            _say_why(server, log)
        with suppress(urllib.error.URLError, OSError):
            urllib.request.urlopen(f"{url}/health", timeout=5).close()
            return
        time.sleep(0.2)
    raise ConfigError(f"{url}: MLflow's server has not answered for {START_S:.0f} s")


def _say_why(server: "subprocess.Popen[bytes]", log: IO[str]) -> None:
    log.seek(0)
    said = [line.strip() for line in log.read().splitlines() if line.strip()]
    raise ConfigError(
        f"MLflow's server ended with exit code {server.returncode}: {said[-1] if said else ''}"
    )


def _end(server: "subprocess.Popen[bytes]") -> None:
    """End the server and all it has started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(server.pid, number)
        with suppress(subprocess.TimeoutExpired):
            server.wait(PATIENCE_S)
