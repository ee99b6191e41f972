"""How fast one core fills the holes of a depth map, beside general sparse direct solvers.

    OMP_NUM_THREADS=1 python benchmarks/fill.py --repeats 5 --json fill.json

All solve the toolbox's equations for one frame of 427x561. Ours is the whole call; of the others,
only the solution of the system counts, not its assembly. They run in turn, so that a busy machine
slows all; ratios are taken round by round. pypardiso takes part where it is installed. With
LLM_MDE_TESTDATA set, the frame is the real one there. `--toolbox FOLDER` runs the toolbox's own
fill_depth_colorization.m, found there, once under octave-cli (minutes).
"""

import argparse
import importlib.util
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import scipy.sparse
import scipy.sparse.linalg

from llm_mde.nyu import kinect
from llm_mde.nyu.fill import fill_colorization
from llm_mde.nyu.raw import parse_pgm, parse_ppm

H, W = 427, 561
Solver = Callable[[scipy.sparse.csc_matrix, np.ndarray], np.ndarray]


def system_plain(rgb: np.ndarray, depth: np.ndarray) -> tuple[scipy.sparse.csc_matrix, np.ndarray]:
    """A + G and G d of fill_depth_colorization.m, alpha 1, for all pixels at once."""
    h, w = depth.shape
    grey = np.pad((rgb / 255) @ [0.298936, 0.587043, 0.114021], 1, constant_values=np.nan)
    index = np.pad(np.arange(h * w).reshape(h, w), 1, constant_values=-1)
    shifts = [(a, b) for a in range(3) for b in range(3)]
    window = np.stack([grey[a : a + h, b : b + w] for a, b in shifts])
    columns = np.stack([index[a : a + h, b : b + w] for a, b in shifts])
    square = np.delete((window - window[4]) ** 2, 4, 0)  # (8, H, W)
    columns = np.delete(columns, 4, 0)
    spread = np.maximum(0.6 * np.nanvar(window, 0), -np.nanmin(square, 0) / np.log(0.01))
    weights = np.exp(-square / np.maximum(spread, 2e-6))
    weights /= np.nansum(weights, 0)
    inside = columns >= 0
    rows = np.broadcast_to(index[1:-1, 1:-1], columns.shape)
    known = ((depth != 0) & (depth != 10)).ravel()
    near = scipy.sparse.csc_matrix(
        (weights[inside], (rows[inside], columns[inside])), shape=(h * w, h * w)
    )
    return (scipy.sparse.diags(1.0 + known) - near).tocsc(), known * depth.ravel()


def solve_scipy(matrix: scipy.sparse.csc_matrix, right: np.ndarray) -> np.ndarray:
    """SuperLU in symmetric mode with minimum degree on A^T + A: its fastest setting here."""
    return scipy.sparse.linalg.splu(
        matrix,
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    ).solve(right)


def solve_pardiso(matrix: scipy.sparse.csc_matrix, right: np.ndarray) -> np.ndarray:
    """Intel's PARDISO; a new solver each time, because one remembers its factors."""
    from pypardiso import PyPardisoSolver

    solver = PyPardisoSolver()
    x = solver.solve(matrix.tocsr(), right)
    solver.free_memory(everything=True)
    return x


def frame() -> tuple[np.ndarray, np.ndarray, str]:
    """RGB (H, W, 3), depth in metres, and where they come from."""
    folder = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "raw" / "basement_0001a"
    if folder.is_dir():
        rgb, depth_mm = kinect.register(
            parse_ppm(next(folder.glob("r-*")).read_bytes(), name="r"),
            parse_pgm(next(folder.glob("d-*")).read_bytes(), name="d"),
        )
        crop = np.s_[44:471, 40:601]  # the toolbox's
        return np.ascontiguousarray(rgb[crop]), depth_mm[crop] / 1000, "real"
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 240, (H // 30 + 1, W // 30 + 1, 3)).repeat(30, 0).repeat(30, 1)
    rgb = (blocks[:H, :W] + rng.integers(0, 8, (H, W, 3))).astype(np.uint8)
    depth = np.linspace(1, 5, W) + 0.01 * rng.random((H, W))
    depth[rng.random((H, W)) < 0.01] = 0
    for i, j in rng.integers(0, (H - 40, W - 60), (12, 2)):
        depth[i : i + 40, j : j + 60] = 0
    return rgb, depth, "made"


def run_toolbox(folder: Path, rgb: np.ndarray, depth: np.ndarray) -> tuple[float, np.ndarray]:
    """Milliseconds inside Octave, and the filled depth."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "in", Path(scratch) / "out"
        planes = [*np.moveaxis(rgb / 255, 2, 0), depth]
        source.write_bytes(b"".join(plane.tobytes("F") for plane in planes))
        h, w = depth.shape
        script = (
            f"f = fopen('{source}'); x = reshape(fread(f, Inf, 'double'), {h}, {w}, 4); fclose(f);"
            f"addpath('{folder.resolve()}'); tic;"
            "y = fill_depth_colorization(x(:,:,1:3), x(:,:,4), 1); t = toc;"
            f"f = fopen('{target}', 'w'); fwrite(f, [t; y(:)], 'double'); fclose(f);"
        )
        # Octave 7.3 prints a complaint when it leaves by --eval, and the toolbox's nargchk another
        subprocess.run(["octave-cli", "--eval", script], check=False, stderr=subprocess.DEVNULL)
        out = np.fromfile(target)
    return 1000 * out[0], out[1:].reshape(w, h).T


def race(calls: dict[str, Callable[[], np.ndarray]], repeats: int) -> dict[str, dict]:
    """Median milliseconds of each, its ratio to the first one, round by round, and its result."""
    out: dict[str, dict] = {name: {"result": call(), "ms": []} for name, call in calls.items()}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            out[name]["ms"].append(1000 * (time.perf_counter() - start))
    first = next(iter(out.values()))["ms"]
    for entry in out.values():
        ratios = [ms / base for ms, base in zip(entry["ms"], first, strict=True)]
        entry["ratio"], entry["low"], entry["high"] = (
            f(ratios) for f in (statistics.median, min, max)
        )
        entry["ms"] = statistics.median(entry["ms"])
    return out


def main() -> None:
    """Run the race, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toolbox", type=Path)
    args = parser.parse_args()
    rgb, depth, origin = frame()
    matrix, right = system_plain(rgb, depth)
    calls: dict[str, Callable[[], np.ndarray]] = {
        "ours": lambda: fill_colorization(rgb, depth),
        "scipy splu": lambda: solve_scipy(matrix, right).reshape(depth.shape),
    }
    if importlib.util.find_spec("pypardiso"):
        calls["pypardiso"] = lambda: solve_pardiso(matrix, right).reshape(depth.shape)
    results = race(calls, args.repeats)
    if args.toolbox:
        ms, filled = run_toolbox(args.toolbox, rgb, depth)
        ratio = ms / results["ours"]["ms"]
        results["toolbox"] = dict(result=filled, ms=ms, ratio=ratio, low=ratio, high=ratio)
    exact = results["scipy splu"]["result"]
    for entry in results.values():
        entry["difference_m"] = float(np.abs(entry.pop("result") - exact).max())
    share = float((depth == 0).mean())
    print(f"{origin} frame {W}x{H}, {share:.0%} missing, {args.repeats} repeats")
    print(f"{'':12} {'ms':>8} {'ratio (min..max)':>20} {'from splu, m':>13}")
    for name, r in results.items():
        spread = f"{r['ratio']:.1f} ({r['low']:.1f}..{r['high']:.1f})"
        print(f"{name:12} {r['ms']:8.0f} {spread:>20} {r['difference_m']:13.1e}")
    if args.json:
        args.json.write_text(
            json.dumps({"frame": origin, "missing": share, "results": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
