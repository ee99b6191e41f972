"""The command table in this process: words, exit codes, one line for a mistake, JSON on stdout."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llm_mde import __version__, cli
from llm_mde.cli import main
from llm_mde.data.folder import ShardFolder
from llm_mde.launcher import launched_rank
from tests.support.rawscene import write_scene
from tests.support.run import write_run
from tests.support.shards import write_shards

COMMANDS = (
    "synth",
    "pack",
    "verify",
    "inspect",
    "train",
    "doctor",
    "eval",
    "predict",
    "export",
    "sweep",
    "experiment",
    "compare",
    "ui",
    "demo",
)
GROUPS = {"track": ("sync", "register")}
HEAVY = ("torch", "deepspeed", "ray", "mlflow", "transformers", "timm", "peft", "numpy")


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No launcher around, and none left behind by commands that join their ranks."""
    before = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    folder = tmp_path / "shards"
    write_shards(folder, [3, 2], split="train")
    return write_shards(folder, [3], split="test")


@pytest.fixture
def mistake(capfd: pytest.CaptureFixture[str]):
    """Runs a command that must fail as the user's mistake; its one line."""

    def run_it(*words: object) -> str:
        assert main([str(word) for word in words]) == 2
        printed = capfd.readouterr()
        assert printed.out == ""
        assert printed.err.endswith("\n")
        assert printed.err.count("\n") == 1
        return printed.err.rstrip("\n")

    return run_it


def test_help_is_light_and_lists_every_command() -> None:
    code = f"""
import sys
from llm_mde.cli import main
code = main(["--help"])
loaded = [name for name in {HEAVY!r} if name in sys.modules]
sys.exit(f"{{code}} {{loaded}}" if code or loaded else 0)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    listed = [line.split()[0] for line in done.stdout.partition("Commands:")[2].split("\n") if line]
    assert listed == [*COMMANDS, *GROUPS]
    assert "..." not in done.stdout.partition("Commands:")[2]


@pytest.mark.parametrize(
    "command", [*COMMANDS, *(f"{group} {name}" for group in GROUPS for name in GROUPS[group])]
)
def test_help_of_a_command_has_an_example_that_parses(command: str, capsys) -> None:
    assert main([*command.split(), "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    example = text.partition("Example: ")[2]
    assert f" {command} " in f"{example} "
    options = {word for word in example.partition(f" {command} ")[2].split() if word[:2] == "--"}
    assert all(f" {option}" in text.partition("Example: ")[0] for option in options)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("synth", ["[default: 20;", "[default: (one a core)", "0 to 1", "640x480 pixels"]),
        ("pack", ["[default: auto]", "[default: 256;", "Lossless 16-bit depth"]),
        ("train", ["[default: launch/ds/zero1.json]", "[default: auto]", "--ds_config"]),
        ("eval", ["[default: test]", "[default: 8;", "metres"]),
        ("predict", ["millimetres", "[required]"]),
        ("sweep", ["(what fits)"]),
        (
            "experiment",
            ["few-shot, zero-shot, prompts", "(what fits)", "[default: 1;", "--dry-run"],
        ),
        ("demo", ["[default: demo]"]),
    ],
)
def test_help_shows_defaults_and_units(command: str, shown: list[str], capsys) -> None:
    assert main([command, "--help"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert [word for word in shown if word not in text] == []


def test_no_words_is_help(capsys) -> None:
    assert main([]) == 0
    assert capsys.readouterr().out.startswith("Usage: llm-mde ")


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"llm-mde {__version__}\n"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["bogus"], "llm-mde: No such command 'bogus'; see 'llm-mde --help'"),
        (["--bogus"], "llm-mde: No such option: --bogus; see 'llm-mde --help'"),
        (["train", "--bogus"], "llm-mde train: No such option: --bogus; see"),
        (["synth", "X", "--scenes", "0"], "llm-mde synth: Invalid value for '--scenes': "),
        (["synth", "X", "--scenes", "a"], "llm-mde synth: Invalid value for '--scenes': "),
        (["synth", "X", "--truncate", "2"], "llm-mde synth: Invalid value for '--truncate': "),
        (["synth"], "llm-mde synth: Missing argument 'OUT'"),
        (["predict", "X", "--out", "Y"], "llm-mde predict: Missing option '--adapter'"),
        (["experiment"], "llm-mde experiment: Missing argument 'NAME'"),
        (["experiment", "no"], "llm-mde experiment: no: no such experiment, expected few-shot, "),
        (["experiment", "lora"], "llm-mde experiment: demo/sweep.yaml: not found; run `make demo`"),
        (["train", "--set", "a=1"], "llm-mde train: --set a=1: unknown key a, did you mean"),
        (["train", "--set", "optim.lr=-1"], "llm-mde train: --set optim.lr=-1: optim.lr: expected"),
        (["train", "--exit-after", "3"], "llm-mde train: Invalid value for --exit-after: expected"),
        (["train", "--set", "seed"], "llm-mde train: --set seed: expected a.b=c"),
        (["train", "--config", "no.yaml"], "llm-mde train: no.yaml: no such file"),
        (["train", "--set", "data.shards=/no"], "llm-mde train: /no: no index.jsonl found"),
    ],
)
def test_wrong_words_are_one_line(words, line, mistake, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert mistake(*words).startswith(line)
    assert not list(tmp_path.iterdir())


def test_the_launchers_word_may_come_first_or_last(mistake) -> None:
    unknown = ["train", "--set", "a=1"]
    for words in (["--local_rank=0", *unknown], [*unknown, "--local-rank=12"]):
        assert mistake(*words).startswith("llm-mde train: --set a=1: unknown key a")
    assert "No such option: --local_rank" in mistake("--local_rank", "train")


def test_settings_may_stand_anywhere_and_the_last_wins(mistake, shards, tmp_path) -> None:
    line = mistake(
        "train",
        "--set",
        "data.val_split=x",
        "--ds-config",
        "launch/ds/zero1.json",
        "--resume=never",
        f"--set=data.shards={shards}",
        "--set",
        "data.val_split=y",
    )
    assert line == f"llm-mde train: {shards}: no split 'y', this folder has: test, train"


def test_other_ranks_leave_shared_mistakes_to_rank_0(monkeypatch, capfd, shards) -> None:
    monkeypatch.setenv("RANK", "1")
    for words in (
        ["train", "--set", "a=1"],
        ["train", "--bogus"],
        ["train", "--set", f"data.shards={shards / 'no'}"],
        ["eval", "no", "--shards", str(shards), "--split", "no"],
    ):
        assert main(words) == 2
    assert capfd.readouterr() == ("", "")


def test_rank_of_a_launcher(monkeypatch) -> None:
    assert launched_rank() == 0
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert launched_rank() == 0  # an allocation's own shell
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "8")
    assert launched_rank() == 3
    monkeypatch.setenv("RANK", "5")
    assert launched_rank() == 5


def test_pack_refuses_what_is_no_scene(mistake, tmp_path) -> None:
    out = tmp_path / "out"
    missing = mistake("pack", tmp_path / "missing", "--out", out)
    assert missing.startswith(f"llm-mde pack: {tmp_path / 'missing'}: ")
    scene = write_scene(tmp_path / "raw", "office_0001")
    for path in scene.glob("r-*.ppm"):
        path.unlink()
    assert "no frame with both RGB and depth in any scene" in mistake("pack", scene, "--out", out)
    assert not out.exists()


def test_pack_says_one_json_object(tmp_path, capfd) -> None:
    write_scene(tmp_path / "raw", "office_0001")
    out = tmp_path / "out"
    words = ["pack", str(tmp_path / "raw"), "--out", str(out), "--splits", "scene", "--jobs", "1"]
    assert main([*words, "--json"]) == 0
    printed = capfd.readouterr()
    payload = json.loads(printed.out)
    assert (payload["out"], payload["samples"]["train"]) == (str(out), 2)
    assert "pack 2/2" in printed.err


def test_eval_says_one_json_object(run, shards, capfd) -> None:
    words = ["eval", str(run), "--shards", str(shards), "--batch", "2"]
    assert main([*words, "--json"]) == 0
    payload = json.loads(capfd.readouterr().out)
    assert (payload["split"], payload["images"], payload["crop"]) == ("test", 3, "none")
    scores = payload["scores"]
    assert 0 < scores["test_mean_map/abs_rel"] < scores["test_constant/abs_rel"]
    assert {"test/abs_rel", "test/delta3", "test_paper/rmse", "test/loss"} <= scores.keys()
    assert main(words) == 0
    table = capfd.readouterr().out.splitlines()
    assert table[0] == "test: 3 images, crop none, baselines of train"
    row = next(line for line in table if line.split()[0] == "model")
    assert f"{scores['test/abs_rel']:.4f}" in row.split()
    assert main([*words, "--baselines", "test", "--json"]) == 0  # which fit their own truth better
    fitted = json.loads(capfd.readouterr().out)
    assert (
        fitted["baselines"] == "test" and fitted["scores"]["test/abs_rel"] == scores["test/abs_rel"]
    )
    assert fitted["scores"]["test_mean_map/rmse"] < scores["test_mean_map/rmse"]


def test_eval_keeps_samples_of_a_url_on_disk(run, shards, tmp_path, capfd) -> None:
    url, kept = "memory://eval/pack", tmp_path / "kept"
    for path in filter(Path.is_file, shards.rglob("*")):
        ShardFolder(url).write(path.relative_to(shards).as_posix(), path.read_bytes())
    said = []
    for more in (["--shards", str(shards)], ["--shards", url, "--disk-cache", str(kept)]):
        assert main(["eval", str(run), *more, "--json"]) == 0
        said.append(json.loads(capfd.readouterr().out))
    assert said[0] == said[1]
    assert len([*filter(Path.is_file, (kept / "samples").rglob("*"))]) == 3 + 5


def test_eval_refuses_a_damaged_shard_and_what_is_missing(mistake, run, shards, tmp_path) -> None:
    assert "no split 'x', this folder has: test, train" in mistake(
        "eval", run, "--shards", shards, "--split", "x"
    )
    assert mistake("eval", tmp_path, "--shards", shards).startswith(
        f"llm-mde eval: {tmp_path}: no llm_mde.json found"
    )
    path = shards / "test-000000.tar"
    damaged = bytearray(path.read_bytes())
    damaged[700] ^= 1
    path.write_bytes(damaged)
    assert "test_0001-000000: " in mistake("eval", run, "--shards", shards)
    assert "do not match" in mistake("eval", run, "--shards", shards)


def test_predict_says_one_json_object(run, tmp_path, capfd) -> None:
    image = tmp_path / "room.png"
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image)
    words = ["predict", str(image), "--adapter", str(run), "--out", str(tmp_path / "out")]
    assert main([*words, "--json"]) == 0
    printed = capfd.readouterr()
    (made,) = json.loads(printed.out)["predictions"]
    assert Path(made["depth"]).is_file() and Path(made["figure"]).is_file()
    assert printed.err.startswith("predict 1/1 | ")


def test_predict_refuses_a_text_file(run, tmp_path, mistake) -> None:
    text, out = tmp_path / "notes.txt", tmp_path / "out"
    text.write_text("hello")
    line = mistake("predict", text, "--adapter", run, "--out", out)
    assert line.startswith(f"llm-mde predict: {text}: not an image that can be read")
    assert not out.exists()


def test_an_error_of_ours_keeps_its_traceback(monkeypatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr("llm_mde.nyu.synth.synth", broken)
    with pytest.raises(RuntimeError, match="ours"):
        main(["synth", "X"])


def test_an_interruption_is_130(monkeypatch, capsys) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llm_mde.nyu.synth.synth", stopped)
    assert main(["synth", "X"]) == 130
    assert capsys.readouterr().err == "llm-mde synth: interrupted\n"


def test_the_console_command_ends_with_its_code_and_all_that_was_said() -> None:
    code = (
        "import atexit, sys, threading, time\n"
        "from llm_mde import cli\n"
        "def main():\n"
        "    atexit.register(print, 'at exit')\n"
        "    threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\n"
        "    return 75\n"
        "cli.main = main\n"
        "cli.run()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (75, "thread\nat exit\n", "")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_gpu_that_is_full_in_a_step_is_a_mistake_of_the_settings(
    rank: int, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], shards: Path
) -> None:
    """Said by whichever rank meets it."""
    from llm_mde.training import train

    told = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."
    advice = " If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF"

    def full(*args: Any, **how: Any) -> None:
        raise torch.OutOfMemoryError(told + advice)

    write_shards(shards, [2], split="val")
    monkeypatch.setattr(train, "prepare", full)
    monkeypatch.setattr(cli, "launched_rank", lambda: rank)
    sets = [f"data.shards={shards}", f"runs={shards.parent}", "tracking.mlflow=false"]
    words = ["train", "--config", "launch/demo.yaml"]
    assert main([*words, *(word for one in sets for word in ("--set", one))]) == 2
    *_, line = capfd.readouterr().err.splitlines()
    assert line.startswith(f"llm-mde train: {told[:-1]}; lower train.micro_batch")
