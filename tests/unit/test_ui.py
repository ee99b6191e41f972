"""Links to where runs are compared, and stores that cannot be shown."""

import json
import socket
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from llm_mde.commands.track import EXPERIMENT
from llm_mde.config import TrackingConfig
from llm_mde.errors import ConfigError
from llm_mde.tracking import ui
from llm_mde.tracking.ui import Page, links, show, without_password


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('store')}/mlflow.db"


@pytest.fixture(scope="module")
def client(store: str) -> MlflowClient:
    return MlflowClient(tracking_uri=store)


def add_run(
    client: MlflowClient,
    experiment: str,
    *,
    at: int,
    parent: str = "",
    abs_rel: float | None = None,
) -> str:
    tags = {MLFLOW_PARENT_RUN_ID: parent} if parent else None
    run = client.create_run(experiment, start_time=at, tags=tags, run_name=f"run {at}")
    if abs_rel is not None:
        client.log_metric(run.info.run_id, "val/abs_rel", abs_rel)
    return run.info.run_id


def asked(url: str) -> dict[str, str]:
    """The words behind the last question mark; the first has to be `runs` or a page's own."""
    return {name: value for name, [value] in parse_qs(url.partition("?")[2]).items()}


def test_a_store_without_a_sweep_has_one_link(client: MlflowClient) -> None:
    experiment = client.create_experiment("alone")
    add_run(client, experiment, at=1)
    [url] = links(client, experiment, url="http://host").values()
    assert url.startswith(f"http://host/#/experiments/{experiment}/runs?")
    assert asked(url)["compareRunsMode"] == "CHART"
    assert asked(url)["workflowType"] == "machine_learning"


def test_links_of_the_last_sweep_are_of_its_scored_trials_by_their_last_score(
    client: MlflowClient,
) -> None:
    experiment = client.create_experiment("sweeps")
    older, newer = (add_run(client, experiment, at=at) for at in (1, 5))
    add_run(client, experiment, at=2, parent=older, abs_rel=0.1)
    add_run(client, experiment, at=9)  # a run that is no trial, later than all
    worse = add_run(client, experiment, at=6, parent=newer, abs_rel=0.4)
    better = add_run(client, experiment, at=7, parent=newer, abs_rel=0.3)
    add_run(client, experiment, at=8, parent=newer)  # failed before it had a score
    _, charts, compared = links(client, experiment, url="http://host").values()
    assert asked(charts)["searchFilter"] == f'tags.mlflow.parentRunId = "{newer}"'
    found = client.search_runs([experiment], filter_string=asked(charts)["searchFilter"])
    assert len(found) == 3
    assert compared.startswith("http://host/#/compare-runs?runs=")  # the page wants it first
    assert json.loads(asked(compared)["runs"]) == [better, worse]
    assert json.loads(asked(compared)["experiments"]) == [experiment]


def test_a_sweep_with_one_scored_trial_has_nothing_to_compare(client: MlflowClient) -> None:
    experiment = client.create_experiment("young")
    parent = add_run(client, experiment, at=1)
    add_run(client, experiment, at=2, parent=parent, abs_rel=0.4)
    assert len(links(client, experiment, url="http://host")) == 2


def show_nothing(uri: str | None, experiment: str = "sweeps", port: int | None = None) -> None:
    def announce(page: Page) -> None:
        raise AssertionError(page)

    show(uri, experiment=experiment, port=port, announce=announce)


def test_a_store_that_is_not_there_is_not_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(ConfigError, match=f"sqlite:///{tmp_path}/mlflow.db: there is no such file"):
        show_nothing(None)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_or_deleted_experiment_is_said(client: MlflowClient, store: str) -> None:
    number = client.create_experiment("gone")
    client.create_experiment("present")
    client.delete_experiment(number)
    with pytest.raises(ConfigError, match=f"gone: is deleted; .* restore --experiment-id {number}"):
        show_nothing(store, "gone")
    with pytest.raises(ConfigError, match="--experiment presents: not in .* has: present$"):
        show_nothing(store, "presents")


def test_a_server_that_does_not_answer_is_named_without_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        show_nothing("http://me:secret@127.0.0.1:9")
    assert str(caught.value).startswith("http://127.0.0.1:9: ")
    assert "secret" not in str(caught.value)


def test_a_port_that_is_taken_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {taken}: is taken"):
            ui._port(taken)
        monkeypatch.setattr(ui, "PORT", taken)
        assert ui._port(None) != taken
    assert ui._port(None) == ui._port(taken) == taken


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("http://me:secret@host:5000/ml", "http://host:5000/ml"),
        ("postgresql://me:se@cret@host/db", "postgresql://host/db"),
        ("http://host", "http://host"),
        ("sqlite:////a/b@c.db", "sqlite:////a/b@c.db"),
    ],
)
def test_passwords_are_not_shown(uri: str, shown: str) -> None:
    assert without_password(uri) == shown


def test_the_experiment_is_that_of_the_runs() -> None:
    assert TrackingConfig().experiment == EXPERIMENT
