"""An S3-compatible server of this machine, and the environment that leads a client to it."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


def s3_environment(port: int) -> dict[str, str]:
    """What a process needs, so that s3fs finds the server at `port` of this machine."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def s3_server(bucket: str = "shards") -> Iterator[dict[str, str]]:
    """A running server with one bucket; the environment that leads to it, for child processes.

    The environment of this process leads there, too, until the end. Skips the test where moto or
    s3fs is not installed.
    """
    server_module = pytest.importorskip("moto.server", reason="needs moto[server]")
    s3fs = pytest.importorskip("s3fs")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=_free_port())
    server.start()
    environment = s3_environment(server.get_host_and_port()[1])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        s3fs.S3FileSystem.clear_instance_cache()
        s3fs.S3FileSystem().mkdir(bucket)
        try:
            yield environment
        finally:
            server.stop()
            s3fs.S3FileSystem.clear_instance_cache()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
