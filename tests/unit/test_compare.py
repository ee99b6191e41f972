"""Runs compared on the same images: numbers, tables, the page."""

import base64
import re
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import pytest
import torch

from llm_mde.cli import main
from llm_mde.commands.studies import compare as command
from llm_mde.data.index import open_index
from llm_mde.errors import DataError
from llm_mde.inference.adapter import load
from llm_mde.inference.score import image_scores, score
from llm_mde.recipes import build
from llm_mde.scoring.bootstrap import Interval
from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.compare import PAGE, compare
from llm_mde.studies.comparison import Comparison, difference_grid, mean_grid, settings_grid
from llm_mde.studies.grid import Cell, columns, folded, grid, hypertext
from llm_mde.studies.runs import Member, given
from llm_mde.training.folder import claim
from tests.support.adapters import save, settings, trained
from tests.support.shards import write_shards


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two runs of one model, the second of which sees everything further away, and its copy."""
    folder = tmp_path_factory.mktemp("compare")
    write_shards(folder / "shards", [3])
    write_shards(folder / "shards", [4, 3], split="val")
    model = trained(settings("lora", "frozen"))
    for name in ("near", "far", "copy"):
        if name == "far":
            with torch.no_grad():
                model.head.logit.bias += 0.5
        tree = {
            "name": name,
            "runs": str(folder / "runs"),
            "optim": {"lr": 2e-5 + 1e-5 * len(name)},
        }
        tree |= {"data": {"shards": str(folder / "shards")}, "model": model.config.model_dump()}
        config = build(tree)
        claim(config, {}, resume="auto")
        save(model, config.run_dir / "adapter")
    return folder


def test_means_of_images_are_the_scores_of_the_split(place: Path) -> None:
    index = open_index(str(place / "shards"), "val")
    run = place / "runs" / "near"
    found = list(image_scores(load(run), index, max_depth=10.0, batch=3))
    whole = score(run, index, train_index=index, batch=8)
    assert whole is not None and [one.key for one in found] == [e.key for e in index.entries]
    for protocol in PROTOCOLS:
        for metric in METRICS:
            values = [one.scores[protocol][metric] for one in found if one.scores]
            want = whole.result.means[f"{protocol}/{metric}"]
            assert np.mean(values) == pytest.approx(want, rel=1e-12)


@pytest.fixture(scope="module")
def made(place: Path) -> tuple[Comparison, list[Path]]:
    members = given([place / "runs" / name for name in ("near", "far", "copy")])
    index = open_index(str(place / "shards"), "val")
    return compare(
        members, index, out=place / "out", batch=4, ranked=False, notes=["seen"], progress=None
    )


def test_a_run_does_not_differ_from_its_copy(made: tuple[Comparison, list[Path]]) -> None:
    for table in made[0].differences.values():
        for found in table.values():
            assert found[0] == (0, 0, 0) and found[2] == found[1]


def test_a_difference_is_that_of_the_means(made: tuple[Comparison, list[Path]]) -> None:
    for protocol, table in made[0].differences.items():
        for metric, found in table.items():
            first, second, _ = (one.mean for one in made[0].means[protocol][metric])
            assert found[1].mean == pytest.approx(second - first, abs=1e-9)
            assert found[1].low <= found[1].mean <= found[1].high


def test_the_best_comes_first_where_that_is_asked(place: Path) -> None:
    members = given([place / "runs" / name for name in ("near", "far")])
    index = open_index(str(place / "shards"), "val")
    got, _ = compare(members, index, out=place / "best", batch=4, ranked=True, notes=[])
    abs_rel = [one.mean for one in got.means["metric"]["abs_rel"]]
    assert abs_rel == sorted(abs_rel)
    assert all(one.mean >= 0 for one in got.differences["metric"]["abs_rel"])


def test_no_image_is_scored_where_nothing_can_be_written(place: Path) -> None:
    (place / "taken").write_text("a file\n")
    index = open_index(str(place / "shards"), "val")
    members = given([place / "runs" / name for name in ("near", "far")])
    with pytest.raises(DataError, match="taken: no folder can be made there"):
        compare(
            members, index, out=place / "taken", batch=4, ranked=False, notes=[],
            progress=lambda *_: pytest.fail("an image was scored"),
        )  # fmt: skip


def test_the_page_holds_its_pictures_and_needs_no_other_file(
    made: tuple[Comparison, list[Path]],
) -> None:
    page, sheet = made[1]
    text = page.read_text()
    sources = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(sources) == 1 and "http" not in text
    kind, _, data = sources[0].partition(",")
    assert kind == "data:image/png;base64" and base64.b64decode(data) == sheet.read_bytes()
    assert all(f">{word}<" in text for word in ("near", "far", "copy", "optim.lr"))
    assert "seen" in text and page.name == PAGE


def member(title: str, **settings: object) -> Member:
    return Member(
        title, Path("runs") / title, {k.replace("__", "."): v for k, v in settings.items()}
    )


def by_hand(number: int) -> Comparison:
    titles = [f"a-run-with-a-long-name-{at}" for at in range(number)]
    table = {
        metric: [Interval(0.1 * at, 0.1 * at - 0.15, 0.1 * at + 0.15) for at in range(number)]
        for metric in METRICS
    }
    groups = dict.fromkeys(PROTOCOLS, table)
    return Comparison(
        members=[member(title, optim__lr=1e-5 * at) for at, title in enumerate(titles)],
        shards="/a/folder",
        split="val",
        images=5,
        scenes=2,
        max_depth=10.0,
        means=groups,
        differences=groups,
        notes=["word " * 60],
    )


@pytest.mark.parametrize("number", [2, 3, 12])
def test_terminal_lines_are_under_120_wide_and_lose_nothing(number: int) -> None:
    made = by_hand(number)
    lines = made.lines("metric")
    assert max(map(len, lines)) < 120
    text = "\n".join(lines)
    for metric in METRICS:
        assert len(re.findall(rf"\b{metric}\b(?: \[m\])? [↑↓]", text)) == 2  # means and differences
    assert text.count("+0.1000 [-0.0500, +0.2500]") == len(METRICS)


def test_a_difference_is_marked_where_its_interval_leaves_out_zero() -> None:
    rows = difference_grid(by_hand(4), "metric").rows
    assert [row[0].text[-1] for row in rows] == ["1", "2", "3"]
    assert [{cell.bold for cell in row[1:]} for row in rows] == [{False}, {True}, {True}]


def test_the_best_mean_is_the_least_error_and_the_greatest_delta() -> None:
    first, second = mean_grid(by_hand(2), "metric", bounds=False).rows
    best = {name: at for at, row in enumerate((first, second)) for name, cell in
            zip(METRICS, row[1:], strict=True) if cell.bold}  # fmt: skip
    assert best == {name: int(name.startswith("delta")) for name in METRICS}


def test_settings_stand_in_rows_or_in_columns_whichever_are_fewer() -> None:
    two = [member("a", x=1, y=None, z="s"), member("b", x=2, y=[3, 4], z="s")]
    assert [[cell.text for cell in row] for row in settings_grid(two).rows] == [
        ["x", "1", "2"],
        ["y", "–", "[3, 4]"],
    ]
    three = [*two, member("c", x=3, y=None, z="s")]
    assert settings_grid(three).head == ("", "x", "y")
    assert [[cell.text for cell in row] for row in settings_grid(three).rows] == [
        ["a", "1", "–"],
        ["b", "2", "[3, 4]"],
        ["c", "3", "–"],
    ]


def test_a_wide_table_is_folded_and_every_column_is_there_once() -> None:
    head = ["row", *(f"column{at}" for at in range(11))]
    table = grid(head, [[Cell("x" * 10), *(Cell(f"{at}.25") for at in range(11))]])
    parts = folded(table, width=50)
    assert [name for part in parts for name in part.head[1:]] == head[1:]
    assert all(part.head[0] == "row" and part.rows[0][0].text == "x" * 10 for part in parts)
    assert all(len(line) <= 50 for part in parts for line in columns(part, width=50))
    assert folded(table, width=200) == [table]
    assert len(folded(table, width=1)) == 11


def test_cells_of_the_page_are_text_not_markup() -> None:
    lines = hypertext(grid(["", "<b>"], [[Cell("a & b"), Cell("1 < 2", bold=True)]]))
    assert lines[1:3] == [
        '<tr><th></th><th class="n">&lt;b&gt;</th></tr>',
        '<tr><td>a &amp; b</td><td class="n"><b>1 &lt; 2</b></td></tr>',
    ]


def test_protocols_of_the_command_are_all_there_are() -> None:
    assert get_args(get_type_hints(command)["protocol"]) == tuple(PROTOCOLS)


def test_the_command_wants_runs_or_a_sweep(capfd: pytest.CaptureFixture[str], place: Path) -> None:
    assert main(["compare"]) == 2
    assert main(["compare", str(place / "runs" / "near"), "--sweep", "lr"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2 and all("either run folders or --sweep NAME" in line for line in said)
    assert main(["compare", str(place / "runs" / "near")]) == 2
    assert "expected two runs or more, got 1" in capfd.readouterr().err
