"""Whole runs of `llm-mde pack` on generated scenes in zips, and what they mean for all of NYU raw.

    OMP_NUM_THREADS=1 python benchmarks/pack_run.py --json pack_run.json
    python benchmarks/pack_run.py --raw raw --repeats 5    # keeps and reuses the generated scenes

24 scenes lie in three zips (DEFLATE level 1), one scene in two of them. Runs with one and two
processes take turns; the slope from the last zip alone to all leaves start-up out. The large run
has four times the frames, under other names. Beside the gain of a second process stands this
machine's own: the same work in two processes that share nothing. Listing zips of real size and the
merge of many frames are measured on zips of names. All files are in the page cache.
"""

import argparse
import hashlib
import json
import math
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from itertools import pairwise, product
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from pack import machine

from llm_mde.data.folder import ShardFolder
from llm_mde.data.layout import SHARD_SIZE, Layout, PackSettings, lay_out
from llm_mde.data.merge import merge
from llm_mde.data.report import problems
from llm_mde.data.shard import ShardPlan, selected
from llm_mde.data.sources import collect
from llm_mde.launcher import peak_memory
from llm_mde.nyu.synth import synth

FRAMES, SCENES, BYTES, ZIPS = 407_024, 590, 428e9, 36  # NYU raw; the number of zips is a guess
ROOMS, COPIES, NAME_ZIPS = 24, 4, (5, 10)
MEMORY = ("main_bytes", "worker_bytes", "tree_bytes")
Row = dict[str, Any]

BURN = {
    "python, numpy": "import numpy as np; x = np.random.default_rng(0).random(100_000)\n"
    "work = lambda: [(sum(n * n for n in range(50_000)), np.sort(x)) for _ in range(200)]",
    "frames in memory": "import pack; raw = pack.raw_frame()\n"
    "work = lambda: [pack.sample_ours(raw) for _ in range(150)]",
}
TIMED = """
import sys, time; work()
time.sleep(max(0, float(sys.argv[1]) - time.time()))
start = time.perf_counter(); work(); print(time.perf_counter() - start)
"""


def make_zips(folder: Path, frames: int) -> list[Path]:
    """Three zips of generated scenes, the last with a sixth of them, then their renamed copies."""
    synth(folder / "raw", scenes=ROOMS, frames=frames)
    files = sorted((folder / "raw").glob("*/*"))
    cuts = [0, int(len(files) * 9.5 / ROOMS), len(files) * 5 // 6, len(files)]
    zips = []
    for number, (start, stop) in enumerate(pairwise(cuts), 1):
        zips.append(folder / f"rooms_part{number}.zip")
        if not zips[-1].exists():
            unfinished = zips[-1].with_suffix(".tmp")
            with zipfile.ZipFile(unfinished, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
                for path in files[start:stop]:
                    out.write(path, f"{path.parent.name}/{path.name}")
            unfinished.rename(zips[-1])
    return zips + [rename_scenes(path, f"_9{n}") for n in range(1, COPIES) for path in zips]


def rename_scenes(path: Path, start: str) -> Path:
    """A copy of a zip with the `_90` of the scenes' names replaced, without compressing anew."""
    copy = path.with_stem(path.stem + start)
    shutil.copyfile(path, copy)
    with zipfile.ZipFile(path) as source, copy.open("r+b") as file:
        for info in source.infolist():
            file.seek(info.header_offset + 30)  # the name in front of the contents
            file.write(info.filename.encode().replace(b"_90", start.encode(), 1))
        file.seek(source.start_dir)
        directory = re.sub(rb"_90(?=\d\d/)", start.encode(), file.read())
        file.seek(source.start_dir)
        file.write(directory)
    return copy


def watch_memory(pid: int, done: threading.Event, peaks: dict[str, int]) -> None:
    """Largest resident bytes of a process, of any of its descendants, and of all at one time."""
    main = psutil.Process(pid)
    while not done.wait(0.3):
        total = 0
        for process in [main, *main.children(recursive=True)]:
            with suppress(OSError):  # gone
                status = Path(f"/proc/{process.pid}/status").read_text()
                found = dict(re.findall(r"(VmHWM|VmRSS):\s+(\d+)", status))
                kind = "main_bytes" if process == main else "worker_bytes"
                peaks[kind] = max(peaks[kind], 1024 * int(found.get("VmHWM", 0)))
                total += 1024 * int(found.get("VmRSS", 0))
        peaks["tree_bytes"] = max(peaks["tree_bytes"], total)


def run_pack(name: str, zips: Sequence[Path], *options: str) -> Row:
    """Run the command once: what it took, what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "shards"
        command = [sys.executable, "-m", "llm_mde", "pack", *map(str, zips), "--out", str(out)]
        command += ["--shard-size", "16", *options]  # as many shards a process as in a long run
        done, peaks = threading.Event(), dict.fromkeys(MEMORY, 0)
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        watcher = threading.Thread(target=watch_memory, args=(process.pid, done, peaks))
        watcher.start()
        errors = process.communicate()[1].decode()
        seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        done.set()
        watcher.join()
        if process.returncode:
            sys.exit(f"{' '.join(command)}: {errors}")
        run = json.loads((out / "report.json").read_text())["run"]
        digest = hashlib.sha256()
        for path in sorted({*out.rglob("*.*")} - {*out.glob("report.*")}):
            digest.update(f"{path.relative_to(out)}\n".encode() + path.read_bytes())
    frames = run["frames"]
    cpu_s = sum(getattr(after, f) - getattr(before, f) for f in ("ru_utime", "ru_stime"))
    sizes = [sum(path.stat().st_size for path in zips), run["output_bytes"]]
    row = {"run": name, "frames": frames, "seconds": seconds, "cpu_s": cpu_s, **peaks}
    row |= {"zip_bytes": sizes[0], "output_bytes": sizes[1], "sha256": digest.hexdigest()}
    times = seconds, frames / seconds, 1e3 * seconds / frames, 1e3 * cpu_s / frames
    sizes = [size / frames / 1e3 for size in sizes]
    print_row(name, str(frames), *times, *sizes, *(peak / 1e6 for peak in peaks.values()))
    return row


def print_row(name: str, *cells: float | str) -> None:
    """One line of a table."""
    texts = (c if isinstance(c, str) else f"{c:.{2 if c < 100 else 0}f}" for c in cells)
    print(f"{name:18}" + "".join(f"{text:>10}" for text in texts), flush=True)


def run_all(zips: list[Path], repeats: int) -> list[Row]:
    """All runs of the command, with one and two processes in turn."""
    parts = zips[: len(zips) // COPIES]
    turns = [("last zip", parts[-1:]), ("all", parts)]
    plans = repeats * [(f"{w}, jobs {n}", some, "--jobs", n) for w, some in turns for n in "12"]
    plans.append(("all png, jobs 1", parts, "--jobs", "1", "--depth-codec", "png"))
    plans.append(("all, ray", parts, "--ray", "local"))
    plans.append((f"{COPIES} x all, jobs 2", zips, "--jobs", "2"))
    return [run_pack(*plan) for plan in plans]


def steady(runs: list[Row], jobs: int) -> list[tuple[float, float]]:
    """Milliseconds a frame and seconds of start-up, turn by turn."""
    last, all_ = ([r for r in runs if r["run"] == f"{w}, jobs {jobs}"] for w in ("last zip", "all"))
    found = []
    for a, b in zip(last, all_, strict=True):
        slope = (b["seconds"] - a["seconds"]) / (b["frames"] - a["frames"])
        found.append((1e3 * slope, a["seconds"] - slope * a["frames"]))
    return found


def scaling(code: str, repeats: int) -> list[float]:
    """How many times the work two processes do beside one, turn by turn."""

    def slowest(count: int) -> float:
        command = [sys.executable, "-c", code + TIMED, str(time.time() + 5)]
        pipes: Row = {"stdout": subprocess.PIPE, "cwd": Path(__file__).parent}
        processes = [subprocess.Popen(command, **pipes) for _ in range(count)]
        return max(float(process.communicate()[0]) for process in processes)

    return [2 * slowest(1) / slowest(2) for _ in range(repeats)]


def name_zips(folder: Path, count: int) -> Path:
    """Zips with as many names as the downloads have, and nothing in the files."""
    folder.mkdir()
    for number in range(count):
        with zipfile.ZipFile(folder / f"part_{number:02d}.zip", "w") as out:
            for place, frame in product(range(SCENES // ZIPS), range(FRAMES // SCENES)):
                for kind, end in (("d", "pgm"), ("r", "ppm"), ("a", "dump")):
                    name = f"{kind}-{1.3e9 + frame / 30:.6f}-{frame}.{end}"
                    out.writestr(zipfile.ZipInfo(f"office_{number:02d}{place:02d}/{name}"), b"")
    return folder


def write_notes(out: ShardFolder, layout: Layout) -> None:
    """What workers leave for the merge, every frame whole."""
    for plan in layout.shards:
        place = {"shard": plan.name, "offset": 10**7, "size": 10**5, "sha256": "0" * 64}
        note: Row = {"bytes": 10**8, "sha256": "0" * 64, "entries": [], "findings": []}
        for run in plan.runs:
            for pair in selected(run.scene, 1)[run.start : run.stop]:
                key = f"{run.scene.name}-{pair.index:06d}"
                note["entries"].append({"key": key, **place, "scene": run.number})
                files = (pair.depth, pair.rgb, pair.accel)
                note["findings"] += [(run.number, file, "ok", "") for file in files]
        out.write(plan.note, json.dumps(note).encode())


def serial(folder: Path) -> Row:
    """Seconds of what the main process does before and after the frames, and its memory."""
    times = [time.perf_counter()]
    layout = lay_out(collect([folder]), PackSettings())
    times.append(time.perf_counter())
    out = ShardFolder(folder / "out")
    write_notes(out, layout)
    times.append(time.perf_counter())
    merge(out, layout)
    list(problems(out, 20)), list(problems(out, 1000))  # for the terminal and for the report
    row = {"listing_s": times[1] - times[0], "merge_s": time.perf_counter() - times[2]}
    return row | {"main_bytes": peak_memory(), "shards": layout.shards}


def list_scenes(plans: Sequence[ShardPlan]) -> Row:
    """Seconds a worker takes to list a run of frames, and what the zips it opens take."""
    start, before = time.perf_counter(), peak_memory()
    listed = [len(selected(run.scene, 1)) for plan in plans for run in plan.runs]
    seconds = time.perf_counter() - start
    return {"run_s": seconds / len(listed), "zip_bytes": peak_memory() - before}


def fixed_costs() -> Row:
    """What listing and merging all of NYU takes, from two numbers of zips of real size."""
    rows = []
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as fresh:
        for count in NAME_ZIPS:
            with tempfile.TemporaryDirectory() as scratch:
                folder = name_zips(Path(scratch) / "zips", count)
                row = fresh.submit(serial, folder).result()
                rows.append(row | fresh.submit(list_scenes, row.pop("shards")[::2]).result())
    few, many = rows
    further = (ZIPS - NAME_ZIPS[1]) / (NAME_ZIPS[1] - NAME_ZIPS[0])
    growing = ("listing_s", "merge_s", "main_bytes")
    return many | {name: many[name] + further * (many[name] - few[name]) for name in growing}


def print_nyu(core_ms: dict[int, float], fixed: Row, large: Row) -> list[Row]:
    """All frames and every 7th on some cores, 64 as if each were the first one alone."""
    print_row("NYU raw", "cores", "hours", "serial s", "read MB/s", "out GB", "memory GB")
    main_bytes = max(large["main_bytes"], fixed["main_bytes"])
    worker_bytes = large["worker_bytes"] + fixed["zip_bytes"]
    rows = []
    for stride, cores in product((1, 7), (1, 2, 64)):
        frames = FRAMES // stride
        shards = math.ceil(frames / SHARD_SIZE)
        work_s = math.ceil(shards / cores) * SHARD_SIZE * core_ms.get(cores, core_ms[1]) / 1e3
        work_s += (shards + SCENES) * fixed["run_s"] / cores
        serial_s = fixed["listing_s"] + fixed["merge_s"]  # of every file, also with a stride
        row = {"hours": (work_s + serial_s) / 3600, "serial_s": serial_s}
        row["read_mb_per_s"] = frames * BYTES / FRAMES / work_s / 1e6
        row["output_gb"] = frames * large["output_bytes"] / large["frames"] / 1e9
        row["memory_gb"] = (main_bytes + cores * worker_bytes) / 1e9
        print_row(f"{frames} frames", str(cores), *row.values())
        rows.append({"frames": frames, "cores": cores, **row})
    return rows


def main() -> None:
    """Run everything, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--raw", type=Path, help="folder to keep the generated scenes in")
    parser.add_argument("--frames", type=int, default=32, help="of each of the 24 scenes")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    print(", ".join(f"{name} {value}" for name, value in machine().items()))
    heads = "frames", "s", "frames/s", "ms/frame", "cpu ms", "zip kB", "out kB", *MEMORY
    with tempfile.TemporaryDirectory() as scratch:
        zips = make_zips(args.raw or Path(scratch), args.frames)
        print_row("run", *(head.replace("_bytes", " MB") for head in heads))
        runs = run_all(zips, args.repeats)
    slopes = {n: steady(runs, n) for n in (1, 2)}
    results = {f"ms a frame, jobs {n}": [ms for ms, _ in slopes[n]] for n in slopes}
    results |= {f"start-up s, jobs {n}": [start_s for _, start_s in slopes[n]] for n in slopes}
    one, two = ([r["seconds"] for r in runs if r["run"] == f"all, jobs {n}"] for n in slopes)
    results["gain of jobs 2, wall"] = [a / b for a, b in zip(one, two, strict=True)]
    results["gain of jobs 2"] = [a / b for (a, _), (b, _) in zip(*slopes.values(), strict=True)]
    results |= {f"ceiling, {name}": scaling(code, args.repeats) for name, code in BURN.items()}
    for name, values in results.items():
        print(f"{name:26} {median(values):.2f} ({min(values):.2f}..{max(values):.2f})")
    hashes = {(r["run"].partition(", ")[0], r["sha256"]) for r in runs}
    print("same bytes whatever the processes:", len(hashes) == len(dict(hashes)))
    fixed = fixed_costs()
    print("all of NYU:", ", ".join(f"{name} {value:.3g}" for name, value in fixed.items()))
    nyu = print_nyu({n: n * median(ms for ms, _ in slopes[n]) for n in slopes}, fixed, runs[-1])
    if args.json:
        parts = {"machine": machine(), "runs": runs, "results": results, "fixed": fixed, "nyu": nyu}
        args.json.write_text(json.dumps(parts, indent=1) + "\n")


if __name__ == "__main__":
    main()
