"""Samples of an index, in columns. No torch.

An object a sample would take six times the memory, in each rank and each loader process.
"""

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import NamedTuple, overload


class Entry(NamedTuple):
    """Where one sample lies: a byte range of one shard."""

    key: str
    shard: str
    offset: int
    size: int
    sha256: str


class Column(Sequence[Entry]):
    """The samples of one shard, in the written order; entries are made as they are asked for."""

    def __init__(self, shard: str) -> None:
        self.shard = shard
        self._keys, self._ends = bytearray(), array("I")
        self._offsets, self._sizes = array("Q"), array("I")
        self._digests = bytearray()

    def append(self, entry: Entry) -> None:
        """Take in a sample of this shard, at the end."""
        self._keys += entry.key.encode("ascii")
        self._ends.append(len(self._keys))
        self._offsets.append(entry.offset)
        self._sizes.append(entry.size)
        self._digests += bytes.fromhex(entry.sha256)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[one] for one in range(len(self))[at]]
        at = range(len(self))[at]
        key = self._keys[self._ends[at - 1] if at else 0 : self._ends[at]].decode("ascii")
        digest = self._digests[32 * at : 32 * (at + 1)].hex()
        return Entry(key, self.shard, self._offsets[at], self._sizes[at], digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Column) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment] # it grows


class Chain(Sequence[Entry]):
    """The samples of shards, one shard after the other."""

    def __init__(self, columns: Sequence[Sequence[Entry]]) -> None:
        self._columns, self._ends = columns, [*accumulate(map(len, columns))]

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, at: int) -> Entry: ...
    @overload
    def __getitem__(self, at: slice) -> list[Entry]: ...
    def __getitem__(self, at: int | slice) -> Entry | list[Entry]:
        if isinstance(at, slice):
            return [self[one] for one in range(len(self))[at]]
        at = range(len(self))[at]
        shard = bisect_right(self._ends, at)
        return self._columns[shard][at - (self._ends[shard - 1] if shard else 0)]

    def __iter__(self) -> Iterator[Entry]:
        for column in self._columns:
            yield from column


def columns(entries: Iterable[Entry]) -> tuple[Column, ...]:
    """Samples shard by shard, sorted by the names of shards; in one shard in the given order."""
    by_shard: dict[str, Column] = {}
    for entry in entries:
        if entry.shard not in by_shard:
            by_shard[entry.shard] = Column(entry.shard)
        by_shard[entry.shard].append(entry)
    return tuple(column for _, column in sorted(by_shard.items()))
