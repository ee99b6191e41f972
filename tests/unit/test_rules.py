"""Values of a search space: drawn, combined, derived."""

import math
from collections import Counter

import pytest
from pydantic import ValidationError

from llm_mde.errors import ConfigError
from llm_mde.studies.rules import Rule, all_of, check_paths, key, settled, size, some_of

R, ALPHA, LR = "model.vit.lora.r", "model.vit.lora.alpha", "optim.lr"
BASE = {R: 96, ALPHA: 192, LR: 2e-5, "model.vit.tune": "lora", "train.batch": 32}


def rules(**given: object) -> dict[str, Rule]:
    return {path.replace("__", "."): Rule.model_validate(rule) for path, rule in given.items()}


def test_a_grid_is_every_combination_in_order() -> None:
    space = {R: Rule(grid=[8, 16]), LR: Rule(choice=[1e-4, 1e-3]), "seed": Rule(value=7)}
    assert size(space, everything=True) == 4
    assert all_of(space, BASE, "s") == [
        {R: r, LR: lr, "seed": 7} for r, lr in ((8, 1e-4), (8, 1e-3), (16, 1e-4), (16, 1e-3))
    ]


def test_an_alpha_follows_its_rank_and_stays_whole() -> None:
    space = {ALPHA: Rule(times=R, by=2), R: Rule(grid=[8, 16])}
    assert [one[ALPHA] for one in all_of(space, BASE, "s")] == [16, 32]
    assert all(isinstance(one[ALPHA], int) for one in all_of(space, BASE, "s"))
    half = {R: Rule(times="train.batch", by=0.5)}  # a path of the base
    assert settled(half, lambda path, rule: rule.value, BASE) == {R: 16.0}


def test_a_reference_may_refer_to_a_reference() -> None:
    space = {LR: Rule(times=ALPHA, by=0.5), ALPHA: Rule(times=R, by=2), R: Rule(grid=[8])}
    assert all_of(space, BASE, "s") == [{LR: 8.0, ALPHA: 16, R: 8}]


def test_a_condition_leaves_a_path_out_and_no_trial_twice() -> None:
    space = {
        "model.vit.tune": Rule(grid=["lora", "frozen"]),
        R: Rule(grid=[8, 16], when={"model.vit.tune": "lora"}),
    }
    assert all_of(space, BASE, "s") == [
        {"model.vit.tune": "lora", R: 8},
        {"model.vit.tune": "lora", R: 16},
        {"model.vit.tune": "frozen"},
    ]


def test_a_reference_to_a_path_that_is_left_out_has_the_base_s_value() -> None:
    space = {R: Rule(value=8, when={"model.vit.tune": "full"}), ALPHA: Rule(times=R, by=2)}
    assert settled(space, lambda path, rule: rule.value, BASE) == {ALPHA: 192}


def test_draws_keep_to_their_ranges_and_laws() -> None:
    space = {
        LR: Rule(loguniform=(1e-6, 1e-2)),
        "optim.clip": Rule(uniform=(0.5, 1.5)),
        R: Rule(randint=(1, 4)),
    }
    drawn = some_of(space, BASE, samples=2000, seed=0)
    assert all(1e-6 <= one[LR] <= 1e-2 and 0.5 <= one["optim.clip"] <= 1.5 for one in drawn)
    decades = Counter(math.floor(math.log10(one[LR]) + 1e-9) for one in drawn)
    assert all(400 < decades[decade] < 600 for decade in (-6, -5, -4, -3))
    assert set(Counter(one[R] for one in drawn)) == {1, 2, 3, 4}  # both ends
    mean = sum(one["optim.clip"] for one in drawn) / 2000
    assert abs(mean - 1) < 4 * math.sqrt(1 / 12 / 2000)


def test_more_samples_begin_with_the_same_ones_and_seeds_differ() -> None:
    space = {LR: Rule(loguniform=(1e-6, 1e-2)), "train.batch": Rule(grid=[16, 32])}
    few, many = (some_of(space, BASE, samples=number, seed=3) for number in (2, 5))
    assert (len(few), len(many)) == (4, 10) and many[:4] == few
    assert Counter(one["train.batch"] for one in few) == {16: 2, 32: 2}
    assert some_of(space, BASE, samples=2, seed=4) != few


def test_a_space_that_is_used_up_gives_each_trial_once() -> None:
    space = {R: Rule(choice=[8, 16, 32]), "model.prompt": Rule(choice=["apg", "none"])}
    drawn = some_of(space, BASE, samples=50, seed=0)
    assert len(drawn) == len({key(one) for one in drawn}) == 6


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"choice": []}, "choice"),
        ({"choice": [1], "grid": [2]}, "expected one of choice, grid"),
        ({"when": {"seed": 1}}, "expected one of choice"),
        ({"uniform": [2, 1]}, "smaller end first"),
        ({"randint": [3, 3]}, "smaller end first"),
        ({"loguniform": [0, 1]}, "above 0"),
        ({"choice": [1], "by": 2}, "by: expected beside times"),
        ({"chioce": [1]}, "chioce"),
    ],
)
def test_a_malformed_rule_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Rule.model_validate(given)


def test_a_plain_value_stands_for_itself_and_lists_are_values() -> None:
    space = rules(seed=3, model__head__widths=[8, 8, 8, 8], data__disk_cache=None)
    assert all_of(space, BASE, "s") == [
        {"seed": 3, "model.head.widths": [8, 8, 8, 8], "data.disk_cache": None}
    ]


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"optim.lrr": Rule(value=1)}, r"space: unknown path optim\.lrr, did you mean optim\.lr\?"),
        ({ALPHA: Rule(times="model.vit.lora.rank")}, r"model\.vit\.lora\.rank, did you mean"),
        ({R: Rule(value=1, when={"model.vit.tun": "x"})}, r"did you mean model\.vit\.tune"),
        (
            {LR: Rule(choice=[1, 2]), R: Rule(value=1, when={LR: 3})},
            r"model\.vit\.lora\.r: when optim\.lr is 3, which is none of its values: 1, 2",
        ),
        ({R: Rule(times=ALPHA), ALPHA: Rule(times=R)}, "is a circle"),
        ({R: Rule(value=1, when={LR: 1}), LR: Rule(value=1, when={R: 1})}, "is a circle"),
    ],
)
def test_unknown_paths_and_circles_are_named(space: dict[str, Rule], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_paths(space, "space")


def test_a_grid_search_over_a_range_says_what_to_do() -> None:
    with pytest.raises(ConfigError, match=r"s: optim\.lr: .*got a range; list them, or draw"):
        all_of({LR: Rule(uniform=(0, 1))}, BASE, "s")


def test_a_multiple_of_what_is_no_number_is_refused() -> None:
    base = BASE | {"train.max_steps": None}
    with pytest.raises(ConfigError, match="optim.warmup: times train.max_steps: .*got None"):
        all_of({"optim.warmup": Rule(times="train.max_steps", by=0.1)}, base, "s")
