"""How much of the variance of a score each factor explains, corrected for chance.

Functional ANOVA (Hutter et al. 2014, https://proceedings.mlr.press/v32/hutter14.html)
taken from the runs themselves in place of a forest fitted to them: the share of a factor is the
variance of its marginal means over the total variance, the correlation ratio eta^2. On few runs
any factor explains something; what a factor without effect would is taken off, as in epsilon^2
(Kelley 1935, https://doi.org/10.1073/pnas.21.9.554).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from llm_mde.studies.board import SCORE, Row
from llm_mde.studies.factors import Design, Factor

PERMUTATIONS = 4999
Floats = NDArray[np.float64]
Labels = NDArray[np.intp]


@dataclass(frozen=True)
class Share:
    """What a factor explains alone, or two of them only together."""

    paths: tuple[str, ...]
    raw: float
    """Share of the variance, 0 to 1, chance included."""
    corrected: float | None
    """The same without what chance gives, 0 at least; None: every level was seen once."""
    p: float | None
    """Chance of as much from a factor without effect; None for two, too."""


@dataclass(frozen=True)
class Importance:
    """What the variance of a score between runs is made of."""

    factors: tuple[Share, ...]
    """Most important first."""
    seed: float | None
    """Share of what differs between seeds of one configuration; None: one seed each."""
    pairs: tuple[Share, ...] = ()
    """What two factors explain together beyond each alone, where a full grid tells."""

    @property
    def rest(self) -> float | None:
        """What factors, pairs and seeds leave; None where chance is in a factor's share."""
        every = (*self.factors, *self.pairs)
        known = [share.corrected for share in every if share.corrected is not None]
        if len(known) < len(every):
            return None
        return max(0.0, 1 - sum(known) - (self.seed or 0.0))


def between(scores: Floats, labels: Labels) -> float:
    """Sum of squares of the labels' means around the mean of all."""
    counts = np.bincount(labels)
    sums = np.bincount(labels, weights=_centred(scores))
    return float((sums[counts > 0] ** 2 / counts[counts > 0]).sum())


def eta_squared(scores: Floats, labels: Labels) -> float:
    """Share of the scores' variance that lies between labels; 0 if they are all the same."""
    total = _squares(scores)
    return between(scores, labels) / total if total else 0.0


def epsilon_squared(scores: Floats, labels: Labels) -> float | None:
    """The same less what labels at random would give, (k - 1) / (n - 1), scaled to reach 1.

    Below 0 where labels explain less than chance; None where each score has a label of its own.
    """
    n, k = len(scores), len(np.unique(labels))
    if n <= k:
        return None
    chance = (k - 1) / (n - 1)
    return (eta_squared(scores, labels) - chance) / (1 - chance)


def p_value(
    scores: Floats, labels: Labels, *, strata: Labels | None = None, seed: int = 0
) -> float | None:
    """Share of permutations of the labels that explain as much; None if they all do.

    strata: groups that labels stay in; None: all are one group.
    """
    found, counts = np.unique(labels, return_counts=True)
    n, k = len(scores), len(found)
    if n <= k or k < 2:
        return None
    strata = np.zeros(n, dtype=np.intp) if strata is None else strata
    member = np.equal.outer(labels, found) / np.sqrt(counts)
    order = (strata + np.random.default_rng(seed).random((PERMUTATIONS, n))).argsort(axis=1)
    shuffled = np.empty((PERMUTATIONS, n))
    shuffled[:, strata.argsort(kind="stable")] = _centred(scores)[order]
    explained = ((shuffled @ member) ** 2).sum(axis=1)
    as_much = explained >= between(scores, labels) * (1 - 1e-9)
    return (1 + int(as_much.sum())) / (1 + PERMUTATIONS)


def importance(rows: Sequence[Row], design: Design) -> Importance:
    """The shares of a design's factors, those that have scores at several levels.

    What chance gives is told by seeds of the same configuration where there are some, less what a
    seed moves all configurations by where all ran under it, else by all runs of the same level.
    Labels are dealt among runs that have all other levels in common; in a scattered design, which
    has none, among configurations with all their seeds: seeds do not make up for few
    configurations. In a design of one factor at a time the total is what its factors and seeds add
    up to.
    """
    scored = [row for row in rows if row.score is not None]
    if len(scored) < 2 or not design.factors:
        return Importance((), None)
    total = _total(scored, design)
    scored, spent = _levelled(scored)
    told = [(factor, design.rows_of([factor], scored)) for factor in design.factors]
    shares = [
        _share(some, factor, design, total=total, spent=spent)
        for factor, some in told
        if len({factor.level(row) for row in some}) > 1
    ]
    shares.sort(key=lambda share: -(share.raw if share.corrected is None else share.corrected))
    return Importance(
        factors=tuple(shares),
        seed=_seed_share(scored, total, shares, design, spent=spent),
        pairs=tuple(_pairs(scored, design, total, spent=spent)) if design.kind == "grid" else (),
    )


def _levelled(rows: Sequence[Row]) -> tuple[list[Row], int]:
    """Runs without what their seed moves all of them by, and the degrees of freedom that took.

    Seeds as blocks (Fisher 1935, The Design of Experiments), where every configuration ran under
    all of them; else runs as they are.
    """
    by_seed: dict[int, list[Row]] = {}
    for row in rows:
        by_seed.setdefault(row.seed, []).append(row)
    ran = {tuple(sorted(row.trial for row in some)) for some in by_seed.values()}
    if len(ran) > 1 or len({row.trial for row in rows}) < 2:
        return list(rows), 0
    mean = {seed: float(_scores(some).mean()) for seed, some in by_seed.items()}
    whole = float(_scores(rows).mean())
    level = [replace(r, scores={SCORE: r.scores[SCORE] - mean[r.seed] + whole}) for r in rows]
    return level, len(by_seed) - 1


def _total(rows: Sequence[Row], design: Design) -> float:
    scores, trials = _scores(rows), _trials(rows)
    if design.centre is None:
        return _squares(scores)
    each = (design.rows_of([factor], rows) for factor in design.factors)
    explained = sum(
        between(_scores(some), _labels(some, factor))
        for some, factor in zip(each, design.factors, strict=True)
    )
    return explained + _squares(scores) - between(scores, trials)


def _share(
    rows: Sequence[Row], factor: Factor, design: Design, *, total: float, spent: int
) -> Share:
    scores, labels, trials = _scores(rows), _labels(rows, factor), _trials(rows)
    explained = between(scores, labels)
    if design.kind == "scattered":
        first = np.unique(trials, return_index=True)[1]
        means, labels = np.bincount(trials, scores) / np.bincount(trials), labels[first]
        fair = epsilon_squared(means, labels)
        square = None if fair is None else fair * between(scores, trials)
        p = p_value(means, labels)
    else:
        chance = _chance(scores, labels, trials, spent=spent)
        square = None if chance is None else explained - chance
        p = p_value(scores, labels, strata=_others(rows, factor, design))
    corrected = None if square is None else _part(max(0.0, square), total)
    return Share((factor.path,), _part(explained, total), corrected, p)


def _chance(scores: Floats, labels: Labels, trials: Labels, *, spent: int) -> float | None:
    """The square that labels without effect would explain."""
    for groups in (trials, labels):
        spare = len(scores) - len(np.unique(groups)) - spent
        if spare > 0:
            square = (_squares(scores) - between(scores, groups)) / spare
            return (len(np.unique(labels)) - 1) * square
    return None


def _others(rows: Sequence[Row], factor: Factor, design: Design) -> Labels:
    """Groups of rows that have the levels of all other factors in common."""
    others = [other for other in design.factors if other is not factor]
    levels = [str([other.level(row) for other in others]) for row in rows]
    return np.unique(levels, return_inverse=True)[1]


def _part(square: float, total: float) -> float:
    return square / total if total else 0.0


def _pairs(rows: Sequence[Row], design: Design, total: float, *, spent: int) -> Iterator[Share]:
    """Interactions, those that runs of the same two levels tell from chance."""
    scores = _scores(rows)
    for one, other in combinations(design.factors, 2):
        a, b = _labels(rows, one), _labels(rows, other)
        both = a * len(other.values) + b
        n, cells = len(scores), len(np.unique(both))
        spare = n - cells - spent
        if spare <= 0 or not total:
            continue
        explained = between(scores, both)
        square = explained - between(scores, a) - between(scores, b)
        degrees = cells - len(np.unique(a)) - len(np.unique(b)) + 1
        chance = degrees * (_squares(scores) - explained) / spare
        corrected = max(0.0, square - chance) / total
        yield Share((one.path, other.path), _part(max(0.0, square), total), corrected, None)


def _seed_share(
    rows: Sequence[Row], total: float, shares: Sequence[Share], design: Design, *, spent: int
) -> float | None:
    """What configurations leave, chance taken off.

    Around a centre runs are no sample of any whole: there it is what factors leave.
    """
    scores, trials = _scores(rows), _trials(rows)
    chance = _chance(scores, trials, trials, spent=spent)
    known = [share.corrected for share in shares if share.corrected is not None]
    if chance is None or len(known) < len(shares):
        return None
    if not total:
        return 0.0
    fair = _part(between(scores, trials) - chance, total)
    return float(np.clip(1 - (fair if design.centre is None else sum(known)), 0, 1))


def _scores(rows: Sequence[Row]) -> Floats:
    return np.array([row.score for row in rows], dtype=np.float64)


def _labels(rows: Sequence[Row], factor: Factor) -> Labels:
    return np.array([factor.level(row) for row in rows], dtype=np.intp)


def _trials(rows: Sequence[Row]) -> Labels:
    return np.unique([row.trial for row in rows], return_inverse=True)[1]


def _squares(scores: Floats) -> float:
    return float((_centred(scores) ** 2).sum())


def _centred(scores: Floats) -> Floats:
    shifted = scores - scores[0]  # so that equal ones differ by exactly nothing
    return shifted - shifted.mean()
