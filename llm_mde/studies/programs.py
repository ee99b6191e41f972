"""The programs of a trial, on the devices it was given: what it trains, what it says when it fails.

The ids of their processes lie in files while they run, so that an interruption ends them in an
orderly way.
"""

import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llm_mde.config import Config, tracking_uri
from llm_mde.launcher import visible_devices
from llm_mde.locks import wait_for_training
from llm_mde.recipes import dump
from llm_mde.studies.process import (
    PATIENCE_S,
    ProgramFailed,
    end,
    environment,
    launch_command,
    run_logged,
    single_command,
)
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.checkpoint import last_step

SCORE, TIME = "val/abs_rel", "step"
NO_MEMORY = ("out of memory", "can't allocate memory", "Cannot allocate memory", "but the GPU has")

Row = dict[str, Any]
"""What a run recorded at an evaluation, SCORE and TIME among it."""


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    name: str
    """The trial, and its run."""
    folder: Path
    """Of its recipe, logs and process id."""
    gpus: bool
    threads: int
    """CPU threads of each of its programs."""

    @property
    def pid_file(self) -> Path:
        """Holds the id of the program that runs."""
        return self.folder / f"{self.name}.pid"

    def log(self, part: str = "") -> Path:
        """What a program says; `part` tells a trial's several programs apart."""
        return self.folder / f"{self.name}{part and '.'}{part}.log"


def train(
    place: Place,
    config: Config,
    ds_config: Path,
    *,
    steps: int | None = None,
    changing: bool = False,
) -> Iterator[Row]:
    """A trial's training run, in processes of its own; yields what it records at evaluations.

    The row of the last of `steps` comes when the run has ended: to end it early then would cost
    its last checkpoint. `changing`: it goes on with other settings than it began with.

    Raises:
        RuntimeError: it failed; why, in one line.
    """
    recipe = place.folder / f"{place.name}.yaml"
    recipe.write_text(dump(config), encoding="utf-8")
    words = ["train", "--config", str(recipe), "--ds_config", str(ds_config)]
    sent = 0
    if changing:
        words.append("--change-settings")
        sent = last_step(config.run_dir / "checkpoints")  # what was before is of other values
    # Where this trial's worker was lost its program may still save: here, or on another host.
    end([place.pid_file])
    wait_for_training(config.run_dir, timeout_s=PATIENCE_S)
    for _ in run_program(place, words, log=place.log()):
        for row in evaluations(config.run_dir, after=sent):
            if steps is None or row[TIME] < steps:
                sent = row[TIME]
                yield row
    yield from evaluations(config.run_dir, after=sent)


def run_program(place: Place, words: list[str], *, log: Path) -> Iterator[str]:
    """`llm-mde <words>` with a trial's devices; yields every line it prints.

    Raises:
        RuntimeError: it failed; why, in one line.
    """
    end([place.pid_file])  # of this trial where its worker was lost, and the program is here still
    devices = visible_devices() if place.gpus else None
    if devices and len(devices) > 1 and words[0] == "train":
        command = launch_command(words, gpus=devices, cpu_ranks=1)
    else:
        command = single_command(words)
    # The shell becomes the program, under the process id that it wrote down.
    note = f'echo "$$ {socket.gethostname()}" > "$0" && exec "$@"'
    env = environment(gpus=place.gpus, threads=place.threads)
    noted = ["sh", "-c", note, str(place.pid_file), *command]
    try:
        yield from run_logged(noted, env=env, log=log)
    except ProgramFailed as failed:
        raise RuntimeError(f"{_reason(log, failed.code)}; see {log}") from failed
    finally:
        place.pid_file.unlink(missing_ok=True)


def _reason(log: Path, code: int) -> str:
    """What a failed program's log tells: the lack of memory, else its last error."""
    said = log.read_text(encoding="utf-8").splitlines()
    for line in said:
        if any(sign in line for sign in NO_MEMORY):
            return f"out of memory: {line}"
    if code == -signal.SIGKILL:
        return "out of memory, perhaps: killed (SIGKILL), as systems do where memory runs out"
    telling = (line for line in reversed(said) if "Error" in line or line.startswith("llm-mde "))
    return next(telling, f"ended with exit code {code}")


def evaluations(run: Path, *, after: int = 0) -> Iterator[Row]:
    """What a run recorded at its evaluations behind a step."""
    for row in read_metrics(run / METRICS_FILE):
        if SCORE in row and row[TIME] > after:
            yield row


def below(config: Config, parent_run_id: str | None) -> Config:
    """The configuration of a run that belongs to another one, in the same store."""
    tracking = config.tracking.model_copy(
        update={"parent_run_id": parent_run_id, "uri": tracking_uri(config.tracking)}
    )
    return config.model_copy(update={"tracking": tracking})
