"""Trials through Ray Tune: each runs programs of ours as a user would, on the devices it was given.

A trial follows its run's `metrics.jsonl` and reports to Ray. Its programs are children of a Ray
worker, which dies without asking them: their process ids lie in files while they run, so that an
interruption ends them in an orderly way, and a training run saves.
"""

import contextlib
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray import tune

from llm_mde.config import Config, tracking_uri
from llm_mde.launcher import cores
from llm_mde.progress import duration
from llm_mde.recipes import dump
from llm_mde.studies.process import end, environment, gpu_ids, run_logged, single_command
from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.stopping import REQUEUE

logger = logging.getLogger(__name__)

SCORE = "val/abs_rel"


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


Work = Callable[[Place], None]
"""What a trial does, in a form that Ray can send: a function of a module, or a partial of one."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    seconds: float
    error: str | None
    """Why it failed."""


def run_trials(
    works: Mapping[str, Work], *, folder: Path, concurrent: int | None, of: int
) -> dict[str, Ended]:
    """Run all trials, as many at once as fit; one that fails does not stop the rest.

    Args:
        works: what each trial does.
        folder: for recipes, logs and Ray's own files; this command's alone.
        concurrent: trials at once; None: one a GPU, or one a core.
        of: trials of the whole study: a few that are left get the share of cores the others had.
    """
    gpus = len(gpu_ids())
    at_once = concurrent or gpus or min(cores(), of)
    threads = 1 if gpus else max(1, cores() // at_once)
    resources = {"cpu": threads} | ({"gpu": 1 / math.ceil(at_once / gpus)} if gpus else {})
    places = {name: Place(name, folder, gpus > 0, threads) for name in works}
    _set_up_ray()
    try:
        tuner = tune.Tuner(
            tune.with_resources(
                tune.with_parameters(_trial, works=dict(works), places=places), resources
            ),
            param_space={"trial": tune.grid_search(list(works))},
            tune_config=tune.TuneConfig(metric=SCORE, mode="min", max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="ray", storage_path=str(folder), verbose=0, callbacks=[_Lines(len(works))]
            ),
        )
        with redirect_stdout(sys.stderr), _ending(places.values()):  # stdout is for results
            results = {result.config["trial"]: result for result in tuner.fit()}
    finally:
        ray.shutdown()
    return {name: _ended(results[name]) for name in works}


def _set_up_ray() -> None:
    # Read by Ray's own processes. Without Tune's handler Ctrl-C raises here as everywhere; relative
    # paths and the default MLflow store are those of the command.
    for variable, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        ("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"),
        ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
        ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
        ("RAY_AIR_NEW_OUTPUT", "0"),  # the new one prints a banner whatever its verbosity
    ):
        os.environ.setdefault(variable, value)
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failed trials speak through our tables
    ray.init(
        address="local",  # not a cluster that happens to run: its nodes lack our folders
        num_cpus=cores(),
        num_gpus=len(gpu_ids()),  # as we count them; where Ray sees fewer, trials wait for ever
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


@contextlib.contextmanager
def _ending(places: Iterable[Place]) -> Iterator[None]:
    """Leave no program behind: those still running are asked to save and end, and waited for.

    SIGTERM, which would end Ray at once, ends us here as Ctrl-C does, and with the exit code of a
    training run.
    """
    files = [place.pid_file for place in places]
    end(files)  # those of a command that was killed, and could not
    asked: list[int] = []

    def stop(*_: object) -> None:
        asked.append(REQUEUE)
        raise KeyboardInterrupt  # the one exception that Ray's waiting passes on as it is

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    except KeyboardInterrupt:
        if asked:
            raise SystemExit(asked[0]) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        end(files)


class _Lines(tune.Callback):
    """A line as each trial ends, with the time the rest will take."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.began = total, 0, time.monotonic()

    def _line(self, trial: Any, how: str) -> None:
        self.done += 1
        eta = (time.monotonic() - self.began) / self.done * (self.total - self.done)
        name = trial.config["trial"]
        logger.info("trial %d/%d %s %s | ETA %s", self.done, self.total, name, how, duration(eta))

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook."""
        last = (trial.last_result or {}).get(SCORE)
        self._line(trial, "done" if last is None else f"last {SCORE} {last:.4f}")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self._line(trial, "failed")


def _trial(config: dict[str, Any], works: dict[str, Work], places: dict[str, Place]) -> None:
    """Ray's side of a trial."""
    works[config["trial"]](places[config["trial"]])


def _ended(result: Any) -> Ended:
    seconds = float((result.metrics or {}).get("time_total_s", 0.0))
    if result.error is None:
        return Ended(seconds, None)
    said = [line.strip() for line in str(result.error).splitlines() if line.strip()]
    return Ended(seconds, said[-1].removeprefix("RuntimeError: ") if said else repr(result.error))


def train(place: Place, config: Config, ds_config: Path) -> None:
    """A trial's training run, in a process of its own; what it records goes to Ray.

    Raises:
        RuntimeError: it failed; why, in one line.
    """
    recipe = place.folder / f"{place.name}.yaml"
    recipe.write_text(dump(config), encoding="utf-8")
    sent = 0

    def report_new(_: str) -> None:
        nonlocal sent
        for row in evaluations(config.run_dir, after=sent):
            tune.report(row)
            sent = row["step"]

    words = ["train", "--config", str(recipe), "--ds_config", str(ds_config)]
    run_program(place, words, log=place.log(), each=report_new)
    report_new("")


def run_program(place: Place, words: list[str], *, log: Path, each: Callable[[str], None]) -> None:
    """`llm-mde <words>` with a trial's devices; `each` gets every line it prints.

    Raises:
        RuntimeError: it failed; why, in one line.
    """
    # The shell becomes the program, under the process id that it wrote down.
    noted = ["sh", "-c", 'echo "$$" > "$0" && exec "$@"', str(place.pid_file)]
    env = environment(gpus=place.gpus, threads=place.threads)
    try:
        code = run_logged([*noted, *single_command(words)], env=env, log=log, each=each)
    finally:
        place.pid_file.unlink(missing_ok=True)
    if code:
        raise RuntimeError(f"{_reason(log, code)}; see {log}")


def _reason(log: Path, code: int) -> str:
    """The last line of a failed program's log that tells of an error."""
    said = log.read_text(encoding="utf-8").splitlines()
    telling = (line for line in reversed(said) if "Error" in line or line.startswith("llm-mde "))
    return next(telling, f"ended with exit code {code}")


def evaluations(run: Path, *, after: int = 0) -> Iterator[dict[str, Any]]:
    """What a run recorded at its evaluations behind a step."""
    for row in read_metrics(run / METRICS_FILE):
        if SCORE in row and row["step"] > after:
            yield row


def below(config: Config, parent_run_id: str | None) -> Config:
    """The configuration of a run that belongs to another one, in the same store."""
    tracking = config.tracking.model_copy(
        update={"parent_run_id": parent_run_id, "uri": tracking_uri(config.tracking)}
    )
    return config.model_copy(update={"tracking": tracking})
