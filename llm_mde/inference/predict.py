"""Depth maps of image files from an adapter folder."""

import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from llm_mde import figures
from llm_mde.data.pixels import resize_image
from llm_mde.errors import DataError
from llm_mde.inference.adapter import load
from llm_mde.inference.image import Picture, as_rgb, check_image, read_image
from llm_mde.model.depth_model import DepthModel
from llm_mde.progress import Report
from llm_mde.training.folder import make_folder

MAX_MM = 2**16 - 1  # what 16-bit PNG holds


@dataclass(frozen=True)
class Prediction:
    """The files written for one image."""

    image: Path
    depth: Path
    """16-bit PNG, millimetres, the image's size."""
    figure: Path
    """Coloured PNG with a legend in metres."""

    def payload(self) -> dict[str, str]:
        """For JSON."""
        return {name: str(path) for name, path in asdict(self).items()}


def predict(
    images: list[Path], *, adapter: Path, out: Path, progress: Report | None = None
) -> list[Prediction]:
    """Write `<name>_depth_mm.png` and `<name>_depth.png` for each image.

    Names and headers of all inputs are checked before anything is written; pixels that turn out to
    be damaged stop there, and the files of the images before stay. The two files of an image appear
    together.

    Raises:
        DataError: an image is missing or is none, or a file would be overwritten by another's.
        CheckpointError: the adapter cannot be used.
    """
    planned = [
        Prediction(path, out / f"{path.stem}_depth_mm.png", out / f"{path.stem}_depth.png")
        for path in images
    ]
    _check_names(planned)
    for path in images:
        check_image(path)
    model = load(adapter)
    model.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    make_folder(out)
    for done, prediction in enumerate(planned, 1):
        _write(prediction, depth_of(model, read_image(prediction.image)))
        if progress is not None:
            progress(done, len(planned))
    return planned


def _check_names(planned: list[Prediction]) -> None:
    inputs = {made.image.absolute() for made in planned}
    seen: dict[Path, Path] = {}
    for made in planned:
        for file in (made.depth.absolute(), made.figure.absolute()):
            if file in seen:
                raise DataError(f"{made.image} and {seen[file]} would write {file}; rename one")
            if file in inputs:
                raise DataError(
                    f"{file}: is an image and the prediction of {made.image}; choose another --out"
                )
            seen[file] = made.image


def depth_of(model: DepthModel, image: Picture) -> np.ndarray:
    """Depth in metres, float32 (H, W), of a picture of (H, W) pixels once it stands upright.

    The network sees all of it at its own size, antialiased as its image backbone was trained.

    Raises:
        DataError: it is no picture, see `as_rgb`.
    """
    rgb = as_rgb(image)
    seen = resize_image(rgb, model.config.image_size, model.vit.interpolation)
    tensor = torch.from_numpy(seen).permute(2, 0, 1)[None]  # (1, 3, h, w)
    with torch.inference_mode():
        depth = model.predict(tensor.to(model.mean.device), size=rgb.shape[:2])  # (1, 1, H, W)
    return depth[0, 0].cpu().numpy()


def _write(made: Prediction, depth: np.ndarray) -> None:
    """Both files of an image, metres (H, W), or neither."""
    millimetres = np.clip(np.round(depth * 1000), 0, MAX_MM).astype(np.uint16)
    with tempfile.TemporaryDirectory(prefix=".predict-", dir=made.depth.parent) as aside:
        written = [Path(aside) / made.depth.name, Path(aside) / made.figure.name]
        Image.fromarray(millimetres).save(written[0])
        figures.depth_figure(depth, written[1])
        os.replace(written[0], made.depth)
        os.replace(written[1], made.figure)
