"""How fast one core turns raw frames into samples, beside a plain numpy version of the formulas.

    python benchmarks/pack.py --repeats 10 --json pack.json

The plain version recomputes everything for each frame, registers with `register_plain` below, and
writes with Pillow's and tarfile's defaults. Both run in turn, so that a busy machine slows both;
the ratio is taken pair by pair. With LLM_MDE_TESTDATA set, the frame is the real one there.
"""

import argparse
import io
import json
import os
import statistics
import tarfile
import time
from collections.abc import Callable
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


def sample_ours(pgm: bytes, ppm: bytes) -> bytes:
    """Raw bytes to a tar record, as `llm-mde pack` does."""
    rgb, depth = kinect.register(parse_ppm(ppm, name="r"), parse_pgm(pgm, name="d"))
    members = record.encode(Frame(rgb, depth, "bench_0001", 0, 0.0))
    return record.tar_span(members.pop("__key__"), members)


def sample_plain(pgm: bytes, ppm: bytes) -> bytes:
    """The same record with the plain registration and the libraries' defaults."""
    disparity = np.frombuffer(pgm, "<u2", offset=len(PGM_HEADER)).reshape(H, W)
    rgb, depth = register_plain(np.frombuffer(ppm, "u1", offset=15).reshape(H, W, 3), disparity)
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode="w") as tar:
        for array, name, settings in ((rgb, "jpg", {"quality": 95}), (depth, "png", {})):
            buffer = io.BytesIO()
            Image.fromarray(array).save(buffer, {"jpg": "JPEG", "png": "PNG"}[name], **settings)
            info = tarfile.TarInfo(f"bench.{name}")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return tar_bytes.getvalue()


def frame_bytes() -> tuple[bytes, bytes, str]:
    """A raw pair, and where it comes from."""
    folder = Path(os.environ.get("LLM_MDE_TESTDATA", "")) / "raw" / "basement_0001a"
    if folder.is_dir():
        return next(folder.glob("d-*")).read_bytes(), next(folder.glob("r-*")).read_bytes(), "real"
    rng = np.random.default_rng(0)
    wall = np.linspace(850, 1020, W) + rng.normal(0, 1, (H, W))
    disparity = np.where(rng.random((H, W)) < 0.05, 2047, wall.round()).astype("<u2")
    rgb = rng.integers(0, 256, (H // 8, W // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return PGM_HEADER + disparity.tobytes(), PPM_HEADER + rgb.tobytes(), "made"


def compare(ours: Callable[[], object], plain: Callable[[], object], repeats: int) -> dict:
    """Median milliseconds of both, and the ratio pair by pair with its extremes."""

    def ms(call: Callable[[], object]) -> float:
        start = time.perf_counter()
        call()
        return 1000 * (time.perf_counter() - start)

    ours(), plain()  # tables, caches
    times = [(ms(ours), ms(plain)) for _ in range(repeats)]
    ratios = [slow / fast for fast, slow in times]
    return {
        "ours_ms": statistics.median(t[0] for t in times),
        "plain_ms": statistics.median(t[1] for t in times),
        "ratio": statistics.median(ratios),
        "ratio_min": min(ratios),
        "ratio_max": max(ratios),
    }


def main() -> None:
    """Check that both give the same frame, then print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    pgm, ppm, origin = frame_bytes()
    rgb, disparity = parse_ppm(ppm, name="r"), parse_pgm(pgm, name="d")
    for left, right in zip(
        kinect.register(rgb, disparity), register_plain(rgb, disparity), strict=True
    ):
        np.testing.assert_array_equal(left, right)
    results = {
        "register": compare(
            lambda: kinect.register(rgb, disparity),
            lambda: register_plain(rgb, disparity),
            args.repeats,
        ),
        "whole frame": compare(
            lambda: sample_ours(pgm, ppm), lambda: sample_plain(pgm, ppm), args.repeats
        ),
    }
    print(f"{origin} frame 640x480, one core, {args.repeats} repeats, identical results")
    print(f"{'':12} {'ours ms':>8} {'plain ms':>9} {'frames/s':>9} {'ratio (min..max)':>20}")
    for name, r in results.items():
        spread = f"{r['ratio']:.1f} ({r['ratio_min']:.1f}..{r['ratio_max']:.1f})"
        print(
            f"{name:12} {r['ours_ms']:8.1f} {r['plain_ms']:9.1f} "
            f"{1000 / r['ours_ms']:9.1f} {spread:>20}"
        )
    if args.json:
        args.json.write_text(json.dumps({"frame": origin, "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
