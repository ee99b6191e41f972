"""Takes the README's pictures of MLflow's page: the charts, trials and images of the last sweep.

    python -m docs.screenshots --uri sqlite:///demo/mlflow.db --step 16

`step` is one at which every trial has drawn its samples. Needs Debian's chromium and the package
playwright. Those that are kept are of a sweep on the demo's model, `llm-mde sweep --space FILE
--config demo/sweep.yaml --set data.train_split=few-shot-all --set train.batch=6 --set
train.epochs=8 --set train.figures=3`; its four trials have optim.lr 2e-5 or 1e-4 and
model.vit.lora.r 2 or 16.
"""

import argparse
from pathlib import Path
from typing import Any

from llm_mde.tracking.ui import Page, show
from tests.support.browser import add_images, browser, chart, keep, new_page, plot_against

HERE = Path(__file__).parent


def main() -> None:
    """Start the page, take the pictures, end it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--uri", help="MLflow store; default: as `llm-mde ui`")
    parser.add_argument("--experiment", default="llm-mde")
    parser.add_argument("--step", type=int, required=True, help="of the images")
    asked = parser.parse_args()

    def take(page: Page) -> None:
        _, charts, trials = page.links.values()
        with browser() as started:
            _charts(new_page(started), charts)
            _trials(new_page(started), trials)
            _pictures(new_page(started), charts, step=asked.step)
        raise KeyboardInterrupt

    try:
        show(asked.uri, experiment=asked.experiment, port=None, announce=take)
    except KeyboardInterrupt:
        return


def _charts(page: Any, link: str) -> None:
    page.goto(link)
    chart(page, "val/abs_rel")
    page.get_by_placeholder("Search metric charts").fill("abs_rel|rmse|delta1")
    page.wait_for_timeout(5000)  # charts fade in
    keep(page, HERE / "charts.png")


def _trials(page: Any, link: str) -> None:
    page.goto(link)
    plot_against(page, "val/abs_rel")
    page.wait_for_timeout(2000)
    keep(page, HERE / "trials.png")


def _pictures(page: Any, link: str, *, step: int) -> None:
    page.set_viewport_size({"width": 1360, "height": 560})
    page.goto(link)
    add_images(page, "val", step=step)
    page.wait_for_timeout(3000)
    keep(page, HERE / "pictures.png")


if __name__ == "__main__":
    main()
