"""Bytes that a rank holds under each DeepSpeed JSON, beside what training says before it begins.

    python -m benchmarks.memory --ranks 2 --json memory.json

Processes of this machine (a GPU each, where there are some; else CPUs under Linux) take two steps
of training on random images through the engine, in bf16 as on GPUs; backbones are random, which
takes as many bytes as pretrained ones. The table has, of the rank with the most:

- weights, masters, Adam's moments and gradients, counted from the storages of the tensors that
  model and DeepSpeed's optimizer hold, each once, gradients when there are most of them; under
  offload those in the host's memory too;
- buffers: all other tensors that Python sees after the backward pass, mostly DeepSpeed's buckets;
- activations: what the forward pass keeps for the backward pass, weights left out;
- what the second step adds at its peak to what lay there before: gradients, activations, gathered
  weights, copies. On a GPU of allocated memory; on a CPU of the process's resident set, of which
  Python and its libraries are about 1 GB before there is a model;
- in brackets what `llm_mde.training.preflight` computes; for more ranks that alone.
"""

import argparse
import ctypes
import gc
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor
from torch.multiprocessing import spawn

from llm_mde import dist
from llm_mde.config import Config
from llm_mde.launcher import free_port
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import load
from llm_mde.scoring.losses import LOSSES
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import Engine, resolve_ds, start, take_step
from llm_mde.training.preflight import Need, need, saved_bytes, saving, sizes
from llm_mde.training.state import MOMENTS, make_moments

PARTS = ("frozen", "trainable", "gradients", "masters", "moments")
BUFFERS = "buffers"
# Where DeepSpeed's optimizers keep gradients between the backward pass and AdamW's step.
GRADIENTS = (
    "fp32_groups_gradients_flat",  # ZeRO 1 in bf16
    *("averaged_gradients", "all_grad_tensors", "grads_in_partition"),  # else ZeRO 1 and 2
    "accumulated_grads_in_cpu",
    "grad_partitions_flat_buffer",  # ZeRO 3
)
MORE_RANKS = (8, 64)
MB = 2**20

Bytes = dict[str, int]


@dataclass(frozen=True)
class Task:
    """What each rank of a group measures."""

    ds: Path
    config: Config
    ranks: int
    folder: Path
    """Where ranks leave their results."""
    port: int

    def resolved(self, ranks: int) -> dict[str, Any]:
        """DeepSpeed's JSON as on that many GPUs."""
        micro = self.config.train.micro_batch or 1
        train = self.config.train.model_copy(update={"batch": micro * ranks})
        config = self.config.model_copy(update={"train": train})
        return resolve_ds(read_ds(self.ds), config, micro=micro, world=ranks, cuda=True)


@dataclass(frozen=True)
class Measured:
    """Of one rank; bytes."""

    rank: int
    device: str
    optimizer: str
    """DeepSpeed's class around AdamW."""
    held: dict[str, Bytes]
    """Device -> part -> bytes."""
    activations: int
    """Kept for the backward pass."""
    before: int
    """Allocated on the GPU, or resident, before the second step."""
    peak: int
    """In it."""


def tensors_in(thing: Any) -> Iterator[Tensor]:
    """All tensors of nested containers."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for one in thing.values() if isinstance(thing, dict) else thing:
            yield from tensors_in(one)


def parts_of(engine: Engine) -> dict[str, list[Tensor]]:
    """Tensors of a rank by part; some are in several, and several may share a storage."""
    adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
    weights, masters = list(engine.module.parameters()), list(adam.state)
    names = {False: "frozen", True: "trainable"}
    parts: dict[str, list[Tensor]] = {name: [] for name in PARTS}
    for weight in weights:
        piece = getattr(weight, "ds_tensor", None)  # of ZeRO 3, which leaves no whole weight
        parts[names[weight.requires_grad]] += [weight.data, *tensors_in([piece])]
    parts["masters"] = masters
    parts["moments"] = [adam.state[master][name] for master in masters for name in MOMENTS]
    kept = [getattr(engine.optimizer, name, None) for name in GRADIENTS]
    parts["gradients"] = list(tensors_in([[one.grad for one in [*weights, *masters]], kept]))
    return parts


def count(parts: dict[str, Iterable[Tensor]], device: str) -> Bytes:
    """Bytes of the storages of each part on a device; a storage counts for the first with it."""
    seen: set[int] = set()
    counted = dict.fromkeys(parts, 0)
    for name, tensors in parts.items():
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.device.type == device and storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                counted[name] += storage.nbytes()
    return counted


class Held:
    """The most bytes of each part that a rank was seen with."""

    def __init__(self, engine: Engine) -> None:
        """Also looks whenever AdamW begins a step: masters have their gradients then."""
        self.engine, devices = engine, sorted({engine.device.type, "cpu"})
        self.most = {device: dict.fromkeys((*PARTS, BUFFERS), 0) for device in devices}
        adam = getattr(engine.optimizer, "optimizer", engine.optimizer)
        adam.register_step_pre_hook(lambda *_: self.look())

    def look(self, *, everything: bool = False) -> None:
        """Count what is there now; `everything`: buffers, too."""
        parts: dict[str, Iterable[Tensor]] = dict(parts_of(self.engine))
        if everything:
            gc.collect()
            parts[BUFFERS] = [one for one in gc.get_objects() if issubclass(type(one), Tensor)]
        for device, most in self.most.items():
            now = count(parts, device)
            most |= {name: max(most[name], value) for name, value in now.items()}


def random_batch(config: Config, images: int, seed: int) -> dict[str, Tensor]:
    """Images and depths that mean nothing."""
    generator = torch.Generator().manual_seed(seed)
    height, width = config.model.image_size
    shape = (images, 3, height, width)
    image = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    depth = 1 + torch.rand(images, 1, height, width, generator=generator)
    return {"image": image, "depth": depth, "valid": depth > 0}


def step(engine: Engine, batch: dict[str, Tensor], loss: str, held: Held) -> int:
    """One optimizer step, looked at before, while and after AdamW steps; bytes of activations."""
    image, depth, valid = (batch[name].to(engine.device) for name in ("image", "depth", "valid"))
    with saving(engine.module) as storages:
        error = LOSSES[loss](engine(image), depth, valid)
    engine.backward(error)
    held.look(everything=True)
    take_step(engine, share=1.0)
    held.look()
    return sum(storages.values())


def gauged(action: Callable[[], int], *, cuda: bool) -> tuple[int, int, int]:
    """What it gives, and bytes before it and at the peak: allocated on the GPU, or resident."""
    if cuda:
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        return action(), before, torch.cuda.max_memory_allocated()
    ctypes.CDLL(None).malloc_trim(0)  # a free heap would hide what a step takes
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): resets VmHWM
    before = psutil.Process().memory_info().rss
    given = action()
    [kilobytes] = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    return given, before, int(kilobytes) * 1024


def measure(rank: int, task: Task) -> None:
    """One rank: two steps, and what they took, into a file."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(task.ranks)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(task.port)}
    ranks = dist.join()
    config = task.config
    model = DepthModel(config.model, seed=config.seed)
    engine = start(model, config, ds=task.resolved(task.ranks))
    make_moments(engine)
    held, device = Held(engine), engine.device.type
    batch = random_batch(config, config.train.micro_batch or 1, seed=rank)
    take = partial(step, engine, batch, config.train.loss, held)
    take()
    saved, before, peak = gauged(take, cuda=device == "cuda")
    kind = type(engine.optimizer).__name__
    found = Measured(rank, device, kind, held.most, saved, before, peak)
    (task.folder / f"{rank}.json").write_text(json.dumps(asdict(found)))
    dist.leave(ranks)


def inspect(_: int, config: Config, folder: Path) -> None:
    """Numbers of weights, and bytes kept for the backward pass of an image, into a file."""
    model = DepthModel(config.model, seed=config.seed).train()
    saved = saved_bytes(model, random_batch(config, 1, seed=0), config)
    (folder / "model.json").write_text(json.dumps([list(sizes(model).items()), saved]))


def all_held(said: Need) -> int:
    """Bytes of `PARTS` that it says, wherever they lie."""
    return said.weights + said.gradients + said.optimizer + said.host


def row(name: str, ranks: list[Measured], said: dict[int, Need]) -> str:
    """A line of the table."""

    def most(part: str) -> int:
        return max(sum(held[part] for held in one.held.values()) for one in ranks)

    here, *more = said.values()
    held = sum(map(most, PARTS))
    added = max(one.peak - one.before for one in ranks)
    cells = [f"{most(part) / MB:.0f}" for part in PARTS]
    cells += [f"{held / MB:.0f} ({all_held(here) / MB:.0f}, {all_held(here) / held:.2f})"]
    cells += [f"{most(BUFFERS) / MB:.0f}"]
    saved = max(one.activations for one in ranks)
    cells += [f"{saved / MB:.0f} ({here.activations / MB:.0f})", f"{added / MB:.0f}"]
    cells += [f"({all_held(other) / MB:.0f})" for other in more]
    return f"| {name} | {' | '.join(cells)} |"


def main() -> None:
    """Measure under each JSON, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--config", type=Path, default=Path("launch/nyu.yaml"))
    parser.add_argument("--micro-batch", type=int, default=1)
    parser.add_argument("--ds_config", type=Path, nargs="*", help="default: all of launch/ds")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    words = [f"train.micro_batch={args.micro_batch}", f"train.batch={args.micro_batch}"]
    for backbone in ("vit", "llm"):
        name = getattr(load(args.config).model, backbone).name
        if not name.startswith("random:"):
            words.append(f"model.{backbone}.name=random:base:0")
    config = load(args.config, sets=words)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        spawn(inspect, (config, folder))
        pairs, saved = json.loads((folder / "model.json").read_text())
        numbers = {bool(trains): int(number) for trains, number in pairs}
        titles = [
            *PARTS,
            "held",
            BUFFERS,
            "activations",
            "a step adds",
            *(f"{n} ranks" for n in MORE_RANKS),
        ]
        print(f"{numbers[True]:,} trainable, {numbers[False]:,} frozen weights; MB of {MB} bytes")
        print(f"\n| {args.ranks} ranks | {' | '.join(titles)} |\n|{'---|' * (len(titles) + 1)}")
        results = {}
        for path in args.ds_config or sorted(Path("launch/ds").glob("*.json")):
            task = Task(path, config, args.ranks, folder, free_port())
            spawn(measure, (task,), nprocs=args.ranks)  # fresh ones: freed memory may stay
            said = {
                n: need(numbers, saved_per_image=saved, ds=task.resolved(n), ranks=n)
                for n in (args.ranks, *MORE_RANKS)
            }
            files = [folder / f"{rank}.json" for rank in range(args.ranks)]
            found = [Measured(**json.loads(file.read_text())) for file in files]
            print(row(path.stem, found, said), flush=True)
            results[path.stem] = {
                "measured": [asdict(one) for one in found],
                "said": {n: asdict(one) for n, one in said.items()},
            }
    if args.json:
        tree = {"trainable": numbers[True], "frozen": numbers[False], "results": results}
        args.json.write_text(json.dumps(tree, indent=1) + "\n")


if __name__ == "__main__":
    main()
