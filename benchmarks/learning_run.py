"""One training run of `learning.py`: its data, its loop on one core, its scores."""

import copy
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.arms import SIZE, bert_folder, build, loss
from llm_mde.config import AugmentConfig, OptimConfig
from llm_mde.data.index import Index, open_index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import Batch, evaluation_batches, training_batches
from llm_mde.scoring.baselines import baselines_of
from llm_mde.scoring.evaluate import evaluate
from llm_mde.scoring.losses import silog
from llm_mde.training.engine import cosine, parameter_groups

BATCH, MAX_DEPTH = 8, 10.0
SHAPE = Shape(SIZE, "bicubic", MAX_DEPTH)
EVERY = 4  # every 4th pixel of 480x640 is scored, those in the middles of 4x4 blocks
WARM_UP = 12  # steps that measure what a step costs; they train a copy
SPARE = 0.97  # of the time that a limit leaves is planned for, as steps vary
PROTOCOLS, METRICS = ("metric", "aligned_median"), ("abs_rel", "rmse", "delta1")

ROOT = Path(__file__).parents[1]
# Files that decide what a run comes to.
CODE = (
    *("benchmarks/arms.py", "benchmarks/authors.py", "benchmarks/learning_run.py"),
    *("llm_mde/model/*.py", "llm_mde/data/*.py", "llm_mde/scoring/*.py", "llm_mde/config.py"),
    "llm_mde/training/engine.py",
)
# Folder of shards, key list that trains, key list that is scored. The Kinect sequence shows one
# room; `tune` cuts what `kinect` trains on in two.
SETTINGS = {
    "kinect": ("kinect", "early", "later"),
    "tune": ("kinect", "earliest", "early-rest"),
    "rooms": ("rooms", "train", "test"),
    "rooms-few": ("rooms", "few-shot-4", "test"),
}
KINECT = {
    "early": range(0, 501),
    "earliest": range(0, 401),
    "early-rest": range(404, 501),
    "later": range(550, 701),
}
ROOMS = {"scenes": 110, "frames": 6}  # generated; a room is in one split


@dataclass(frozen=True)
class Run:
    """What one process trains and scores."""

    setting: str
    arm: str
    seed: int
    lr: float
    steps: int | None
    minutes: float | None
    """CPU minutes of the whole process but for its scores; in place of `steps`."""

    @property
    def name(self) -> str:
        """The result's file name."""
        length = f"steps{self.steps}" if self.minutes is None else f"minutes{self.minutes:g}"
        return f"{self.setting}-{self.arm}-seed{self.seed}-lr{self.lr:g}-{length}.json"


@cache
def results_folder(work: Path) -> Path:
    """Folder of the results of this code: what was made with other code does not count."""
    files = [file for part in CODE for file in sorted(ROOT.glob(part))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    return work / f"results-{digest[:8]}"


def perform(run: Run, work: Path) -> dict[str, Any]:
    """Trains, scores and writes one run, unless its result is there; the result."""
    path = results_folder(work) / run.name
    if path.exists():
        return json.loads(path.read_text())
    torch.set_num_threads(1)
    folder, train, test = SETTINGS[run.setting]
    index = open_index(work / folder, train)
    if run.arm == "mean_map":
        mean_map = baselines_of(index, max_depth=MAX_DEPTH).mean_map
        result = asdict(run) | {"scores": scores(Constant(mean_map), work / folder, test)}
    else:
        model, numbers = fit(run, index)
        result = asdict(run) | numbers | {"scores": scores(model, work / folder, test)}
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_suffix(".tmp")
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.rename(path)
    return result


def fit(run: Run, index: Index) -> tuple[nn.Module, dict[str, Any]]:
    """A trained network, and what its training took."""
    model = build(run.arm, run.seed, bert_folder())
    weights = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    plan = Plan(index.counts, batch=BATCH, micro_batch=BATCH, seed=run.seed)
    batches = training_batches(
        index, plan, SHAPE, part=Part(), augmentation=AugmentConfig(), cache=True
    )
    stream, steps = iter(batches), run.steps
    if run.minutes is not None:
        probe, start = copy.deepcopy(model), time.process_time()
        train(probe, stream, steps=WARM_UP, run=run)
        step_s = (time.process_time() - start) / WARM_UP
        steps = int((60 * run.minutes - time.process_time()) * SPARE / step_s)
    assert steps is not None
    began = time.process_time()
    final = train(model, stream, steps=steps, run=run)
    now = time.process_time()
    numbers = {"steps": steps, "step_s": (now - began) / steps, "cpu_s": now, "trainable": weights}
    return model, numbers | {"loss": final}


def train(model: nn.Module, stream: Iterator[Batch], *, steps: int, run: Run) -> float:
    """AdamW as the product sets it up, with a cosine over `steps`; the last 50 losses' mean."""
    optim = OptimConfig(lr=run.lr)
    groups: Any = parameter_groups(model, optim)  # type: ignore[arg-type] # it asks for groups()
    optimizer = torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: cosine(step, steps))
    weights = [weight for group in groups for weight in group["params"]]
    torch.manual_seed(run.seed)  # dropout
    model.train()
    losses = []
    for batch in islice(stream, steps):
        value = loss(model, batch)
        optimizer.zero_grad()
        value.backward()
        if nn.utils.clip_grad_norm_(weights, optim.clip).isfinite():  # else left out, as there
            optimizer.step()
        schedule.step()
        losses.append(value.item())
    return sum(losses[-50:]) / len(losses[-50:])


class Constant(nn.Module):
    """The same depth map for every image, as its logarithm."""

    log_depth: Tensor

    def __init__(self, depth: Tensor) -> None:
        super().__init__()
        self.register_buffer("log_depth", depth.log())

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, h, w) -> (B, 1, H, W)."""
        return self.log_depth.expand(len(image), 1, -1, -1)


def scores(model: nn.Module, folder: Path, split: str) -> dict[str, float]:
    """Every metric under both protocols, at 120x160."""
    model.eval()
    batches = evaluation_batches(open_index(folder, split), SHAPE, batch=BATCH, part=Part())
    result = evaluate(lambda image: model(image).exp(), _sparse(batches), loss=silog)
    return {
        f"{protocol}/{metric}": result.means[f"{protocol}/{metric}"]
        for protocol in PROTOCOLS
        for metric in METRICS
    }


def _sparse(batches: Iterable[Batch]) -> Iterator[Batch]:
    pick = slice(EVERY // 2, None, EVERY)
    for batch in batches:
        yield batch | {name: batch[name][..., pick, pick] for name in ("depth", "valid")}


def make_data(work: Path, settings: list[str]) -> None:
    """Shards of the settings below `work`, unless they are there."""
    work.mkdir(parents=True, exist_ok=True)
    for folder in {SETTINGS[setting][0] for setting in settings}:
        if not (work / folder).exists():
            unfinished = work / f"{folder}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            (pack_kinect if folder == "kinect" else pack_rooms)(unfinished)
            unfinished.rename(work / folder)
        if folder == "kinect":
            list_stretches(work / folder)


def pack_kinect(out: Path) -> None:
    """The real sequence, every frame once."""
    source = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "redkitchen"
    if not source.is_dir():
        raise SystemExit("LLM_MDE_TESTDATA/redkitchen: the Kinect frames are not in the project")
    files = "--rgb", "frame-{index}.color.jpg", "--depth", "frame-{index}.depth.png"
    _llm_mde("pack", str(source), "--out", str(out), *files)


def list_stretches(out: Path) -> None:
    """Key lists of stretches of the sequence."""
    keys = (out / "splits" / "train.txt").read_text().split()
    for name, numbers in KINECT.items():
        chosen = [key for key in keys if int(key.rpartition("-")[2]) in numbers]
        (out / "splits" / f"{name}.txt").write_text("".join(f"{key}\n" for key in chosen))


def pack_rooms(out: Path) -> None:
    """Generated rooms, packed with whole rooms in each split."""
    raw = out.with_name("raw")
    words = [word for name, value in ROOMS.items() for word in (f"--{name}", str(value))]
    _llm_mde("synth", str(raw), *words)
    _llm_mde("pack", str(raw), "--out", str(out), "--splits", "scene", "--max-lost", "1")


def _llm_mde(*words: str) -> None:
    subprocess.run([sys.executable, "-m", "llm_mde", *words], check=True, stdout=sys.stderr)
