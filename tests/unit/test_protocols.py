import math

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from llm_mde.scoring import protocols
from llm_mde.scoring.metrics import METRICS, score
from llm_mde.scoring.protocols import PROTOCOLS, score_image, scored_pixels

FREE_OF_SCALE = ("aligned_median", "aligned_affine", "paper")


def scene(seed: int = 0, size: tuple[int, int] = (12, 16)) -> tuple[Tensor, Tensor, Tensor]:
    """Prediction, depth, valid; so far from the clamps that no alignment touches them."""
    generator = torch.Generator().manual_seed(seed)
    depth = torch.rand(size, generator=generator) * 3 + 2
    pred = depth * (1 + 0.1 * torch.randn(size, generator=generator))
    return pred, depth, torch.rand(size, generator=generator) > 0.2


def scores(*args: Tensor, max_depth: float = 10.0) -> dict[str, dict[str, float]]:
    result = score_image(*args, max_depth=max_depth)
    assert result is not None
    return result


def test_every_protocol_gives_every_metric() -> None:
    result = scores(*scene())
    assert list(result) == ["metric", "aligned_median", "aligned_affine", "paper"]
    assert all(list(row) == list(METRICS) for row in result.values())


def test_metric_protocol_is_the_metrics_of_the_valid_pixels() -> None:
    pred, depth, valid = scene()
    assert scores(pred, depth, valid)["metric"] == score(pred[valid], depth[valid])


def test_hand_made_image_under_each_protocol() -> None:
    depth = torch.tensor([[1.0, 2.0, 3.0]])
    pred = torch.tensor([[3.0, 5.0, 7.0]])  # 2 depth + 1
    result = scores(pred, depth, torch.ones(1, 3, dtype=torch.bool))
    assert result["metric"]["abs_rel"] == pytest.approx((2 + 3 / 2 + 4 / 3) / 3)
    # ratio 2 / 5: 1.2, 2, 2.8
    assert result["aligned_median"]["abs_rel"] == pytest.approx((0.2 + 0 + 0.2 / 3) / 3, rel=1e-5)
    assert result["aligned_affine"]["abs_rel"] == pytest.approx(0, abs=1e-6)
    assert result["paper"]["abs_rel"] == pytest.approx(0, abs=1e-6)


def test_paper_protocol_clamps_the_lowest_pixel_to_a_thousandth() -> None:
    depth = torch.tensor([[1.0, 2.0, 3.0]])  # 1e-3, 0.5, 1
    pred = torch.tensor([[2.0, 2.0, 4.0]])  # 1e-3, 1e-3, 1
    row = scores(pred, depth, torch.ones(1, 3, dtype=torch.bool))["paper"]
    assert row["abs_rel"] == pytest.approx(0.499 / 0.5 / 3, rel=1e-5)
    assert row["rmse"] == pytest.approx(0.499 / math.sqrt(3), rel=1e-5)


@pytest.mark.parametrize("protocol", FREE_OF_SCALE)
@pytest.mark.parametrize("scale", [0.5, 3.0, 100.0])
def test_aligned_and_paper_ignore_scale(protocol: str, scale: float) -> None:
    pred, depth, valid = scene()
    want = scores(pred, depth, valid)[protocol]
    assert scores(scale * pred, depth, valid)[protocol] == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("protocol", ["aligned_affine", "paper"])
def test_affine_and_paper_ignore_scale_and_shift(protocol: str) -> None:
    pred, depth, valid = scene()
    want = scores(pred, depth, valid)[protocol]
    assert scores(0.5 * pred + 4, depth, valid)[protocol] == pytest.approx(want, rel=1e-4)


def test_metric_protocol_sees_scale() -> None:
    pred, depth, valid = scene()
    assert scores(2 * pred, depth, valid)["metric"]["abs_rel"] > 0.9


def test_affine_fit_agrees_with_scipy() -> None:
    pred, depth, valid = scene()
    p, g = pred[valid], depth[valid]
    fit = scipy.stats.linregress(p.double().numpy(), g.double().numpy())
    aligned, _ = protocols.aligned_affine(p, g, 10.0)
    want = torch.from_numpy(fit.slope * p.double().numpy() + fit.intercept).float()
    torch.testing.assert_close(aligned, want)


def test_median_ratio_agrees_with_numpy() -> None:
    pred, depth, _ = scene(size=(3, 5))  # an odd count: one median by any definition
    p, g = pred.flatten(), depth.flatten()
    aligned, _ = protocols.aligned_median(p, g, 10.0)
    want = p.numpy() * (np.median(g.numpy()) / np.median(p.numpy()))
    torch.testing.assert_close(aligned, torch.from_numpy(want))


def test_flat_prediction_is_fitted_by_the_mean_of_the_truth() -> None:
    _, depth, valid = scene()
    aligned, gt = protocols.aligned_affine(torch.full((7,), 3.3), depth.flatten()[:7], 10.0)
    torch.testing.assert_close(aligned, gt.mean().expand(7))
    result = scores(torch.full((2, 2), 3.3), depth, valid)
    assert all(math.isfinite(value) for row in result.values() for value in row.values())


@pytest.mark.parametrize("pred", [0.0, 1e-30, 5.0])
def test_one_pixel_is_enough(pred: float) -> None:
    depth = torch.tensor([[2.0]])
    result = scores(torch.tensor([[pred]]), depth, depth > 0)
    assert all(math.isfinite(value) for row in result.values() for value in row.values())


def test_prediction_is_clamped_to_the_range_of_depths() -> None:
    depth = torch.full((1, 2), 5.0)
    row = scores(torch.tensor([[1e-9, 1e9]]), depth, depth > 0)["metric"]
    assert row["abs_rel"] == pytest.approx((4.999 + 5) / 5 / 2)
    row = scores(torch.tensor([[1e-9, 1e9]]), depth, depth > 0, max_depth=80.0)["metric"]
    assert row["abs_rel"] == pytest.approx((4.999 + 75) / 5 / 2)


@pytest.mark.parametrize(("truth", "counts"), [(1e-3, 0), (0.002, 1), (9.999, 1), (10.0, 0)])
def test_both_ends_of_the_range_are_open(truth: float, counts: int) -> None:
    depth = torch.tensor([[truth]])
    assert len(scored_pixels(depth, depth > 0, max_depth=10.0)) == counts


@pytest.mark.parametrize("junk", [0.0, -5.0, math.nan, math.inf, 3.0])
def test_invalid_pixels_cannot_matter(junk: float) -> None:
    pred, depth, valid = scene()
    want = scores(pred, depth, valid)
    dirty = torch.where(valid, pred, junk), torch.where(valid, depth, junk)
    assert scores(*dirty, valid) == want


def test_image_without_a_pixel_that_counts_has_no_scores() -> None:
    pred, depth, valid = scene()
    assert score_image(pred, depth, torch.zeros_like(valid)) is None
    assert score_image(pred, torch.full_like(depth, 20.0), valid) is None


def test_eigen_crop_is_used_at_480x640_only() -> None:
    inside = torch.zeros(480, 640, dtype=torch.bool)
    inside[45:471, 41:601] = True
    everything = torch.ones(480, 640, dtype=torch.bool)
    kept = scored_pixels(torch.ones(480, 640), everything, max_depth=10.0)
    assert torch.equal(kept, inside.flatten().nonzero().squeeze(1))
    assert protocols.is_cropped((480, 640))
    other = scored_pixels(torch.ones(481, 640), torch.ones(481, 640) > 0, max_depth=10.0)
    assert len(other) == 481 * 640
    assert not protocols.is_cropped((481, 640))


def test_pixels_outside_the_crop_cannot_matter() -> None:
    depth = torch.full((480, 640), 2.0)
    pred = torch.full((480, 640), 1e6)
    pred[45:471, 41:601] = 3.0
    assert scores(pred, depth, depth > 0)["metric"]["abs_rel"] == pytest.approx(0.5)


def test_prediction_is_brought_to_the_truth_with_corners_not_aligned() -> None:
    depth = torch.full((1, 4), 1.0)
    pred = torch.tensor([[1.0, 2.0]])  # at four columns: 1, 1.25, 1.75, 2
    row = scores(pred, depth, depth > 0)["metric"]
    assert row["abs_rel"] == pytest.approx((0 + 0.25 + 0.75 + 1) / 4)


def test_protocols_leave_their_input_alone() -> None:
    pred, depth, valid = scene()
    before = pred.clone(), depth.clone(), valid.clone()
    scores(pred, depth, valid)
    assert all(torch.equal(a, b) for a, b in zip(before, (pred, depth, valid), strict=True))
    assert list(PROTOCOLS) == ["metric", *FREE_OF_SCALE]
