"""Solids of generated rooms: boxes, upright cylinders and spheres, alone and in groups."""

import math
from dataclasses import dataclass, replace

BOX, CYLINDER, SPHERE = 0, 1, 2


@dataclass(frozen=True)
class Part:
    """One solid: shape, centre and half sizes in metres, turn about z in radians, its material."""

    shape: int
    centre: tuple[float, float, float]
    half: tuple[float, float, float]
    yaw: float
    material: str


Piece = list[Part]


def turned(piece: Piece, yaw: float, x: float, y: float, z: float = 0.0) -> Piece:
    """The piece turned about z by yaw (radians) and then moved by x, y, z (metres)."""
    c, s = math.cos(yaw), math.sin(yaw)
    return [
        replace(
            part,
            centre=(
                c * part.centre[0] - s * part.centre[1] + x,
                s * part.centre[0] + c * part.centre[1] + y,
                part.centre[2] + z,
            ),
            yaw=part.yaw + yaw,
        )
        for part in piece
    ]


def extent(piece: Piece) -> tuple[float, float, float, float]:
    """Footprint x0, x1, y0, y1 of a piece, metres."""
    sides = []
    for part in piece:
        c, s = abs(math.cos(part.yaw)), abs(math.sin(part.yaw))
        hx, hy = c * part.half[0] + s * part.half[1], s * part.half[0] + c * part.half[1]
        x, y = part.centre[:2]
        sides.append((x - hx, x + hx, y - hy, y + hy))
    x0, x1, y0, y1 = zip(*sides, strict=True)
    return min(x0), max(x1), min(y0), max(y1)


def box(
    material: str, x: tuple[float, float], y: tuple[float, float], z: tuple[float, float]
) -> Part:
    """A box from its three intervals, metres."""
    sides = (x, y, z)
    cx, cy, cz = ((a + b) / 2 for a, b in sides)
    hx, hy, hz = ((b - a) / 2 for a, b in sides)
    return Part(BOX, (cx, cy, cz), (hx, hy, hz), 0.0, material)


def cylinder(material: str, x: float, y: float, z: tuple[float, float], radius: float) -> Part:
    """An upright cylinder, metres."""
    half = (radius, radius, (z[1] - z[0]) / 2)
    return Part(CYLINDER, (x, y, (z[0] + z[1]) / 2), half, 0.0, material)


def sphere(material: str, x: float, y: float, z: float, radius: float) -> Part:
    """A sphere, metres."""
    return Part(SPHERE, (x, y, z), (radius, radius, radius), 0.0, material)
