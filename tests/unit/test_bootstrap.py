"""Bootstrap intervals against scipy, by hand, and by how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from llm_mde.scoring import bootstrap
from llm_mde.scoring.bootstrap import Interval, intervals


def skewed(images: int, *, seed: int = 0) -> np.ndarray:
    """Two runs' errors of the same images: the second's follow the first's."""
    rng = np.random.default_rng(seed)
    first = rng.lognormal(-1.5, 0.6, images)
    return np.stack([first, first * rng.normal(1.05, 0.1, images)], axis=1)


def test_a_constant_difference_has_an_interval_of_no_width() -> None:
    first = np.arange(7.0)
    assert intervals((first + 0.25 - first)[:, None]) == [Interval(0.25, 0.25, 0.25)]


def test_one_image_says_nothing_about_others() -> None:
    assert intervals(np.array([[0.1, -3.0]])) == [Interval(0.1, 0.1, 0.1), Interval(-3, -3, -3)]


def test_two_images_by_hand() -> None:
    """Of four equally likely resamples one has the mean 0, two 0.5, one 1."""
    column = np.array([[0.0], [1.0]])
    for level, low, high in ((0.95, 0.0, 1.0), (0.6, 0.0, 1.0), (0.4, 0.5, 0.5)):
        assert intervals(column, level=level) == [Interval(0.5, low, high)]


@pytest.mark.parametrize("drawn", [bootstrap.DRAWN, 700])
def test_same_draws_as_scipy_give_the_same_intervals(
    drawn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "DRAWN", drawn)  # in one piece, and in many
    scores = skewed(23)
    columns = np.column_stack([scores, scores[:, 1] - scores[:, 0]])
    got = intervals(columns, resamples=2000, level=0.9, seed=5)
    for column, interval in zip(columns.T, got, strict=True):
        found = stats.bootstrap(
            (column,),
            np.mean,
            n_resamples=2000,
            confidence_level=0.9,
            method="percentile",
            rng=np.random.default_rng(5),
        ).confidence_interval
        assert interval == pytest.approx((column.mean(), found.low, found.high), rel=1e-12)


def test_a_paired_difference_is_far_narrower_than_the_two_means() -> None:
    scores = skewed(60)
    first, second, paired = intervals(np.column_stack([scores, scores[:, 1] - scores[:, 0]]))
    assert paired.mean == pytest.approx(second.mean - first.mean, rel=1e-9)
    width = paired.high - paired.low
    assert width < 0.3 * (first.high - first.low)
    assert paired.excludes_zero and not Interval(0.0, -0.1, 0.1).excludes_zero


def test_columns_are_drawn_together_and_a_seed_repeats_them() -> None:
    scores = skewed(30)
    alone = [intervals(scores[:, [at]])[0] for at in range(2)]
    assert np.array(intervals(scores)) == pytest.approx(np.array(alone), rel=1e-12)
    assert intervals(scores) != intervals(scores, seed=1)


def test_intervals_hold_the_true_mean_as_often_as_they_say() -> None:
    """Of 400 draws of 80 images; a share of 400 has a standard error of 0.011."""
    rng = np.random.default_rng(0)
    columns = rng.normal(0.02, 0.05, (400, 80))
    held = [
        low <= 0.02 <= high
        for column in columns
        for _, low, high in intervals(column[:, None], resamples=1000)
    ]
    assert np.mean(held) == pytest.approx(0.94, abs=0.033)  # percentiles are a little narrow
