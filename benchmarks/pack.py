"""How fast one core turns raw frames into samples, each step beside a plain or a usual way.

    python benchmarks/pack.py --repeats 10 --json pack.json
    python benchmarks/pack.py --toolbox toolbox_nyu_depth_v2    # and beside the toolbox, in Octave

register     registration beside `register_plain` below, numpy formula by formula
whole frame  raw bytes to a tar record with its SHA-256, beside the same in plain numpy and with
             Pillow's and tarfile's defaults
depth write, depth read
             16-bit depth as pcodec, beside PNG; their sizes are in the JSON and under the table
fill         hole filling at 427x561 beside the solvers of `fill.py`
toolbox      a folder, not part of this project, with project_depth_map.m, for registration, or
             fill_depth_colorization.m, for filling: run once, minutes

Both ways run in turn, so that a busy machine slows both; the ratio is taken pair by pair. Results
are compared before they are timed. With LLM_MDE_TESTDATA set, the frame is the real one there.
"""

import argparse
import hashlib
import io
import json
import os
import re
import shutil
import statistics
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from threadpoolctl import threadpool_limits

from llm_mde.data import record
from llm_mde.nyu import kinect
from llm_mde.nyu.fill import fill_colorization
from llm_mde.nyu.frame import Frame
from llm_mde.nyu.raw import PGM_HEADER, PPM_HEADER, parse_pgm, parse_ppm

H, W = 480, 640
CROP = np.s_[44:471, 40:601]  # the toolbox's, 427x561, around what holds readings
TARGET_MS = {"register": 15, "whole frame": 30, "depth read": 1, "fill": 1500}
Row = dict[str, Any]


def undistort_plain(image: np.ndarray, camera: kinect.Camera, weight: np.ndarray) -> tuple:
    """Bilinear samples of (H, W) with per-pixel source weights, and what lies outside."""
    v, u = np.mgrid[0:H, 0:W].astype(float)
    x, y = (u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy
    r2 = x**2 + y**2
    radial = 1 + camera.k1 * r2 + camera.k2 * r2**2 + camera.k3 * r2**3
    xd = x * radial + 2 * camera.p1 * x * y + camera.p2 * (r2 + 2 * x**2)
    yd = y * radial + camera.p1 * (r2 + 2 * y**2) + 2 * camera.p2 * x * y
    px, py = camera.fx * xd + camera.cx, camera.fy * yd + camera.cy
    x0, y0 = np.floor(px).astype(int), np.floor(py).astype(int)
    outside = (x0 < 0) | (x0 > W - 2) | (y0 < 0) | (y0 > H - 2)
    a, b = px - x0, py - y0
    x0, y0 = x0.clip(0, W - 2), y0.clip(0, H - 2)
    value, total = np.zeros((H, W)), np.zeros((H, W))
    for dx, dy, w in (
        (0, 0, (1 - a) * (1 - b)),
        (1, 0, a * (1 - b)),
        (0, 1, (1 - a) * b),
        (1, 1, a * b),
    ):
        w = w * weight[y0 + dy, x0 + dx]
        value += w * image[y0 + dy, x0 + dx]
        total += w
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(total > 0, value / total, 0), outside


def register_plain(rgb: np.ndarray, disparity: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """project_depth_map.m, formula by formula."""
    one = np.ones((H, W))
    channels = []
    for c in range(3):
        value, outside = undistort_plain(rgb[..., c], kinect.RGB_CAMERA, one)
        channels.append(np.where(outside, 255, np.floor(value + 0.5)))
    touch, outside = undistort_plain(
        255.0 * (disparity == disparity.max()), kinect.DEPTH_CAMERA, one
    )
    noise = (touch > 0) | outside
    d, _ = undistort_plain(disparity, kinect.DEPTH_CAMERA, (~noise).astype(float))
    d = np.where(noise | (d < 600), 2047.0, d)
    z = np.clip(351.3 / (1092.5 - d), 0, 10)
    v, u = np.mgrid[1 : H + 1, 1 : W + 1].astype(float)
    camera = kinect.DEPTH_CAMERA
    points = np.stack([(u - camera.cx) * z / camera.fx, (v - camera.cy) * z / camera.fy, z])
    moved = kinect.ROTATION @ points.reshape(3, -1) + np.array(kinect.TRANSLATION)[:, None]
    x = np.floor(moved[0] / moved[2] * kinect.RGB_CAMERA.fx + kinect.RGB_CAMERA.cx + 0.5)
    y = np.floor(moved[1] / moved[2] * kinect.RGB_CAMERA.fy + kinect.RGB_CAMERA.cy + 0.5)
    keep = (x > 0) & (x < W) & (y > 0) & (y < H)
    at = (y[keep].astype(int) - 1, x[keep].astype(int) - 1)
    far_first = np.argsort(-z.ravel()[keep], kind="stable")
    out = np.zeros((H, W))
    out[at[0][far_first], at[1][far_first]] = z.ravel()[keep][far_first]  # the last write wins
    return np.stack(channels, -1).astype(np.uint8), np.round(out * 1000).astype(np.uint16)


@dataclass(frozen=True)
class Raw:
    """A raw pair as files and as arrays, and where it comes from."""

    pgm: bytes
    ppm: bytes
    origin: str

    @property
    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """RGB (H, W, 3) and disparity (H, W)."""
        return parse_ppm(self.ppm, name="r"), parse_pgm(self.pgm, name="d")


def sample_ours(raw: Raw) -> tuple[bytes, str]:
    """Raw bytes to a tar record and its hash, as `llm-mde pack` does."""
    rgb, depth_mm = kinect.register(*raw.arrays)
    members = record.encode(Frame(rgb, depth_mm, "bench_0001", 0, 0.0))
    span = record.tar_span(members.pop("__key__"), members)
    return span, hashlib.sha256(span).hexdigest()


def sample_plain(raw: Raw) -> tuple[bytes, str]:
    """The same record with the plain registration and the libraries' defaults."""
    disparity = np.frombuffer(raw.pgm, "<u2", offset=len(PGM_HEADER)).reshape(H, W)
    rgb = np.frombuffer(raw.ppm, np.uint8, offset=len(PPM_HEADER)).reshape(H, W, 3)
    rgb, depth = register_plain(rgb, disparity)
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for array, name, settings in ((rgb, "jpg", {"quality": 95}), (depth, "png", {})):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, {"jpg": "JPEG", "png": "PNG"}[name], **settings)
            info = tarfile.TarInfo(f"bench.{name}")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return tar_bytes.getvalue(), hashlib.sha256(tar_bytes.getvalue()).hexdigest()


def raw_frame() -> Raw:
    """The real pair where there is one, else a made one: a noisy wall with holes."""
    folder = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "raw" / "basement_0001a"
    if folder.is_dir():
        pgm, ppm = (next(folder.glob(pattern)).read_bytes() for pattern in ("d-*", "r-*"))
        return Raw(pgm, ppm, "real")
    rng = np.random.default_rng(0)
    wall = np.linspace(850, 1020, W) + rng.normal(0, 1, (H, W))
    disparity = np.where(rng.random((H, W)) < 0.05, 2047, wall.round()).astype("<u2")
    for i, j in rng.integers(0, (H - 40, W - 60), (12, 2)):
        disparity[i : i + 40, j : j + 60] = 2047
    rgb = rng.integers(0, 256, (H // 8, W // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return Raw(PGM_HEADER + disparity.tobytes(), PPM_HEADER + rgb.tobytes(), "made")


def ms(call: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - start)


def compare(
    ours: Callable[[], object],
    peer: Callable[[], object],
    repeats: int,
    *,
    peer_ms: Callable[[Callable[[], object]], float] = ms,
) -> Row:
    """Median milliseconds of both with their extremes, and the ratio pair by pair."""
    ours(), peer()  # compiled code, tables, caches
    times = [(ms(ours), peer_ms(peer)) for _ in range(repeats)]
    columns = {
        "ours_ms": [fast for fast, _ in times],
        "peer_ms": [slow for _, slow in times],
        "ratio": [slow / fast for fast, slow in times],
    }
    return {
        name + suffix: take(values)
        for name, values in columns.items()
        for suffix, take in (("", statistics.median), ("_min", min), ("_max", max))
    }


def same(left: tuple[np.ndarray, ...], right: tuple[np.ndarray, ...]) -> None:
    """Stop unless both give the same arrays."""
    for one, other in zip(left, right, strict=True):
        np.testing.assert_array_equal(one, other)


def registration(raw: Raw, repeats: int, toolbox: Path | None) -> Iterator[Row]:
    """Registration, alone and as a part of packing, beside plain numpy and the toolbox itself."""
    ours, plain = partial(kinect.register, *raw.arrays), partial(register_plain, *raw.arrays)
    same(ours(), plain())
    yield {"row": "register", "peer": "plain numpy"} | compare(ours, plain, repeats)
    if toolbox and (toolbox / "project_depth_map.m").is_file():
        from fill import run_octave

        call = "[y2, y1] = project_depth_map(uint16(x2), uint8(x1))"
        octave = partial(run_octave, toolbox, call, raw.arrays, [(H, W, 3), (H, W)])
        pixels, metres = octave()[1]
        same(ours(), (pixels, np.round(metres * 1000)))
        times = compare(ours, octave, repeats, peer_ms=lambda call: octave()[0])
        yield {"row": "register", "peer": "toolbox, Octave"} | times
    times = compare(lambda: sample_ours(raw), lambda: sample_plain(raw), repeats)
    yield {"row": "whole frame", "peer": "plain numpy, Pillow, tarfile"} | times


def depth_codec(raw: Raw, repeats: int, _toolbox: Path | None) -> Iterator[Row]:
    """16-bit depth as pcodec beside PNG."""
    depth_mm = kinect.register(*raw.arrays)[1]
    files = {codec: record.save_depth(depth_mm, codec) for codec in ("pco", "png")}
    sizes = {f"{codec}_bytes": len(payload) for codec, payload in files.items()}
    write = {codec: partial(record.save_depth, depth_mm, codec) for codec in files}
    read = {codec: partial(record.load_depth, files[codec], f".{codec}", (H, W)) for codec in files}
    same((read["pco"](),), (read["png"](),))
    for name, calls in (("depth write", write), ("depth read", read)):
        times = compare(calls["pco"], calls["png"], 5 * repeats)
        yield {"row": name, "peer": f"PNG level {record.PNG_LEVEL}"} | times | sizes


def filling(raw: Raw, repeats: int, toolbox: Path | None) -> Iterator[Row]:
    """Hole filling, the whole call, beside solutions of the assembled system; half the repeats."""
    from fill import run_octave, solvers  # here, since tests import this file as a module

    rgb, depth_mm = (np.ascontiguousarray(image[CROP]) for image in kinect.register(*raw.arrays))
    ours = partial(fill_colorization, rgb, depth_mm / 1000)
    filled, median = ours(), 0.0
    for name, solve in solvers(rgb, depth_mm / 1000).items():
        apart = float(np.abs(solve() - filled).max())
        times = compare(ours, solve, -(-repeats // 2))
        median = times["ours_ms"]
        yield {"row": "fill", "peer": name} | times | {"apart_m": apart}
    if toolbox and (toolbox / "fill_depth_colorization.m").is_file():
        call, inputs = "y1 = fill_depth_colorization(x1, x2, 1)", (rgb / 255, depth_mm / 1000)
        spent, [theirs] = run_octave(toolbox, call, inputs, [filled.shape])
        times = {"ours_ms": median, "peer_ms": spent}
        times |= dict.fromkeys(("ratio", "ratio_min", "ratio_max"), spent / median)
        apart = float(np.abs(theirs - filled).max())
        yield {"row": "fill", "peer": "toolbox, Octave, once"} | times | {"apart_m": apart}


def machine() -> dict[str, Any]:
    """Processor, cores this process may use, and the commit where this is a clone."""
    cpu = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return {
        "processor": cpu[1] if cpu else "unknown",
        "cores": len(os.sched_getaffinity(0)),
        "commit": done.stdout.strip() or "unknown",
    }


def print_row(r: Row) -> None:
    """One line, with the target where there is one."""
    spread = f"{r['ratio']:.1f} ({r['ratio_min']:.1f}..{r['ratio_max']:.1f})"
    times = f"{r['ours_ms']:8.2f} {r['target_ms'] or '':>7} {r['peer_ms']:9.1f}"
    print(f"{r['row']:12} {times} {spread:>22}  {r['peer']}", flush=True)


def main() -> None:
    """Check that both ways give the same, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toolbox", type=Path, help="folder with the toolbox's .m files")
    args = parser.parse_args()
    if args.toolbox and not shutil.which("octave-cli"):
        parser.error("--toolbox: needs octave-cli")
    raw, place = raw_frame(), machine()
    os.environ["OMP_NUM_THREADS"] = "1"  # of Octave, and of libraries that are loaded later
    threadpool_limits(1)
    print(f"{place['processor']}, {place['cores']} cores, one used; commit {place['commit']}")
    print(f"{raw.origin} frame 640x480, fill 427x561, {args.repeats} repeats (fill: half)")
    print(f"{'':12} {'ours ms':>8} {'target':>7} {'peer ms':>9} {'ratio (min..max)':>22}  peer")
    rows = []
    for step in (registration, depth_codec, filling):
        for row in step(raw, args.repeats, args.toolbox):
            rows.append(row | {"target_ms": TARGET_MS.get(row["row"])})
            print_row(rows[-1])
    sizes = next(row for row in rows if row["row"] == "depth write")
    apart = max(row.get("apart_m", 0) for row in rows)
    record_bytes = len(sample_ours(raw)[0])
    print(
        f"results identical, fill within {apart:.0e} m; record {record_bytes} bytes, "
        f"depth {sizes['pco_bytes']} as pco, {sizes['png_bytes']} as png"
    )
    if args.json:
        content = {"machine": place, "frame": raw.origin, "record_bytes": record_bytes}
        args.json.write_text(json.dumps(content | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
