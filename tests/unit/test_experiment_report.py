"""The report of an experiment: numbers by hand, forms that other programs read, one figure."""

import csv
import io
import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.data.index import Entry, open_index
from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.grid import Cell, columns, escape_latex, grid, latex, markdown
from llm_mde.studies.paper import PAPER_UNITS, UNTRAINED, Experiment, Outcome
from llm_mde.studies.report import draw, lines, typical, write
from llm_mde.studies.summary import claims, costs, spread
from tests.support.run import write_run
from tests.support.shards import write_shards

ABOUT = {"command": "llm-mde experiment prompts --seeds 2", "commit": "abc_1*2"}


def experiment(**changes: object) -> Experiment:
    settings = {
        "name": "prompts",
        "title": "Prompts & 100 % of them",
        "table": "III",
        "figure": "3",
        "trials": {"apg": {}, "fixed": {}},
        "titles": {"apg": "APG_prompts", "fixed": "fixed | 5$"},
        "paper": {"apg": {"rmse": 0.206, "abs_rel": 0.448}, "fixed": {"abs_rel": 0.461}},
        "better": (("apg", "fixed"),),
    }
    return Experiment.model_validate(settings | changes)


def zero_shot() -> Experiment:
    return experiment(
        trials={"bedroom": {}},
        tests={"bath": "test_bathroom", "kitchen": "test_kitchen"},
        titles={"bath": "Bathroom", "kitchen": "Kitchen"},
        untrained=True,
        paper={"bath": {"rmse": 0.287}},
        better=(("bath", "kitchen"), ("bath", UNTRAINED)),
    )


def scores(abs_rel: float, *, mean_map: float = 0.25) -> dict[str, float]:
    """Every score of one run: `abs_rel` everywhere but for baselines and a worse `paper`."""
    groups = {"metric": abs_rel, "aligned_median": abs_rel, "aligned_affine": abs_rel, "paper": 0.9}
    for name, value in (("mean_map", mean_map), ("constant", 0.5)):
        groups |= {name: value}
        groups |= {f"{name}_{protocol}": value for protocol in PROTOCOLS if protocol != "metric"}
    del groups["constant_paper"]
    return {f"{group}/{m}": value for group, value in groups.items() for m in METRICS}


def outcome(row: str, seed: int, abs_rel: float, test: str = "test", **changes: object) -> Outcome:
    made = Outcome(
        row=row,
        test=test,
        seed=seed,
        scores=scores(abs_rel),
        images=66,
        trainable=250_000,
        parameters=1_000_000,
        memory_gb=1.5,
        seconds=30.0 + 2 * seed,
        steps=500,
        adapter=Path("runs") / row,
    )
    return replace(made, **changes)


def two_seeds() -> list[Outcome]:
    return [
        outcome("apg", 0, 0.10),
        outcome("apg", 1, 0.14),
        outcome("fixed", 0, 0.20),
        outcome("fixed", 1, 0.16),
    ]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first pipe table below a heading."""
    below = text.split(f"# {heading}", 1)[1]
    rows = re.search(r"(^\|.*\|\n)+", below, re.MULTILINE)
    assert rows is not None
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in rows[0].splitlines()
    ]


def report(tmp_path: Path, what: Experiment, outcomes: list[Outcome], form: str) -> str:
    paths = write(what, outcomes, folder=tmp_path / "new" / "folder", about=ABOUT)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)  # no temporary file is left
    return paths[("md", "csv", "tex").index(form)].read_text(encoding="utf-8")


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


def test_csv_has_every_number_of_every_protocol(tmp_path: Path) -> None:
    rows = list(
        csv.DictReader(io.StringIO(report(tmp_path, experiment(), two_seeds(), "csv")), strict=True)
    )
    ours = [row for row in rows if row["source"] == "ours"]
    assert [(row["protocol"], row["row"]) for row in ours] == [
        (protocol, name) for protocol in PROTOCOLS for name in ("apg", "fixed")
    ]
    first = ours[0]
    assert float(first["abs_rel"]) == pytest.approx(0.12)
    assert float(first["silog_std"]) == pytest.approx(0.02 * 2**0.5)
    assert (first["n"], first["images"], first["trainable"], first["units"]) == (
        "2",
        "66",
        "250000",
        "metres",
    )
    assert float(first["seconds"]) == 31
    flat = [row for row in rows if row["source"] == "constant" and row["protocol"] == "paper"]
    assert [(row["n"], row["abs_rel"]) for row in flat] == [("0", "")]
    paper = [row for row in rows if row["source"] == "paper"]
    assert [(row["row"], row["abs_rel"], row["units"]) for row in paper] == [
        ("apg", "0.448", PAPER_UNITS),
        ("fixed", "0.461", PAPER_UNITS),
    ]


def test_csv_says_why_a_row_failed(tmp_path: Path) -> None:
    failed = outcome("fixed", 0, 0, scores={}, error='no "memory", a\nb')
    text = report(tmp_path, experiment(), [outcome("apg", 0, 0.1), failed], "csv")
    rows = [row for row in csv.DictReader(io.StringIO(text)) if row["row"] == "fixed"]
    assert rows[0]["error"] == 'seed 0: no "memory", a\nb'
    assert rows[0]["abs_rel"] == ""


def check_latex(text: str) -> None:
    """Balanced environments and braces, as many cells as columns, no bare special."""
    opened: list[str] = []
    width = 0
    for line in text.splitlines():
        if line.startswith("%"):
            continue
        for kind, name in re.findall(r"\\(begin|end)\{(\w+\*?)\}", line):
            if kind == "begin":
                opened.append(name)
            else:
                assert opened.pop() == name
        if found := re.search(r"\\begin\{tabular\}\{@\{\}(\w+)@\{\}\}", line):
            width = len(found[1])
        if line.endswith(r"\\"):
            assert len(re.findall(r"(?<!\\)&", line)) == width - 1, line
        plain = re.sub(r"\\[%&$#_{}]|\$[^$]*\$|\\label\{[^}]*\}", "", line)
        assert not re.search(r"[#_$^]", plain), line
        assert "%" not in plain.removesuffix("%"), line
        assert plain.isascii(), line
    assert opened == []
    bare = re.sub(r"\\[{}]", "", text)
    assert bare.count("{") == bare.count("}")


def test_latex_is_balanced_escaped_and_rectangular(tmp_path: Path) -> None:
    failed = outcome("fixed", 1, 0, scores={}, error="100% of {GPU} #0 & ~/a_b\\c ^")
    text = report(tmp_path, experiment(), [*two_seeds()[:3], failed], "tex")
    check_latex(text)
    check_latex(report(tmp_path, zero_shot(), [outcome("bath", 0, 0.2, "bath")], "tex"))
    assert r"fixed \textbar{} 5\$" in text and r"APG\_prompts" in text
    assert r"\textbf{0.120 $\pm$ 0.028}" in text
    assert text.count(r"\begin{tabular}") == len(PROTOCOLS) + 3  # cost, the paper's, its order
    assert r"$\delta$$_1$ $\uparrow$" in text


def test_latex_escapes_by_hand() -> None:
    assert escape_latex("a_b & 5% {x} [m] ± ~\\") == (
        r"a\_b \& 5\% \{x\} {[}m] $\pm$ \textasciitilde{}\textbackslash{}"
    )
    assert escape_latex("深 é") == "? é"


def test_grid_has_the_same_cells_in_every_form() -> None:
    made = grid(["", "n"], [[Cell("a|b"), Cell("1", True)]], [], [[Cell("c"), Cell("22")]])
    assert markdown(made) == ["|  | n |", "| --- | ---: |", r"| a\|b | **1** |", "| c | 22 |"]
    body = latex(made, caption="x", label="tab:x")
    assert body[5:12] == [
        r"\begin{tabular}{@{}lr@{}}",
        r"\toprule",
        r" & n \\",
        r"\midrule",
        r"a\textbar{}b & \textbf{1} \\",
        r"\midrule",
        r"c & 22 \\",
    ]
    assert columns(made, width=80) == ["      n", "a|b   1*", "c    22"]


def test_terminal_lines_are_aligned_and_fit(tmp_path: Path) -> None:
    long = experiment(titles={"apg": "adaptive prompts " * 9})
    said = lines(long, two_seeds())
    assert max(map(len, said)) < 120
    at = next(i for i, line in enumerate(said) if "abs_rel" in line and "delta1" in line)
    rows = said[at + 1 : at + 5]
    assert {len(re.sub(r"[* ]$", "", row)) for row in rows} == {len(said[at].rstrip())}
    assert rows[0].startswith("adaptive prompts") and ".." in rows[0]
    assert "0.120 ± 0.028*" in rows[0]
    said = lines(experiment(), two_seeds())
    assert any("holds" in line and "-0.0600 ± 0.0566" in line for line in said)
    told = replace(two_seeds()[3], scores={}, error="no memory " * 30 + "see train.log")
    said = lines(experiment(), [*two_seeds()[:3], told])
    assert max(map(len, said)) < 120 and said[-1].endswith("see train.log")
    alone = lines(experiment(), [outcome("apg", 0, 0.1)])
    assert any("one seed cannot separate anything" in line for line in alone)


def entries(**counts: int) -> list[Entry]:
    return [
        Entry(f"{name}_0001-{number:06d}", "test-000000.tar", 0, 1, "")
        for name, count in counts.items()
        for number in range(count)
    ]


def test_pictures_are_of_different_scene_types_where_possible() -> None:
    many = entries(bath=5, bed=3, cafe=1, den=7, hall=2)
    types = [entry.key.partition("_")[0] for entry in typical(many, 4)]
    assert len(set(types)) == len(types) == 4
    two = [entry.key for entry in typical(entries(bath=9, bed=2), 4)]
    assert [key.partition("_")[0] for key in two] == ["bath", "bath", "bed", "bed"]
    assert len(set(two)) == 4
    assert [entry.key for entry in typical(entries(bath=9), 1)] == ["bath_0001-000004"]
    assert len(typical(entries(bath=2), 4)) == 2


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


def test_figure_has_the_variants_that_exist_and_names_the_others(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_index(write_shards(tmp_path / "shards", [5], split="test"), "test")
    adapters = {"apg": run, "fixed": tmp_path / "nowhere"}
    with caplog.at_level(logging.WARNING):
        path = draw(experiment(), adapters, {"test": index}, tmp_path / "figures" / "few.png")
    assert "fixed | 5$ is not drawn" in caplog.text
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        one = picture.size
    both = draw(experiment(), {"apg": run, "fixed": run / "adapter"}, {"test": index}, path)
    with Image.open(both) as picture:
        assert picture.width > 1.2 * one[0]  # one more column
        assert len(np.unique(np.asarray(picture)[..., :3])) > 10


def test_figure_of_several_tests_has_an_image_of_each(run: Path, tmp_path: Path) -> None:
    shards = write_shards(tmp_path / "shards", [5], split="test_bathroom", scene="bathroom_0001")
    write_shards(shards, [5], split="test_kitchen", scene="kitchen_0001")
    tests = {
        "bath": open_index(shards, "test_bathroom"),
        "kitchen": open_index(shards, "test_kitchen"),
    }
    two = draw(zero_shot(), {"trained": run}, tests, tmp_path / "two.png")
    with Image.open(two) as picture:
        height = picture.height
    one = draw(zero_shot(), {"trained": run}, {"bath": tests["bath"]}, tmp_path / "one.png")
    with Image.open(one) as picture:
        assert picture.height > 1.4 * height  # four of one test
