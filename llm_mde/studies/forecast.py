"""What a sweep has before it, and about how long that takes on this machine."""

import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from llm_mde.config import Config
from llm_mde.model.depth_model import DepthModel
from llm_mde.progress import duration
from llm_mde.recipes import short
from llm_mde.scoring.losses import LOSSES
from llm_mde.studies.plan import counted
from llm_mde.studies.process import here
from llm_mde.studies.records import Records
from llm_mde.studies.share import Devices, Share, devices_of
from llm_mde.studies.sweep_plan import RECORDS, Sweep

MICRO_BATCH = 8  # images of a measured pass, at most
PASSES = 3  # the fastest counts: the first ones warm up
FORWARD = 1 / 3  # of a forward and backward pass
START_S = 15.0  # until a run trains: Ray's worker, imports, shards, backbones; and to save its end


@dataclass(frozen=True)
class Forecast:
    """What `--dry-run` says."""

    sweep: Sweep
    states: Mapping[str, str]
    """Trial -> done, stopped, failed, begun or to do."""
    devices: Devices
    image_s: float
    """Seconds that an image takes to train on."""
    seconds: float
    """Of all that is left, about."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        trials = [
            {
                "trial": name,
                "settings": self.sweep.as_run(name, settings),
                "steps": self.sweep.steps[name],
            }
            | {"state": self.states.get(name, "to do")}
            for name, settings in self.sweep.trials.items()
        ]
        return {
            "name": self.sweep.name,
            "folder": str(self.sweep.folder),
            "trials": trials,
            "total": self.sweep.total,
            "at_once": self.devices.at_once,
            "seconds": round(self.seconds),
        }

    def lines(self) -> list[str]:
        """For people: a line a trial; long ones share what they have in common."""
        sweep, lines = self.sweep, []
        as_run = {name: sweep.as_run(name, settings) for name, settings in sweep.trials.items()}
        common = _common(list(as_run.values()))
        names = short(path for settings in as_run.values() for path in settings)
        for name, settings in as_run.items():
            own = [f"{names[path]}={v}" for path, v in settings.items() if path not in common]
            state = self.states.get(name, "to do")
            lines.append(f"{name}  {' '.join(own) or '-'}  steps {self.sweep.steps[name]}  {state}")
        if sweep.bayes:
            over = dict(Counter(self.states.values()))
            lines.append(f"{sweep.total} trials that Optuna suggests as they go on; so far: {over}")
        if common and len(sweep.trials) > 1:
            shared = " ".join(f"{names[path]}={value}" for path, value in common.items())
            lines.append(f"all: {shared}")
        each = ", ".join(f"{value:g} {name}" for name, value in self.devices.resources().items())
        return [
            *lines,
            f"{sweep.total} trials, {self.devices.at_once} at once, each with {each}",
            f"folder: {sweep.folder}",
            f"about {duration(self.seconds)} for what is left ({1000 * self.image_s:.3g} ms an "
            "image, measured with the first trial's model; less where trials are stopped early)",
        ]


def forecast(sweep: Sweep, asked: Share) -> Forecast:
    """Measures a few passes of the first trial's model; nothing is written.

    Raises:
        ConfigError: a trial asks for more devices than there are.
    """
    devices = devices_of(asked, nodes=[here()], of=sweep.total)
    records = Records(sweep.folder / RECORDS, write=False).all
    states = {name: record.state for name, record in records.items()}
    image_s = _image_s(sweep.config, devices)
    left = [name for name in sweep.trials if not (name in records and records[name].over)]
    each = [_images(sweep, sweep.trials[name], sweep.steps[name]) * image_s for name in left]
    if sweep.bayes:
        still = sweep.total - sum(record.over for record in records.values())
        each = [_images(sweep, {}, sweep.longest) * image_s] * still
    seconds = sum(one + START_S for one in each) / max(1, min(devices.at_once, len(each)))
    return Forecast(sweep, states, devices, image_s=image_s, seconds=seconds)


def _images(sweep: Sweep, settings: dict[str, Any], steps: int) -> float:
    """Images of a trial, each evaluated one as the part of a trained one that it costs."""
    config = sweep.base.config_of("t", settings)
    train, val = (
        counted(str(config.data.shards), keys)[0]
        for keys in (config.data.train_split, config.data.val_split)
    )
    trained = steps * config.train.batch
    evaluations = max(1, round(trained / train / config.train.eval_every))
    return trained + evaluations * val * FORWARD


def _image_s(config: Config, devices: Devices) -> float:
    """Seconds that a trial takes for an image, forward and backward, in the precision it has."""
    cuda = devices.gpus > 0
    device = torch.device("cuda" if cuda else "cpu")
    number = min(config.train.micro_batch or config.train.batch, MICRO_BATCH)
    size = (number, 1, *config.model.image_size)
    threads = torch.get_num_threads()
    torch.set_num_threads(devices.cpus if not cuda else threads)
    try:
        model = DepthModel(config.model, seed=config.seed).to(device).train()
        image = torch.zeros(number, 3, *config.model.image_size, dtype=torch.uint8, device=device)
        depth = torch.ones(size, device=device)
        times = []
        for _ in range(PASSES):
            began = time.perf_counter()
            with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
                log_depth = model(image)
            LOSSES[config.train.loss](log_depth.float(), depth, depth > 0).backward()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
    return min(times) / number


def _common(trials: list[dict[str, Any]]) -> dict[str, Any]:
    """What all trials set to the same value."""
    first = trials[0] if trials else {}
    return {p: v for p, v in first.items() if all(t.get(p, None) == v for t in trials)}
