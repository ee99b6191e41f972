"""Generated raw Kinect dumps: furnished rooms seen by the cameras of NYU Depth V2, and their truth.

Scene N of seed S is one room, the folder `<type>_<9000 + N>`, which is no name of NYU's. It depends
on S, N and its type alone, so that its true depth can be made again without the files.
"""

import json
import shutil
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.random import Generator

from llm_mde.errors import ConfigError, DataError
from llm_mde.launcher import cores
from llm_mde.nyu.kinect import HEIGHT, RGB_CAMERA, WIDTH
from llm_mde.nyu.rooms.design import TYPES, Room, design
from llm_mde.nyu.rooms.paint import Floats
from llm_mde.nyu.rooms.raycast import cast
from llm_mde.nyu.rooms.sensor import (
    Pose,
    accelerometer,
    colour_picture,
    depth_picture,
    depth_pose,
    pinhole_rays,
)
from llm_mde.nyu.rooms.views import camera

SCENE_TYPES = tuple(TYPES)
FIRST_NUMBER = 9000  # NYU's own numbers end far below
FORMAT = 1  # raised when the same settings give other bytes
FRAME_S = 1 / 30  # a Kinect's frame rate
TICKS_PER_S = 60_000_000  # the device's clock; its 32 bits wrap every 71.6 s


@dataclass(frozen=True)
class Settings:
    """What the bytes of a generated folder depend on."""

    scenes: int
    frames: int
    seed: int
    types: tuple[str, ...]
    truncate: float
    format: int = FORMAT

    def kind(self, scene: int) -> str:
        """The scene type of scene number 1, 2, ..."""
        return self.types[(scene - 1) % len(self.types)]

    def folder(self, scene: int) -> str:
        """The folder of scene number 1, 2, ..."""
        return f"{self.kind(scene)}_{FIRST_NUMBER + scene:04d}"


@lru_cache(maxsize=4)
def _room(seed: int, scene: int, kind: str) -> Room:
    return design(kind, np.random.default_rng([seed, scene, 0]))


def true_pose(seed: int, scene: int, frame: int, *, types: Sequence[str] = SCENE_TYPES) -> Pose:
    """Pose (4, 4) of the RGB camera, camera (x right, y down, z forward) to room (z up), metres."""
    room = _room(seed, scene, types[(scene - 1) % len(types)])
    return camera(room, seed, scene, frame)


def true_depth(
    seed: int,
    scene: int,
    frame: int,
    *,
    types: Sequence[str] = SCENE_TYPES,
    stride: int = 1,
) -> Floats:
    """True depth z, metres, float32 (480, 640) / stride, of the undistorted RGB picture of a frame.

    Pixel i is the ray (i + 1 - cx) / fx of the RGB camera, as in registration; `scene` counts from
    1, `frame` from 0. No reading is missing and nothing is clipped.
    """
    room = _room(seed, scene, types[(scene - 1) % len(types)])
    rays = pinhole_rays(RGB_CAMERA, stride)
    return cast(room, camera(room, seed, scene, frame), rays).z


def _names(frames: int, rng: Generator) -> Iterator[tuple[str, str, str]]:
    """Names of the depth, RGB and accelerometer file of each frame.

    The device's clock is even, the host's stamp is when the file was written: up to 5 ms late. RGB
    follows depth by 6 ms, as in real files, so that the nearest picture is always the frame's own.
    """
    host, tick = 1.4e9 + 1e8 * rng.random(), int(rng.integers(2**32))
    for frame in range(frames):
        stamps = []
        for late in (0.0, 0.006, 0.002):
            now = frame * FRAME_S + late
            ticks = (tick + round(now * TICKS_PER_S)) % 2**32
            stamps.append(f"{host + now + 0.005 * rng.random():.6f}-{ticks}")
        yield f"d-{stamps[0]}.pgm", f"r-{stamps[1]}.ppm", f"a-{stamps[2]}.dump"


def write_scene(out: Path, settings: Settings, scene: int) -> None:
    """Write one raw scene folder, then give it its name; a finished one is kept.

    Until then its name ends in `_out`, which readers of raw folders leave out.
    """
    folder = out / settings.folder(scene)
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".tmp_out")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    room = _room(settings.seed, scene, settings.kind(scene))
    rng = np.random.default_rng([settings.seed, scene, 2])
    for frame, names in enumerate(_names(settings.frames, rng)):
        pose = camera(room, settings.seed, scene, frame)
        pgm = f"P5 {WIDTH} {HEIGHT} 65535\n".encode()
        pgm += depth_picture(room, depth_pose(pose), rng).astype("<u2").tobytes()
        ppm = f"P6 {WIDTH} {HEIGHT} 255\n".encode() + colour_picture(room, pose, rng).tobytes()
        for name, data in zip(names, (pgm, ppm, accelerometer(pose)), strict=True):
            cut = rng.random() < settings.truncate and not name.startswith("a-")
            length = int(len(data) * rng.random()) if cut else len(data)
            (unfinished / name).write_bytes(data[:length])
    index = "".join(f"{path.name}\n" for path in sorted(unfinished.iterdir()))
    (unfinished / "INDEX.txt").write_text(index, encoding="ascii")
    unfinished.rename(folder)


def _prepare(out: Path, settings: Settings) -> None:
    """Make the folder, or make sure that it holds scenes of the same settings."""
    note = out / "synth.json"
    wanted = json.loads(json.dumps(asdict(settings)))
    if note.exists():
        try:
            found = json.loads(note.read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{note}: not readable ({error}); remove the folder") from error
        if found != wanted:
            raise DataError(
                f"{note}: generated with {found}, asked for {wanted}; choose another folder"
            )
    elif out.exists() and any(out.iterdir()):
        raise DataError(
            f"{out}: not empty and without a synth.json; expected a new or empty folder"
        )
    else:
        out.mkdir(parents=True, exist_ok=True)
        unfinished = note.with_suffix(".tmp")
        unfinished.write_text(json.dumps(wanted, indent=2) + "\n", encoding="utf-8")
        unfinished.rename(note)


def synth(
    out: Path,
    *,
    scenes: int,
    frames: int,
    seed: int = 0,
    types: Sequence[str] = SCENE_TYPES,
    truncate: float = 0.0,
    jobs: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write `scenes` raw Kinect scenes of `frames` frames each; the bytes depend on the seed alone.

    `types` take turns; `truncate` is the share of depth and RGB files that are cut short, as some
    of the real ones are; `jobs` processes (one a processor by default) share the scenes; `progress`
    is called with scenes done and scenes in all. A second call writes only what is missing.

    Raises:
        ConfigError: a number or a type that cannot be.
        DataError: `out` holds something else, or scenes of other settings.
    """
    settings = _checked(Settings(scenes, frames, seed, tuple(types), truncate))
    jobs = min(jobs or cores(), scenes)
    try:
        _prepare(out, settings)
        for done, _ in enumerate(_written(out, settings, jobs), 1):
            if progress:
                progress(done, scenes)
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written ({error}); free space or choose another folder"
        ) from error


def _written(out: Path, settings: Settings, jobs: int) -> Iterator[None]:
    """Write the scenes in `jobs` processes and yield after each."""
    numbers = range(1, settings.scenes + 1)
    if jobs == 1:
        for number in numbers:
            write_scene(out, settings, number)
            yield
        return
    # Spawned, since the caller may hold threads; ctrl-C is the parent's to handle.
    quiet = signal.signal, (signal.SIGINT, signal.SIG_IGN)
    with ProcessPoolExecutor(jobs, get_context("spawn"), *quiet) as pool:
        for future in as_completed([pool.submit(write_scene, out, settings, n) for n in numbers]):
            yield future.result()


def _checked(settings: Settings) -> Settings:
    for name, least in (("scenes", 1), ("frames", 1), ("seed", 0)):
        value = getattr(settings, name)
        if value < least:
            raise ConfigError(f"synth.{name}: expected {least} or more, got {value}")
    if not 0 <= settings.truncate <= 1:
        raise ConfigError(f"synth.truncate: expected a share 0..1, got {settings.truncate}")
    unknown = [kind for kind in settings.types if kind not in TYPES]
    if unknown or not settings.types:
        raise ConfigError(f"synth.types: expected some of {', '.join(TYPES)}, got {unknown}")
    return settings
