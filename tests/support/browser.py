"""A headless Chromium on MLflow's page: what a person does there to compare runs."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

SIZE = {"width": 1360, "height": 860}
WAIT_MS = 60_000  # for anything to appear, on a machine that does other work, too
COLOURS = 255  # of a picture that is kept
CHARTS = "experiment-view-compare-runs-card"
FIRST = "model/trainable"  # the metric that parallel coordinates open on: a run's first
# An assistant opens at the first visit and covers a quarter of the page: as if it had been there.
CLOSED = "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')"


@contextmanager
def browser() -> Iterator[Any]:
    """Debian's chromium, driven by Playwright; skips where either is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with api.sync_playwright() as playwright:
        # Root, as whom containers run, has no sandbox.
        started = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield started
        started.close()


def new_page(browser: Any) -> Any:
    """A page of a visitor who was never here: MLflow remembers what one has searched for."""
    page = browser.new_page(viewport=SIZE)
    page.set_default_timeout(WAIT_MS)
    page.add_init_script(CLOSED)
    return page


def chart(page: Any, metric: str) -> Any:
    """The chart of a metric, drawn, with no others around it."""
    search = page.get_by_placeholder("Search metric charts")
    search.fill(metric)
    found = page.get_by_test_id(CHARTS).filter(has_text=metric)
    found.locator(".scatterlayer .trace path.js-line").first.wait_for()
    return found


def compare_selected(page: Any, names: list[str]) -> None:
    """Tick runs in the list, and go to MLflow's comparison of them."""
    for name in names:
        row = page.get_by_role("row").filter(has_text=name)
        row.get_by_role("checkbox").first.check()
    page.get_by_role("button", name="Compare", exact=True).click()


def differing_parameters(page: Any) -> list[list[str]]:
    """The parameters that differ in MLflow's comparison, as rows of words."""
    header = page.get_by_role("button", name="Parameters")
    part = page.locator("div").filter(has=header).filter(has_text="Show diff only").last
    part.get_by_text("Show diff only").click()
    return [row.inner_text().split() for row in part.get_by_role("row").all()]


def add_images(page: Any, name: str, *, step: int) -> Any:
    """Add the images that runs have recorded under a name at a step, and fill the page with them.

    Returns the grid.
    """
    page.get_by_role("button", name="Add chart").first.click()
    page.get_by_role("menuitem", name="Image grid").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("combobox", name="Images").click()
    page.get_by_role("option", name=name).click()
    dialog.get_by_text("Show run parameters").click()
    dialog.get_by_role("button", name="Add chart").click()
    card = page.get_by_test_id(CHARTS).filter(has=page.get_by_role("slider"))
    card.locator("input").last.fill(f"{step}")
    card.locator("input").last.press("Tab")  # it takes a number when it is left
    card.locator("img").first.wait_for()
    card.get_by_role("button").first.click()
    return page.get_by_role("dialog")


def plot_against(page: Any, metric: str) -> Any:
    """The parallel coordinates of MLflow's comparison, against a metric of one's own choice."""
    asked = page.get_by_role("combobox").nth(1)
    shown = page.locator(".parcoords")
    shown.wait_for()
    asked.click()
    for name in (metric, FIRST):  # a name that is chosen already is taken back
        asked.fill(name)
        page.locator(f'[role=option][aria-label="{name}"]').wait_for(state="attached")
        asked.press("Enter")
    asked.press("Tab")
    return shown


def same_file(page: Any, name: str, *, runs: int) -> list[Any]:
    """The pictures of one file name in MLflow's comparison of runs, one of each."""
    page.get_by_text(name, exact=True).click()
    shown = page.locator("img[src^=blob]:visible")
    shown.nth(runs - 1).wait_for()
    return list(shown.all())


def width(image: Any) -> int:
    """Pixels across of a picture, once it is there."""
    found: int = image.evaluate("one => one.decode().then(() => one.naturalWidth)")
    return found


def keep(page: Any, path: Path) -> None:
    """A picture of the page as it is, in few colours: small."""
    page.screenshot(path=path)
    with Image.open(path) as picture:
        few = picture.convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
