"""How fast one core turns raw frames into samples, each step beside a plain or a usual way.

    python benchmarks/pack.py --repeats 10 --json pack.json
    python benchmarks/pack.py --toolbox toolbox_nyu_depth_v2    # and beside the toolbox, in Octave

register     registration beside `register_plain` below, numpy formula by formula
whole frame  raw bytes to a tar record with its SHA-256, beside the same in plain numpy and with
             Pillow's and tarfile's defaults
depth write, depth read
             16-bit depth as pcodec, beside PNG; their sizes are in the JSON and under the table
toolbox      registration beside project_depth_map.m, whose folder is not part of this project

Both ways run in turn, so that a busy machine slows both; the ratio is taken pair by pair. Results
are compared before they are timed. With LLM_MDE_TESTDATA set, the frame is the real one there.
"""

import argparse
import hashlib
import io
import json
import os
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from llm_mde.data import record
from llm_mde.nyu import kinect
from llm_mde.nyu.frame import Frame
from llm_mde.nyu.raw import PGM_HEADER, PPM_HEADER, parse_pgm, parse_ppm

H, W = 480, 640


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
    """The real pair where there is one, else a made one."""
    folder = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "raw" / "basement_0001a"
    if folder.is_dir():
        pgm, ppm = (next(folder.glob(pattern)).read_bytes() for pattern in ("d-*", "r-*"))
        return Raw(pgm, ppm, "real")
    rng = np.random.default_rng(0)
    wall = np.linspace(850, 1020, W) + rng.normal(0, 1, (H, W))
    disparity = np.where(rng.random((H, W)) < 0.05, 2047, wall.round()).astype("<u2")
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
) -> dict:
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


def registration(raw: Raw, repeats: int) -> dict[str, dict]:
    """Registration beside plain numpy, alone and as a part of packing."""
    same(kinect.register(*raw.arrays), register_plain(*raw.arrays))
    return {
        "register": {"peer": "plain numpy"}
        | compare(
            lambda: kinect.register(*raw.arrays), lambda: register_plain(*raw.arrays), repeats
        ),
        "whole frame": {"peer": "plain numpy, Pillow, tarfile"}
        | compare(lambda: sample_ours(raw), lambda: sample_plain(raw), repeats),
    }


def depth_codec(raw: Raw, repeats: int) -> dict[str, dict]:
    """16-bit depth as pcodec beside PNG."""
    depth_mm = kinect.register(*raw.arrays)[1]
    files = {codec: record.save_depth(depth_mm, codec) for codec in ("pco", "png")}
    sizes = {f"{codec}_bytes": len(payload) for codec, payload in files.items()}
    write = {codec: partial(record.save_depth, depth_mm, codec) for codec in files}
    read = {codec: partial(record.load_depth, files[codec], f".{codec}", (H, W)) for codec in files}
    same((read["pco"](),), (read["png"](),))
    return {
        name: {"peer": f"PNG level {record.PNG_LEVEL}"}
        | compare(calls["pco"], calls["png"], 5 * repeats)
        | sizes
        for name, calls in (("depth write", write), ("depth read", read))
    }


OCTAVE = """
addpath('{toolbox}');
d = reshape(fread(fopen('{work}/d'), Inf, 'uint16=>uint16'), {W}, {H})';
rgb = permute(reshape(fread(fopen('{work}/r'), Inf, 'uint8=>uint8'), 3, {W}, {H}), [3 2 1]);
t = tic; [depth, rgb] = project_depth_map(d, rgb); t = toc(t);
f = fopen('{work}/depth', 'w'); fwrite(f, depth', 'double'); fclose(f);
f = fopen('{work}/rgb', 'w'); fwrite(f, permute(rgb, [3 2 1]), 'uint8'); fclose(f);
printf('%.9f', t);
"""


def toolbox(raw: Raw, repeats: int, *, folder: Path) -> dict[str, dict]:
    """Registration beside the toolbox itself, timed inside Octave, with the same results."""
    with tempfile.TemporaryDirectory() as work:
        rgb, disparity = raw.arrays
        Path(work, "d").write_bytes(disparity.tobytes())
        Path(work, "r").write_bytes(rgb.tobytes())
        code = OCTAVE.format(toolbox=folder.resolve(), work=work, H=H, W=W)

        def octave() -> float:
            command = ["octave-cli", "--norc", "--eval", code]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            return 1000 * float(done.stdout)

        times = compare(
            lambda: kinect.register(rgb, disparity), octave, repeats, peer_ms=lambda call: call()
        )
        metres = np.fromfile(Path(work, "depth")).reshape(H, W)
        pixels = np.fromfile(Path(work, "rgb"), np.uint8).reshape(H, W, 3)
        same(kinect.register(rgb, disparity), (pixels, np.round(metres * 1000).astype(np.uint16)))
    return {"toolbox": {"peer": "project_depth_map.m"} | times}


def print_table(results: dict[str, dict]) -> None:
    """One line a row; sizes below."""
    print(f"{'':12} {'ours ms':>8} {'peer ms':>8} {'ratio (min..max)':>22}  peer")
    for name, r in results.items():
        spread = f"{r['ratio']:.1f} ({r['ratio_min']:.1f}..{r['ratio_max']:.1f})"
        print(f"{name:12} {r['ours_ms']:8.2f} {r['peer_ms']:8.1f} {spread:>22}  {r['peer']}")
    for name, size in results["depth write"].items():
        if name.endswith("_bytes"):
            print(f"{name.removesuffix('_bytes')} depth: {size} bytes")


def main() -> None:
    """Check that both ways give the same, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--toolbox", type=Path, help="folder with project_depth_map.m")
    args = parser.parse_args()
    steps = [registration, depth_codec]
    if args.toolbox:
        if not shutil.which("octave-cli") or not (args.toolbox / "project_depth_map.m").is_file():
            parser.error("--toolbox: needs octave-cli, and project_depth_map.m in the folder")
        steps.append(partial(toolbox, folder=args.toolbox))
    raw = raw_frame()
    results: dict[str, dict] = {}
    for step in steps:
        results |= step(raw, args.repeats)
    print(f"{raw.origin} frame 640x480, one core, {args.repeats} repeats, identical results")
    print_table(results)
    if args.json:
        args.json.write_text(json.dumps({"frame": raw.origin, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
