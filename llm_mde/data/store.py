"""The file system behind a URL, and downloads that outlive a bad network.

What a store refuses for good (a missing file, no permission) is an error at once. Anything else, a
connection that breaks or a server that is busy, is tried again after a pause that doubles, until
nothing has come for `PATIENCE_S`. Over s3:// the bytes that came stay, and the next try asks for
the rest of them alone.
"""

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

from llm_mde.errors import ConfigError, StoreError

logger = logging.getLogger(__name__)

PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "hf": "huggingface_hub"}
CONNECTIONS = 16  # of one process; 200 samples/s at a latency of 80 ms
PATIENCE_S = 120.0  # without a new byte, before a download is given up
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
WELL_S = 60.0  # without a failure, after which the next one is news
PIECE_BYTES = 2**16
BUSY = (408, 425, 429)  # HTTP: request timeout, too early, too many requests; and 500 or more

Pause = Callable[[float], object]
"""Waits for so many seconds; true if the download is to end instead."""


class Outages:
    """When stores last failed, so that many threads do not say one outage over and over."""

    def __init__(self) -> None:
        self._lock, self._failed = threading.Lock(), dict[str, float]()

    def begins(self, store: str) -> bool:
        """Take in a failure; whether it is the first one since the store was well."""
        now = time.monotonic()
        with self._lock:
            before, self._failed[store] = self._failed.get(store), now
        return before is None or now - before > WELL_S


OUTAGES = Outages()  # of this process


def file_system(scheme: str, **settings: Any) -> Any:
    """The file system of a scheme; fsspec keeps one in each process.

    Raises:
        ConfigError: its package is not installed.
    """
    import fsspec

    try:
        # no cache of listings: what is written here by others must be seen
        return fsspec.filesystem(scheme, use_listings_cache=False, **settings)
    except ImportError as error:
        package = PACKAGES[scheme]
        raise ConfigError(
            f"{scheme}:// needs the package {package}, which is not installed; "
            f"run 'pip install {package}'"
        ) from error


def failures(scheme: str) -> tuple[type[Exception], ...]:
    """What a missing credential, a lost network or a full disk raises."""
    return (OSError, *_refusals(scheme), *_breaks(scheme))


def _refusals(scheme: str) -> tuple[type[Exception], ...]:
    """Of those, what a store answers; its HTTP status says whether a later try may succeed."""
    with suppress(ImportError):  # not installed: `file_system` says so
        if scheme == "s3":
            from botocore.exceptions import BotoCoreError, ClientError

            return BotoCoreError, ClientError
        if scheme == "gs":
            from gcsfs.retry import HttpError
            from google.auth.exceptions import GoogleAuthError

            return HttpError, GoogleAuthError
    return ()


def _breaks(scheme: str) -> tuple[type[Exception], ...]:
    """Of those, what a bad network raises."""
    with suppress(ImportError):
        if scheme == "s3":
            from aiohttp import ClientError
            from botocore import exceptions as boto
            from botocore.parsers import ResponseParserError

            refused = boto.EndpointConnectionError, boto.ConnectTimeoutError
            return (ClientError, boto.HTTPClientError, *refused, ResponseParserError)
        if scheme == "gs":
            from aiohttp import ClientError
            from google.auth.exceptions import TransportError

            return ClientError, TransportError
        if scheme == "hf":
            from huggingface_hub.errors import HTTPError

            return (HTTPError,)
    return ()


def download(
    url: str, *, scheme: str, start: int = 0, end: int | None = None, pause: Pause = time.sleep
) -> bytes:
    """Bytes [start, end) of a file, or all from `start` on; fewer where the file ends before.

    Raises:
        StoreError: nothing came for `PATIENCE_S`, in spite of all tries.
        Exception: one of `failures`, where another try would not help.
    """
    got, tries, since = bytearray(), 0, time.monotonic()
    while True:
        before = len(got)
        try:
            _pour(url, scheme, start, end, got)
            return bytes(got)
        except failures(scheme) as error:
            if not _passing(error, scheme):
                raise
            why = error
        if len(got) > before:
            tries, since = 0, time.monotonic()
        tries += 1
        at = f"{url}, byte {start + len(got)}"
        wait = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1))
        # Not all at once; and forked processes would share the numbers of a seeded generator.
        wait *= random.SystemRandom().uniform(0.5, 1)
        if time.monotonic() + wait - since > PATIENCE_S:
            raise StoreError(
                f"{at}: nothing came in {tries} tries, {time.monotonic() - since:.0f} s "
                f"({_said(why)}); see to the network and the store, and run the same command again"
            ) from why
        if OUTAGES.begins("/".join(url.split("/")[:3])):  # scheme://bucket
            logger.warning(
                "%s: %s; trying again for %g s from the last byte on; more of this is not said",
                at, _said(why), PATIENCE_S,
            )  # fmt: skip
        if pause(wait):
            raise StoreError(f"{at}: no longer wanted") from why


def _pour(url: str, scheme: str, start: int, end: int | None, got: bytearray) -> None:
    """One try: what is missing goes to the end of `got`."""
    at = start + len(got)
    if scheme != "s3":
        got += file_system(scheme).cat_file(url, start=at or None, end=end)
        return
    from fsspec.asyn import sync

    remote = _patient_s3()
    until = "" if end is None else end - 1
    sync(remote.loop, _stream_s3, remote, url, f"bytes={at}-{until}" if at or end else None, got)


async def _stream_s3(remote: Any, url: str, wanted: str | None, got: bytearray) -> None:
    # s3fs asks for a whole range anew when it breaks, so its body is read here.
    bucket, key, _ = remote.split_path(url)
    parts = {"Bucket": bucket, "Key": key} | ({"Range": wanted} if wanted else {})
    answer = await remote._call_s3("get_object", **parts)
    async with answer["Body"] as body:
        while piece := await body.read(PIECE_BYTES):
            got += piece


def _patient_s3() -> Any:
    """An s3 file system that leaves trying again to `download`.

    By itself botocore tries five times, s3fs five times that, without a word.
    """
    from fsspec.config import conf

    own = {"retries": {"total_max_attempts": 1}, "max_pool_connections": CONNECTIONS}
    theirs = conf.get("s3", {}).get("config_kwargs", {})  # of the user's fsspec configuration
    remote = file_system("s3", config_kwargs=theirs | own)
    remote.retries = 1
    return remote


def _passing(error: Exception, scheme: str) -> bool:
    """Whether a later try may succeed."""
    status = _status(error)
    if status is not None:
        return status >= 500 or status in BUSY
    return isinstance(error, (ConnectionError, TimeoutError, *_breaks(scheme)))


def _status(error: Exception) -> int | None:
    """The HTTP status that an error carries: botocore's, the hub's, aiohttp's or gcsfs's."""
    for one in (error, error.__cause__):  # s3fs raises an OSError from botocore's
        response = getattr(one, "response", None)
        if isinstance(response, Mapping):
            found: object = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return found if isinstance(found, int) else None
    found = getattr(getattr(error, "response", None), "status_code", None)
    found = found or getattr(error, "status", None) or getattr(error, "code", None)
    return int(str(found)) if str(found).isdigit() else None


def _said(error: Exception) -> str:
    """An error on one line."""
    return " ".join(str(error).split()) or type(error).__name__
