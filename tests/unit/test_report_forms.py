"""The forms of a report: CSV, LaTeX, the terminal, the figure."""

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
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.grid import Cell, columns, escape_latex, grid, latex, markdown
from llm_mde.studies.paper import PAPER_UNITS
from llm_mde.studies.report import draw, lines, typical
from tests.support.report import experiment, outcome, report, two_seeds, zero_shot
from tests.support.run import write_run
from tests.support.shards import write_shards


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
