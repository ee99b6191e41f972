"""A sample on disk: a registered frame as tar members, and back.

Members: `rgb.jpg` (quality 95, 4:4:4), `depth.pco` or `depth.png` (lossless uint16 millimetres, 0 =
no reading), perhaps `filled.pco` or `filled.png` (the same without holes), `meta.json`. Only these
names are decoded; nothing is unpickled. Byte counts and image sizes are checked before anything is
decompressed.

A `.pco` is a standalone pcodec file (Loncaric et al. 2025, https://arxiv.org/abs/2502.06112) of the
pixels row by row. It holds no shape: that is the one of `rgb.jpg`.
"""

import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, standalone
from PIL import Image

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import MAX_PIXELS, Frame
from llm_mde.nyu.scenes import scene_type

DEPTH_CODECS = ("pco", "png")
MEMBERS = (
    "rgb.jpg",
    *(f"{depth}.{codec}" for depth in ("depth", "filled") for codec in DEPTH_CODECS),
    "meta.json",
)
JPEG_QUALITY = 95
PNG_LEVEL = 4  # on a real frame: 15 ms, 168 kB; level 6: 43 ms, 166 kB; level 1: 10 ms, 192 kB
# Differences of neighbours in a row. On the same frame: 3 ms, 154 kB; level 4: 182 kB; 12: 153 kB
PCO = ChunkConfig(
    compression_level=8,
    delta_spec=DeltaSpec.try_consecutive(1),
    mode_spec=ModeSpec.classic(),
)
MAX_MEMBER_BYTES = 64 * 2**20
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
    """scene, type, source, index, time_s (seconds), K (3x3, pixels), accel_g."""
    filled_mm: NDArray[np.uint16] | None = None
    """(H, W) millimetres without holes; None where it was not asked for."""


def sample_key(scene: str, index: int) -> str:
    """`basement_0001a-000123`; no dot, because a dot ends the key of a tar member."""
    return f"{scene}-{index:06d}"


def encode(frame: Frame, *, depth_codec: str = "pco") -> dict[str, Any]:
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
    members = {
        "__key__": frame.key or sample_key(frame.scene, frame.index),
        "rgb.jpg": _save(frame.rgb, "JPEG", quality=JPEG_QUALITY, subsampling="4:4:4"),
        f"depth.{depth_codec}": save_depth(frame.depth_mm, depth_codec),
    }
    if frame.filled_mm is not None:
        members[f"filled.{depth_codec}"] = save_depth(frame.filled_mm, depth_codec)
    return members | {"meta.json": json.dumps(meta, separators=(",", ":")).encode()}


def _save(array: NDArray[Any], image_format: str, **settings: int | str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, image_format, **settings)
    return buffer.getvalue()


def save_depth(depth_mm: NDArray[np.uint16], codec: str) -> bytes:
    """(H, W) millimetres as a file of one of `DEPTH_CODECS`."""
    if codec == "png":
        return _save(depth_mm, "PNG", compress_level=PNG_LEVEL)
    return bytes(standalone.simple_compress(depth_mm.ravel(), PCO))


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


def decode(
    sample: Mapping[str, Any], *, draft: tuple[int, int] | None = None, filled: bool = False
) -> Sample:
    """Tar members to arrays. Keys in double underscores are names, not members.

    draft: (height, width) in pixels that are enough: the JPEG is then decoded at the smallest of
    the scales 1, 1/2, 1/4, 1/8 that is not below, which is faster. Depth stays full size.
    filled: decode the depth without holes too.

    Raises:
        DataError: a missing, unknown, oversized or damaged member, with the sample's key.
    """
    key = str(sample.get("__key__", "?"))
    try:
        _check_members(sample)
        size, rgb = _load_rgb(sample["rgb.jpg"], draft)
        depth_mm = _depth_of(sample, "depth", size)
        filled_mm = _depth_of(sample, "filled", size) if filled else None
        return Sample(key, rgb, depth_mm, _load_meta(sample["meta.json"]), filled_mm)
    except DataError as error:
        raise DataError(f"sample {key}: {error}") from error


def _check_members(sample: Mapping[str, Any]) -> None:
    names = [name for name in sample if not name.startswith("__")]
    unknown = sorted(set(names) - set(MEMBERS))
    if unknown:
        raise DataError(f"unknown member {unknown[0]}, expected {', '.join(MEMBERS)}; {_AGAIN}")
    for name in names:
        size = len(sample[name])
        if size > MAX_MEMBER_BYTES:
            raise DataError(
                f"{name} is {size} bytes, expected at most {MAX_MEMBER_BYTES}; {_AGAIN}"
            )
    for stem in ("rgb", "depth", "filled", "meta"):
        expected = [name for name in MEMBERS if name.startswith(f"{stem}.")]
        found = [name for name in expected if name in names]
        if len(found) > 1:
            raise DataError(f"{' and '.join(found)} are both there, expected one; {_AGAIN}")
        if not found and stem != "filled":
            raise DataError(f"{' or '.join(expected)} is missing; {_AGAIN}")


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


def _depth_of(sample: Mapping[str, Any], stem: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    for codec in DEPTH_CODECS:
        name = f"{stem}.{codec}"
        if name in sample:
            return load_depth(sample[name], name, size)
    raise DataError(f"there is no {stem} depth; pack with 'llm-mde pack --fill'")


def load_depth(payload: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """(H, W) millimetres from the file of a member; size: the (height, width) it must have.

    Raises:
        DataError: a damaged file, or one of another size or type.
    """
    load = _load_pco if name.endswith(".pco") else _load_png
    return load(payload, name, size)


def _load_png(payload: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    image = _open(payload, name, "PNG")
    if image.mode not in ("I;16", "I"):  # Pillow's names of 16-bit grey
        got = "8-bit" if image.mode == "L" else f"of mode {image.mode}"
        raise DataError(f"{name} is {got}, expected 16-bit millimetres; {_AGAIN}")
    if (image.height, image.width) != size:
        raise DataError(f"{name} is {(image.height, image.width)}, rgb.jpg is {size}; {_AGAIN}")
    return _pixels(image, name).astype(np.uint16)


def _load_pco(payload: bytes, name: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """Decoded into an array of the known size, so that no count in the file is believed."""
    depth_mm = np.empty(size[0] * size[1], np.uint16)
    try:
        progress = standalone.simple_decompress_into(payload, depth_mm)
    except RuntimeError as error:  # every fault of the file: magic, type, checks, end of data
        raise DataError(f"{name} is damaged ({error}); {_AGAIN}") from error
    if not progress.finished or progress.n_processed != depth_mm.size:
        got = progress.n_processed if progress.finished else f"more than {progress.n_processed}"
        raise DataError(f"{name} holds {got} numbers, rgb.jpg is {size}; {_AGAIN}")
    return depth_mm.reshape(size)  # (H, W)


def _load_meta(payload: bytes) -> dict[str, Any]:
    try:
        meta = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise DataError(f"meta.json is not JSON ({error}); {_AGAIN}") from error
    if not isinstance(meta, dict) or "scene" not in meta:
        raise DataError(f"meta.json has no scene; {_AGAIN}")
    return meta
