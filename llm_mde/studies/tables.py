"""The tables of an experiment's report as grids of text, and all their numbers as one CSV."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

from llm_mde.scoring.metrics import IN_METRES, METRICS, higher_is_better
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.grid import Cell, Grid, grid
from llm_mde.studies.paper import PAPER_UNITS, Experiment, Outcome
from llm_mde.studies.summary import Claim, Cost, Line, Spread, blocks, claims, costs, spread

SHOWN = {  # in the order of the paper's tables, with its names
    "rmse": "RMSE",
    "abs_rel": "Abs Rel",
    "sq_rel": "Sq Rel",
    "rmse_log": "Log RMSE",
    "delta1": "δ₁",
    "delta2": "δ₂",
    "delta3": "δ₃",
}
UNITS = {  # of those two
    "metric": "metres",
    "aligned_median": "metres after alignment",
    "aligned_affine": "metres after alignment",
    "paper": "min-max normalised",
}
DIGITS = 3  # as the paper prints
ABSENT = "–"
FAILED, MISSING = "failed", "not run"
CSV_HEAD = (
    *("source", "protocol", "row", "test", "title", "units", "n", "seeds", "images"),
    *(name for metric in METRICS for name in (metric, f"{metric}_std")),
    *("trainable", "parameters", "memory_gb", "seconds", "steps", "error"),
)


def score_grid(
    experiment: Experiment,
    outcomes: Sequence[Outcome],
    protocol: str,
    *,
    metrics: Sequence[str] = tuple(SHOWN),
    titles: Mapping[str, str] | None = None,
) -> Grid:
    """Every line of every test under a protocol; the best of a test is bold, baselines compete.

    titles: metric -> its name in the head; the metric's own where absent.
    """
    seeds = len({outcome.seed for outcome in outcomes})
    head = [heading(metric, titles or {}, metres=protocol != "paper") for metric in metrics]
    groups = []
    for block in blocks(experiment, outcomes):
        best = {metric: _best(block, protocol, metric) for metric in metrics}
        rows = [(line, _score_row(line, protocol, best, seeds)) for line in block]
        if len(experiment.tests) > 1:
            groups.append([row for _, row in rows])
        else:
            groups.append([row for line, row in rows if not line.is_baseline])
            groups.append([row for line, row in rows if line.is_baseline])
    return grid(["", "seeds", *head], *groups)


def heading(metric: str, titles: Mapping[str, str], *, metres: bool) -> str:
    """A metric over its column: name, unit, and which way is better."""
    unit = " [m]" if metres and metric in IN_METRES else ""
    return f"{titles.get(metric, metric)}{unit} {'↑' if higher_is_better(metric) else '↓'}"


def _best(block: Sequence[Line], protocol: str, metric: str) -> str | None:
    spreads = [line.spread(protocol, metric) for line in block]
    return _best_of([found.mean for found in spreads if found], metric)


def _best_of(means: Sequence[float], metric: str) -> str | None:
    """The best as it is printed; None where nothing can be compared."""
    means = [mean for mean in means if math.isfinite(mean)]
    if len(means) < 2:
        return None
    return number(max(means) if higher_is_better(metric) else min(means))


def _score_row(line: Line, protocol: str, best: Mapping[str, str | None], seeds: int) -> list[Cell]:
    n = len(line.scored)
    counted = ABSENT if line.is_baseline else f"{n}" if n == seeds else f"{n} of {seeds}"
    cells = [Cell(line.title), Cell(counted)]
    for metric in best:
        found = line.spread(protocol, metric)
        if found is None:
            cells.append(Cell(ABSENT if n else FAILED if line.outcomes else MISSING))
        else:
            plain = line.is_baseline and not found.std
            text = number(found.mean) if plain else with_std(found)
            cells.append(Cell(text, number(found.mean) == best[metric]))
    return cells


def number(value: float) -> str:
    """A score as the tables print it."""
    return f"{value:.{DIGITS}f}"


def with_std(found: Spread, digits: int = DIGITS) -> str:
    """Mean ± standard deviation; a plain number for one seed."""
    mean = f"{found.mean:.{digits}f}"
    return mean if found.std is None else f"{mean} ± {found.std:.{digits}f}"


def cost_grid(experiment: Experiment, outcomes: Sequence[Outcome]) -> Grid:
    """What each training took."""
    head = ["", "trainable", "of all", "share", "peak memory [GB]", "training [s]", "steps"]
    return grid(head, [_cost_row(cost) for cost in costs(experiment, outcomes)])


def _cost_row(cost: Cost) -> list[Cell]:
    texts = [
        cost.title,
        f"{cost.trainable / 1e6:.2f} M",
        f"{cost.parameters / 1e6:.2f} M",
        f"{100 * cost.trainable / cost.parameters:.1f} %" if cost.parameters else ABSENT,
        with_std(cost.memory_gb, 2),
        with_std(cost.seconds, 1 if cost.seconds.mean < 100 else 0),
        with_std(cost.steps, 0) if cost.steps.std else f"{cost.steps.mean:.0f}",
    ]
    return [Cell(text) for text in texts]


def paper_grid(experiment: Experiment, titles: Mapping[str, str] | None = None) -> Grid:
    """The paper's own table; its units are others."""
    rows = {row: experiment.paper[row] for row in experiment.rows if row in experiment.paper}
    metrics = [metric for metric in SHOWN if any(metric in row for row in rows.values())]
    best = {
        metric: _best_of([row[metric] for row in rows.values() if metric in row], metric)
        for metric in metrics
    }
    body = []
    for name, row in rows.items():
        texts = {metric: number(row[metric]) if metric in row else ABSENT for metric in metrics}
        cells = [Cell(text, text == best[metric]) for metric, text in texts.items()]
        body.append([Cell(experiment.title_of(name)), *cells])
    head = [heading(metric, titles or {}, metres=False) for metric in metrics]
    return grid(["", *head], body)


def claim_grid(experiment: Experiment, outcomes: Sequence[Outcome]) -> Grid:
    """The paper's orders and what ours say."""
    head = ["the paper finds better", "than", "our abs_rel, difference", "seeds", "verdict"]
    head.append("the paper's difference (other units)")
    rows = [_claim_row(claim) for claim in claims(experiment, outcomes)]
    return grid(head, rows, texts=2)


def _claim_row(claim: Claim) -> list[Cell]:
    n = claim.difference.n if claim.difference else 0
    texts = [claim.better, claim.worse, difference(claim), f"{n}"]
    paper = ABSENT if claim.paper is None else _signed(claim.paper, DIGITS)
    return [*map(Cell, texts), Cell(claim.verdict, bold=True), Cell(paper)]


def difference(claim: Claim) -> str:
    """The paired difference with its sign, one digit more than scores have: it is smaller."""
    found = claim.difference
    if found is None:
        return ABSENT
    spread_text = "" if found.std is None else f" ± {found.std:.{DIGITS + 1}f}"
    return _signed(found.mean, DIGITS + 1) + spread_text


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}"


def failures(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[str]:
    """Every failed run with its reason."""
    return [
        f"{line.title}, seed {one.seed}: {_reason(one)}"
        for block in blocks(experiment, outcomes)
        for line in block
        for one in line.failed
    ]


def _reason(outcome: Outcome) -> str:
    return outcome.error or "no scores"


def long_form(experiment: Experiment, outcomes: Sequence[Outcome]) -> str:
    """CSV: a line for each protocol and line of the tables, in full digits; then the paper's."""
    seeds = len({one.seed for one in outcomes})
    rows = [
        _long_row(line, protocol) | {"seeds": seeds}
        for protocol in PROTOCOLS
        for block in blocks(experiment, outcomes)
        for line in block
    ]
    for row, scores in experiment.paper.items():
        named = {"source": "paper", "row": row, "title": experiment.title_of(row)}
        rows.append(named | {"units": PAPER_UNITS} | scores)
    file = io.StringIO()
    writer = csv.DictWriter(file, CSV_HEAD, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


def _long_row(line: Line, protocol: str) -> dict[str, Any]:
    row: dict[str, Any] = {"source": line.source, "protocol": protocol, "row": line.row}
    row |= {"test": line.test, "title": line.title, "units": UNITS[protocol], "n": 0}
    for metric in METRICS:
        if (found := line.spread(protocol, metric)) is not None:
            row |= {metric: found.mean, f"{metric}_std": found.std, "n": found.n}
    row["error"] = "; ".join(f"seed {one.seed}: {_reason(one)}" for one in line.failed)
    if not line.scored:
        return row
    first = line.scored[0]
    row["images"] = first.images
    if line.is_baseline:
        return row
    row |= {"trainable": first.trainable, "parameters": first.parameters}
    for name in ("memory_gb", "seconds", "steps"):
        found = spread(float(getattr(one, name)) for one in line.scored)
        row[name] = found.mean if found else None
    return row
