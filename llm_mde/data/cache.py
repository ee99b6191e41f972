"""Samples of a remote pack kept on a local disk: by their sha256, up to a number of bytes.

A file is named after the checksum of what it holds, so it cannot be out of date, nobody need trust
it, and all ranks, loader processes and runs of a host can share it. It appears whole, by a rename;
a damaged one is dropped when it is read. Room comes from samples that no one has used since this
run began, the longest unused first. Those of the run itself stay: an epoch reads each sample once,
so the longest unused of them is the next one to be read.
"""

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from llm_mde.errors import ConfigError

logger = logging.getLogger(__name__)

SAMPLES, WRITING, LEDGER = "samples", "writing", "used"
STALE_S = 60.0  # a sample is written in far less
SPARE = 0.05  # of the bound, freed at once, for the folder is listed each time
DIGITS = 20


class DiskCache:
    """One folder of samples. Picklable; processes and threads may use it at once."""

    def __init__(self, folder: Path, limit: int) -> None:
        """Name a folder and its bound in bytes; nothing is touched yet."""
        self.folder, self.limit = folder, limit
        self.began = time.time()
        """What was used after this moment is not removed."""
        self._keeps = True

    def check(self) -> None:
        """Whether it could be made and written, as far as that can be seen without doing so.

        Raises:
            ConfigError: it could not.
        """
        there = next(one for one in (self.folder, *self.folder.parents) if one.exists())
        if not there.is_dir():
            raise self._refusal(f"{there} is no folder")
        if not os.access(there, os.W_OK | os.X_OK):
            raise self._refusal("Permission denied")

    def _refusal(self, why: str | None) -> ConfigError:
        return ConfigError(
            f"data.disk_cache: {self.folder} cannot be written ({why}); "
            "choose a folder on a local disk of each host"
        )

    def prepare(self) -> int:
        """Make the folder and clear away what interrupted writers left; the bytes it holds.

        Raises:
            ConfigError: it cannot be written.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / WRITING).mkdir(exist_ok=True)
            with self._ledger() as ledger:
                self._sweep()
                used = _read(ledger, self._measured)
                if used > self.limit:
                    used = self._made_room(0)
                _write(ledger, used)
        except OSError as error:
            raise self._refusal(error.strerror) from error
        return used

    def get(self, sha256: str) -> bytes | None:
        """The sample with this checksum, verified; None if it is not here."""
        path = self._path(sha256)
        try:
            with path.open("rb") as file:
                span = file.read()
                if os.fstat(file.fileno()).st_mtime < self.began:  # once a run, not at each read
                    os.utime(file.fileno())
        except OSError:
            return None
        if hashlib.sha256(span).hexdigest() == sha256:
            return span
        logger.warning("%s: damaged; it is dropped and fetched again", path)
        with suppress(OSError):
            path.unlink()
        return None

    def put(self, sha256: str, span: bytes) -> None:
        """Keep a sample if there is room; what prevents it is said once, and no error."""
        if not self._keeps:
            return
        staged, final = self.folder / WRITING / uuid4().hex, self._path(sha256)
        try:
            if not self._reserved(staged, final, len(span)):
                return
            with staged.open("r+b") as file:
                file.write(span)
            final.parent.mkdir(parents=True, exist_ok=True)
            staged.replace(final)
        except OSError as error:
            self._keeps = False
            logger.warning(
                "%s: a sample cannot be kept (%s); this process goes on without keeping more",
                self.folder, error.strerror,
            )  # fmt: skip
            with suppress(OSError):
                staged.unlink()

    def _reserved(self, staged: Path, final: Path, size: int) -> bool:
        """Make a file of this size to write to, if it is wanted and there is room."""
        with self._ledger() as ledger:
            if not self._keeps or final.exists():  # full as of a thread that was here before
                return False
            used = _read(ledger, self._measured)
            # Where another process of the run has looked for room in vain, this one need not.
            if used + size > self.limit and _full_since(ledger) < self.began:
                used = self._made_room(size)
            room = used + size <= self.limit
            _write(ledger, used + size if room else used)
            if room:
                with staged.open("xb") as file:
                    file.truncate(size)  # counts from now on, for who lists the folder
            else:
                _write_full(ledger, self.began)
            self._keeps = room
        if not room:
            logger.info("%s: full of samples of this run; others are fetched anew", self.folder)
        return room

    def _made_room(self, size: int) -> int:
        """Remove what was longest unused; the bytes that are left, counted anew."""
        self._sweep()
        used = self._measured()
        goal = min(self.limit - size, int((1 - SPARE) * self.limit))
        for used_at, bytes_, path in sorted(self._files(SAMPLES)):
            if used <= goal or used_at >= self.began:
                break
            path.unlink(missing_ok=True)
            used -= bytes_
        return used

    def _measured(self) -> int:
        # In this order a file that is renamed meanwhile counts twice rather than not at all.
        return sum(size for part in (WRITING, SAMPLES) for _, size, _ in self._files(part))

    def _sweep(self) -> None:
        for written, _, path in self._files(WRITING):
            if written < time.time() - STALE_S:
                path.unlink(missing_ok=True)  # at worst a living writer's, who goes without it

    def _files(self, part: str) -> Iterator[tuple[float, int, Path]]:
        """When each file of a part was last used, its bytes, and the file."""
        for folder, _, names in os.walk(self.folder / part):
            for name in names:
                with suppress(FileNotFoundError):  # renamed meanwhile, or dropped
                    stat = os.stat(os.path.join(folder, name))
                    yield stat.st_mtime, stat.st_size, Path(folder, name)

    def _path(self, sha256: str) -> Path:
        return self.folder / SAMPLES / sha256[:2] / sha256

    @contextmanager
    def _ledger(self) -> Iterator[int]:
        """The file with the number of bytes held, while nobody else on the host has it."""
        descriptor = os.open(self.folder / LEDGER, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield descriptor
        finally:
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # closing leaves it to who was forked meanwhile
            os.close(descriptor)


def _read(ledger: int, measured: Callable[[], int]) -> int:
    """The bytes held, at least; counted where the ledger does not say."""
    said = os.pread(ledger, DIGITS, 0)
    return int(said) if said.isdigit() else measured()


def _write(ledger: int, used: int) -> None:
    os.pwrite(ledger, b"%0*d" % (DIGITS, used), 0)


def _full_since(ledger: int) -> float:
    """Full of what was used after this moment; 0 where it never was."""
    said = os.pread(ledger, DIGITS, DIGITS)
    return float(said) if said else 0.0


def _write_full(ledger: int, since: float) -> None:
    os.pwrite(ledger, b"%0*.9f" % (DIGITS, since), DIGITS)
