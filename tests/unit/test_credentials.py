"""Passwords and tokens are in no text that is shown, and in no configuration."""

import pickle

import pytest

from llm_mde.cli import main
from llm_mde.config import Config, TrackingConfig, tracking_uri
from llm_mde.credentials import redacted
from llm_mde.data.folder import ShardFolder
from llm_mde.errors import ConfigError
from llm_mde.recipes import dump, flat, load
from llm_mde.tracking.address import address

URI = "postgresql://user:hunter2@host:5432/db"
SHOWN = "postgresql://***@host:5432/db"


@pytest.fixture(autouse=True)
def no_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")  # put back at the end, whatever we set it to


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (URI, SHOWN),
        ("at https://user:hunter2@host/api: 403", "at https://***@host/api: 403"),
        ("https://hunter2@host", "https://***@host"),
        ("http://hunter2@host/x", "http://***@host/x"),
        ("mysql+pymysql://u:hun/ter2@host/db", "mysql+pymysql://***@host/db"),  # as SQLAlchemy
        ("postgresql://u:hun@ter2@host/db", "postgresql://***@host/db"),
        ("postgresql://:hunter2@host/db", "postgresql://***@host/db"),
        (
            "postgresql://host/db?user=u&password=hunter2",
            "postgresql://host/db?user=u&password=***",
        ),
        ("s3://b/k?X-Amz-Signature=hunter2&x=1", "s3://b/k?X-Amz-Signature=***&x=1"),
        (f"['{URI}', '{URI}']", f"['{SHOWN}', '{SHOWN}']"),
    ],
)
def test_a_password_is_not_shown(text: str, shown: str) -> None:
    assert redacted(text) == shown
    assert redacted(shown) == shown


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://user@host/db",
        "sqlite:////home/a@b/mlflow.db",
        "http://127.0.0.1:5000",
        "s3://bucket/folder/a@b",
        "models:/depth@best",
        "mail a@b.example, see https://host/path?step=3",
    ],
)
def test_an_address_without_one_stays(text: str) -> None:
    assert redacted(text) == text


def test_a_configuration_holds_no_password_and_mlflow_gets_it() -> None:
    config = load(sets=[f"tracking.uri={URI}"])
    assert config.tracking.uri == SHOWN == tracking_uri(config.tracking)
    for said in (dump(config), str(flat(config)), repr(config), str(pickle.dumps(config))):
        assert "hunter2" not in said
    assert address(config.tracking) == URI


def test_the_environments_store_is_shown_without_its_password(monkeypatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", URI)
    assert tracking_uri(TrackingConfig()) == SHOWN
    assert address(TrackingConfig()) == URI
    assert address(TrackingConfig(uri=SHOWN)) == URI  # as a run's config.yaml has it


@pytest.mark.parametrize("elsewhere", ["", "postgresql://user:hunter2@other/db"])
def test_credentials_that_are_not_at_hand_are_asked_for(monkeypatch, elsewhere: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    with pytest.raises(ConfigError, match="say the whole address again, in MLFLOW_TRACKING_URI"):
        address(TrackingConfig(uri=SHOWN))


@pytest.mark.parametrize(
    "words",
    [
        ["--set", f"tracking.uri={URI}", "--set", "train.batch=x"],
        ["--set", f"tracking.ury={URI}"],
        ["--set", f"={URI}"],
        ["--set", f"tracking={URI}"],
        ["--set", "data.shards=s3://key:hunter2@bucket/shards"],
        ["--set", f"tracking.uri={URI}", "--set", "data.shards=/nowhere"],
    ],
)
def test_a_wrong_word_does_not_tell_the_password(words, capsys) -> None:
    assert main(["train", *words]) == 2
    said = capsys.readouterr()
    assert "hunter2" not in said.err + said.out


def test_shards_are_read_by_no_url_with_credentials() -> None:
    # s3fs, gcsfs and huggingface_hub take none from there: they would be written down for nothing.
    with pytest.raises(ConfigError, match=r"s3://\*\*\*@bucket/f: expected a URL without cred"):
        ShardFolder("s3://key:hunter2@bucket/f")


@pytest.mark.parametrize(
    ("uri", "folder"),
    [
        ("file:///srv/mlruns", "/srv/mlruns"),
        ("file:/srv/mlruns", "/srv/mlruns"),
        ("file:./mlruns", "./mlruns"),
        ("file://localhost/srv/mlruns", "/srv/mlruns"),
        ("/srv/mlruns", "/srv/mlruns"),
        ("mlruns", "mlruns"),
    ],
)
def test_a_folder_of_files_is_refused_with_the_command_that_moves_it(uri, folder, capsys) -> None:
    with pytest.raises(ConfigError, match="refuses since 3.13") as caught:
        address(TrackingConfig(uri=uri))
    assert f"'mlflow migrate-filestore --source {folder} --target sqlite:///" in str(caught.value)
    assert main(["train", "--set", f"tracking.uri={uri}"]) == 2  # before anything else is looked at
    assert "migrate-filestore" in capsys.readouterr().err


def test_names_of_databricks_are_no_folders() -> None:
    assert address(TrackingConfig(uri="databricks")) == "databricks"


def test_defaults_hold_nothing_hidden() -> None:
    assert redacted(dump(Config())) == dump(Config())
