import os
from pathlib import Path

import numpy as np
import pytest

from llm_mde.errors import DataError
from llm_mde.nyu import raw
from llm_mde.nyu.frame import DamagedFile
from tests.support.rawscene import (
    disparity_image,
    dump_bytes,
    pgm_bytes,
    ppm_bytes,
    raw_names,
    rgb_image,
)

TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
needs_data = pytest.mark.skipif(
    not TESTDATA,
    reason="LLM_MDE_TESTDATA is not set: the real NYU frame is not part of the project",
)


def test_name_tells_kind_time_and_tick():
    stamp = raw.parse_name("d-1316653580.471513-1316138413.pgm")
    assert stamp == raw.Stamp("d", 1316653580.471513, 1316138413)


@pytest.mark.parametrize(
    "name",
    ["INDEX.txt", "device.json", "d-1.5-2.ppm", "r-1.5-2.ppm.tmp", "x-1.5-2.pgm", "d-1-2.pgm"],
)
def test_other_names_are_no_raw_files(name):
    assert raw.parse_name(name) is None


def test_pgm_payload_is_little_endian():
    disparity = np.full((480, 640), 2047, np.uint16)
    disparity[1, 2] = 0x0103
    payload = pgm_bytes(disparity)
    assert payload[17 + 2 * (640 + 2) :][:2] == b"\x03\x01"
    np.testing.assert_array_equal(raw.parse_pgm(payload, name="d"), disparity)


def test_ppm_keeps_rows_columns_and_channels():
    image = rgb_image(3)
    np.testing.assert_array_equal(raw.parse_ppm(ppm_bytes(image), name="r"), image)


def test_dump_is_in_g_and_degrees():
    accel = raw.parse_dump(dump_bytes(-819, 1638, 0, 31, 4), name="a")
    assert accel == raw.Accel(-1.0, 2.0, 0.0, 15.5, 4)


@pytest.mark.parametrize(
    ("parse", "size"), [(raw.parse_pgm, 614417), (raw.parse_ppm, 921615), (raw.parse_dump, 12)]
)
def test_truncated_files_are_named_with_both_sizes(parse, size):
    with pytest.raises(DamagedFile, match=rf"x-1\.f: expected {size} bytes, got 5 \(truncated\); "):
        parse(b"12345", name="x-1.f")


@pytest.mark.parametrize(
    ("payload", "verdict"),
    [
        (b"", "empty"),
        (b"P5", "truncated"),
        (bytes(614418), "undecodable"),
        (bytes(614417), "undecodable"),
    ],
)
def test_a_damaged_file_has_a_verdict(payload, verdict):
    with pytest.raises(DamagedFile) as caught:
        raw.parse_pgm(payload, name="d")
    assert caught.value.verdict == verdict


def test_wrong_header_is_shown():
    payload = b"P5 480 640 65535\n" + bytes(614400)
    with pytest.raises(DataError, match="expected the header .*640 480.*got .*480 640"):
        raw.parse_pgm(payload, name="d")


def test_byte_swapped_payload_is_told_from_garbage():
    swapped = pgm_bytes(disparity_image(0).byteswap())
    with pytest.raises(DataError, match=r"d-1\.pgm: expected values up to 2047.*byte-swapped"):
        raw.parse_pgm(swapped, name="d-1.pgm")
    garbage = pgm_bytes(np.full((480, 640), 0x7777, np.uint16))
    with pytest.raises(DataError, match="no Kinect disparity image"):
        raw.parse_pgm(garbage, name="d-1.pgm")


def test_synchronisation_takes_the_nearest_and_ties_go_to_the_later():
    names = ["d-10.0-1.pgm", "d-11.0-1.pgm", "d-12.5-1.pgm"]
    names += ["r-10.25-1.ppm", "r-12.0-1.ppm", "r-13.0-1.ppm", "a-10.0-1.dump"]
    pairs = raw.synchronise(names)
    assert [pair.rgb for pair in pairs] == ["r-10.25-1.ppm", "r-10.25-1.ppm", "r-13.0-1.ppm"]
    assert [pair.gap_s for pair in pairs] == [0.25, 0.75, 0.5]
    assert {pair.accel for pair in pairs} == {"a-10.0-1.dump"}


def test_synchronisation_does_not_depend_on_the_order_of_names():
    names = [name for frame in range(5) for name in raw_names(frame)]
    assert raw.synchronise(names) == raw.synchronise(reversed(names))


def test_scene_without_accelerometer_still_pairs():
    assert raw.synchronise(["d-1.0-1.pgm", "r-1.0-1.ppm"])[0].accel is None


@needs_data
def test_synchronisation_equals_the_toolbox():
    folder = Path(TESTDATA) / "sync_names"
    names = (folder / "sync_input_filenames.txt").read_text().split()
    want = [tuple(x.split()) for x in (folder / "sync_matches_octave.txt").read_text().splitlines()]
    assert len(want) == 121
    assert [(pair.depth, pair.rgb, pair.accel) for pair in raw.synchronise(names)] == want


def test_depth_without_any_rgb_has_no_pair():
    assert raw.synchronise(["d-1.0-1.pgm"]) == []
