import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from llm_mde.errors import DataError
from llm_mde.inference.score import Scores as Said
from llm_mde.scoring.baselines import Baselines, fit_baselines, nearest
from llm_mde.scoring.evaluate import EvalResult, Scores, evaluate
from llm_mde.scoring.losses import silog, ssi
from llm_mde.scoring.protocols import PROTOCOLS, score_image

IMAGES = 11
SIZE = (24, 32)
LEFT_OUT = 4  # this image has no valid pixel


def dataset() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    valid = torch.rand(IMAGES, 1, *SIZE, generator=generator) > 0.3
    valid[LEFT_OUT] = False
    return {
        "image": torch.randint(0, 256, (IMAGES, 3, 12, 16), generator=generator, dtype=torch.uint8),
        "depth": torch.rand(IMAGES, 1, *SIZE, generator=generator) * 8 + 1,
        "valid": valid,
        "weight": torch.ones(IMAGES),
        "key": [f"room-{i:06d}" for i in range(IMAGES)],
    }


def batches(data: dict[str, Any], size: int, rank: int = 0, ranks: int = 1) -> Iterator[dict]:
    """Round-robin over ranks, every batch full: padding repeats sample 0 with weight 0 and junk."""
    mine = list(range(rank, IMAGES, ranks))
    per_rank = -(-IMAGES // ranks)
    slots = mine + [-1] * (-(-per_rank // size) * size - len(mine))
    for start in range(0, len(slots), size):
        index = torch.tensor(slots[start : start + size])
        batch = {k: data[k][index.clamp(min=0)].clone() for k in ("image", "depth", "valid")}
        batch["weight"] = (index >= 0).float()
        batch["depth"][index < 0] = 7.0
        yield batch | {"key": [data["key"][i] for i in index.clamp(min=0).tolist()]}


def predict(image: Tensor) -> Tensor:
    return image.float().mean(1, keepdim=True) / 64 + 1  # (B, 1, h, w)


def baselines() -> Baselines:
    data = dataset()
    return fit_baselines(zip(data["depth"][:, 0], data["valid"][:, 0], strict=True))


def run(size: int, **kwargs: Any) -> EvalResult:
    loss = kwargs.pop("loss", silog)
    return evaluate(predict, batches(dataset(), size), loss=loss, **kwargs)


def test_means_are_those_of_the_images_scored_one_by_one() -> None:
    data = dataset()
    rows = [
        score_image(predict(data["image"][i : i + 1])[0, 0], data["depth"][i, 0], valid)
        for i, valid in enumerate(data["valid"][:, 0])
    ]
    kept = [row for row in rows if row is not None]
    result = run(4)
    assert (result.images, result.left_out, len(kept)) == (IMAGES - 1, 1, IMAGES - 1)
    for protocol, metric in (
        ("metric", "abs_rel"),
        ("paper", "rmse"),
        ("aligned_affine", "delta1"),
    ):
        want = sum(row[protocol][metric] for row in kept) / len(kept)
        assert result.means[f"{protocol}/{metric}"] == pytest.approx(want, rel=1e-12)


def test_loss_is_the_mean_over_images_at_the_size_of_the_prediction() -> None:
    data = dataset()
    losses = []
    for i in range(IMAGES):
        depth, valid = (nearest(data[key][i, 0], (12, 16)) for key in ("depth", "valid"))
        if valid.any():
            log_depth = predict(data["image"][i : i + 1]).log()
            losses.append(ssi(log_depth, depth[None, None], valid[None, None]).item())
    assert run(4, loss=ssi).means["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-6)


@pytest.mark.parametrize("size", [2, 8, 11])
def test_batch_size_cannot_matter(size: int) -> None:
    want = run(1, baselines=baselines())
    got = run(size, baselines=baselines())
    assert got.means == pytest.approx(want.means, rel=1e-12)
    assert (got.images, got.left_out) == (want.images, want.left_out)


@pytest.mark.parametrize("ranks", [2, 3, 16])
def test_ranks_cannot_matter(ranks: int) -> None:
    tables: list[Tensor] = []

    def one_rank(rank: int, gather: Any) -> EvalResult:
        part = batches(dataset(), 2, rank, ranks)
        return evaluate(predict, part, loss=silog, baselines=baselines(), gather=gather)

    def collect(table: Tensor) -> Tensor:
        tables.append(table)
        return table

    for rank in range(ranks):
        one_rank(rank, collect)
    together = one_rank(0, lambda table: torch.cat(tables))
    want = run(2, baselines=baselines())
    assert together.means == want.means  # to the last bit
    assert (together.images, together.left_out) == (want.images, want.left_out)


def test_padding_cannot_matter() -> None:
    result = evaluate(predict, batches(dataset(), 8), loss=silog)  # 16 slots for 11 images
    assert result.images + result.left_out == IMAGES


def test_a_split_without_images_has_counts_and_no_means() -> None:
    result = evaluate(predict, [], loss=silog)
    assert result.named("val") == {"val/images": 0, "val/left_out": 0, "val/cropped": 0}


def test_no_gradient_is_recorded() -> None:
    weight = torch.ones((), requires_grad=True)

    def tracked(image: Tensor) -> Tensor:
        out = predict(image) * weight
        assert not out.requires_grad
        return out

    evaluate(tracked, batches(dataset(), 4), loss=silog)


def test_names_are_those_of_the_tracker() -> None:
    named = run(4, baselines=baselines()).named("val")
    groups = ("val", "val_aligned_median", "val_aligned_affine", "val_paper")
    for group in (*groups, "val_constant", "val_mean_map"):
        assert f"{group}/abs_rel" in named
        assert f"{group}/delta3" in named
    assert {"val/loss", "val/images", "val/left_out", "val/cropped"} <= set(named)
    assert "val_constant/abs_rel" not in run(4).named("val")
    assert "test_paper/rmse" in run(4).named("test")


def test_record_says_which_crop_was_used() -> None:
    depth = torch.full((1, 1, 480, 640), 2.0)
    batch = {
        "image": torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
        "depth": depth,
        "valid": depth > 0,
        "weight": torch.ones(1),
    }
    assert evaluate(predict, [batch], loss=silog).crop == "eigen rows 45:471 cols 41:601"
    assert run(4).crop == "none"
    mixed = EvalResult(means={}, images=3, left_out=0, cropped=1)
    assert mixed.crop == "eigen rows 45:471 cols 41:601 in 1 of 3"


def test_tables_of_two_halves_add_up_to_one() -> None:
    whole, left, right = (Scores(["a", "b"]) for _ in range(3))
    for half, values in ((left, {"a": 1.0, "b": 5.0}), (right, {"a": 4.0})):
        half.add(values)
        whole.add(values)
    assert left.table().dtype == torch.float64
    left.add_table(right.table())
    assert torch.equal(left.table(), whole.table())
    assert left.means() == {"a": 2.5, "b": 5.0}
    assert (left.count("a"), left.count("b")) == (2, 1)


def test_means_do_not_depend_on_the_order_of_images() -> None:
    values = [1e16, 1.0, -1e16, 3.0]  # added from left to right: 3
    for order in (values, values[::-1], sorted(values)):
        scores = Scores(["a"])
        for value in order:
            scores.add({"a": value})
        assert scores.means() == {"a": 1.0}
    scores.add({"a": math.inf})
    scores.add({"a": -math.inf})
    assert math.isnan(scores.means()["a"])


def test_scores_without_any_image_have_no_mean() -> None:
    assert Scores(["a"]).means() == {}


def test_baselines_match_numpy() -> None:
    generator = np.random.default_rng(0)
    depth = generator.integers(500, 9999, (20, 5, 7)) / 1000
    valid = generator.random((20, 5, 7)) > 0.4
    valid[:, 2, 3] = False
    got = fit_baselines(
        (torch.tensor(d, dtype=torch.float32), torch.tensor(v))
        for d, v in zip(depth, valid, strict=True)
    )
    assert got.constant == pytest.approx(np.median(depth[valid]), abs=1e-9)
    want = np.ma.masked_array(depth, ~valid).mean(0).filled(got.constant)
    np.testing.assert_allclose(got.mean_map.numpy(), want, rtol=1e-6)


def test_baselines_are_scored_on_the_pixels_of_the_prediction() -> None:
    depth = torch.tensor([[[[1.0, 2.0, 4.0, 9.9]]]])
    valid = torch.tensor([[[[True, True, True, False]]]])
    batch = {"image": torch.zeros(1, 3, 1, 4), "depth": depth, "valid": valid}
    blind = Baselines(constant=2.0, mean_map=torch.tensor([[1.0, 2.0, 2.0, 50.0]]))
    weight = {"weight": torch.ones(1)}
    means = evaluate(predict, [batch | weight], loss=silog, baselines=blind).means
    assert means["constant/abs_rel"] == pytest.approx((1 + 0 + 0.5) / 3)
    assert means["mean_map/abs_rel"] == pytest.approx((0 + 0 + 0.5) / 3)


def three_pixels(**kwargs: Any) -> EvalResult:
    """One image: truth 1, 2, 4 m; the constant says 3, the mean map 2, 4, 4."""
    depth = torch.tensor([[[[1.0, 2.0, 4.0, 9.9]]]])
    batch = {
        "image": torch.zeros(1, 3, 1, 4),
        "depth": depth,
        "valid": depth < 9,
        "weight": torch.ones(1),
    }
    blind = Baselines(constant=3.0, mean_map=torch.tensor([[2.0, 4.0, 4.0, 50.0]]))
    return evaluate(predict, [batch], loss=silog, baselines=blind, **kwargs)


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("constant/abs_rel", (2 + 1 / 2 + 1 / 4) / 3),
        ("constant_aligned_median/abs_rel", (1 + 0 + 1 / 2) / 3),  # the truth's median: 2
        ("constant_aligned_affine/abs_rel", (4 / 3 + 1 / 6 + 5 / 12) / 3),  # its mean: 7/3
        ("constant_aligned_affine/rmse", ((16 + 1 + 25) / 9 / 3) ** 0.5),
        ("mean_map/abs_rel", (1 + 1 + 0) / 3),
        ("mean_map_aligned_median/abs_rel", (0 + 0 + 1 / 2) / 3),  # halved: 1, 2, 2
        ("mean_map_aligned_affine/abs_rel", (0 + 1 / 2 + 1 / 4) / 3),  # less one: 1, 3, 3
        ("mean_map_paper/abs_rel", (0 + 2 + 0) / 3),  # 0, 1, 1 beside 0, 1/3, 1
        ("mean_map_paper/rmse", (4 / 9 / 3) ** 0.5),
    ],
)
def test_baselines_are_scored_under_every_protocol_asked_for(name: str, want: float) -> None:
    means = three_pixels(baseline_protocols=PROTOCOLS).means
    assert means[name] == pytest.approx(want, rel=1e-6)


def test_a_constant_has_no_score_where_it_has_no_normalisation() -> None:
    means = three_pixels(baseline_protocols=PROTOCOLS).means
    assert not [name for name in means if name.startswith("constant_paper")]
    assert all(np.isfinite(value) for value in means.values())


def test_training_pays_for_baselines_under_metric_alone() -> None:
    groups = {name.rpartition("/")[0] for name in three_pixels().means}
    assert groups == {*PROTOCOLS, "constant", "mean_map", ""}


def test_baselines_under_other_protocols_are_tracked_in_groups_of_their_own() -> None:
    named = three_pixels(baseline_protocols=PROTOCOLS).named("test")
    assert named["test_mean_map/abs_rel"] == pytest.approx(2 / 3)
    assert named["test_mean_map_aligned_median/abs_rel"] == pytest.approx(1 / 6)
    assert "test_constant_aligned_affine/delta1" in named


def test_eval_shows_model_and_baselines_below_each_protocol() -> None:
    said = Said(Path("run"), "test", "train", three_pixels(baseline_protocols=PROTOCOLS)).lines()
    at = [i for i, line in enumerate(said) if line.split(":")[0] in PROTOCOLS]
    assert [said[i].split(":")[0] for i in at] == list(PROTOCOLS)
    for i in at:
        assert [line[:16].strip() for line in said[i + 1 : i + 4]] == [
            "model",
            "mean depth map",
            "median depth",
        ]
    median = said[at[1] + 2].split()
    assert median[3] == "0.1667"  # abs_rel of the halved mean map
    assert said[at[3] + 3].split()[2:] == ["-"] * 9
    assert max(map(len, said)) < 120


def test_mean_map_is_resized_to_another_truth() -> None:
    blind = Baselines(constant=2.0, mean_map=torch.tensor([[1.0, 2.0]]))
    got = blind.predictions((1, 4))
    torch.testing.assert_close(got["mean_map"], torch.tensor([[1.0, 1.25, 1.75, 2.0]]))
    assert got["constant"].shape == (1, 4)


def test_training_samples_of_several_sizes_share_one_mean_map() -> None:
    small, large = torch.full((2, 2), 1.0), torch.full((4, 6), 3.0)
    got = fit_baselines([(small, small > 0), (large, large > 0)])
    torch.testing.assert_close(got.mean_map, torch.full((2, 2), 2.0))


def test_baselines_without_a_valid_depth_are_refused() -> None:
    with pytest.raises(DataError, match="expected valid depths in the training samples"):
        fit_baselines([(torch.zeros(2, 2), torch.zeros(2, 2) > 0)])


def test_nearest_takes_the_pixel_that_holds_the_centre() -> None:
    row = torch.arange(6)[None]
    assert nearest(row, (1, 3)).tolist() == [[1, 3, 5]]
    assert nearest(row, (2, 2)).tolist() == [[1, 4], [1, 4]]
    assert nearest(row[:, :2] > 0, (1, 4)).tolist() == [[False, False, True, True]]
