"""What a report of an experiment says."""

from pathlib import Path

import pytest

from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.paper import PAPER_UNITS, UNTRAINED
from llm_mde.studies.report import lines
from llm_mde.studies.summary import claims, costs, spread
from tests.support.report import experiment, outcome, report, scores, table, two_seeds, zero_shot


def test_spread_is_the_sample_standard_deviation() -> None:
    found = spread([1.0, 2.0, 6.0])  # mean 3; squares 4 + 1 + 9 = 14, by 2
    assert found is not None
    assert (found.mean, found.n) == (3.0, 3)
    assert found.std == pytest.approx(7**0.5)
    one, same = spread([0.1]), spread([0.1] * 3)
    assert one is not None and one.std is None
    assert same is not None and same.std == 0
    assert spread([]) is None


def test_scores_are_means_over_seeds_with_the_best_in_bold(tmp_path: Path) -> None:
    text = report(tmp_path, experiment(), two_seeds(), "md")
    head, _, *rows = table(text, "metric: metres as predicted")
    assert head[1:4] == ["seeds", "rmse [m] ↓", "abs_rel ↓"]
    cells = {row[0]: row[1:] for row in rows}
    # 0.10 and 0.14: mean 0.12, deviations 0.02, sqrt(2 * 0.0004 / 1) = 0.0283
    assert cells["APG_prompts"][:3] == ["2", "**0.120 ± 0.028**", "**0.120 ± 0.028**"]
    assert cells[r"fixed \| 5$"][:2] == ["2", "0.180 ± 0.028"]
    assert cells["mean depth map"][:2] == ["–", "0.250"]
    assert cells["constant depth"][4:6] == ["0.500", "**0.500**"]  # delta1: higher is better
    assert "n - 1 in the denominator" in text


def test_every_protocol_has_a_table_of_its_own(tmp_path: Path) -> None:
    text = report(tmp_path, experiment(), two_seeds(), "md")
    assert [line.split(":")[0][4:] for line in text.splitlines() if line.startswith("### ")] == [
        *PROTOCOLS
    ]
    cells = {row[0]: row[2:] for row in table(text, "paper: each image's depths")}
    assert cells["APG_prompts"][0] == "0.900 ± 0.000"
    assert cells["mean depth map"][0] == "**0.250**"
    assert set(cells["constant depth"]) == {"–"}  # it has no min-max normalisation
    assert table(text, "paper: each image's depths")[0][2] == "rmse ↓"  # not metres


def test_one_seed_is_a_plain_number(tmp_path: Path) -> None:
    text = report(tmp_path, experiment(), [outcome("apg", 0, 0.1), outcome("fixed", 0, 0.2)], "md")
    cells = {row[0]: row[1:] for row in table(text, "metric: metres as predicted")}
    assert cells["APG_prompts"][:2] == ["1", "**0.100**"]
    assert "one seed cannot separate anything" in text


def test_failed_and_missing_runs_are_counted_and_told(tmp_path: Path) -> None:
    failed = [outcome("fixed", seed, 0, scores={}, error=f"no memory {seed}") for seed in (0, 1)]
    outcomes = [outcome("apg", 0, 0.1), outcome("apg", 1, 0.0, scores={}, error="a | b"), *failed]
    text = report(tmp_path, experiment(), outcomes, "md")
    cells = {row[0]: row[1:] for row in table(text, "metric: metres as predicted")}
    assert cells["APG_prompts"][:2] == ["1 of 2", "**0.100**"]
    assert cells[r"fixed \| 5$"][:2] == ["0 of 2", "failed"]
    assert r"- APG_prompts, seed 1: a \| b" in text
    assert r"- fixed \| 5$, seed 0: no memory 0" in text
    assert any(line.endswith("seed 1: no memory 1") for line in lines(experiment(), outcomes))
    alone = report(tmp_path, experiment(), [outcome("apg", 0, 0.1)], "md")
    assert "not run" in alone


def test_nothing_at_all_is_reported_as_such(tmp_path: Path) -> None:
    for form in ("md", "csv", "tex"):
        assert report(tmp_path, experiment(), [], form)
    assert any("not run" in line for line in lines(experiment(), []))


def test_cost_is_that_of_the_trainings(tmp_path: Path) -> None:
    text = report(tmp_path, experiment(), two_seeds(), "md")
    rows = {row[0]: row[1:] for row in table(text, "Cost of training")}
    # 30 and 32 s: mean 31, sqrt(2) = 1.4
    assert rows["APG_prompts"] == ["0.25 M", "1.00 M", "25.0 %", "1.50 ± 0.00", "31.0 ± 1.4", "500"]
    shared = [outcome(test, seed, 0.2, test) for test in ("bath", "kitchen") for seed in (0, 1)]
    (one,) = costs(zero_shot(), [*shared, outcome(UNTRAINED, 0, 0.9, "bath", steps=0)])
    assert (one.title, one.seconds.n, one.steps.mean) == ("bedroom", 2, 500)


def test_the_papers_table_is_marked_as_other_units(tmp_path: Path) -> None:
    text = report(tmp_path, experiment(), two_seeds(), "md")
    below = text.split("## The paper's own table")[1]
    assert PAPER_UNITS in below
    head, _, *rows = table(text, "The paper's own table")
    assert head == ["", "rmse ↓", "abs_rel ↓"]
    assert rows == [["APG_prompts", "0.206", "**0.448**"], [r"fixed \| 5$", "–", "0.461"]]


@pytest.mark.parametrize(
    ("apg", "fixed", "verdict"),
    [
        ((0.10, 0.14), (0.20, 0.16), "holds"),
        ((0.20, 0.16), (0.10, 0.14), "the opposite"),
        ((0.10, 0.18), (0.20, 0.16), "not separated"),
        ((0.10, 0.14), (0.20, 0.14), "not separated"),  # a tie under one seed
        ((0.10,), (0.20,), "not separated"),
        ((), (0.20,), "not separated"),
    ],
)
def test_verdicts(apg: tuple[float, ...], fixed: tuple[float, ...], verdict: str) -> None:
    outcomes = [outcome("apg", seed, value) for seed, value in enumerate(apg)]
    outcomes += [outcome("fixed", seed, value) for seed, value in enumerate(fixed)]
    (claim,) = claims(experiment(), outcomes)
    assert claim.verdict == verdict


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    outcomes = [*two_seeds(), outcome("apg", 2, 0.9)]  # seed 2 has no partner
    (claim,) = claims(experiment(), outcomes)
    assert claim.difference is not None
    # 0.10 - 0.20 = -0.10 and 0.14 - 0.16 = -0.02: mean -0.06, std sqrt(2 * 0.0016) = 0.0566
    assert claim.difference.mean == pytest.approx(-0.06)
    assert claim.difference.std == pytest.approx(0.0566, abs=1e-4)
    assert claim.paper == pytest.approx(0.448 - 0.461)
    _, _, row = table(report(tmp_path, experiment(), outcomes, "md"), "Does the paper's order hold")
    assert row[2:] == ["-0.0600 ± 0.0566", "2", "**holds**", "-0.013"]


def test_zero_shot_has_baselines_and_the_untrained_model_for_every_test(tmp_path: Path) -> None:
    outcomes = [
        outcome("bath", 0, 0.2, "bath"),
        outcome("kitchen", 0, 0.3, "kitchen", scores=scores(0.3, mean_map=0.26)),
        outcome(UNTRAINED, 0, 0.6, "bath"),
        outcome(UNTRAINED, 0, 0.7, "kitchen"),
    ]
    text = report(tmp_path, zero_shot(), outcomes, "md")
    rows = [[row[0], row[3]] for row in table(text, "metric: metres as predicted")[2:]]
    assert rows == [
        ["Bathroom, trained", "**0.200**"],
        ["Bathroom, untrained", "0.600"],
        ["Bathroom, mean depth map", "0.250"],
        ["Bathroom, constant depth", "0.500"],
        ["Kitchen, trained", "0.300"],
        ["Kitchen, untrained", "0.700"],
        ["Kitchen, mean depth map", "**0.260**"],
        ["Kitchen, constant depth", "0.500"],
    ]
    rooms, untrained = claims(zero_shot(), outcomes)
    assert rooms.difference is not None and untrained.difference is not None
    assert rooms.difference.mean == pytest.approx(-0.1)
    assert untrained.difference.mean == pytest.approx(-0.4)  # that of the bathroom


def test_baselines_that_rows_do_not_share_have_a_line_each(tmp_path: Path) -> None:
    outcomes = [outcome("apg", 0, 0.1), outcome("fixed", 0, 0.2, scores=scores(0.2, mean_map=0.3))]
    text = report(tmp_path, experiment(), outcomes, "md")
    cells = {row[0]: row[3] for row in table(text, "metric: metres as predicted")}
    assert cells["mean depth map of APG_prompts"] == "0.250"
    assert cells[r"mean depth map of fixed \| 5$"] == "0.300"
    assert cells["constant depth"] == "0.500"
