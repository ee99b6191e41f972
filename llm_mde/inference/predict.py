"""Depth maps of image files from an adapter folder."""

import os
import tempfile
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from llm_mde import figures
from llm_mde.data.stream import resize_image
from llm_mde.errors import DataError
from llm_mde.inference.adapter import load
from llm_mde.model.depth_model import DepthModel
from llm_mde.progress import Report

MAX_PIXELS = 50_000_000  # about 1 GB at work; a picture that claims more is refused unread
MAX_ASPECT = 10  # a longer strip shows no scene, and its figure would be all margin
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

    Names and headers of all inputs are checked before the first image; the two files of an image
    appear together.

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
    _make_folder(out)
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


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: no folder can be made there ({error.strerror})") from error


def check_image(path: Path) -> None:
    """Look at the header of an image file.

    Raises:
        DataError: the file is missing, not an image, of a kind that is no photograph, or too large.
    """
    _opened(path).close()


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), turned as its camera says.

    16-bit grey is scaled to 8 bit, grey is repeated, an alpha channel is dropped.

    Raises:
        DataError: as `check_image`, or the pixels are damaged.
    """
    try:
        with _opened(path) as opened:
            return _rgb(ImageOps.exif_transpose(opened))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: damaged image ({error})") from error


def _opened(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            image = Image.open(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file, expected an image") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected image files; try {path}/*.jpg") from error
    except UnidentifiedImageError as error:
        raise DataError(f"{path}: not an image that can be read (JPEG, PNG, PPM, ...)") from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large, expected at most {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error
    problem = _problem(image)
    if problem:
        image.close()
        raise DataError(f"{path}: {problem}")
    return image


def _problem(image: Image.Image) -> str | None:
    short, long = sorted(image.size)
    size = f"{image.width}x{image.height} pixels"
    if short * long > MAX_PIXELS:
        return f"{size}, expected at most {MAX_PIXELS} in all"
    if long > MAX_ASPECT * short:
        return f"{size}, expected sides in a ratio of at most {MAX_ASPECT}"
    if image.mode == "F":
        return "floating-point pixels, expected 8 or 16 bit"
    return None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bit, in Pillow's several modes; convert("RGB") would clip
        levels = np.clip(np.asarray(image, dtype=np.int64), 0, 2**16 - 1)  # (H, W)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode == "P":  # a palette's transparency must not become a colour
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))


def depth_of(model: DepthModel, rgb: np.ndarray) -> np.ndarray:
    """Depth in metres, float32 (H, W), of an image uint8 (H, W, 3)."""
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
