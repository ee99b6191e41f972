"""The report of an experiment: the paper's table beside ours, as files and lines; its figure."""

import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from llm_mde.config import ModelConfig
from llm_mde.data.index import Entry, Index
from llm_mde.data.lists import evenly_spaced
from llm_mde.data.pixels import decode, to_metres
from llm_mde.data.samples import Shards
from llm_mde.errors import CheckpointError
from llm_mde.figures import Compared, variants_sheet
from llm_mde.inference.adapter import find, load
from llm_mde.inference.card import in_words, settings_of
from llm_mde.inference.predict import depth_of
from llm_mde.nyu.scenes import scene_type
from llm_mde.scoring.evaluate import CONSTANT_NOTE
from llm_mde.scoring.protocols import PROTOCOLS, score_image
from llm_mde.studies import tables
from llm_mde.studies.grid import columns, escape_markdown, latex, markdown
from llm_mde.studies.paper import PAPER_UNITS, Experiment, Outcome
from llm_mde.studies.summary import HOLDS, OPEN, OPPOSITE, Claim, claims, succeeded
from llm_mde.training.folder import write_whole

logger = logging.getLogger(__name__)

T = TypeVar("T")

TERMINAL = ("rmse", "abs_rel", "sq_rel", "rmse_log", "delta1")
WIDTH = 119  # characters of a terminal line
PICTURES = 4  # of a figure with one test
FOLDER = "report"  # of an experiment's folder
FIGURE = "figure.png"  # where `write` looks for what `draw` made: beside the tables
SCORES_NOTE = (
    "Means over the images of a test. ± is the sample standard deviation over seeds (n - 1 in the "
    "denominator). Bold: the best of a test, baselines included. Baselines never look at an image; "
    "they are fitted on the depths that the rows they name, or all rows, were trained on. Note "
    f"that {CONSTANT_NOTE}."
)
COST_NOTE = (
    "Memory: the peak of the training process, allocated on the GPU or resident on a CPU. Time: in "
    "training steps, without evaluations, and with other trials at work beside where several fit."
)
ONE_SEED = "one seed cannot separate anything: run more (--seeds 3)"
PREAMBLE = r"% \usepackage{booktabs,graphicx} in the preamble, then \input{table}"


def write(
    experiment: Experiment,
    outcomes: Sequence[Outcome],
    *,
    folder: Path,
    about: Mapping[str, str],
) -> list[Path]:
    """Write `table.md`, `table.csv` and `table.tex`, each whole or not at all.

    about: what ran (base, settings, shards, seeds, device, version ...), told in the Markdown.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        "table.md": "\n".join(_markdown(experiment, outcomes, about)) + "\n",
        "table.csv": tables.long_form(experiment, outcomes),
        "table.tex": "\n".join(_latex(experiment, outcomes)) + "\n",
    }
    for name, text in texts.items():
        write_whole(folder / name, text)
    return [folder / name for name in texts]


def _markdown(
    experiment: Experiment, outcomes: Sequence[Outcome], about: Mapping[str, str]
) -> Iterator[str]:
    yield f"# {escape_markdown(experiment.title)}"
    yield f"\n{_origin(experiment)}, https://arxiv.org/abs/2409.01133, and our own runs.\n"
    told = {**about, "images": _images(experiment, outcomes)}
    told["key lists"] = ", ".join(experiment.tests.values())
    for name, text in told.items():
        yield f"- {escape_markdown(name)}: {_code(text)}"
    yield f"\n## Scores\n\n{SCORES_NOTE}"
    for protocol in PROTOCOLS:
        yield f"\n### {in_words(protocol)}\n"
        yield from markdown(tables.score_grid(experiment, outcomes, protocol))
    if failed := tables.failures(experiment, outcomes):
        yield "\n## Failed\n"
        yield from (f"- {escape_markdown(failure)}" for failure in failed)
    yield f"\n## Cost of training\n\n{COST_NOTE}\n"
    yield from markdown(tables.cost_grid(experiment, outcomes))
    if experiment.paper:
        yield f"\n## The paper's own table\n\n**Not comparable: {PAPER_UNITS}.**\n"
        yield from markdown(tables.paper_grid(experiment))
    if experiment.better:
        yield "\n## Does the paper's order hold here?\n"
        yield from markdown(tables.claim_grid(experiment, outcomes))
        yield f"\n{_reading(experiment, outcomes)}"
    yield f"\n## Pictures\n\n![Image, truth and every row on one scale]({FIGURE})"


def _code(text: str) -> str:
    """Text as it is, in Markdown."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def _origin(experiment: Experiment) -> str:
    return f"Table {experiment.table} and Fig. {experiment.figure} of Xia et al. 2024"


def _images(experiment: Experiment, outcomes: Sequence[Outcome]) -> str:
    counts = {one.test: one.images for one in outcomes if succeeded(one)}
    if len(experiment.tests) == 1:
        return f"{next(iter(counts.values()), 0)}"
    return ", ".join(
        f"{experiment.title_of(test)} {counts.get(test, 0)}" for test in experiment.tests
    )


def _reading(experiment: Experiment, outcomes: Sequence[Outcome]) -> str:
    """How to read the verdicts."""
    pairs = [claim.difference.n for claim in claims(experiment, outcomes) if claim.difference]
    n = max(pairs, default=0)
    if n < 2:
        return (
            f"Differences are the first row's abs_rel under metric minus the second's; {ONE_SEED}."
        )
    return (
        "Differences are the first row's abs_rel under metric minus the second's under the same "
        f"seed; below 0 as in the paper. `{HOLDS}`: below 0 under every seed; `{OPPOSITE}`: above "
        f"0 under every seed; `{OPEN}`: neither, or one seed alone. Where two rows do not differ "
        f"at all, {n} seeds still say `{HOLDS}` by luck, in 1 of {2**n} experiments."
    )


def _latex(experiment: Experiment, outcomes: Sequence[Outcome]) -> Iterator[str]:
    yield PREAMBLE
    name = re.sub(r"[^A-Za-z0-9-]", "-", experiment.name)
    for protocol in PROTOCOLS:
        caption = (
            f"{experiment.title}. {in_words(protocol)}. Mean ± sample standard deviation over "
        )
        caption += "seeds. Bold: the best of a test, baselines included."
        for failure in tables.failures(experiment, outcomes) if protocol == "metric" else ():
            caption += f" Failed: {failure}."
        body = tables.score_grid(experiment, outcomes, protocol, titles=tables.SHOWN)
        yield from latex(body, caption=caption, label=f"tab:{name}-{protocol}")
    caption = f"{experiment.title}: cost of training."
    yield from latex(
        tables.cost_grid(experiment, outcomes), caption=caption, label=f"tab:{name}-cost"
    )
    if experiment.paper:
        caption = f"{_origin(experiment)}. Not comparable: {PAPER_UNITS}."
        body = tables.paper_grid(experiment, tables.SHOWN)
        yield from latex(body, caption=caption, label=f"tab:{name}-printed")
    if experiment.better:
        caption = f"{experiment.title}: does the order of the paper hold here? "
        caption += _reading(experiment, outcomes).replace("`", "")
        body = tables.claim_grid(experiment, outcomes)
        yield from latex(body, caption=caption, label=f"tab:{name}-order")


def lines(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[str]:
    """What the terminal shows: scores under `metric`, cost, verdicts, failures; under 120 wide."""
    seeds = len({one.seed for one in outcomes})
    images = _images(experiment, outcomes)
    scores = tables.score_grid(experiment, outcomes, "metric", metrics=TERMINAL)
    return [
        *_wrapped(f"{experiment.name}: {_origin(experiment)}"),
        *_wrapped(f"{in_words('metric')}; images: {images}; seeds: {seeds}"),
        *columns(scores, width=WIDTH),
        "* the best of a test, baselines included",
        "",
        *columns(tables.cost_grid(experiment, outcomes), width=WIDTH),
        "",
        *(line for claim in claims(experiment, outcomes) for line in _wrapped(_verdict(claim))),
        *([ONE_SEED] if experiment.better and seeds < 2 else []),
        *(
            line
            for failure in tables.failures(experiment, outcomes)
            for line in _wrapped(f"failed: {failure}")
        ),
    ]


def _verdict(claim: Claim) -> str:
    seeds = claim.difference.n if claim.difference else 0
    return (
        f"the paper's '{claim.better} better than {claim.worse}' here: {claim.verdict} "
        f"(abs_rel {tables.difference(claim)}, seeds: {seeds})"
    )


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="  ")


def draw(
    experiment: Experiment, adapters: Mapping[str, Path], tests: Mapping[str, Index], path: Path
) -> Path:
    """The paper's figure: `draw_variants` of trials and tests under the experiment's names."""
    title = experiment.title_of
    variants = {title(name): folder for name, folder in adapters.items()}
    return draw_variants(variants, {title(test): index for test, index in tests.items()}, path)


def draw_variants(adapters: Mapping[str, Path], tests: Mapping[str, Index], path: Path) -> Path:
    """Image, truth and every variant on one scale in metres, as a PNG.

    Images are of different scene types where a single test has them, or one of each test.
    A variant whose adapter is not there is left out, and the figure says so.

    Args:
        adapters: variant -> adapter or run folder.
        tests: test -> its samples.
        path: the PNG.

    Raises:
        DataError: a damaged shard.
        CheckpointError: an adapter is there and cannot be used.
    """
    found, missing = _present(adapters)
    number = PICTURES if len(tests) == 1 else 1
    chosen = [(test, at) for test in tests for at in typical(tests[test].entries, number)]
    frames = [decode(Shards(tests[test].folder), at) for test, at in chosen]
    preds = {
        title: _predicted(folder, [rgb for rgb, _ in frames]) for title, folder in found.items()
    }
    depths = [settings_of(folder).max_depth for folder in found.values()]
    max_depth = max(depths, default=ModelConfig().max_depth)
    rows = []
    for at, ((test, entry), (rgb, depth_mm)) in enumerate(zip(chosen, frames, strict=True)):
        depth, valid = to_metres(depth_mm, max_depth)
        row = {title: made[at] for title, made in preds.items()}
        notes = {title: _abs_rel(made, depth, valid, max_depth) for title, made in row.items()}
        title = entry.key if len(tests) == 1 else test
        rows.append(Compared(rgb, depth, valid, row, notes, title))
    return variants_sheet(rows, path, note=f"not drawn: {', '.join(missing)}" if missing else "")


def _present(adapters: Mapping[str, Path]) -> tuple[dict[str, Path], list[str]]:
    """The adapter folders that exist, and the names of the others."""
    found, missing = {}, []
    for name, source in adapters.items():
        try:
            found[name] = find(source)
        except CheckpointError as error:
            logger.warning("%s is not drawn: %s", name, error)
            missing.append(name)
    return found, missing


def typical(entries: Sequence[Entry], number: int) -> list[Entry]:
    """At most `number` samples: spread over the scene types, then over the samples of each."""
    by_type: dict[str, list[Entry]] = {}
    for entry in entries:
        by_type.setdefault(scene_type(entry.key.rpartition("-")[0]), []).append(entry)
    types = _spaced(sorted(by_type), number)
    each, more = divmod(number, len(types))
    counts = [each + (at < more) for at in range(len(types))]
    return [
        entry
        for name, count in zip(types, counts, strict=True)
        for entry in _spaced(by_type[name], count)
    ]


def _spaced(items: Sequence[T], number: int) -> list[T]:
    """At most `number` items, evenly spaced and away from the ends."""
    return [items[at] for at in evenly_spaced(len(items), number)]


def _predicted(folder: Path, images: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
    """Metres (H, W) of each image; the model is gone afterwards."""
    model = load(folder).to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    return [depth_of(model, image) for image in images]


def _abs_rel(
    pred: NDArray[np.float32],
    depth: NDArray[np.float32],
    valid: NDArray[np.bool_],
    max_depth: float,
) -> str:
    scores = score_image(
        torch.from_numpy(pred),
        torch.from_numpy(depth),
        torch.from_numpy(valid),
        max_depth=max_depth,
    )
    return f"abs_rel {scores['metric']['abs_rel']:.3f}" if scores else ""
