"""What is built into generated rooms: doors, windows, pictures, boards, the things of a bathroom.

As in `furniture`: real sizes in metres, the back at y = 0 against the wall.
"""

from numpy.random import Generator

from llm_mde.nyu.rooms.solids import Piece, box, cylinder


def toilet(rng: Generator) -> Piece:
    """A toilet: bowl at 0.4 m, tank to 0.8 m."""
    return [
        cylinder("ceramic", 0, 0.45, (0, 0.38), 0.17),
        cylinder("ceramic", 0, 0.45, (0.38, 0.42), 0.21),
        box("ceramic", (-0.1, 0.1), (0.1, 0.4), (0, 0.36)),
        box("ceramic", (-0.2, 0.2), (0, 0.18), (0.4, 0.8)),
    ]


def bathtub(rng: Generator) -> Piece:
    """A tub of 1.7 x 0.75 m, rim at 0.58 m."""
    return [
        box("ceramic", (-0.85, 0.85), (0, 0.75), (0, 0.2)),
        box("ceramic", (-0.85, 0.85), (0, 0.07), (0.2, 0.58)),
        box("ceramic", (-0.85, 0.85), (0.68, 0.75), (0.2, 0.58)),
        box("ceramic", (-0.85, -0.75), (0, 0.75), (0.2, 0.58)),
        box("ceramic", (0.75, 0.85), (0, 0.75), (0.2, 0.58)),
        box("splash", (-0.85, 0.85), (0, 0.01), (0.58, 1.5)),
    ]


def basin(rng: Generator) -> Piece:
    """A wash basin at 0.85 m over a cabinet, below a mirror."""
    return [
        box("doors", (-0.35, 0.35), (0, 0.42), (0.1, 0.72)),
        box("ceramic", (-0.38, 0.38), (0, 0.48), (0.72, 0.86)),
        cylinder("metal", 0, 0.08, (0.86, 1.0), 0.02),
        box("mirror", (-0.3, 0.3), (0, 0.02), (1.15, 1.85)),
    ]


def door(rng: Generator) -> Piece:
    """A closed door: leaf 0.82 x 2.0 m in its frame, with a handle."""
    return [
        box("trim", (-0.49, -0.41), (0, 0.04), (0, 2.07)),
        box("trim", (0.41, 0.49), (0, 0.04), (0, 2.07)),
        box("trim", (-0.41, 0.41), (0, 0.04), (2.0, 2.07)),
        box("door", (-0.41, 0.41), (0, 0.02), (0, 2.0)),
        box("metal", (0.25, 0.36), (0.02, 0.07), (1.02, 1.05)),
    ]


def window(rng: Generator) -> Piece:
    """A window of 1.2 m from 0.9 to 2.1 m with a sill, at times with curtains."""
    w = rng.uniform(0.5, 0.8)
    piece = [
        box("glass", (-w, w), (0, 0.02), (0.9, 2.1)),
        box("trim", (-w - 0.06, w + 0.06), (0, 0.14), (0.86, 0.9)),
        box("trim", (-w - 0.06, w + 0.06), (0, 0.05), (2.1, 2.16)),
    ]
    piece += [box("trim", (x - 0.03, x + 0.03), (0, 0.05), (0.9, 2.1)) for x in (-w, 0, w)]
    if rng.random() < 0.5:
        sides = ((-w - 0.3, -w + 0.12), (w - 0.12, w + 0.3))
        piece += [box("curtain", side, (0.05, 0.14), (0.1, 2.22)) for side in sides]
    return piece


def picture(rng: Generator) -> Piece:
    """A framed picture of about 0.6 m around 1.55 m."""
    w, h = rng.uniform(0.2, 0.45), rng.uniform(0.2, 0.35)
    return [
        box("trim", (-w, w), (0, 0.025), (1.55 - h, 1.55 + h)),
        box("painting", (-w + 0.05, w - 0.05), (0.0, 0.03), (1.6 - h, 1.5 + h)),
    ]


def blackboard(rng: Generator) -> Piece:
    """A board of 2.4 x 1.2 m."""
    return [
        box("trim", (-1.24, 1.24), (0, 0.03), (0.86, 2.14)),
        box("board", (-1.2, 1.2), (0, 0.04), (0.9, 2.1)),
    ]
