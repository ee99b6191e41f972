"""The recipes of the paper's experiments: its numbers, its claims, and what each row changes."""

from pathlib import Path

import pytest

from llm_mde.errors import ConfigError
from llm_mde.studies.paper import EXPERIMENTS, UNTRAINED, Experiment, read_experiments
from llm_mde.studies.space import trial_configs
from tests.support.experiment import RECIPE


def test_recipes_hold_the_numbers_of_the_papers_tables() -> None:
    few, zero, prompts, lora, sensitivity = read_experiments(["all"])
    assert [e.name for e in (few, zero, prompts, lora, sensitivity)] == list(EXPERIMENTS)
    tables = [experiment.table for experiment in (few, zero, prompts, lora, sensitivity)]
    assert tables == ["I", "II", "III", "IV", "V"]

    def column(experiment: Experiment, metric: str) -> list[float]:
        return [experiment.paper[row][metric] for row in experiment.rows]

    assert column(few, "rmse") == [0.285, 0.267, 0.259, 0.242, 0.253]
    assert column(few, "abs_rel") == [0.741, 0.707, 0.669, 0.627, 0.639]
    assert column(few, "delta3") == [0.731, 0.745, 0.765, 0.783, 0.777]
    assert zero.rows == ["bathroom", "dining_room", "kitchen", "living_room"]
    assert column(zero, "abs_rel") == [0.724, 1.022, 1.100, 0.835]
    assert column(zero, "rmse_log") == [0.529, 0.688, 0.699, 0.604]
    assert column(prompts, "abs_rel") == [0.448, 0.461, 0.814]
    assert column(prompts, "sq_rel") == [0.125, 0.132, 0.363]
    assert column(lora, "rmse") == [0.288, 0.218, 0.206]
    assert column(lora, "rmse_log") == [0.549, 0.449, 0.426]
    assert column(sensitivity, "abs_rel") == [
        *(0.880, 0.496, 0.448, 0.743, 0.593, 0.632, 0.657, 0.669)
    ]
    assert column(sensitivity, "sq_rel") == [
        *(0.415, 0.158, 0.125, 0.317, 0.215, 0.247, 0.259, 0.265)
    ]
    assert column(sensitivity, "delta1") == [
        *(0.281, 0.426, 0.393, 0.359, 0.370, 0.390, 0.382, 0.387)
    ]
    assert column(sensitivity, "delta2") == [
        *(0.494, 0.678, 0.708, 0.574, 0.631, 0.623, 0.611, 0.610)
    ]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_a_recipe_says_the_paper_finds_better_is_lower_in_its_table(name: str) -> None:
    (experiment,) = read_experiments([name])
    assert experiment.better
    for better, worse in experiment.better:
        if worse != UNTRAINED:
            assert experiment.paper[better]["abs_rel"] < experiment.paper[worse]["abs_rel"]


def test_recipes_change_what_their_table_is_about(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{}\n")
    few, zero, prompts, lora, sensitivity = (
        list(trial_configs(experiment, base, tiny=False, sets=[]).values())
        for experiment in read_experiments(["all"])
    )
    lists = [f"few-shot-{which}" for which in (1, 2, 3, 4, "all")]
    assert [c.data.train_split for c in few] == lists
    assert {c.train.batch for c in few} == {16}
    assert [c.data.train_split for c in zero] == ["zero-shot-train"]
    assert [c.model.prompt for c in prompts] == ["apg", "fixed", "none"]
    tunes = [(c.model.vit.tune, c.model.llm.tune) for c in lora]
    assert tunes == [("frozen", "frozen"), ("lora", "frozen"), ("lora", "lora")]
    assert [c.model.vit.lora.r for c in sensitivity] == [60, 192, 96, 96, 96, 160, 96, 96]
    assert {c.train.max_steps for c in [*few, *zero, *prompts, *lora, *sensitivity]} == {None}
    assert sensitivity[2].name == "sensitivity-scheme3"


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_tiny_table_has_equal_steps_and_divided_ranks(name: str, tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{}\n")
    (experiment,) = read_experiments([name])
    configs = list(trial_configs(experiment, base, tiny=True, sets=[]).values())
    assert len({c.train.max_steps for c in configs}) == 1 and configs[0].train.max_steps
    ranks = {(c.model.vit.lora.r, c.model.llm.lora.r) for c in configs}
    assert (16, 5) in ranks and all(r <= 32 for r, _ in ranks)
    assert all(c.model.vit.lora.alpha >= c.model.vit.lora.r for c in configs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("small:", "untrained:"), "untrained: expected another name"),
        (("figure:", "better: [[small, x]]\nfigure:"), "x: no such row"),
        (("figure:", "tests: {a: test, b: val}\nfigure:"), "expected one trial or one test"),
        (("trials:", "trials_from: tune/spaces/table5.yaml\ntrials:"), "got both"),
        (("title: Two ranks\n", ""), "title: field required"),
        (
            ("figure:", "paper: {small: {delta_1: 0.5}}\nfigure:"),
            "delta_1: no such metric, .*delta1",
        ),
    ],
)
def test_a_malformed_recipe_is_refused(
    tmp_path: Path, change: tuple[str, str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        (tmp_path / "recipe.yaml").write_text(RECIPE.replace(*change))
        read_experiments([str(tmp_path / "recipe.yaml")])


def test_names_are_experiments_all_or_files(tmp_path: Path) -> None:
    assert [e.name for e in read_experiments(["lora", "all"])][0] == "lora"
    assert len(read_experiments(["lora", "all", "lora"])) == len(EXPERIMENTS)
    with pytest.raises(ConfigError, match="bogus: no such experiment, expected few-shot, "):
        read_experiments(["bogus"])
    (tmp_path / "a.yaml").write_text(RECIPE)
    (tmp_path / "b.yaml").write_text(RECIPE)
    with pytest.raises(ConfigError, match="pair: two experiments of this name"):
        read_experiments([str(tmp_path / "a.yaml"), str(tmp_path / "b.yaml")])
