import math

import numpy as np
import pytest
import torch

from llm_mde.config import AugmentConfig
from llm_mde.data.augment import affine, augment, draw, jitter

IDENTITY = [1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]
FLIP, ZOOM, ANGLE, SHIFT_X, SHIFT_Y, BRIGHT, CONTRAST, COLOUR = range(8)


def draws(batch=1, **changes):
    """Rows that change nothing, but for the named columns."""
    rows = np.tile(np.array(IDENTITY), (batch, 1))
    for name, value in changes.items():
        rows[:, globals()[name.upper()]] = value
    return rows


def sample(height=6, width=8, batch=1):
    """image, depth and valid with other values at each pixel; one pixel is not valid."""
    pixels = torch.arange(height * width).view(1, 1, height, width)
    image = torch.cat([pixels, pixels + 60, pixels + 120], 1).to(torch.uint8)
    depth = 1 + pixels / 10
    valid = torch.ones_like(depth, dtype=torch.bool)
    valid[..., 1, 2] = False
    return tuple(part.expand(batch, -1, -1, -1).clone() for part in (image, depth, valid))


def moved(rows, *parts):
    return augment(*parts, config=AugmentConfig(), draws=rows)


@pytest.mark.parametrize("size", [(6, 8), (7, 5), (224, 224), (96, 128)])
def test_identity_leaves_everything_as_it_is(size):
    parts = sample(*size, batch=2)
    for before, after in zip(parts, moved(draws(2), *parts), strict=True):
        assert torch.equal(before, after)
        assert before.dtype == after.dtype


def test_flip_moves_depth_with_rgb():
    parts = sample()
    for before, after in zip(parts, moved(draws(flip=-1), *parts), strict=True):
        assert torch.equal(before.flip(-1), after)


def test_zoom_divides_depth_and_keeps_the_centre():
    image, depth, valid = sample(7, 9)
    zoomed, nearer, seen = moved(draws(zoom=1.5), image, depth, valid)
    assert nearer[0, 0, 3, 4].item() == pytest.approx(depth[0, 0, 3, 4].item() / 1.5)
    assert torch.equal(zoomed[..., 3, 4], image[..., 3, 4])
    # Output column 7 is 3 right of the centre and shows what was 2 right of it.
    assert nearer[0, 0, 3, 7].item() == pytest.approx(depth[0, 0, 3, 6].item() / 1.5)
    assert torch.equal(zoomed[..., 3, 7], image[..., 3, 6])
    assert not seen.all()


def test_shift_moves_by_a_share_of_the_sides_and_ends_with_the_frame():
    image, depth, valid = sample()
    shifted, further, seen = moved(draws(shift_x=2 * 2 / 8, shift_y=2 * 1 / 6), image, depth, valid)
    assert torch.equal(shifted[..., :5, :6], image[..., 1:, 2:])
    assert torch.equal(further[..., :5, :6], depth[..., 1:, 2:])
    assert torch.equal(seen[..., :5, :6], valid[..., 1:, 2:])
    assert not seen[..., 5, :].any()
    assert not seen[..., 6:].any()


@pytest.mark.parametrize("size", [(8, 8), (8, 16)])
def test_quarter_turn_is_a_rotation_in_pixels(size):
    image, depth, valid = sample(*size)
    turned, _, seen = affine(image, depth, valid, draws(angle=math.pi / 2))
    middle = slice(size[1] // 2 - 4, size[1] // 2 + 4)
    inner = image[..., middle].float()
    torch.testing.assert_close(turned[..., middle], inner.rot90(1, (2, 3)), atol=1e-3, rtol=0)
    assert not seen[..., : size[1] // 2 - 4].any()


def test_depth_is_never_interpolated():
    image, depth, valid = sample(16, 16)
    _, after, seen = moved(draws(angle=0.1, shift_x=0.07), image, depth, valid)
    assert set(after[seen].tolist()) <= set(depth[valid].tolist())


def test_invalid_pixels_stay_invalid():
    image, depth, valid = sample(16, 16)
    valid[:] = False
    _, _, seen = moved(draws(zoom=1.3, angle=0.05), image, depth, valid)
    assert not seen.any()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"bright": 0.5}, [[15, 45], [30, 60], [90, 120]]),
        ({"bright": 9.0}, [[100, 255], [200, 255], [255, 255]]),
        # The mean of all values is 40: contrast 0.5 halves the distance from it.
        ({"contrast": -0.5}, [[25, 35], [30, 40], [50, 60]]),
        # The greys of the two pixels are 30 and 50: saturation 0 leaves them alone.
        ({"colour": -1.0}, [[30, 50], [30, 50], [30, 50]]),
    ],
)
def test_jitter_by_hand(change, expected):
    image = torch.tensor([[10.0, 30.0], [20.0, 40.0], [60.0, 80.0]]).view(1, 3, 1, 2)
    assert jitter(image, draws(**change)).view(3, 2).tolist() == expected


def test_off_is_off():
    parts = sample()
    rows = draws(flip=-1, zoom=1.4, bright=0.2)
    for before, after in zip(
        parts, augment(*parts, config=AugmentConfig(enabled=False), draws=rows), strict=True
    ):
        assert torch.equal(before, after)


def test_draws_depend_on_seed_epoch_and_position_alone():
    config = AugmentConfig()
    together = draw(config, seed=0, epoch=1, positions=[4, 5, 6])
    alone = [draw(config, seed=0, epoch=1, positions=[at])[0] for at in (4, 5, 6)]
    np.testing.assert_array_equal(together, np.stack(alone))
    others = [(0, 2, 4), (1, 1, 4), (0, 1, 7)]
    for seed, epoch, at in others:
        other = draw(config, seed=seed, epoch=epoch, positions=[at])[0]
        assert not np.isclose(other[1:], together[0, 1:]).any()


def test_draws_stay_in_the_configured_ranges():
    config = AugmentConfig(flip=0.25, zoom=(1.1, 1.4), rotate=3, shift=0.05, jitter=0.1)
    rows = draw(config, seed=3, epoch=0, positions=list(range(2000)))
    assert set(rows[:, FLIP]) == {-1.0, 1.0}
    assert (rows[:, FLIP] < 0).mean() == pytest.approx(0.25, abs=0.04)
    spans = {ZOOM: (1.1, 1.4), ANGLE: (-math.radians(3), math.radians(3))}
    spans |= dict.fromkeys((SHIFT_X, SHIFT_Y), (-0.1, 0.1))
    spans |= dict.fromkeys((BRIGHT, CONTRAST, COLOUR), (-0.1, 0.1))
    for column, (low, high) in spans.items():
        margin = (high - low) / 100
        assert low <= rows[:, column].min() < low + margin
        assert high - margin < rows[:, column].max() <= high


@pytest.mark.parametrize(("chance", "flip"), [(0.0, 1.0), (1.0, -1.0)])
def test_flip_never_and_always(chance, flip):
    rows = draw(AugmentConfig(flip=chance), seed=0, epoch=0, positions=list(range(200)))
    assert set(rows[:, FLIP]) == {flip}
