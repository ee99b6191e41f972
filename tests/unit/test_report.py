import json
import re
from collections import Counter
from html.parser import HTMLParser

import numpy as np
import pytest

from llm_mde.data import record
from llm_mde.data.folder import ShardFolder
from llm_mde.data.report import (
    PICTURES,
    RunStats,
    contact_sheet,
    html_page,
    problems,
    write_report,
)
from llm_mde.errors import DataError
from tests.support.shards import write_shards

EVIL = "<script>alert('&\"')</script>"
VOID = {"meta", "img"}
RUN = RunStats(
    seconds=4.0,
    frames=10,
    input_bytes=8_000_000,
    output_bytes=2_000_000,
    jobs=3,
    resumed_shards=1,
    peak_memory_bytes=150_000_000,
)
FILES = [
    {"scene": "office_0001", "file": "d-1.pgm", "bytes": 5, "verdict": "ok"},
    {"scene": "office_0001", "file": "r-9.ppm", "bytes": 5, "verdict": "unpaired", "reason": "x"},
    {"scene": "office_0001", "file": "d-2.pgm", "bytes": 5, "verdict": "truncated", "reason": "y"},
    {"scene": EVIL, "file": EVIL, "bytes": 0, "verdict": "empty", "reason": EVIL},
    {"scene": EVIL, "file": "d-3.pgm", "bytes": 5, "verdict": "excluded", "reason": "bad frame"},
]


def manifest(files: list[dict], *, samples: int) -> dict:
    """What pack.json holds of two scenes, counted from the files."""
    scenes = [
        {
            "name": name,
            "source": "nyu_raw",
            "split": split,
            "samples": count,
            "verdicts": dict(Counter(row["verdict"] for row in files if row["scene"] == name)),
        }
        for name, split, count in (("office_0001", "train", samples), (EVIL, "test", 0))
    ]
    return {
        "format_version": 2,
        "samples": samples,
        "splits": {
            "train": {"samples": samples, "shards": 1},
            "test": {"samples": 0, "shards": 0},
        },
        "lists": {"few-shot-1": {"samples": 0, "note": EVIL}},
        "scenes": scenes,
        "verdicts": dict(Counter(row["verdict"] for row in files)),
        "settings": {"splits": "scene", "shard_size": 256, "fill": False},
        "shards": {"train-000000.tar": {"samples": samples, "bytes": 3_000_000, "sha256": "0"}},
        "index_sha256": "0",
    }


def write_files(folder: ShardFolder, files: list[dict]) -> None:
    folder.write("files.jsonl", "".join(json.dumps(row) + "\n" for row in files).encode())


@pytest.fixture
def folder(tmp_path):
    write_shards(tmp_path, [3, 2])
    write_files(ShardFolder(tmp_path), FILES)
    return ShardFolder(tmp_path)


def reported(folder: ShardFolder) -> tuple[dict, str]:
    write_report(folder, manifest=manifest(FILES, samples=5), run=RUN)
    return json.loads(folder.read("report.json")), folder.read("report.html").decode()


class Walk(HTMLParser):
    """Follows the tags of a page; they must close in turn."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: Counter[str] = Counter()
        self.sources: list[str] = []
        self.text: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.seen[tag] += 1
        self.sources += [value for name, value in attrs if name in ("src", "href", "srcset")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_totals_of_the_json_equal_counts_by_hand(folder):
    content, _ = reported(folder)
    expected = {"ok": 1, "unpaired": 1, "truncated": 1, "empty": 1, "excluded": 1}
    assert content["verdicts"] == expected
    assert content["problems"]["total"] == 3 and content["problems"]["all"] == "files.jsonl"
    assert content["problems"]["listed"] == [FILES[2], FILES[3], FILES[1]]
    assert content["samples"] == 5 and content["splits"]["train"]["samples"] == 5
    assert content["scenes"][1]["verdicts"] == {"empty": 1, "excluded": 1}
    assert content["settings"]["shard_size"] == 256 and content["lists"]["few-shot-1"]


def test_rates_are_per_second_and_in_megabytes(folder):
    content, page = reported(folder)
    assert content["run"]["frames_per_s"] == 2.5
    assert content["run"]["input_mb_per_s"] == 2.0 and content["run"]["output_mb_per_s"] == 0.5
    assert "10 (2.5 frames/s)" in page and "8.0 MB (2.0 MB/s)" in page and "150.0 MB" in page


def test_a_run_without_time_has_no_rates():
    run = RunStats(0.0, 0, 0, 0, jobs=1, resumed_shards=9, peak_memory_bytes=None)
    assert set(run.rates().values()) == {0.0}
    assert "unknown" in html_page("x", manifest([], samples=0), run=run, listed=[], pictures=[])


def test_names_and_reasons_are_escaped(folder):
    _, page = reported(folder)
    walk = Walk(page)
    assert "<script" not in page and walk.seen["script"] == 0
    assert "".join(walk.text).count("<script>") >= 4  # scene, file, reason, note: as text
    page = html_page(EVIL, manifest([], samples=0), run=RUN, listed=[], pictures=[])
    assert "<script" not in page


def test_tags_are_balanced(folder):
    walk = Walk(reported(folder)[1])
    assert walk.open == []
    assert walk.seen["table"] >= 7 and walk.seen["details"] == 3


def test_the_page_needs_nothing_from_elsewhere(folder):
    _, page = reported(folder)
    assert not re.search(r"https?:|//[a-z]|@import|url\(", page.replace("</", ""))
    assert all(source.startswith("data:image/jpeg;base64,") for source in Walk(page).sources)


def test_every_sample_of_a_small_pack_is_on_the_contact_sheet(folder):
    _, page = reported(folder)
    assert page.count("<figure>") == 5 and page.count("<img") == 10
    assert all(f"train_0001-{number:06d}" in page for number in range(5))


def picture(key: str, depth_mm: int) -> tuple[str, record.Sample]:
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), np.uint8)
    depth = np.full((480, 640), depth_mm, np.uint16)
    depth[::7] = 0
    return "train", record.Sample(key, noise, depth, {"scene": "office_0001"})


def test_the_legend_spans_the_depth_of_the_pictures():
    sheet = contact_sheet([picture("a", 1000), picture("b", 5000)])
    assert re.findall(r"<span>([^<]+)</span>", sheet) == [
        "1.0 m",
        "2.0 m",
        "3.0 m",
        "4.0 m",
        "5.0 m",
    ]
    assert "no reading" in sheet


def test_no_pictures_no_sheet():
    assert contact_sheet([]) == ""
    page = html_page("x", manifest([], samples=0), run=RUN, listed=[], pictures=[])
    assert "Samples" not in page


def test_a_sample_without_a_reading_is_shown():
    assert contact_sheet([picture("a", 0)]).count("<img") == 2


def test_the_page_stays_small_whatever_it_reports():
    rows = [
        {
            "scene": f"living_room_{n:04d}",
            "file": f"d-{n}" * 8,
            "verdict": "empty",
            "reason": "r" * 99,
        }
        for n in range(1000)
    ]
    told = manifest([], samples=0)
    told["scenes"] = [
        {"name": f"s{n}", "split": "train", "samples": 1, "verdicts": {"empty": 2}}
        for n in range(3000)
    ]
    told["verdicts"] = {"empty": 6000}
    pictures = [picture(str(n), 1000 + n) for n in range(PICTURES)]
    page = html_page("x", told, run=RUN, listed=rows, pictures=pictures)
    assert len(page) < 1.5e6  # pictures of pure noise are the largest there are
    assert "The first 1,000 of 6,000 problems" in page
    assert "2,000 more in report.json" in page


def test_scenes_without_problems_are_summed():
    told = manifest([], samples=0)
    told["verdicts"] = {"ok": 12, "truncated": 1}
    told["scenes"] = [
        {"name": f"s{n}", "split": "train", "samples": 2, "verdicts": {"ok": 4}} for n in range(3)
    ]
    told["scenes"][1]["verdicts"] = {"ok": 4, "truncated": 1}
    page = html_page("x", told, run=RUN, listed=[], pictures=[])
    table = page.partition("Scenes with problems")[2].partition("</details>")[0]
    assert re.findall(r"<td[^>]*>([^<]*)</td>", table) == [
        *("s1", "train", "2", "4", "1"),
        *("2 others", "", "4", "8", "0"),
    ]


def test_damaged_files_come_before_unpaired_ones(tmp_path):
    unpaired = [{"scene": "s", "file": f"r-{n}", "verdict": "unpaired"} for n in range(50)]
    damaged = [{"scene": "s", "file": f"d-{n}", "verdict": "undecodable"} for n in range(3)]
    folder = ShardFolder(tmp_path)
    write_files(folder, [*unpaired, *damaged])
    assert list(problems(folder, 5)) == [*damaged, *unpaired[:2]]
    assert list(problems(folder, 2)) == damaged[:2]


def test_problems_are_read_across_the_parts_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr("llm_mde.data.report.CHUNK_BYTES", 7)
    folder = ShardFolder(tmp_path)
    write_files(folder, FILES)
    assert len(list(problems(folder, 100))) == 3
    folder.write("files.jsonl", folder.read("files.jsonl").rstrip())
    assert len(list(problems(folder, 100))) == 3


def test_a_missing_list_of_files_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"files\.jsonl: not found"):
        list(problems(ShardFolder(tmp_path), 1))
