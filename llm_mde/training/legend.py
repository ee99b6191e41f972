"""What each recorded number means: its unit, which way is better, under which protocol."""

import inspect
import re
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

from llm_mde.scoring.evaluate import BASELINES, COUNTS, UNDEFINED, baseline_group
from llm_mde.scoring.metrics import IN_METRES, METRICS, higher_is_better
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.training.meter import NUMBERS
from llm_mde.training.system import READINGS


class Meaning(NamedTuple):
    """A row of the legend."""

    unit: str
    better: str
    said: str


LOSS = Meaning("", "lower", "the loss that trains (train.loss)")
OTHERS = {
    "epoch": Meaning("passes", "", "over the training split, at the same steps as the rest"),
    "model/trainable": Meaning("weights", "", "that train"),
    "model/parameters": Meaning("weights", "", "of the whole model"),
    "train/skipped_steps": Meaning("steps", "lower", "left out: a gradient was not finite"),
    "train/lost_samples": Meaning("samples", "lower", "damaged, left out so far"),
    "SPLIT/loss": LOSS,
    "SPLIT/images": Meaning("images", "", "scored"),
    "SPLIT/left_out": Meaning("images", "", "without a reading"),
    "SPLIT/cropped": Meaning("images", "", "scored inside the Eigen crop"),
}
BASELINE = {
    "constant": "blind baseline: the median of the training depths",
    "mean_map": "blind baseline: the mean map of the training depths",
}
PAGE = """\
# What is recorded

By optimizer step; `epoch` is recorded at the same steps, for charts over epochs (x-axis: metric
`epoch`). A score is named `SPLIT/METRIC` or `SPLIT_PROTOCOL/METRIC`: each image alone, then the
mean over images.

## Metrics

| metric | unit | better | |
|---|---|---|---|
{metrics}

Units are those of predictions in metres; under `paper` nothing is in metres.

## Protocols

| name | |
|---|---|
{protocols}

## Other numbers

| name | unit | better | |
|---|---|---|---|
{others}
"""


def legend() -> str:
    """The page, in Markdown."""
    metrics = {name: _meaning(name) for name in METRICS}
    return PAGE.format(
        metrics=_table(metrics),
        protocols="\n".join(f"| `{name}/` | {said} |" for name, said in _groups().items()),
        others=_table(_others()),
    )


def row_of(name: str) -> str | None:
    """The row that explains a recorded number: `abs_rel` for `val_paper/abs_rel`; None: no row."""
    group, _, number = name.rpartition("/")
    if number in METRICS and any(_fits(row, group) for row in _groups()):
        return number
    rows = (row for row in _others() if _fits(row, name))
    return next(rows, None)


def _fits(row: str, name: str) -> bool:
    pattern = re.escape(row).replace("SPLIT", r"[^/]+?").replace("N_", r"\d+_")
    return re.fullmatch(pattern, name) is not None


def _groups() -> dict[str, str]:
    """What stands before the slash of a score, and what it says."""
    groups = {}
    for protocol, function in PROTOCOLS.items():
        group = "SPLIT" if protocol == "metric" else f"SPLIT_{protocol}"
        groups[group] = f"`{protocol}`: {_first_line(function)}"
    pairs = [(baseline, protocol) for baseline in BASELINES for protocol in PROTOCOLS]
    for baseline, protocol in (pair for pair in pairs if pair not in UNDEFINED):
        said = f"{BASELINE[baseline]}, under `{protocol}`"
        groups[f"SPLIT_{baseline_group(baseline, protocol)}"] = said
    return groups


def _others() -> dict[str, Meaning]:
    assert {f"SPLIT/{name}" for name in COUNTS} <= OTHERS.keys()
    measured = {**NUMBERS, **READINGS}
    return {"train/loss": LOSS, **{k: Meaning(*v) for k, v in measured.items()}, **OTHERS}


def _meaning(metric: str) -> Meaning:
    unit = "m" if metric in IN_METRES else ""
    return Meaning(
        unit, "higher" if higher_is_better(metric) else "lower", _first_line(METRICS[metric])
    )


def _first_line(function: Callable[..., Any]) -> str:
    said, given = function, {}
    if isinstance(function, partial):
        said, given = function.func, function.keywords
    line = (inspect.getdoc(said) or "").splitlines()[0]
    for name, value in given.items():
        line = line.replace(name, str(value))
    return line


def _table(rows: dict[str, Meaning]) -> str:
    return "\n".join(
        f"| `{name}` | {row.unit} | {row.better} | {row.said.replace('|', chr(92) + '|')} |"
        for name, row in rows.items()
    )
