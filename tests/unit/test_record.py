import dataclasses
import io
import json
import resource
import zlib

import numpy as np
import pytest
from pcodec import ChunkConfig, DeltaSpec, ModeSpec, PagingSpec, standalone
from PIL import Image

from llm_mde.data import record
from llm_mde.errors import ConfigError, DataError
from llm_mde.nyu.frame import Frame
from tests.support.rawscene import rgb_image

K = [[500.5, 0.0, 320.25], [0.0, 501.5, 240.75], [0.0, 0.0, 1.0]]


def make_frame():
    depth = np.random.default_rng(0).integers(0, 65536, (480, 640)).astype(np.uint16)
    return Frame(rgb_image(0), depth, "living_room_0042a", 123, 1316653580.471513, K=K)


def filled_frame():
    return dataclasses.replace(make_frame(), filled_mm=make_frame().depth_mm // 2 + 1)


def as_png(array):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def as_pco(array):
    return standalone.simple_compress(array.ravel(), ChunkConfig())


def with_depth(members, name, payload):
    """The members with this depth in place of theirs."""
    return {key: value for key, value in members.items() if "depth" not in key} | {name: payload}


@pytest.fixture(scope="module")
def members():
    return record.encode(make_frame())


@pytest.fixture(scope="module", params=record.DEPTH_CODECS)
def codec(request):
    return request.param


def test_key_has_no_dot_and_members_are_the_documented_ones(members):
    assert members["__key__"] == "living_room_0042a-000123"
    assert list(members) == ["__key__", "rgb.jpg", "depth.pco", "meta.json"]


def test_a_key_of_its_own_is_kept():
    frame = dataclasses.replace(make_frame(), key="labelled-0007")
    assert record.encode(frame)["__key__"] == "labelled-0007"


def test_depth_is_lossless_and_rgb_nearly(codec):
    frame = make_frame()
    sample = record.decode(record.encode(frame, depth_codec=codec))
    np.testing.assert_array_equal(sample.depth_mm, frame.depth_mm)
    assert sample.depth_mm.dtype == np.uint16
    assert sample.filled_mm is None
    assert sample.rgb.shape == (480, 640, 3)
    assert np.abs(sample.rgb.astype(int) - frame.rgb).mean() < 1.5


def test_rgb_is_stored_without_chroma_subsampling(members):
    image = Image.open(io.BytesIO(members["rgb.jpg"]))
    assert {(horizontal, vertical) for _, horizontal, vertical, _ in image.layer} == {(1, 1)}


def test_depth_is_a_file_that_pcodec_reads_by_itself(members):
    numbers = standalone.simple_decompress(members["depth.pco"])
    np.testing.assert_array_equal(numbers.reshape(480, 640), make_frame().depth_mm)


@pytest.mark.parametrize("value", [0, 1, 10000, 65535])
def test_flat_depth_survives(codec, value):
    frame = dataclasses.replace(make_frame(), depth_mm=np.full((480, 640), value, np.uint16))
    sample = record.decode(record.encode(frame, depth_codec=codec))
    np.testing.assert_array_equal(sample.depth_mm, frame.depth_mm)


def test_filled_depth_is_a_member_of_its_own_and_decoded_when_asked_for(codec):
    members = record.encode(filled_frame(), depth_codec=codec)
    assert {f"depth.{codec}", f"filled.{codec}"} < set(members)
    sample = record.decode(members, filled=True)
    np.testing.assert_array_equal(sample.depth_mm, make_frame().depth_mm)
    np.testing.assert_array_equal(sample.filled_mm, filled_frame().filled_mm)
    broken = {**members, f"filled.{codec}": b"nonsense"}
    assert record.decode(broken).filled_mm is None  # nobody asked: not even looked at
    with pytest.raises(DataError, match=rf"filled\.{codec} is"):
        record.decode(broken, filled=True)


def test_asking_for_a_filled_depth_that_is_not_there_names_the_remedy(members):
    with pytest.raises(DataError, match="living_room_0042a-000123: .*llm-mde pack --fill"):
        record.decode(members, filled=True)


def test_meta_says_where_the_frame_comes_from(members):
    meta = json.loads(members["meta.json"])
    assert meta == {
        "scene": "living_room_0042a",
        "type": "living_room",
        "source": "nyu_raw",
        "index": 123,
        "time_s": 1316653580.471513,
        "K": K,
        "accel_g": None,
    }


def test_same_frame_gives_same_bytes(codec):
    first, second = (record.encode(filled_frame(), depth_codec=codec) for _ in range(2))
    assert first == second


def test_draft_decodes_the_smallest_scale_that_is_enough(members):
    assert record.decode(members, draft=(224, 224)).rgb.shape == (240, 320, 3)
    assert record.decode(members, draft=(241, 224)).rgb.shape == (480, 640, 3)
    assert record.decode(members, draft=(96, 128)).depth_mm.shape == (480, 640)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rgb.jpg": as_png(np.zeros((480, 640, 3), np.uint8))}, "rgb.jpg is no readable JPEG"),
        ({"depth.pkl": b"cos\nsystem"}, "unknown member depth.pkl, expected rgb.jpg"),
        ({"depth.png": b""}, "depth.pco and depth.png are both there, expected one"),
        ({"filled.png": b"", "filled.pco": b""}, "filled.pco and filled.png are both there"),
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


@pytest.mark.parametrize(
    ("name", "payload", "message"),
    [
        ("depth.png", as_png(np.zeros((480, 640), np.uint8)), "is 8-bit, expected 16-bit"),
        ("depth.png", as_png(np.zeros((480, 64), np.uint16)), r"is \(480, 64\), rgb.jpg is \(480"),
        ("depth.png", b"nonsense", "is no readable PNG"),
        ("depth.pco", b"nonsense", "is damaged"),
        ("depth.pco", b"", "is damaged"),
        ("depth.pco", as_pco(np.zeros(307200, np.uint32)), "is damaged"),
        ("depth.pco", as_pco(np.zeros(307200, np.int16)), "is damaged"),
        ("depth.pco", as_pco(np.zeros(307199, np.uint16)), "holds 307199 numbers, rgb.jpg is"),
        ("depth.pco", as_pco(np.zeros(307201, np.uint16)), "holds more than 307200 numbers"),
        ("depth.pco", as_pco(np.zeros(2**24, np.uint16)), "holds more than 307200 numbers"),
        ("depth.pco", as_pco(np.zeros(0, np.uint16)), "holds 0 numbers"),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else value,
)
def test_bad_depth_is_named_with_the_sample(members, name, payload, message):
    with pytest.raises(DataError, match=rf"000123: {name} .*{message}.*pack again"):
        record.decode(with_depth(members, name, payload))


def every_kind_of_pco():
    """Small files of each delta and mode that the format has, in one page and in several."""
    rng = np.random.default_rng(0)
    walk = (rng.normal(0, 3, 2048).cumsum() + 3000).astype(np.uint16)
    steps = (rng.integers(0, 7, 2048) * 713).astype(np.uint16)
    deltas = [DeltaSpec.no_op(), DeltaSpec.try_consecutive(1), DeltaSpec.try_consecutive(7)]
    deltas += [DeltaSpec.try_conv1(8), DeltaSpec.try_lookback()]
    modes = [ModeSpec.classic(), ModeSpec.try_dict(), ModeSpec.try_int_mult(713)]
    return [
        standalone.simple_compress(
            array,
            ChunkConfig(
                delta_spec=delta, mode_spec=mode, paging_spec=PagingSpec.equal_pages_up_to(page)
            ),
        )
        for array in (walk, steps)
        for delta in deltas
        for mode in modes
        for page in (500, 2048)
    ]


def test_any_bytes_are_numbers_or_a_data_error():
    rng = np.random.default_rng(1)
    frame = Frame(np.zeros((32, 64, 3), np.uint8), np.zeros((32, 64), np.uint16), "den_0001", 0, 0)
    members, sources = record.encode(frame), every_kind_of_pco()
    before, refused = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, 0
    for _ in range(4000):
        payload = np.frombuffer(sources[rng.integers(len(sources))], np.uint8).copy()
        near = rng.integers(10, min(len(payload), rng.choice([40, 400, 4000])), rng.integers(1, 5))
        payload[near] ^= 1 << rng.integers(8, size=len(near)).astype(np.uint8)  # single bits
        if rng.random() < 0.2:
            payload[rng.integers(len(payload))] = rng.integers(256)
        if rng.random() < 0.1:
            payload = payload[: rng.integers(len(payload))]
        try:
            record.decode(with_depth(members, "depth.pco", payload.tobytes()))
        except DataError:
            refused += 1
    assert refused > 500
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # kB: 64 MiB


@pytest.mark.parametrize("stem", ["rgb", "depth"])
def test_cut_images_are_damaged(codec, stem):
    members = record.encode(make_frame(), depth_codec=codec)
    name = next(name for name in members if name.startswith(stem))
    with pytest.raises(DataError, match=f"{name} is damaged"):
        record.decode({**members, name: members[name][: len(members[name]) // 2]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rgb.jpg", r"rgb\.jpg is missing"),
        ("depth.pco", r"depth\.pco or depth\.png is missing"),
        ("meta.json", r"meta\.json is missing"),
    ],
)
def test_missing_member_is_named(members, name, message):
    with pytest.raises(DataError, match=message):
        record.decode({key: value for key, value in members.items() if key != name})


def test_huge_images_are_refused_before_their_pixels_are_decoded(members):
    header = as_png(np.zeros((1, 1), np.uint16))
    big = header[:16] + (4097).to_bytes(4) + (4096).to_bytes(4) + header[24:]
    crc = zlib.crc32(big[12:29]).to_bytes(4)
    with pytest.raises(DataError, match="depth.png is 4097x4096, expected at most 16777216 pixels"):
        record.decode(with_depth(members, "depth.png", big[:29] + crc + big[33:]))


def test_unknown_depth_codec_is_refused():
    with pytest.raises(ConfigError, match="depth_codec: expected pco, png, got 'exr'"):
        record.encode(make_frame(), depth_codec="exr")
