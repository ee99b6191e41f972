import uuid

import fsspec.config
import pytest

from llm_mde.data import store
from llm_mde.data.folder import ShardFolder
from llm_mde.data.store import download
from llm_mde.errors import DataError

URL = "memory://somewhere/file"
CONTENT = bytes(range(200))


@pytest.fixture
def network(monkeypatch):
    """A store that does what a list says: raise an error after so many bytes, or go on."""
    asked = []
    monkeypatch.setattr(store, "OUTAGES", store.Outages())

    def arrange(*outcomes):
        script = list(outcomes)

        def pour(url, scheme, start, end, got):
            asked.append(start + len(got))
            count, error = script.pop(0) if script else (None, None)
            rest = CONTENT[start:end][len(got) :]
            got += rest[:count]
            if error is not None:
                raise error

        monkeypatch.setattr(store, "_pour", pour)
        return asked

    return arrange


def fetch(**settings):
    pauses = []
    got = download(URL, scheme="memory", pause=pauses.append, **settings)
    return got, pauses


def test_broken_download_goes_on_where_it_broke(network):
    asked = network((30, ConnectionResetError("reset")), (0, TimeoutError()), (50, OSError(5, "x")))
    with pytest.raises(OSError, match="x"):  # an error of no known kind is no break
        fetch(start=10, end=150)
    assert asked == [10, 40, 40]
    asked.clear()
    network((30, ConnectionResetError("reset by\npeer")), (0, TimeoutError()))
    assert fetch(start=10, end=150)[0] == CONTENT[10:150]
    assert asked == [10, 40, 40]


def test_an_outage_is_said_once_for_each_store(network, monkeypatch, caplog):
    now = [1000.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])

    def broken(url, *, times):
        network(*[(0, ConnectionResetError("reset by\npeer"))] * times)
        download(url, scheme="memory", pause=lambda wait: now.append(now.pop() + wait))

    broken(URL, times=5)
    broken(f"{URL}-2", times=3)
    once = "byte 0: reset by peer; trying again for 120 s from the last byte on; more of this is"
    assert caplog.messages == [f"{URL}, {once} not said"]
    broken("memory://elsewhere/file", times=2)
    assert caplog.messages[1:] == [f"memory://elsewhere/file, {once} not said"]
    now[0] += store.WELL_S + 1
    broken(f"{URL}-3", times=2)
    assert caplog.messages[2:] == [f"{URL}-3, {once} not said"]


def test_pauses_double_up_to_a_bound_and_begin_anew_with_progress(network):
    network(*[(0, ConnectionError("gone"))] * 8, (5, ConnectionError("gone")))
    got, pauses = fetch()
    assert got == CONTENT
    whole = [0.5, 1, 2, 4, 8, 15, 15, 15, 0.5]
    assert all(half / 2 <= pause <= half for half, pause in zip(whole, pauses, strict=True))


def test_download_that_never_comes_is_given_up(network, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(store.time, "monotonic", lambda: now[0])
    network((7, ConnectionError("reset")), *[(0, ConnectionError("gone"))] * 1000)

    def pause(wait):
        now[0] += wait

    with pytest.raises(DataError) as caught:
        download(URL, scheme="memory", pause=pause)
    assert str(caught.value).startswith(f"{URL}, byte 7: nothing came in ")
    assert "s (gone); see to the network and the store, and run the same" in str(caught.value)
    assert 1000 + store.PATIENCE_S / 2 < now[0] < 1000 + 2 * store.PATIENCE_S


@pytest.mark.parametrize("error", [FileNotFoundError("x"), PermissionError("x"), OSError(22, "x")])
def test_what_is_refused_is_asked_for_once(network, error):
    asked = network((0, error))
    with pytest.raises(type(error)):
        fetch()
    assert asked == [0]


@pytest.mark.parametrize(("status", "tries"), [(503, 2), (500, 2), (429, 2), (403, 1), (416, 1)])
@pytest.mark.parametrize("kind", ["botocore", "hub", "gcsfs"])
def test_http_status_says_whether_to_ask_again(network, status, tries, kind):
    error = OSError("a store's word")
    if kind == "botocore":  # s3fs raises an OSError from it
        error.__cause__ = Exception()
        error.__cause__.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
    elif kind == "hub":
        error.response = type("Response", (), {"status_code": status})
    else:
        error.code = str(status)
    asked = network((0, error))
    if tries == 1:
        with pytest.raises(OSError, match="a store's word"):
            fetch()
    else:
        assert fetch()[0] == CONTENT
    assert len(asked) == tries


def test_download_that_is_no_longer_wanted_ends(network):
    network(*[(0, ConnectionError("gone"))] * 9)
    with pytest.raises(DataError, match="byte 0: no longer wanted"):
        download(URL, scheme="memory", pause=lambda wait: True)


def test_range_beyond_the_end_is_what_there_is():
    folder = ShardFolder(f"memory://{uuid.uuid4().hex}")
    folder.write("file", CONTENT)
    assert folder.read_range("file", 190, 50) == CONTENT[190:]
    assert folder.read_range("file", 3, 4) == CONTENT[3:7]
    assert folder.read("file") == CONTENT
    with pytest.raises(DataError, match="^memory://.*/other: not found$"):
        folder.read("other")


def test_settings_of_the_user_reach_the_store(monkeypatch):
    pytest.importorskip("s3fs")
    theirs = {"endpoint_url": "http://x", "config_kwargs": {"s3": {"addressing_style": "path"}}}
    monkeypatch.setitem(fsspec.config.conf, "s3", theirs)
    remote = store._patient_s3()
    assert remote.endpoint_url == "http://x"
    assert remote.config_kwargs["s3"] == {"addressing_style": "path"}
    assert (remote.config_kwargs["retries"], remote.retries) == ({"total_max_attempts": 1}, 1)
    assert store.file_system("s3").retries == 5  # where other requests go
