"""The wheel alone, outside the clone: the command, the shipped recipes, a training run."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from llm_mde.recipes import PACKAGE
from tests.support.shards import write_shards

ROOT = PACKAGE.parent


def python(words: list[object], cwd: Path, installed: Path) -> str:
    """Stdout of this interpreter with the installed wheel before everything else."""
    own = {"PYTHONPATH": str(installed), "OMP_NUM_THREADS": "1"}
    cpu = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | own | cpu,
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
    shipped = {name.removeprefix("llm_mde/shipped/") for name in names if "/shipped/" in name}
    assert {
        "launch/nyu.yaml",
        "launch/train.py",
        "launch/ds/zero3.json",
        "tune/sweep.py",
    } <= shipped
    assert {"shards/README.md", "shards/pack_nyu.py"} <= shipped
    assert "llm_mde/model/words.txt" in names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".tmp")]


def test_installed_command_runs_outside_the_clone(installed: Path, tmp_path: Path) -> None:
    assert python(["-m", "llm_mde", "--help"], tmp_path, installed).startswith("Usage: llm-mde")
    code = "from llm_mde.recipes import shipped; print(shipped('launch/nyu.yaml'))"
    found = Path(python(["-c", code], tmp_path, installed).strip())
    assert found == installed / "llm_mde" / "shipped" / "launch" / "nyu.yaml"
    assert found.read_text() == (ROOT / "launch" / "nyu.yaml").read_text()


def test_installed_wheel_trains_by_its_own_recipes(installed: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", [4], split="train")
    write_shards(tmp_path / "shards", [2], split="val")
    words: list[object] = ["-m", "llm_mde", "train", "--config", "launch/demo.yaml"]
    words += ["--ds_config", "launch/ds/zero2.json"]
    for setting in (
        "data.shards=shards",
        "train.batch=2",
        "train.max_steps=2",
        "train.log_every=1",
        "train.figures=1",
        "tracking.mlflow=false",
    ):
        words += ["--set", setting]
    python(words, tmp_path, installed)
    run = tmp_path / "runs" / "demo"
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2]
    assert (run / "adapter" / "llm_mde.json").is_file()
