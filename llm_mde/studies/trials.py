"""Trials through Ray Tune: each runs programs of ours as a user would, on the devices it was given.

A trial follows its run's `metrics.jsonl` and reports to Ray. Its programs are children of a Ray
worker, which may die without asking them: a training run then saves and ends by itself, and the
process ids lie in files while programs run, so that an interruption ends them in an orderly way.
"""

import logging
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from llm_mde.credentials import URI
from llm_mde.errors import ConfigError
from llm_mde.studies import lineage
from llm_mde.studies.process import end, ending, here
from llm_mde.studies.programs import SCORE, TIME, Place, Row
from llm_mde.studies.share import Share, devices_of

logger = logging.getLogger(__name__)

LOSSES = 3  # of a node under a trial, after which it counts as failed
END, ERROR = "trial_ended", "trial_error"  # in the last result of a trial that ended by itself


Work = Callable[[Place, dict[str, Any]], Iterator[Row]]
"""What a trial does with its settings: yields what it recorded at each evaluation, and raises
RuntimeError with the reason where it fails. Ray must be able to send it."""


@dataclass(frozen=True)
class Ended:
    """How a trial ended."""

    seconds: float
    error: str | None
    """Why it failed."""
    stopped: bool = False
    """The scheduler ended it early."""


class Watch:
    """Hears of trials while they run. This one does nothing."""

    def started(self, name: str, settings: dict[str, Any]) -> None:
        """A trial has got its devices."""

    def row(self, name: str, row: Row) -> None:
        """It recorded an evaluation."""

    def ended(self, name: str, ended: Ended) -> None:
        """It is over."""


@dataclass(frozen=True)
class How:
    """How trials are run."""

    folder: Path
    """For recipes, logs and Ray's own files; this command's alone."""
    share: Share = Share()
    """Devices of a trial."""
    address: str | None = None
    """Of a Ray cluster that runs already; its nodes see the same files. None: this machine."""
    scheduler: TrialScheduler | None = None
    """Ends some early; None: each runs to its end."""
    run_of: Callable[[str, dict[str, Any]], Path] | None = None
    """The run's folder of a trial by name and settings, where the scheduler lets trials go on from
    each other's checkpoints."""


def run_trials(
    work: Work,
    trials: Mapping[str, dict[str, Any]],
    how: How,
    *,
    of: int,
    watch: Watch,
    more: Searcher | None = None,
    samples: int = 0,
) -> dict[str, Ended]:
    """Run all trials, as many at once as fit; one that fails does not stop the rest.

    Args:
        work: what a trial does.
        trials: name -> settings.
        how: where, with what.
        of: trials of the whole study: a few that are left get the share of cores the others had.
        watch: hears of them, in this process.
        more: suggests trials in place of `trials`: `{"trial": {"name": ..., "settings": ...}}`.
        samples: how many `more` is asked for.

    Raises:
        ConfigError: a trial asks for more devices than there are; no cluster at the address.
    """
    hooks = _Hooks(watch)
    _set_up_ray(how.address)
    try:
        devices = devices_of(how.share, nodes=_nodes(), of=of)
        given = {"work": work, "folder": how.folder, "run_of": how.run_of}
        own = {"gpus": devices.gpus > 0, "threads": devices.cpus}
        trainable = tune.with_parameters(_Trial, **given, **own)
        listed = [{"name": name, "settings": settings} for name, settings in trials.items()]
        tuner = tune.Tuner(
            tune.with_resources(trainable, devices.resources()),
            param_space=None if more else {"trial": tune.grid_search(listed)},
            tune_config=tune.TuneConfig(
                metric=SCORE,
                mode="min",
                max_concurrent_trials=devices.at_once,
                scheduler=how.scheduler,
                search_alg=more,
                num_samples=samples if more else 1,
                trial_name_creator=_name_at_first,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="ray",
                storage_path=str(how.folder),
                verbose=0,
                callbacks=[hooks],
                failure_config=tune.FailureConfig(max_failures=LOSSES),
                checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),
            ),
        )
        with redirect_stdout(sys.stderr), ending(how.folder):  # stdout is for results
            tuner.fit()
    finally:
        ray.shutdown()
    return hooks.found


def _name_at_first(trial: Any) -> str:
    """A trial's name for good: a scheduler may give it the whole configuration of another one."""
    name: str = trial.config["trial"]["name"]
    return name


def _set_up_ray(address: str | None) -> None:
    # Read by Ray's own processes. Without Tune's handler Ctrl-C raises here as everywhere; relative
    # paths and the default MLflow store are those of the command.
    for variable, value in (
        ("RAY_USAGE_STATS_ENABLED", "0"),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1"),
        ("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1"),
        ("TUNE_DISABLE_SIGINT_HANDLER", "1"),
        ("RAY_CHDIR_TO_TRIAL_DIR", "0"),
        ("RAY_memory_monitor_refresh_ms", "0"),  # it would end our workers, not what needs memory
        ("RAY_AIR_NEW_OUTPUT", "0"),  # the new one prints a banner whatever its verbosity
    ):
        os.environ.setdefault(variable, value)
    logging.getLogger("ray").setLevel(logging.CRITICAL)  # failed trials speak through our tables
    # On this machine: not a cluster that happens to run, whose nodes lack our folders; GPUs as we
    # count them: where Ray sees fewer, trials wait for ever.
    own = {**dict(zip(("num_cpus", "num_gpus"), here(), strict=True)), "include_dashboard": False}
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.CRITICAL,
            **({"runtime_env": {"env_vars": _told()}} if address else own),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        if address is None:
            raise
        raise ConfigError(
            f"--address {address}: no Ray cluster answers there ({_last_line(error)}); start one "
            "with 'ray start --head', or leave --address out"
        ) from error


def _told() -> dict[str, str]:
    """What workers that others have started must know of our environment."""
    return {name: os.environ[name] for name in (URI,) if name in os.environ}


def _nodes() -> list[tuple[int, int]]:
    """CPUs and GPUs of each node."""
    resources = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [(int(one.get("CPU", 0)), int(one.get("GPU", 0))) for one in resources]


class _Hooks(tune.Callback):
    """Ray's events as ours."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self.found: dict[str, Ended] = {}

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook."""
        self.watch.started(str(trial), trial.config["trial"]["settings"])

    def on_trial_result(
        self, iteration: int, trials: Any, trial: Any, result: Row, **info: Any
    ) -> None:
        """Ray's hook."""
        if TIME in result:
            self.watch.row(str(trial), result)

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook; also for a trial that a scheduler ends early."""
        last = trial.last_result or {}
        self._end(trial, last, error=last.get(ERROR), stopped=END not in last)

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        """Ray's hook: not a failed program, but a lost worker or a mistake of ours."""
        reason = _last_line(trial.get_error() or trial.get_pickled_error() or "lost")
        self._end(trial, trial.last_result or {}, error=reason, stopped=False)

    def _end(self, trial: Any, last: Row, *, error: str | None, stopped: bool) -> None:
        name = str(trial)
        seconds = float(last.get("time_total_s", 0.0))
        self.found[name] = Ended(seconds, error, stopped)
        self.watch.ended(name, self.found[name])


class _Trial(tune.Trainable):
    """Ray's side of a trial: a step is all up to the next evaluation."""

    def setup(
        self,
        config: dict[str, Any],
        work: Work,
        folder: Path,
        run_of: Callable[[str, dict[str, Any]], Path] | None,
        gpus: bool,
        threads: int,
    ) -> None:
        """Ray's hook."""
        self._work, self._run_of = work, run_of
        self._place = partial(Place, folder=folder, gpus=gpus, threads=threads)
        self._rows: Iterator[Row] = iter(())
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Ray's hook: another trial in this process, which took seconds to start."""
        self.cleanup()
        self._settings = new_config["trial"]["settings"]
        self._rows = self._work(self._place(self.trial_name), self._settings)
        self._row: Row = {}
        return True

    def step(self) -> Row:
        """Ray's hook."""
        try:
            self._row = next(self._rows)
        except StopIteration:
            return self._row | {"done": True, END: True}
        except RuntimeError as error:  # not raised: Ray would try again, as after a lost node
            return self._row | {"done": True, END: True, ERROR: str(error)}
        return self._row

    def cleanup(self) -> None:
        """Ray's hook; a trial that ends early is asked to save, and waited for."""
        if isinstance(self._rows, Generator):
            self._rows.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Ray's hook: for another trial, or this one, to go on from."""
        assert self._run_of
        lineage.copy(self._run_of(self.trial_name, self._settings), Path(checkpoint_dir))

    def load_checkpoint(self, checkpoint: str | None) -> None:
        """Ray's hook: the program, once it starts, goes on from these alone."""
        assert self._run_of and checkpoint
        end([self._place(self.trial_name).pid_file])  # where another worker had it
        lineage.adopt(self._run_of(self.trial_name, self._settings), Path(checkpoint))


def _last_line(error: object) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else repr(error)
