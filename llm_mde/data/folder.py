"""A shard folder on the local disk or behind a URL: whole files in, byte ranges out.

A file appears under its name only when it is complete: on disk by a rename, in an object store
because an upload is one.
"""

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

from llm_mde.credentials import redacted
from llm_mde.data.cache import DiskCache
from llm_mde.data.store import Pause, download, failures, file_system
from llm_mde.errors import ConfigError, DataError, StoreError

SCHEMES = ("file", "s3", "gs", "hf", "memory")  # an allow-list: fsspec knows some that run code


class ShardFolder:
    """Files of one folder by name (`train-000000.tar`, `splits/train.txt`). Picklable."""

    def __init__(self, url: str | Path, *, cache: DiskCache | None = None) -> None:
        """Name a folder; nothing is touched yet.

        url: a path, or a URL of one of `SCHEMES`. cache: keeps samples of a URL on a local disk.

        Raises:
            ConfigError: another scheme.
        """
        if not str(url):
            raise ConfigError("expected a folder or a URL for the shards, got nothing")
        if (shown := redacted(str(url))) != str(url):
            raise ConfigError(
                f"{shown}: expected a URL without credentials; they go into the environment "
                "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, HF_TOKEN, ...)"
            )
        scheme, separator, rest = str(url).partition("://")
        self.scheme = scheme if separator else "file"
        if self.scheme not in SCHEMES or "::" in str(url):
            known = ", ".join(f"{name}://" for name in SCHEMES if name != "memory")
            raise ConfigError(f"{url}: expected a folder or a URL with one of {known}")
        self.local = Path(rest if separator else url).resolve() if self.scheme == "file" else None
        self.url = str(self.local or str(url).rstrip("/"))
        self.cache = None if self.local else cache

    def __str__(self) -> str:
        return self.url

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ShardFolder) and self.url == other.url

    def __hash__(self) -> int:
        return hash(self.url)

    def at(self, name: str) -> str:
        """How messages name one of its files."""
        return f"{self.url}/{name}"

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name."""
        if self.local is not None:
            return (self.local / name).is_file()
        with self._errors(name):
            try:  # isfile() takes any failure for a no
                return self._remote().info(self.at(name))["type"] == "file"
            except FileNotFoundError:
                return False

    def sizes(self, under: str = "") -> dict[str, int]:
        """Bytes of all files below a folder of it by name, sorted; empty where that is missing."""
        with self._errors(under):
            if self.local is not None:
                root, found = self.local, sorted((self.local / under).rglob("*"))
                return {
                    path.relative_to(root).as_posix(): path.stat().st_size
                    for path in found
                    if path.is_file()
                }
            remote = self._remote()
            prefix = remote._strip_protocol(self.url)
            listed = remote.find(self.at(under).rstrip("/"), detail=True)
            return {
                path.removeprefix(prefix).lstrip("/"): entry["size"]
                for path, entry in sorted(listed.items())
            }

    def names(self, under: str = "") -> list[str]:
        """Sorted names of all files below a folder of it; empty where that is missing."""
        return list(self.sizes(under))

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            DataError: it is missing or cannot be read.
        """
        with self._errors(name):
            if self.local is not None:
                return (self.local / name).read_bytes()
            return download(self.at(name), scheme=self.scheme)

    def read_range(self, name: str, offset: int, size: int, *, pause: Pause = time.sleep) -> bytes:
        """`size` bytes of a file from an `offset` inside it on, fewer at its end.

        pause: waits between tries over a bad network.

        Raises:
            DataError: it is missing or cannot be read.
        """
        with self._errors(name):
            if self.local is not None:
                with (self.local / name).open("rb") as file:
                    file.seek(offset)
                    return file.read(size)
            end = offset + size
            return download(self.at(name), scheme=self.scheme, start=offset, end=end, pause=pause)

    def write(self, name: str, content: bytes) -> None:
        """A whole file at once, replacing an older one.

        Raises:
            DataError: it cannot be written.
        """
        with self.staged(name) as path:
            path.write_bytes(content)

    @contextmanager
    def staged(self, name: str) -> Iterator[Path]:
        """A local file to write in the block; it gets its name when the block ends well.

        Raises:
            DataError: it cannot be written.
        """
        with self._errors(name, "written"):
            staged = self._staging_path(name)
            try:
                yield staged
                if self.local is None:
                    self._remote().put_file(str(staged), self.at(name))
                else:
                    _sync(staged)
                    staged.replace(self.local / name)
            finally:
                staged.unlink(missing_ok=True)

    def _staging_path(self, name: str) -> Path:
        """Where this process writes a file before it gets its name: beside it, hidden."""
        if self.local is None:
            self._aside.mkdir(mode=0o700, exist_ok=True)
            return self._aside / uuid4().hex
        path = self.local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.with_name(f".{path.name}.{uuid4().hex}.tmp")

    def sweep(self) -> None:
        """Delete what interrupted writers left; only for who has the folder alone."""
        left = self._aside.glob("*") if self.local is None else self.local.rglob(".*.tmp")
        for path in left:
            path.unlink(missing_ok=True)

    @property
    def _aside(self) -> Path:
        """Where this machine stages files for a URL."""
        name = hashlib.sha256(self.url.encode()).hexdigest()[:16]
        return Path(tempfile.gettempdir()) / f"llm-mde-{os.getuid()}-{name}"

    def remove(self, name: str) -> None:
        """Delete a file or a folder with all it holds; nothing where it is missing."""
        with self._errors(name, "removed"):
            if self.local is None:
                remote = self._remote()
                if remote.exists(self.at(name)):
                    remote.rm(self.at(name), recursive=True)
            elif (self.local / name).is_dir():
                shutil.rmtree(self.local / name)
            else:
                (self.local / name).unlink(missing_ok=True)

    def _remote(self) -> Any:
        """The file system behind a URL."""
        return file_system(self.scheme)

    @contextmanager
    def _errors(self, name: str, what: str = "read") -> Iterator[None]:
        kind = DataError if self.local else StoreError
        try:
            yield
        except FileNotFoundError as error:
            raise kind(f"{self.at(name)}: not found") from error
        except failures(self.scheme) as error:
            remedy = "free space or choose another folder" if what == "written" else "try again"
            if isinstance(error, PermissionError):
                remedy = "see to its permissions and your credentials"
            raise kind(f"{self.at(name)}: cannot be {what} ({error}); {remedy}") from error


def _sync(path: Path) -> None:
    """Have the file's content on disk before its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
