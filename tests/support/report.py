"""Outcomes of experiments, made up, and their reports."""

import re
from dataclasses import replace
from pathlib import Path

from llm_mde.scoring.metrics import METRICS
from llm_mde.scoring.protocols import PROTOCOLS
from llm_mde.studies.paper import UNTRAINED, Experiment, Outcome
from llm_mde.studies.report import write

ABOUT = {"command": "llm-mde experiment prompts --seeds 2", "commit": "abc_1*2"}


def experiment(**changes: object) -> Experiment:
    settings = {
        "name": "prompts",
        "title": "Prompts & 100 % of them",
        "table": "III",
        "figure": "3",
        "trials": {"apg": {}, "fixed": {}},
        "titles": {"apg": "APG_prompts", "fixed": "fixed | 5$"},
        "paper": {"apg": {"rmse": 0.206, "abs_rel": 0.448}, "fixed": {"abs_rel": 0.461}},
        "better": (("apg", "fixed"),),
    }
    return Experiment.model_validate(settings | changes)


def zero_shot() -> Experiment:
    return experiment(
        trials={"bedroom": {}},
        tests={"bath": "test_bathroom", "kitchen": "test_kitchen"},
        titles={"bath": "Bathroom", "kitchen": "Kitchen"},
        untrained=True,
        paper={"bath": {"rmse": 0.287}},
        better=(("bath", "kitchen"), ("bath", UNTRAINED)),
    )


def scores(abs_rel: float, *, mean_map: float = 0.25) -> dict[str, float]:
    """Every score of one run: `abs_rel` everywhere but for baselines and a worse `paper`."""
    groups = {"metric": abs_rel, "aligned_median": abs_rel, "aligned_affine": abs_rel, "paper": 0.9}
    for name, value in (("mean_map", mean_map), ("constant", 0.5)):
        groups |= {name: value}
        groups |= {f"{name}_{protocol}": value for protocol in PROTOCOLS if protocol != "metric"}
    del groups["constant_paper"]
    return {f"{group}/{m}": value for group, value in groups.items() for m in METRICS}


def outcome(row: str, seed: int, abs_rel: float, test: str = "test", **changes: object) -> Outcome:
    made = Outcome(
        row=row,
        test=test,
        seed=seed,
        scores=scores(abs_rel),
        images=66,
        trainable=250_000,
        parameters=1_000_000,
        memory_gb=1.5,
        seconds=30.0 + 2 * seed,
        steps=500,
        adapter=Path("runs") / row,
    )
    return replace(made, **changes)


def two_seeds() -> list[Outcome]:
    return [
        outcome("apg", 0, 0.10),
        outcome("apg", 1, 0.14),
        outcome("fixed", 0, 0.20),
        outcome("fixed", 1, 0.16),
    ]


def table(text: str, heading: str) -> list[list[str]]:
    """The cells of the first pipe table below a heading."""
    below = text.split(f"# {heading}", 1)[1]
    rows = re.search(r"(^\|.*\|\n)+", below, re.MULTILINE)
    assert rows is not None
    return [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for line in rows[0].splitlines()
    ]


def report(tmp_path: Path, what: Experiment, outcomes: list[Outcome], form: str) -> str:
    paths = write(what, outcomes, folder=tmp_path / "new" / "folder", about=ABOUT)
    assert [path.name for path in paths] == ["table.md", "table.csv", "table.tex"]
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)  # no temporary file is left
    return paths[("md", "csv", "tex").index(form)].read_text(encoding="utf-8")
