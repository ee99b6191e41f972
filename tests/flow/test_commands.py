"""The real commands as processes, on generated rooms: synth, pack, train, eval, predict."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.launcher import free_port
from llm_mde.recipes import PACKAGE

ROOT = PACKAGE.parent
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
STEPS = 3


def environment(**extra: str) -> dict[str, str]:
    """One OpenMP thread, or idle threads spin on the other ranks' cores."""
    kept = {key: value for key, value in os.environ.items() if key not in LAUNCHER_VARIABLES}
    return kept | {"OMP_NUM_THREADS": "1"} | extra


def start(
    words: list[object], cwd: Path, *, code: int = 0, **extra: str
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == code, f"{words}: exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def torchrun(ranks: int) -> list[object]:
    return ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]


def deepspeed(ranks: int) -> list[object]:
    port = free_port()
    return ["-m", "deepspeed.launcher.runner", "--num_accelerators", ranks, "--master_port", port]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder outside the clone, with raw rooms and shards."""
    folder = tmp_path_factory.mktemp("flow")
    start(["-m", "llm_mde", "synth", "raw", "--scenes", 4, "--frames", 4, "--jobs", 2], folder)
    script = ROOT / "shards" / "pack_nyu.py"
    done = start([script, "raw", "--out", "shards", "--shard-size", 4, "--json"], folder)
    samples = json.loads(done.stdout)["samples"]
    assert {split: samples[split] for split in ("train", "val", "test")} == {
        "train": 8,
        "val": 4,
        "test": 4,
    }
    return folder


def settings(name: str, **more: object) -> list[object]:
    """A few steps of the demo's model in runs/<name>."""
    values = {
        "name": name,
        "data.shards": "shards",
        "train.batch": 4,
        "train.micro_batch": 2,
        "train.max_steps": STEPS,
        "train.log_every": 1,
        "train.eval_every": 1,
        "train.figures": 1,
        "tracking.mlflow": "false",
    }
    words: list[object] = ["--ds_config", "launch/ds/zero1.json", "--config", "launch/demo.yaml"]
    for key, value in (values | {k.replace("__", "."): v for k, v in more.items()}).items():
        words += ["--set", f"{key}={value}"]
    return words


def numbers(run: Path) -> list[dict[str, float]]:
    """What must be equal between launchers: losses and scores, without clocks."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    chosen = [
        {key: row[key] for key in row if key == "step" or key.startswith(("train/loss", "val"))}
        for row in rows
    ]
    return [row for row in chosen if len(row) > 1]


SCRIPT = ROOT / "launch" / "train.py"


@pytest.fixture(scope="module")
def python_run(place: Path) -> Path:
    start([SCRIPT, *settings("python")], place)
    return place / "runs" / "python"


@pytest.fixture(scope="module")
def deepspeed_run(place: Path) -> Path:
    start([*deepspeed(2), SCRIPT, *settings("deepspeed")], place)
    return place / "runs" / "deepspeed"


def test_a_run_leaves_the_documented_folder(python_run: Path) -> None:
    names = {path.name for path in python_run.iterdir()}
    files = {"config.yaml", "ds.json", "metrics.jsonl", "status"}
    files |= {"tags.json", "legend.md", "environment.json"}
    assert files | {"checkpoints", "adapter", "figures"} == names
    assert {path.name for path in (python_run / "adapter").iterdir()} == {
        "README.md",
        "head.safetensors",
        "llm",
        "llm_mde.json",
        "vit",
    }
    rows = numbers(python_run)
    assert [row["step"] for row in rows if "train/loss" in row] == [1, 2, 3]
    assert [row["step"] for row in rows if "val/abs_rel" in row] == [2, 3]


def test_torchrun_with_one_rank_gives_the_numbers_of_plain_python(
    place: Path, python_run: Path
) -> None:
    start([*torchrun(1), SCRIPT, *settings("torchrun1")], place)
    assert numbers(place / "runs" / "torchrun1") == numbers(python_run)


def test_torchrun_and_deepspeed_with_two_ranks_give_the_same_numbers(
    place: Path, deepspeed_run: Path
) -> None:
    start([*torchrun(2), SCRIPT, *settings("torchrun2")], place)
    assert numbers(deepspeed_run) == numbers(place / "runs" / "torchrun2")
    assert [row["step"] for row in numbers(deepspeed_run) if "train/loss" in row] == [1, 2, 3]


def test_eval_says_the_same_on_one_and_two_ranks(place: Path, deepspeed_run: Path) -> None:
    words = ["llm_mde", "eval", deepspeed_run, "--shards", "shards", "--batch", 3, "--json"]
    alone = json.loads(start(["-m", *words], place).stdout)
    done = start([*torchrun(2), "-m", *words], place)
    both = json.loads(done.stdout)
    assert both.keys() == alone.keys()
    assert both["images"] == alone["images"] == 4
    assert both["scores"] == pytest.approx(alone["scores"], rel=1e-6)
    assert alone["scores"]["test/abs_rel"] > 0


def test_predict_writes_depth_of_an_image(place: Path, deepspeed_run: Path) -> None:
    image = next((place / "raw").glob("*/r-*.ppm"))
    words = ["-m", "llm_mde", "predict", image, "--adapter", deepspeed_run, "--out", "depth"]
    (made,) = json.loads(start([*words, "--json"], place).stdout)["predictions"]
    with Image.open(place / made["depth"]) as depth:
        assert depth.size == (640, 480)
        assert np.asarray(depth).min() > 0 and np.asarray(depth).max() < 10000
    assert (place / made["figure"]).stat().st_size > 10_000


# Calls `main` for each case, so that torch and DeepSpeed are imported once.
CASES = """
import contextlib, io, json, sys
from llm_mde.cli import main

for name, words in json.loads(sys.argv[1]).items():
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(words)
    print("CASE " + json.dumps([name, code, error.getvalue()]))
"""


def flip_a_byte(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def mistakes(place: Path) -> dict[str, tuple[int, str]]:
    """Exit code and stderr of training commands that must fail."""
    (place / "ds.json").write_text(json.dumps({"gradient_clipping": 7.5}))
    (place / "broken.json").write_text("{")
    damaged = Path(shutil.copytree(place / "shards", place / "damaged"))
    flip_a_byte(damaged / "train-000001.tar", 5000)
    cases = {
        "no_shards": settings("no_shards", data__shards="null"),
        "ds": [*settings("ds"), "--ds_config", "ds.json"],
        "broken_ds": [*settings("broken_ds"), "--ds_config", "broken.json"],
        "hub": settings("hub", model__llm__name="google-bert/bert-base-uncased"),
        "checkpoint": [*settings("checkpoint"), "--resume", "shards"],
        "damaged": settings("damaged", data__shards="damaged"),
    }
    listed = {name: ["train", *map(str, words)] for name, words in cases.items()}
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hub")}
    done = start(["-c", CASES, json.dumps(listed)], place, **offline)
    lines = [line[5:] for line in done.stdout.splitlines() if line.startswith("CASE ")]
    return {name: (code, error) for name, code, error in map(json.loads, lines)}


@pytest.mark.parametrize(
    ("case", "line"),
    [
        ("no_shards", "data.shards: expected a folder written by 'llm-mde pack'"),
        ("ds", "gradient_clipping is 7.5, but optim.clip is 1.0"),
        ("broken_ds", "broken.json: not valid JSON"),
        ("hub", "model.llm.name: google-bert/bert-base-uncased is not in the local cache"),
        ("checkpoint", "shards: no manifest"),
        ("damaged", "damaged/train-000001.tar, sample "),
    ],
)
def test_mistakes_in_training_are_one_line(
    mistakes: dict[str, tuple[int, str]], place: Path, case: str, line: str
) -> None:
    code, error = mistakes[case]
    said = [text for text in error.splitlines() if text.startswith("llm-mde train: ")]
    assert code == 2, error
    assert len(said) == 1 and line in said[0]
    assert "Traceback" not in error
    if case != "damaged":
        assert error.count("\n") == 1
        assert not (place / "runs" / case).exists()


def test_a_mistake_is_said_once_under_several_ranks(place: Path) -> None:
    (place / "ds7.json").write_text(json.dumps({"gradient_clipping": 7.5}))
    words = [SCRIPT, *settings("twice"), "--ds_config", "ds7.json"]
    done = start([*deepspeed(2), *words], place, code=2)
    assert (done.stdout + done.stderr).count("gradient_clipping is 7.5") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (place / "runs" / "twice").exists()


def test_a_damaged_shard_is_said_by_the_rank_that_reads_it(
    place: Path, deepspeed_run: Path
) -> None:
    damaged = Path(shutil.copytree(place / "shards", place / "damaged_test"))
    flip_a_byte(damaged / "test-000000.tar", -20_000)  # in the last of four samples: rank 1
    words = ["-m", "llm_mde", "eval", deepspeed_run, "--shards", damaged, "--batch", 1]
    done = start([*torchrun(2), *words], place, code=1)
    said = [line for line in done.stderr.splitlines() if line.startswith("llm-mde eval: ")]
    assert len(said) == 1
    assert "test-000000.tar, sample " in said[0]
    assert done.stdout == ""
    assert "llm_mde/cli.py" not in done.stderr  # no traceback of ours; torchrun prints its own
