import json
import tarfile
import uuid

import pytest
from PIL import Image

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.show import inspect
from llm_mde.errors import ConfigError, DataError
from tests.support.shards import frame, rows, write_pack

SHARD = "train-000001.tar"
KEY = "office_0001-000004"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_pack(tmp_path_factory.mktemp("pack"), filled=True)


def check_picture(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return picture.width


def test_sample_of_a_pack_is_drawn_and_described(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = inspect(f"{folder}/{SHARD}:{KEY}")
    assert str(seen.picture) == f"{KEY}.png"
    check_picture(tmp_path / f"{KEY}.png")
    line = rows(folder)[4]
    assert (seen.key, seen.offset, seen.sha256) == (KEY, line["offset"], line["sha256"])
    assert set(seen.bytes) == {"rgb.jpg", "depth.pco", "filled.pco", "meta.json"}
    assert seen.size == (32, 40)
    assert seen.depth_m == (1.052, 1.328)  # 1000 + 10 n + 5 u + 3 v mm, without a corner of 4 x 5
    assert seen.holes == pytest.approx(4 * 5 / (32 * 40))
    lines = seen.lines()
    assert lines[0] == f"{KEY}: byte {line['offset']} of {folder}/{SHARD}"
    assert lines[2] == f"sha256: {line['sha256']} ok"
    assert lines[4] == "depth: 1.052 to 1.328 m, 1.6 % without a reading"
    assert '"scene": "office_0001"' in lines
    assert json.loads(json.dumps(seen.payload()))["picture"] == f"{KEY}.png"


def test_filled_depth_is_a_panel_more(folder, tmp_path):
    plain = write_pack(tmp_path / "plain")
    one = inspect(f"{plain}:{KEY}", out=tmp_path / "one.png")
    two = inspect(f"{folder}:{KEY}", out=tmp_path / "two.png")
    assert check_picture(two.picture) > 1.3 * check_picture(one.picture)
    assert two.shard == f"{folder}/{SHARD}"


def test_shard_alone_lists_its_keys_and_shows_the_first(folder, tmp_path):
    seen = inspect(f"{folder}/train-000000.tar", out=tmp_path / "a.png")
    assert (seen.key, seen.samples) == ("office_0001-000000", 3)
    keys = "office_0001-000000, office_0001-000001, office_0001-000002"
    assert seen.lines()[0] == f"{folder}/train-000000.tar: 3 samples: {keys}"


def test_url_is_inspected(folder, tmp_path):
    url = f"memory://{uuid.uuid4().hex}/pack"
    for name in ("index.jsonl", SHARD):
        ShardFolder(url).write(name, (folder / name).read_bytes())
    assert inspect(f"{url}/{SHARD}:{KEY}", out=tmp_path / "a.png").sha256
    assert inspect(f"{url}:{KEY}", out=tmp_path / "b.png").shard == f"{url}/{SHARD}"


def write_foreign(path, count, *, member="meta.json"):
    """As tar writes files: a pax header with a fraction of a second before each of them."""
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            made = record.encode(frame(number, (32, 40)), depth_codec="png")
            del made["__key__"]
            for name, payload in made.items():
                part = path.parent / name
                part.write_bytes(payload)
                wanted = member if name == "meta.json" else name
                info = tar.gettarinfo(part, f"{number:08d}.{wanted}")
                info.mtime = 1700000000.25
                with part.open("rb") as file:
                    tar.addfile(info, file)
    return path


def test_tar_without_an_index_is_walked(tmp_path):
    path = write_foreign(tmp_path / "anything.tar", 9)
    seen = inspect(str(path), out=tmp_path / "a.png")
    assert (seen.key, seen.samples, seen.sha256) == ("00000000", 9, None)
    assert seen.keys == ("00000000", "00000001", "00000002", "...") + (
        "00000006",
        "00000007",
        "00000008",
    )
    assert "sha256: unknown, no index.jsonl beside the shard" in seen.lines()
    last = inspect(f"{path}:00000008", out=tmp_path / "a.png")
    assert last.offset > seen.offset
    assert last.meta["index"] == 8


@pytest.mark.parametrize("name", ["weights.pkl", "../meta.json", "a/b"])
def test_tar_with_odd_members_is_refused(tmp_path, name):
    path = write_foreign(tmp_path / "odd.tar", 1, member=name)
    with pytest.raises(DataError, match=r"odd.tar, byte \d+: .*, expected <key>.<one of rgb.jpg"):
        inspect(str(path))


def test_what_is_not_there_is_named(folder, tmp_path):
    with pytest.raises(DataError, match=f"{SHARD}:nobody: no such sample, the shard holds 2 sampl"):
        inspect(f"{folder}/{SHARD}:nobody")
    with pytest.raises(DataError, match="index.jsonl holds no sample nobody; name its shard"):
        inspect(f"{folder}:nobody")
    with pytest.raises(DataError, match="train-000009.tar: not found"):
        inspect(f"{folder}/train-000009.tar")
    (tmp_path / "empty.tar").write_bytes(bytes(1024))
    with pytest.raises(DataError, match="empty.tar: no such sample, the shard holds no sample"):
        inspect(f"{tmp_path}/empty.tar")
    for target in ("folder", "s3://bucket/folder", ""):
        with pytest.raises(ConfigError, match="expected FOLDER/SHARD.tar, FOLDER/SHARD.tar:KEY or"):
            inspect(target)


def test_damaged_sample_is_a_mistake(folder, tmp_path):
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "index.jsonl").write_bytes((folder / "index.jsonl").read_bytes())
    content = bytearray((folder / SHARD).read_bytes())
    content[700] ^= 1
    (damaged / SHARD).write_bytes(content)
    with pytest.raises(DataError, match="do not match the index's checksum; the shard is damaged"):
        inspect(f"{damaged}/{SHARD}")
