"""The report at the end of a sweep: what its factors do, what they are worth, what to train.

`report.md`, the same as one page in `report.html`, and its figures.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llm_mde.axis import Axis
from llm_mde.charts import Bar, Panel, importance_bars, main_effects
from llm_mde.coloured import heat_map, parallel
from llm_mde.data.index import Index
from llm_mde.errors import CheckpointError, DataError
from llm_mde.inference.adapter import find
from llm_mde.studies.board import BOARD, WIDTH, Leaderboard, wrapped
from llm_mde.studies.document import Block, Code, Picture, Sections, as_html, as_markdown
from llm_mde.studies.effects import axis_of, cells, lines_of, pairs, panel
from llm_mde.studies.factors import distinct
from llm_mde.studies.findings import (
    Findings,
    best_known,
    design_in_words,
    findings,
    others,
    p_in_words,
    shares,
    shares_grid,
    shares_in_words,
    untold_in_words,
    verdict,
)
from llm_mde.studies.grid import columns
from llm_mde.studies.programs import SCORE
from llm_mde.studies.report import draw_variants
from llm_mde.studies.winner import Training, command, typed
from llm_mde.training.folder import write_whole

logger = logging.getLogger(__name__)

FOLDER = "report"  # of a sweep's folder
METRICS = ("abs_rel", "rmse", "rmse_log", "delta1")  # of the table
DRAWN = 8  # configurations in the grid of predictions, as in the paper's Fig. 5
MARKDOWN, PAGE = "report.md", "report.html"
MAP = "Hatched: without a score; framed: the lowest of those shown"


def write(
    board: Leaderboard,
    *,
    folder: Path,
    about: Mapping[str, Any],
    training: Training,
    defaults: Mapping[str, Any],
    val: Index | None,
) -> list[Path]:
    """Write the report of a sweep, as far as its trials tell anything.

    Args:
        board: the trials.
        folder: of the report.
        about: what ran (base, settings, device, version ...).
        training: how the winner trains in full.
        defaults: dotted path -> value of trials that leave it alone, as far as known.
        val: samples that the best configurations are drawn on; None: no such figure.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found = findings(board, defaults)
    told = {
        "The best configuration": list(_winner(board, training)),
        **_sections(found, folder, val=val),
        "How it ran": [[f"{name}: {value}" for name, value in about.items()]] if about else [],
    }
    title = f"Sweep {board.name}"
    write_whole(folder / MARKDOWN, as_markdown(title, told))
    write_whole(folder / PAGE, as_html(title, told))
    pictures = [one.path for some in told.values() for one in some if isinstance(one, Picture)]
    return [folder / PAGE, folder / MARKDOWN, *pictures]


def _sections(found: Findings, folder: Path, *, val: Index | None) -> Sections:
    board = found.board
    table: list[Block] = [board.grid(METRICS), [*board.notes(), f"every number: {BOARD}"]]
    drawn = list(_predictions(board, folder, val)) if val is not None else []
    if not found.importance.factors:
        return {"Leaderboard": table, "Predictions": drawn}
    return {
        "Leaderboard": table,
        "Importance of each factor": list(_importance(found, folder)),
        "Main effects": list(_effects(found, folder)),
        "Alpha and rank": list(_maps(found, folder)),
        "All settings of each configuration": list(_parallel(found, folder)),
        "Predictions": drawn,
    }


def _winner(board: Leaderboard, training: Training) -> Iterator[Block]:
    winner = board.winner
    if winner is None:
        yield "Every trial failed; there is nothing to train."
        return
    yield " ".join(verdict(board, winner))
    yield "Its settings, trained in full:"
    yield Code(typed(command_of(board, training)))


def command_of(board: Leaderboard, training: Training) -> list[str]:
    """The words that train the winner, if there is one, under a name of its own."""
    winner = board.winner
    if winner is None:
        return []
    return command(f"{board.name}-{winner.trial}-full", winner.settings, training)


def _importance(found: Findings, folder: Path) -> Iterator[Block]:
    yield shares_grid(found)
    yield " ".join((design_in_words(found), shares_in_words(found.importance)))
    if untold := untold_in_words(found):
        yield untold
    bars = [
        Bar(
            found.title(factor),
            best_known(share),
            p_in_words(share.p, "p "),
            sure=share.corrected is not None,
        )
        for share, factor in shares(found)
    ]
    bars += [Bar(name, share, factor=False) for name, share in others(found)]
    path = importance_bars(bars, folder / "importance.png", label=f"variance of {SCORE} [%]")
    text = "What each factor explains alone, and what no factor explains (hatched)."
    if not all(bar.sure for bar in bars):
        text += " Hollow: with what chance gives, which more seeds would tell."
    yield Picture(path, text)


def _effects(found: Findings, folder: Path) -> Iterator[Block]:
    panels: list[Panel] = [
        panel(found.scored, factor, found.design, title=found.title(factor))
        for _, factor in shares(found)
    ]
    path = main_effects(panels, folder / "effects.png", score=SCORE)
    ranged = [found.names[factor.path] for factor in found.design.factors if factor.continuous]
    text = f"Mean {SCORE} at each level, lower is better. {design_in_words(found)}"
    if ranged:
        text += f" Of {', '.join(ranged)}: means over ranges that hold equally many configurations."
    yield Picture(path, text)


def _maps(found: Findings, folder: Path) -> Iterator[Block]:
    for r, alpha in pairs(found.board.varied):
        factors = [found.design.factor_of(r), found.design.factor_of(alpha)]
        told = cells(found.design.rows_of(factors, found.scored), r, alpha)
        if not told:
            continue
        x, y = (_axis(found, path, [at[n] for at in told]) for n, path in enumerate((r, alpha)))
        name = f"alpha-rank-{found.names[r].removesuffix('.r').replace('/', '-')}.png"
        path = heat_map(told, folder / name, x=x, y=y, score=SCORE)
        rest = "." if found.design.centre is None else ", where all else is at the centre."
        yield Picture(path, f"{SCORE} by {y.title} and {x.title}. {MAP}{rest}")


def _axis(found: Findings, path: str, values: Sequence[float]) -> Axis:
    return axis_of(distinct(values), found.names[path])


def _parallel(found: Findings, folder: Path) -> Iterator[Block]:
    paths = found.board.varied
    axes, placed, scores = lines_of(
        found.board.standings, paths, [found.names[path] for path in paths]
    )
    path = parallel(axes, placed, scores, folder / "parallel.png", score=SCORE)
    yield Picture(path, "A line for each configuration, the best one thick; dotted: failed.")


def _predictions(board: Leaderboard, folder: Path, val: Index) -> Iterator[Block]:
    """The grid of the paper's Fig. 5; a sweep's report does not fail for want of it."""
    adapters = dict(_adapters(board))
    if not adapters:
        yield "No trial has left an adapter."
        return
    try:
        path = draw_variants(adapters, {"val": val}, folder / "predictions.png")
    except (CheckpointError, DataError) as error:
        logger.warning("predictions are not drawn: %s", error)
        yield f"Not drawn: {error}"
        return
    best = f"the best {DRAWN} of " if len(board.standings) > DRAWN else ""
    yield Picture(path, f"{best}the configurations, best first, on validation images.".capitalize())


def _adapters(board: Leaderboard) -> Iterator[tuple[str, Path]]:
    """The best configurations, and the adapter of the first seed that has one."""
    for one in board.standings[:DRAWN]:
        for row in one.scored:
            try:
                yield one.trial, find(row.run)
            except CheckpointError:
                continue
            break


def lines(
    board: Leaderboard, *, folder: Path, training: Training, defaults: Mapping[str, Any]
) -> list[str]:
    """What the terminal shows, under 120 wide; arguments as in `write`."""
    found = findings(board, defaults)
    said = [design_in_words(found), *untold_in_words(found)] if found.importance.factors else []
    words = command_of(board, training)
    return [
        *found.board.lines(10),
        *(["", *columns(shares_grid(found), width=WIDTH)] if said else []),
        *(line for text in said for line in wrapped(text)),
        *(["", "train the best one in full:", *typed(words).splitlines()] if words else []),
        f"report: {folder / PAGE}",
    ]
