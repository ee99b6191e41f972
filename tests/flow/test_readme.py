"""The commands of the README, run as they stand there on small generated shards.

Only what would need the full data is made small, by words added behind a command: tiny random
backbones instead of the hub's, one step instead of fifty epochs. `make test` is not run from inside
itself, `make demo` is `llm-mde demo`, and sweeps have tests of their own.
"""

import os
import shlex
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from llm_mde.recipes import PACKAGE
from tests.support.mat import write as write_mat
from tests.support.shards import write_shards

ROOT = PACKAGE.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
TINY = [
    "model.image_size=[32,48]",
    "model.vit.name=random:tiny:0",
    "model.llm.name=random:tiny:0",
    "model.reprogram.prototypes=8",
    "model.head.widths=[16,16,8,8]",
    "train.batch=2",
    "train.max_steps=1",
    "data.workers=0",
]


def block(language: str) -> str:
    return README.split(f"```{language}\n")[1].split("```")[0]


def commands() -> dict[str, list[str]]:
    """First words of a command, and --dry-run where it has it -> its words."""
    lines = [line for line in block("bash").splitlines() if line and not line.startswith("#")]
    split = [shlex.split(line) for line in lines]
    return {" ".join(words[:2] + [w for w in words if w == "--dry-run"]): words for words in split}


def run(words: list[str], place: Path) -> str:
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    env["PATH"] = f"{Path(sys.executable).parent}:{env['PATH']}"
    values = {"$NYU": "raw", "$SHARDS": "shards", "$IMAGE": "room.jpg", "$LABELED": "labeled.mat"}
    for variable, value in values.items():
        words = [word.replace(variable, value) for word in words]
    done = subprocess.run(words, cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{shlex.join(words)}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    write_shards(folder / "shards", [4])
    write_shards(folder / "shards", [2], split="val")
    write_shards(folder / "shards", [1], split="test")
    for name in ("launch", "tune"):
        (folder / name).symlink_to(ROOT / name)
    Image.new("RGB", (64, 48), (90, 120, 60)).save(folder / "room.jpg")
    return folder


def test_pack_reads_generated_scenes_and_the_labelled_file(place: Path) -> None:
    run(["llm-mde", "synth", "raw", "--scenes", "3", "--frames", "1"], place)
    write_mat(place / "labeled.mat")
    said = {
        name: run([word.replace("$SHARDS", "packed") for word in commands()[name]], place)
        for name in ("llm-mde pack --dry-run", "llm-mde pack", "llm-mde verify", "llm-mde inspect")
    }
    assert "would pack 8 frames" in said["llm-mde pack --dry-run"]
    assert "packed 8 samples" in said["llm-mde pack"] and "test 2" in said["llm-mde pack"]
    assert "no problems; decoded 8 samples" in said["llm-mde verify"]
    picture = said["llm-mde inspect"].partition("picture: ")[2].strip()
    assert Image.open(place / picture).width > 640


def test_train_eval_predict_one_after_the_other(place: Path) -> None:
    words = commands()["deepspeed launch/train.py"]
    assert words[words.index("--config") + 1] == "launch/nyu.yaml"
    small = [word for setting in TINY for word in ("--set", setting)]
    said = run(["deepspeed", "--num_accelerators", "1", *words[1:], *small], place)
    assert "val loss" in said and "abs_rel" in said
    assert "baselines of train" in run(commands()["llm-mde eval"], place)
    run(commands()["llm-mde predict"], place)
    depth = Image.open(place / "depth" / "room_depth_mm.png")
    assert depth.size == (64, 48) and depth.mode in ("I;16", "I")


def test_experiments_are_planned_and_refused_where_shards_lack_a_list(place: Path) -> None:
    words = commands()["llm-mde experiment --dry-run"]
    assert [w for w in words if w != "--dry-run"] == commands()["llm-mde experiment"]
    prompts = ["prompts" if word == "all" else word for word in words]
    said = run([*prompts, "--set", "train.batch=2"], place)
    assert said.count("apg") == said.count("fixed") == 3 and "tests: test (1 images)" in said
    done = subprocess.run(
        [word.replace("$SHARDS", "shards") for word in words],
        cwd=place,
        capture_output=True,
        text=True,
        env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert done.returncode == 2 and "needs the key list few-shot-1" in done.stderr


def test_a_sweep_says_what_it_would_run(place: Path) -> None:
    """To run it is another test's; both lines take the same words."""
    words = commands()["llm-mde sweep --dry-run"]
    script, *others = commands()["python tune/sweep.py"][1:]
    assert (ROOT / script).is_file() and others == words[2:-1]
    said = run([*words, *(word for one in TINY for word in ("--set", one))], place)
    assert "16 trials" in said and "steps 1  to do" in said and "about " in said


def test_compare_takes_runs_as_it_stands_there(place: Path) -> None:
    words = commands()["llm-mde compare"]
    trained, other = (place / word for word in words if word.startswith("runs/"))
    shutil.copytree(trained, other)  # after `train`: as if trained again at another rate
    settings = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(settings.replace("  lr: 2.0e-05", "  lr: 0.0001"))
    said = run(words, place)
    assert "optim.lr" in said and "+0.0000 [+0.0000, +0.0000]" in said
    assert (place / "comparison" / "comparison.html").is_file()


def test_ui_serves_the_store_of_a_run_until_it_is_ended(place: Path) -> None:
    page = subprocess.Popen(
        [sys.executable, "-m", "llm_mde", *commands()["llm-mde ui"][1:]],
        cwd=place,
        env={name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert page.stdout is not None
        url = page.stdout.readline().split()[-1]
        with urllib.request.urlopen(url, timeout=60) as answer:
            assert b"MLflow" in answer.read()
    finally:
        page.terminate()
        page.communicate()
    assert page.returncode == 130


def test_the_tree_names_folders_that_exist() -> None:
    tree = README.split("## Where things are")[1].split("## ")[0]
    names = [line.split()[0] for line in tree.splitlines() if line.startswith("    ")]
    top = {"llm_mde/", "launch/", "tune/", "shards/", "tests/", "benchmarks/", "docs/"}
    rooms = [name for name in names if name not in top]
    assert top <= set(names) and all((PACKAGE / name).is_dir() for name in rooms)


def test_the_python_lines_compile() -> None:
    compile(block("python"), "README.md", "exec")
