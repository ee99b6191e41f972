import math

import pytest
import torch
from torch import Tensor

from llm_mde.scoring.losses import LOSSES, silog, ssi

LN2 = math.log(2)


def maps(*images: list[float]) -> Tensor:
    return torch.tensor(images)[:, None, None, :]  # (B, 1, 1, P)


def all_valid(depth: Tensor) -> Tensor:
    return torch.ones_like(depth, dtype=torch.bool)


def random_images(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    log_depth = torch.randn(4, 1, 6, 8, generator=generator)
    depth = torch.rand(4, 1, 6, 8, generator=generator) * 9 + 0.5
    return log_depth, depth, torch.rand(4, 1, 6, 8, generator=generator) > 0.3


def test_silog_matches_hand_value() -> None:
    pred, depth = maps([1, 2, 4]), maps([1, 1, 1])  # d = 0, ln2, 2 ln2
    want = 10 * math.sqrt(5 / 3 * LN2**2 - 0.85 * LN2**2)
    got = silog(pred.log(), depth, all_valid(depth))
    torch.testing.assert_close(got, torch.tensor(want))


def test_ssi_matches_hand_value() -> None:
    pred, depth = maps([1, 2, 4]), maps([1, 1, 1])  # variance of 0, ln2, 2 ln2
    got = ssi(pred.log(), depth, all_valid(depth))
    torch.testing.assert_close(got, torch.tensor(2 / 3 * LN2**2))


def test_images_count_alike_however_many_pixels_they_have() -> None:
    log_depth, depth = maps([1, 2, 4], [1, 1, 3]).log(), maps([1, 1, 1], [1, 1, 1])
    valid = torch.tensor([[True, True, True], [True, True, False]])[:, None, None]
    first = silog(log_depth[:1], depth[:1], valid[:1])
    torch.testing.assert_close(silog(log_depth, depth, valid), first / 2)  # the second is perfect


@pytest.mark.parametrize("scale", [0.01, 0.5, 3.0, 1000.0])
@pytest.mark.parametrize("loss", ["ssi", "silog at full variance focus"])
def test_scale_is_free(loss: str, scale: float) -> None:
    log_depth, depth, valid = random_images()

    def value(log_pred: Tensor) -> Tensor:
        return ssi(log_pred, depth, valid) if loss == "ssi" else silog(log_pred, depth, valid, 1.0)

    torch.testing.assert_close(value(log_depth + math.log(scale)), value(log_depth))


def test_silog_sees_scale() -> None:
    depth = maps([1, 2, 4])
    got = silog((2 * depth).log(), depth, all_valid(depth))  # d = ln2 everywhere
    torch.testing.assert_close(got, torch.tensor(10 * math.sqrt(0.15) * LN2))


@pytest.mark.parametrize("junk", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_invalid_pixels_cannot_matter(name: str, junk: float) -> None:
    log_depth, depth, valid = random_images()
    clean = log_depth.clone().requires_grad_()
    dirty = torch.where(valid, log_depth, junk).requires_grad_()
    want = LOSSES[name](clean, torch.where(valid, depth, 1.0), valid)
    got = LOSSES[name](dirty, torch.where(valid, depth, junk), valid)
    want.backward()
    got.backward()
    assert got.item() == want.item()
    assert clean.grad is not None
    torch.testing.assert_close(dirty.grad, clean.grad, rtol=0, atol=0)
    assert not clean.grad[~valid].any()


@pytest.mark.parametrize("name", LOSSES)
def test_image_without_a_valid_pixel_contributes_nothing(name: str) -> None:
    log_depth, depth, valid = random_images()
    valid[2] = False
    others = [0, 1, 3]
    got = LOSSES[name](log_depth, depth, valid)
    want = LOSSES[name](log_depth[others], depth[others], valid[others])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("name", LOSSES)
def test_batch_without_a_valid_pixel_gives_zero_and_zero_gradients(name: str) -> None:
    log_depth = torch.zeros(2, 1, 3, 3, requires_grad=True)
    depth = torch.zeros(2, 1, 3, 3)
    loss = LOSSES[name](log_depth, depth, depth > 0)
    loss.backward()
    assert loss.item() == 0
    assert log_depth.grad is not None
    assert not log_depth.grad.any()


@pytest.mark.parametrize("name", LOSSES)
def test_perfect_prediction_has_zero_loss_and_a_finite_gradient(name: str) -> None:
    depth = maps([1, 2, 4], [3, 3, 3])
    log_depth = depth.log().requires_grad_()
    loss = LOSSES[name](log_depth, depth, all_valid(depth))
    loss.backward()
    assert loss.item() == 0
    assert log_depth.grad is not None
    assert log_depth.grad.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradient_matches_finite_differences(name: str) -> None:
    log_depth, depth, valid = random_images()
    log_depth.requires_grad_()
    LOSSES[name](log_depth, depth, valid).backward()
    assert log_depth.grad is not None
    direction = torch.randn(log_depth.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        above, below = (
            LOSSES[name](log_depth + step * direction, depth, valid) for step in (1e-2, -1e-2)
        )
    want = (above - below) / 2e-2
    torch.testing.assert_close((log_depth.grad * direction).sum(), want, rtol=1e-2, atol=1e-3)


def test_half_precision_prediction_is_scored_in_fp32() -> None:
    log_depth, depth, valid = random_images()
    half = log_depth.bfloat16()
    assert silog(half, depth, valid).dtype == torch.float32
    torch.testing.assert_close(silog(half, depth, valid), silog(half.float(), depth, valid))


def test_nan_prediction_is_a_nan_loss() -> None:
    log_depth = torch.full((1, 1, 2, 2), float("nan"))
    ones = torch.ones(1, 1, 2, 2)
    for loss in LOSSES.values():
        assert loss(log_depth, ones, ones > 0).isnan()
