import math

import pytest
import torch
import torchmetrics.functional.regression as reference
from torch import Tensor

from llm_mde.scoring import metrics
from llm_mde.scoring.metrics import METRICS, Metric, score

LN2 = math.log(2)
ROOT = math.sqrt(0.5)


def pixels(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    gt = torch.rand(5000, generator=generator) * 9 + 0.5
    return gt * torch.exp(0.3 * torch.randn(5000, generator=generator)), gt


# pred 2, 1, 1, 1 m against gt 1, 1, 1, 2 m: ratios 2, 1, 1, 2
HAND = {
    "abs_rel": (1 + 0.5) / 4,
    "sq_rel": (1 + 0.5) / 4,
    "rmse": ROOT,
    "rmse_log": LN2 * ROOT,
    "log10": math.log10(2) / 2,
    "delta1": 0.5,
    "delta2": 0.5,
    "delta3": 0.5,
    "silog": 100 * LN2 * ROOT,
}


def test_names_and_order_are_those_of_the_tables() -> None:
    assert list(METRICS) == list(HAND)


@pytest.mark.parametrize("name", HAND)
def test_metric_matches_hand_value(name: str) -> None:
    pred, gt = torch.tensor([2.0, 1, 1, 1]), torch.tensor([1.0, 1, 1, 2])
    assert METRICS[name](pred, gt).item() == pytest.approx(HAND[name], rel=1e-6)


def test_delta_thresholds_are_powers_of_a_quarter_more() -> None:
    gt = torch.ones(4)
    pred = torch.tensor([1.2, 1 / 1.5, 1.9, 2.0])
    got = [metrics.delta(pred, gt, order).item() for order in (1, 2, 3)]
    assert got == [0.25, 0.5, 0.75]


def test_delta_threshold_itself_is_outside() -> None:
    assert metrics.delta(torch.tensor([1.25]), torch.ones(1), 1).item() == 0


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("abs_rel", reference.mean_absolute_percentage_error),
        ("rmse", lambda p, g: reference.mean_squared_error(p, g, squared=False)),
        ("rmse_log", lambda p, g: reference.mean_squared_error(p.log(), g.log(), squared=False)),
        ("log10", lambda p, g: reference.mean_absolute_error(p.log10(), g.log10())),
    ],
)
def test_metric_agrees_with_torchmetrics(name: str, want: Metric) -> None:
    pred, gt = pixels()
    expected = want(pred.double(), gt.double()).item()
    assert METRICS[name](pred, gt).item() == pytest.approx(expected, rel=1e-6)


def test_perfect_prediction_has_no_error() -> None:
    _, gt = pixels()
    errors = score(gt, gt)
    assert [errors.pop(f"delta{order}") for order in (1, 2, 3)] == [1, 1, 1]
    assert set(errors.values()) == {0.0}


def test_silog_ignores_scale() -> None:
    pred, gt = pixels()
    want = METRICS["silog"](pred, gt).item()
    assert METRICS["silog"](3 * pred, gt).item() == pytest.approx(want, rel=1e-6)


def test_means_are_float64_and_fp32_pixels_cost_less_than_the_printed_digits() -> None:
    pred, gt = pixels()
    single, double = score(pred, gt), score(pred.double(), gt.double())
    assert all(metric(pred, gt).dtype == torch.float64 for metric in METRICS.values())
    assert single == pytest.approx(double, rel=1e-6)
