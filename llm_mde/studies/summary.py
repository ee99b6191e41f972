"""What the outcomes of an experiment add up to: spreads over seeds, baselines, costs, verdicts."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from llm_mde.scoring.evaluate import BASELINES, baseline_group
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.paper import UNTRAINED, Experiment, Outcome

OURS = "ours"
BASELINE_TITLES = {"mean_map": "mean depth map", "constant": "constant depth"}
SAME = 1e-6  # relative; ranks add up a split in another order, which moves the last digits
HOLDS, OPPOSITE, OPEN = "holds", "the opposite", "not separated"


@dataclass(frozen=True)
class Spread:
    """One number over seeds."""

    mean: float
    std: float | None
    """Sample standard deviation, n - 1 in the denominator; None for one seed."""
    n: int


def spread(values: Iterable[float]) -> Spread | None:
    """Mean and sample standard deviation; None of nothing."""
    found = list(values)
    if not found:
        return None
    n = len(found)
    mean = math.fsum(found) / n
    # Moved by the first value, so that equal ones spread by exactly nothing.
    shifted = [value - found[0] for value in found]
    centre = math.fsum(shifted) / n
    squares = math.fsum((value - centre) ** 2 for value in shifted)
    return Spread(mean, math.sqrt(squares / (n - 1)) if n > 1 else None, n)


@dataclass(frozen=True)
class Line:
    """One line of the tables: a trained row, the model before training, or a baseline."""

    title: str
    source: str
    """OURS, UNTRAINED or the name of a baseline."""
    row: str
    """The row of the experiment; empty for what the rows of a test share."""
    test: str
    outcomes: tuple[Outcome, ...]
    """One a seed, failed ones among them."""

    @property
    def scored(self) -> list[Outcome]:
        """The outcomes that have scores."""
        return [outcome for outcome in self.outcomes if succeeded(outcome)]

    @property
    def failed(self) -> list[Outcome]:
        """The outcomes that have none."""
        return [outcome for outcome in self.outcomes if not succeeded(outcome)]

    @property
    def is_baseline(self) -> bool:
        """Whether it never looks at an image."""
        return self.source in BASELINES

    def spread(self, protocol: str, metric: str) -> Spread | None:
        """A metric over the seeds that have it."""
        group = baseline_group(self.source, protocol) if self.is_baseline else protocol
        name = f"{group}/{metric}"
        return spread(one.scores[name] for one in self.scored if name in one.scores)


def succeeded(outcome: Outcome) -> bool:
    """Whether the outcome has scores that count."""
    return outcome.error is None and bool(outcome.scores)


def blocks(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[list[Line]]:
    """The lines of each test: trained rows, the model before training, the baselines."""
    tests = experiment.tests
    return [
        _block(experiment, test, [one for one in outcomes if one.test == test]) for test in tests
    ]


def _block(experiment: Experiment, test: str, here: Sequence[Outcome]) -> list[Line]:
    several = len(experiment.tests) > 1
    before = f"{experiment.title_of(test)}, " if several else ""

    def line(title: str, source: str, row: str) -> Line:
        return Line(title, source, row, test, tuple(one for one in here if one.row == row))

    lines = [
        line(f"{before}trained" if several else experiment.title_of(row), OURS, row)
        for row in ([test] if several else experiment.rows)
    ]
    untrained = line(before + experiment.title_of(UNTRAINED), UNTRAINED, UNTRAINED)
    if experiment.untrained or untrained.outcomes:
        lines.append(untrained)
    trained = [one for one in lines if one.source == OURS and one.scored]
    blind = trained or [one for one in lines if one.scored]
    return lines + [made for name in BASELINE_TITLES for made in _baselines(name, blind, before)]


def _baselines(name: str, lines: Sequence[Line], before: str) -> list[Line]:
    """A baseline once where the rows agree on it, else once a row: each is fitted on its data."""
    test, title = (lines[0].test if lines else ""), before + BASELINE_TITLES[name]
    scored = [one for line in lines for one in line.scored if f"{name}/abs_rel" in one.scores]
    if not scored:
        return []
    if all(_agree(name, scored[0], one) for one in scored):
        by_seed = {one.seed: one for one in scored}
        return [Line(title, name, "", test, tuple(by_seed.values()))]
    return [
        Line(f"{title} of {line.title}", name, line.row, test, tuple(line.scored)) for line in lines
    ]


def _agree(name: str, one: Outcome, other: Outcome) -> bool:
    keys = [f"{name}/{metric}" for metric in METRICS]
    pairs = [(one.scores.get(key), other.scores.get(key)) for key in keys]
    return all(
        a == b or (a is not None and b is not None and math.isclose(a, b, rel_tol=SAME))
        for a, b in pairs
    )


@dataclass(frozen=True)
class Cost:
    """What the training of a row took."""

    title: str
    trainable: int
    parameters: int
    memory_gb: Spread
    seconds: Spread
    steps: Spread


def costs(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[Cost]:
    """A line for each trial that ended well under some seed; one where all rows share a trial."""
    shared = len(experiment.tests) > 1
    titles = {row: experiment.title_of(row) for row in experiment.rows}
    if shared:
        trial = next(iter(experiment.trials))
        titles = {trial: experiment.title_of(trial)}
    found = []
    for row, title in titles.items():
        good = [one for one in outcomes if succeeded(one) and one.row != UNTRAINED]
        by_seed = {one.seed: one for one in good if shared or one.row == row}
        if by_seed:
            found.append(_cost(title, list(by_seed.values())))
    return found


def _cost(title: str, runs: Sequence[Outcome]) -> Cost:
    memory, seconds, steps = (
        spread(float(getattr(one, name)) for one in runs)
        for name in ("memory_gb", "seconds", "steps")
    )
    assert memory and seconds and steps
    return Cost(title, runs[0].trainable, runs[0].parameters, memory, seconds, steps)


@dataclass(frozen=True)
class Claim:
    """The paper finds one row better than another: do ours agree?"""

    better: str
    worse: str
    difference: Spread | None
    """abs_rel under `metric`, better minus worse, paired over seeds; None without a pair."""
    verdict: str
    """HOLDS: below 0 under every seed; OPPOSITE: above 0 under every seed; else, and for fewer
    than two seeds, OPEN."""
    paper: float | None
    """The same difference in the paper's table."""


def claims(experiment: Experiment, outcomes: Sequence[Outcome]) -> list[Claim]:
    """The experiment's pairs with their verdicts."""
    return [_claim(experiment, outcomes, pair) for pair in experiment.better]


def _claim(experiment: Experiment, outcomes: Sequence[Outcome], pair: tuple[str, str]) -> Claim:
    tests = {row for row in pair if row in experiment.tests}
    shared = next(iter(tests)) if len(tests) == 1 and len(experiment.tests) > 1 else None
    first, second = (_by_seed(outcomes, row, shared) for row in pair)
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    printed = [experiment.paper.get(row, {}).get("abs_rel") for row in pair]
    better, worse = (experiment.title_of(row) for row in pair)
    return Claim(
        better=better,
        worse=worse,
        difference=spread(differences),
        verdict=_verdict(differences),
        paper=None if None in printed else printed[0] - printed[1],  # type: ignore[operator]
    )


def _by_seed(outcomes: Sequence[Outcome], row: str, test: str | None) -> dict[int, float]:
    """abs_rel of a row by seed; `test` says which one of the model before training."""
    return {
        one.seed: one.scores["metric/abs_rel"]
        for one in outcomes
        if one.row == row and succeeded(one) and (test is None or one.test == test)
    }


def _verdict(differences: Sequence[float]) -> str:
    if len(differences) < 2:
        return OPEN
    if all(difference < 0 for difference in differences):
        return HOLDS
    return OPPOSITE if all(difference > 0 for difference in differences) else OPEN
