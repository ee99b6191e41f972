"""How many samples one core turns from shards into training batches, beside plain pipelines.

    python benchmarks/stream.py --repeats 5 --json stream.json

Plain versions read the same shards in their order, decode, resize to the same size with Pillow and
stack batches; they do not verify, shuffle by plan or augment: `webdataset` is the stock pipeline
(`WebDataset(...).decode("pil")`), `tarfile` is the standard library with Pillow. Ours is measured
without augmentation, which is the same work, and with it. All run in turn, so that a busy machine
slows all; ratios are taken turn by turn. With LLM_MDE_TESTDATA set, the frames are the real ones
of its `redkitchen` folder.
"""

import argparse
import hashlib
import io
import json
import os
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
import webdataset as wds
from PIL import Image

from llm_mde.config import AugmentConfig
from llm_mde.data import record
from llm_mde.data.index import Index, open_index
from llm_mde.data.pixels import Shape
from llm_mde.data.plan import Part, Plan
from llm_mde.data.stream import Batch, training_batches
from llm_mde.nyu.frame import Frame

BATCH = 8
H, W = 480, 640


def made_frame(number: int) -> Frame:
    """Noisy colours in blocks, a noisy slanted wall, 5 % of it without a reading."""
    rng = np.random.default_rng(number)
    blocks = rng.integers(0, 256, (H // 16, W // 16, 3), dtype=np.uint8).repeat(16, 0).repeat(16, 1)
    rgb = np.clip(blocks + rng.normal(0, 6, blocks.shape), 0, 255).astype(np.uint8)
    wall = np.linspace(1500, 4000, W) + rng.normal(0, 8, (H, W))
    depth_mm = np.where(rng.random((H, W)) < 0.05, 0, wall).astype(np.uint16)
    return Frame(rgb, depth_mm, "office_0001", number, 0.0)


def frames(number: int) -> tuple[list[Frame], str]:
    """Frames, and where they come from."""
    folder = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "redkitchen"
    found = sorted(folder.glob("*.color.jpg"))[:number]
    if not found:
        return [made_frame(at) for at in range(number)], "made"
    pairs = [(path, path.with_name(path.name.replace("color.jpg", "depth.png"))) for path in found]
    return [
        Frame(
            np.asarray(Image.open(rgb)),
            np.asarray(Image.open(depth)).astype(np.uint16),
            "kitchen_0001",
            at,
            0.0,
        )
        for at, (rgb, depth) in enumerate(pairs)
    ], "real"


def write(folder: Path, samples: list[Frame], shard_size: int = 32) -> Index:
    """Shards of the frames as `pack` writes them, without registration."""
    keys, rows = [], []
    for first in range(0, len(samples), shard_size):
        shard = folder / f"train-{first // shard_size:06d}.tar"
        with shard.open("wb") as tar:
            for sample in samples[first : first + shard_size]:
                members = record.encode(sample, depth_codec="png")  # the peers read PNG
                key = members.pop("__key__")
                span = record.tar_span(key, members)
                place = {"key": key, "shard": shard.name, "offset": tar.tell(), "size": len(span)}
                rows.append(place | {"sha256": hashlib.sha256(span).hexdigest()})
                keys.append(key)
                tar.write(span)
            tar.write(bytes(2 * tarfile.BLOCKSIZE))
    (folder / "index.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "splits").mkdir()
    (folder / "splits" / "train.txt").write_text("".join(f"{key}\n" for key in keys))
    return open_index(folder, "train")


def prepare(rgb: Image.Image, depth: Image.Image, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Pillow's resize of both to (size, size), and metres."""
    image = np.asarray(rgb.convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
    nearest = depth.resize((size, size), Image.Resampling.NEAREST)
    return image, np.asarray(nearest).astype(np.float32) / 1000


def batched(pairs: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[Batch]:
    """Whole batches of prepared pairs."""
    pairs = iter(pairs)
    while len(chunk := list(islice(pairs, BATCH))) == BATCH:
        images, metres = (torch.from_numpy(np.stack(part)) for part in zip(*chunk, strict=True))
        depth = metres[:, None]
        valid = (depth > 0) & (depth < 10)
        yield {"image": images.permute(0, 3, 1, 2).contiguous(), "depth": depth, "valid": valid}


def plain_webdataset(index: Index, size: int) -> Iterator[Batch]:
    """The stock reader and decoder; its "pil" alone would make 8-bit RGB of the depth."""
    urls = [str(path) for path in sorted(index.folder.local.glob("*.tar"))]
    depth_first = wds.handle_extension("depth.png", lambda data: Image.open(io.BytesIO(data)))
    samples = wds.WebDataset(urls, shardshuffle=False).decode(depth_first, "pil")
    pairs = samples.to_tuple("rgb.jpg", "depth.png")
    return batched(prepare(rgb, depth, size) for rgb, depth in pairs)


def plain_tarfile(index: Index, size: int) -> Iterator[Batch]:
    """The standard library and Pillow by hand."""

    def pairs() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for path in sorted(index.folder.local.glob("*.tar")):
            with tarfile.open(path) as tar:
                members = {member.name: member for member in tar}
                for name in sorted({name.partition(".")[0] for name in members}):
                    rgb = Image.open(tar.extractfile(members[f"{name}.rgb.jpg"]))
                    depth = Image.open(tar.extractfile(members[f"{name}.depth.png"]))
                    yield prepare(rgb, depth, size)

    return batched(pairs())


def ours(index: Index, size: int, *, augmented: bool) -> Iterator[Batch]:
    """One epoch of `training_batches`."""
    plan = Plan(index.counts, batch=BATCH, micro_batch=BATCH)
    batches = training_batches(
        index,
        plan,
        Shape((size, size), "bicubic", 10.0),
        part=Part(),
        augmentation=AugmentConfig(enabled=augmented),
    )
    return islice(iter(batches), plan.batches)


def rate(batches: Iterable[Batch]) -> float:
    """Samples per second of one pass."""
    start = time.perf_counter()
    samples = sum(len(batch["image"]) for batch in batches)
    return samples / (time.perf_counter() - start)


def check(index: Index, size: int) -> None:
    """Ours gives the samples of the plain versions: the same depth, colours within 1."""
    batch = next(iter(ours(index, size, augmented=False)))
    places = {entry.key: at for at, entry in enumerate(index.entries)}
    plain = [list(pipeline(index, size)) for pipeline in (plain_webdataset, plain_tarfile)]
    for batches in plain:
        for row, key in enumerate(batch["key"]):
            number, inside = divmod(places[key], BATCH)
            other = {name: values[inside] for name, values in batches[number].items()}
            assert torch.equal(batch["depth"][row], other["depth"])
            assert torch.equal(batch["valid"][row], other["valid"])
            difference = batch["image"][row].int() - other["image"].int()
            assert difference.abs().max() <= 1


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    samples, origin = frames(args.samples)
    with tempfile.TemporaryDirectory() as folder:
        index = write(Path(folder), samples)
        runs: dict[str, Callable[[], Iterable[Batch]]] = {
            "ours": lambda: ours(index, args.size, augmented=False),
            "ours, augmented": lambda: ours(index, args.size, augmented=True),
            "plain webdataset": lambda: plain_webdataset(index, args.size),
            "plain tarfile": lambda: plain_tarfile(index, args.size),
        }
        check(index, max(args.size, H // 2))  # below, ours decodes the JPEG at a smaller scale
        for run in runs.values():  # imports, caches
            next(iter(run()))
        turns = [{name: rate(run()) for name, run in runs.items()} for _ in range(args.repeats)]
    results = {}
    for name in runs:
        ratios = [turn["ours"] / turn[name] for turn in turns]
        results[name] = {
            "samples_per_s": statistics.median(turn[name] for turn in turns),
            "ours_is_times": statistics.median(ratios),
            "ours_is_times_min": min(ratios),
            "ours_is_times_max": max(ratios),
        }
    print(
        f"{len(samples)} {origin} frames {W}x{H} to {args.size}x{args.size}, batches of {BATCH}, "
        f"one core, {args.repeats} turns"
    )
    print(f"{'':18} {'samples/s':>10} {'ours is times (min..max)':>26}")
    for name, row in results.items():
        low, high = row["ours_is_times_min"], row["ours_is_times_max"]
        spread = f"{row['ours_is_times']:.2f} ({low:.2f}..{high:.2f})"
        print(f"{name:18} {row['samples_per_s']:10.1f} {spread:>26}")
    if args.json:
        report = {"frames": origin, "size": args.size, "batch": BATCH, "results": results}
        args.json.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
