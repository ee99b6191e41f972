import hashlib
import io
import pickle
import tarfile
import tracemalloc
import uuid
from itertools import groupby

import numpy as np
import pytest

from llm_mde.data import record
from llm_mde.data.columns import Chain, columns
from llm_mde.data.folder import ShardFolder
from llm_mde.data.index import Entry, open_index, read_entry
from llm_mde.data.members import Stream, read_header, sample_members, walk
from llm_mde.data.samples import Shards
from llm_mde.errors import ConfigError, DataError
from tests.support.shards import frame, rows, write_rows, write_shards


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    made = write_shards(tmp_path_factory.mktemp("shards"), [3, 2])
    return write_shards(made, [1], split="val")


@pytest.fixture(scope="module")
def url(local):
    name = f"memory://{uuid.uuid4().hex}/pack"
    for path in local.rglob("*"):
        if path.is_file():
            ShardFolder(name).write(path.relative_to(local).as_posix(), path.read_bytes())
    return name


def test_folder_is_a_path_its_text_or_a_shard_folder(local, monkeypatch):
    index = open_index(local, "train")
    assert index.folder == ShardFolder(local)
    assert open_index(str(local), "train") == open_index(ShardFolder(local), "train") == index
    monkeypatch.chdir(local.parent)
    assert open_index(local.name, "train") == index
    assert (index.counts, len(index.entries)) == ((3, 2), 5)


def test_url_gives_the_same_index_and_bytes(local, url):
    index, here = open_index(url, "train"), open_index(local, "train")
    assert index.shards == here.shards
    remote, near = Shards(url), Shards(local)
    for entry in index.entries:
        theirs, ours = remote.read(entry), near.read(entry)
        assert theirs.pop("__url__") == f"{url}/{entry.shard}"
        assert ours.pop("__url__") == f"{local}/{entry.shard}"
        assert theirs == ours
    assert pickle.loads(pickle.dumps(remote)).read(index.entries[0])["__key__"]


def test_samples_in_columns_are_what_they_were_and_take_little_memory():
    """A loader process has a copy of its own: 400,000 samples are 29 MB, 172 MB as objects."""
    entries = [
        Entry(f"kitchen_{n:04d}-{n:06d}", f"train-{n // 999:06d}.tar", n * 2**20, n, f"{n:064x}")
        for n in range(3000)
    ]
    made = columns(reversed(entries))  # shards are sorted, samples of one stay as they come
    want = [one for _, each in groupby(entries, lambda one: one.shard) for one in [*each][::-1]]
    copied = pickle.dumps(made)
    tracemalloc.start()
    copy = pickle.loads(copied)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 100 * len(entries)
    assert [one for shard in copy for one in shard] == want
    chain = Chain(copy)
    assert (list(chain), len(chain), chain[-1], chain[998:1001]) == (
        want, 3000, want[-1], want[998:1001]
    )  # fmt: skip
    assert copy == made and copy[0][-2] == want[997] and copy != columns(entries)
    with pytest.raises(IndexError):
        chain[3000]


def test_url_of_another_kind_is_refused():
    with pytest.raises(ConfigError, match="^http://x/y: expected a folder or a URL with one of"):
        open_index("http://x/y", "train")


def test_messages_name_the_url(url):
    with pytest.raises(DataError, match=f"^{url}: no split 'tarin', this folder has: train, val$"):
        open_index(url, "tarin")
    entry = open_index(url, "train").entries[4]
    where = f"{url}/train-000001.tar, sample train_0001-000004: "
    with pytest.raises(DataError, match=f"^{where}.* do not match the index's checksum"):
        Shards(url).read(entry._replace(offset=3))
    with pytest.raises(DataError, match=f"^{url}/gone.tar, sample train_0001-000004: .*not found"):
        Shards(url).read(entry._replace(shard="gone.tar"))


@pytest.mark.parametrize("where", ["local", "url"])
def test_unfinished_pack_says_how_to_finish_it(where, tmp_path, request):
    if where == "local":
        folder = ShardFolder(write_shards(tmp_path, [1]))
    else:
        folder = ShardFolder(f"memory://{uuid.uuid4().hex}")
    folder.write("unfinished/plan.json", b"{}")
    with pytest.raises(DataError) as caught:
        open_index(folder, "train")
    assert str(caught.value) == (
        f"{folder}: an unfinished pack; run the same 'llm-mde pack' command again to finish it"
    )


def test_key_twice_in_the_index_is_refused(tmp_path):
    write_shards(tmp_path, [2])
    write_rows(tmp_path, [*rows(tmp_path), rows(tmp_path)[0]])
    with pytest.raises(DataError, match="index.jsonl: sample train_0001-000000 is there twice"):
        open_index(tmp_path, "train")


@pytest.mark.parametrize(
    "line",
    [
        b"\xff\xfe",
        b"[" * 100_000,
        b'{"key": "a\\u0000", "shard": "a.tar", "offset": 0, "size": 1, "sha256": ""}',
        b'{"key": "a/b", "shard": "a.tar", "offset": 0, "size": 1, "sha256": ""}',
        b'{"key": "a", "shard": "..", "offset": 0, "size": 1, "sha256": ""}',
        b'{"key": "a", "shard": "b.tar", "offset": 0, "size": 1, "sha256": "/etc/passwd"}',
        b'{"key": "a", "shard": "b\\u0000.tar", "offset": 0, "size": 1, "sha256": ""}',
        b'{"key": "a", "shard": "b.tar", "offset": 1' + b"0" * 30 + b', "size": 1, "sha256": ""}',
        b'{"key": "a", "shard": "b.tar", "offset": true, "size": 1, "sha256": ""}',
    ],
)
def test_line_that_no_file_can_answer_is_refused(line):
    with pytest.raises(DataError, match="^here: ") as caught:
        read_entry(line, "here")
    assert str(caught.value).isascii() and len(str(caught.value)) < 300


def test_key_list_that_is_no_text_is_refused(tmp_path):
    write_shards(tmp_path, [1])
    (tmp_path / "splits" / "train.txt").write_bytes(b"\xff\n")
    with pytest.raises(DataError, match="splits/train.txt: expected a key a line"):
        open_index(tmp_path, "train")


def test_members_are_those_that_tarfile_finds():
    made = record.encode(frame(3, (32, 40), filled=True))
    key = str(made.pop("__key__"))
    span = record.tar_span(key, made)
    assert sample_members(span, key=key, where="") == made
    with tarfile.open(fileobj=io.BytesIO(span)) as tar:
        assert [f"{key}.{name}" for name in made] == tar.getnames()


def test_any_bytes_are_members_or_a_mistake():
    """Bits flip in a sample whose checksum in the index flips along."""
    made = record.encode(frame(3, (32, 40)))
    key = str(made.pop("__key__"))
    span = record.tar_span(key, made)
    headers = [at for at in range(0, len(span), 512) if b".".join([key.encode()]) in span[at:][:99]]
    random = np.random.default_rng(3)
    outcomes = set()
    for turn in range(3000):
        changed = bytearray(span)
        for _ in range(random.integers(1, 4)):
            at = random.integers(len(span))
            if turn % 3:  # most bytes of a header matter
                at = headers[random.integers(len(headers))] + random.integers(512)
            changed[at] ^= 1 << int(random.integers(8))
        if turn % 2:
            mend_checksums(changed, headers)
        try:
            record.decode({"__key__": key} | sample_members(bytes(changed), key=key, where="here"))
            outcomes.add("fine")
        except DataError as error:
            outcomes.add("mistake")
            assert "\n" not in str(error) and str(error).isprintable()
    assert outcomes == {"fine", "mistake"}


def mend_checksums(span, headers):
    """The sum of a header's bytes, so that the change is not found by it."""
    for at in headers:
        block = span[at : at + 512]
        block[148:156] = b" " * 8
        span[at + 148 : at + 156] = b"%06o\0 " % sum(block)


def test_shards_refuses_bytes_that_the_index_vouches_for(tmp_path):
    info = tarfile.TarInfo("../../a.rgb.jpg")
    span = info.tobuf(tarfile.USTAR_FORMAT)
    (tmp_path / "train-000000.tar").write_bytes(span)
    entry = Entry("a", "train-000000.tar", 0, 512, hashlib.sha256(span).hexdigest())
    expected = r"train-000000.tar, sample a, byte 0 of it: '../../a.rgb.jpg', expected <key>"
    with pytest.raises(DataError, match=expected):
        Shards(tmp_path).read(entry)


def test_old_tar_header_is_read_as_tarfile_reads_it():
    info = tarfile.TarInfo("a.rgb.jpg")
    info.size = 5
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT))
    block[156:157] = tarfile.AREGTYPE
    block[257:265] = bytes(8)  # neither magic nor version
    mend_checksums(block, [0])
    assert read_header(bytes(block), "here") == ("a", "rgb.jpg", 5)


def test_stream_reads_a_file_of_any_size_once(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_mde.data.members.CHUNK_BYTES", 10)
    for size in (0, 1, 9, 10, 11, 20, 25):
        content = bytes(range(size))
        (tmp_path / "file").write_bytes(content)
        for piece in (1, 3, 10, 100):
            stream = Stream(ShardFolder(tmp_path), "file")
            pieces = []
            while part := stream.read(piece):
                pieces.append(part)
            assert b"".join(pieces) == content
            assert all(len(part) == piece for part in pieces[:-1])
            assert stream.at == size
            assert stream.digest.digest() == hashlib.sha256(content).digest()


def tar_of(files, **settings):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **settings) as tar:
        for name, payload, mtime in files:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(payload), mtime
            tar.addfile(info, io.BytesIO(payload))
    return buffer.getvalue()


def walked(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    return list(walk(Stream(ShardFolder(tmp_path), "x.tar"), "x.tar"))


@pytest.mark.parametrize("mtime", [0, 1700000000.25])  # a fraction needs a pax header
def test_walk_finds_what_other_writers_write(tmp_path, mtime):
    content = tar_of([("a.rgb.jpg", b"12345", mtime), ("a.meta.json", b"{}", mtime)])
    places = walked(tmp_path, content)
    assert [place.header for place in places] == [("a", "rgb.jpg", 5), ("a", "meta.json", 2)]
    assert [content[at : at + header.size] for header, at in places] == [b"12345", b"{}"]


def test_walk_refuses_names_in_extension_headers(tmp_path):
    content = tar_of([("a" * 80 + ".rgb.jpg/" + "b" * 80, b"", 0)], format=tarfile.PAX_FORMAT)
    with pytest.raises(DataError, match=r"^x.tar, byte 0: an extension header with 'path', exp"):
        walked(tmp_path, content)
    content = tar_of([("a" * 120 + ".rgb.jpg", b"", 0)], format=tarfile.GNU_FORMAT)
    with pytest.raises(DataError, match=r"^x.tar, byte 0: .* is an extension header of type b'L'"):
        walked(tmp_path, content)


def test_walk_notices_a_tar_that_ends_early(tmp_path):
    content = tar_of([("a.rgb.jpg", bytes(5000), 0)])
    with pytest.raises(DataError, match="byte 0, a.rgb.jpg: expected 1608 more bytes, the file"):
        walked(tmp_path, content[:4024])
