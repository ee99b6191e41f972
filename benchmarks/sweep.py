"""What a sweep costs beside the training itself, and what a second core brings.

    python -m benchmarks.sweep --work sweep --trials 6 --steps 240 --json sweep.json

The same trials on the CPU, one thread each: as plain runs of `llm-mde train` one after the other on
one core, as a sweep on one core, and as a sweep on two. Each way starts anew. Time that a trial
takes beyond its steps and evaluations is split into what the training program needs to start and
end, and what Ray and the sweep add to it.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from llm_mde.data.layout import PackSettings
from llm_mde.data.pack import pack
from llm_mde.nyu.synth import synth
from llm_mde.studies.process import environment
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics

SEEDS = 1000  # beside those of anything else
CONFIG: dict[str, Any] = {
    "model": {
        "image_size": [96, 128],
        "vit": {"name": "random:tiny:0", "tune": "full"},
        "llm": {"name": "random:tiny:1", "tune": "frozen"},
        "reprogram": {"prototypes": 64},
        "head": {"widths": [64, 32, 16, 16]},
    },
    "data": {"workers": 0, "cache": True},
    "train": {"batch": 8, "eval_every": 4, "patience": 99, "figures": 0},
}


def prepare(work: Path, trials: int, steps: int) -> None:
    """Rooms, their shards, the base, the space; what is there stays."""
    if not (work / "shards" / "index.jsonl").is_file():
        synth(work / "raw", scenes=30, frames=4, seed=0)
        pack([work / "raw"], out=work / "shards", settings=PackSettings(shard_size=32, seed=0))
    config = CONFIG | {"runs": str(work / "runs"), "data": CONFIG["data"] | {"shards": None}}
    config["data"]["shards"] = str(work / "shards")
    config["train"] = CONFIG["train"] | {"max_steps": steps}
    config["tracking"] = {"uri": f"sqlite:///{work}/mlflow.db"}
    (work / "base.yaml").write_text(yaml.safe_dump(config))
    space = {"name": "cost", "trials": {f"t{n}": {"seed": SEEDS + n} for n in range(trials)}}
    (work / "space.yaml").write_text(yaml.safe_dump(space))


def timed(work: Path, cores: int, commands: list[list[str]]) -> float:
    """Seconds of commands, one after the other, on the first cores of this process."""
    shutil.rmtree(work / "runs", ignore_errors=True)
    allowed = sorted(os.sched_getaffinity(0))[:cores]

    def keep_to() -> None:
        os.sched_setaffinity(0, allowed)

    began = time.monotonic()
    for words in commands:
        _run(words, work / "log", keep_to)
    return time.monotonic() - began


def _run(words: list[str], log: Path, before: Callable[[], None]) -> None:
    with log.open("w", encoding="utf-8") as file:
        subprocess.run(
            [sys.executable, "-m", "llm_mde", *words],
            env=environment(gpus=False, threads=1),
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=before,
            check=True,
        )


def training_s(work: Path) -> list[float]:
    """Of each run: from its first record to its last, so steps and evaluations."""
    found = []
    for run in sorted((work / "runs").glob("*/config.yaml")):
        times = [row["time"] for row in read_metrics(run.parent / METRICS_FILE)]
        found.append(times[-1] - times[0])
    return found


def main() -> None:
    """Three ways, a table, the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--steps", type=int, default=240)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    work = args.work.absolute()
    work.mkdir(parents=True, exist_ok=True)
    prepare(work, args.trials, args.steps)
    base = ["--config", str(work / "base.yaml")]
    plain = [
        ["train", *base, "--set", f"name=plain{n}", "--set", f"seed={SEEDS + n}"]
        for n in range(args.trials)
    ]
    sweep = [["sweep", "--space", str(work / "space.yaml"), *base]]
    rows = {}
    for name, cores, commands in (
        ("plain runs, 1 core", 1, plain),
        ("sweep, 1 core", 1, sweep),
        ("sweep, 2 cores", 2, sweep),
    ):
        seconds = timed(work, cores, commands)
        trained = training_s(work)
        rows[name] = {
            "seconds": seconds,
            "trials_per_hour": 3600 * args.trials / seconds,
            "training_s": sum(trained) / len(trained),
            "beyond_s": seconds * cores / args.trials - sum(trained) / len(trained),
        }
        print(f"{name}: {seconds:.0f} s", flush=True)
    print(f"\n{args.trials} trials of {args.steps} steps\n")
    print("| way | all [s] | trials/h | training of one [s] | beyond it, a core [s] |")
    print("|---|---:|---:|---:|---:|")
    for name, row in rows.items():
        cells = [row["seconds"], row["trials_per_hour"], row["training_s"], row["beyond_s"]]
        print(f"| {name} | {' | '.join(f'{cell:.1f}' for cell in cells)} |")
    one, two = (rows[f"sweep, {n}"]["trials_per_hour"] for n in ("1 core", "2 cores"))
    added = rows["sweep, 1 core"]["seconds"] - rows["plain runs, 1 core"]["seconds"]
    print(f"\na second core: {two / one:.2f} times the trials an hour")
    print(f"the sweep adds {added / args.trials:.1f} s to a trial's plain run")
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
