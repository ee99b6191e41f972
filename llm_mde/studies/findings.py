"""What a sweep tells about its factors, in numbers and in words."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from llm_mde.axis import percent
from llm_mde.recipes import short
from llm_mde.studies.board import Leaderboard, Row, Standing
from llm_mde.studies.factors import Design, Factor, design_of
from llm_mde.studies.grid import Cell, Grid, grid
from llm_mde.studies.importance import Importance, Share, importance
from llm_mde.studies.labels import label
from llm_mde.studies.programs import SCORE

SEED, REST, UNKNOWN = "seed", "the rest", "–"
MOST_PAIRS = 5
LEAST_PAIR = 0.01  # of the variance, to be told
SHARES = (
    f"Share of the variance of {SCORE} between runs that the levels of one factor alone explain "
    "(first-order functional ANOVA, Hutter et al. 2014). On few runs even a factor without effect "
    "explains something: 'explained' is without that, 'with chance' is as found (eta²). p: how "
    "often labels dealt at random among comparable runs explain as much; with few runs it cannot "
    "be small (two levels, three seeds each: 0.1 at the least), and of twenty factors without "
    "effect one is below 0.05. "
)
PAIRS = "A x B: what both explain together beyond each alone. "
SEEDS = f"{SEED.capitalize()}: what differs between seeds of one configuration. "
ALONE = "One run of each level: nothing tells an effect from chance; run more seeds. "
LEFT = f"{REST.capitalize()}: what these leave"
DESIGNS = {
    "grid": (
        "Every combination of levels was planned: a level's mean is over all levels of the other "
        "factors (marginal means)."
    ),
    "scattered": (
        "Neither a full grid nor one factor at a time: marginal means over all runs, in which "
        "other factors differ as well."
    ),
}


@dataclass(frozen=True)
class Findings:
    """A sweep with its factors."""

    board: Leaderboard
    design: Design
    importance: Importance

    @property
    def scored(self) -> list[Row]:
        """The rows that have a score."""
        return [row for row in self.board.rows if row.score is not None]

    @property
    def names(self) -> dict[str, str]:
        """Path -> its short name."""
        return short(self.board.paths)

    def title(self, factor: Factor) -> str:
        """A factor with those tied to it, or their number."""
        names = [self.names[path] for path in factor.paths]
        return " + ".join(names if len(names) < 3 else (names[0], f"{len(names) - 1} tied"))


def findings(board: Leaderboard, defaults: Mapping[str, Any]) -> Findings:
    """The factors of a sweep and what they explain.

    defaults: dotted path -> value of trials that leave it alone, as far as known.
    """
    whole = board.filled(defaults)
    design = design_of(whole.rows)
    return Findings(whole, design, importance(whole.rows, design))


def shares_in_words(found: Importance) -> str:
    """How to read the shares."""
    parts = {
        PAIRS: bool(found.pairs),
        SEEDS: found.seed is not None,
        ALONE: any(share.corrected is None for share in found.factors),
        LEFT + ("." if found.seed is not None else ", seeds among it."): found.rest is not None,
    }
    return SHARES + "".join(text for text, holds in parts.items() if holds)


def shares(found: Findings) -> list[tuple[Share, Factor]]:
    """The factors with their shares, most important first."""
    return [(share, found.design.factor_of(share.paths[0])) for share in found.importance.factors]


def best_known(share: Share) -> float:
    """The share less what chance gives, where that is known."""
    return share.raw if share.corrected is None else share.corrected


def others(found: Findings) -> list[tuple[str, float]]:
    """What no factor explains alone: pairs, most important first, seeds and the rest."""
    whole = found.importance
    pairs = {
        " x ".join(found.title(found.design.factor_of(path)) for path in pair.paths): pair.corrected
        for pair in sorted(whole.pairs, key=lambda pair: -best_known(pair))[:MOST_PAIRS]
        if best_known(pair) >= LEAST_PAIR
    }
    shown = {**pairs, SEED: whole.seed, REST: whole.rest}
    return [(name, share) for name, share in shown.items() if share is not None]


def shares_grid(found: Findings) -> Grid:
    """A line for each factor, most important first, then what is none."""
    rows = [
        (found.title(factor), f"{len(factor.values)}", _percent(share.corrected),
         _percent(share.raw), p_in_words(share.p))
        for share, factor in shares(found)
    ]  # fmt: skip
    rows += [(name, "", _percent(share), "", "") for name, share in others(found)]
    head = ("factor", "values", "explained", "with chance", "p")
    return grid(head, [[Cell(text) for text in row] for row in rows])


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else percent(share)


def p_in_words(value: float | None, name: str = "") -> str:
    """A p-value behind a name, or alone."""
    if value is None:
        return UNKNOWN if not name else ""
    shown = "< 0.001" if value < 0.001 else f"{value:.3f}"
    return f"{name}{shown}" if "<" in shown or not name else f"{name}= {shown}"


def design_in_words(found: Findings) -> str:
    """Which runs are compared."""
    centre = found.design.centre
    if centre is None:
        return DESIGNS[found.design.kind]
    where = ", ".join(
        f"{found.names[f.path]} {label(f.values[f.level(centre)])}" for f in found.design.factors
    )
    return (
        f"One factor at a time around {centre.trial} ({where}): the levels of a factor are "
        "compared where all others are at that centre."
    )


def untold_in_words(found: Findings) -> list[str]:
    """Which settings moved together, or have scores at one value alone."""
    told = {share.paths[0] for share in found.importance.factors}
    alone = [factor for factor in found.design.factors if factor.path not in told]
    lost = [
        f"{found.title(factor)}: scores at one value alone, nothing to compare" for factor in alone
    ]
    return lost + [
        f"{found.names[path]} {how} {found.names[factor.path]}, so no effect of its own can be told"
        for factor in found.design.factors
        for path, how in factor.tied.items()
    ]


def verdict(board: Leaderboard, winner: Standing) -> Iterator[str]:
    """How good the winner is, and how sure."""
    best = winner.spread(SCORE)
    assert best is not None  # a winner has scores
    lost = len(winner.rows) - len(winner.scored)
    over = f"over {best.n} seeds" if best.n > 1 else "under one seed"
    yield f"{winner.trial}: {SCORE} {_pm(best.mean, best.std)} {over}."
    if lost:
        yield f"It failed under {lost} more."
    behind = [one for one in board.standings[1:] if one.scored]
    if behind:
        yield _next(winner, behind[0])
        yield f"As the best of {len(behind) + 1} its score on these images flatters it."
    if best.n < 2:
        yield "One seed cannot tell it from luck."


def _next(winner: Standing, other: Standing) -> str:
    has = other.spread(SCORE)
    assert has is not None  # it has scores
    mine = {row.seed: row.score for row in winner.scored}
    common = [(mine[row.seed], row.score) for row in other.scored if row.seed in mine]
    wins = sum(a < b for a, b in common if a is not None and b is not None)
    against = f", worse under {wins} of {len(common)} common seeds" if len(common) > 1 else ""
    return f"The next, {other.trial}, has {_pm(has.mean, has.std)}{against}."


def _pm(mean: float, std: float | None) -> str:
    return f"{mean:.4f}" + ("" if std is None else f" ± {std:.4f}")
