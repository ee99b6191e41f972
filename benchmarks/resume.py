"""Is a run that was stopped and gone on with the run that was not? A table of cases.

    python -m benchmarks.resume --work resume --json resume.json

Tiny runs under the DeepSpeed launcher on two CPU ranks. Each is made once undisturbed, and once
told to stop in the middle and started again: under every ZeRO stage, with and without accumulation,
on as many ranks (then every bit of checkpoint, adapter and record is compared) and on one and four
(then losses are, by their largest relative difference).
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from benchmarks import chaos
from llm_mde.studies.process import environment, launch_command

STEPS, STOP = 12, 5
RANKS = 2
WITHOUT_DROPOUT = {  # other ranks draw other masks
    "model.vit.lora.dropout": 0.0,
    "model.llm.lora.dropout": 0.0,
    "model.llm.dropout": 0.0,
    "model.reprogram.dropout": 0.0,
}


def run(work: Path, name: str, ranks: int, stage: int, sets: dict[str, Any], *, stop: bool) -> str:
    """Start a run or go on with it, and tell it to stop once it has made some steps; its log."""
    words = ["train", "--config", str(work / "run.yaml"), "--set", f"name={name}"]
    words += ["--ds_config", f"launch/ds/zero{stage}.json"]
    words += [word for path, value in sets.items() for word in ("--set", f"{path}={value}")]
    child = subprocess.Popen(
        launch_command(words, gpus=[], cpu_ranks=ranks),
        env=environment(gpus=False, threads=1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    said = []
    assert child.stderr is not None
    for line in child.stderr:
        said.append(line)
        if stop and line.startswith(f"step {STOP}/"):
            child.send_signal(signal.SIGTERM)
    code = child.wait()
    if not stop and code:
        raise SystemExit("".join(said))
    return "".join(said)


def case(work: Path, stage: int, accumulation: int, ranks: int) -> dict[str, Any]:
    """One row: begun on RANKS ranks, gone on with on `ranks`."""
    sets: dict[str, Any] = {"train.micro_batch": 8 // (RANKS * accumulation)}
    if ranks != RANKS:
        sets |= WITHOUT_DROPOUT
    names = ("whole", "stopped")
    for name in names:
        shutil.rmtree(work / "runs" / name, ignore_errors=True)
    run(work, "whole", RANKS, stage, sets, stop=False)
    run(work, "stopped", RANKS, stage, sets, stop=True)
    said = run(work, "stopped", ranks, stage, sets, stop=False)
    whole, stopped = (chaos.outcome(work / "runs" / name) for name in names)
    losses = [
        [row["train/loss"] for row in one["rows"] if "train/loss" in row]
        for one in (whole, stopped)
    ]
    apart = max(abs(a - b) / abs(a) for a, b in zip(*losses, strict=True))
    resumed = next(line for line in said.splitlines() if line.startswith("resuming from "))
    return {
        "stage": stage,
        "accumulation": accumulation,
        "ranks": f"{RANKS} -> {ranks}",
        "from_step": int(resumed.split(" step ")[1].split()[0]),
        "equal": whole == stopped,
        "loss_apart": apart,
    }


def main() -> None:
    """Every case, a table, the JSON; exit code 1 where bits differ that must not."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    chaos.prepare(args.work, steps=STEPS)
    tree = yaml.safe_load((args.work / "run.yaml").read_text())
    tree["train"] |= {"save_steps": 4}
    (args.work / "run.yaml").write_text(yaml.safe_dump(tree))
    rows = []
    print("| ZeRO | accumulation | ranks | from step | every bit | losses apart, relative |")
    print("|---|---|---|---|---|---|")
    cases = [(stage, by, RANKS) for stage in range(4) for by in (1, 2)]
    for stage, by, ranks in [*cases, (2, 2, 1), (2, 2, 4), (3, 2, 1)]:
        row = case(args.work, stage, by, ranks)
        rows.append(row)
        same = "equal" if row["equal"] else "differs"
        cells = [row["stage"], by, row["ranks"], f"{row['from_step']} of {STEPS}", same]
        print(f"| {' | '.join(map(str, cells))} | {row['loss_apart']:.1e} |", flush=True)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")
    wrong = [row for row in rows if row["ranks"] == f"{RANKS} -> {RANKS}" and not row["equal"]]
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
