"""Whole commands on a GPU: training by the launcher, scores, depths, a sweep, too little memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.launcher import free_port
from llm_mde.recipes import PACKAGE
from llm_mde.studies.share import Share
from llm_mde.studies.sweep import run_sweep
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from tests.conftest import ON_CPU
from tests.support.shards import write_shards
from tests.support.sweep import plan_space, write_place

pytestmark = pytest.mark.gpu
ROOT = PACKAGE.parent
STEPS = 40
SPACE = """
name: four
common: {train.batch: 2}
trials:
  a: {model.vit.lora.r: 2}
  b: {model.vit.lora.r: 4}
  c: {model.vit.lora.r: 8}
  d: {train.micro_batch: 1}
"""


def start(words: list[object], cwd: Path, *, code: int = 0, **extra: str) -> str:
    """What a command says on stderr; stdout where it is asked for JSON."""
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | extra,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout if "--json" in words else done.stderr


def devices(run: Path) -> str:
    """What a run says it trained on."""
    return str(json.loads((run / "environment.json").read_text())["devices"])


def settings(shards: Path, *more: str) -> list[object]:
    sets = [f"data.shards={shards}", "data.workers=2", "tracking.mlflow=false", *more]
    recipe = ["--ds_config", ROOT / "launch/ds/zero1.json", "--config", ROOT / "launch/demo.yaml"]
    return [*recipe, *(word for one in sets for word in ("--set", one))]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with shards and a run trained on the GPU."""
    folder = tmp_path_factory.mktemp("commands")
    write_shards(folder / "shards", [16, 16], size=(120, 160))
    write_shards(folder / "shards", [6], split="val", size=(120, 160))
    launcher = ["-m", "deepspeed.launcher.runner", "--num_gpus", 1, "--master_port", free_port()]
    short = (f"train.max_steps={STEPS}", "train.log_every=10", "train.eval_every=20")
    said = start(
        [*launcher, ROOT / "launch/train.py", *settings(folder / "shards", *short)], folder
    )
    assert "ZeRO 1, bf16 | 1 ranks on cuda" in said
    return folder


def test_deepspeed_trains_on_it_and_the_record_says_so(place: Path) -> None:
    rows = read_metrics(place / "runs/demo" / METRICS_FILE)
    train = [row for row in rows if "train/loss" in row]
    assert [row["step"] for row in train] == [10, 20, 30, 40]
    assert train[-1]["train/loss"] < train[0]["train/loss"]
    assert all(0 < row["train/memory_gb"] < 1 for row in train)
    assert devices(place / "runs/demo").startswith("1 x cuda")


def test_scores_and_depths_are_those_of_the_cpu(place: Path) -> None:
    words = ["-m", "llm_mde", "eval", "runs/demo", "--shards", "shards", "--split", "val", "--json"]
    there, here = (json.loads(start(words, place, **env))["scores"] for env in ({}, ON_CPU))
    recorded = read_metrics(place / "runs/demo" / METRICS_FILE)
    best = min(row["val/abs_rel"] for row in recorded if "val/abs_rel" in row)
    print({name: (there[name], here[name]) for name in ("val/abs_rel", "val/rmse")}, best)
    for name, value in here.items():
        assert there[name] == pytest.approx(value, rel=5e-3, abs=1e-3), name
    assert there["val/abs_rel"] == pytest.approx(best, rel=0.02)  # there in bf16
    generator = np.random.default_rng(0)
    coarse = generator.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((160, 120)).save(place / "room.png")
    depths = []
    for out, env in (("there", {}), ("here", ON_CPU)):
        words = ["-m", "llm_mde", "predict", "room.png", "--adapter", "runs/demo", "--out", out]
        start(words, place, **env)
        depths.append(np.asarray(Image.open(place / out / "room_depth_mm.png")).astype(float))
    print("depths apart", np.abs(depths[0] / depths[1] - 1).max())
    assert np.abs(depths[0] / depths[1] - 1).max() < 5e-3


def test_a_batch_too_large_for_it_is_a_mistake_before_the_first_step(place: Path) -> None:
    base = ("model.vit.name=random:base:0", "model.llm.name=random:base:0", "name=large")
    sizes = ("model.image_size=[224,224]", "train.batch=2048", "data.workers=0")
    words = ["-m", "llm_mde", "train", *settings(place / "shards", *base, *sizes)]
    write_shards(place / "many", [2048], size=(8, 10))
    write_shards(place / "many", [2], split="val", size=(8, 10))
    words[words.index(f"data.shards={place / 'shards'}")] = f"data.shards={place / 'many'}"
    said = start(words, place, code=2)
    assert "but the GPU has" in said and "lower train.micro_batch" in said
    assert "Traceback" not in said


def test_a_step_that_does_not_fit_ends_the_run_with_what_to_do(place: Path) -> None:
    limit = {"PYTORCH_ALLOC_CONF": "per_process_memory_fraction:0.001"}  # 0.08 to 0.14 GB
    words = ["-m", "llm_mde", "train", *settings(place / "shards", "name=full", "train.batch=32")]
    said = start(words, place, code=2, **limit)
    assert "out of memory" in said and "; lower train.micro_batch" in said
    assert "Traceback" not in said


def test_trials_share_it_by_fractions(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    place = write_place(tmp_path, SPACE, val=2)
    board = run_sweep(plan_space(place), share=Share(gpus=0.5), about={}).board
    assert [row.error for row in board.rows] == [None] * 4
    for row in board.rows:
        run = place / "runs" / f"four-{row.trial}"
        assert devices(run).startswith("1 x cuda")
        logged = [line for line in read_metrics(run / METRICS_FILE) if "train/loss" in line]
        assert logged and all(line["train/memory_gb"] < 0.5 for line in logged)
