"""Furniture for generated rooms: every piece is a list of boxes, upright cylinders and spheres.

Sizes are those of real furniture (a table 0.74 m, a seat 0.45 m), in metres and little varied,
because the size of known things is one of the cues to depth. A piece stands in its own frame: x
along its width around 0, y from its back (0, towards the wall) to its front, z up from the floor.
"""

import math
from collections.abc import Callable

from numpy.random import Generator

from llm_mde.nyu.rooms.solids import Piece, box, cylinder, extent, sphere, turned

Builder = Callable[[Generator], Piece]


def _legs(material: str, w: float, d: float, h: float, thick: float) -> Piece:
    xs = ((-w / 2, -w / 2 + thick), (w / 2 - thick, w / 2))
    ys = ((0.0, thick), (d - thick, d))
    return [box(material, x, y, (0.0, h)) for x in xs for y in ys]


def _things(rng: Generator, w: float, d: float, z: float, most: int) -> Piece:
    """Up to `most` small things on a top of w x d around (0, d/2) at height z."""
    piece: Piece = []
    for _ in range(int(rng.integers(0, most + 1))):
        x, y = (rng.random() - 0.5) * (w - 0.3), d * (0.25 + 0.5 * rng.random())
        kind = rng.integers(4)
        if kind == 0:
            piece.append(box("cardboard", (x - 0.13, x + 0.13), (y - 0.1, y + 0.1), (z, z + 0.18)))
        elif kind == 1:
            piece.append(box("books", (x - 0.11, x + 0.11), (y - 0.08, y + 0.08), (z, z + 0.1)))
        elif kind == 2:
            piece.append(cylinder("accent", x, y, (z, z + 0.24), 0.06))
        else:
            piece.append(sphere("ceramic", x, y, z + 0.09, 0.09))
    return piece


def table(rng: Generator) -> Piece:
    """A table 0.74 m high, 1.2 to 1.8 m long, with things on it."""
    w, d, h = rng.uniform(1.2, 1.8), rng.uniform(0.8, 0.95), 0.74
    top = box("wood", (-w / 2, w / 2), (0, d), (h - 0.04, h))
    return [top, *_legs("wood", w, d, h - 0.04, 0.07), *_things(rng, w, d, h, 4)]


def chair(rng: Generator) -> Piece:
    """A chair: seat at 0.45 m, back to 0.9 m."""
    w, d = 0.44, 0.46
    seat = box("fabric", (-w / 2, w / 2), (0, d), (0.41, 0.46))
    back = box("wood", (-w / 2, w / 2), (0, 0.04), (0.55, 0.9))
    posts = [box("wood", (x - 0.02, x + 0.02), (0, 0.04), (0.46, 0.55)) for x in (-0.2, 0.2)]
    return [seat, back, *posts, *_legs("wood", w, d, 0.41, 0.04)]


def swivel_chair(rng: Generator) -> Piece:
    """An office chair on one column."""
    return [
        cylinder("black", 0, 0.25, (0.0, 0.07), 0.28),
        cylinder("metal", 0, 0.25, (0.07, 0.42), 0.03),
        box("fabric2", (-0.25, 0.25), (0.0, 0.5), (0.42, 0.5)),
        box("fabric2", (-0.23, 0.23), (0.0, 0.07), (0.58, 1.0)),
    ]


def dining_set(rng: Generator) -> Piece:
    """A table with four to six chairs drawn up, by chance a little askew."""
    piece = table(rng)
    x0, x1, _, y1 = extent(piece[:1])
    places = [(x, y, math.pi * (y > 0)) for x in (x0 * 0.5, x1 * 0.5) for y in (-0.35, y1 + 0.35)]
    if rng.random() < 0.5:
        places += [(x0 - 0.35, y1 / 2, -math.pi / 2), (x1 + 0.35, y1 / 2, math.pi / 2)]
    for x, y, yaw in places:
        piece += turned(chair(rng), yaw + rng.normal(0, 0.15), x, y)
    return piece


def desk(rng: Generator) -> Piece:
    """A desk with drawers, a monitor, a keyboard and its chair."""
    w, d, h = rng.uniform(1.2, 1.6), 0.75, 0.74
    x = rng.uniform(-0.2, 0.2)
    piece = [
        box("wood2", (-w / 2, w / 2), (0, d), (h - 0.04, h)),
        box("wood2", (-w / 2, -w / 2 + 0.04), (0, d), (0, h - 0.04)),
        box("drawers", (w / 2 - 0.42, w / 2), (0, d), (0, h - 0.04)),
        box("screen", (x - 0.27, x + 0.27), (0.2, 0.24), (h + 0.12, h + 0.46)),
        box("black", (x - 0.1, x + 0.1), (0.15, 0.35), (h, h + 0.12)),
        box("black", (x - 0.22, x + 0.22), (0.45, 0.6), (h, h + 0.02)),
        *_things(rng, w, 0.4, h, 3),
    ]
    return piece + turned(swivel_chair(rng), math.pi + rng.normal(0, 0.5), x, 1.25)


def bookshelf(rng: Generator) -> Piece:
    """Shelves of 0.34 m full of books, up to 2 m high."""
    w, d, shelves = rng.uniform(0.7, 1.2), 0.32, int(rng.integers(3, 7))
    h = 0.34 * shelves + 0.06
    piece = [box("wood2", (s - 0.02, s + 0.02), (0, d), (0, h)) for s in (-w / 2, w / 2)]
    piece.append(box("wood2", (-w / 2, w / 2), (0, 0.02), (0, h)))
    for k in range(shelves + 1):
        z = 0.34 * k
        piece.append(box("wood2", (-w / 2, w / 2), (0, d), (z + 0.03, z + 0.06)))
        if k < shelves and rng.random() < 0.85:
            right = w / 2 - 0.03 - rng.uniform(0, 0.3)
            high = z + 0.06 + rng.uniform(0.19, 0.27)
            piece.append(box("books", (-w / 2 + 0.02, right), (0.03, d - 0.06), (z + 0.06, high)))
    return piece


def wardrobe(rng: Generator) -> Piece:
    """A wardrobe 1.9 to 2.1 m high; its doors are 0.5 m wide."""
    w, h = 0.5 * int(rng.integers(2, 5)), rng.uniform(1.9, 2.1)
    return [box("doors", (-w / 2, w / 2), (0, 0.6), (0, h))]


def dresser(rng: Generator) -> Piece:
    """A chest of drawers, 0.8 m high, with things or a lamp on it."""
    w = rng.uniform(0.8, 1.2)
    return [box("drawers", (-w / 2, w / 2), (0, 0.48), (0, 0.8)), *_things(rng, w, 0.48, 0.8, 3)]


def bed(rng: Generator) -> Piece:
    """A bed of 2 m with mattress at 0.5 m, blanket, pillows, headboard and a night stand."""
    w = float(rng.choice([0.9, 1.4, 1.6]))
    piece = [
        box("wood", (-w / 2, w / 2), (0, 0.06), (0, rng.uniform(0.9, 1.15))),
        box("wood", (-w / 2, w / 2), (0.06, 2.1), (0.12, 0.3)),
        box("linen", (-w / 2 + 0.02, w / 2 - 0.02), (0.06, 2.08), (0.3, 0.5)),
        box("blanket", (-w / 2 - 0.01, w / 2 + 0.01), (0.75, 2.11), (0.26, 0.54)),
    ]
    middles = (-w / 4, w / 4) if w > 1 else (0.0,)
    piece += [box("linen", (m - 0.3, m + 0.3), (0.1, 0.5), (0.5, 0.63)) for m in middles]
    stand = w / 2 + 0.3
    piece.append(box("drawers", (stand - 0.22, stand + 0.22), (0, 0.4), (0, 0.5)))
    return piece + turned(table_lamp(rng), 0, stand, 0.2, 0.5)


def sofa(rng: Generator) -> Piece:
    """A sofa or armchair: seat at 0.45 m, arms at 0.62 m, back at 0.85 m."""
    seats = int(rng.integers(1, 4))
    w, d = 0.62 * seats + 0.4, 0.9
    piece = [
        box("fabric", (-w / 2, w / 2), (0.1, d), (0.05, 0.3)),
        box("fabric", (-w / 2, w / 2), (0, 0.22), (0.05, 0.85)),
        box("fabric", (-w / 2, -w / 2 + 0.2), (0.0, d), (0.05, 0.62)),
        box("fabric", (w / 2 - 0.2, w / 2), (0.0, d), (0.05, 0.62)),
    ]
    for k in range(seats):
        x = -w / 2 + 0.2 + 0.62 * k
        piece.append(box("fabric", (x + 0.01, x + 0.61), (0.2, d + 0.02), (0.3, 0.45)))
        if rng.random() < 0.5:
            piece.append(box("fabric2", (x + 0.1, x + 0.5), (0.22, 0.34), (0.45, 0.8)))
    return piece


def coffee_table(rng: Generator) -> Piece:
    """A low table, 0.45 m high, square or round."""
    if rng.random() < 0.3:
        top = cylinder("wood2", 0, 0.45, (0.41, 0.45), 0.45)
        return [top, cylinder("wood2", 0, 0.45, (0, 0.41), 0.06)]
    w, d = rng.uniform(0.9, 1.2), 0.6
    top = box("wood2", (-w / 2, w / 2), (0, d), (0.41, 0.45))
    return [top, *_legs("wood2", w, d, 0.41, 0.06), *_things(rng, w, d, 0.45, 3)]


def tv_stand(rng: Generator) -> Piece:
    """A low cabinet with a television of 1.1 m."""
    return [
        box("drawers", (-0.75, 0.75), (0, 0.42), (0, 0.5)),
        box("black", (-0.2, 0.2), (0.1, 0.3), (0.5, 0.55)),
        box("screen", (-0.55, 0.55), (0.17, 0.22), (0.55, 1.2)),
    ]


def counter(rng: Generator) -> Piece:
    """Kitchen base units of 0.6 m with a worktop at 0.9 m, wall units, an oven or a sink."""
    w = 0.6 * int(rng.integers(2, 6))
    piece = [
        box("doors", (-w / 2, w / 2), (0, 0.58), (0.1, 0.86)),
        box("stone", (-w / 2, w / 2), (0, 0.62), (0.86, 0.9)),
        box("black", (-w / 2, w / 2), (0, 0.52), (0, 0.1)),
        box("splash", (-w / 2, w / 2), (0, 0.02), (0.9, 1.4)),
        box("doors", (-w / 2, w / 2), (0, 0.34), (1.4, 2.1)),
    ]
    x = -w / 2 + 0.6 * int(rng.integers(round(w / 0.6)))
    if rng.random() < 0.6:
        piece.append(box("metal", (x + 0.02, x + 0.58), (0.1, 0.6), (0.2, 0.84)))
        piece.append(box("black", (x + 0.03, x + 0.57), (0.08, 0.56), (0.9, 0.915)))
    else:
        piece.append(box("metal", (x + 0.08, x + 0.52), (0.12, 0.5), (0.9, 0.91)))
        piece.append(cylinder("metal", x + 0.3, 0.1, (0.9, 1.15), 0.02))
    return piece + _things(rng, w, 0.4, 0.9, 4)


def appliance(rng: Generator) -> Piece:
    """A refrigerator, 0.6 x 0.65 x 1.75 m, or a washing machine, 0.85 m high."""
    if rng.random() < 0.4:
        door = box("black", (-0.16, 0.16), (0.6, 0.61), (0.25, 0.57))
        return [box("white", (-0.3, 0.3), (0, 0.6), (0, 0.85)), door]
    return [
        box("white", (-0.3, 0.3), (0, 0.65), (0, 0.6)),
        box("white", (-0.3, 0.3), (0, 0.65), (0.62, 1.75)),
        box("metal", (-0.26, -0.23), (0.65, 0.69), (0.75, 1.2)),
    ]


def table_lamp(rng: Generator) -> Piece:
    """A lamp of 0.45 m to stand on something."""
    return [cylinder("accent", 0, 0, (0, 0.25), 0.04), cylinder("lamp", 0, 0, (0.25, 0.45), 0.13)]


def floor_lamp(rng: Generator) -> Piece:
    """A standing lamp, 1.6 m."""
    return [
        cylinder("metal", 0, 0.2, (0, 0.03), 0.16),
        cylinder("metal", 0, 0.2, (0.03, 1.3), 0.02),
        cylinder("lamp", 0, 0.2, (1.3, 1.6), 0.2),
    ]


def plant(rng: Generator) -> Piece:
    """A pot with a bush of four balls, about 1.2 m."""
    piece = [cylinder("pot", 0, 0.25, (0, 0.3), 0.17), cylinder("wood", 0, 0.25, (0.3, 0.7), 0.03)]
    for _ in range(4):
        x, y = rng.uniform(-0.12, 0.12, 2)
        piece.append(sphere("leaves", x, 0.25 + y, rng.uniform(0.65, 1.1), rng.uniform(0.13, 0.2)))
    return piece


def small(rng: Generator) -> Piece:
    """Something that stands about: a waste bin of 0.35 m, a stool of 0.45 m, boxes of 0.4 m."""
    kind = rng.integers(3)
    if kind == 0:
        return [cylinder("accent", 0, 0.16, (0, 0.35), 0.13)]
    if kind == 1:
        top = cylinder("wood", 0, 0.15, (0.41, 0.45), 0.17)
        return [top, *_legs("wood", 0.26, 0.3, 0.41, 0.03)]
    piece = [box("cardboard", (-0.22, 0.22), (0, 0.4), (0, 0.38))]
    if rng.random() < 0.6:
        piece += turned([box("cardboard", (-0.2, 0.2), (-0.17, 0.17), (0.38, 0.7))], 0.3, 0, 0.2)
    return piece


def rug(rng: Generator) -> Piece:
    """A rug of about 2 x 1.4 m."""
    w, d = rng.uniform(1.6, 2.4), rng.uniform(1.2, 1.6)
    return [box("rug", (-w / 2, w / 2), (0, d), (0, 0.012))]
