"""The whole chain on generated rooms, as `make demo` runs it, through the commands a user types."""

import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from llm_mde.data.index import open_index
from llm_mde.data.layout import PackSettings
from llm_mde.data.pack import pack
from llm_mde.data.pixels import depths
from llm_mde.data.samples import Shards
from llm_mde.errors import DataError
from llm_mde.figures import Sample, learning_curve, sample_sheet
from llm_mde.inference.predict import predict
from llm_mde.launcher import cores
from llm_mde.nyu.synth import synth
from llm_mde.progress import duration, progress
from llm_mde.studies.process import (
    ProgramFailed,
    environment,
    gpu_ids,
    launch_command,
    run_logged,
)
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.folder import write_whole

logger = logging.getLogger(__name__)

FAILED = 1
MAX_DEPTH = 10.0  # metres, as in the configuration
LEAST_GAIN = 0.10  # a lower lead over the mean-depth map means that the model has not learned


@dataclass(frozen=True)
class Size:
    """How much the demo generates and trains."""

    scenes: int
    frames: int
    batch: int
    sets: tuple[str, ...] = ()


FULL = Size(scenes=110, frames=6, batch=16)
SMALL = Size(scenes=6, frames=2, batch=2, sets=("train.max_steps=4", "train.log_every=2"))


def demo(out: Path, *, seed: int, small: bool) -> int:
    """Generate, pack, train, evaluate, predict; prints a table and the next commands.

    Everything lies under `out`; run again it continues where it stopped. Returns 0, or 1 if the
    model is not at least 10 % better than the mean-depth map on rooms it has not seen (not asked of
    `small`).

    Raises:
        DataError: `out` holds something else, or a step failed.
    """
    size = SMALL if small else FULL
    out = out.absolute()
    began = time.monotonic()
    times: dict[str, float] = {}

    def done(step: str) -> None:
        nonlocal began
        times[step], began = time.monotonic() - began, time.monotonic()

    with progress("generate", "scene") as report:
        synth(out / "raw", scenes=size.scenes, frames=size.frames, seed=seed, progress=report)
    done("generate")
    with progress("pack", "frame") as report:
        packed = pack(
            [out / "raw"],
            out=out / "shards",
            settings=PackSettings(shard_size=64, seed=seed),
            max_lost=1,
            progress=report,
        )
    logger.info("%s", packed.lines()[0])
    done("pack")
    words = _train_words(out, seed=seed, sets=(f"train.batch={size.batch}", *size.sets))
    command = launch_command(words, gpus=_gpus(size.batch), cpu_ranks=min(2, cores()))
    _run(command, out / "train.log", each=_show)
    done("train")
    scores = _evaluate(out)
    _write_sweep_base(out)
    pictures = _predict_typical(out)
    learning_curve(read_metrics(out / "runs" / "demo" / METRICS_FILE), out / "learning_curve.png")
    done("evaluate, predict")
    gain = 1 - scores["test/abs_rel"] / scores["test_mean_map/abs_rel"]
    _print_end(out, times=times, gain=gain, pictures=[*pictures, out / "learning_curve.png"])
    if small or gain >= LEAST_GAIN:
        return 0
    logger.error("abs_rel is only %.0f %% below the mean-depth map's, expected 10 %%", 100 * gain)
    return FAILED


def _gpus(batch: int) -> list[str]:
    """All GPUs, or as many as share out the batch evenly."""
    found = gpu_ids()
    return found[: max((n for n in range(1, len(found) + 1) if batch % n == 0), default=0)]


def _train_words(out: Path, *, seed: int, sets: tuple[str, ...]) -> list[str]:
    settings = [f"data.shards={out}/shards", f"runs={out}/runs", f"seed={seed}", *sets]
    settings.append(f"tracking.uri=sqlite:///{out}/mlflow.db")
    words = ["train", "--config", "launch/demo.yaml", "--ds_config", "launch/ds/zero1.json"]
    return words + [word for setting in settings for word in ("--set", setting)]


def _run(command: list[str], log: Path, *, each: Callable[[str], None]) -> None:
    """A step in processes of its own, with the cores shared out; its failure is ours."""
    logger.info("$ %s", shlex.join(command))
    env = environment(gpus=bool(gpu_ids()), threads=max(1, cores() // min(2, cores())))
    try:
        for line in run_logged(command, env=env, log=log):
            each(line)
    except ProgramFailed as failed:
        raise DataError(f"{shlex.join(command[3:])} {failed}; see {log}") from failed


def _show(line: str) -> None:
    if line.startswith(("step ", "resuming", "early stop", "nothing to do")) or "samples |" in line:
        logger.info("%s", line)


def _evaluate(out: Path) -> dict[str, float]:
    words = ["eval", str(out / "runs" / "demo"), "--shards", str(out / "shards")]
    command = launch_command(
        [*words, "--split", "test", "--json"],
        gpus=gpu_ids()[:1],
        cpu_ranks=min(2, cores()),
    )
    said: list[str] = []
    _run(command, out / "eval.log", each=said.append)
    payload = json.loads(next(line for line in said if line.startswith("{")))
    write_whole(out / "scores.json", json.dumps(payload, indent=1) + "\n")
    scores: dict[str, float] = payload["scores"]
    return scores


def _write_sweep_base(out: Path) -> None:
    """`sweep.yaml`: LoRA on the model just trained, where rank and alpha mean something."""
    config: dict[str, Any] = yaml.safe_load((out / "runs" / "demo" / "config.yaml").read_text())
    adapter = out / "runs" / "demo" / "adapter"
    model = config["model"]
    for name in ("vit", "llm"):
        model[name] = {"name": str(adapter / name), "tune": "lora"}
    base = {
        "model": model,
        "data": {key: config["data"][key] for key in ("shards", "workers", "cache")},
        "runs": str(out / "runs"),
        "seed": config["seed"],
        # The head starts anew and gets the demo's rate; the schemes' rates are for the adapters.
        "optim": {"lr_scale": {"head": 25.0}},
        "train": {"epochs": 3, "figures": config["train"]["figures"], "log_every": 5},
        "tracking": {"uri": config["tracking"]["uri"]},
    }
    text = "# LoRA on the demo's trained model: what `llm-mde sweep` starts from.\n"
    write_whole(out / "sweep.yaml", text + yaml.safe_dump(base, sort_keys=False))


def _predict_typical(out: Path) -> list[Path]:
    """Predict the test picture with the median range of depth; the figures drawn of it."""
    index = open_index(out / "shards", "test")
    truths = list(depths(index, max_depth=MAX_DEPTH))
    widths = [
        float(np.subtract(*np.percentile(depth[valid], (90, 10)))) if valid.any() else 0.0
        for depth, valid in truths
    ]
    at = int(np.argsort(widths)[len(widths) // 2])
    image = out / "image.jpg"
    image.write_bytes(Shards(out / "shards").read(index.entries[at])["rgb.jpg"])
    made = predict([image], adapter=out / "runs" / "demo" / "adapter", out=out / "prediction")[0]
    pred = np.asarray(Image.open(made.depth)).astype(np.float32) / 1000
    row = Sample(np.asarray(Image.open(image)), *truths[at], pred, index.entries[at].key)
    return [made.figure, sample_sheet([row], out / "prediction" / "beside_truth.png")]


def _print_end(out: Path, *, times: dict[str, float], gain: float, pictures: list[Path]) -> None:
    scores = json.loads((out / "scores.json").read_text(encoding="utf-8"))
    names = ("abs_rel", "rmse", "rmse_log", "delta1", "delta2", "delta3")
    rows = {"model": "test", "mean-depth map": "test_mean_map", "constant": "test_constant"}
    lines = [f"{scores['images']} images of rooms it has not seen, protocol metric (metres)"]
    lines.append(" " * 16 + "".join(f"{name:>10}" for name in names))
    for title, group in rows.items():
        cells = "".join(f"{scores['scores'][f'{group}/{name}']:10.4f}" for name in names)
        lines.append(f"{title:<16}{cells}")
    lines.append(f"abs_rel is {100 * gain:.0f} % lower than the mean-depth map's")
    lines.append("")
    lines.append(", ".join(f"{step} {duration(seconds)}" for step, seconds in times.items()))
    figures = sorted((out / "runs" / "demo" / "figures").glob("*.png"))
    lines.append("look at: " + " ".join(str(path) for path in [*pictures, *figures[-1:]]))
    lines.append("next:")
    ours, run = _program(), out / "runs" / "demo"
    lines.append(f"  {ours} predict {out / 'image.jpg'} --adapter {run / 'adapter'} --out depth")
    lines.append(
        f"  {ours} sweep --space tune/spaces/table5.yaml --config {out / 'sweep.yaml'} --tiny"
    )
    lines.append(f"  {ours} ui --uri sqlite:///{out}/mlflow.db")
    print("\n".join(lines))


def _program() -> str:
    """How this shell calls us: by name, by the file beside this Python, or as its module."""
    if shutil.which("llm-mde"):
        return "llm-mde"
    file = Path(sys.executable).with_name("llm-mde")
    if not file.is_file():
        return f"{sys.executable} -m llm_mde"
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
