"""An MLflow server of this machine: PostgreSQL behind it, artifacts on an S3-compatible store."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from llm_mde.launcher import free_port
from tests.support.s3 import s3_server

BUCKET = "mlflow"
PASSWORD = "hunter2"  # of the database; in no file and no log of ours
START_S = 240.0  # of a busy machine
DEBIAN = Path("/usr/lib/postgresql")


@dataclass(frozen=True)
class Server:
    """A running MLflow server."""

    uri: str
    database: str
    """Address of its PostgreSQL, password and all."""


@contextmanager
def mlflow_server() -> Iterator[Server]:
    """A running server. Skips the test where PostgreSQL, its driver or moto is missing."""
    with postgres() as database, s3_server(BUCKET) as environment, _folder() as folder:
        port = free_port()
        uri = f"http://127.0.0.1:{port}"
        own = {
            "MLFLOW_BACKEND_STORE_URI": sqlalchemy_address(database),
            "MLFLOW_S3_ENDPOINT_URL": environment["AWS_ENDPOINT_URL"],
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of traces: more processes
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }
        words = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        words += ["--artifacts-destination", f"s3://{BUCKET}"]
        command = [sys.executable, "-m", "mlflow", "server", *words]
        log, variables = folder / "log", os.environ | environment | own
        with _running(command, log, cwd=folder, env=variables) as child:
            _wait(lambda: urllib.request.urlopen(f"{uri}/health", timeout=5), child, log)
            yield Server(uri, database)


def sqlalchemy_address(database: str) -> str:
    """The same with its driver named: SQLAlchemy's default differs by version."""
    return database.replace("postgresql://", "postgresql+psycopg://")


@contextmanager
def postgres() -> Iterator[str]:
    """The address of a running PostgreSQL with one database."""
    psycopg = pytest.importorskip("psycopg", reason="needs psycopg[binary]")
    programs = [shutil.which("initdb"), *sorted(map(str, DEBIAN.glob("*/bin/initdb")))]
    initdb = next(filter(None, programs), None)
    if initdb is None:
        pytest.skip("needs PostgreSQL's server (apt-get install postgresql)")
    binaries, user = Path(initdb).resolve().parent, _user()
    with _folder() as folder:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret) if user else ():
            shutil.chown(path, user)
        data, port = folder / "data", free_port()
        make = [initdb, "-D", data, "-U", "mlflow", "--pwfile", secret, "--auth", "scram-sha-256"]
        subprocess.run([*make, "--no-sync"], user=user, check=True, capture_output=True, cwd="/")
        command = [binaries / "postgres", "-D", data, "-h", "127.0.0.1", "-p", port, "-k", folder]
        words = [str(word) for word in [*command, "-F"]]
        with _running(words, folder / "log", user=user, cwd="/") as child:
            address = f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"
            _wait(lambda: psycopg.connect(address).close(), child, folder / "log")
            yield address


def _user() -> str | None:
    """Whom to run PostgreSQL as: it refuses root."""
    if os.getuid():
        return None
    known = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in known else "nobody"


@contextmanager
def _folder() -> Iterator[Path]:
    # Not pytest's own: other users cannot look into that.
    folder = Path(tempfile.mkdtemp(prefix="llm-mde-test-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(command: list[str], log: Path, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    with log.open("wb") as record:
        child = subprocess.Popen(
            command, stdout=record, stderr=subprocess.STDOUT, start_new_session=True, **options
        )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGINT)  # PostgreSQL: end now, in an orderly way
        try:
            child.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def _wait(answers: Callable[[], Any], child: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while True:
        try:
            answers()
            return
        except Exception as error:  # of a driver or urllib: not up yet
            if time.monotonic() > deadline or child.poll() is not None:
                raise AssertionError(f"no server: {error}\n{log.read_text()}") from error
        time.sleep(0.2)
