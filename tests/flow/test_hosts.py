"""Two hosts: the recipes of launch/README.md as they stand there, and a host cut off in the middle.

What they leave in the end is compared with a run of one host, step by step and to the last bit.
Only what would need GPUs and the full data is made small: a slot a host, a tiny network, and less
patience, by words of the recipes replaced and added.
"""

import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import outcome
from llm_mde.recipes import PACKAGE
from llm_mde.studies.process import environment, launch_command
from tests.support.hosts import Host, hosts
from tests.support.training import make_shards

pytestmark = pytest.mark.timeout(900)

ROOT = PACKAGE.parent
HOSTFILE, DEEPSPEED, VARIABLES, TORCHRUN = re.findall(
    r"```(?:text|bash)\n(.*?)```", (ROOT / "launch/README.md").read_text("utf-8"), re.DOTALL
)
RECIPES = {
    "deepspeed": DEEPSPEED.replace("ServerAliveInterval=20", "ServerAliveInterval=2"),
    # One that has lost the endpoint first waits for its answer, then for the system to give up.
    "torchrun": TORCHRUN.replace("--nproc-per-node 8", "--nproc-per-node 1").replace(
        "--rdzv-backend", "--rdzv-conf read_timeout=10 --rdzv-backend"
    ),
}
SETS = [
    "model.image_size=[32,48]",
    "model.vit.name=random:tiny:0",
    "model.llm.name=random:tiny:0",
    "model.reprogram.prototypes=8",
    "model.head.widths=[16,16,8,8]",
    "data.workers=1",
    "train.batch=4",
    "train.micro_batch=2",
    "train.max_steps=40",
    "train.eval_every=2",
    "train.save_steps=3",
    "train.log_every=1",
    "train.figures=0",
    "train.timeout=20",
    "tracking.mlflow=false",
]
SAVED = 9  # steps at least, when step 10 is said
START_S = 240.0
END_S = 150.0  # after a cut: train.timeout, and half a minute until connections are given up


@dataclass
class Launched:
    """A recipe under way, on every host that it is started on."""

    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def said(self) -> str:
        return "".join(log.read_text() for log in self.logs)

    def codes(self) -> list[int | None]:
        return [process.poll() for process in self.processes]


@dataclass(frozen=True)
class Place:
    """The folder that both hosts see, as on a shared file system, and both hosts."""

    folder: Path
    hosts: list[Host]

    def launch(self, recipe: str, name: str) -> Launched:
        """On the first host, from which deepspeed reaches the other; torchrun on each."""
        script = f"{RECIPES[recipe].strip()} {shlex.join(sets(name))}"
        starters = self.hosts if recipe == "torchrun" else self.hosts[:1]
        logs = [self.folder / f"{name}.{host.name}.log" for host in starters]
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = environment(gpus=False, threads=1) | {"PATH": path, "SHARDS": "shards"}
        processes = [
            host.start(script, place=self.folder, log=log, env=env)
            for host, log in zip(starters, logs, strict=True)
        ]
        return Launched(processes, logs)

    def programs(self) -> list[str]:
        return [line for host in self.hosts for line in host.programs()]

    def end(self, name: str) -> dict[str, Any]:
        return outcome(self.folder / "runs" / name)


def sets(name: str) -> list[str]:
    return [word for value in [*SETS, f"name={name}"] for word in ("--set", value)]


def until(ready: Callable[[], bool], run: Launched, *, within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while not ready():
        assert time.monotonic() < deadline, f"codes {run.codes()}\n{run.said()}"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("hosts")
    make_shards(folder / "shards")
    (folder / "launch").symlink_to(ROOT / "launch")
    (folder / "hostfile").write_text(HOSTFILE.replace("slots=8", "slots=1"))
    (folder / ".deepspeed_env").write_text(VARIABLES.replace("=8", "=1"))
    (folder / "ssh").mkdir()
    with hosts(folder / "ssh") as made:
        yield Place(folder, made)


@pytest.fixture(scope="module")
def undisturbed(place: Place) -> dict[str, Any]:
    """What two ranks of one host leave."""
    words = DEEPSPEED.split("launch/train.py")[1].replace("$SHARDS", "shards").split()
    command = launch_command(["train", *words, *sets("one")], gpus=[], cpu_ranks=2)
    env = environment(gpus=False, threads=1)
    done = subprocess.run(
        command, cwd=place.folder, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place.end("one")


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_host_cut_off_is_named_and_both_end_as_one_host_does(
    recipe: str, place: Place, undisturbed: dict[str, Any]
) -> None:
    name = f"{recipe}-cut"
    run = place.launch(recipe, name)
    until(lambda: "step 10/40" in run.said(), run, within_s=START_S)
    place.hosts[1].cut()
    try:
        until(lambda: None not in run.codes(), run, within_s=END_S)
        until(lambda: not place.programs(), run, within_s=END_S)
    finally:
        place.hosts[1].mend()
    assert all(run.codes()), run.said()
    told = r"rank 0 waits in vain: rank 1 on node[12] shows no sign of life; the same command goes"
    assert re.search(told, run.said())
    assert not re.search(r"\[rank\d\]: ", run.said())  # a traceback's lines; torch may warn
    if recipe == "torchrun":  # the ssh that would bring deepspeed's is gone
        assert re.search(r"rank 1 waits in vain: rank 0 on node[12], which keeps", run.said())

    run = place.launch(recipe, name)
    until(lambda: None not in run.codes(), run, within_s=START_S)
    assert not any(run.codes()), run.said()
    began = re.search(r"resuming from \S+, step (\d+) of 40", run.said())
    assert began and SAVED <= int(began[1]) < 40
    assert place.end(name) == undisturbed
