"""`llm-mde demo --small`: every step of the demo, on a few frames and steps."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from llm_mde.recipes import shipped
from llm_mde.studies.space import read_space, trial_configs


def small_demo(place: Path) -> str:
    env = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    words = [sys.executable, "-m", "llm_mde", "demo", "--out", "demo", "--small"]
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    place = tmp_path_factory.mktemp("demo")
    return place, small_demo(place)


def test_the_demo_ends_with_scores_baselines_pictures_and_next_commands(
    said: tuple[Path, str],
) -> None:
    place, text = said
    for word in ("model", "mean-depth map", "constant", "abs_rel", "llm-mde predict", "mlflow ui"):
        assert word in text
    scores = json.loads((place / "demo" / "scores.json").read_text())
    assert scores["images"] == 2 and scores["scores"]["test_mean_map/abs_rel"] > 0
    depth = Image.open(place / "demo" / "prediction" / "image_depth_mm.png")
    assert depth.size == (640, 480)
    assert (place / "demo" / "learning_curve.png").stat().st_size > 10_000


def test_table5_fits_the_demos_model(said: tuple[Path, str]) -> None:
    base = said[0] / "demo" / "sweep.yaml"
    configs = trial_configs(
        read_space(shipped("tune/spaces/table5.yaml")), base, tiny=True, sets=[]
    )
    assert len(configs) == 8
    for config in configs.values():
        assert config.model.vit.tune == config.model.llm.tune == "lora"
        assert Path(config.model.vit.name, "config.json").is_file()
