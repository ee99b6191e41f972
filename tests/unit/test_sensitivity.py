"""The report at the end of a sweep: what it says, its files, and the command for the winner."""

import base64
import math
import random
import re
import subprocess
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from llm_mde.data.index import open_index
from llm_mde.recipes import load, shipped
from llm_mde.studies.board import Leaderboard, Row, ranked
from llm_mde.studies.sensitivity import command_of, lines, write
from llm_mde.studies.space import read_space, trial_configs
from llm_mde.studies.winner import Training, typed
from tests.support.run import write_run
from tests.support.shards import write_shards

R, ALPHA, LR = "model.vit.lora.r", "model.vit.lora.alpha", "optim.lr"
WIDTHS = "model.head.widths"
TRAINING = Training(Path("launch/nyu.yaml"), Path("launch/ds/zero1.json"), ["data.workers=0"])


def row(
    trial: str, abs_rel: float, settings: dict[str, object], *, seed: int = 0, error: str = ""
) -> Row:
    scores = {} if error else {"val/abs_rel": abs_rel, "val/rmse": 3 * abs_rel}
    return Row(trial, seed, Path("runs") / trial, settings, scores, 60.0, 100, error or None)


def board(rows: Sequence[Row]) -> Leaderboard:
    return Leaderboard("tried", Path("runs/tried"), ranked(rows))


def schemes() -> list[Row]:
    """Table V under three seeds, scheme 8 broken once."""
    rng = random.Random(0)
    trials = read_space(shipped("tune/spaces/table5.yaml")).trials
    worse = {"scheme4": 0.1, "scheme1": 0.05, "scheme2": 0.02}
    return [
        row(
            name, 0.2 + worse.get(name, 0.03 if name != "scheme3" else 0) + rng.gauss(0, 0.002),
            settings, seed=seed, error="out of memory" if (name, seed) == ("scheme8", 1) else "",
        )
        for name, settings in trials.items() for seed in range(3)
    ]  # fmt: skip


def written(rows: Sequence[Row], folder: Path) -> tuple[str, list[Path]]:
    """The Markdown, and every file."""
    about = {"base": "launch/nyu.yaml", "device": "2 x <GPU>"}
    files = write(board(rows), folder=folder, about=about, training=TRAINING, defaults={}, val=None)
    assert sorted(files) == sorted(folder.iterdir())  # no temporary file is left
    assert [file.name for file in files[:2]] == ["report.html", "report.md"]
    return files[1].read_text(encoding="utf-8"), files


def told(rows: Sequence[Row], tmp_path: Path) -> list[str]:
    found = lines(board(rows), folder=tmp_path, training=TRAINING, defaults={})
    assert max(map(len, found)) < 120
    return found


class Outline(HTMLParser):
    """Open tags of a page, and where its pictures come from."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.sources: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        found = dict(attrs)
        self.sources += [str(found["src"])] if "src" in found else []
        self.links += [str(found["href"])] if "href" in found else []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_holds_its_pictures_and_needs_nothing_beside_itself(tmp_path: Path) -> None:
    _, files = written(schemes(), tmp_path / "report")
    page = Outline()
    page.feed(files[0].read_text(encoding="utf-8"))
    assert page.open == [] and page.links == []
    inside = [base64.b64decode(source.partition("base64,")[2]) for source in page.sources]
    assert inside == [file.read_bytes() for file in files[2:]]
    assert [file.stem for file in files[2:]] == [
        "importance", "effects", "alpha-rank-llm", "alpha-rank-vit", "parallel",
    ]  # fmt: skip


def test_the_report_of_table_five_names_its_design_and_what_is_tied(tmp_path: Path) -> None:
    text, files = written(schemes(), tmp_path / "report")
    assert "One factor at a time around scheme3" in text
    assert "- vit.alpha changes only with vit.r, so no effect" in text
    assert "- llm.alpha is always 2 times llm.r, so no effect" in text
    assert "- failed: scheme8 (seed 1): out of memory" in text
    assert re.search(r"\| scheme8 \| 2 of 3 \|", text)
    first = re.search(r"\| ---: \|\n\| ([\w. +]+) \| 2 \| (\d+) %", text.split("## Importance")[1])
    assert first is not None and first[1] == "optim.lr" and int(first[2]) > 50
    assert all(f"]({file.name})" in text for file in files[2:])
    assert re.search(r"scheme3: val/abs_rel 0\.\d{4} ± 0\.\d{4} over 3 seeds\.", text)
    assert "The next, scheme2, " in text and "worse under 3 of 3 common seeds" in text


def test_everything_a_trial_says_is_escaped(tmp_path: Path) -> None:
    rows = [row("a<b>", 0.2, {LR: 1e-4}), row("c", 0.3, {LR: 1e-5}, error="<script> | `x`")]
    text, files = written(rows, tmp_path / "report")
    page = files[0].read_text(encoding="utf-8")
    assert "<script>" not in page and "a<b>" not in page and "2 x &lt;GPU&gt;" in page
    assert r"&lt;script> \| \`x\`" in text


def shell_words(command: str, folder: Path) -> list[str]:
    """What a shell makes of a command."""
    show = f"deepspeed() {{ printf '%s\\0' deepspeed \"$@\"; }}\n{command}\n"
    done = subprocess.run(
        ["bash", "-euc", show], cwd=folder, capture_output=True, text=True, check=True
    )
    return done.stdout.split("\0")[:-1]


def parsed(words: Sequence[str]) -> tuple[Path, list[str]]:
    """The base and the `--set` words of a command line."""
    options = list(zip(words[2::2], words[3::2], strict=True))
    (base,) = (Path(value) for name, value in options if name == "--config")
    return base, [value for name, value in options if name == "--set"]


def test_the_command_trains_the_winner_in_full(tmp_path: Path) -> None:
    base = tmp_path / "my base.yaml"
    base.write_text("train: {epochs: 7, max_steps: null}\nseed: 5\n")
    settings: dict[str, object] = {
        LR: 2e-05, ALPHA: 192.0, WIDTHS: [64, 32, 16, 8], "model.vit.tune": "lora",
        "train.compile": True, "optim.ema": None, "data.train_split": "it's; $(rm -r) `x` \"y\"",
    }  # fmt: skip
    training = Training(base, Path("launch/ds/zero1.json"), ["train.batch=64", "optim.lr=1"])
    found = board([row("best", 0.1, settings), row("other", 0.2, settings | {LR: 1.0})])
    words = command_of(found, training)
    assert shell_words(typed(words), tmp_path) == words
    assert words[:4] == ["deepspeed", "launch/train.py", "--ds_config", "launch/ds/zero1.json"]
    where, sets = parsed(words)
    config = load(where, sets=sets)
    assert (config.optim.lr, config.model.vit.lora.alpha, config.train.batch) == (2e-5, 192, 64)
    assert config.model.head.widths == (64, 32, 16, 8)
    assert (config.model.vit.tune, config.train.compile, config.optim.ema) == ("lora", True, None)
    assert config.data.train_split == settings["data.train_split"]
    assert (config.train.epochs, config.train.max_steps, config.seed) == (7, None, 5)
    assert config.name == "tried-best-full"


def test_the_command_gives_what_the_sweep_ran(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("train: {epochs: 3}\n")
    space = read_space(shipped("tune/spaces/table5.yaml"))
    ran = trial_configs(space, base, tiny=False, sets=["train.max_steps=4", "data.workers=0"])
    rows = [row(name, 0.1 * n, space.trials[name]) for n, name in enumerate(ran, start=1)]
    words = command_of(board(rows), Training(base, Path("zero1.json"), ["data.workers=0"]))
    where, sets = parsed(words)
    full = load(where, sets=sets)
    short = ran["scheme1"]
    assert full.train.max_steps is None
    assert full.model_copy(update={"name": short.name, "train": short.train}) == short


def test_the_terminal_is_short_and_ends_with_the_command(tmp_path: Path) -> None:
    found = told(schemes(), tmp_path)
    assert found[0].split()[:2] == ["trial", "seeds"] and found[1].split()[0] == "scheme3"
    start = found.index("train the best one in full:")
    command = "\n".join(found[start + 1 : -1])
    assert shell_words(command, tmp_path) == command_of(board(schemes()), TRAINING)
    assert found[-1] == f"report: {tmp_path / 'report.html'}"
    shares = next(line for line in found if line.startswith("optim.lr"))
    assert re.fullmatch(r"optim.lr +2 +\d+ % +\d+ % +\d.\d+", shares)


def grid_rows() -> list[Row]:
    scores = {(r, a): 0.2 + abs(r - a / 2) / 100 for r in (4, 8, 16) for a in (8.0, 16.0, 32.0)}
    return [
        row(f"{r}-{alpha}", score + seed / 1000, {R: r, ALPHA: alpha}, seed=seed)
        for (r, alpha), score in scores.items()
        for seed in range(2)
    ]


def test_a_grid_tells_what_two_factors_do_together(tmp_path: Path) -> None:
    text, files = written(grid_rows(), tmp_path / "report")
    assert "Every combination of levels was planned" in text
    assert re.search(r"\| vit.alpha x vit.r \|  \| \d+ % \|", text)
    assert "alpha-rank-vit.png" in [file.name for file in files]
    assert "changes only with" not in text


ODD: dict[str, list[Row]] = {
    "one trial": [row("a", 0.2, {LR: 1e-4})],
    "no settings": [row("a", 0.2, {}), row("b", 0.3, {})],
    "all failed": [row("a", 0, {LR: 1.0}, error="broken"), row("b", 0, {LR: 2.0}, error="broken")],
    "one left": [row("a", 0.2, {LR: 1.0}), row("b", 0, {LR: 2.0}, error="broken")],
    "one level left": [
        row("a", 0.2, {LR: 1.0}, seed=0), row("a", 0.21, {LR: 1.0}, seed=1),
        row("b", 0, {LR: 2.0}, error="broken"),
    ],
    "one factor": [row(f"{n}", n / 10, {LR: 10.0**-n}) for n in range(1, 5)],
    "no numbers": [row("a", math.nan, {R: 1}), row("b", math.inf, {R: 2}), row("c", 0.1, {R: 3})],
    "unequal seeds": [
        row("a", 0.2 + s / 100, {R: 1}, seed=s) for s in range(3)
    ] + [row("b", 0.3, {R: 2})],
    "any values": [
        row("a", 0.2, {WIDTHS: [64, 32, 16, 8], "train.compile": True, "data.depth": "raw"}),
        row("b", 0.3, {WIDTHS: [8, 8, 8, 8], "train.compile": False, "data.depth": "raw"}),
        row("c", 0.4, {WIDTHS: [8, 8, 8, 8], "train.compile": True, "data.depth": "filled"}),
    ],
    "paths left alone": [
        row("a", 0.2, {}), row("b", 0.3, {R: 4}), row("c", 0.25, {ALPHA: 9.0, R: 4}),
    ],
    "equal scores": [row(f"{r}", 0.1, {R: r, LR: r / 10}) for r in (1, 2, 4)],
    "alpha and rank at random": [
        row(f"{n}", random.Random(n).random(), {R: n + 1, ALPHA: random.Random(n).uniform(1, 99)})
        for n in range(20)
    ],
    "long names": [
        row("a-long-name" * 7 + f"{n}", n / 10, {f"model.{'x' * 70}{p}": n for p in "abcd"})
        for n in range(1, 4)
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", ODD)
@pytest.mark.filterwarnings("error")
def test_whatever_a_sweep_came_to_there_is_a_report(case: str, tmp_path: Path) -> None:
    text, _ = written(ODD[case], tmp_path / "report")
    found = told(ODD[case], tmp_path)
    scored = [one for one in ODD[case] if one.score is not None]
    assert ("```bash" in text) == ("train the best one in full:" in found) == bool(scored)
    assert ("nothing to train" in text) == (not scored)
    assert "nan %" not in text


def test_a_factor_with_scores_at_one_value_has_no_share(tmp_path: Path) -> None:
    rows = [
        row("a", 0.2, {R: 2, "train.batch": 8}), row("b", 0.3, {R: 4, "train.batch": 8}),
        row("c", 0, {R: 2, "train.batch": 64}, error="out of memory"),
    ]  # fmt: skip
    found = told(rows, tmp_path)
    assert "train.batch: scores at one value alone, nothing to compare" in found
    assert [line.split()[0] for line in found if "%" in line] == ["vit.r"]


def test_a_value_of_the_base_joins_the_trials_that_set_it(tmp_path: Path) -> None:
    rows = [
        row("a", 0.2, {}),
        row("b", 0.3, {R: 4}),
        row("c", 0.25, {R: 8}),
        row("d", 0.2, {R: 4.0}),
    ]
    found = board(rows)
    known = lines(found, folder=tmp_path, training=TRAINING, defaults={R: 4})
    assert any(re.match(r"vit.r +2 ", line) for line in known)
    assert any(re.match(r"vit.r +3 ", line) for line in told(rows, tmp_path))


def test_predictions_of_the_best_are_drawn_where_adapters_are(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs" / "good")
    val = open_index(write_shards(tmp_path / "shards", [3], split="val"), "val")
    rows = [
        Row("good", 0, run, {R: 1}, {"val/abs_rel": 0.1}, 1.0, 1, None),
        row("gone", 0.2, {R: 2}),
        row("bad", 0, {R: 4}, error="broken"),
    ]
    folder = tmp_path / "report"
    files = write(board(rows), folder=folder, about={}, training=TRAINING, defaults={}, val=val)
    assert files[-1].name == "predictions.png"
    alone = [row("gone", 0.2, {R: 2})]
    write(board(alone), folder=tmp_path / "b", about={}, training=TRAINING, defaults={}, val=val)
    assert "No trial has left an adapter" in (tmp_path / "b" / "report.md").read_text()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"damaged")
    write(board(rows), folder=folder, about={}, training=TRAINING, defaults={}, val=val)
    assert "Not drawn: " in (folder / "report.md").read_text()
