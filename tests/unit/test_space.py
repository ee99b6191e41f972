from pathlib import Path

import pytest

from llm_mde.errors import ConfigError
from llm_mde.recipes import shipped
from llm_mde.studies.space import Base, base_of, read_space, settings_of, trial_configs

TABLE5 = shipped("tune/spaces/table5.yaml")


def test_table5_at_base_is_the_papers_table(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("seed: 3\n")
    configs = trial_configs(read_space(TABLE5), base, tiny=False, sets=[])
    got = [
        (
            c.model.vit.lora.alpha,
            c.model.vit.lora.r,
            c.model.llm.lora.r,
            c.train.batch,
            c.optim.lr,
        )
        for c in configs.values()
    ]
    assert got == [  # Table V, schemes 1 to 8
        (120, 60, 32, 32, 2e-5),
        (192, 192, 32, 32, 2e-5),
        (192, 96, 32, 32, 2e-5),
        (192, 96, 32, 32, 1e-4),
        (192, 96, 32, 16, 2e-5),
        (320, 160, 32, 32, 2e-5),
        (192, 96, 16, 32, 2e-5),
        (192, 96, 32, 48, 2e-5),
    ]
    assert all(c.model.llm.lora.alpha == 2 * c.model.llm.lora.r for c in configs.values())
    assert {c.seed for c in configs.values()} == {3}
    assert [c.name for c in configs.values()] == [f"table5-scheme{n}" for n in range(1, 9)]


def test_tiny_base_divides_ranks_and_keeps_the_rest(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {batch: 8}\n")
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: s\n"
        "trials: {a: {model.vit.lora.r: 160, model.vit.lora.alpha: 320, optim.lr: 2.0e-5}}\n"
        f"tiny: {{config: {tmp_path}/base.yaml,"
        " divide: {model.vit.lora.r: 6}}\n"
    )
    (config,) = trial_configs(read_space(space), None, tiny=False, sets=["train.epochs=7"]).values()
    assert (config.model.vit.lora.r, config.model.vit.lora.alpha) == (27, 54)  # 26.7, 2 r
    assert (config.optim.lr, config.train.batch, config.train.epochs) == (2e-5, 8, 7)


def test_whole_numbers_never_fall_to_zero(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{}\n")
    space = tmp_path / "space.yaml"
    space.write_text(
        "name: s\ntrials: {a: {model.vit.lora.r: 2}}\n"
        f"tiny: {{config: {tmp_path}/base.yaml, divide: {{model.vit.lora.r: 6}}}}\n"
    )
    (config,) = trial_configs(read_space(space), None, tiny=False, sets=[]).values()
    assert config.model.vit.lora.r == 1


def test_without_a_base_the_message_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="demo/sweep.yaml: not found; run `make demo` first"):
        trial_configs(read_space(TABLE5), None, tiny=False, sets=[])
    space = tmp_path / "space.yaml"
    space.write_text("name: s\ntrials: {a: {seed: 1}}\n")
    with pytest.raises(ConfigError, match="has no `tiny` part; give --config FILE"):
        trial_configs(read_space(space), None, tiny=False, sets=[])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: s\ntrials: {}\n", "trials"),
        ("trials: {a: {seed: 1}}\n", "name: field required"),
        (
            "name: s\ntrials: {a: {seed: 1}}\nschemes: 3\n",
            "schemes: unknown key, expected one of name, trials, parameters, around, search",
        ),
        (
            "name: s\nparameters: {seed: {choice: []}}\n",
            "seed.choice: expected at least one, got none",
        ),
        (
            "name: s\nparameters: {seed: {choise: [1, 2]}}\n",
            "parameters.seed.choise: unknown key, expected one of choice, grid, uniform",
        ),
        (
            "name: s\nparameters: {model.vit.lora.rank: {choice: [1, 2]}}\n",
            "unknown path model.vit.lora.rank, did you mean model.vit.lora.r\\?",
        ),
        (
            "name: s\nparameters: {seed: {choice: 3}}\n",
            "parameters.seed.choice: expected a valid list, got 3",
        ),
        (
            "name: s\nparameters: {seed: 1, runs: {choice: [a, b]}}\n",
            "runs: is the sweep's own",
        ),
        (
            "name: s\nparameters:\n  seed: {choice: [1]}\n  seed: {choice: [2]}\n",
            "not a readable YAML file: line 4, column 3: seed again$",
        ),
    ],
)
def test_a_malformed_space_is_refused(tmp_path: Path, text: str, message: str) -> None:
    space = tmp_path / "space.yaml"
    space.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_space(space)


def test_every_trial_is_checked_before_any_runs(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("{}\n")
    space = tmp_path / "space.yaml"
    space.write_text("name: s\ntrials: {good: {seed: 1}, bad: {optim.lrr: 1.0}}\n")
    with pytest.raises(ConfigError, match=r"optim\.lrr.*optim\.lr"):
        trial_configs(read_space(space), tmp_path / "base.yaml", tiny=False, sets=[])


def test_tiny_divides_on_a_named_base_too(tmp_path: Path) -> None:
    base = tmp_path / "base.yaml"
    base.write_text("{}\n")
    configs = trial_configs(read_space(TABLE5), base, tiny=True, sets=[])
    assert [c.model.vit.lora.r for c in configs.values()] == [10, 32, 16, 16, 16, 27, 16, 16]
    scale = [c.model.vit.lora.alpha / c.model.vit.lora.r for c in configs.values()]
    assert scale == [2, 1, 2, 2, 2, 2, 2, 2]
    assert {c.model.llm.lora.alpha / c.model.llm.lora.r for c in configs.values()} == {2}


def test_a_space_may_take_the_trials_of_another(tmp_path: Path) -> None:
    space = tmp_path / "space.yaml"
    space.write_text("name: s\ntrials_from: tune/spaces/table5.yaml\ncommon: {seed: 4}\n")
    found = read_space(space)
    assert found.trials == read_space(TABLE5).trials
    (tmp_path / "base.yaml").write_text("{}\n")
    configs = trial_configs(found, tmp_path / "base.yaml", tiny=False, sets=[])
    assert [(c.name, c.seed) for c in configs.values()][7] == ("s-scheme8", 4)


def written(folder: Path, text: str) -> Base:
    (folder / "base.yaml").write_text("train: {batch: 8}\n")
    (folder / "space.yaml").write_text(text)
    return base_of(read_space(folder / "space.yaml"), folder / "base.yaml", tiny=False, sets=[])


def test_one_factor_at_a_time_moves_one_and_leaves_the_centre_out(tmp_path: Path) -> None:
    base = written(
        tmp_path,
        "name: s\naround:\n  centre: {optim.lr: 1.0e-4, model.vit.lora.r: 8}\n"
        "  vary: {optim.lr: [1.0e-4, 2.0e-3], model.vit.lora.r: [4]}\n",
    )
    assert settings_of(base) == {
        "centre": {"optim.lr": 1e-4, "model.vit.lora.r": 8},
        "optim.lr=0.002": {"optim.lr": 2e-3, "model.vit.lora.r": 8},
        "vit.r=4": {"optim.lr": 1e-4, "model.vit.lora.r": 4},
    }
    assert base.config_of("vit.r=4", settings_of(base)["vit.r=4"]).name == "s-vit.r=4"


def test_more_trials_than_allowed_are_counted_seeds_and_all(tmp_path: Path) -> None:
    base = written(
        tmp_path, "name: s\nparameters: {optim.lr: {grid: [1, 2, 3]}, seed: {grid: [1, 2]}}\n"
    )
    assert len(settings_of(base, max_trials=6)) == 6
    with pytest.raises(ConfigError, match="space s: 18 trials, more than --max-trials 6"):
        settings_of(base, seeds=3, max_trials=6)


def test_a_bad_value_names_its_trial(tmp_path: Path) -> None:
    base = written(tmp_path, "name: s\ntrials: {a: {optim.lr: -1}}\n")
    with pytest.raises(ConfigError, match=r"space s, trial a: .*optim\.lr: .*greater than 0"):
        base.config_of("a", settings_of(base)["a"])


@pytest.mark.parametrize("name", ["lora", "optim", "sensitivity", "table5"])
def test_shipped_spaces_are_whole(tmp_path: Path, name: str) -> None:
    (tmp_path / "base.yaml").write_text("{}\n")
    space = read_space(shipped(f"tune/spaces/{name}.yaml"))
    configs = trial_configs(space, tmp_path / "base.yaml", tiny=False, sets=[])
    assert len({config.model_dump_json() for config in configs.values()}) == len(configs)
    scheme3 = (96, 192, 32, 64, 32, 2e-5)
    got = [
        (
            *(c.model.vit.lora.r, c.model.vit.lora.alpha),
            *(c.model.llm.lora.r, c.model.llm.lora.alpha, c.train.batch, c.optim.lr),
        )
        for c in configs.values()
    ]
    if name == "sensitivity":  # each differs from the centre in one factor
        assert got[0] == scheme3
        assert all(sum(a != b for a, b in zip(one, scheme3, strict=True)) == 1 for one in got[1:])
    if name == "lora":  # each factor moves by itself
        ratios = {(one[1] / one[0], one[3] / one[2]) for one in got}
        assert len(ratios) > len(got) / 2
