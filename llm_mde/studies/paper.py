"""The paper's experiments as recipes: what trains, what is scored, what the paper reports.

Xia et al. 2024, https://arxiv.org/abs/2409.01133, section IV. A recipe is a search space with the
paper's table beside it.
"""

from dataclasses import dataclass
from pathlib import Path

from pydantic import Field, model_validator

from llm_mde.errors import ConfigError
from llm_mde.recipes import shipped
from llm_mde.scoring.metrics import METRICS
from llm_mde.studies.space import Space, read_form

EXPERIMENTS = ("few-shot", "zero-shot", "prompts", "lora", "sensitivity")
ALL = "all"
UNTRAINED = "untrained"  # the variant at step 0: pretrained backbones, everything new as it starts
PAPER_UNITS = "the paper's own figures: normalised depth, not metres; compare the order, no digits"


class Experiment(Space):
    """One table and figure of the paper: trials, the key lists they are scored on, its numbers.

    A row of the table is a trial, or a key list where one trial is scored on several.
    """

    title: str
    """What the table shows."""
    table: str
    """Its number in the paper."""
    figure: str
    """The paper's figure of the same models."""
    titles: dict[str, str] = {}
    """Row -> its name in the table, or trial -> its name in the figure; its own where absent."""
    tests: dict[str, str] = Field({"test": "test"}, min_length=1)
    """Test -> key list of the shards."""
    untrained: bool = False
    """Also score and draw the model before training."""
    paper: dict[str, dict[str, float]] = {}
    """Row -> metric -> the paper's figure, in PAPER_UNITS."""
    better: tuple[tuple[str, str], ...] = ()
    """Pairs of rows: the paper finds the first better (lower abs_rel) than the second."""

    @property
    def rows(self) -> list[str]:
        """Rows of the table, in order."""
        return list(self.trials if len(self.tests) == 1 else self.tests)

    def title_of(self, row: str) -> str:
        """A row's name in tables and figures."""
        return self.titles.get(row, row)

    @model_validator(mode="after")
    def _one_dimension(self) -> "Experiment":
        if len(self.tests) > 1 and len(self.trials) > 1:
            raise ValueError("expected one trial or one test; a table has one row for each")
        if UNTRAINED in {*self.trials, *self.tests}:
            raise ValueError(f"{UNTRAINED}: expected another name, this one is taken")
        named = {*self.paper, *(row for pair in self.better for row in pair)}
        unknown = sorted(
            (named | self.titles.keys() - self.trials.keys()) - {*self.rows, UNTRAINED}
        )
        if unknown:
            raise ValueError(f"{unknown[0]}: no such row, expected one of {', '.join(self.rows)}")
        odd = sorted({metric for scores in self.paper.values() for metric in scores} - {*METRICS})
        if odd:
            raise ValueError(f"{odd[0]}: no such metric, expected one of {', '.join(METRICS)}")
        return self


@dataclass(frozen=True)
class Outcome:
    """One row under one seed."""

    row: str
    """A row of the experiment, or UNTRAINED (then `test` says on what)."""
    test: str
    """The test it was scored on."""
    seed: int
    scores: dict[str, float]
    """`<protocol>/<metric>`, `<baseline>/<metric>` under `metric` and
    `<baseline>_<protocol>/<metric>` under the others; empty if it failed."""
    images: int
    """Test images scored."""
    trainable: int
    """Trainable parameters."""
    parameters: int
    """All parameters."""
    memory_gb: float
    """Peak of the training process: allocated on the GPU, or resident on a CPU."""
    seconds: float
    """Time in training steps, evaluations left out."""
    steps: int
    """Optimizer steps made."""
    adapter: Path
    """Folder of the trained adapter."""
    error: str | None = None
    """Why it failed."""


def read_experiments(names: list[str]) -> list[Experiment]:
    """Recipes by name or file, each once; `all` is every one of the paper.

    Raises:
        ConfigError: no such recipe, one of another form, or two of one name.
    """
    wanted = [one for name in names for one in (EXPERIMENTS if name == ALL else (name,))]
    found = [read_form(_recipe(name), Experiment) for name in dict.fromkeys(wanted)]
    called = [experiment.name for experiment in found]
    for name in called:
        if called.count(name) > 1:
            raise ConfigError(f"{name}: two experiments of this name would share their runs")
    return found


def _recipe(name: str) -> Path:
    if name in EXPERIMENTS:
        return shipped(f"tune/experiments/{name}.yaml")
    if Path(name).is_file():
        return Path(name)
    known = ", ".join((*EXPERIMENTS, ALL))
    raise ConfigError(f"{name}: no such experiment, expected {known}, or a recipe's YAML file")
