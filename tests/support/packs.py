"""A small pack of pairs, and what lies in a pack's folder."""

import json
from pathlib import Path

from llm_mde.data.layout import PackSettings

PAIRS = PackSettings(shard_size=2)


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the report, which tells the speed of its run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.stem != "report"
    }


def index_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "index.jsonl").read_text().splitlines()]


def files_of(folder: Path) -> dict[str, dict]:
    rows = map(json.loads, (folder / "files.jsonl").read_text().splitlines())
    return {f"{row['scene']}/{row['file']}": row for row in rows}
