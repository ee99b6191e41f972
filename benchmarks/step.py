"""A training step of the reference model on a GPU: time, images a second, memory.

    python -m benchmarks.step --json step.json

Needs a CUDA device; several are not used. Random backbones of the reference sizes, random images,
bf16 as in training. Every group below runs in a process of its own:

- peers: ours under ZeRO-1 and ZeRO-2, the same network in a plain PyTorch loop
  (fp32 weights, autocast, fused AdamW), and the authors' formulation (`benchmarks.authors`) in
  fp32, as they run it, and under autocast. They take turns, so that ratios have a spread.
- stages: every JSON of `launch/ds`.
- sizes: micro-batches, and the compiled network.
- table5: the eight schemes of Table V.

Memory is the most that torch allocated beyond what lay there before. The rate that floating-point
operations reach is given beside the rate of a large bf16 matrix product on the same GPU.
"""

import argparse
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from torch.multiprocessing import spawn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.authors import Authors, Departures
from benchmarks.memory import random_batch
from llm_mde import dist
from llm_mde.commands.options import DS_CONFIG
from llm_mde.config import Config
from llm_mde.launcher import free_port
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import load
from llm_mde.scoring.losses import LOSSES
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import micro_batch, resolve_ds, start, take_step
from llm_mde.training.statistics import StepStatistics

RECIPE = Path("launch/nyu.yaml")
RANDOM = ("model.vit.name=random:base:0", "model.llm.name=random:base:0")
DS = Path("launch/ds")
TABLE5 = Path("tune/spaces/table5.yaml")
SIZES = (8, 16, 32, 64, 128)
OURS = "ours, ZeRO-1, bf16"
WARM = 4
GB = 2**30
TERA = 1e12

Step = Callable[[], None]
Row = dict[str, Any]


def config_of(*sets: str) -> Config:
    """The reference run on random backbones, with other settings."""
    return load(RECIPE, sets=[*RANDOM, *sets])


def engine_step(config: Config, ds_config: Path) -> Step:
    """Optimizer steps as training makes them."""
    micro = micro_batch(config, 1)
    ds = resolve_ds(read_ds(ds_config), config, micro=micro, world=1, cuda=True)
    engine = start(DepthModel(config.model, seed=config.seed), config, ds=ds)
    running, loss_of = StepStatistics(engine.module, decay=None), LOSSES[config.train.loss]
    batch = {name: one.pin_memory() for name, one in random_batch(config, micro, seed=0).items()}

    def step() -> None:
        image, depth, valid = (
            batch[name].to(engine.device, non_blocking=True) for name in ("image", "depth", "valid")
        )
        engine.backward(loss_of(engine(image), depth, valid))
        running.take()
        take_step(engine, share=1.0)
        running.step(applied=True)

    return step


def plain_step(config: Config, *, authors: bool, autocast: bool) -> Step:
    """Optimizer steps of a loop as one writes it by hand."""
    model: nn.Module = DepthModel(config.model, seed=config.seed)
    if authors:
        model = Authors(model, departures=Departures(), seed=config.seed)
    model.cuda().train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    adam = torch.optim.AdamW(weights, lr=config.optim.lr, fused=True)
    images = config.train.batch
    batch = {name: one.pin_memory() for name, one in random_batch(config, images, seed=0).items()}
    context = torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext()

    def step() -> None:
        image, depth, valid = (
            batch[name].to("cuda", non_blocking=True) for name in ("image", "depth", "valid")
        )
        with context:
            log_depth = model(image, depth) if authors else model(image)
        loss_of = model.loss if authors else LOSSES[config.train.loss]
        loss_of(log_depth, depth, valid).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.optim.clip)
        adam.step()
        adam.zero_grad(set_to_none=True)

    return step


def ready(make: Callable[[], Step]) -> tuple[Step, float]:
    """A step that has run, and the most memory in GB that it and what it needs took."""
    gc.collect()  # an engine that nobody needs is a circle
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    step = make()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(WARM):
        step()
    torch.cuda.synchronize()
    return step, (torch.cuda.max_memory_allocated() - before) / GB


def timed(step: Step, count: int) -> float:
    """Milliseconds of a step, mean over `count` in a row."""
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(count):
        step()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / count * 1000


def row(name: str, images: int, turns: list[float], memory: float) -> Row:
    """A measurement."""
    middle = statistics.median(turns)
    rate = images / middle * 1000
    return {"name": name, "images": images, "ms": turns, "img_per_s": rate, "memory_gb": memory}


def alone(name: str, config: Config, ds: Path, rounds: int, count: int) -> Row:
    """A configuration by itself."""
    try:
        step, memory = ready(lambda: engine_step(config, ds))
        turns = [timed(step, count) for _ in range(rounds)]
        found = row(name, config.train.batch, turns, memory)
    except torch.OutOfMemoryError:
        found = {"name": name, "images": config.train.batch, "failed": "out of memory"}
    say(found)
    return found


def say(found: Row) -> None:
    """A line of the table."""
    if "failed" in found:
        print(f"| {found['name']} | {found['images']} | {found['failed']} | | |", flush=True)
        return
    turns = found["ms"]
    cells = [found["name"], str(found["images"])]
    cells += [f"{statistics.median(turns):.1f} ({min(turns):.1f}..{max(turns):.1f})"]
    cells += [f"{found['img_per_s']:.0f}", f"{found['memory_gb']:.2f}"]
    print(f"| {' | '.join(cells)} |", flush=True)


def peers(rounds: int, count: int) -> list[Row]:
    """Ours and the others in turns."""
    config = config_of()
    makes: dict[str, Callable[[], Step]] = {
        OURS: lambda: engine_step(config, DS_CONFIG),
        "ours, ZeRO-2, bf16": lambda: engine_step(config, DS / "zero2.json"),
        "ours, plain loop, autocast": lambda: plain_step(config, authors=False, autocast=True),
        "authors' formulation, fp32": lambda: plain_step(config, authors=True, autocast=False),
        "authors' formulation, autocast": lambda: plain_step(config, authors=True, autocast=True),
    }
    made = {name: ready(make) for name, make in makes.items()}
    turns: dict[str, list[float]] = {name: [] for name in made}
    for _ in range(rounds):
        for name, (step, _) in made.items():
            turns[name].append(timed(step, count))
    found = [row(name, config.train.batch, turns[name], made[name][1]) for name in made]
    for one in found:
        say(one)
        ratios = [t / o for t, o in zip(one["ms"], turns[OURS], strict=True)]
        one["of_ours"] = ratios
        print(f"  {statistics.median(ratios):.2f} ({min(ratios):.2f}..{max(ratios):.2f}) of ours")
    return [*found, rates(config, statistics.median(turns[OURS]))]


def rates(config: Config, ms: float) -> Row:
    """Floating-point operations of a step, and how fast the GPU does them at best."""
    model = DepthModel(config.model, seed=config.seed).cuda().to(torch.bfloat16).train()
    batch = {n: t.cuda() for n, t in random_batch(config, config.train.batch, seed=0).items()}
    with FlopCounterMode(display=False) as counter:
        loss = LOSSES[config.train.loss](model(batch["image"]), batch["depth"], batch["valid"])
        loss.backward()
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    a @ b
    best = min(timed(lambda: a @ b, 20) for _ in range(3))
    operations = counter.get_total_flops()
    found = {
        "name": "rates",
        "tflop_per_step": operations / TERA,
        "tflop_per_s": operations / TERA / ms * 1000,
        "matrix_tflop_per_s": 2 * 8192**3 / TERA / best * 1000,
    }
    print(
        f"  {found['tflop_per_step']:.2f} TFLOP a step, {found['tflop_per_s']:.0f} TFLOP/s; a "
        f"matrix product reaches {found['matrix_tflop_per_s']:.0f}",
        flush=True,
    )
    return found


def stages(rounds: int, count: int) -> list[Row]:
    """Every JSON; ZeRO-3, which changes torch's linear layer for good, comes last."""
    config, files = config_of(), sorted(DS.glob("*.json"))
    return [alone(file.stem, config, file, rounds, count) for file in files]


def sizes(rounds: int, count: int) -> list[Row]:
    """Micro-batches, and the compiled network."""
    found = []
    for size in SIZES:
        config = config_of(f"train.batch={size}")
        found.append(alone(f"batch {size}", config, DS_CONFIG, rounds, count))
    compiled = config_of("train.compile=true")
    return [*found, alone("compiled", compiled, DS_CONFIG, rounds, count)]


def table5(rounds: int, count: int) -> list[Row]:
    """The schemes."""
    found = []
    for name, settings in yaml.safe_load(TABLE5.read_text())["trials"].items():
        config = config_of(*(f"{path}={value}" for path, value in settings.items()))
        found.append(alone(name, config, DS_CONFIG, rounds, count))
    return found


GROUPS = {one.__name__: one for one in (peers, stages, sizes, table5)}


def measure(_: int, group: str, rounds: int, count: int, out: Path) -> None:
    """A group, in the process of the only rank."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = dist.join()
    out.write_text(json.dumps(GROUPS[group](rounds, count)))
    dist.leave(ranks)


def main() -> None:
    """Measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", nargs="*", choices=GROUPS, default=list(GROUPS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="in a row, in each turn")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        raise SystemExit("no CUDA device is seen here")
    results: dict[str, Any] = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    print(f"{results['gpu']}, torch {torch.__version__}")
    with tempfile.TemporaryDirectory() as place:
        for group in args.groups:
            print(f"\n| {group} | images | ms (spread) | img/s | GB |\n|{'---|' * 5}", flush=True)
            out = Path(place) / group
            spawn(measure, (group, args.rounds, args.steps, out))
            results[group] = json.loads(out.read_text())
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
