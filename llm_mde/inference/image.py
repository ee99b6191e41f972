"""Pictures of any kind, from files or from memory, to RGB uint8 as the network's path wants it."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from llm_mde.errors import DataError

MAX_PIXELS = 50_000_000  # 3 GB at work; a picture that claims more is refused unread
MAX_ASPECT = 10  # a longer strip shows no scene, and its figure would be all margin
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "HSV"}

Picture = Image.Image | np.ndarray


def check_image(path: Path) -> None:
    """Look at the header of an image file.

    Raises:
        DataError: the file is missing, not an image, of a kind that is no photograph, or too large.
    """
    with _opened(path):
        pass


def read_image(path: Path) -> np.ndarray:
    """An image file as RGB uint8 (H, W, 3), as `as_rgb` does; of an animation the first picture.

    Raises:
        DataError: as `check_image`, or the pixels are damaged.
    """
    with _opened(path) as opened:
        return as_rgb(opened, name=str(path))


def as_rgb(image: Picture, *, name: str = "image") -> np.ndarray:
    """A picture as RGB uint8 (H, W, 3), turned as its camera says.

    16-bit grey is scaled to 8 bit, grey is repeated, an alpha channel is dropped. Arrays are uint8
    (H, W), (H, W, 1), (H, W, 3) or (H, W, 4). `name` stands in messages.

    Raises:
        DataError: another kind of array or image, too many pixels, or damaged ones.
    """
    if not isinstance(image, Image.Image):
        image = _from_array(image, name=name)
    problem = _problem(image)
    if problem:
        raise DataError(f"{name}: {problem}")
    try:
        return _rgb(ImageOps.exif_transpose(image))
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: damaged image ({error})") from error


def _from_array(array: object, *, name: str) -> Image.Image:
    if isinstance(array, np.ndarray) and array.dtype == np.uint8:
        if array.ndim == 3 and array.shape[2] == 1:
            array = array[..., 0]
        if array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4)):
            return Image.fromarray(array)
    raise DataError(
        f"{name}: expected a PIL image or an array uint8 (H, W), (H, W, 3) or (H, W, 4) of 0..255, "
        f"got {_kind(array)}"
    )


def _kind(value: object) -> str:
    if not isinstance(value, np.ndarray):
        return type(value).__name__
    kind = f"{value.dtype} {value.shape}"
    lost = 0 if value.dtype.kind not in "fc" else int((~np.isfinite(value)).sum())
    return f"{kind} with {lost} values that are NaN or infinite" if lost else kind


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    with _file(path) as file:
        image = _header(file, path)
        problem = _problem(image)
        if problem:
            raise DataError(f"{path}: {problem}")
        yield image


def _file(path: Path) -> BinaryIO:
    # Pillow maps some files that it opens by name, and turns those of grey TIFFs wrongly.
    try:
        return path.open("rb")
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file, expected an image") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder, expected image files; try {path}/*.jpg") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _header(file: BinaryIO, path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_PIXELS is lower
            return Image.open(file)
    except UnidentifiedImageError as error:
        empty = "empty file, " if not path.stat().st_size else ""
        raise DataError(
            f"{path}: {empty}not an image that can be read (JPEG, PNG, PPM, ...)"
        ) from error
    except Image.DecompressionBombError as error:
        raise DataError(f"{path}: too large, expected at most {MAX_PIXELS} pixels") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from error


def _problem(image: Image.Image) -> str | None:
    short, long = sorted(image.size)
    size = f"{image.width}x{image.height} pixels"
    if not short:
        return f"{size}, expected at least 1x1"
    if short * long > MAX_PIXELS:
        return f"{size}, expected at most {MAX_PIXELS} in all"
    if long > MAX_ASPECT * short:
        return f"{size}, expected sides in a ratio of at most {MAX_ASPECT}"
    if image.mode == "F":
        return "floating-point pixels, expected 8 or 16 bit"
    if image.mode not in MODES and not image.mode.startswith("I"):
        return f"pixels of kind {image.mode}, expected grey, RGB, CMYK or a palette"
    return None


def _rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I"):  # 16 bit, in Pillow's several modes; convert("RGB") would clip
        levels = np.clip(np.asarray(image, dtype=np.int64), 0, 2**16 - 1)  # (H, W)
        image = Image.fromarray(((levels + 128) // 257).astype(np.uint8))
    if image.mode in ("P", "PA"):  # a palette's transparency must not become a colour
        image = image.convert("RGBA")
    return np.asarray(image.convert("RGB"))
