import io
import json
import zlib

import numpy as np
import pytest
from PIL import Image

from llm_mde.data import record
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import Frame
from tests.support.rawscene import rgb_image


def make_frame():
    depth = np.random.default_rng(0).integers(0, 65536, (480, 640)).astype(np.uint16)
    return Frame(rgb_image(0), depth, "living_room_0042a", 123, 1316653580.471513)


def as_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def members():
    return record.encode(make_frame())


def test_key_has_no_dot_and_members_are_the_documented_ones(members):
    assert members["__key__"] == "living_room_0042a-000123"
    assert set(members) == {"__key__", "rgb.jpg", "depth.png", "meta.json"}


def test_depth_is_lossless_and_rgb_nearly(members):
    frame, sample = make_frame(), record.decode(members)
    np.testing.assert_array_equal(sample.depth_mm, frame.depth_mm)
    assert sample.depth_mm.dtype == np.uint16
    assert sample.rgb.shape == (480, 640, 3)
    assert np.abs(sample.rgb.astype(int) - frame.rgb).mean() < 1.5


def test_rgb_is_stored_without_chroma_subsampling(members):
    image = Image.open(io.BytesIO(members["rgb.jpg"]))
    assert {(horizontal, vertical) for _, horizontal, vertical, _ in image.layer} == {(1, 1)}


def test_meta_says_where_the_frame_comes_from(members):
    meta = json.loads(members["meta.json"])
    camera = meta.pop("K")
    assert camera[0][0] == 518.85790117450188 and camera[1][2] == 253.73616633400465
    assert meta == {
        "scene": "living_room_0042a",
        "type": "living_room",
        "source": "nyu_raw",
        "index": 123,
        "time_s": 1316653580.471513,
    }


def test_same_frame_gives_same_bytes(members):
    assert record.encode(make_frame()) == members


def test_draft_decodes_the_smallest_scale_that_is_enough(members):
    assert record.decode(members, draft=(224, 224)).rgb.shape == (240, 320, 3)
    assert record.decode(members, draft=(241, 224)).rgb.shape == (480, 640, 3)
    assert record.decode(members, draft=(96, 128)).depth_mm.shape == (480, 640)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"depth.png": as_png(np.zeros((480, 640), np.uint8))},
            "depth.png is 8-bit, expected 16-bit",
        ),
        (
            {"depth.png": as_png(np.zeros((480, 64), np.uint16))},
            r"is \(480, 64\), rgb.jpg is \(480",
        ),
        ({"depth.png": b"nonsense"}, "depth.png is no readable PNG"),
        ({"rgb.jpg": as_png(np.zeros((480, 640, 3), np.uint8))}, "rgb.jpg is no readable JPEG"),
        ({"depth.pkl": b"cos\nsystem"}, "unknown member depth.pkl, expected rgb.jpg"),
        ({"meta.json": b"{"}, "meta.json is not JSON"),
        ({"meta.json": b"[]"}, "meta.json has no scene"),
        (
            {"rgb.jpg": bytes(64 * 2**20 + 1)},
            "rgb.jpg is 67108865 bytes, expected at most 67108864",
        ),
    ],
)
def test_bad_members_are_named_with_the_sample(members, change, message):
    with pytest.raises(
        DataError, match=rf"sample living_room_0042a-000123: .*{message}.*pack again"
    ):
        record.decode({**members, **change})


@pytest.mark.parametrize("name", ["rgb.jpg", "depth.png"])
def test_cut_images_are_damaged(members, name):
    with pytest.raises(DataError, match=f"{name} is damaged"):
        record.decode({**members, name: members[name][: len(members[name]) // 2]})


def test_missing_member_is_named(members):
    rest = {name: value for name, value in members.items() if name != "depth.png"}
    with pytest.raises(DataError, match=r"depth\.png is missing"):
        record.decode(rest)


def test_huge_images_are_refused_before_their_pixels_are_decoded(members):
    header = as_png(np.zeros((1, 1), np.uint16))
    big = header[:16] + (4097).to_bytes(4) + (4096).to_bytes(4) + header[24:]
    crc = zlib.crc32(big[12:29]).to_bytes(4)
    with pytest.raises(DataError, match="depth.png is 4097x4096, expected at most 16777216 pixels"):
        record.decode({**members, "depth.png": big[:29] + crc + big[33:]})


def test_unknown_depth_codec_is_refused():
    with pytest.raises(ConfigError, match="depth_codec: expected png, got 'exr'"):
        record.encode(make_frame(), depth_codec="exr")
