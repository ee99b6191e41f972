"""Kills a training run at random until it is done, again and again: does it end as if never killed?

    python -m benchmarks.chaos --work chaos --kills 50 --seed 0 --json chaos.json

A tiny run under the DeepSpeed launcher is first left alone. Then it is started over and over, and
each time one of its processes is killed (SIGKILL: the launcher, one of its helpers, a rank, a
loader process; now and then SIGTERM to the launcher) at a random moment, or while it writes a
checkpoint. A run that comes to its end must leave the same checkpoint, adapter and record, to the
last bit; then the next one begins.
"""

import argparse
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import psutil
import yaml

from llm_mde.studies.process import environment, launch_command
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.checkpoint import ASIDE, MANIFEST

RANKS = 2
NAME = "chaos"
CLOCKS = (
    "time",
    "train/img_per_s",
    "train/data_wait",
    "train/seconds",
    "train/memory_gb",
    "system/",
)
CONFIG: dict[str, Any] = {
    "name": NAME,
    "model": {
        "image_size": [32, 48],
        "vit": {"name": "random:tiny:0", "tune": "full"},
        "llm": {"name": "random:tiny:1", "tune": "full"},
        "reprogram": {"prototypes": 16},
        "head": {"widths": [16, 16, 8, 8]},
    },
    "data": {"workers": 1},
    "train": {
        "batch": 8,
        "micro_batch": 2,  # two micro-batches a step on each rank
        "eval_every": 1,
        "save_steps": 3,
        "log_every": 1,
        "figures": 0,
    },
    "tracking": {"mlflow": False},
}
END_S = 120.0  # for the processes of a run to be gone after one of them was killed
ORPHANS_S = 20.0  # after which those of a killed launcher count as left running


@dataclass
class Attempt:
    """One start of the run."""

    victim: str = ""
    """What was killed; empty if the run came to its end before."""
    moment: str = ""
    code: int = 0
    began_at: int = 0
    """Step it went on from."""
    reached: int = 0
    """Last step it said."""
    orphans: int = 0
    """Processes that outlived their launcher."""
    said: list[str] = field(default_factory=list)


class Running:
    """The run as a child process group, and what it says."""

    def __init__(self, work: Path) -> None:
        words = ["train", "--config", str(work / "run.yaml"), "--ds_config", "launch/ds/zero2.json"]
        self.child = subprocess.Popen(
            launch_command(words, gpus=[], cpu_ranks=RANKS),
            env=environment(gpus=False, threads=1),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.attempt = Attempt()
        self.stepped = threading.Event()
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.child.stderr is not None
        for line in self.child.stderr:
            self.attempt.said.append(line.rstrip())
            words = line.split()
            if line.startswith("resuming from "):
                self.attempt.began_at = int(words[words.index("step") + 1])
            elif line.startswith("step ") and "/" in words[1]:
                self.attempt.reached = int(words[1].partition("/")[0])
                self.stepped.set()

    def processes(self) -> dict[str, psutil.Process]:
        """What may be killed, by what it is."""
        found = {"launcher": psutil.Process(self.child.pid)}
        for process in found["launcher"].children(recursive=True):
            try:
                words = process.cmdline()
                parents = [one.pid for one in process.parents()]
            except psutil.Error:
                continue
            ranks = {one.pid for name, one in found.items() if name.startswith("rank")}
            if ranks & set(parents):
                if "multiprocessing.resource_tracker" not in " ".join(words):
                    found[f"loader {len(found)}"] = process
            elif "llm_mde" in words and any("local_rank" in word for word in words):
                found[f"rank {sum(name.startswith('rank') for name in found)}"] = process
            else:
                found[f"helper {len(found)}"] = process
        return found


def run_once(work: Path, chance: random.Random | None, *, length_s: float) -> Attempt:
    """Start the run; kill something in it, if there is a `chance`; wait until all of it is gone."""
    running = Running(work)
    attempt, everything = running.attempt, {}
    if chance is not None:
        attempt.moment = chance.choice(["any time", "after the first step", "in a save"])
        _wait_for(attempt.moment, running, work, chance, length_s=length_s)
        if running.child.poll() is None:
            everything = running.processes()
            kind = chance.choice(sorted({name.partition(" ")[0] for name in everything}))
            victim = chance.choice([name for name in everything if name.startswith(kind)])
            how = signal.SIGKILL
            if kind == "launcher" and chance.random() < 0.5:
                how = signal.SIGTERM
            attempt.victim = f"{kind}, {how.name}"
            try:
                everything[victim].send_signal(how)
            except psutil.NoSuchProcess:
                attempt.victim = ""
    try:
        attempt.code = running.child.wait(END_S if attempt.victim else None)
    finally:
        _end(list(everything.values()), attempt)
    running.reader.join(END_S)
    return attempt


def _wait_for(
    moment: str, running: Running, work: Path, chance: random.Random, *, length_s: float
) -> None:
    if moment == "any time":
        until = time.monotonic() + chance.random() * length_s
        while time.monotonic() < until and running.child.poll() is None:
            time.sleep(0.01)
        return
    while not running.stepped.wait(0.05):
        if running.child.poll() is not None:
            return
    if moment == "after the first step":
        time.sleep(chance.random() * length_s / 4)
        return
    for _ in range(chance.randrange(1, 4)):  # in the first, second or third save from now
        _wait_for_save(running, work)
    time.sleep(chance.random() * 0.03)


def _wait_for_save(running: Running, work: Path) -> None:
    folder = work / "runs" / NAME / "checkpoints"
    for there in (False, True):
        while any(folder.glob(f"{ASIDE}*")) is not there and running.child.poll() is None:
            time.sleep(0.0005)


def _end(processes: list[psutil.Process], attempt: Attempt) -> None:
    """Wait for what is left, then end it as a scheduler does that cleans up a job."""
    _, left = psutil.wait_procs(processes, ORPHANS_S if "launcher" in attempt.victim else END_S)
    attempt.orphans = len(left)
    for process in left:
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
    psutil.wait_procs(left, END_S)


def outcome(run: Path) -> dict[str, Any]:
    """What a run that has ended leaves, clocks left out."""
    last = run / "checkpoints" / (run / "checkpoints" / "last").read_text().strip()
    rows = [
        {name: value for name, value in row.items() if not name.startswith(CLOCKS)}
        for row in read_metrics(run / METRICS_FILE)
    ]
    adapter = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted((run / "adapter").glob("*.safetensors"))
    }
    files = json.loads((last / MANIFEST).read_text())["files"]
    return {"checkpoint": last.name, "files": files, "rows": rows, "adapter": adapter}


def prepare(work: Path, *, steps: int) -> None:
    """Shards of generated rooms, and the run's settings."""
    shards = work / "shards"
    if not shards.exists():
        for words in (
            ["synth", str(work / "raw"), "--scenes", "12", "--frames", "4"],
            ["pack", str(work / "raw"), "--out", str(shards), "--splits", "scene"],
        ):
            command = [sys.executable, "-m", "llm_mde", *words]
            subprocess.run(command, check=True, stdout=sys.stderr)
    tree = CONFIG | {"runs": str(work.absolute() / "runs")}
    tree["data"] = CONFIG["data"] | {"shards": str(shards.absolute())}
    tree["train"] = CONFIG["train"] | {"max_steps": steps}
    (work / "run.yaml").write_text(yaml.safe_dump(tree))


def wreck(work: Path, *, kills: int, seed: int) -> tuple[list[Attempt], int, list[str]]:
    """Attempts, runs that came to their end, and how any of them differed."""
    run, chance = work / "runs" / NAME, random.Random(seed)
    shutil.rmtree(run, ignore_errors=True)
    began = time.monotonic()
    undisturbed = run_once(work, None, length_s=0)
    if undisturbed.code:
        raise SystemExit("\n".join(undisturbed.said))
    length_s, want = time.monotonic() - began, outcome(run)
    attempts: list[Attempt] = []
    ends, differences = 0, []
    shutil.rmtree(run)
    while (killed := sum(bool(one.victim) for one in attempts)) < kills or attempts[-1].victim:
        last = killed >= kills
        attempt = run_once(work, None if last else chance, length_s=length_s)
        attempts.append(attempt)
        rate_s = (time.monotonic() - began) / (len(attempts) + 1)
        print(
            f"kill {killed}/{kills} | {attempt.victim or 'none'} | {attempt.moment} | from step "
            f"{attempt.began_at} to {attempt.reached} | exit {attempt.code} | "
            f"ETA {rate_s * (kills - killed) / 60:.0f} min",
            flush=True,
        )
        if attempt.victim:
            continue
        if attempt.code:
            raise SystemExit("\n".join(attempt.said))
        got = outcome(run)
        ends += 1
        differences += [f"end {ends}: {name}" for name in want if got[name] != want[name]]
        shutil.rmtree(run)
    return attempts, ends, differences


def lost_steps(attempts: list[Attempt]) -> list[int]:
    """Steps that each killed attempt had made and a later one of the same run made again."""
    found = []
    for at, one in enumerate(attempts):
        # One that was killed before it said from where it goes on tells nothing.
        later = (other for other in attempts[at + 1 :] if other.began_at or other.reached)
        if one.victim and one.reached:
            found.append(max(0, one.reached - next(later).began_at))
    return found


def main() -> None:
    """Kill, compare, print a table, write the JSON; exit code 1 if an end differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder for data and runs")
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40, help="of the run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    prepare(args.work, steps=args.steps)
    attempts, ends, differences = wreck(args.work, kills=args.kills, seed=args.seed)
    victims = Counter(one.victim for one in attempts if one.victim)
    moments = Counter(one.moment for one in attempts if one.victim)
    lost = lost_steps(attempts)
    orphaned = sum(one.orphans > 0 for one in attempts)
    print(f"\nseed {args.seed}: {sum(victims.values())} kills, {ends} runs came to their end\n")
    for title, counts in (("killed", victims), ("moment", moments)):
        print(f"| {title} | times |\n|---|---|")
        print("\n".join(f"| {name} | {count} |" for name, count in sorted(counts.items())), "\n")
    print(f"steps made twice after a kill: mean {fmean(lost):.1f}, most {max(lost)}")
    print(f"launchers that were outlived for {ORPHANS_S:g} s or more: {orphaned}")
    print("ends that differ from the undisturbed run: " + (", ".join(differences) or "none"))
    if args.json:
        tree = {
            "seed": args.seed,
            "victims": victims,
            "moments": moments,
            "ends": ends,
            "lost_steps": lost,
            "differences": differences,
        }
        args.json.write_text(json.dumps(tree, indent=1) + "\n")
    sys.exit(1 if differences else 0)


if __name__ == "__main__":
    main()
