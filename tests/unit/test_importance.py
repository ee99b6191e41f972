"""Factors of a sweep and what they explain: designs calculated by hand, chance, invariances."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from llm_mde.studies.board import Row
from llm_mde.studies.factors import Factor, design_of, ranges
from llm_mde.studies.importance import (
    Importance,
    Share,
    epsilon_squared,
    eta_squared,
    importance,
    p_value,
)


def row(abs_rel: float, settings: dict[str, object], *, seed: int = 0, trial: str = "") -> Row:
    name = trial or str(sorted(settings.items()))
    return Row(name, seed, Path(name), settings, {"val/abs_rel": abs_rel}, 1.0, 1, None)


def found(rows: Sequence[Row]) -> dict[str, Share]:
    return {share.paths[0]: share for share in importance(rows, design_of(rows)).factors}


def whole(rows: Sequence[Row]) -> Importance:
    return importance(rows, design_of(rows))


def factors(rows: Sequence[Row]) -> dict[str, Factor]:
    return {factor.path: factor for factor in design_of(rows).factors}


def centred(seeds: int = 1) -> list[Row]:
    """One factor at a time around r 8, lr 1e-4, batch 16."""
    centre = {"r": 8, "lr": 1e-4, "batch": 16}
    changes = [
        ({}, 0.2),
        ({"r": 4}, 0.3),
        ({"r": 16}, 0.4),
        ({"lr": 1e-3}, 0.6),
        ({"batch": 8}, 0.2),
    ]
    return [
        row(score + 0.01 * seed, centre | change, seed=seed)
        for change, score in changes
        for seed in range(seeds)
    ]


def noise(seed: int) -> list[Row]:
    rng = random.Random(seed)
    return [
        row(rng.random(), {"a": a, "b": b}, seed=s)
        for a in range(3) for b in range(4) for s in range(3)
    ]  # fmt: skip


def test_shares_of_a_balanced_two_by_two_by_hand() -> None:
    # Means of a: 2 and 6; of b: 3 and 5. All: 4. Total 9 + 1 + 1 + 9 = 20 = 16 (a) + 4 (b).
    rows = [
        row(score, {"a": a, "b": b}) for score, a, b in [(1, 0, 0), (3, 0, 1), (5, 1, 0), (7, 1, 1)]
    ]
    shares = found(rows)
    assert shares["a"].raw == pytest.approx(0.8)
    assert shares["b"].raw == pytest.approx(0.2)
    # Less chance, 1/3: (0.8 - 1/3) / (2/3) = 0.7; b explains less than chance.
    assert shares["a"].corrected == pytest.approx(0.7)
    assert shares["b"].corrected == 0
    # For each b, a's labels lie one way or the other: of the 4 ways 2 give this much.
    assert shares["a"].p == pytest.approx(1 / 2, abs=0.03)


def test_a_pure_interaction_is_nobodys_effect() -> None:
    rows = [
        row(float(a == b), {"a": a, "b": b}, seed=s) for a in (0, 1) for b in (0, 1) for s in (0, 1)
    ]
    made = whole(rows)
    assert [share.raw for share in made.factors] == [0, 0]
    assert made.seed == 0
    assert made.rest == 0
    (pair,) = made.pairs
    assert (pair.paths, pair.raw, pair.corrected) == (("a", "b"), 1, 1)


# Means of cells 1, 1, 5, 9, of a 1 and 7, of b 3 and 5, of all 4. With two runs of each, one above
# and one below, total 96: a 72, b 8, together 8, within cells 8.
CELLS = {(0, 0): 1.0, (0, 1): 1.0, (1, 0): 5.0, (1, 1): 9.0}


def test_an_interaction_is_corrected_for_chance_by_hand() -> None:
    # Under the first seed 0, 2, 4, 10, under the second 2, 0, 6, 8: both have the mean 4.
    rows = [
        row(mean + sign * (1 - 2 * b), {"a": a, "b": b}, seed=int(sign > 0))
        for (a, b), mean in CELLS.items()
        for sign in (-1, 1)
    ]
    made, chance = whole(rows), 8 / 3  # (4 - 1) x (2 - 1) degrees within
    assert found(rows)["a"].raw == pytest.approx(72 / 96)
    assert found(rows)["a"].corrected == pytest.approx((72 - chance) / 96)
    assert found(rows)["b"].raw == pytest.approx(8 / 96)
    (pair,) = made.pairs
    assert pair.raw == pytest.approx(8 / 96)
    assert pair.corrected == pytest.approx((8 - chance) / 96)
    assert made.seed == pytest.approx((8 + 3 * chance) / 96)
    assert made.rest == pytest.approx(0)  # nothing else is there


def test_a_seed_that_moves_all_alike_hides_no_effect_by_hand() -> None:
    rows = [
        row(mean + d, {"a": a, "b": b}, seed=int(d > 0))
        for (a, b), mean in CELLS.items()
        for d in (-1, 1)
    ]
    made, shares = whole(rows), found(rows)
    assert shares["a"].corrected == pytest.approx(72 / 96)
    assert shares["b"].corrected == pytest.approx(8 / 96)
    assert made.pairs[0].corrected == pytest.approx(8 / 96)
    assert (made.seed, made.rest) == (pytest.approx(8 / 96), pytest.approx(0))


def test_of_two_configurations_apart_by_the_same_under_each_seed() -> None:
    # 1, 2 and 1.5, 2.5: total 1.25, of which seeds are 1 and configurations 0.25.
    made = whole([row(1 + a / 2 + s, {"a": a}, seed=s) for a in (0, 1) for s in (0, 1)])
    assert made.factors[0].corrected == pytest.approx(0.2)
    assert (made.seed, made.rest) == (pytest.approx(0.8), pytest.approx(0))


def test_one_factor_explains_all() -> None:
    rows = [
        row(float(a), {"a": a, "b": b}, seed=s)
        for a in range(3)
        for b in range(3)
        for s in range(2)
    ]
    made = whole(rows)
    assert [share.paths[0] for share in made.factors] == ["a", "b"]
    first, second = made.factors
    assert (first.raw, first.corrected) == (pytest.approx(1), pytest.approx(1))
    assert first.p is not None and first.p < 0.001
    assert (second.raw, second.corrected) == (pytest.approx(0), 0)
    assert (made.seed, made.rest) == (pytest.approx(0), pytest.approx(0))


def test_of_noise_alone_factors_explain_about_nothing_and_seeds_all() -> None:
    made = [whole(noise(seed)) for seed in range(20)]
    raw = [share.raw for one in made for share in one.factors]
    corrected = [share.corrected or 0.0 for one in made for share in one.factors]
    assert np.mean(raw) > 0.05  # (k - 1) / (n - 1): 2/35 and 3/35
    assert np.mean(corrected) < 0.03
    assert np.mean([one.seed for one in made]) > 0.9
    chances = [share.p for one in made for share in one.factors if share.p is not None]
    assert 0.3 < np.mean(chances) < 0.7


def test_epsilon_of_noise_is_nothing_on_average_and_of_a_perfect_factor_one() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], 5)
    noisy = [epsilon_squared(rng.normal(size=15), labels) for _ in range(2000)]
    assert np.mean([one for one in noisy if one is not None]) == pytest.approx(0, abs=0.01)
    assert epsilon_squared(labels.astype(float), labels) == pytest.approx(1)
    assert epsilon_squared(np.arange(3.0), np.arange(3)) is None
    assert p_value(np.arange(3.0), np.arange(3)) is None


def test_p_is_that_of_counting_permutations() -> None:
    # Two groups of three; of the 20 ways to split, this one and its mirror are the extremes.
    scores, labels = np.array([1.0, 2, 3, 7, 8, 9]), np.array([0, 0, 0, 1, 1, 1])
    assert p_value(scores, labels) == pytest.approx(0.1, abs=0.02)
    assert p_value(scores, labels, seed=3) == p_value(scores, labels, seed=3)
    assert p_value(np.ones(6), labels) == 1


def test_a_strong_factor_does_not_hide_a_weak_one_of_the_same_grid() -> None:
    rows = [
        row(10.0 * a + b + 0.1 * seed, {"a": a, "b": b}, seed=seed)
        for a in range(3) for b in range(2) for seed in range(3)
    ]  # fmt: skip
    weak = found(rows)["b"]
    assert weak.raw < 0.01
    assert weak.p is not None and weak.p < 0.01  # at any a, 2 of the 20 ways are this extreme
    scores = np.array([one.scores["val/abs_rel"] for one in rows])
    free = p_value(scores, np.array([one.settings["b"] for one in rows]))
    assert free is not None and free > 0.5


def test_labels_stay_in_their_strata() -> None:
    scores, labels = np.array([0.0, 1, 10, 11]), np.array([0, 1, 0, 1])
    # Each stratum of two lies one way or the other: 2 of 4 ways give this much.
    assert p_value(scores, labels, strata=np.array([5, 5, 2, 2])) == pytest.approx(0.5, abs=0.03)
    assert p_value(scores, labels, strata=np.array([0, 1, 2, 3])) == 1


def test_eta_does_not_depend_on_scale_shift_or_order() -> None:
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=12), np.tile([0, 1, 2], 4)
    at = rng.permutation(12)
    base = eta_squared(scores, labels)
    assert eta_squared(5 - 3 * scores, labels) == pytest.approx(base)
    assert eta_squared(scores[at], labels[at]) == pytest.approx(base)
    assert eta_squared(scores, np.array([7, 2, 4])[labels]) == pytest.approx(base)


def test_row_order_and_names_of_levels_do_not_matter() -> None:
    rows = noise(5)
    names = ["x", "m", "z"]
    renamed = [
        replace(one, settings={**one.settings, "a": names[one.settings["a"]]}) for one in rows
    ]
    backwards = whole(rows[::-1])
    for share, other in zip(whole(rows).factors, backwards.factors, strict=True):
        assert (other.paths, other.raw) == (share.paths, pytest.approx(share.raw))
        assert other.p == pytest.approx(share.p, abs=0.03)
    assert found(renamed)["a"].raw == pytest.approx(found(rows)["a"].raw)


def test_around_a_centre_each_factor_is_compared_alone() -> None:
    design = design_of(centred())
    assert design.kind == "one at a time"
    assert design.centre is not None and design.centre.settings == {"r": 8, "lr": 1e-4, "batch": 16}
    of = {factor.path: design.rows_of([factor], centred()) for factor in design.factors}
    assert sorted(one.scores["val/abs_rel"] for one in of["r"]) == [0.2, 0.3, 0.4]
    assert sorted(one.scores["val/abs_rel"] for one in of["lr"]) == [0.2, 0.6]
    shares = found(centred())
    # r: 0.2, 0.3, 0.4 around 0.3: 0.02; lr: 0.2, 0.6 around 0.4: 0.08; batch: nothing.
    assert shares["r"].raw == pytest.approx(0.2)
    assert shares["lr"].raw == pytest.approx(0.8)
    assert shares["batch"].raw == pytest.approx(0)
    assert shares["r"].corrected is None and shares["r"].p is None  # one run of each


def test_around_a_centre_seeds_say_what_is_chance() -> None:
    made = whole(centred(seeds=3))
    shares = {share.paths[0]: share.corrected or 0.0 for share in made.factors}
    assert [share.paths[0] for share in made.factors] == ["lr", "r", "batch"]
    assert made.seed is not None and 0 < made.seed < 0.02
    assert sum(shares.values()) + made.seed == pytest.approx(1)


def test_a_full_grid_is_no_design_around_a_centre() -> None:
    rows = [row(0.1, {"a": a, "b": b}) for a in (0, 1) for b in (0, 1)]
    assert design_of(rows).kind == "grid"
    assert design_of(rows[:3]).kind == "one at a time"
    three = [row(0.1, {"a": a, "b": b}) for a, b in [(0, 0), (1, 1), (1, 2), (2, 0), (2, 1)]]
    assert design_of(three).kind == "scattered"
    assert design_of([row(0.1, {"a": n}) for n in range(3)]).kind == "grid"


@pytest.mark.parametrize("values", [[4, 8, 16], [2, 3, 5, 7, 11, 13, 17]])
def test_alpha_that_is_always_twice_the_rank_is_no_factor(values: list[int]) -> None:
    rows = [row(r / 10, {"vit.r": r, "vit.alpha": 2.0 * r}) for r in values]
    assert factors(rows).keys() == {"vit.r"}
    assert factors(rows)["vit.r"].tied == {"vit.alpha": "is always 2 times"}


def test_schemes_with_alpha_set_by_the_rank_are_one_factor_at_a_time() -> None:
    # Table V: scheme 2 has the rank of nobody else, so alpha never moves while the rank stands.
    ranks = [(60, 120, 32), (192, 192, 32), (96, 192, 32), (160, 320, 32), (96, 192, 16)]
    rows = [
        row(0.1, {"vit.r": r, "vit.alpha": alpha, "llm.r": llm, "llm.alpha": 2 * llm})
        for r, alpha, llm in ranks
    ]
    assert {path: dict(factor.tied) for path, factor in factors(rows).items()} == {
        "vit.r": {"vit.alpha": "changes only with"},
        "llm.r": {"llm.alpha": "is always 2 times"},
    }
    assert design_of(rows).kind == "one at a time"


def test_a_random_draw_ties_nothing_by_having_numbers_of_its_own() -> None:
    rng = random.Random(0)
    rows = [
        row(rng.random(), {"lr": 10 ** rng.uniform(-5, -3), "batch": rng.choice([8, 16])})
        for _ in range(30)
    ]
    assert {path: dict(factor.tied) for path, factor in factors(rows).items()} == {
        "batch": {},
        "lr": {},
    }
    lr = factors(rows)["lr"]
    assert lr.continuous and not factors(rows)["batch"].continuous
    sizes = np.bincount([lr.level(one) for one in rows])
    assert sizes.tolist() == [6] * 5
    assert len(ranges(lr)) == 5
    powers = [
        replace(one, settings=one.settings | {"decay": one.settings["lr"] ** 2}) for one in rows
    ]
    assert factors(powers).keys() == {"batch", "lr"}


def test_seeds_of_few_random_configurations_do_not_make_a_factor_certain() -> None:
    # b has no effect, but six configurations differ for other reasons, and each has many seeds.
    level = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    rows = [
        row(level[n] + 1e-3 * seed, {"b": n // 3, "lr": 10.0**-n}, seed=seed)
        for n in range(6)
        for seed in range(10)
    ]
    design = design_of(rows)
    assert design.kind == "scattered"
    share = {one.paths[0]: one for one in importance(rows, design).factors}["b"]
    assert share.p == pytest.approx(0.1, abs=0.02)  # 2 of 20 ways to split six configurations


def test_unequal_seeds_and_failed_rows_are_no_obstacle() -> None:
    rows = centred(seeds=3)
    broken = replace(rows[0], scores={}, error="out of memory")
    odd = replace(rows[4], scores={"val/abs_rel": float("nan")})
    made = whole([broken, *rows[1:4], odd, *rows[5:]])
    assert [share.paths[0] for share in made.factors] == ["lr", "r", "batch"]
    assert made.seed is not None


def test_nothing_to_compare_is_no_importance() -> None:
    assert whole([]) == Importance((), None)
    assert whole([row(0.1, {"a": 1})]).factors == ()
    assert whole([row(0.1, {"a": 1}, seed=s) for s in range(3)]).factors == ()
    failed = replace(row(0.1, {"a": 1}), error="broken")
    assert design_of([failed]).factors == ()


def test_equal_scores_are_nobodys_merit() -> None:
    rows = [row(0.1, {"a": a, "b": b}, seed=s) for a in (0, 1) for b in (0, 1) for s in (0, 1, 2)]
    made = whole(rows)
    assert [(share.raw, share.corrected, share.p) for share in made.factors] == [(0, 0, 1)] * 2
    assert made.seed == 0


def test_values_of_any_kind_are_levels() -> None:
    kinds = [[256, 128], [64, 32]], [True, False], ["lora", "frozen"], [None, 3]
    for low, high in kinds:
        rows = [row(0.1, {"x": low}, trial="a"), row(0.2, {"x": high}, trial="b")]
        assert len(factors(rows)["x"].values) == 2
    left = [row(0.1, {}, trial="a"), row(0.2, {"x": 3}, trial="b")]
    assert factors(left)["x"].values == ("", 3)


def test_a_swept_seed_is_a_seed() -> None:
    rows = [
        row(0.1 * n, {"seed": n, "r": r}, seed=n, trial=f"r{r}") for n in range(3) for r in (2, 4)
    ]
    assert factors(rows).keys() == {"r"}
