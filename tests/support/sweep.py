"""A small sweep's base, and a sweep of a space."""

from pathlib import Path

from llm_mde.recipes import shipped
from llm_mde.studies.board import Leaderboard
from llm_mde.studies.share import Share
from llm_mde.studies.sweep import run_sweep
from llm_mde.studies.sweep_plan import Sweep, plan_sweep
from tests.support.shards import write_shards

BASE = """
model:
  image_size: [32, 48]
  vit: {{name: "random:tiny:0", tune: lora}}
  llm: {{name: "random:tiny:0", tune: lora}}
  reprogram: {{prototypes: 8}}
  head: {{widths: [16, 16, 8, 8]}}
data: {{shards: {place}/shards, workers: 0}}
runs: {place}/runs
train: {{epochs: 1, log_every: 1, figures: 0}}
tracking: {{uri: "sqlite:///{place}/mlflow.db"}}
"""


def write_place(folder: Path, space: str, *, val: int) -> Path:
    """A folder with shards of 4 and `val` samples, `base.yaml` and `space.yaml`."""
    write_shards(folder / "shards", [4])
    write_shards(folder / "shards", [val], split="val")
    (folder / "base.yaml").write_text(BASE.format(place=folder))
    (folder / "space.yaml").write_text(space)
    return folder


def plan_space(place: Path) -> Sweep:
    """The sweep of `space.yaml` from `base.yaml`."""
    return plan_sweep(
        place / "space.yaml",
        base=place / "base.yaml",
        tiny=False,
        sets=[],
        ds_config=shipped("launch/ds/zero1.json"),
        search={},
    )


def run_space(place: Path) -> Leaderboard:
    """Its board, once all trials have ended."""
    return run_sweep(plan_space(place), share=Share(), about={}).board
