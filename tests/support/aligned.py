"""Folders of registered RGB and depth, as other data sets ship them."""

from pathlib import Path

import numpy as np
from PIL import Image

from llm_mde.nyu.aligned import Pattern

KITCHEN = Pattern(
    "frame-{index}.color.jpg",
    "frame-{index}.depth.png",
    K=((585.0, 0.0, 320.0), (0.0, 585.0, 240.0), (0.0, 0.0, 1.0)),
)
FREE = Pattern("rgb/{index}.png", "depth/{index}.png", depth_scale=5000)


def write_rgb(path: Path, *, size=(32, 24), mode="RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).convert(mode).save(path)


def write_depth(path: Path, value=2500, *, size=(32, 24), dtype=np.uint16) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(1).integers(0, 40, (size[1], size[0]))
    values[0, 0] = 0
    values[0, 1:] = value
    Image.fromarray(values.astype(dtype)).save(path)


def write_sync(folder: Path, *numbers: int) -> None:
    for number in numbers:
        write_rgb(folder / f"rgb_{number:05d}.jpg")
        write_depth(folder / f"sync_depth_{number:05d}.png")


def write_free(folder: Path) -> None:
    write_rgb(folder / "rgb" / "7.png")
    write_depth(folder / "depth" / "0007.png", 5000)


def load_only(scene):
    [pair] = scene.pairs()
    return scene.load(pair)
