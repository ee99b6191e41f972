"""Tiny raw NYU scenes, byte by byte, without the product's own writers or constants."""

import struct
import zipfile
from pathlib import Path

import numpy as np

TICKS_PER_S = 60_000_000


def pgm_bytes(disparity: np.ndarray) -> bytes:
    """A recorder's depth file: big-endian by its header, little-endian in truth."""
    return b"P5 640 480 65535\n" + disparity.astype("<u2").tobytes()


def ppm_bytes(rgb: np.ndarray) -> bytes:
    return b"P6 640 480 255\n" + rgb.astype(np.uint8).tobytes()


def dump_bytes(ax: int, ay: int, az: int, tilt: int, status: int) -> bytes:
    return struct.pack("<hhhbxi", ax, ay, az, tilt, status)


def disparity_image(seed: int) -> np.ndarray:
    """A slanted wall at 2 to 4 m with a box before it and a patch without readings; (480, 640)."""
    rng = np.random.default_rng(seed)
    wall = np.broadcast_to(np.linspace(917, 1004, 640), (480, 640)).copy()
    top, left = rng.integers(50, 200, 2)
    wall[top : top + 150, left : left + 200] = 800 + seed % 7
    wall[300:330, 400:460] = 2047
    return wall.round().astype(np.uint16)


def rgb_image(seed: int) -> np.ndarray:
    """A smooth gradient with a coloured square; (480, 640, 3)."""
    v, u = np.mgrid[0:480, 0:640]
    image = np.stack([u * 255 // 639, v * 255 // 479, (u + v + 10 * seed) % 256], axis=-1)
    image[100:200, 100 + seed : 200 + seed] = (200, 40, 90)
    return image.astype(np.uint8)


def raw_names(frame: int, start_s: float = 1300000000.0) -> tuple[str, str, str]:
    """Names of the depth, RGB and accelerometer file of a frame, at 30 frames a second."""
    time_s, tick = start_s + frame / 30, frame * TICKS_PER_S // 30
    return (
        f"d-{time_s:.6f}-{tick}.pgm",
        f"r-{time_s + 0.004:.6f}-{tick + 9}.ppm",
        f"a-{time_s + 0.001:.6f}-{tick}.dump",
    )


def write_scene(root: Path, name: str, frames: int = 2, seed: int = 0) -> Path:
    """A scene folder `root/name` with its INDEX.txt, as the recorder leaves it."""
    folder = root / name
    folder.mkdir(parents=True)
    for frame in range(frames):
        depth, rgb, accel = raw_names(frame)
        (folder / depth).write_bytes(pgm_bytes(disparity_image(seed + frame)))
        (folder / rgb).write_bytes(ppm_bytes(rgb_image(seed + frame)))
        (folder / accel).write_bytes(dump_bytes(0, 819, 0, 10, 0))
    (folder / "INDEX.txt").write_text("".join(f"{p.name}\n" for p in sorted(folder.iterdir())))
    return folder


def zip_scenes(root: Path, archive: Path) -> Path:
    """All scene folders of `root` in one zip, as the downloads hold them."""
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as out:
        for path in sorted(root.rglob("*")):
            out.write(path, path.relative_to(root).as_posix())
    return archive
