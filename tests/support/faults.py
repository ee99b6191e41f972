"""A reverse proxy before a server of this machine that breaks connections, seeded, and counts."""

import http.client
import random
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.s3 import s3_environment, s3_server

BREAKS = ("cut", "reset", "hang up")  # in the middle of the body twice, before any answer
ERRORS = {"busy": (503, "SlowDown"), "broken": (500, "InternalError"), "no": (403, "AccessDenied")}
RESET = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing sends a reset


@dataclass(frozen=True)
class Served:
    """One request for an object's content."""

    path: str
    start: int
    """First byte asked for."""
    sent: int
    """Bytes of the object sent."""
    fault: str | None


@dataclass
class Faults:
    """What goes wrong with requests for an object's content, and what was served."""

    share: float = 0.0
    """Of these requests that meet a fault."""
    kinds: tuple[str, ...] = BREAKS
    """Also busy (503), broken (500), no (403), stall (nothing more comes)."""
    latency_s: float = 0.0
    """Before each answer."""
    stall_s: float = 30.0
    served: list[Served] = field(default_factory=list)
    """In the order of their ends."""
    draw: random.Random = field(default_factory=lambda: random.Random(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    def next(self) -> tuple[str | None, float]:
        """A fault or none, and the share of the body that comes before it."""
        with self.lock:
            fault = self.draw.choice(self.kinds) if self.draw.random() < self.share else None
            return fault, self.draw.random()

    def of(self, suffix: str) -> list[Served]:
        """What was served of objects whose names end so."""
        return [one for one in self.served if one.path.endswith(suffix)]


@contextmanager
def faulty_s3(bucket: str = "faulty") -> Iterator[Faults]:
    """As `s3_server`, but the environment leads to a proxy before it.

    Servers of one process share their buckets.
    """
    import s3fs  # `s3_server` skips where it is missing

    with s3_server(bucket) as environment:
        upstream = int(environment["AWS_ENDPOINT_URL"].rpartition(":")[2])
        faults = Faults()
        server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(upstream, faults))
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in s3_environment(server.server_port).items():
                patch.setenv(name, value)
            s3fs.S3FileSystem.clear_instance_cache()
            try:
                yield faults
            finally:
                server.shutdown()
                server.server_close()
                thread.join()
                s3fs.S3FileSystem.clear_instance_cache()


def _handler(upstream: int, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def answer(self) -> None:
            content = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            time.sleep(faults.latency_s)
            path = self.path.partition("?")[0]
            if self.command != "GET" or "list-type" in self.path or path.count("/") < 2:
                self.send(*self.fetched(content))
                return
            start = int((re.findall(r"\d+", self.headers.get("Range", "")) or [0])[0])
            fault, share = faults.next()
            if fault in ERRORS:
                self.refuse(*ERRORS[fault])
                sent = 0
            elif fault is None:
                answer, body = self.fetched(content)
                sent = len(body)
                faults.served.append(Served(path, start, sent, fault))  # before the client has it
                self.send(answer, body)
                return
            else:
                answer, body = self.fetched(content)
                sent = 0 if fault == "hang up" else int(share * len(body))
                if sent:
                    self.send(answer, body[:sent])
                self.end(fault)
            faults.served.append(Served(path, start, sent, fault))

        def fetched(self, content: bytes) -> tuple[http.client.HTTPResponse, bytes]:
            upward = http.client.HTTPConnection("127.0.0.1", upstream)
            try:
                upward.request(self.command, self.path, content, dict(self.headers))
                answer = upward.getresponse()
                return answer, answer.read()
            finally:
                upward.close()

        def send(self, answer: http.client.HTTPResponse, body: bytes) -> None:
            """The head as it was, so that a shorter body is noticed."""
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("connection", "transfer-encoding"):
                    self.send_header(name, value)
            if answer.getheader("Content-Length") is None:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
            self.wfile.flush()

        def refuse(self, status: int, code: str) -> None:
            body = f"<Error><Code>{code}</Code><Message>{code}!</Message></Error>".encode()
            self.send_response_only(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def end(self, fault: str) -> None:
            if fault == "stall":
                time.sleep(faults.stall_s)
            if fault == "reset":
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.close_connection = True

        def handle(self) -> None:
            with suppress(ConnectionError):  # the client went away
                super().handle()

        def log_message(self, *words: object) -> None:
            """Nothing."""

    for command in ("GET", "HEAD", "PUT", "POST", "DELETE"):
        setattr(Handler, f"do_{command}", Handler.answer)
    return Handler
