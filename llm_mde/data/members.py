"""Members of a tar, read with suspicion: plain files of known names and sizes, nothing else.

Headers are parsed by the standard tarfile, one at a time and before their contents are read.
"""

import hashlib
import re
import tarfile
from collections.abc import Iterator
from typing import NamedTuple

from llm_mde.data.folder import ShardFolder
from llm_mde.data.record import MAX_MEMBER_BYTES, MEMBERS
from llm_mde.errors import DataError

BLOCK = tarfile.BLOCKSIZE
MAX_SAMPLE_BYTES = len(MEMBERS) * (MAX_MEMBER_BYTES + 2 * BLOCK)
CHUNK_BYTES = 4 * 2**20  # of one read: a request to an object store is slow, not its bytes
KEY = re.compile(r"[A-Za-z0-9_-]{1,90}")  # with `.filled.pco` it fits the 100 characters of a tar
KINDS = {
    tarfile.SYMTYPE: "a link",
    tarfile.LNKTYPE: "a link",
    tarfile.DIRTYPE: "a directory",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a device",
}
TIMES = (b"mtime", b"atime", b"ctime")
MAX_TIMES_BYTES = 4096


class Header(NamedTuple):
    """What the header of a tar member says, as far as a sample needs it."""

    key: str
    member: str
    size: int


def read_header(block: bytes, where: str) -> Header | None:
    """A member's header; None for the empty block that ends an archive.

    Only a plain file called `<key>.<member>`, of a known member and at most MAX_MEMBER_BYTES, is
    taken: no links, devices or folders, no names that lead elsewhere, and no extension headers
    (pax, GNU long names), which could change the name or size of what follows.

    Raises:
        DataError: anything else, before a byte of its contents is read.
    """
    if len(block) == BLOCK and not any(block):
        return None
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError as error:
        raise DataError(f"{where}: no header of a tar member ({error}); pack again") from error
    if info.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
        kind = KINDS.get(info.type, f"an extension header of type {info.type!r}")
        raise DataError(f"{where}: {info.name!a} is {kind}, expected a plain file; pack again")
    key, _, member = info.name.partition(".")
    if KEY.fullmatch(key) is None or member not in MEMBERS:
        known = ", ".join(MEMBERS)
        raise DataError(f"{where}: {info.name!a}, expected <key>.<one of {known}>; pack again")
    if not 0 <= info.size <= MAX_MEMBER_BYTES:
        raise DataError(
            f"{where}: {info.name} of {info.size} bytes, expected at most {MAX_MEMBER_BYTES}; "
            "pack again"
        )
    return Header(key, member, info.size)


def sample_members(span: bytes, *, key: str, where: str) -> dict[str, bytes]:
    """The files of one sample's piece of a tar, by name without the key: {"rgb.jpg": ...}.

    Raises:
        DataError: anything in it but the members of this key, each once.
    """
    found: dict[str, bytes] = {}
    at = 0
    while at < len(span):
        header = read_header(span[at : at + BLOCK], f"{where}, byte {at} of it")
        if header is None:
            raise DataError(f"{where}: {len(span) - at} bytes behind its members; pack again")
        if header.key != key:
            raise DataError(f"{where}: holds a member of {header.key}, expected {key}; pack again")
        if header.member in found:
            raise DataError(f"{where}: {header.member} is there twice; pack again")
        start = at + BLOCK
        at = start + padded(header.size)
        if at > len(span):
            raise DataError(
                f"{where}: {header.member} ends at byte {at}, expected at most {len(span)}; "
                "pack again"
            )
        found[header.member] = span[start : start + header.size]
    return found


def padded(size: int) -> int:
    """Bytes that a member's contents fill in a tar: whole blocks."""
    return size + -size % BLOCK


class Stream:
    """A file of a shard folder, read once from its start on; its checksum grows with it."""

    def __init__(self, folder: ShardFolder, name: str) -> None:
        self._folder, self._name = folder, name
        self._chunk, self._from = b"", 0  # what was read ahead, and how much of that was handed out
        self._ended = False
        self.at = 0
        """Bytes handed out so far."""
        self.digest = hashlib.sha256()
        """Of these."""

    def read(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end.

        Raises:
            DataError: the file is missing or cannot be read.
        """
        parts = []
        while size > 0:
            if self._from == len(self._chunk):
                if self._ended:
                    break
                self._next_chunk()
            part = self._chunk[self._from : self._from + size]
            self.digest.update(part)
            parts.append(part)
            self._from, self.at, size = (
                self._from + len(part),
                self.at + len(part),
                size - len(part),
            )
        return b"".join(parts)

    def _next_chunk(self) -> None:
        # One known byte comes along: object stores refuse a range that begins at the end.
        known = min(self.at, 1)
        asked = CHUNK_BYTES + known
        self._chunk = self._folder.read_range(self._name, self.at - known, asked)
        self._from, self._ended = known, len(self._chunk) < asked


class Place(NamedTuple):
    """A member of a tar and where its contents lie."""

    header: Header
    offset: int


def walk(stream: Stream, where: str) -> Iterator[Place]:
    """Every member of a tar that has no index, by the same rules.

    Extension headers are skipped if they hold nothing but times: webdataset's and Python's writers
    make those.

    Raises:
        DataError: a member that is not allowed, or a tar that ends early.
    """
    while block := stream.read(BLOCK):
        at = f"{where}, byte {stream.at - len(block)}"
        if len(block) == BLOCK and block[156:157] == tarfile.XHDTYPE:
            _skip_times(stream, block, at)
            continue
        header = read_header(block, at)
        if header is None:
            return
        place = Place(header, stream.at)
        _skip(stream, padded(header.size), f"{at}, {header.key}.{header.member}")
        yield place


def _skip(stream: Stream, size: int, where: str) -> None:
    while size > 0:
        got = len(stream.read(min(size, CHUNK_BYTES)))
        if not got:
            raise DataError(f"{where}: expected {size} more bytes, the file ends; copy it again")
        size -= got


def _skip_times(stream: Stream, block: bytes, where: str) -> None:
    try:
        size = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape").size
    except tarfile.TarError as error:
        raise DataError(f"{where}: no header of a tar member ({error}); pack again") from error
    content = stream.read(padded(size))[:size] if 0 <= size <= MAX_TIMES_BYTES else b"?"
    for line in content.splitlines():
        name = line.partition(b" ")[2].partition(b"=")[0]
        if name not in TIMES:
            raise DataError(
                f"{where}: an extension header with {ascii(name.decode('latin-1')):.40}, expected "
                "times alone; pack again"
            )
