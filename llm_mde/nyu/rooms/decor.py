"""The colours and materials of one generated room, drawn from its generator."""

import colorsys

from numpy.random import Generator

from llm_mde.nyu.rooms.paint import Colour, Material


def _colour(rng: Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Colour:
    """A random hue as linear RGB; saturation and value are those of the display colour."""
    display = colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value))
    red, green, blue = (c**2.2 for c in display)
    return red, green, blue


def _shade(colour: Colour, factor: float) -> Colour:
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


def _timber(rng: Generator) -> tuple[Colour, Colour]:
    """Two tones of one wood, from pale oak to walnut."""
    dark, red = rng.uniform(0.4, 1.0), rng.uniform(0.5, 0.65)
    tone = (0.5 * dark, 0.5 * red * dark, 0.5 * red * red * dark * 0.8)
    return tone, _shade(tone, 0.6)


def floor(rng: Generator, kind: str) -> Material:
    """A floor: `kind` is planks, carpet, tiles or checker."""
    if kind == "planks":
        tone, _ = _timber(rng)
        return Material("planks", tone, _shade(tone, 0.15), 0.14)
    if kind == "carpet":
        colour = _colour(rng, (0.1, 0.5), (0.5, 0.75))
        return Material("carpet", colour, _shade(colour, rng.choice([0.5, 1.8])), 0.25)
    colour = _colour(rng, (0.0, 0.2), (0.6, 0.9))
    dark = _shade(colour, 0.25)
    return Material(kind, colour, dark, 0.3 if kind == "tiles" else 0.33)


def wall(rng: Generator, tiled: bool) -> Material:
    """A wall: tiled, or painted, papered or of bricks."""
    colour = _colour(rng, (0.0, 0.3), (0.72, 0.92))
    other = _shade(colour, 0.55)
    if tiled:
        return Material("tiles", colour, _shade(colour, 0.4), 0.2)
    kind = str(rng.choice(["plain", "stripes", "dots", "bricks"], p=[0.3, 0.3, 0.25, 0.15]))
    if kind == "bricks":
        return Material("bricks", _colour(rng, (0.4, 0.6), (0.45, 0.7)), (0.5, 0.5, 0.48), 0.22)
    return Material(kind, colour, other, 0.2)


def palette(rng: Generator) -> dict[str, Material]:
    """The materials that furniture names, with this room's colours."""
    wood, wood2 = _timber(rng), _timber(rng)
    front = (_shade((1, 1, 1), 0.7), (0.2, 0.2, 0.2)) if rng.random() < 0.4 else wood2
    cloth = [_colour(rng, (0.1, 0.6), (0.45, 0.8)) for _ in range(5)]
    return {
        "wood": Material("wood", *wood),
        "wood2": Material("wood", *wood2),
        "doors": Material("doors", front[0], _shade(front[0], 0.15), 0.5),
        "drawers": Material("drawers", front[0], _shade(front[0], 0.15), 0.2),
        "fabric": Material("weave", cloth[0], _shade(cloth[0], 0.6), 0.09),
        "fabric2": Material("plain", cloth[1]),
        "blanket": Material("weave", cloth[2], _shade(cloth[3], 1.0), 0.18),
        "curtain": Material("stripes", cloth[3], _shade(cloth[3], 0.6), 0.12),
        "rug": Material("weave", cloth[4], _shade(cloth[1], 0.8), 0.25),
        "linen": Material("stripes", (0.75, 0.75, 0.72), cloth[2], 0.12),
        "accent": Material("plain", _colour(rng, (0.4, 0.9), (0.4, 0.9))),
        "ceramic": Material("plain", (0.8, 0.8, 0.78), gloss=0.05),
        "white": Material("plain", (0.75, 0.75, 0.75), gloss=0.03),
        "metal": Material("plain", (0.4, 0.4, 0.42), gloss=0.35),
        "black": Material("plain", (0.02, 0.02, 0.02), infrared=0.06),
        "screen": Material("plain", (0.015, 0.015, 0.02), infrared=0.05, gloss=0.5),
        "glass": Material("plain", (0.9, 0.95, 1.0), gloss=1.0, glow=rng.uniform(0.1, 0.6)),
        "mirror": Material("plain", (0.35, 0.38, 0.4), gloss=1.0),
        "stone": Material("painting", _colour(rng, (0, 0.2), (0.3, 0.8)), (0.1, 0.1, 0.1), 0.1),
        "splash": Material("tiles", _colour(rng, (0, 0.4), (0.6, 0.9)), (0.15, 0.15, 0.15), 0.1),
        "books": Material("books", cloth[0], _shade(cloth[3], 0.8), 0.035),
        "painting": Material("painting", cloth[1], cloth[2]),
        "board": Material("plain", (0.03, 0.08, 0.05), infrared=0.3),
        "cardboard": Material("wood", (0.35, 0.22, 0.12), (0.3, 0.18, 0.1)),
        "lamp": Material("plain", (0.8, 0.7, 0.5), glow=0.8),
        "pot": Material("plain", (0.4, 0.15, 0.08)),
        "leaves": Material("painting", (0.05, 0.2, 0.04), (0.02, 0.08, 0.02)),
        "trim": Material("plain", _shade((1, 1, 1), rng.uniform(0.4, 0.8))),
        "door": Material("doors", front[0], _shade(front[0], 0.3), 0.82),
    }
