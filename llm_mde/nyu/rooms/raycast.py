"""Rays against the solids of a generated room, for any camera: depth, surface and light.

A ray is (x, y, 1) in the camera's frame (x right, y down, z forward), so its length parameter is
the depth z in metres. Every solid is tried only inside the rectangle of pixels that can see it.
"""

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from llm_mde.nyu.rooms.design import Room
from llm_mde.nyu.rooms.paint import Floats, albedo, white_noise
from llm_mde.nyu.rooms.solids import BOX, CYLINDER

LAMP_REACH = 3.0  # tangent of half the angle in which the first lamp casts shadows
LAMP_SIDE = 512  # cells of its shadow map
NEAR = 0.05  # metres; nothing is seen closer to the camera
_EDGES = np.array([(a, b) for a in range(8) for b in range(8) if a < b and (a ^ b) in (1, 2, 4)])
_CORNERS = np.array([[2 * (k >> axis & 1) - 1 for axis in range(3)] for k in range(8)], float)


@dataclass(frozen=True, eq=False)
class Rays:
    """Directions (x, y, 1) of all pixels, (H, W) each, and `focal`, pixels per unit of x."""

    x: Floats
    y: Floats
    focal: float

    def window(self, x: tuple[float, float], y: tuple[float, float]) -> tuple[slice, slice]:
        """The smallest block of rows and columns that holds every ray inside the two intervals."""
        left, right, top, bottom = self._ends
        columns = right.searchsorted(x[0]), left.searchsorted(x[1], "right")
        rows = bottom.searchsorted(y[0]), top.searchsorted(y[1], "right")
        return slice(*rows), slice(*columns)

    @cached_property
    def _ends(self) -> tuple[Floats, Floats, Floats, Floats]:
        return self.x.min(0), self.x.max(0), self.y.min(1), self.y.max(1)


@dataclass(frozen=True, eq=False)
class Hits:
    """Depth z (H, W) in metres and the number of the solid (H, W) that each ray meets first."""

    z: Floats
    solid: NDArray[np.int16]


@dataclass(frozen=True, eq=False)
class Surface:
    """What the P rays of a picture meet: points in metres and unit normals (3, P), the rest (P,).

    u, v are coordinates on the surface in metres, `material` numbers into the room's materials,
    `cosine` that of the angle between the normal and the way back to the camera.
    """

    point: Floats
    normal: Floats
    u: Floats
    v: Floats
    material: NDArray[np.uint8]
    cosine: Floats


def directions(pose: NDArray[np.float64], rays: Rays) -> list[Floats]:
    """The rays in the room's frame, three arrays (H, W); pose (4, 4) is camera to room."""
    return [
        float(pose[k, 0]) * rays.x + float(pose[k, 1]) * rays.y + np.float32(pose[k, 2] + 1e-9)
        for k in range(3)
    ]


def _bounds(room: Room, pose: NDArray[np.float64]) -> NDArray[np.float64]:
    """x0, x1, y0, y1 (N, 4) of every solid in the image plane z = 1; x0 > x1 where it is behind."""
    corners = _CORNERS * room.half[:, None]
    c, s = room.turn[:, None, 0], room.turn[:, None, 1]
    turned = np.stack(
        [
            c * corners[..., 0] - s * corners[..., 1],
            s * corners[..., 0] + c * corners[..., 1],
            corners[..., 2],
        ],
        -1,
    )
    seen = (turned + room.centre[:, None] - pose[:3, 3]) @ pose[:3, :3]  # (N, 8, 3), camera frame
    a, b = seen[:, _EDGES[:, 0]], seen[:, _EDGES[:, 1]]
    crosses = (a[..., 2] < NEAR) != (b[..., 2] < NEAR)
    share = (NEAR - a[..., 2]) / np.where(crosses, b[..., 2] - a[..., 2], 1.0)
    points = np.concatenate([seen, a + share[..., None] * (b - a)], 1)  # (N, 20, 3)
    counts = np.concatenate([seen[..., 2] >= NEAR, crosses], 1)
    flat = points[..., :2] / np.maximum(points[..., 2:], NEAR)
    low = np.where(counts[..., None], flat, np.inf).min(1)
    high = np.where(counts[..., None], flat, -np.inf).max(1)
    return np.stack([low[:, 0], high[:, 0], low[:, 1], high[:, 1]], 1)


def _slab(low: float, high: float, inverse: Floats) -> tuple[Floats, Floats]:
    """Where rays enter and leave the space between two parallel planes."""
    first, second = low * inverse, high * inverse
    return np.minimum(first, second), np.maximum(first, second)


def _round(offset: list[float], axes: list[Floats], radius: float) -> tuple[Floats, Floats]:
    """Where rays enter and leave a circle (two axes) or a sphere (three); NaN where they miss."""
    a = sum(d * d for d in axes)
    b = sum(o * d for o, d in zip(offset, axes, strict=True))
    c = sum(o * o for o in offset) - radius * radius
    root = np.sqrt(b * b - a * c)
    return (-b - root) / a, (root - b) / a


def _solid(shape: int, half: list[float], offset: list[float], d: list[Floats]) -> Floats:
    """Depth (h, w) at which rays enter a solid, inf where they miss; all in its own frame."""
    if shape == BOX:
        spans = [_slab(-h - o, h - o, 1 / a) for h, o, a in zip(half, offset, d, strict=True)]
    elif shape == CYLINDER:
        spans = [
            _round(offset[:2], d[:2], half[0]),
            _slab(-half[2] - offset[2], half[2] - offset[2], 1 / d[2]),
        ]
    else:
        spans = [_round(offset, d, half[0])]
    enter, leave = spans[0]
    for near, far in spans[1:]:
        enter, leave = np.maximum(enter, near), np.minimum(leave, far)
    return np.where(enter <= leave, enter, np.float32(np.inf))


def cast(room: Room, pose: NDArray[np.float64], rays: Rays) -> Hits:
    """What each ray meets first; pose (4, 4) is camera to room, the camera stands inside it."""
    d = directions(pose, rays)
    origin = pose[:3, 3]
    walls = zip(origin, room.size, d, strict=True)
    with np.errstate(divide="ignore"):  # rays along a wall
        ends = [_slab(float(-o), float(size - o), 1 / axis)[1] for o, size, axis in walls]
    z = np.minimum(np.minimum(ends[0], ends[1]), ends[2])
    solid = np.zeros(z.shape, np.int16)
    for number, bounds in enumerate(_bounds(room, pose)):
        if number == 0 or bounds[0] > bounds[1]:  # solid 0 is the room itself
            continue
        window = rays.window((bounds[0], bounds[1]), (bounds[2], bounds[3]))
        part = z[window]
        if not part.size:
            continue
        c, s = map(float, room.turn[number])
        x, y, up = (float(v) for v in origin - room.centre[number])
        dx, dy, dz = (axis[window] for axis in d)
        turned = [dx, dy, dz] if s == 0 else [c * dx + s * dy, c * dy - s * dx, dz]
        offset = [c * x + s * y, c * y - s * x, up]
        half = [float(h) for h in room.half[number]]
        with np.errstate(invalid="ignore", divide="ignore"):  # rays that miss or run level
            depth = _solid(int(room.shape[number]), half, offset, turned)
        nearer = (depth < part) & (depth > NEAR)
        np.copyto(part, depth, where=nearer)
        np.copyto(solid[window], number, where=nearer)
    return Hits(z, solid)


def surfaces(room: Room, pose: NDArray[np.float64], rays: Rays, hits: Hits) -> Surface:
    """Points, normals, surface coordinates and materials of everything the rays met."""
    d = [axis.ravel() for axis in directions(pose, rays)]
    z, solid = hits.z.ravel(), hits.solid.ravel()
    point = np.stack([np.float32(o) + z * axis for o, axis in zip(pose[:3, 3], d, strict=True)])
    x, y, up = (point[k] - room.centre[solid, k] for k in range(3))
    c, s = room.turn[solid, 0], room.turn[solid, 1]
    local = [c * x + s * y, c * y - s * x, up]
    half = [room.half[solid, k] for k in range(3)]
    depth = [np.abs(a) / h for a, h in zip(local, half, strict=True)]
    axis = np.where(depth[2] > np.maximum(depth[0], depth[1]), 2, depth[1] > depth[0])
    positive = np.choose(axis, local) > 0
    sign = np.where(
        positive == (solid > 0), np.float32(1), np.float32(-1)
    )  # the room's point inwards
    flat = [np.where(axis == k, sign, np.float32(0)) for k in range(3)]
    u = np.where(axis == 0, local[1] + half[1], local[0] + half[0])
    v = np.where(axis == 2, local[1] + half[1], local[2] + half[2])
    _bend(room, solid, local, flat, u)
    normal = np.stack([c * flat[0] - s * flat[1], s * flat[0] + c * flat[1], flat[2]])
    back = sum(n * a for n, a in zip(normal, d, strict=True))
    length = np.sqrt(rays.x * rays.x + rays.y * rays.y + 1).ravel()
    material = room.material[solid, 2 * axis + positive]
    return Surface(point, normal, u, v, material, np.clip(-back / length, 0, 1))


def _bend(
    room: Room, solid: NDArray[np.int16], local: list[Floats], normal: list[Floats], u: Floats
) -> None:
    """Put the normals and the u of round solids in place, in their own frame."""
    shape = room.shape[solid]
    here = np.flatnonzero(shape != BOX)
    x, y, up = (axis[here] for axis in local)
    radius = room.half[solid[here], 0]
    tube = shape[here] == CYLINDER
    top = tube & (np.hypot(x, y) < 0.999 * radius)
    side = np.where(tube, np.float32(0), up)
    length = np.sqrt(x * x + y * y + side * side) + np.float32(1e-6)
    for axis, value in zip(normal, (x, y, side), strict=True):
        axis[here] = np.where(top, np.float32(0), value / length)
    normal[2][here] = np.where(top, np.sign(up), normal[2][here])
    u[here] = np.arctan2(y, x) * radius


def _corner_light(room: Room, point: Floats) -> Floats:
    """Ambient light (P,) that reaches a point, less in corners and under furniture, 0..1."""
    light = np.ones(point.shape[1], np.float32)
    for axis, size in zip(point, room.size, strict=True):
        gap = np.minimum(axis, np.float32(size) - axis)
        light *= 1 - 0.35 * np.exp(gap * np.float32(-1 / 0.3))
    rows, columns = room.floor_light.shape
    i = np.clip((point[0] * room.floor_cells).astype(np.int32), 0, rows - 1)
    j = np.clip((point[1] * room.floor_cells).astype(np.int32), 0, columns - 1)
    shade = 1 - room.floor_light[i, j]
    return light * (1 - shade * np.exp(np.maximum(point[2], 0) * np.float32(-1 / 0.15)))


@lru_cache(maxsize=4)
def _below_lamp(room: Room) -> Floats:
    """What the room's first lamp sees below it: depth (LAMP_SIDE, LAMP_SIDE), metres."""
    down = np.diag([1.0, -1.0, -1.0, 1.0])
    down[:3, 3] = room.lamps[0][:3]
    ends = np.linspace(-LAMP_REACH, LAMP_REACH, LAMP_SIDE, dtype=np.float32)
    columns, rows = np.meshgrid(ends, ends)
    return cast(room, down, Rays(columns, rows, LAMP_SIDE / (2 * LAMP_REACH))).z


def _unshaded(room: Room, point: Floats) -> Floats:
    """Share (P,) of the first lamp's light that reaches points (3, P); small in shadows."""
    depth = _below_lamp(room)
    x, y, z = (axis - np.float32(o) for axis, o in zip(point, room.lamps[0][:3], strict=True))
    below = np.maximum(-z, np.float32(0.05))
    scale = np.float32((LAMP_SIDE - 1) / (2 * LAMP_REACH))
    dither = np.resize(white_noise(), point.shape[1])  # a cell wide: soft edges
    column = ((x / below + LAMP_REACH) * scale + dither).astype(np.int32)
    row = ((LAMP_REACH - y / below) * scale + dither[::-1]).astype(np.int32)
    inside = (column >= 0) & (column < LAMP_SIDE) & (row >= 0) & (row < LAMP_SIDE)
    flat = np.where(inside, row * LAMP_SIDE + column, 0)
    shaded = inside & (below > 0.05) & (below > depth.ravel()[flat] + np.float32(0.03))
    return np.where(shaded, np.float32(0.1), np.float32(1))


def radiance(room: Room, pose: NDArray[np.float64], rays: Rays) -> Floats:
    """Linear light (H, W, 3) that the camera at `pose` (4, 4, camera to room) receives.

    Ambient light, the room's lamps with Lambert's law and the inverse square (the first of them
    casts shadows) and a light on the camera itself.
    """
    hits = cast(room, pose, rays)
    seen = surfaces(room, pose, rays, hits)
    corner = _corner_light(room, seen.point)
    light = room.ambient * corner
    for number, (*place, power) in enumerate(room.lamps):
        way = [np.float32(p) - axis for p, axis in zip(place, seen.point, strict=True)]
        square = sum(w * w for w in way)
        facing = sum(w * n for w, n in zip(way, seen.normal, strict=True))
        bright = corner * power * np.maximum(facing, 0) / (np.sqrt(square) * (square + 0.3))
        light += bright if number else bright * _unshaded(room, seen.point)
    z = hits.z.ravel()
    length = np.sqrt(rays.x * rays.x + rays.y * rays.y + 1).ravel()
    light += room.headlight * seen.cosine / (0.4 + np.square(z * length))
    pixel = z / (rays.focal * np.sqrt(np.maximum(seen.cosine, 0.05)))
    colours, glow = albedo(room.materials, seen.material, seen.u, seen.v, pixel)
    colours *= (light + glow)[:, None]
    return (colours * np.asarray(room.tint, np.float32)).reshape(*hits.z.shape, 3)
