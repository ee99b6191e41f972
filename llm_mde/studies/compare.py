"""Compares trained runs: scores image by image, predictions side by side, one page of all."""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from llm_mde.data.index import Entry, Index
from llm_mde.data.pixels import decode, to_metres
from llm_mde.data.samples import Shards
from llm_mde.errors import DataError
from llm_mde.figures import Compared, variants_sheet
from llm_mde.inference.adapter import load
from llm_mde.inference.score import image_scores
from llm_mde.progress import Report
from llm_mde.scoring.bootstrap import intervals
from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.comparison import Comparison, Table
from llm_mde.studies.report import PICTURES, typical
from llm_mde.studies.runs import Member, trained_on
from llm_mde.training.folder import make_folder, write_whole

PAGE, SHEET = "comparison.html", "predictions.png"
ABREAST = 6  # runs of one sheet; the next ones are on another, on the same scale
RANKED_BY = ("metric", "abs_rel")


@dataclass(frozen=True)
class Scored:
    """A run's numbers and a few of its predictions."""

    member: Member
    scores: dict[str, dict[str, dict[str, float]]]
    """Image -> protocol -> metric -> number; images without a pixel that counts are not there."""
    preds: dict[str, NDArray[np.float32]]
    """Image -> metres (h, w)."""

    def mean(self, protocol: str, metric: str) -> float:
        """Over the images."""
        return float(np.mean([row[protocol][metric] for row in self.scores.values()]))


def compare(
    members: Sequence[Member],
    index: Index,
    *,
    out: Path,
    batch: int,
    ranked: bool,
    notes: Sequence[str],
    progress: Report | None = None,
) -> tuple[Comparison, list[Path]]:
    """Score all runs on the same images, and write a page and sheets of predictions.

    Args:
        members: the runs.
        index: the images.
        out: folder of the files.
        batch: images of one forward pass.
        ranked: the best run comes first, else the one named first.
        notes: what is known of these runs already.
        progress: called after each image of each run.

    Raises:
        DataError: a damaged shard; no image has a pixel that counts.
        CheckpointError: an adapter cannot be used.
    """
    make_folder(out)
    max_depth = min(float(one.settings["model.max_depth"]) for one in members)
    drawn = typical(index.entries, PICTURES)
    count, total = itertools.count(1), len(members) * len(index.entries)

    def each() -> None:
        if progress is not None:
            progress(next(count), total)

    scored = [
        _scored(member, index, drawn, max_depth=max_depth, batch=batch, each=each)
        for member in members
    ]
    if not scored[0].scores:
        raise DataError(f"{index.folder}, split {index.split}: no pixel with a valid depth")
    if ranked:
        scored.sort(key=lambda one: one.mean(*RANKED_BY))
    made = _comparison(scored, index, max_depth=max_depth, notes=notes)
    sheets = _draw(scored, index, drawn, max_depth=max_depth, out=out)
    write_whole(out / PAGE, made.page(sheets))
    return made, [out / PAGE, *sheets]


def _scored(
    member: Member,
    index: Index,
    drawn: Sequence[Entry],
    *,
    max_depth: float,
    batch: int,
    each: Callable[[], None],
) -> Scored:
    """A run on every image; its model is gone afterwards."""
    model = load(member.folder).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    keys = {entry.key for entry in drawn}
    found = Scored(member, {}, {})
    for one in image_scores(model, index, max_depth=max_depth, batch=batch):
        if one.scores is not None:
            found.scores[one.key] = one.scores
        if one.key in keys:
            found.preds[one.key] = one.pred.numpy()
        each()
    return found


def _comparison(
    scored: Sequence[Scored], index: Index, *, max_depth: float, notes: Sequence[str]
) -> Comparison:
    members, keys = [one.member for one in scored], list(scored[0].scores)
    means, differences = {}, {}
    for protocol in PROTOCOLS:
        values = np.array(
            [[[one.scores[key][protocol][m] for m in METRICS] for one in scored] for key in keys]
        )  # (images, runs, metrics)
        means[protocol] = _table(values)
        differences[protocol] = _table(values - values[:, :1])
    return Comparison(
        members=members,
        shards=str(index.folder),
        split=index.split,
        images=len(keys),
        scenes=len({key.rpartition("-")[0] for key in keys}),
        max_depth=max_depth,
        means=means,
        differences=differences,
        notes=[*notes, *_notes(members, index, counted=len(keys))],
    )


def _table(values: NDArray[np.float64]) -> Table:
    images, runs, metrics = values.shape
    found = intervals(values.reshape(images, runs * metrics))
    return {name: found[at::metrics] for at, name in enumerate(METRICS)}


def _notes(members: Sequence[Member], index: Index, *, counted: int) -> list[str]:
    notes = [
        f"{title} has trained on {number} of these images, where its scores say nothing of others"
        for title, number in trained_on(members, index).items()
        if number
    ]
    if len({one.settings["model.max_depth"] for one in members}) > 1:
        notes.append("model.max_depth differs: pixels count up to the smallest, for all runs")
    if left_out := len(index.entries) - counted:
        notes.append(f"{left_out} images have no pixel that counts and are left out")
    return notes


def _draw(
    scored: Sequence[Scored],
    index: Index,
    drawn: Sequence[Entry],
    *,
    max_depth: float,
    out: Path,
) -> list[Path]:
    """Sheets of a few runs each; the scale is that of the truths, the same on all of them."""
    shards, sheets = Shards(index.folder), []
    truths = [(entry.key, *decode(shards, entry)) for entry in drawn]
    for number, start in enumerate(range(0, len(scored), ABREAST), 1):
        some = scored[start : start + ABREAST]
        rows = [
            Compared(
                rgb,
                *to_metres(depth_mm, max_depth),
                preds={one.member.title: one.preds[key] for one in some},
                notes={one.member.title: _note(one, key) for one in some},
                title=key,
            )
            for key, rgb, depth_mm in truths
        ]
        path = out / SHEET if number == 1 else (out / SHEET).with_stem(f"predictions-{number}")
        sheets.append(variants_sheet(rows, path))
    return sheets


def _note(scored: Scored, key: str) -> str:
    row = scored.scores.get(key)
    return f"abs_rel {row['metric']['abs_rel']:.3f}" if row else ""
