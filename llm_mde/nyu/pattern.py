"""Which files of a folder pair up as RGB and depth, and what is in them."""

import math
import os
import re
import struct
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import MAX_PIXELS, DamagedFile, Matrix

# What Pillow raises on damaged images.
_BROKEN = (OSError, ValueError, SyntaxError, EOFError, OverflowError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Pattern:
    """How the files of a folder pair up and what their depth values mean.

    Depth values become millimetres; what would exceed 65,535 mm counts as "no reading" (0).

    Raises:
        ConfigError: a field that cannot be used.
    """

    rgb: str
    """Path inside the folder, as `frame-{index}.color.jpg`, perhaps `{scene}/...`: JPEG or PNG of
    three 8-bit channels. `{index}`, digits, pairs it with the depth."""
    depth: str
    """As `frame-{index}.depth.png`: PNG of one 16-bit channel; `{scene}` as in `rgb`."""
    depth_scale: float = 1000.0
    """File units per metre."""
    invalid: tuple[int, ...] = (0, 65535)
    """File values that mean "no reading"."""
    K: tuple[tuple[float, ...], ...] | None = None
    """3x3 intrinsics of the RGB pixels."""

    def __post_init__(self) -> None:
        _check_path("rgb", self.rgb)
        _check_path("depth", self.depth)
        if ("{scene}" in self.rgb) != ("{scene}" in self.depth) or self.rgb == self.depth:
            raise ConfigError(
                "pattern: expected two different paths, both with {scene} or both without, "
                f"got {self.rgb!r} and {self.depth!r}"
            )
        if not 0 < self.depth_scale < math.inf:
            raise ConfigError(
                "pattern.depth_scale: expected file units per metre above 0 (1000 for "
                f"millimetres), got {self.depth_scale}"
            )
        if not all(0 <= value <= 65535 for value in self.invalid):
            raise ConfigError(f"pattern.invalid: expected values 0 to 65535, got {self.invalid}")
        finite = [[math.isfinite(value) for value in row] for row in self.K or ()]
        if self.K is not None and finite != [[True] * 3] * 3:
            raise ConfigError(f"pattern.K: expected 3 rows of 3 numbers, got {self.K}")

    def matrix(self) -> Matrix | None:
        """K as the metadata hold it."""
        return None if self.K is None else [list(row) for row in self.K]

    def millimetres(self, depth: NDArray[Any]) -> NDArray[np.uint16]:
        """(H, W) file values to millimetres, 0 where there is no reading or no room for it."""
        mm = np.rint(depth.astype(np.float64) * 1000 / self.depth_scale)
        mm[np.isin(depth, self.invalid) | (mm > 65535)] = 0
        return mm.astype(np.uint16)


def _check_path(field: str, path: str) -> None:
    where = f"pattern.{field}: {path!r}"
    parts = path.split("/")
    if not all(parts) or {".", ".."}.intersection(parts) or "\\" in path:
        raise ConfigError(f"{where}: expected a path inside the folder, without '.' and '..' parts")
    if path.count("{index}") != 1 or path.count("{scene}") > 1:
        raise ConfigError(f"{where}: expected {{index}} once and {{scene}} at most once")
    if re.search("[{}]", path.replace("{index}", "").replace("{scene}", "")):
        raise ConfigError(f"{where}: expected no other braces than {{index}} and {{scene}}")


class Match(NamedTuple):
    """A file that fits a pattern: its path inside the folder, what the fields stand for, bytes."""

    file: str
    number: int
    scene: str | None
    size: int


def matches(folder: Path, pattern: str, *, scene: str | None = None) -> list[Match]:
    """The files that fit, of one scene or of all, sorted."""
    fields = {"index": r"(?P<index>[0-9]{1,9})", "scene": r"(?P<scene>[^/]+)"}
    if scene is not None:
        fields["scene"] = f"(?P<scene>{re.escape(scene)})"
    rules = [
        re.compile(re.sub(r"\\\{(\w+)\\\}", lambda field: fields[field[1]], re.escape(part)))
        for part in pattern.split("/")
    ]
    found = sorted(_walk(folder, rules))
    return [Match(file, int(f["index"]), f.get("scene"), size) for file, size, f in found]


def _walk(folder: Path, rules: list[re.Pattern[str]]) -> Iterator[tuple[str, int, dict[str, str]]]:
    """Path, bytes and fields of the files that fit, one rule a level."""
    try:
        with os.scandir(folder) as entries:
            found = [
                (entry, match) for entry in entries if (match := rules[0].fullmatch(entry.name))
            ]
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror})") from error
    for entry, match in found:
        if len(rules) == 1 and entry.is_file():
            yield entry.name, entry.stat().st_size, match.groupdict()
        elif len(rules) > 1 and entry.is_dir():
            for file, size, fields in _walk(folder / entry.name, rules[1:]):
                yield f"{entry.name}/{file}", size, match.groupdict() | fields


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) of a JPEG or PNG.

    Raises:
        DamagedFile: the file is missing or cannot be used; the message names no folder.
    """
    return _pixels(path, ["JPEG", "PNG"], ("RGB",))


def read_depth(path: Path) -> NDArray[Any]:
    """(H, W) values 0..65535 of a 16-bit PNG.

    Raises:
        DamagedFile: the file is missing or cannot be used; the message names no folder.
    """
    return _pixels(path, ["PNG"], ("I;16", "I"))  # Pillow's names of 16-bit grey


def _pixels(path: Path, formats: list[str], modes: tuple[str, ...]) -> NDArray[Any]:
    """The pixels of an image whose header was found good.

    Raises:
        DamagedFile: the file is missing or cannot be used.
    """
    expected = " or ".join(formats)
    try:
        if path.stat().st_size == 0:
            raise DamagedFile("empty", "0 bytes")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=formats)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError(f"{image.width}x{image.height}")
            if image.mode not in modes:
                reason = f"{expected} of mode {image.mode}, expected {modes[0]}; convert it"
                raise DamagedFile("undecodable", reason)
            return np.asarray(image)
    except FileNotFoundError as error:
        raise DamagedFile("missing", "listed, but not there") from error
    except _BOMBS as error:
        reason = f"more than {MAX_PIXELS} pixels; make it smaller"
        raise DamagedFile("undecodable", reason) from error
    except UnidentifiedImageError as error:
        raise DamagedFile("undecodable", f"no {expected} image") from error
    except _BROKEN as error:
        truncated = "truncated" in str(error).lower()
        reason = getattr(error, "strerror", None) or str(error)
        raise DamagedFile("truncated" if truncated else "undecodable", reason) from error
