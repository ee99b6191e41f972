"""The members of a shard against the index: none other, none twice, each as it should be."""

import io
import tarfile

import numpy as np
import pytest
from PIL import Image

from llm_mde.data import members as members_module
from llm_mde.data import record
from tests.support.shards import frame, row, rows, seal, write_pack, write_rows
from tests.support.verifying import LAST, SHARD, only, problems, sample


@pytest.fixture
def folder(tmp_path):
    return write_pack(tmp_path / "pack")


def replace_last(folder, span, *, key=LAST):
    """The last sample of SHARD gets other bytes, and everything else agrees with them."""
    *others, line = rows(folder)[:5]
    assert line["key"] == LAST
    path = folder / SHARD
    path.write_bytes(path.read_bytes()[: line["offset"]] + span + bytes(1024))
    changed = row(key, SHARD, line["offset"], span)
    write_rows(folder, [*others, changed, *rows(folder)[5:]])
    return seal(folder)


def header(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def test_filled_depth_is_decoded_too(tmp_path):
    folder = write_pack(tmp_path, filled=True)
    assert problems(folder) == []
    key, made = sample(4, filled=True)
    made["filled.pco"] = made["filled.pco"][:-9]
    replace_last(folder, record.tar_span(key, made))
    assert f"{SHARD}, sample {LAST}: filled.pco is damaged" in only(folder)
    assert problems(folder, decode=False) == []


def test_extra_member_behind_the_samples_is_named(folder):
    path = folder / SHARD
    key, made = sample(9)
    path.write_bytes(path.read_bytes()[:-1024] + record.tar_span(key, made) + bytes(1024))
    seal(folder)
    assert only(folder).endswith("index.jsonl knows no more; got office_0001-000009.rgb.jpg")


def test_member_before_the_samples_is_named(folder):
    path = folder / SHARD
    key, made = sample(9)
    extra = record.tar_span(key, made)
    path.write_bytes(extra + path.read_bytes())
    moved = rows(folder)
    for line in moved[3:5]:
        line["offset"] += len(extra)
    write_rows(folder, moved)
    seal(folder)
    expected = "byte 0: expected sample office_0001-000003, got office_0001-000009.rgb.jpg"
    assert only(folder) == f"DIR/{SHARD}, {expected}"
    path.write_bytes(bytes(len(extra)) + path.read_bytes()[len(extra) :])  # readers stop there
    seal(folder)
    assert only(folder).endswith("byte 0: expected sample office_0001-000003, got empty blocks")


KEY = LAST
ODD = {
    "a link": (header(f"{KEY}.rgb.jpg", 0, tarfile.SYMTYPE, "/etc/passwd"), "is a link, expected"),
    "a hard link": (header(f"{KEY}.rgb.jpg", 0, tarfile.LNKTYPE, "x"), "is a link, expected"),
    "a device": (header(f"{KEY}.rgb.jpg", 0, tarfile.CHRTYPE), "is a device, expected a plain"),
    "a folder": (header(f"{KEY}.rgb.jpg", 0, tarfile.DIRTYPE), "is a directory, expected a plain"),
    "a parent": (header(f"../{KEY}.rgb.jpg"), f"'../{KEY}.rgb.jpg', expected <key>.<one of "),
    "the root": (header(f"/{KEY}.rgb.jpg"), f"'/{KEY}.rgb.jpg', expected <key>.<one of "),
    "a folder's file": (header(f"a/{KEY}.rgb.jpg"), "expected <key>.<one of rgb.jpg"),
    "no key": (header(".rgb.jpg"), "expected <key>.<one of "),
    "an unknown member": (header(f"{KEY}.weights.pkl"), f"'{KEY}.weights.pkl', expected <key>."),
    "a name of bytes": (header(f"{KEY}\udcff.rgb.jpg"), r"\udcff.rgb.jpg', expected <key>."),
    "too much": (
        header(f"{KEY}.depth.png", members_module.MAX_MEMBER_BYTES + 1),
        f"of {members_module.MAX_MEMBER_BYTES + 1} bytes, expected at most",
    ),
    "negative": (
        header(f"{KEY}.depth.png")[:124] + b"\xff" * 12 + header(f"{KEY}.depth.png")[136:],
        "no header of a tar member",  # its checksum is wrong, too
    ),
    "a long name": (header("././@LongLink", 20, tarfile.GNUTYPE_LONGNAME), "an extension header"),
    "pax": (header("pax", 20, tarfile.XHDTYPE), "is an extension header of type b'x', expected"),
    "global pax": (header("pax", 20, tarfile.XGLTYPE), "is an extension header of type b'g'"),
    "sparse": (header(f"{KEY}.rgb.jpg", 0, tarfile.GNUTYPE_SPARSE), "an extension header of type"),
    "another key": (header("other-000001.rgb.jpg"), f"a member of other-000001, expected {KEY}"),
    "the end": (bytes(512), "512 bytes behind its members"),
    "half a block": (b"x" * 100, "no header of a tar member (truncated header)"),
    "less than it says": (
        header(f"{KEY}.filled.pco", 600) + bytes(512),
        "filled.pco ends at byte ",
    ),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_member_is_refused_before_it_is_read(folder, odd):
    block, expected = ODD[odd]
    key, made = sample(4)
    replace_last(folder, record.tar_span(key, made) + block)
    found = only(folder)
    assert found.startswith(f"DIR/{SHARD}, sample {LAST}")
    assert expected in found


def test_member_twice_is_refused(folder):
    key, made = sample(4)
    span = record.tar_span(key, made)
    replace_last(folder, span + record.tar_span(key, {"meta.json": b"{}"}))
    assert "meta.json is there twice" in only(folder)


def test_missing_member_and_pictures_of_two_sizes_are_named(folder):
    key, made = sample(4)
    replace_last(folder, record.tar_span(key, {"rgb.jpg": made["rgb.jpg"]}))
    assert f"DIR/{SHARD}, sample {LAST}: depth.pco or depth.png is missing" in only(folder)
    other = record.encode(frame(4, (16, 16)), depth_codec="png")
    del made["depth.pco"]
    made["depth.png"] = other["depth.png"]
    replace_last(folder, record.tar_span(key, made))
    assert "depth.png is (16, 16), rgb.jpg is (32, 40)" in only(folder)


def test_depth_of_8_bits_is_named(folder):
    key, made = sample(4)
    del made["depth.pco"]
    picture = io.BytesIO()
    Image.fromarray(np.zeros((32, 40), np.uint8)).save(picture, "PNG")
    made["depth.png"] = picture.getvalue()
    replace_last(folder, record.tar_span(key, made))
    assert f"{SHARD}, sample {LAST}: depth.png is 8-bit, expected 16-bit" in only(folder)


@pytest.mark.parametrize("decode", [True, False])
def test_metadata_of_another_scene_is_named(folder, decode):
    key, _ = sample(4)
    made = sample(4, "kitchen_0001")[1]
    replace_last(folder, record.tar_span(key, made))
    expected = "scene of meta.json: expected office_0001, got 'kitchen_0001'"
    assert only(folder, decode=decode) == f"DIR/{SHARD}, sample {LAST}: {expected}"
    made["meta.json"] = b"[" * 100_000
    replace_last(folder, record.tar_span(key, made))
    if not decode:
        assert f"{SHARD}, sample {LAST}: meta.json has no scene" in only(folder, decode=False)


def test_labelled_sample_has_its_scene_in_its_metadata(folder):
    made = sample(4, "office_0001")[1]
    replace_last(folder, record.tar_span("labeled-000123", made), key="labeled-000123")
    for name in ("train", "few"):
        listed = folder / "splits" / f"{name}.txt"
        listed.write_text(listed.read_text().replace(LAST, "labeled-000123"))
    assert problems(folder) == []
