"""One shard from its first byte to its last, beside what the index says of it."""

from collections.abc import Iterable, Iterator

from llm_mde.data.index import INDEX, Entry
from llm_mde.data.members import BLOCK, CHUNK_BYTES, Stream, read_header
from llm_mde.errors import DataError

SHOWN = 100  # problems that are kept; all are counted


class Problems:
    """What was found, a line each, the first `SHOWN` of them."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.found = 0
        """Number of all."""

    def add(self, line: str) -> None:
        """Count one."""
        self.found += 1
        if len(self.lines) < SHOWN:
            self.lines.append(line)

    def compare(self, where: str, *, expected: object, got: object) -> bool:
        """Whether both are the same; a problem if not."""
        if expected != got:
            self.add(f"{where}: expected {expected}, got {got}")
        return expected == got


def spans(
    stream: Stream, entries: Iterable[Entry], where: str, problems: Problems
) -> Iterator[tuple[Entry, bytes]]:
    """The bytes of each sample; what lies before, between and behind them is a problem.

    entries: of this shard, in the order of their bytes.

    Raises:
        DataError: the shard is missing or cannot be read.
    """
    entries = list(entries)
    for number, entry in enumerate(entries):
        name = f"{where}, sample {entry.key}"
        if entry.offset < stream.at:
            problems.add(f"{name}: expected at byte {stream.at}, got {entry.offset}")
            continue
        if entry.offset > stream.at:
            at = stream.at
            got = _next_block(stream, where) or "empty blocks"
            problems.add(f"{where}, byte {at}: expected sample {entry.key}, got {got}")
            while (left := entry.offset - stream.at) > 0 and stream.read(min(left, CHUNK_BYTES)):
                pass
        span = stream.read(entry.size)
        if len(span) < entry.size:
            problems.add(
                f"{name}: expected to end at byte {entry.offset + entry.size}, got the end of the "
                f"shard at {stream.at}; {len(entries) - number} samples are cut off"
            )
            return
        yield entry, span
    _check_end(stream, where, problems)


def _check_end(stream: Stream, where: str, problems: Problems) -> None:
    """Two empty blocks end a tar, and only empty ones may follow."""
    end = stream.at
    got = _next_block(stream, where)
    while not got and (chunk := stream.read(CHUNK_BYTES)):
        got = "something behind the end" if any(chunk) else ""
    if got:
        problems.add(f"{where}, byte {end}: expected the end, {INDEX} knows no more; got {got}")
    elif stream.at - end < 2 * BLOCK:
        problems.add(f"{where}: expected two empty blocks at its end, got {stream.at - end} bytes")


def _next_block(stream: Stream, where: str) -> str:
    """What the next block begins; nothing where it is empty."""
    block = stream.read(BLOCK)
    if not any(block):
        return ""
    try:
        header = read_header(block, where)
    except DataError as error:
        return str(error).removeprefix(f"{where}: ")
    return f"{header.key}.{header.member}" if header else ""
