"""A sample on disk: a registered frame as tar members, and back.

Members: `rgb.jpg` (quality 95, 4:4:4), `depth.png` (lossless uint16 millimetres, 0 = no reading),
`meta.json`. Only these names are decoded; nothing is guessed from a file's ending, nothing is
unpickled. Byte counts and image sizes are checked before anything is decompressed.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import Frame
from llm_mde.nyu.scenes import scene_type

DEPTH_CODECS = ("png",)
MEMBERS = ("rgb.jpg", "depth.png", "meta.json")
JPEG_QUALITY = 95
PNG_LEVEL = 4  # on a real frame: 15 ms, 168 kB; level 6: 43 ms, 166 kB; level 1: 10 ms, 192 kB
MAX_MEMBER_BYTES = 64 * 2**20
MAX_PIXELS = 2**24  # 4096 x 4096
_AGAIN = "pack again with 'llm-mde pack'"


@dataclass(frozen=True)
class Sample:
    """A decoded sample."""

    key: str
    rgb: NDArray[np.uint8]
    """(H, W, 3); smaller than the depth where a draft was asked for."""
    depth_mm: NDArray[np.uint16]
    """(H, W) millimetres, 0 = no reading."""
    meta: dict[str, Any]
    """scene, type, source, index, time_s (seconds), K (3x3, pixels)."""


def sample_key(scene: str, index: int) -> str:
    """`basement_0001a-000123`; no dot, because a dot ends the key of a tar member."""
    return f"{scene}-{index:06d}"


def encode(frame: Frame, *, depth_codec: str = "png") -> dict[str, Any]:
    """Tar members of a frame, plus `__key__`: the same frame always gives the same bytes.

    Raises:
        ConfigError: an unknown depth codec.
    """
    if depth_codec not in DEPTH_CODECS:
        raise ConfigError(f"depth_codec: expected {', '.join(DEPTH_CODECS)}, got {depth_codec!r}")
    meta = {
        "scene": frame.scene,
        "type": scene_type(frame.scene),
        "source": frame.source,
        "index": frame.index,
        "time_s": frame.time_s,
        "K": frame.K,
        "accel_g": frame.accel_g,
    }
    return {
        "__key__": frame.key or sample_key(frame.scene, frame.index),
        "rgb.jpg": _save(frame.rgb, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4"),
        "depth.png": _save(frame.depth_mm, "PNG", compress_level=PNG_LEVEL),
        "meta.json": json.dumps(meta, separators=(",", ":")).encode(),
    }


def _save(array: NDArray[Any], image_format: str, **settings: int | str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, image_format, **settings)
    return buffer.getvalue()


def tar_span(key: str, members: dict[str, bytes]) -> bytes:
    """Headers and padded contents of a sample's members (USTAR; no time, no user)."""
    buffer = io.BytesIO()
    for name, payload in members.items():
        info = tarfile.TarInfo(f"{key}.{name}")
        info.size, info.mode = len(payload), 0o644
        buffer.write(info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict"))
        buffer.write(payload)
        buffer.write(bytes(-len(payload) % tarfile.BLOCKSIZE))
    return buffer.getvalue()


def decode(sample: Mapping[str, Any], *, draft: tuple[int, int] | None = None) -> Sample:
    """Tar members to arrays. Keys in double underscores are names, not members.

    draft: (height, width) in pixels that are enough: the JPEG is then decoded at the smallest of
    the scales 1, 1/2, 1/4, 1/8 that is not below, which is faster. Depth stays full size.

    Raises:
        DataError: a missing, unknown, oversized or damaged member, with the sample's key.
    """
    key = str(sample.get("__key__", "?"))
    try:
        _check_members(sample)
        size, rgb = _load_rgb(sample["rgb.jpg"], draft)
        depth_mm = _load_depth(sample["depth.png"])
        if depth_mm.shape != size:
            raise DataError(f"depth.png is {depth_mm.shape}, rgb.jpg is {size}; {_AGAIN}")
        return Sample(key, rgb, depth_mm, _load_meta(sample["meta.json"]))
    except DataError as error:
        raise DataError(f"sample {key}: {error}") from error


def _check_members(sample: Mapping[str, Any]) -> None:
    names = [name for name in sample if not name.startswith("__")]
    unknown = sorted(set(names) - set(MEMBERS))
    if unknown:
        raise DataError(f"unknown member {unknown[0]}, expected {', '.join(MEMBERS)}; {_AGAIN}")
    for name in MEMBERS:
        if name not in sample:
            raise DataError(f"{name} is missing; {_AGAIN}")
        size = len(sample[name])
        if size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{name} is {size} bytes, expected at most {MAX_MEMBER_BYTES}; {_AGAIN}"
            )


def _open(payload: bytes, name: str, image_format: str) -> Image.Image:
    """The image with its header read and its size checked; pixels are not decoded yet."""
    try:
        image = Image.open(io.BytesIO(payload), formats=[image_format])
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{name} is no readable {image_format} ({error}); {_AGAIN}") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width}x{image.height}"
        raise DataError(f"{name} is {size}, expected at most {MAX_PIXELS} pixels; {_AGAIN}")
    return image


def _pixels(image: Image.Image, name: str) -> NDArray[Any]:
    try:
        return np.asarray(image)
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(f"{name} is damaged ({error}); {_AGAIN}") from error


def _load_rgb(
    payload: bytes, draft: tuple[int, int] | None
) -> tuple[tuple[int, int], NDArray[np.uint8]]:
    """The full (height, width), and the pixels at the drafted scale."""
    image = _open(payload, "rgb.jpg", "JPEG")
    size = (image.height, image.width)
    if image.mode != "RGB":
        raise DataError(f"rgb.jpg is {image.mode}, expected RGB; {_AGAIN}")
    if draft is not None:
        image.draft("RGB", (draft[1], draft[0]))
    return size, _pixels(image, "rgb.jpg")


def _load_depth(payload: bytes) -> NDArray[np.uint16]:
    image = _open(payload, "depth.png", "PNG")
    if image.mode not in ("I;16", "I"):  # Pillow's names of 16-bit grey
        got = "8-bit" if image.mode == "L" else f"of mode {image.mode}"
        raise DataError(f"depth.png is {got}, expected 16-bit millimetres; {_AGAIN}")
    return _pixels(image, "depth.png").astype(np.uint16)


def _load_meta(payload: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(payload)
    except ValueError as error:
        raise DataError(f"meta.json is not JSON ({error}); {_AGAIN}") from error
    if not isinstance(meta, dict) or "scene" not in meta:
        raise DataError(f"meta.json has no scene; {_AGAIN}")
    return meta
