"""Depth in colours, sheets of samples and learning curves, as PNG files.

Charts of sweeps are in `charts`. Figures are built without pyplot: no global state, no display.
"""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from PIL import Image

DEPTH_COLOURS = "plasma_r"  # perceptually uniform; near is light, far is dark
ERROR_COLOURS = "RdBu_r"  # diverging; red too far, blue too near
NO_READING = (0.62, 0.62, 0.62)  # grey, in neither scale
DPI = 110
PANEL_IN = 2.3  # width of one picture of a sheet, inches
LEGEND_IN = 0.12  # height of a colour bar, inches
TIP = 0.02  # of a colour bar's length, where values pass its end
SERIES = {
    "train/loss": ("tab:blue", "train loss"),
    "val/loss": ("tab:orange", "val loss"),
    "val/abs_rel": ("tab:green", "val abs_rel"),
}
BASELINES = {
    "val_constant/abs_rel": ("--", "constant depth"),
    "val_mean_map/abs_rel": (":", "mean depth map"),
}


@dataclass(frozen=True)
class Sample:
    """One row of a sheet."""

    image: np.ndarray
    """uint8 (h, w, 3), any size."""
    depth: np.ndarray
    """(H, W) metres."""
    valid: np.ndarray
    """(H, W) bool; False = no reading."""
    pred: np.ndarray
    """(h, w) metres, any size."""
    title: str = ""
    """Written beside the row."""


@dataclass(frozen=True)
class Compared:
    """One row of a sheet of variants."""

    image: np.ndarray
    """uint8 (h, w, 3), any size."""
    depth: np.ndarray
    """(H, W) metres."""
    valid: np.ndarray
    """(H, W) bool; False = no reading."""
    preds: Mapping[str, np.ndarray]
    """Variant -> (h, w) metres, any size."""
    notes: Mapping[str, str] = field(default_factory=dict)
    """Variant -> what is written below it."""
    title: str = ""
    """Written beside the row."""


def colour_depth(
    depth: np.ndarray, *, vmin: float, vmax: float, valid: np.ndarray | None = None
) -> np.ndarray:
    """Depth (H, W) in metres to uint8 RGB (H, W, 3) over [vmin, vmax]; not valid is grey."""
    shown = np.ma.masked_array(depth, mask=~np.isfinite(depth) if valid is None else ~valid)
    rgba = _colours(DEPTH_COLOURS)(Normalize(vmin, vmax)(shown), bytes=True)
    return np.ascontiguousarray(rgba[..., :3])


def depth_range(depths: Iterable[np.ndarray]) -> tuple[float, float]:
    """Metres from the 1st to the 99th percentile of all values, for one shared scale."""
    values = np.concatenate([depth.ravel() for depth in depths])
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 1.0
    low, high = np.percentile(values, (1, 99))
    return float(low), float(max(high, low + 1e-3))


def depth_figure(depth: np.ndarray, path: Path, *, valid: np.ndarray | None = None) -> Path:
    """One depth map (H, W) in metres with its legend, written to a PNG."""
    shown = depth if valid is None else depth[valid]
    limits = depth_range([shown])
    width = 3 * PANEL_IN
    figure = Figure(figsize=(width, width * _aspect(depth) + 0.8), layout="constrained")
    grid = figure.add_gridspec(2, 1, height_ratios=(width * _aspect(depth), LEGEND_IN))
    colours = colour_depth(depth, vmin=limits[0], vmax=limits[1], valid=valid)
    _picture(figure.add_subplot(grid[0]), colours)
    ends = _ends([shown], limits)
    _legend(figure.add_subplot(grid[1]), DEPTH_COLOURS, limits, "depth [m]", ends=ends)
    return save(figure, path)


def depth_panels(
    image: np.ndarray, depths: Mapping[str, np.ndarray], path: Path, *, title: str = ""
) -> Path:
    """An image beside depth maps with one legend for all, written to a PNG.

    image: uint8 (h, w, 3); depths: at least one (H, W) in metres by name, 0 = no reading.
    """
    readings = [np.where(depth > 0, depth, np.nan) for depth in depths.values()]
    limits = depth_range(readings)
    colours = [colour_depth(depth, vmin=limits[0], vmax=limits[1]) for depth in readings]
    panels = dict(zip(["image", *depths], [image, *colours], strict=True))
    height = 2 * PANEL_IN * _aspect(readings[0])
    figure = Figure(figsize=(2 * PANEL_IN * len(panels), height + 1.1), layout="constrained")
    figure.suptitle(title, fontsize=9, parse_math=False)  # a title may hold a dollar
    grid = figure.add_gridspec(2, len(panels), height_ratios=(height, LEGEND_IN))
    for column, (name, picture) in enumerate(panels.items()):
        _picture(figure.add_subplot(grid[0, column]), picture).set_title(name, fontsize=9)
    label, ends = "depth [m], grey: no reading", _ends(readings, limits)
    _legend(figure.add_subplot(grid[1, 1:]), DEPTH_COLOURS, limits, label, ends=ends)
    return save(figure, path)


def sample_sheet(samples: Sequence[Sample], path: Path) -> Path:
    """Rows of image, truth, prediction and error, with one depth scale for all, written to a PNG.

    The prediction is brought to the truth's size (bilinear). The error is prediction - truth in
    metres over the valid pixels, its scale the 95th percentile of its size. At least one sample.
    """
    preds = [_resized(sample.pred, sample.depth.shape) for sample in samples]
    depths = [*(sample.depth[sample.valid] for sample in samples), *preds]
    limits = depth_range(depths)
    errors = [np.where(s.valid, p - s.depth, np.nan) for s, p in zip(samples, preds, strict=True)]
    reach = _error_reach(errors)
    height = PANEL_IN * max(_aspect(sample.depth) for sample in samples)
    size = (4 * PANEL_IN + 0.5, len(samples) * (height + 0.1) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.add_gridspec(
        len(samples) + 1, 4, height_ratios=[height] * len(samples) + [LEGEND_IN]
    )
    for i, (sample, pred, error) in enumerate(zip(samples, preds, errors, strict=True)):
        panels = {
            "image": _resized_image(sample.image, sample.depth.shape),
            "truth": colour_depth(sample.depth, vmin=limits[0], vmax=limits[1], valid=sample.valid),
            "prediction": colour_depth(pred, vmin=limits[0], vmax=limits[1]),
            "error": _coloured(error, ERROR_COLOURS, (-reach, reach)),
        }
        for column, (name, picture) in enumerate(panels.items()):
            axes = _picture(figure.add_subplot(grid[i, column]), picture)
            axes.set_title(name if i == 0 else "", fontsize=9)
            axes.set_ylabel(sample.title if column == 0 else "", fontsize=8)
    note = figure.add_subplot(grid[-1, 0])
    note.axis("off")
    note.text(0, 0.5, "grey: no reading", fontsize=8, va="center", transform=note.transAxes)
    depth_axes, error_axes = (figure.add_subplot(grid[-1, at]) for at in (slice(1, 3), 3))
    ends = _ends(depths, limits)
    _legend(depth_axes, DEPTH_COLOURS, limits, "depth [m]", ends=ends)
    ends = _ends(errors, (-reach, reach))
    _legend(error_axes, ERROR_COLOURS, (-reach, reach), "prediction - truth [m]", ends=ends)
    return save(figure, path)


def variants_sheet(rows: Sequence[Compared], path: Path, *, note: str = "") -> Path:
    """Rows of image, truth and every variant, all on one scale in metres, written to a PNG.

    The scale is that of the truths, so that no variant moves it; the legend has pointed ends where
    predictions pass it. At least one row; all rows have the same variants. `note` stands below.
    """
    limits = depth_range([row.depth[row.valid] for row in rows])
    names = ["image", "truth", *rows[0].preds]
    height = PANEL_IN * max(_aspect(row.depth) for row in rows)
    size = (len(names) * PANEL_IN + 0.4, len(rows) * (height + 0.25) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    heights = [height] * len(rows) + [LEGEND_IN]
    grid = figure.add_gridspec(len(rows) + 1, len(names), height_ratios=heights)
    for i, row in enumerate(rows):
        preds = [_resized(pred, row.depth.shape) for pred in row.preds.values()]
        pictures = [
            _resized_image(row.image, row.depth.shape),
            colour_depth(row.depth, vmin=limits[0], vmax=limits[1], valid=row.valid),
            *(colour_depth(pred, vmin=limits[0], vmax=limits[1]) for pred in preds),
        ]
        for column, (name, picture) in enumerate(zip(names, pictures, strict=True)):
            axes = _picture(figure.add_subplot(grid[i, column]), picture)
            axes.set_title(name if i == 0 else "", fontsize=9, parse_math=False)
            axes.set_ylabel(row.title if column == 0 else "", fontsize=8, parse_math=False)
            axes.set_xlabel(row.notes.get(name, ""), fontsize=7, parse_math=False)
    label = "depth [m], grey: no reading" + (f"; {note}" if note else "")
    ends = _ends([pred for row in rows for pred in row.preds.values()], limits)
    _legend(figure.add_subplot(grid[-1, 1:]), DEPTH_COLOURS, limits, label, ends=ends)
    return save(figure, path)


def learning_curve(rows: Sequence[Mapping[str, Any]], path: Path) -> Path:
    """Losses and validation abs_rel against the optimizer step, written to a PNG.

    `rows` are the lines of a `metrics.jsonl`; names that do not occur are left out.
    """
    figure = Figure(figsize=(7, 6), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True)
    for name, (colour, label) in SERIES.items():
        steps, values = _series(rows, name)
        axes = below if name.endswith("abs_rel") else above
        marker = "o" if name.startswith("val") else ""
        axes.plot(steps, values, color=colour, marker=marker, markersize=3, lw=1.3, label=label)
    for name, (style, label) in BASELINES.items():
        values = _series(rows, name)[1]
        if values:
            below.axhline(values[-1], color="0.4", ls=style, lw=1.2, label=label)
    for axes, label in ((above, "loss"), (below, "abs_rel (metric)")):
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
    below.set_ylim(bottom=0)
    below.set_xlabel("optimizer step")
    return save(figure, path)


def _series(rows: Sequence[Mapping[str, Any]], name: str) -> tuple[list[int], list[float]]:
    points = [(row["step"], row[name]) for row in rows if name in row]
    return [step for step, _ in points], [value for _, value in points]


def _colours(name: str) -> Colormap:
    return colormaps[name].with_extremes(bad=NO_READING)


def _coloured(values: np.ndarray, colours: str, limits: tuple[float, float]) -> np.ndarray:
    shown = np.ma.masked_invalid(values)
    return _colours(colours)(Normalize(*limits)(shown), bytes=True)[..., :3]


def _aspect(depth: np.ndarray) -> float:
    return depth.shape[0] / depth.shape[1]


def _error_reach(errors: Iterable[np.ndarray]) -> float:
    values = np.concatenate([np.abs(error[np.isfinite(error)]) for error in errors])
    return max(float(np.percentile(values, 95)), 0.01) if values.size else 1.0


def _resized_image(image: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0])))


def _resized(depth: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Bilinear, as the evaluation does it."""
    if depth.shape == shape:
        return depth
    picture = Image.fromarray(depth.astype(np.float32))
    return np.asarray(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR))


def _picture(axes: Axes, image: np.ndarray) -> Axes:
    axes.imshow(image)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes


def _ends(depths: Iterable[np.ndarray], limits: tuple[float, float]) -> str:
    """Which ends of a colour bar depths pass, in matplotlib's words."""
    values = np.concatenate([np.empty(0), *(depth.ravel() for depth in depths)])
    below, above = bool((values < limits[0]).any()), bool((values > limits[1]).any())
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get(
        (below, above), "both"
    )


def _legend(
    axes: Axes, colours: str, limits: tuple[float, float], label: str, *, ends: str
) -> None:
    """Turn the axes into a colour bar, with points where values pass its ends."""
    scale = ScalarMappable(Normalize(*limits), _colours(colours))
    bar = axes.figure.colorbar
    bar(
        scale, cax=axes, orientation="horizontal", ticks=MaxNLocator(5), extend=ends, extendfrac=TIP
    )
    axes.set_xlabel(label, fontsize=8, parse_math=False)
    axes.tick_params(labelsize=8)


def save(figure: Figure, path: Path, *, dpi: int = DPI) -> Path:
    """Write a figure to a PNG, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    figure.savefig(temporary, format="png", dpi=dpi)
    os.replace(temporary, path)
    return path
