"""Ready-made pairs: what a file has to be, and the real ones."""

import os
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.nyu.aligned import pattern_scenes, sync_scenes
from tests.support.aligned import (
    FREE,
    KITCHEN,
    load_only,
    write_depth,
    write_free,
    write_rgb,
    write_sync,
)

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
real = pytest.mark.skipif(
    not TESTDATA, reason="LLM_MDE_TESTDATA is not set: the real pictures are not in the project"
)


# Files that cannot be used


def test_images_of_two_sizes_are_not_registered(tmp_path):
    write_free(tmp_path)
    write_rgb(tmp_path / "rgb" / "7.png", size=(64, 48))
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert [f.verdict for f in findings] == ["undecodable", "ok"]
    assert findings[0].reason == "rgb is 64x48, depth is 32x24: depth not registered to rgb?"


@pytest.mark.parametrize("mode", ["L", "RGBA", "P"])
def test_rgb_of_another_kind_is_refused(tmp_path, mode):
    write_free(tmp_path)
    write_rgb(tmp_path / "rgb" / "7.png", mode=mode)
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert findings[1].verdict == "undecodable"
    assert findings[1].reason == f"JPEG or PNG of mode {mode}, expected RGB; convert it"


def test_depth_of_eight_bits_is_refused(tmp_path):
    write_free(tmp_path)
    write_depth(tmp_path / "depth" / "0007.png", 40, dtype=np.uint8)
    _, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert findings[0].reason == "PNG of mode L, expected I;16; convert it"


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize(
    ("content", "verdict", "reason"),
    [
        (b"", "empty", "0 bytes"),
        (b"GIF89a" * 9, "undecodable", "image"),
        (b"\x89PNG\r\n\x1a\n", "undecodable", ""),
    ],
)
def test_a_file_that_is_no_image_has_its_verdict(tmp_path, at, content, verdict, reason):
    write_free(tmp_path)
    (tmp_path / ("depth/0007.png", "rgb/7.png")[at]).write_bytes(content)
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert findings[at].verdict == verdict
    assert reason in findings[at].reason
    assert str(tmp_path) not in findings[at].reason
    assert findings[1 - at].verdict == "ok"


@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("share", [0.3, 0.5, 0.9])
def test_a_file_that_is_cut_short_is_truncated(tmp_path, at, share):
    write_sync(tmp_path / "den_1", 7)
    path = tmp_path / "den_1" / ("sync_depth_00007.png", "rgb_00007.jpg")[at]
    whole = path.read_bytes()
    start = len(whole) // 2 if at else 100  # behind the tables of a JPEG
    path.write_bytes(whole[: start + int(share * (len(whole) - start))])
    frame, findings = load_only(sync_scenes(tmp_path)[0])
    assert frame is None
    assert findings[at].verdict == "truncated"


@pytest.mark.parametrize("name", ["sync_depth_00007.png", "rgb_00007.jpg"])
def test_no_damage_is_more_than_a_verdict(tmp_path, name):
    write_sync(tmp_path / "den_1", 7)
    [scene] = sync_scenes(tmp_path)
    whole = (tmp_path / "den_1" / name).read_bytes()
    rng = random.Random(0)
    for _ in range(300):
        damaged = bytearray(whole[: rng.randint(0, len(whole))])
        for _ in range(rng.randint(0, 4) if damaged else 0):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        (tmp_path / "den_1" / name).write_bytes(damaged)
        frame, findings = load_only(scene)
        assert (frame is None) == any(finding.verdict != "ok" for finding in findings)


@pytest.mark.parametrize("side", [5000, 12_000, 60_000])
def test_a_picture_of_too_many_pixels_is_not_decoded(tmp_path, side):
    """5,000 is over our limit, 12,000 over Pillow's warning, 60,000 over Pillow's error."""
    write_free(tmp_path)
    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")]
    payload = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )
    (tmp_path / "depth" / "0007.png").write_bytes(b"\x89PNG\r\n\x1a\n" + payload)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert findings[0].verdict == "undecodable"
    assert findings[0].reason == "more than 16777216 pixels; make it smaller"


def test_a_depth_image_without_a_reading_is_empty(tmp_path):
    write_free(tmp_path)
    Image.fromarray(np.full((24, 32), 65535, np.uint16)).save(tmp_path / "depth" / "0007.png")
    frame, findings = load_only(pattern_scenes(tmp_path, FREE)[0])
    assert frame is None
    assert tuple(findings[0]) == ("depth/0007.png", "empty", "no pixel has a reading")


# Real pictures


@real
def test_every_pair_of_the_real_kitchen_loads():
    [scene] = pattern_scenes(Path(TESTDATA) / "redkitchen", KITCHEN)
    pairs = scene.pairs()
    assert (scene.name, len(pairs), len(scene.files())) == ("redkitchen", 176, 352)
    assert [pair.index for pair in pairs] == list(range(0, 701, 4))
    for pair in pairs:
        frame, findings = scene.load(pair)
        assert frame is not None, findings
        assert frame.rgb.shape == (480, 640, 3)
        known = frame.depth_mm[frame.depth_mm > 0]
        assert 300 < np.median(known) < 10_000
        assert known.max() < 65535
        assert frame.K[0][0] == 585.0


@real
def test_the_real_registered_frames_load():
    [scene] = sync_scenes(Path(TESTDATA) / "sync")
    assert scene.name == "basement_0001a"
    assert [pair.index for pair in scene.pairs()][:2] == [0, 50]
    for pair in scene.pairs():
        frame, _ = scene.load(pair)
        with Image.open(Path(TESTDATA) / "sync" / scene.name / pair.depth) as image:
            np.testing.assert_array_equal(frame.depth_mm, np.asarray(image))


@real
def test_the_published_lists_are_read(tmp_path):
    splits = Path(TESTDATA) / "splits"
    (tmp_path / "bathroom").mkdir()
    (tmp_path / "basement_0001a").mkdir()
    train = sync_scenes(tmp_path, splits / "nyudepthv2_train_files_with_gt.txt")
    assert len(train) == 284
    assert sum(len(scene.pairs()) for scene in train) == 24231
    assert all(scene.part is None for scene in train)
    test = sync_scenes(tmp_path, splits / "nyudepthv2_test_files_with_gt.txt")
    assert sum(len(scene.pairs()) for scene in test) == 654
    assert {scene.part for scene in test} == {"test"}
