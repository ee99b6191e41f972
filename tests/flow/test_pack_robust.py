"""Packing that is killed, full, spread over a cluster or sent to an object store."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.rawscene import write_scene, zip_scenes

KILLS = 20
SCENES, FRAMES = 12, 6


@pytest.fixture(scope="module")
def zips(tmp_path_factory):
    """Two zips with every second scene each, and one scene spread over both."""
    root = tmp_path_factory.mktemp("zips")
    for number in range(SCENES):
        part = root / f"raw{number % 2}"
        write_scene(part, f"den_{number:04d}", frames=FRAMES, seed=number)
    spread = write_scene(root / "raw0", "hall_0100", frames=FRAMES)
    (root / "raw1" / "hall_0100").mkdir()
    for path in sorted(spread.glob("*.p*m"))[::2]:
        path.rename(root / "raw1" / "hall_0100" / path.name)
    (root / "zips").mkdir()
    for part in (0, 1):
        zip_scenes(root / f"raw{part}", root / "zips" / f"dens_part{part}.zip")
    return root / "zips"


def command(zips: Path, out: Path | str, *words: str) -> list[str]:
    pack = [sys.executable, "-m", "llm_mde", "pack", str(zips), "--out", str(out)]
    return [*pack, "--shard-size", "3", *words]


def contents(folder: Path) -> dict[str, bytes]:
    """All files but the report, which tells the speed of its run."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.stem != "report"
    }


@pytest.fixture(scope="module")
def whole(zips, tmp_path_factory):
    """The pack of an uninterrupted run on one process."""
    out = tmp_path_factory.mktemp("whole") / "shards"
    subprocess.run(command(zips, out, "--jobs", "1"), check=True, capture_output=True)
    assert json.loads((out / "pack.json").read_text())["samples"] == (SCENES + 1) * FRAMES
    return out


def shards_of(out: Path) -> list[Path]:
    return list(out.glob("*.tar"))


def workers_of(out: Path) -> list[int]:
    """Processes of this machine that hold the folder's path in their command or environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            words = (path / "cmdline").read_bytes() + (path / "environ").read_bytes()
        except OSError:
            continue
        if f"PACK_TEST={out}".encode() in words:
            found.append(int(path.name))
    return found


def test_killed_again_and_again_it_ends_with_the_same_bytes(zips, whole, tmp_path):
    """Kill -9 at random moments; finished shards are never written again, no worker is left."""
    rng = random.Random(0)
    out, kills, rounds = tmp_path / "shards0", 0, 0
    finished: dict[str, int] = {}
    while kills < KILLS:
        if (out / "pack.json").exists():
            assert contents(out) == contents(whole)
            rounds += 1
            out, finished = tmp_path / f"shards{rounds}", {}
        process = subprocess.Popen(
            command(zips, out, "--jobs", "2"),
            env=os.environ | {"PACK_TEST": str(tmp_path)},
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        # a quarter of the kills while it starts, the others once some more shards are finished
        wanted = len(shards_of(out)) + rng.randint(1, 8)
        latest = time.monotonic() + (rng.uniform(0, 2) if rng.random() < 0.25 else 60)
        while process.poll() is None and time.monotonic() < latest and len(shards_of(out)) < wanted:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.1))
        kills += process.poll() is None
        process.kill()
        assert process.wait() in (0, -signal.SIGKILL)
        deadline = time.monotonic() + 20
        while workers_of(tmp_path):
            assert time.monotonic() < deadline, "workers outlive their parent"
            time.sleep(0.05)
        for note in (out / "unfinished").glob("*.tar.json"):
            when = (out / note.stem).stat().st_mtime_ns
            assert finished.setdefault(note.stem, when) == when, f"{note.stem} was written again"
    subprocess.run(command(zips, out), check=True, capture_output=True)
    assert contents(out) == contents(whole)
    assert not list(out.rglob(".*.tmp"))
    print(f"{kills} kills, {rounds + 1} packs finished")


def test_interrupted_it_says_how_to_go_on(zips, whole, tmp_path):
    process = subprocess.Popen(
        command(zips, tmp_path / "shards", "--jobs", "2"), stderr=subprocess.PIPE, text=True
    )
    while not list((tmp_path / "shards").glob("*.tar")):
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "is unfinished; the same command continues" in said and "Traceback" not in said
    subprocess.run(command(zips, tmp_path / "shards"), check=True, capture_output=True)
    assert contents(tmp_path / "shards") == contents(whole)


def test_a_ray_cluster_writes_the_same_bytes(zips, whole, tmp_path):
    done = subprocess.run(
        command(zips, tmp_path / "shards", "--ray", "local"), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "shards") == contents(whole)


def test_a_missing_ray_cluster_is_said(zips, tmp_path):
    done = subprocess.run(
        command(zips, tmp_path / "shards", "--ray", "127.0.0.1:1"),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "--ray 127.0.0.1:1: no Ray cluster answers there" in done.stderr
