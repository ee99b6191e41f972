"""From the notes of finished shards to a whole pack: index, key lists, verdicts, manifest.

Everything is streamed shard by shard, so memory does not grow with the number of frames.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, Any, get_args

from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import FILES, FORMAT_VERSION, INDEX
from llm_mde.data.layout import Layout, PlacedScene
from llm_mde.data.lists import Row, named_lists
from llm_mde.data.shard import read_note, selected
from llm_mde.nyu.frame import Finding, Verdict
from llm_mde.nyu.scenes import SPLITS


def merge(out: ShardFolder, layout: Layout) -> dict[str, Any]:
    """Write the index, key lists and verdicts of a pack; returns what `pack.json` is to hold."""
    index_sha256, shards, samples = _write_index(out, layout)
    lists = _write_lists(out, layout)
    verdicts = _write_verdicts(out, layout)
    total: Counter[str] = Counter()
    for counts in verdicts:
        total += counts
    splits = {
        split: {
            "samples": sum(
                n for n, p in zip(samples, layout.scenes, strict=True) if p.split == split
            ),
            "shards": sum(name.startswith(f"{split}-") for name in shards),
        }
        for split in SPLITS
    }
    return {
        "format_version": FORMAT_VERSION,
        "samples": sum(samples),
        "splits": splits,
        "lists": lists,
        "scenes": [
            {
                "name": placed.scene.name,
                "source": placed.scene.source,
                "split": placed.split,
                "samples": count,
                "verdicts": _ordered(found),
            }
            for placed, count, found in zip(layout.scenes, samples, verdicts, strict=True)
        ],
        "verdicts": _ordered(total),
        "settings": layout.settings,
        "input_sha256": layout.input_sha256,
        "shards": shards,
        "index_sha256": index_sha256,
    }


def _ordered(verdicts: Counter[str]) -> dict[str, int]:
    return {name: verdicts[name] for name in get_args(Verdict) if verdicts[name]}


def _write_index(out: ShardFolder, layout: Layout) -> tuple[str, dict[str, Any], list[int]]:
    """index.jsonl and the split lists; hash of the index, the shards, samples of each scene."""
    digest, shards = hashlib.sha256(), {}
    samples = [0] * len(layout.scenes)
    with ExitStack() as stack:
        index = _text(stack, out, INDEX)
        keys = {split: _text(stack, out, f"splits/{split}.txt") for split in SPLITS}
        for plan in layout.shards:
            note = read_note(out, plan)
            shards[plan.name] = {
                "samples": len(note["entries"]),
                "bytes": note["bytes"],
                "sha256": note["sha256"],
            }
            for entry in note["entries"]:
                scene = entry.pop("scene")
                samples[scene] += 1
                line = json.dumps(entry) + "\n"
                digest.update(line.encode())
                index.write(line)
                keys[layout.scenes[scene].split].write(f"{entry['key']}\n")
    return digest.hexdigest(), shards, samples


def _text(stack: ExitStack, out: ShardFolder, name: str) -> IO[str]:
    path = stack.enter_context(out.staged(name))
    return stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))


def _write_lists(out: ShardFolder, layout: Layout) -> dict[str, Any]:
    """Key lists of the paper's experiments: samples and a note of each."""

    def rows() -> Iterator[Row]:
        for plan in layout.shards:
            for entry in read_note(out, plan)["entries"]:
                placed = layout.scenes[entry["scene"]]
                yield Row(entry["key"], placed.scene.name, placed.split)

    lists = {}
    for made in named_lists(rows):
        if made.keys:
            text = "".join(f"{key}\n" for key in made.keys)
            out.write(f"splits/{made.name}.txt", text.encode())
        lists[made.name] = {"samples": len(made.keys), "note": made.note}
    return lists


def _write_verdicts(out: ShardFolder, layout: Layout) -> list[Counter[str]]:
    """files.jsonl, one line an input file; the verdicts of each scene, counted."""
    counts: list[Counter[str]] = []
    with ExitStack() as stack:
        lines = _text(stack, out, FILES)
        for placed, findings in _findings(out, layout):
            found = _verdicts(placed, findings, stride=layout.settings["stride"])
            for name, size in placed.scene.files().items():
                row = {"scene": placed.scene.name, "file": name, "bytes": size}
                row |= {"verdict": found[name].verdict}
                if found[name].reason:
                    row["reason"] = found[name].reason
                lines.write(json.dumps(row) + "\n")
            counts.append(Counter(finding.verdict for finding in found.values()))
    return counts


def _findings(out: ShardFolder, layout: Layout) -> Iterator[tuple[PlacedScene, dict[str, Finding]]]:
    """Each scene with what its shards found; a file that served in any frame is ok."""
    found: dict[str, Finding] = {}
    current = 0
    for plan in layout.shards:
        for number, *rest in read_note(out, plan)["findings"]:
            while current < number:
                yield layout.scenes[current], found
                current, found = current + 1, {}
            finding = Finding(*rest)
            if finding.verdict == "ok" or finding.file not in found:
                found[finding.file] = finding
    while current < len(layout.scenes):
        yield layout.scenes[current], found
        current, found = current + 1, {}


def _verdicts(
    placed: PlacedScene, findings: dict[str, Finding], *, stride: int
) -> dict[str, Finding]:
    """A verdict for every file: those no frame asked for are excluded or unpaired."""
    scene = placed.scene
    kept = {pair.index for pair in selected(scene, stride)} if stride > 1 else set()
    left_out = {
        file
        for pair in (scene.pairs() if stride > 1 else ())
        if pair.index not in kept
        for file in (pair.depth, pair.rgb, pair.accel)
    }
    verdicts = dict(findings)
    for name in scene.files():
        if name in verdicts:
            continue
        if name in left_out:
            verdicts[name] = Finding(name, "excluded", f"not selected by --stride {stride}")
        else:
            verdicts[name] = Finding(name, "unpaired", "no frame uses it")
    return {name: verdicts[name] for name in scene.files() if name in verdicts}
