"""How many samples a second come out of an object store that is some milliseconds away.

    python -m benchmarks.remote --latency-ms 50 --json remote.json

An S3-compatible server of this machine, in a process of its own, stands behind a proxy that waits
before each answer; the shards are those of benchmarks/stream.py. `one by one` asks for each sample
when it is needed, `read ahead` is how training reads, `first epoch` and `second epoch` are the same
with an empty and then a full disk cache, `local` reads the same shards from the disk. `plain
webdataset` is the stock reader over fsspec, which reads whole shards in their order, does not
verify, shuffle or resume at an offset, and resizes with Pillow. All run in turn, so that a busy
machine slows all; numbers are medians over the turns.

It also reckons, for a pack of many shards, what an epoch downloads if the cache keeps aligned
blocks of the shards instead of samples, and what share of reads a cache of half the samples answers
if it drops the longest unused sample instead of keeping those it has.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import tempfile
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any
from unittest import mock

import fsspec
import torch
import webdataset as wds
from PIL import Image

from benchmarks.stream import BATCH, batched, frames, ours, prepare, write
from llm_mde.data import samples as samples_module
from llm_mde.data.cache import DiskCache
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import Index, open_index
from llm_mde.data.plan import Plan
from llm_mde.data.stream import Batch
from tests.support.faults import faulty_s3

URL = "s3://faulty/pack"
SIZE = 224


def one_by_one(index: Index) -> Iterator[Batch]:
    """As before there was any reading ahead."""

    def as_they_are(shards: Any, items: Iterable[Any], wanted: object) -> Iterator[Any]:
        yield from items

    with mock.patch.object(samples_module.Shards, "ahead", as_they_are):
        yield from ours(index, SIZE, augmented=False)


def plain_webdataset(index: Index) -> Iterator[Batch]:
    """The stock pipeline over file objects of fsspec."""

    def opened(shards: Iterable[str]) -> Iterator[dict[str, Any]]:
        for url in shards:
            with fsspec.open(url, "rb") as file:
                yield from wds.tariterators.tar_file_expander([{"url": url, "stream": file}])

    def pairs() -> Iterator[tuple[Any, Any]]:
        urls = [index.folder.at(shard[0].shard) for shard in index.shards]
        for sample in wds.tariterators.group_by_keys(opened(urls)):
            rgb, depth = (Image.open(io.BytesIO(sample[name])) for name in ("rgb.jpg", "depth.png"))
            yield prepare(rgb, depth, SIZE)

    return batched(pairs())


def measure(batches: Iterable[Batch], served: Connection) -> dict[str, float]:
    """Samples a second of one pass, and what it asked for."""
    _asked(served)
    start = time.perf_counter()
    number = sum(len(batch["image"]) for batch in batches)
    seconds = time.perf_counter() - start
    requests, sent = _asked(served)
    return {"samples_per_s": number / seconds, "requests": requests, "mb": sent / 1e6}


def _asked(served: Connection) -> tuple[int, int]:
    """Requests for shards since the last question, and the bytes they got."""
    served.send("?")
    requests, sent = served.recv()
    return requests, sent


def serve(answers: Connection) -> None:
    """The store and its proxy in a process of their own: latency in, counts out."""
    with faulty_s3() as faults:
        answers.send({name: os.environ[name] for name in os.environ if name.startswith("AWS_")})
        while (word := answers.recv()) is not None:
            if isinstance(word, float):
                faults.latency_s = word
            else:
                asked = faults.of(".tar")
                faults.served.clear()
                answers.send((len(asked), sum(one.sent for one in asked)))


@contextmanager
def store() -> Iterator[Connection]:
    """A running store, to which the environment leads; how to speak with it."""
    context = get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,))
    process.start()
    os.environ.update(here.recv())
    try:
        yield here
    finally:
        here.send(None)
        process.join()


def reckoned(*, shards: int = 1024, per_shard: int = 256, streams: int = 32) -> dict[str, Any]:
    """Downloads and hits of two epochs of the plan, counted in samples of one size."""
    plan = Plan((per_shard,) * shards, batch=streams, micro_batch=streams)
    orders = [
        [plan.epoch(epoch).sample(at) for at in range(plan.batches * streams)] for epoch in (0, 1)
    ]
    total, block = plan.samples, 13  # samples of 0.3 MB in a block of 4 MB
    blocks = [(shard, at // block) for shard, at in orders[0]]
    fetched = {
        share: block * _misses(blocks, int(share * total) // block)
        for share in (0.05, 0.1, 0.25, 0.5, 1.0)
    }
    both = orders[0] + orders[1]
    oldest_out = len(both) - _misses(both, total // 2)
    kept = set(list(dict.fromkeys(orders[0]))[: total // 2])
    return {
        "blocks_of_13_download_times": {k: v / len(orders[0]) for k, v in fetched.items()},
        "half_hits_oldest_out": oldest_out / len(orders[1]),
        "half_hits_kept": sum(place in kept for place in orders[1]) / len(orders[1]),
    }


def _misses(reads: list[tuple[int, int]], room: int) -> int:
    """Of a cache of `room` things that drops the longest unused."""
    held: OrderedDict[tuple[int, int], None] = OrderedDict()
    missed = 0
    for read in reads:
        if read in held:
            held.move_to_end(read)
            continue
        missed += 1
        held[read] = None
        if len(held) > room:
            held.popitem(last=False)
    return missed


def turn(local: Index, served: Connection, folder: Path) -> dict[str, dict[str, float]]:
    """Each way once."""
    shutil.rmtree(folder, ignore_errors=True)
    cache = DiskCache(folder, limit=2**34)
    cache.prepare()
    remote = open_index(URL, "train")
    cached = open_index(ShardFolder(URL, cache=cache), "train")
    runs: dict[str, Callable[[], Iterable[Batch]]] = {
        "one by one": lambda: one_by_one(remote),
        "plain webdataset": lambda: plain_webdataset(remote),
        "read ahead": partial(ours, remote, SIZE, augmented=False),
        "first epoch": partial(ours, cached, SIZE, augmented=False),
        "second epoch": partial(ours, cached, SIZE, augmented=False),
        "local": partial(ours, local, SIZE, augmented=False),
    }
    return {name: measure(run(), served) for name, run in runs.items()}


def main() -> None:
    """Print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--latency-ms", type=float, default=50)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    made, origin = frames(args.samples)
    with tempfile.TemporaryDirectory() as work, store() as served:
        (Path(work) / "pack").mkdir()
        local = write(Path(work) / "pack", made)
        for name in local.folder.names():
            ShardFolder(URL).write(name, local.folder.read(name))
        for run in (ours(local, SIZE, augmented=False), plain_webdataset(open_index(URL, "train"))):
            next(iter(run))  # imports
        served.send(args.latency_ms / 1000)
        turns = [turn(local, served, Path(work) / "cache") for _ in range(args.repeats)]
    results = {
        name: {key: statistics.median(one[name][key] for one in turns) for key in turns[0][name]}
        for name in turns[0]
    }
    print(
        f"{len(made)} {origin} frames, {args.latency_ms:g} ms before each answer, to "
        f"{SIZE}x{SIZE}, batches of {BATCH}, one process, {args.repeats} turns"
    )
    print(f"{'':18} {'samples/s':>10} {'requests':>9} {'MB':>7}")
    for name, row in results.items():
        print(f"{name:18} {row['samples_per_s']:10.1f} {row['requests']:9.0f} {row['mb']:7.1f}")
    counted = reckoned()
    print("an epoch in blocks of 13 samples, by share of the pack that the cache holds:")
    for share, times in counted["blocks_of_13_download_times"].items():
        print(f"  {share:4.0%} {times:6.2f} times the pack (samples: 1.00)")
    print(
        f"a cache of half the samples answers {counted['half_hits_kept']:.0%} of the next epoch, "
        f"{counted['half_hits_oldest_out']:.0%} if it drops the longest unused"
    )
    if args.json:
        report = {"frames": origin, "latency_ms": args.latency_ms, "results": results}
        args.json.write_text(json.dumps(report | {"reckoned": counted}, indent=1) + "\n")


if __name__ == "__main__":
    main()
