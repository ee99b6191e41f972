"""Tiny training runs, watched step by step."""

import copy
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.chaos import CLOCKS
from llm_mde import dist
from llm_mde.config import Config
from llm_mde.recipes import build, put
from llm_mde.scoring.losses import LOSSES
from llm_mde.training import checkpoint, loop, train
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import trained_state
from llm_mde.training.meter import Meter
from llm_mde.training.statistics import running_statistics
from llm_mde.training.stopping import REQUEUE
from tests.support.shards import write_shards


def make_shards(folder: Path) -> Path:
    write_shards(folder, [14, 12, 11], split="train", size=(40, 56))
    return write_shards(folder, [4, 3], split="val", size=(40, 56))


def tiny_config(shards: Path, runs: Path, name: str, **changes: Any) -> Config:
    """A run of the smallest model that has every part; `a__b=c` is what `--set a.b=c` says.

    37 training samples: nine steps of batch 4 an epoch, one sample left out.
    """
    tree: dict[str, Any] = {
        "name": name,
        "runs": str(runs),
        "model": {
            "image_size": [32, 48],
            "vit": {"name": "random:tiny:0", "tune": "full"},
            "llm": {"name": "random:tiny:1", "tune": "full"},
            "reprogram": {"prototypes": 16},
            "head": {"widths": [16, 16, 8, 8]},
        },
        "data": {"shards": str(shards), "workers": 0, "shuffle_window": 3},
        # With Adam's usual epsilon a vanishing gradient's rounding decides a whole step's sign.
        "optim": {"lr": 1e-4, "eps": 1e-5},
        "train": {
            "batch": 4,
            "micro_batch": 2,
            "max_steps": 20,
            "log_every": 1,
            "figures": 0,
            "eval_every": 100,
        },
        "tracking": {"mlflow": False},
    }
    for dotted, value in changes.items():
        put(tree, dotted.replace("__", "."), copy.deepcopy(value))  # later ones may reach into it
    return build(tree)


LORA = {
    "model__vit": {"name": "random:tiny:0", "tune": "lora", "lora": {"r": 4, "alpha": 8}},
    "model__llm": {"name": "random:tiny:1", "tune": "lora", "lora": {"r": 4, "alpha": 8}},
}

# A frozen ViT with adapters, a BERT that trains. Three micro-batches a step on each of two ranks:
# three steps an epoch, so there are stops in both epochs, before, at and after an evaluation.
RESUMED = {
    "model__vit": LORA["model__vit"],
    "train__batch": 12,
    "train__max_steps": 5,
    "train__eval_every": 1,
    "train__save_steps": 2,
}


def ds_json(
    stage: int, *, whole_below: int = 10_000, offload: bool = False, **more: Any
) -> dict[str, Any]:
    """DeepSpeed's JSON as shipped, but ZeRO-3 splits weights of `whole_below` numbers or more.

    E (402 x 128) is split then, and M (16 x 402) with a lower bound.
    """
    ds = read_ds(Path(f"launch/ds/zero{stage}{'_offload' if offload else ''}.json"))
    if stage == 3:
        ds["zero_optimization"]["stage3_param_persistence_threshold"] = whole_below
    return ds | more


def no_export(config, state, folder, *, seed, scores, data=None):
    """Instead of an adapter folder: what would go into it."""
    torch.save(state, folder.parent / "exported.pt")


@dataclass
class Watched:
    """What one rank saw."""

    code: int
    start: int
    keys: list[list[str]] = field(default_factory=list)
    statistics: list[list[Tensor]] = field(default_factory=list)
    moments: list[Tensor] = field(default_factory=list)
    lr: list[float] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)
    files: dict[str, Any] = field(default_factory=dict)
    """Sizes and hashes of the last checkpoint's files."""
    rows: list[dict[str, float]] = field(default_factory=list)

    def train(self, name: str = "train/loss") -> list[float]:
        return [row[name] for row in self.rows if name in row]


def moments(engine: Any) -> list[Tensor]:
    """AdamW's own state on this rank, in the order of its groups."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    names = ("exp_avg", "exp_avg_sq", "step")  # a running mean's padding is what memory held
    return [torch.as_tensor(one[name]).clone() for one in adam.state.values() for name in names]


def begin(config: Config, ds: dict[str, Any], *, resume: str = "auto"):
    """A run and where it stands, in the process group of this rank."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ranks = dist.Ranks(dist.rank(), dist.world(), dist.rank(), device)
    return train.prepare(config, ds, ranks=ranks, resume=resume, export=no_export)


def watched_run(
    config: Config,
    ds: dict[str, Any],
    *,
    resume: str = "auto",
    stop_at: int | None = None,
    poison: int | None = None,
) -> Watched:
    """Train; with `stop_at` the last rank alone hears a signal during that step.

    With `poison` the last rank's losses in that global batch are not numbers.
    """
    run, standing = begin(config, ds, resume=resume)
    seen = watch(run, standing, stop_at=stop_at, poison=poison)
    run.engine.destroy()
    return seen


def watch(
    run: Any,
    standing: Any,
    *,
    stop_at: int | None = None,
    poison: int | None = None,
) -> Watched:
    """The same for a run that has begun; its engine stays alive."""
    seen = Watched(code=-1, start=standing.step)
    stops: list[int] = []
    last = dist.rank() == dist.world() - 1
    loss = LOSSES[run.config.train.loss]

    def poisoned(*args: Tensor) -> Tensor:
        return loss(*args) * (math.nan if last and standing.batches == poison else 1.0)

    class Watching(Meter):
        def add(self, loss: Tensor, keys: list[str]) -> None:
            super().add(loss, keys)
            seen.keys.append(keys)
            if stop_at == standing.step + 1 and last:
                stops.append(REQUEUE)

        def report(self, step: int, *, lr: float, skipped: int) -> None:
            super().report(step, lr=lr, skipped=skipped)
            now = running_statistics(run.engine.module).values()
            seen.statistics.append([value.clone() for value in now])

    losses = {run.config.train.loss: poisoned}
    with patch.object(loop, "Meter", Watching), patch.object(loop, "LOSSES", losses):
        seen.code = train.follow(run, standing, asked=lambda: stops[0] if stops else None)
    seen.moments, seen.lr = moments(run.engine), list(run.engine.get_lr())
    seen.state = trained_state(run.engine)
    dist.all_agree(True)
    newest = checkpoint.choose(run.config.run_dir / "checkpoints", "auto")
    if newest:
        seen.files = json.loads((newest / checkpoint.MANIFEST).read_text())["files"]
    lines = (run.config.run_dir / "metrics.jsonl").read_text().splitlines()
    seen.rows = [json.loads(line) for line in lines]
    return seen


def largest_relative(got, want):
    return ((got - want).abs() / want.abs()).max().item()


def same(got, want):
    """Equal to the last bit, tensors in lists and mappings included."""
    if isinstance(want, torch.Tensor):
        return torch.equal(got, want)
    if isinstance(want, dict):
        return list(got) == list(want) and all(same(got[key], want[key]) for key in want)
    if isinstance(want, list):
        return len(got) == len(want) and all(map(same, got, want))
    return got == want


def steady(rows):
    """What is logged, without clocks."""
    return [{k: v for k, v in row.items() if not k.startswith(CLOCKS)} for row in rows]


def assert_the_same(whole, parts):
    end = parts[-1]
    assert [keys for part in parts for keys in part.keys] == whole.keys
    assert same([s for part in parts for s in part.statistics], whole.statistics)
    assert len(whole.moments) > 0
    # Masters and moments as saved, whole; then moments as they lie on each rank.
    mean = "ema.safetensors" in whole.files
    assert len(whole.files) == 3 + mean and end.files == whole.files
    assert same(end.moments, whole.moments)
    assert end.lr == whole.lr
    assert same(end.state, whole.state)
    assert steady(end.rows) == steady(whole.rows)
