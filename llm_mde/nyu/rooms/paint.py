"""Materials of generated rooms: patterns of a real physical size.

Patterns are functions of surface coordinates in metres. Tiles are 0.2 to 0.3 m, planks 0.14 m,
bricks 0.22 m wide wherever they lie, so the frequency seen in the picture tells the distance, as in
a real room. Each is given the width of a pixel on the surface and fades into its mean before it
would alias.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]  # float32 throughout; numpy types its sums with floats as float64
Colour = tuple[float, float, float]
Pattern = Callable[[Floats, Floats, Floats, float], tuple[Floats, Floats]]
NOISE_SIDE = 512  # samples; a power of two, so that wrapping is a bit mask


@dataclass(frozen=True)
class Material:
    """How a surface looks to both cameras.

    `pattern` (a name in PATTERNS) mixes the linear RGB colours `colour` and `other` with a period
    in metres; `infrared` is the reflectance for the depth camera's projector, `gloss` the share of
    pixels that get no reading (1: glass and mirrors), `glow` the light given off by itself.
    """

    pattern: str
    colour: Colour
    other: Colour = (0.5, 0.5, 0.5)
    period: float = 1.0
    infrared: float = 0.6
    gloss: float = 0.0
    glow: float = 0.0


@cache
def white_noise() -> Floats:
    """Flat table (512 * 512) of independent numbers in 0..1, the same in every process."""
    return np.random.default_rng(0).random(NOISE_SIDE * NOISE_SIDE, dtype=np.float32)


@cache
def smooth_noise() -> Floats:
    """Flat tileable table (512 * 512) of noise with a grain of about 16 samples.

    Mean 0, deviation 1.
    """
    frequency = np.fft.fftfreq(NOISE_SIDE)
    low = np.exp(-0.5 * np.square(frequency * 2 * np.pi * 5))
    white = white_noise().reshape(NOISE_SIDE, NOISE_SIDE)
    noise = np.fft.ifft2(np.fft.fft2(white - 0.5) * low[:, None] * low).real
    return (noise / noise.std()).astype(np.float32).ravel()


def _lookup(table: Floats, i: NDArray[np.int32], j: NDArray[np.int32]) -> Floats:
    mask = NOISE_SIDE - 1
    return table[((j & mask) * NOISE_SIDE) + (i & mask)]


def _noise(u: Floats, v: Floats, per_u: float, per_v: float) -> Floats:
    """Smooth noise with `per_u`, `per_v` grains a metre."""
    i, j = (u * (16 * per_u)).astype(np.int32), (v * (16 * per_v)).astype(np.int32)
    return _lookup(smooth_noise(), i, j)


def _cell(u: Floats, period: float | Floats) -> tuple[NDArray[np.int32], Floats]:
    """Number of the cell and the place in it, 0..1."""
    scaled = u / period
    number = np.floor(scaled)
    return number.astype(np.int32), scaled - number


def _fade(pixel: Floats, period: float) -> Floats:
    """1 while a pixel is far smaller than the period, 0 from three quarters of it on."""
    return np.clip(1.5 - 2.0 * pixel / period, 0.0, 1.0)


def _line(place: Floats, period: float, width: float, pixel: Floats) -> Floats:
    """How much of a pixel joints of `width` metres at the cells' edges cover, 0..1."""
    distance = (0.5 - np.abs(place - 0.5)) * period
    one = np.clip((0.5 * (width + pixel) - distance) / pixel, 0.0, np.minimum(1.0, width / pixel))
    many = width / period
    return many + (one - many) * _fade(pixel, period)


def _plain(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    gain = 1 + 0.05 * _noise(u, v, 12, 12) * _fade(pixel, 0.1) + 0.04 * _noise(u, v, 1.5, 1.5)
    return np.zeros_like(u), gain


def _tiles(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    (i, x), (j, y) = _cell(u, period), _cell(v, period)
    mix = np.maximum(_line(x, period, 0.012, pixel), _line(y, period, 0.012, pixel))
    return mix, 1 + 0.3 * (_lookup(white_noise(), i, j) - 0.5) * _fade(pixel, period)


def _checker(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    (i, _), (j, _) = _cell(u, period), _cell(v, period)
    fade = _fade(pixel, period)
    mix = 0.5 + (((i + j) & 1) - 0.5) * fade
    return mix, 1 + 0.15 * (_lookup(white_noise(), i, j) - 0.5) * fade


def _planks(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    j, y = _cell(v, period)
    long = 8 * period
    i, x = _cell(u + long * _lookup(white_noise(), j, j * 3), long)
    mix = np.maximum(_line(x, long, 0.008, pixel), _line(y, period, 0.008, pixel))
    gain = 1 + 0.6 * (_lookup(white_noise(), i, j) - 0.5) * _fade(pixel, period)
    return mix, gain + 0.06 * _noise(u, v, 3, 60) * _fade(pixel, 0.05)


def _bricks(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    high = 0.34 * period
    j, y = _cell(v, high)
    i, x = _cell(u + 0.5 * period * (j & 1), period)
    mix = np.maximum(_line(x, period, 0.012, pixel), _line(y, high, 0.012, pixel))
    return mix, 1 + 0.5 * (_lookup(white_noise(), i, j) - 0.5) * _fade(pixel, high)


def _stripes(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    _, x = _cell(u, period)
    edge = (np.abs(x - 0.5) - 0.25) * period / pixel
    mix = 0.5 + np.clip(edge, -0.5, 0.5) * _fade(pixel, period)
    return mix, 1 + 0.03 * _noise(u, v, 12, 12) * _fade(pixel, 0.1)


def _dots(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    j, y = _cell(v, period)
    _, x = _cell(u + 0.5 * period * (j & 1), period)
    radius = np.hypot(x - 0.5, y - 0.5)
    fade = _fade(pixel, period)
    mix = np.clip((0.24 - radius) * period / pixel + 0.5, 0.0, 1.0)
    return 0.18 + (mix - 0.18) * fade, np.ones_like(u)


def _carpet(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    mix, _ = _dots(u, v, pixel, period)
    return mix, 1 + 0.12 * _noise(u, v, 40, 40) * _fade(pixel, 0.04)


def _wood(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    grain = 0.5 + 0.25 * _noise(u, v, 2, 30) * _fade(pixel, 0.08)
    return np.clip(grain, 0.0, 1.0), 1 + 0.05 * _noise(u, v, 1, 4)


def _weave(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    across, gain = _stripes(u, v, pixel, period)
    along, _ = _stripes(v, u, pixel, period)
    return 0.5 * (across + along), gain


def _books(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    i, x = _cell(u, period)
    j = i * 7
    fade = _fade(pixel, period)
    shade = 1 + (_lookup(white_noise(), j, i) - 0.5) * fade
    return 0.5 + (_lookup(white_noise(), i, j) - 0.5) * fade, shade * (
        1 - 0.6 * _line(x, period, 0.006, pixel)
    )


def _doors(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    _, x = _cell(u, period)
    seam = _line(x, period, 0.012, pixel)
    inset = _line(np.abs(x - 0.5) * 1.25, period, 0.012, pixel)
    handle = (np.abs(x - 0.12) < 0.03) & (np.abs(v - 0.9) < 0.08)
    return np.maximum(seam, 0.6 * inset) * 0.8, 1 - 0.5 * handle + 0.03 * _noise(u, v, 2, 30)


def _drawers(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    _, y = _cell(v, period)
    _, x = _cell(u, 0.42)
    handle = (np.abs(x - 0.5) < 0.12) & (np.abs(y - 0.5) < 0.06)
    return _line(y, period, 0.012, pixel) * 0.8, 1 - 0.5 * handle + 0.03 * _noise(u, v, 2, 30)


def _painting(u: Floats, v: Floats, pixel: Floats, period: float) -> tuple[Floats, Floats]:
    mix = np.clip(0.5 + 0.5 * _noise(u, v, 5, 7), 0.0, 1.0)
    return mix, 1 + 0.25 * _noise(v, u, 10, 10)


PATTERNS: dict[str, Pattern] = {
    "plain": _plain,
    "tiles": _tiles,
    "checker": _checker,
    "planks": _planks,
    "bricks": _bricks,
    "stripes": _stripes,
    "dots": _dots,
    "carpet": _carpet,
    "wood": _wood,
    "weave": _weave,
    "books": _books,
    "doors": _doors,
    "drawers": _drawers,
    "painting": _painting,
}


def albedo(
    materials: tuple[Material, ...],
    number: NDArray[np.uint8],
    u: Floats,
    v: Floats,
    pixel: Floats,
) -> tuple[Floats, Floats]:
    """Linear RGB reflectance (P, 3) and own light (P,) of P surface points.

    `number` (P,) says which material each point has; u, v (P,) are its surface coordinates and
    `pixel` (P,) the width of a pixel there, all in metres.
    """
    colours = np.empty((len(number), 3), np.float32)
    order = np.argsort(number, kind="stable")
    starts = np.searchsorted(number[order], np.arange(len(materials) + 1))
    for material, begin, end in zip(materials, starts[:-1], starts[1:], strict=True):
        here = order[begin:end]
        if len(here):
            mix, gain = PATTERNS[material.pattern](u[here], v[here], pixel[here], material.period)
            for channel in range(3):
                first, second = material.colour[channel], material.other[channel]
                colours[here, channel] = (first + (second - first) * mix) * gain
    glow = np.array([m.glow for m in materials], np.float32)
    return colours, glow[number]
