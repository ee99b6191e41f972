"""What a pack holds and what became of its input, for machines and for people.

`report.json` and `report.html` tell of the run as well (time, rates), so that they alone differ
when the same input is packed twice. The page needs nothing beside itself: no script, no link out.
"""

import base64
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import FILES, INDEX, read_entry
from llm_mde.data.lists import split_of, spread_entries
from llm_mde.data.members import CHUNK_BYTES, Stream
from llm_mde.data.page import PAGE, table
from llm_mde.data.samples import Shards
from llm_mde.data.shard import DAMAGED
from llm_mde.progress import duration

PICTURES = 24  # samples on the contact sheet, about 20 kB each
PICTURE_PX = 208  # longest side of a picture; two of them fill a phone
MAX_ROWS = 1000  # scenes and problems on the page; report.json and files.jsonl hold all
OPEN_ROWS = 20  # a longer table is folded
MEANING = {
    "excluded": "left out on purpose",
    "missing": "listed, but not there",
    "unpaired": "part of no frame",
    "empty": "no content, or no reading in it",
    "truncated": "shorter than its format says",
    "undecodable": "damaged, or of another format",
}
Row = dict[str, Any]  # of JSON
Picture = tuple[str, record.Sample]  # with its split


@dataclass(frozen=True)
class RunStats:
    """What one run of packing did."""

    seconds: float
    frames: int
    """Frames loaded in this run, usable or not."""
    input_bytes: int
    output_bytes: int
    jobs: int
    resumed_shards: int
    """Shards found finished, from a run that was interrupted."""
    peak_memory_bytes: int | None
    """Of the largest process."""

    def rates(self) -> dict[str, float]:
        """Frames and megabytes (10^6 bytes) a second, 0 where nothing was timed."""
        seconds = self.seconds or float("inf")
        return {
            "frames_per_s": round(self.frames / seconds, 3),
            "input_mb_per_s": round(self.input_bytes / 1e6 / seconds, 3),
            "output_mb_per_s": round(self.output_bytes / 1e6 / seconds, 3),
        }


def write_report(folder: ShardFolder, *, manifest: Row, run: RunStats) -> None:
    """Write `report.json` and `report.html` beside the shards.

    manifest: what `pack.json` holds. The index, `files.jsonl` and the shards are there already.

    Raises:
        DataError: one of them cannot be read, or the folder not be written.
    """
    listed = list(problems(folder, MAX_ROWS))
    content = {
        **{name: part for name, part in manifest.items() if name != "shards"},
        "problems": {"total": _bad(manifest["verdicts"]), "listed": listed, "all": FILES},
        "run": asdict(run) | run.rates(),
    }
    folder.write("report.json", (json.dumps(content, indent=1) + "\n").encode())
    shards, where = Shards(folder), folder.at(INDEX)
    chosen = spread_entries(
        lambda: (read_entry(line, where) for line in _lines(folder, INDEX)), PICTURES
    )
    pictures = [(split_of(entry), record.decode(shards.read(entry))) for entry in chosen]
    name = str(folder).rsplit("/", 1)[-1]
    page = html_page(name, manifest, run=run, listed=listed, pictures=pictures)
    folder.write("report.html", page.encode())


def problems(folder: ShardFolder, number: int) -> Iterator[Row]:
    """The first `number` rows of files.jsonl that are neither ok nor excluded, damaged ones first.

    Unpaired files come last: a recording that dropped frames has thousands.

    Raises:
        DataError: the file is missing.
    """
    kept: dict[bool, list[Row]] = {False: [], True: []}
    for line in _lines(folder, FILES):
        row = json.loads(line)
        rows = kept[row["verdict"] == "unpaired"]
        if row["verdict"] in (*DAMAGED, "unpaired") and len(rows) < number:
            rows.append(row)
    yield from (kept[False] + kept[True])[:number]


def _lines(folder: ShardFolder, name: str) -> Iterator[bytes]:
    """The lines of a file, which may be longer than memory."""
    stream, rest = Stream(folder, name), b""
    while chunk := stream.read(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        yield from lines
    if rest:
        yield rest


def html_page(
    title: str, manifest: Row, *, run: RunStats, listed: Sequence[Row], pictures: Sequence[Picture]
) -> str:
    """The report as one HTML page. Every name and reason in it is escaped."""
    verdicts = manifest["verdicts"]
    lists = [(name, row["samples"], row["note"]) for name, row in manifest["lists"].items()]
    sections = {
        "Splits": _splits(manifest),
        "Input files": _files(manifest, listed),
        "Samples": contact_sheet(pictures),
        "Key lists": table(("list", "samples", "what it holds"), lists),
        "This run": _run(run),
        "Settings": table((), [(k, str(v)) for k, v in manifest["settings"].items()]),
    }
    tiles = {
        "samples": manifest["samples"],
        "scenes": len(manifest["scenes"]),
        "shards": len(manifest["shards"]),
        "MB written": round(sum(row["bytes"] for row in manifest["shards"].values()) / 1e6),
        "input files": sum(verdicts.values()),
        "damaged files": _bad(verdicts) - verdicts.get("unpaired", 0),
    }
    return PAGE.substitute(
        title=escape(title),
        tiles="".join(f"<div><b>{n:,}</b>{name}</div>" for name, n in tiles.items()),
        sections="".join(f"<section><h2>{n}</h2>{s}</section>" for n, s in sections.items() if s),
    )


def contact_sheet(pictures: Sequence[Picture]) -> str:
    """Small pictures of image and depth on one scale, with its legend; "" without any."""
    if not pictures:
        return ""
    from llm_mde.figures import colour_depth, depth_range

    small = [_small(sample) for _, sample in pictures]
    low, high = depth_range([depth[depth > 0] for _, depth in small])
    figures = []
    for (split, sample), (rgb, depth) in zip(pictures, small, strict=True):
        colours = colour_depth(depth, vmin=low, vmax=high, valid=depth > 0)
        images = "".join(f'<img src="{_data_uri(part)}" alt="">' for part in (rgb, colours))
        caption = f"<i>{escape(split)}</i> {escape(sample.key)}"
        figures.append(f"<figure>{images}<figcaption>{caption}</figcaption></figure>")
    bar = colour_depth(np.linspace(0, 1, 12)[None], vmin=0, vmax=1)[0]
    stops = ",".join("#{:02x}{:02x}{:02x}".format(*colour) for colour in bar)
    ticks = "".join(f"<span>{metres:.1f} m</span>" for metres in np.linspace(low, high, 5))
    legend = (
        f'<div class="bar" style="background:linear-gradient(to right,{stops})"></div>'
        f'<div class="ticks">{ticks}</div><p><span class="none"></span>no reading</p>'
    )
    return f'<div class="legend">{legend}</div><div class="sheet">{"".join(figures)}</div>'


def _small(sample: record.Sample) -> tuple[np.ndarray, np.ndarray]:
    """RGB and metres, at most `PICTURE_PX` on the longest side; depth is not interpolated."""
    rgb = Image.fromarray(sample.rgb)
    rgb.thumbnail((PICTURE_PX, PICTURE_PX))
    depth_mm = Image.fromarray(sample.depth_mm).resize(rgb.size, Image.Resampling.NEAREST)
    return np.asarray(rgb), np.asarray(depth_mm) / 1000


def _data_uri(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=80, subsampling="4:4:4")
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _splits(manifest: Row) -> str:
    rows = []
    for split, row in manifest["splits"].items():
        scenes = sum(scene["split"] == split for scene in manifest["scenes"])
        sizes = (s["bytes"] for n, s in manifest["shards"].items() if n.startswith(f"{split}-"))
        rows.append((split, row["samples"], scenes, row["shards"], round(sum(sizes) / 1e6)))
    return table(("split", "samples", "scenes", "shards", "MB"), rows)


def _bad(verdicts: dict[str, int]) -> int:
    """Files that were to be used and are not."""
    return sum(n for name, n in verdicts.items() if name in (*DAMAGED, "unpaired"))


def _files(manifest: Row, listed: Sequence[Row]) -> str:
    """Verdicts in total and of the scenes, and the problems one by one."""
    verdicts: dict[str, int] = manifest["verdicts"]
    bad, unpaired = _bad(verdicts), verdicts.get("unpaired", 0)
    counts = f"{bad - unpaired:,} damaged, {unpaired:,} unpaired of {sum(verdicts.values()):,}"
    mood = ' class="bad"' if bad > unpaired else ""
    parts = [f"<p{mood}>{counts}; {FILES} has the verdict of each.</p>"]
    rows = [[name, n, MEANING.get(name, "")] for name, n in verdicts.items()]
    parts.append(table(("verdict", "files", "meaning"), rows))
    if bad:
        lines = [(f"{p['scene']}/{p['file']}", p["verdict"], p.get("reason", "")) for p in listed]
        name = f"The first {len(lines):,} of {bad:,} problems" if len(lines) < bad else "Problems"
        parts.append(_details(name, table(("file", "verdict", "reason"), lines)))
    return "".join(parts) + _scenes(manifest["scenes"], tuple(verdicts))


def _scenes(scenes: list[Row], verdicts: Sequence[str]) -> str:
    """Verdicts of each scene with problems, the others in one row; then of every scene."""

    def row(name: str, split: str, some: Sequence[Row]) -> list[object]:
        found = [sum(scene["verdicts"].get(name, 0) for scene in some) for name in verdicts]
        return [name, split, sum(scene["samples"] for scene in some), *found]

    def each(some: list[Row], others: list[Row], name: str) -> str:
        rows = [row(scene["name"], scene["split"], [scene]) for scene in some[:MAX_ROWS]]
        others = some[MAX_ROWS:] + others
        rows += [row(f"{len(others):,} {name}", "", others)] if others else []
        return table(("scene", "split", "samples", *verdicts), rows)

    hit = [scene for scene in scenes if _bad(scene["verdicts"])]
    fine = [scene for scene in scenes if not _bad(scene["verdicts"])]
    every = _details(f"All {len(scenes):,} scenes", each(scenes, [], "more in report.json"))
    return (_details("Scenes with problems", each(hit, fine, "others")) if hit else "") + every


def _details(name: str, content: str) -> str:
    """A part to open; a short one is open."""
    state = " open" * (content.count("<tr>") <= OPEN_ROWS)
    return f"<details{state}><summary>{escape(name)}</summary>{content}</details>"


def _run(run: RunStats) -> str:
    rates, memory = run.rates(), run.peak_memory_bytes
    rows = {
        "time": duration(run.seconds),
        "frames": f"{run.frames:,} ({rates['frames_per_s']:,.1f} frames/s)",
        "read": f"{_bytes(run.input_bytes)} ({rates['input_mb_per_s']:,.1f} MB/s)",
        "written": f"{_bytes(run.output_bytes)} ({rates['output_mb_per_s']:,.1f} MB/s)",
        "jobs": str(run.jobs),
        "shards finished before": str(run.resumed_shards),
        "peak memory of a process": _bytes(memory) if memory else "unknown",
    }
    return table((), list(rows.items()))


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"
