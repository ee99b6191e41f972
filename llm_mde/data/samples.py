"""The samples of a shard folder: verified bytes, from a URL ahead of their turn. No torch."""

import hashlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import Entry, shard_folder
from llm_mde.data.members import sample_members
from llm_mde.data.store import CONNECTIONS, Pause
from llm_mde.errors import DataError, StoreError

OPEN_SHARDS = 256  # more than the streams of a rank; well below the usual limit of 1024 files
AHEAD_BYTES = 32 * 2**20  # about a hundred frames of 640x480
AHEAD_ITEMS = 64

T = TypeVar("T")
Task = tuple[Future[bytes], Callable[[], bytes]]


class Shards:
    """The shards of a folder, read by byte range; the latest local ones stay open.

    Loader processes get none of what is open; fsspec makes a new file system in each process. Of
    what is fetched ahead, nothing outlives `ahead`.
    """

    def __init__(self, folder: ShardFolder | Path | str) -> None:
        self.folder = shard_folder(folder)
        self._open: OrderedDict[str, int] = OrderedDict()
        self._coming: dict[Entry, Future[bytes]] = {}

    def read(self, entry: Entry) -> dict[str, Any]:
        """One sample's members, verified: {"__key__", "__url__", "rgb.jpg", ...}.

        Raises:
            DataError: a missing shard, or bytes that differ from the index.
        """
        url = self.folder.at(entry.shard)
        coming = self._coming.pop(entry, None)
        span = self._verified(entry) if coming is None else coming.result()
        names = {"__key__": entry.key, "__url__": url}
        where = f"{url}, sample {entry.key}"
        return names | sample_members(span, key=entry.key, where=where)

    def ahead(self, items: Iterable[T], wanted: Callable[[T], Iterable[Entry]]) -> Iterator[T]:
        """The items one by one, while the samples of those to come are fetched in threads.

        wanted: the samples of an item that `read` will be asked for before the next item. Local
        items are handed on as they are.
        """
        if self.folder.local is not None:
            yield from items
            return
        stop = threading.Event()
        tasks: SimpleQueue[Task | None] = SimpleQueue()
        for _ in range(CONNECTIONS):
            # Daemons: the end of the program need not wait for tries over a bad network.
            threading.Thread(target=_work, args=(tasks, stop), daemon=True, name="shards").start()
        waiting: deque[tuple[T, int]] = deque()
        self._coming.clear()
        try:
            for item in items:
                entries = [
                    entry for entry in dict.fromkeys(wanted(item)) if entry not in self._coming
                ]
                for entry in entries:
                    self._coming[entry] = Future()
                    fetch = partial(self._verified, entry, stop.wait)
                    tasks.put((self._coming[entry], fetch))
                waiting.append((item, sum(entry.size for entry in entries)))
                while len(waiting) > AHEAD_ITEMS or sum(size for _, size in waiting) > AHEAD_BYTES:
                    yield waiting.popleft()[0]
            while waiting:
                yield waiting.popleft()[0]
        finally:
            stop.set()
            for _ in range(CONNECTIONS):
                tasks.put(None)  # wakes who waits
            self._coming.clear()

    def _verified(self, entry: Entry, pause: Pause = time.sleep) -> bytes:
        cache = self.folder.cache
        if cache is not None and (kept := cache.get(entry.sha256)) is not None:
            return kept
        where = f"{self.folder.at(entry.shard)}, sample {entry.key}"
        span = self._span(entry, where, pause)
        if hashlib.sha256(span).hexdigest() != entry.sha256:
            raise DataError(
                f"{where}: {len(span)} bytes at {entry.offset} do not match the index's checksum; "
                "the shard is damaged, pack again"
            )
        if cache is not None:
            cache.put(entry.sha256, span)
        return span

    def _span(self, entry: Entry, where: str, pause: Pause) -> bytes:
        if self.folder.local is None:
            try:
                return self.folder.read_range(entry.shard, entry.offset, entry.size, pause=pause)
            except StoreError as error:
                raise StoreError(f"{where}: {error}") from error
        try:
            return os.pread(self._descriptor(entry.shard), entry.size, entry.offset)
        except OSError as error:
            raise DataError(f"{where}: {error.strerror}; the index lists it, pack again") from error

    def _descriptor(self, shard: str) -> int:
        if shard not in self._open:
            if len(self._open) == OPEN_SHARDS:
                os.close(self._open.popitem(last=False)[1])
            self._open[shard] = os.open(self.folder.at(shard), os.O_RDONLY)
        self._open.move_to_end(shard)
        return self._open[shard]

    def close(self) -> None:
        """Close what is open; a later read opens again."""
        while self._open:
            os.close(self._open.popitem()[1])

    def __getstate__(self) -> dict[str, Any]:
        # Descriptors and threads stay in their process.
        return {"folder": self.folder, "_open": OrderedDict(), "_coming": {}}

    def __del__(self) -> None:
        self.close()


def _work(tasks: SimpleQueue[Task | None], stop: threading.Event) -> None:
    """Fetch in this thread what is asked for, until all is told to stop."""
    while (task := tasks.get()) is not None and not stop.is_set():
        future, fetch = task
        try:
            future.set_result(fetch())
        except BaseException as error:  # raised where the sample is read
            future.set_exception(error)
