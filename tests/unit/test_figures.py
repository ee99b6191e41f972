import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from llm_mde.figures import (
    NO_READING,
    Compared,
    Sample,
    colour_depth,
    depth_figure,
    depth_panels,
    depth_range,
    learning_curve,
    sample_sheet,
    variants_sheet,
)

GREY = [round(255 * level) for level in NO_READING]


def ramp() -> np.ndarray:
    return np.linspace(1, 4, 24 * 32).reshape(24, 32)


def is_png(path: Path) -> bool:
    with Image.open(path) as picture:
        return picture.format == "PNG" and len(np.unique(np.asarray(picture)[..., :3])) > 10


def test_near_is_lighter_than_far() -> None:
    colours = colour_depth(ramp(), vmin=1, vmax=4)
    assert colours.shape == (24, 32, 3)
    assert colours.dtype == np.uint8
    lightness = colours.astype(float) @ [0.299, 0.587, 0.114]
    assert (np.diff(lightness.ravel()) < 1).all()
    assert lightness[0, 0] > lightness[-1, -1] + 100


def test_colours_do_not_depend_on_the_rest_of_the_image() -> None:
    whole = colour_depth(ramp(), vmin=1, vmax=4)
    np.testing.assert_array_equal(colour_depth(ramp()[:3], vmin=1, vmax=4), whole[:3])


def test_pixels_without_a_reading_are_grey() -> None:
    depth = ramp()
    depth[0, 0] = np.nan
    valid = np.ones(depth.shape, dtype=bool)
    valid[1, 1] = False
    assert colour_depth(depth, vmin=1, vmax=4)[0, 0].tolist() == GREY
    assert colour_depth(depth, vmin=1, vmax=4, valid=valid)[1, 1].tolist() == GREY


def test_range_leaves_out_a_stray_pixel() -> None:
    depth = np.full((100, 100), 2.0)
    depth[0, 0] = 9.0
    low, high = depth_range([depth])
    assert low == 2.0
    assert 2.0 < high < 2.1
    assert depth_range([np.array([np.nan])]) == (0.0, 1.0)


@pytest.mark.parametrize("rows", [1, 3])
def test_sheet_is_a_png_whatever_the_sizes_of_image_and_prediction(
    tmp_path: Path, rows: int
) -> None:
    image = np.full((16, 16, 3), 90, dtype=np.uint8)
    sample = Sample(image, ramp(), ramp() > 1.5, np.full((8, 8), 2.0, np.float32), "kitchen-000001")
    path = sample_sheet([sample] * rows, tmp_path / "figures" / "step-000001.png")
    assert is_png(path)
    assert [file.name for file in path.parent.iterdir()] == ["step-000001.png"]


def test_sheet_of_a_sample_without_a_reading_is_drawn(tmp_path: Path) -> None:
    image = np.full((16, 16, 3), 90, dtype=np.uint8)
    nothing = np.zeros((24, 32))
    sample = Sample(image, nothing, nothing > 0, ramp())
    assert is_png(sample_sheet([sample], tmp_path / "sheet.png"))


def test_depth_figure_is_a_png_with_a_legend_below(tmp_path: Path) -> None:
    path = depth_figure(ramp(), tmp_path / "depth.png", valid=ramp() > 1.2)
    assert is_png(path)
    with Image.open(path) as picture:
        assert picture.height > picture.width * 24 / 32


def test_learning_curve_draws_what_the_record_has(tmp_path: Path) -> None:
    rows = [{"step": step, "time": 0.0, "train/loss": 1 / step} for step in range(1, 20)]
    validation = {"step": 10, "val/loss": 2.0, "val/abs_rel": 0.3, "val_constant/abs_rel": 0.4}
    rows.append(json.loads(json.dumps(validation)))
    assert is_png(learning_curve(rows, tmp_path / "curve.png"))
    assert is_png(learning_curve(rows[:5], tmp_path / "short.png"))


def test_panels_show_image_and_depths_with_holes_in_grey(tmp_path: Path) -> None:
    image = np.full((24, 32, 3), (10, 200, 90), np.uint8)
    holes = ramp()
    holes[:12] = 0
    title = "office_0001-000003 (cost: $5_$)"
    path = depth_panels(image, {"depth": holes, "filled": ramp()}, tmp_path / "a.png", title=title)
    with Image.open(path) as picture:
        pixels = np.asarray(picture)[..., :3].astype(int)
    thirds = np.array_split(pixels, 3, axis=1)
    share = [(abs(part - GREY).max(axis=-1) <= 2).mean() for part in thirds]
    assert share[1] > 0.2 and max(share[0], share[2]) < 0.05
    assert ((abs(thirds[0] - (10, 200, 90)).max(axis=-1) <= 2).mean()) > 0.4
    empty = depth_panels(image, {"depth": np.zeros((24, 32))}, tmp_path / "b.png")
    assert is_png(empty)


def column_shares(path: Path, colour: np.ndarray, columns: int) -> list[float]:
    """Share of the pixels of this colour in each column of panels, without the legend."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture)[: int(0.85 * picture.height), :, :3].astype(int)
    parts = np.array_split((abs(pixels - colour).max(axis=-1) <= 2), columns, axis=1)
    return [float(part.mean()) for part in parts]


def compared(**preds: float) -> list[Compared]:
    """Two rows: truth half 1 m and half 4 m, then 2 m all over; variants of one depth each."""
    image = np.full((24, 32, 3), (10, 200, 90), np.uint8)
    halves, flat = np.full((24, 32), 1.0), np.full((24, 32), 2.0)
    halves[12:] = 4.0
    maps = {name: np.full((6, 8), value, np.float32) for name, value in preds.items()}
    return [Compared(image, depth, depth > 0, maps) for depth in (halves, flat)]


def test_panels_of_variants_and_truths_share_one_scale(tmp_path: Path) -> None:
    path = variants_sheet(compared(a=2.0, b=9.0, c=4.0), tmp_path / "sheet.png")
    two, four = (colour_depth(np.full((1, 1), m), vmin=1, vmax=4)[0, 0] for m in (2.0, 4.0))
    at_two, at_four = column_shares(path, two, 5), column_shares(path, four, 5)
    assert at_two[2] > 0.6 and at_two[1] > 0.25  # variant a in both rows, the truth in one
    assert max(at_two[0], at_two[3], at_two[4]) < 0.02
    assert at_four[3] > 0.6 and at_four[4] > 0.6  # 9 m is shown as the end of the scale
    assert 0.1 < at_four[1] < at_two[1]  # half of one truth


def test_a_wild_variant_moves_no_colour_of_the_others(tmp_path: Path) -> None:
    calm = variants_sheet(compared(a=2.0, b=2.0), tmp_path / "calm.png")
    wild = variants_sheet(compared(a=2.0, b=900.0), tmp_path / "wild.png")
    two = colour_depth(np.full((1, 1), 2.0), vmin=1, vmax=4)[0, 0]
    before, after = column_shares(calm, two, 4), column_shares(wild, two, 4)
    assert before[:3] == pytest.approx(after[:3], abs=0.02)
    assert before[3] > 0.6 and after[3] < 0.02


def test_sheet_of_variants_takes_any_sizes_titles_and_none(tmp_path: Path) -> None:
    image = np.full((16, 16, 3), 90, dtype=np.uint8)
    nothing = np.zeros((24, 32))
    row = Compared(image, nothing, nothing > 0, {"$5_$ a%": ramp()}, {"$5_$ a%": "0.1_$"}, "$_$")
    assert is_png(variants_sheet([row], tmp_path / "a.png", note="not drawn: $b_$"))
    assert is_png(variants_sheet([Compared(image, ramp(), ramp() > 2, {})], tmp_path / "b.png"))
