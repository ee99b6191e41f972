"""Suggestions by Optuna, without Ray's side: names, what it goes on from, what it learns."""

import math

import pytest

from llm_mde.errors import ConfigError
from llm_mde.studies.bayes import Bayes
from llm_mde.studies.programs import SCORE
from llm_mde.studies.records import Record
from llm_mde.studies.rules import Rule
from llm_mde.studies.trials import END, ERROR

LR, PROMPT, R, ALPHA = "optim.lr", "model.prompt", "model.vit.lora.r", "model.vit.lora.alpha"
RULES = {
    LR: Rule(loguniform=(1e-6, 1e-1)),
    PROMPT: Rule(choice=["apg", "none"]),
    R: Rule(randint=(1, 64)),
    ALPHA: Rule(times=R, by=2),
}


def bayes(*records: Record, check=lambda name, settings: None) -> Bayes:
    return Bayes(RULES, {}, records, seed=0, check=check)


def loss(settings: dict) -> float:
    """Least at a rate of 1e-3, better without a prompt."""
    return abs(math.log10(settings[LR]) + 3) + (settings[PROMPT] == "apg")


def play(searcher: Bayes, number: int) -> list[dict]:
    found = []
    for at in range(number):
        trial = searcher.suggest(f"ray{at}")["trial"]
        found.append(trial)
        searcher.on_trial_result(f"ray{at}", {SCORE: 1 + loss(trial["settings"])})
        searcher.on_trial_complete(f"ray{at}", {SCORE: loss(trial["settings"]), END: True})
    return found


def test_suggestions_obey_the_rules_and_have_names_in_order() -> None:
    found = play(bayes(), 12)
    assert [one["name"] for one in found] == [f"t{n:03d}" for n in range(12)]
    for one in found:
        settings = one["settings"]
        assert 1e-6 <= settings[LR] <= 1e-1 and settings[PROMPT] in ("apg", "none")
        assert settings[ALPHA] == 2 * settings[R] and isinstance(settings[R], int)


def test_it_learns_where_to_look() -> None:
    found = play(bayes(), 60)
    late = [loss(one["settings"]) for one in found[40:]]
    # By chance alone: 1.3 decades (2 and 3 lie to either side), and every other pays 1 more.
    assert sum(late) / len(late) < 1.8 / 2


def test_it_goes_on_from_records_unfinished_ones_first() -> None:
    settings = {LR: 1e-3, PROMPT: "none", R: 4, ALPHA: 8}
    done = [
        Record(f"t{n:03d}", settings | {LR: 10.0 ** -(n + 1)}, "done", score=abs(n - 2.0))
        for n in range(5)
    ]
    lost, cut = Record("t005", settings, "failed"), Record("t006", settings | {R: 9, ALPHA: 18})
    searcher = bayes(*done, lost, cut)
    assert searcher.suggest("a") == {"trial": {"name": "t005", "settings": lost.settings}}
    assert searcher.suggest("b") == {"trial": {"name": "t006", "settings": cut.settings}}
    assert searcher.suggest("c")["trial"]["name"] == "t007"
    assert len(searcher._study.trials) == 5 + 3
    assert searcher._study.best_value == 0.0 and searcher._study.best_params[LR] == 1e-3


def test_a_failed_trial_teaches_nothing_and_breaks_nothing() -> None:
    searcher = bayes()
    for at in range(3):
        searcher.suggest(f"{at}")
    searcher.on_trial_complete("0", {SCORE: 0.1, ERROR: "no luck", END: True})
    searcher.on_trial_complete("1", None, error=True)
    searcher.on_trial_complete("2", {SCORE: 0.5, END: True})
    assert searcher._study.best_value == 0.5
    assert searcher.suggest("3") is not None


def test_settings_that_are_no_configuration_are_not_suggested() -> None:
    def check(name: str, settings: dict) -> None:
        if settings[R] > 8:
            raise ConfigError("too large")

    found = play(bayes(check=check), 5)
    assert all(one["settings"][R] <= 8 for one in found)

    def never(name: str, settings: dict) -> None:
        raise ConfigError("seed: expected something else")

    with pytest.raises(ConfigError, match="expected something else"):
        bayes(check=never).suggest("0")
