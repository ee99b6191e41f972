"""A real sweep compared: by `llm-mde compare`, and in a real browser on MLflow's page.

The browser is Debian's chromium, driven by Playwright; where one is missing its tests say so.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from llm_mde.cli import main
from llm_mde.inference.card import provenance_of
from llm_mde.studies.board import Leaderboard
from llm_mde.studies.programs import SCORE, evaluations
from tests.support.browser import (
    add_images,
    browser,
    chart,
    compare_selected,
    differing_parameters,
    new_page,
    plot_against,
    same_file,
    width,
)
from tests.support.sweep import run_space, write_place

SPACE = """
name: pair
common: {train.batch: 2, train.epochs: 2, train.figures: 1, optim.lr: 1.0e-3}
trials:
  small: {model.vit.lora.r: 2, model.vit.lora.alpha: 4}
  large: {model.vit.lora.r: 8, model.vit.lora.alpha: 16}
"""
LAST_STEP = 4  # two epochs of four samples
DIFFER = {"model.vit.lora.r": ("2", "8"), "model.vit.lora.alpha": ("4.0", "16.0")}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("comparison"), SPACE, val=3)


@pytest.fixture(scope="module")
def board(place: Path) -> Leaderboard:
    return run_space(place)


def by_last_score(board: Leaderboard) -> list[Path]:
    return sorted(
        (row.run for row in board.rows), key=lambda run: list(evaluations(run))[-1][SCORE]
    )


def test_compare_scores_the_trials_anew_and_finds_what_their_training_found(
    board: Leaderboard, place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--sweep", "pair", "--runs", str(place / "runs"), "--out", str(place / "out")]
    assert main(["compare", *words, "--json"]) == 0
    said = json.loads(capfd.readouterr().out)
    assert said["images"] == 3 and said["split"] == "val"
    assert {path: set(values.values()) for path, values in said["settings"].items()} == {
        "model.vit.lora.r": {2, 8},
        "model.vit.lora.alpha": {4.0, 16.0},
    }
    for trial in ("small", "large"):
        trained = provenance_of(place / "runs" / f"pair-{trial}" / "adapter").scores
        for metric in ("abs_rel", "rmse", "delta1"):
            mean, low, high = said["means"][trial][f"metric/{metric}"]
            assert low <= mean <= high
            assert mean == pytest.approx(trained[f"val/{metric}"], rel=1e-4)
    first, second = said["runs"]
    abs_rel = [said["means"][trial]["metric/abs_rel"][0] for trial in (first, second)]
    assert abs_rel == sorted(abs_rel)
    difference = said["differences"][second]["metric/abs_rel"][0]
    assert difference == pytest.approx(abs_rel[1] - abs_rel[0], abs=1e-9)
    assert [Path(path).is_file() for path in said["files"]] == [True, True]


@dataclass(frozen=True)
class Served:
    """A running `llm-mde ui`."""

    program: "subprocess.Popen[str]"
    links: list[str]
    """All runs, the last sweep, its trials side by side."""


@pytest.fixture(scope="module")
def ui(board: Leaderboard, place: Path) -> Iterator[Served]:
    words = ["ui", "--uri", f"sqlite:///{place}/mlflow.db", "--json"]
    program = subprocess.Popen(
        [sys.executable, "-m", "llm_mde", *words],
        cwd=place,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Tests that run in the background ignore Ctrl-C, and so would their programs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert program.stdout is not None
        said = json.loads(program.stdout.readline())
        yield Served(program, list(said["links"].values()))
    finally:
        program.terminate()
        program.communicate()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with browser() as started:
        yield started


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    opened = new_page(chromium)
    yield opened
    opened.close()


def test_the_charts_of_all_runs_show_training_runs_by_their_last_score(
    page: Any, ui: Served, board: Leaderboard
) -> None:
    page.goto(ui.links[0])
    page.get_by_role("link", name="pair", exact=True).wait_for()  # the sweep's own run, last
    names = [link.inner_text() for link in page.get_by_role("row").get_by_role("link").all()]
    assert names == [*(run.name for run in by_last_score(board)), "pair"]


def test_the_last_sweep_has_a_line_of_each_trial_in_a_chart(page: Any, ui: Served) -> None:
    page.goto(ui.links[1])
    drawn = chart(page, "val/abs_rel")
    assert drawn.locator(".scatterlayer path.js-line").count() >= 2
    said = drawn.inner_text()
    assert "pair-small (val/abs_rel)" in said and "pair-large (val/abs_rel)" in said
    assert page.get_by_role("link", name="pair", exact=True).count() == 0


def test_pictures_of_the_trials_stand_side_by_side(page: Any, ui: Served) -> None:
    page.goto(ui.links[1])
    grid = add_images(page, "val", step=LAST_STEP)
    shown = grid.locator("img")
    assert shown.count() == 2
    assert min(width(image) for image in shown.all()) > 100
    assert {"pair-small", "pair-large"} <= set(grid.inner_text().split())


def test_selected_runs_are_compared(page: Any, ui: Served) -> None:
    page.goto(ui.links[1])
    compare_selected(page, ["pair-small", "pair-large"])
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    assert "compare-runs" in page.url


def test_the_trials_side_by_side_show_what_differs(
    page: Any, ui: Served, board: Leaderboard
) -> None:
    page.goto(ui.links[2])
    page.get_by_text("Comparing 2 Runs from 1 Experiment").wait_for()
    plot = plot_against(page, SCORE)
    plot.get_by_text(SCORE).wait_for()
    assert "model.vit.lora.r" in plot.text_content()
    found = differing_parameters(page)
    large_first = by_last_score(board)[0].name == "pair-large"
    for path, values in DIFFER.items():
        assert [path, *(reversed(values) if large_first else values)] in found
    assert {row[0] for row in found} == {*DIFFER}
    assert page.get_by_role("link", name="val/abs_rel").count() == 1
    pictures = same_file(page, "val.png", runs=2)
    assert len(pictures) == 2 and min(width(one) for one in pictures) > 100


def test_ctrl_c_ends_the_page_and_all_its_processes(ui: Served) -> None:
    """Last: the page is gone."""
    started = psutil.Process(ui.program.pid).children(recursive=True)
    assert len(started) >= 2  # the server and its worker
    ui.program.send_signal(signal.SIGINT)
    said = ui.program.communicate(timeout=60)
    assert ui.program.returncode == 130
    assert said == ("", "llm-mde ui: interrupted\n")
    assert psutil.wait_procs(started, timeout=10)[1] == []
