"""Furnished rooms from a seed: size, materials, lamps and furniture of a dozen NYU scene types.

The room's frame has x and y along the walls from one corner of the floor and z up, all in metres.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from llm_mde.nyu.rooms import decor, fittings, furniture
from llm_mde.nyu.rooms.paint import Colour, Floats, Material
from llm_mde.nyu.rooms.solids import BOX, Part, Piece, extent, turned

FLOOR_CELLS = 25.0  # cells of the floor's shadow map per metre
GAP = 0.04  # metres between pieces

Box = tuple[float, float, float, float, float, float]  # x0, x1, y0, y1, z0, z1


@dataclass(frozen=True, eq=False)
class Room:
    """A room as arrays over its N solids; solid 0 is the room itself, seen from inside.

    `size` (3,) metres; `shape` (N,); `centre`, `half` (N, 3) metres; `turn` (N, 2) cosine and sine
    of the turn about z; `material` (N, 6) numbers into `materials` for the faces -x, +x, -y, +y,
    -z, +z; lamps are (x, y, z, power); `floor_light` is a map of the floor, 1 in the open, with
    `floor_cells` a metre.
    """

    size: tuple[float, float, float]
    shape: NDArray[np.uint8]
    centre: Floats
    half: Floats
    turn: Floats
    material: NDArray[np.uint8]
    materials: tuple[Material, ...]
    lamps: tuple[tuple[float, float, float, float], ...]
    ambient: float
    headlight: float
    tint: Colour
    floor_light: Floats
    floor_cells: float = FLOOR_CELLS


WALL, FREE, FLOOR = "wall", "free", "floor"
Item = tuple[furniture.Builder, str, int, int]  # what, where, at least, at most

_SLEEP: tuple[Item, ...] = (
    (furniture.bed, WALL, 1, 1),
    (furniture.wardrobe, WALL, 1, 2),
    (furniture.dresser, WALL, 0, 2),
    (furniture.sofa, WALL, 0, 1),
    (furniture.small, FREE, 0, 3),
    (furniture.rug, FLOOR, 0, 1),
    (fittings.picture, WALL, 1, 4),
)
_EAT: tuple[Item, ...] = (
    (furniture.dining_set, FREE, 1, 2),
    (furniture.dresser, WALL, 1, 2),
    (furniture.bookshelf, WALL, 0, 2),
    (furniture.plant, FREE, 0, 2),
    (furniture.rug, FLOOR, 0, 1),
    (fittings.picture, WALL, 1, 4),
)
_WORK: tuple[Item, ...] = (
    (furniture.desk, WALL, 1, 3),
    (furniture.bookshelf, WALL, 1, 4),
    (furniture.wardrobe, WALL, 0, 1),
    (furniture.small, FREE, 0, 4),
    (fittings.picture, WALL, 0, 3),
)
_SIT: tuple[Item, ...] = (
    (furniture.sofa, WALL, 1, 3),
    (furniture.tv_stand, WALL, 0, 1),
    (furniture.coffee_table, FREE, 1, 2),
    (furniture.bookshelf, WALL, 0, 2),
    (furniture.floor_lamp, WALL, 0, 2),
    (furniture.plant, FREE, 0, 2),
    (furniture.rug, FLOOR, 0, 1),
    (fittings.picture, WALL, 1, 5),
)
_COOK: tuple[Item, ...] = (
    (furniture.counter, WALL, 2, 3),
    (furniture.appliance, WALL, 1, 1),
    (furniture.dining_set, FREE, 0, 1),
    (furniture.small, FREE, 0, 3),
    (fittings.picture, WALL, 0, 2),
)
_WASH: tuple[Item, ...] = (
    (fittings.bathtub, WALL, 0, 1),
    (fittings.toilet, WALL, 1, 1),
    (fittings.basin, WALL, 1, 2),
    (furniture.appliance, WALL, 0, 1),
    (furniture.small, FREE, 0, 3),
)
_MEET: tuple[Item, ...] = (
    (fittings.blackboard, WALL, 1, 2),
    (furniture.dining_set, FREE, 2, 4),
    (furniture.bookshelf, WALL, 0, 2),
    (furniture.plant, FREE, 0, 2),
    (fittings.picture, WALL, 0, 3),
)
# type: (furniture, shortest and longest side in metres, its floors)
TYPES: dict[str, tuple[tuple[Item, ...], float, float, tuple[str, ...]]] = {
    "bedroom": (_SLEEP, 3.0, 6.0, ("planks", "carpet")),
    "kitchen": (_COOK, 2.6, 6.0, ("tiles", "checker", "planks")),
    "living_room": (_SIT, 3.6, 8.0, ("planks", "carpet")),
    "bathroom": (_WASH, 2.2, 4.0, ("tiles", "checker")),
    "office": (_WORK, 2.8, 7.0, ("carpet", "tiles")),
    "dining_room": (_EAT, 3.2, 7.0, ("planks", "carpet")),
    "classroom": (_MEET, 5.5, 9.0, ("tiles", "planks")),
    "study": (_WORK, 2.6, 5.0, ("planks", "carpet")),
    "playroom": (_SIT, 3.4, 7.0, ("carpet", "checker")),
    "conference_room": (_MEET, 4.5, 8.0, ("carpet", "planks")),
    "home_office": (_WORK, 2.6, 5.0, ("planks", "carpet")),
    "dinette": (_EAT, 2.8, 5.0, ("tiles", "planks")),
}


class _Plan:
    """The pieces placed so far and the boxes that nothing else may enter."""

    def __init__(self, rng: Generator, size: tuple[float, float, float]) -> None:
        self.rng, self.size = rng, size
        self.parts: list[Part] = []
        self.taken: list[Box] = []

    def _pose(self, piece: Piece, where: str) -> tuple[float, float, float]:
        """A random turn, x and y: with the back to a wall, or anywhere."""
        long, wide, _ = self.size
        if where in (FREE, FLOOR):
            yaw = self.rng.choice([0, 0.5, 1, 1.5]) * math.pi
            if where == FREE and self.rng.random() < 0.4:
                yaw += self.rng.normal(0, 0.35)
            return yaw, self.rng.uniform(0.3, long - 0.3), self.rng.uniform(0.3, wide - 0.3)
        side = int(self.rng.integers(4))
        x0, x1, _, _ = extent(piece)
        free = (wide if side % 2 else long) - (x1 - x0) - 2 * GAP
        along = GAP + self.rng.random() * max(free, 0)
        x, y = [
            (along - x0, 0.0),
            (long, along - x0),
            (along + x1, wide),
            (0.0, along + x1),
        ][side]
        return side * math.pi / 2, x, y

    def _box(self, piece: Piece, clear: float) -> Box | None:
        """The box of a piece with `clear` metres of room around it, None if something is there."""
        x0, x1, y0, y1 = extent(piece)
        long, wide, high = self.size
        z0 = min(part.centre[2] - part.half[2] for part in piece)
        z1 = max(part.centre[2] + part.half[2] for part in piece)
        if min(x0, y0) < -1e-6 or x1 > long + 1e-6 or y1 > wide + 1e-6 or z1 > high:
            return None
        box = (x0 - clear, x1 + clear, y0 - clear, y1 + clear, z0, z1)
        overlaps = (
            all(box[k] < other[k + 1] and other[k] < box[k + 1] for k in (0, 2, 4))
            for other in self.taken
        )
        return None if any(overlaps) else box

    def place(self, builder: furniture.Builder, where: str, clear: float = GAP) -> None:
        """Try to place one piece; a room without space for it goes without."""
        piece = builder(self.rng)
        for _ in range(20):
            yaw, x, y = self._pose(piece, where)
            here = turned(piece, yaw, x, y)
            box = self._box(here, 0.0 if where == FLOOR else clear)
            if box:
                self.parts += here
                if where != FLOOR:
                    self.taken.append(box)
                return


def _material_numbers(
    parts: list[Part], shell: list[Material], palette: dict[str, Material]
) -> tuple[NDArray[np.uint8], tuple[Material, ...]]:
    """Materials of the six faces of every solid, the room first, and the list they point to."""
    names = list(palette)
    numbers = [list(range(6))] + [[6 + names.index(part.material)] * 6 for part in parts]
    return np.array(numbers, np.uint8), (*shell, *palette.values())


def _snap(part: Part) -> tuple[tuple[float, float, float], tuple[float, float]]:
    """Half sizes, cosine and sine, where a multiple of a right angle becomes no turn at all."""
    quarters = round(part.yaw / (math.pi / 2))
    if abs(part.yaw - quarters * math.pi / 2) > 1e-6:
        return part.half, (math.cos(part.yaw), math.sin(part.yaw))
    hx, hy, hz = part.half
    return ((hy, hx, hz) if quarters % 2 else part.half), (1.0, 0.0)


def _floor_light(size: tuple[float, float, float], taken: list[Box]) -> Floats:
    """Map of the floor (cells, cells): 1 in the open, down to 0.35 under furniture, blurred."""
    shape = [int(side * FLOOR_CELLS) + 1 for side in size[:2]]
    light = np.ones(shape, np.float32)
    for x0, x1, y0, y1, z0, _ in taken:
        if z0 < 0.3:
            ends = [max(0, round(v * FLOOR_CELLS)) for v in (x0, x1, y0, y1)]
            light[ends[0] : ends[1], ends[2] : ends[3]] = 0.35
    for axis in (0, 1):
        padded = np.pad(light, [(4, 4) if a == axis else (0, 0) for a in (0, 1)], mode="edge")
        light = np.mean([np.take(padded, range(k, k + shape[axis]), axis) for k in range(9)], 0)
    return light.astype(np.float32)


def design(kind: str, rng: Generator) -> Room:
    """A furnished room of one scene type (a key of TYPES)."""
    items, shortest, longest, floors = TYPES[kind]
    long, wide = np.exp(rng.uniform(np.log(shortest), np.log(longest), 2)).tolist()
    size = (long, wide, rng.uniform(2.3, 3.4) if longest > 5 else rng.uniform(2.3, 2.7))
    plan = _Plan(rng, size)
    plan.place(fittings.door, WALL, 0.5)
    for _ in range(int(rng.integers(1, 3))):
        plan.place(fittings.window, WALL, 0.1)
    for builder, where, least, most in items:
        crowd = most + round(most * size[0] * size[1] / 30)  # large rooms hold more
        for _ in range(int(rng.integers(least, crowd + 1))):
            plan.place(builder, where)
    wet = kind == "bathroom" or (kind == "kitchen" and rng.random() < 0.3)
    wall, accent = decor.wall(rng, wet), decor.wall(rng, wet)
    ceiling = Material("plain", (0.8, 0.8, 0.78))
    shell = [wall, accent, wall, wall, decor.floor(rng, str(rng.choice(floors))), ceiling]
    snapped = [_snap(part) for part in plan.parts]
    middle = tuple(side / 2 for side in size)
    material, materials = _material_numbers(plan.parts, shell, decor.palette(rng))
    lamps = max(1, round(size[0] * size[1] / 14))
    warm = rng.uniform(0.75, 1.0)
    return Room(
        size=size,
        shape=np.array([BOX] + [part.shape for part in plan.parts], np.uint8),
        centre=np.array([middle] + [part.centre for part in plan.parts], np.float32),
        half=np.array([middle] + [half for half, _ in snapped], np.float32),
        turn=np.array([(1.0, 0.0)] + [turn for _, turn in snapped], np.float32),
        material=material,
        materials=materials,
        lamps=tuple(
            (
                size[0] * rng.uniform(0.25, 0.75),
                size[1] * rng.uniform(0.25, 0.75),
                size[2] - 0.3,
                rng.uniform(0.5, 0.9),
            )
            for _ in range(lamps)
        ),
        ambient=rng.uniform(0.12, 0.2),
        headlight=rng.uniform(1.4, 1.6),
        tint=(1.0, 0.5 + 0.5 * warm, warm),
        floor_light=_floor_light(size, plan.taken),
    )
