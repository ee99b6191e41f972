"""A sweep on a Ray cluster of two nodes, one of which is lost in the middle."""

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

from llm_mde.studies.share import Share
from llm_mde.studies.sweep import run_sweep
from llm_mde.studies.sweep_plan import Sweep
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from tests.support.shards import write_shards
from tests.support.sweep import plan_space

STEPS = 30
BASE = f"""
model:
  image_size: [32, 48]
  vit: {{name: "random:tiny:0", tune: lora}}
  llm: {{name: "random:tiny:0", tune: frozen}}
  reprogram: {{prototypes: 8}}
  head: {{widths: [16, 16, 8, 8]}}
data: {{shards: PLACE/shards, workers: 0}}
runs: PLACE/runs
train: {{batch: 2, max_steps: {STEPS}, eval_every: 5, save_steps: 2, log_every: 1, figures: 0}}
tracking: {{mlflow: false}}
"""
# The same twice: whichever is lost must end as the other one.
SPACE = "name: twins\ntrials: {castor: {optim.lr: 1.0e-3}, pollux: {optim.lr: 1.0e-3}}\n"


@pytest.fixture
def cluster() -> Iterator[Cluster]:
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    yield made
    ray.shutdown()
    made.shutdown()


def test_trials_of_a_lost_node_go_on_from_their_checkpoints(
    cluster: Cluster, tmp_path: Path
) -> None:
    write_shards(tmp_path / "shards", [4])
    write_shards(tmp_path / "shards", [2], split="val")
    (tmp_path / "base.yaml").write_text(BASE.replace("PLACE", str(tmp_path)))
    (tmp_path / "space.yaml").write_text(SPACE)
    sweep = plan_space(tmp_path)
    second = cluster.add_node(num_cpus=1)
    lost_at: dict[str, int] = {}

    def lose() -> None:
        deadline = time.monotonic() + 300
        while len(lost_at) < 2 and time.monotonic() < deadline:
            for name in ("castor", "pollux"):
                with contextlib.suppress(OSError, ValueError):
                    lost_at[name] = _saved(sweep, name)
            time.sleep(0.1)
        lost_at.update({name: _saved(sweep, name) for name in lost_at})
        cluster.remove_node(second, allow_graceful=False)

    killer = threading.Thread(target=lose)
    killer.start()
    board = run_sweep(sweep, share=Share(), address=cluster.address, about={}).board
    killer.join()

    assert [row.error for row in board.rows] == [None, None]
    runs = {row.trial: read_metrics(row.run / METRICS_FILE) for row in board.rows}
    assert len(lost_at) == 2 and max(lost_at.values()) < STEPS
    for rows in runs.values():
        steps = [row["step"] for row in rows if "train/loss" in row]
        assert steps == list(range(1, STEPS + 1))
    losses = [[row.get("train/loss") for row in rows] for rows in runs.values()]
    assert losses[0] == losses[1]
    logs = [(sweep.folder / f"{name}.log").read_text() for name in runs]
    assert sorted("resuming from" in log for log in logs) == [False, True]


def _saved(sweep: Sweep, name: str) -> int:
    """Step of a trial's newest checkpoint."""
    last = sweep.config.runs / f"twins-{name}" / "checkpoints" / "last"
    return int(last.read_text().strip().removeprefix("step-"))
