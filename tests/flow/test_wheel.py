"""The wheel alone, outside the clone: the command, the shipped recipes, the small demo."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from llm_mde.recipes import PACKAGE, shipped
from llm_mde.studies.space import read_space, trial_configs

ROOT = PACKAGE.parent


def python(words: list[object], cwd: Path, installed: Path) -> str:
    """Stdout of this interpreter with the installed wheel before everything else."""
    own = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", folder, ROOT], capture_output=True, text=True
    )
    if "Could not find a version that satisfies the requirement hatchling" in built.stderr:
        pytest.skip("building a wheel needs hatchling, and no package index can be reached")
    assert built.returncode == 0, built.stdout + built.stderr
    (path,) = folder.glob("llm_mde-*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("installed")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--no-deps", "--target", folder, wheel], check=True)
    return folder


def test_wheel_holds_the_library_and_the_recipes_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    roots = {name.partition("/")[0] for name in names}
    assert {root for root in roots if not root.endswith(".dist-info")} == {"llm_mde"}
    recipes = {name.removeprefix("llm_mde/shipped/") for name in names if "/shipped/" in name}
    assert {
        "launch/nyu.yaml",
        "launch/train.py",
        "launch/ds/zero3.json",
        "tune/sweep.py",
    } <= recipes
    assert {"shards/README.md", "shards/pack_nyu.py"} <= recipes
    assert "llm_mde/model/words.txt" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".tmp")]


def test_installed_command_runs_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    assert python(["-m", "llm_mde", "--help"], tmp_path, installed).startswith("Usage: llm-mde")
    code = "from llm_mde.recipes import shipped; print(shipped('launch/nyu.yaml'))"
    found = Path(python(["-c", code], tmp_path, installed).strip())
    assert found == installed / "llm_mde" / "shipped" / "launch" / "nyu.yaml"
    assert found.read_text() == (ROOT / "launch" / "nyu.yaml").read_text()


@pytest.fixture(scope="module")
def demo(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of a small demo and what it printed: every step, on a few frames and steps."""
    place = tmp_path_factory.mktemp("demo")
    said = python(["-m", "llm_mde", "demo", "--out", "demo", "--small"], place, installed)
    return place / "demo", said


def test_installed_wheel_runs_the_small_demo(demo: tuple[Path, str]) -> None:
    folder, said = demo
    for word in (
        "model",
        "mean-depth map",
        "constant",
        "abs_rel",
        " predict ",
        " ui --uri",
    ):
        assert word in said
    scores = json.loads((folder / "scores.json").read_text())
    assert scores["images"] == 2 and scores["scores"]["test_mean_map/abs_rel"] > 0
    depth = Image.open(folder / "prediction" / "image_depth_mm.png")
    assert depth.size == (640, 480)
    assert (folder / "learning_curve.png").stat().st_size > 10_000
    rows = [json.loads(line) for line in (folder / "runs/demo/metrics.jsonl").open()]
    assert [row["step"] for row in rows if "train/loss" in row] == [2, 4]


def test_table5_fits_the_demos_model(demo: tuple[Path, str]) -> None:
    space = read_space(shipped("tune/spaces/table5.yaml"))
    configs = trial_configs(space, demo[0] / "sweep.yaml", tiny=True, sets=[])
    assert len(configs) == 8
    for config in configs.values():
        assert config.model.vit.tune == config.model.llm.tune == "lora"
        assert Path(config.model.vit.name, "config.json").is_file()
