"""The board of a sweep: a line for each configuration, the order by means over seeds."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from llm_mde.recipes import short
from llm_mde.studies.board import Leaderboard, Row, ranked
from llm_mde.studies.labels import label

LR = "optim.lr"


def row(trial: str, abs_rel: float | None, seed: int = 0, **settings: object) -> Row:
    scores = {} if abs_rel is None else {"val/abs_rel": abs_rel, "val/rmse": 1.0}
    error = "out of memory" if abs_rel is None else None
    named = {path.replace("__", "."): value for path, value in settings.items()}
    return Row(trial, seed, Path("runs") / trial, named, scores, 60.0, 100, error)


def board(*rows: Row) -> Leaderboard:
    return Leaderboard("lora", Path("runs/lora"), ranked(rows))


def test_configurations_are_ranked_by_their_mean_not_by_their_best_seed() -> None:
    lucky = [row("lucky", 0.1, 0, optim__lr=1e-4), row("lucky", 0.5, 1, optim__lr=1e-4)]
    steady = [row("steady", 0.2, 0, optim__lr=2e-5), row("steady", 0.22, 1, optim__lr=2e-5)]
    found = board(*lucky, *steady)
    assert [one.trial for one in found.standings] == ["steady", "lucky"]
    assert [(one.trial, one.seed) for one in found.rows] == [
        ("steady", 0), ("steady", 1), ("lucky", 0), ("lucky", 1),
    ]  # fmt: skip
    cells = {line[0].text: [cell.text for cell in line] for line in found.grid(("abs_rel",)).rows}
    # 0.2 and 0.22: mean 0.21, deviations 0.01, sqrt(2 * 0.0001 / 1) = 0.0141
    assert cells["steady"] == ["steady", "2", "2e-5", "0.2100 ± 0.0141", "100", "60"]
    assert cells["lucky"][3] == "0.3000 ± 0.2828"


def test_one_seed_has_no_deviation() -> None:
    assert "±" not in "\n".join(board(row("a", 0.2), row("b", 0.3)).lines())


@pytest.mark.parametrize("odd", [math.nan, math.inf])
def test_a_score_that_is_no_number_ranks_last_and_is_told(odd: float) -> None:
    found = board(row("odd", odd), row("worse", 0.4), row("failed", None), row("good", 0.3))
    assert [one.trial for one in found.rows][:2] == ["good", "worse"]
    assert found.winner is not None and found.winner.trial == "good"
    told = "\n".join(found.lines())
    assert f"failed: odd (seed 0): val/abs_rel: expected a number, got {odd}" in told
    assert "failed: failed (seed 0): out of memory" in told


def test_a_failed_seed_counts_in_no_mean_and_is_counted() -> None:
    found = board(row("a", 0.2, 0), row("a", None, 1), row("a", 0.3, 2), row("b", 0.26, 0))
    line = [cell.text for cell in found.grid(("abs_rel",)).rows[0]]
    assert line[:3] == ["a", "2 of 3", "0.2500 ± 0.0707"]
    assert [one.seed for one in found.rows[:3]] == [0, 2, 1]


def test_csv_keeps_a_line_for_each_seed() -> None:
    lines = board(row("a", 0.2, 0), row("a", 0.3, 1), row("b", None)).csv().splitlines()
    assert len(lines) == 4
    assert lines[0].startswith("trial,seed,") and lines[0].endswith(",steps,seconds,error")
    assert lines[1].startswith("a,0,0.2,") and lines[3].endswith("out of memory")


def test_without_a_score_there_is_no_winner() -> None:
    found = board(row("a", None), row("b", math.nan))
    assert found.winner is None
    assert len(found.lines()) > 3


def test_a_wide_board_leaves_out_columns_until_it_fits_and_keeps_the_score() -> None:
    settings = {f"model__vit__long_name_of_setting_{n}": 0.0 for n in range(9)}
    rows = [
        row(f"t{n}", 0.1 + n, seed, **settings | {key: n for key in settings})
        for n in range(3)
        for seed in range(2)
    ]
    lines = board(*rows).lines()
    assert max(map(len, lines)) < 120
    assert "abs_rel" in lines[0] and "long_name_of_setting_0" in lines[0]
    assert "rmse" not in lines[0] and "setting_8" not in lines[0]


def test_a_long_board_ends_with_how_many_more_there_are() -> None:
    lines = board(*(row(f"t{n}", 0.1 + n, optim__lr=n) for n in range(30))).lines(5)
    assert [line.split()[0] for line in lines[1:6]] == ["t0", "t1", "t2", "t3", "t4"]
    assert lines[6] == "and 25 more"


def test_what_all_trials_share_is_told_once() -> None:
    shared = {"train__batch": 16}
    found = board(row("a", 0.2, optim__lr=1e-4, **shared), row("b", 0.3, optim__lr=1e-5, **shared))
    assert found.varied == [LR]
    assert "train.batch" not in found.lines()[0]
    assert "the same in all: train.batch 16" in found.lines()


def test_a_path_that_a_trial_leaves_alone_is_the_bases() -> None:
    found = board(row("a", 0.2), row("b", 0.3, optim__lr=1e-5))
    assert found.varied == [LR]
    assert [line[2].text for line in found.grid(("abs_rel",)).rows] == ["base", "1e-5"]


def test_equal_numbers_are_one_value_whatever_their_type() -> None:
    found = board(row("a", 0.2, alpha=64, widths=(8, 4)), row("b", 0.3, alpha=64.0, widths=[8, 4]))
    assert found.varied == []
    assert board(row("a", 0.2, on=True), row("b", 0.3, on=1)).varied == ["on"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2e-5, "2e-5"), (0.00012345678, "1.235e-4"), (1e-4, "1e-4"), (0.02, "0.02"), (0.0, "0"),
        (1e10, "1e10"), (-2.5e-7, "-2.5e-7"), (float("inf"), "inf"), (192.0, "192"), (96, "96"),
        (True, "true"), (None, "none"), ("", "base"), ("lora", "lora"), ([256, 0.5], "256,0.5"),
        ({"b": 1, "a": 2}, '{"a": 2, "b": 1}'),
    ],
)  # fmt: skip
def test_labels_by_hand(value: object, text: str) -> None:
    assert label(value) == text


def test_short_names_stay_apart() -> None:
    assert short(["model.vit.lora.r", "model.llm.lora.r", "optim.lr"]) == {
        "model.vit.lora.r": "vit.r", "model.llm.lora.r": "llm.r", "optim.lr": "optim.lr",
    }  # fmt: skip
    assert short(["model.x", "x"]) == {"model.x": "model.x", "x": "x"}


def test_the_order_of_rows_does_not_matter() -> None:
    rows = [row(f"t{n}", 0.9 - n / 10, seed) for n in range(4) for seed in range(2)]
    assert board(*rows).grid() == board(*reversed(rows)).grid()
    assert replace(board(*rows), rows=rows).standings[0].trial == "t3"
