"""Packing into a folder that holds something: an unfinished pack, another one, a full disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from llm_mde.data import pack as pack_module
from llm_mde.data.folder import ShardFolder
from llm_mde.data.layout import lay_out
from llm_mde.data.pack import pack
from llm_mde.data.sources import collect
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.aligned import Pattern
from tests.support.mat import write as write_mat
from tests.support.packs import PAIRS, contents

TINY = Pattern("{scene}/rgb_{index}.png", "{scene}/depth_{index}.png")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Four scenes of five ready-made pairs of 24x32 pixels: quick to pack."""
    root = tmp_path_factory.mktemp("tiny")
    rng = np.random.default_rng(0)
    for scene in ("den_1", "den_2", "hall_3", "attic_4"):
        (root / scene).mkdir()
        for index in range(5):
            rgb = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            depth = rng.integers(500, 5000, (24, 32)).astype(np.uint16)
            Image.fromarray(rgb).save(root / scene / f"rgb_{index}.png")
            Image.fromarray(depth).save(root / scene / f"depth_{index}.png")
    return root


def pack_tiny(tiny: Path, out: Path | str, **words):
    return pack([tiny], out=out, pattern=TINY, settings=PAIRS, **{"jobs": 1} | words)


def test_another_meaning_of_the_files_is_another_pack(tmp_path, tiny):
    pack_tiny(tiny, tmp_path / "out")
    other = Pattern(TINY.rgb, TINY.depth, depth_scale=5000)
    with pytest.raises(DataError, match="holds a pack with pattern .*1000.0.*5000"):
        pack([tiny], out=tmp_path / "out", pattern=other, settings=PAIRS, jobs=1)


def test_a_shard_that_vanished_is_written_again(tmp_path, tiny, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "merge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pack_tiny(tiny, tmp_path / "out")
    (tmp_path / "out" / "train-000000.tar").unlink()
    (tmp_path / "out" / "train-000099.tar").write_bytes(b"of a longer plan")
    pack_tiny(tiny, tmp_path / "out")
    pack_tiny(tiny, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_what_the_first_moments_of_a_killed_run_leave_is_no_hindrance(tmp_path, tiny):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    (tmp_path / "out" / "unfinished" / ".plan.json.0a1b.tmp").write_text("{")
    assert sum(pack_tiny(tiny, tmp_path / "out").counts.values()) == 20


def test_folders_of_others_are_never_touched(tmp_path, tiny):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "diary.txt").write_text("mine")
    with pytest.raises(DataError, match=r"exists and is no pack \(it holds diary\.txt\)"):
        pack_tiny(tiny, tmp_path / "out")
    assert contents(tmp_path / "out") == {"diary.txt": b"mine"}


def test_two_processes_never_pack_into_one_folder(tmp_path, tiny):
    (tmp_path / "out" / "unfinished").mkdir(parents=True)
    plan = lay_out(collect([tiny], pattern=TINY), PAIRS).settings
    (tmp_path / "out" / "unfinished" / "plan.json").write_text(json.dumps(plan))
    with (
        FileLock(tmp_path / "out" / "unfinished" / "lock"),
        pytest.raises(DataError, match="another process is packing into it"),
    ):
        pack_tiny(tiny, tmp_path / "out")


class Killed(BaseException):
    """What a kill looks like from inside: no handler runs."""


@pytest.mark.parametrize("moment", ["before a file has its name", "after a file has its name"])
def test_stopped_at_any_file_it_continues_to_the_same_bytes(tmp_path, tiny, monkeypatch, moment):
    """Stops at the first, second, third ... file written, each run continuing the one before."""
    pack_tiny(tiny, tmp_path / "whole")
    replace, rename, stops, finished = Path.replace, [], 0, {}

    def stop(path: Path, target: Path) -> Path:
        rename.append(target)
        if len(rename) == stops + 1 and moment.startswith("before"):
            raise Killed
        done = replace(path, target)
        if len(rename) == stops + 1:
            raise Killed
        return done

    monkeypatch.setattr(Path, "replace", stop)
    out = tmp_path / "out"
    while not (out / "pack.json").exists():
        rename.clear()
        try:
            pack_tiny(tiny, out)
        except Killed:
            stops += 1
        notes = {path.stem for path in (out / "unfinished").glob("*.tar.json")}
        for name in notes:
            when = (out / name).stat().st_mtime_ns
            assert finished.setdefault(name, when) == when, f"{name} was written again"
        assert stops < 60
    monkeypatch.undo()
    pack_tiny(tiny, out)
    assert contents(out) == contents(tmp_path / "whole")
    assert stops >= 10


def test_a_full_disk_is_said_and_the_same_command_continues(tmp_path, tiny):
    """A limit on the size of files stands for the full disk: the same error on writing."""
    code = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000));"
        "from llm_mde.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    words = ["pack", str(tiny), "--rgb", TINY.rgb, "--depth", TINY.depth, "--shard-size", "2"]
    words += ["--jobs", "1", "--out", str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2, done.stderr
    assert "train-000000.tar: cannot be written" in done.stderr and "Traceback" not in done.stderr
    assert "the same command continues" in done.stderr
    assert [path.name for path in (tmp_path / "out").glob("*.tar")] == []
    pack_tiny(tiny, tmp_path / "out")
    pack_tiny(tiny, tmp_path / "whole")
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_an_object_store_holds_the_same_files(tmp_path, tiny):
    pack_tiny(tiny, tmp_path / "local")
    url = f"memory://bucket-{os.getpid()}/nyu"
    assert not pack_tiny(tiny, url, jobs=2).already_packed
    stored = ShardFolder(url)
    names = [name for name in stored.names() if not name.startswith("report")]
    assert {name: stored.read(name) for name in names} == contents(tmp_path / "local")
    assert pack_tiny(tiny, url).already_packed


@pytest.mark.parametrize("url", ["ftp://host/nyu", "simplecache::s3://bucket/nyu", "github://a/b"])
def test_other_schemes_are_refused(tiny, url):
    with pytest.raises(ConfigError, match="expected a folder or a URL with one of file://, s3://"):
        pack_tiny(tiny, url)


def test_jobs_and_cap_out_of_range_are_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match="jobs: expected 1 or more, got 0"):
        pack_tiny(tiny, tmp_path / "out", jobs=0)
    with pytest.raises(ConfigError, match="max_lost: expected a share from 0 to 1, got 2"):
        pack_tiny(tiny, tmp_path / "out", max_lost=2)


def test_the_labelled_file_goes_with_pairs_of_any_names(tmp_path, tiny):
    inputs = collect([tiny, write_mat(tmp_path / "labeled.mat")], pattern=TINY)
    assert {scene.source for scene in inputs.scenes} == {"pattern", "nyu_labeled"}
    assert inputs.test_scenes == {"kitchen_0004a"}


def test_an_object_store_that_does_not_answer_is_no_empty_one(monkeypatch, tiny):
    folder = ShardFolder("memory://bucket/silent")

    def gone(*_: object) -> None:
        raise ConnectionError("no route to host")

    monkeypatch.setattr(type(folder._remote()), "info", gone)
    with pytest.raises(DataError, match=r"pack\.json: cannot be read \(no route to host\)"):
        pack_tiny(tiny, str(folder))
