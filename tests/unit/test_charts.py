"""Charts of a sweep: labels with room, every number of panels and levels, what is hatched."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from llm_mde.axis import (
    LONG_LABEL,
    Axis,
    apart,
    cut,
    horizontal,
    number,
    padded,
    percent,
    share,
    ticks,
)
from llm_mde.charts import VERMILION, Bar, Level, Panel, importance_bars, main_effect, main_effects
from llm_mde.coloured import heat_map, parallel
from llm_mde.studies.board import Leaderboard, Row, ranked
from llm_mde.studies.effects import axis_of, cells, lines_of, pairs, panel
from llm_mde.studies.factors import design_of, logarithmic

R, ALPHA, LR = "model.vit.lora.r", "model.vit.lora.alpha", "optim.lr"


def row(abs_rel: float, settings: dict[str, object], *, seed: int = 0, failed: bool = False) -> Row:
    scores = {} if failed else {"val/abs_rel": abs_rel}
    name = str(sorted(settings.items()))
    return Row(name, seed, Path(name), settings, scores, 1.0, 1, "broken" if failed else None)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        return np.asarray(picture.convert("RGB")).astype(int)


def drawn(seed: int, low: float, high: float) -> list[float]:
    rng = random.Random(seed)
    return [rng.uniform(low, high) for _ in range(30)]


def random_rows(count: int) -> list[Row]:
    rng = random.Random(0)
    return [
        row(
            rng.uniform(0.2, 0.3),
            {LR: 10 ** rng.uniform(-5, -2), R: rng.choice([4, 8, 16]), "tune": rng.choice("ab")},
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize(
    "values",
    [
        [2e-5, 1e-4], [60, 96, 160, 192], [4, 8, 16, 32, 64, 128, 256], [1, 2, 3, 4, 100],
        [*range(12)], [1e-6, 2e-6, 5e-6, 1e-5, 1e-4, 1e-3, 1e-2], [0.1, 0.1001, 0.5], [32],
        *[[10**number for number in drawn(n, -6, n - 3)] for n in range(4)],
        *[drawn(n, 10.0**n, 10.0 ** (n + 0.5)) for n in range(-4, 5)],
        ["lora", "frozen"], ["a" * 40, "b" * 40, "c" * 40], [[256, 128, 64, 32], [64, 32, 16, 8]],
        [True, False], ["", 1e-4, 1e-3],
    ],
)  # fmt: skip
def test_labels_of_an_axis_do_not_overlap(values: list[object]) -> None:
    axis = axis_of(values, "a setting")
    figure = Figure(figsize=(2.5, 2.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    axes.tick_params(labelsize=7)
    horizontal(axes, axis, [0.5] if axis.ticks else [float(str(value)) for value in values])
    figure.canvas.draw()
    labels = axes.get_xticklabels()
    assert labels
    if any(label.get_rotation() for label in labels):
        steps = np.diff([label.get_window_extent().x1 for label in labels])
        assert (steps > 12).all()  # a line of letters, turned
        return
    boxes = [label.get_window_extent() for label in labels]
    assert all(a.x1 < b.x0 for a, b in zip(boxes, boxes[1:], strict=False))


def test_ticks_by_hand() -> None:
    assert ticks(Axis("lr", log=True), 1e-5, 1e-2) == [
        (pytest.approx(1e-5), "1e-5"), (pytest.approx(1e-4), "1e-4"),
        (pytest.approx(1e-3), "1e-3"), (pytest.approx(1e-2), "0.01"),
    ]  # fmt: skip
    assert [text for _, text in ticks(Axis("score"), 0.2, 0.3)] == [
        "0.20", "0.22", "0.24", "0.26", "0.28", "0.30",
    ]  # fmt: skip
    assert ticks(Axis("r", ((4, "4"),)), 0, 9) == [(4, "4")]
    assert apart([(0, "a"), (1, "b"), (50, "c")], 0, 100, log=False) == [(0, "a"), (50, "c")]
    assert [number(value) for value in (1e-3, 0.25, 12345.0)] == ["1e-3", "0.25", "1.234e4"]
    assert cut("x" * 50) == "x" * (LONG_LABEL - 1) + "…"


def test_a_share_that_rounds_to_nothing_is_not_nothing() -> None:
    shares = [percent(share) for share in (0.0, 0.004, 0.006, 0.984, 1.0)]
    assert shares == ["0 %", "< 1 %", "1 %", "98 %", "100 %"]


def test_places_on_an_axis_by_hand() -> None:
    assert share(1e-4, 1e-5, 1e-3, log=True) == pytest.approx(0.5)
    assert share(3, 2, 4, log=False) == 0.5
    assert share(7, 7, 7, log=False) == share(7, 7, 7, log=True) == 0.5
    assert padded(1, 1, log=False) == (0.5, 1.5)
    low, high = padded(1, 1, log=True)
    assert 0 < low < 1 < high


@pytest.mark.parametrize(
    ("values", "is_log"),
    [
        ([1e-5, 1e-4], True), ([4, 8, 16], True), ([16, 32, 48], False), ([60, 192], False),
        ([0, 1, 100], False), (["a", 1], False), ([2, 4], False), ([True, False], False),
    ],
)  # fmt: skip
def test_numbers_over_a_decade_or_of_equal_ratios_are_logarithmic(
    values: Sequence[object], is_log: bool
) -> None:
    assert logarithmic(values) is is_log


@pytest.mark.parametrize("count", [1, 3, 7])
def test_main_effects_have_a_panel_for_each_factor(tmp_path: Path, count: int) -> None:
    levels = (Level(1, 0.2, 0.01, {0: 0.19, 1: 0.21}), Level(2, 0.3, None, {0: 0.3}))
    one = Panel(Axis("r", ((1, "1"), (2, "2"))), levels, ((1, 0.19), (1, 0.21), (2, 0.3)))
    size = pixels(main_effects([one] * count, tmp_path / "effects.png", score="score")).shape
    rows = -(-count // 4)
    assert size[0] / 200 == pytest.approx(2.4 * rows + 0.3, abs=0.02)


def test_a_seed_s_means_are_joined_where_values_between_levels_mean_something() -> None:
    levels = (Level(1, 0.2, 0.01, {7: 0.1, 3: 0.3}), Level(2, 0.4, 0.01, {3: 0.5, 7: 0.3}))
    runs = tuple((level.at, one) for level in levels for one in level.seeds.values())
    for joined, expected in ((True, [[0.3, 0.5], [0.1, 0.3]]), (False, [])):
        axes = Figure().subplots()
        main_effect(axes, Panel(Axis("r", ((1, "1"), (2, "2"))), levels, runs, joined=joined))
        lines = [one for one in axes.get_lines() if one.get_color() == VERMILION]
        assert [[*line.get_ydata()] for line in lines] == expected


def test_effects_of_a_number_are_means_of_ranges_and_of_a_level_means_over_seeds() -> None:
    rows = random_rows(25)
    design = design_of(rows)
    lr = panel(rows, design.factor_of(LR), design, title="lr")
    assert len(lr.levels) == 5 and len(lr.runs) == 25
    assert lr.axis.log and not lr.axis.ticks
    whole = [score for _, score in lr.runs]
    assert np.mean([level.mean for level in lr.levels]) == pytest.approx(np.mean(whole))
    seeded = [row(0.2 + 0.1 * (r == 8) + 0.01 * s, {R: r, "b": b}, seed=s)
              for r in (4, 8) for b in (1, 2) for s in (0, 1)]  # fmt: skip
    design = design_of(seeded)
    first, second = panel(seeded, design.factor_of(R), design, title="r").levels
    assert first.seeds == pytest.approx({0: 0.2, 1: 0.21})
    assert (first.at, first.mean, first.std) == (
        4,
        pytest.approx(0.205),
        pytest.approx(0.00707, abs=1e-5),
    )
    assert second.mean == pytest.approx(0.305)


def test_heat_map_hatches_what_was_not_run_and_colours_the_rest(tmp_path: Path) -> None:
    rows = [row(0.1 * r + alpha, {R: r, ALPHA: alpha}) for r in (1, 2) for alpha in (1.0, 2.0)]
    rows[0] = row(0, {R: 1, ALPHA: 1.0}, failed=True)
    found = cells(rows, R, ALPHA)
    assert sorted(found) == [(1, 2), (2, 1), (2, 2)]
    axes = axis_of([1, 2], "r"), axis_of([1.0, 2.0], "alpha")
    seen = pixels(heat_map(found, tmp_path / "map.png", x=axes[0], y=axes[1], score="score"))
    heights, widths = seen.shape[:2]
    missing = seen[heights // 2 + 20 : heights * 3 // 4, widths // 6 : widths // 3]
    assert missing.mean() > 200  # white with grey lines
    assert len(np.unique(missing)) > 3


def test_pairs_of_alpha_and_rank_are_found_in_every_place() -> None:
    paths = [R, ALPHA, "model.llm.lora.r", "model.other.alpha", LR]
    assert pairs(paths) == [(R, ALPHA)]
    assert pairs(["r", "alpha"]) == [("r", "alpha")]


def test_many_numbers_make_a_plane_of_points(tmp_path: Path) -> None:
    rng = random.Random(1)
    some = {
        (rng.uniform(1, 9), 10 ** rng.uniform(0, 3)): Level(0, rng.random(), None)
        for _ in range(30)
    }
    x, y = axis_of([r for r, _ in some], "r"), axis_of([alpha for _, alpha in some], "alpha")
    assert not x.ticks and y.log
    assert len(np.unique(pixels(heat_map(some, tmp_path / "m.png", x=x, y=y, score="s")))) > 50


@pytest.mark.parametrize("count", [1, 2, 12])
def test_parallel_coordinates_show_failed_configurations_and_every_kind_of_value(
    tmp_path: Path, count: int
) -> None:
    rows = random_rows(count)
    failed = row(0, {LR: 1e-3, R: 4, "tune": "c"}, failed=True)
    board = Leaderboard("s", tmp_path, ranked([*rows, failed]))
    axes, lines, scores = lines_of(board.standings, [LR, R, "tune"], ["lr", "r", "tune"])
    assert scores[-1] is None and scores[:-1] == sorted(scores[:-1])
    assert lines[-1] == [1e-3, 4, len(axes[2].ticks) - 1]
    with_failed = pixels(parallel(axes, lines, scores, tmp_path / "a.png", score="score"))
    assert with_failed.min() < 80


def test_bars_show_what_is_no_factor_without_its_colour(tmp_path: Path) -> None:
    blue = np.array([0, 0x72, 0xB2])
    bars = [Bar("lr", 0.6, "p < 0.001"), Bar("r", 0.0), Bar("seed", 0.4, factor=False)]
    seen = pixels(importance_bars(bars, tmp_path / "bars.png", label="share"))
    alike = (np.abs(seen - blue).sum(axis=2) < 10).nonzero()[0]
    assert alike.max() < seen.shape[0] / 2  # the first bar alone
