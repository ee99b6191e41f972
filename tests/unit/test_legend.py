"""The legend of recorded numbers, and the machine's own numbers."""

from pathlib import Path

import pytest
import torch
from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

from llm_mde.scoring.metrics import METRICS, higher_is_better
from llm_mde.training.legend import legend, row_of
from llm_mde.training.system import READINGS, System

PERFECT = torch.tensor([1.0, 2.0, 4.0])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("val/abs_rel", "abs_rel"),
        ("bath_room/delta1", "delta1"),
        ("val_paper/rmse", "rmse"),
        ("val_mean_map_aligned_affine/silog", "silog"),
        ("val_constant/sq_rel", "sq_rel"),
        ("val/loss", "SPLIT/loss"),
        ("test/images", "SPLIT/images"),
        ("epoch", "epoch"),
        ("train/loss", "train/loss"),
        ("system/gpu_3_power_usage_watts", "system/gpu_N_power_usage_watts"),
        ("val/unheard_of", None),
        ("system/gpu_power_usage_watts", None),
        ("abs_rel", None),
    ],
)
def test_a_number_is_explained_by_its_row(name: str, row: str | None) -> None:
    assert row_of(name) == row
    assert row is None or f"| `{row}` |" in legend()


@pytest.mark.parametrize("metric", METRICS)
def test_better_is_the_way_to_the_truth(metric: str) -> None:
    wrong = METRICS[metric](PERFECT.flip(0), PERFECT).item()
    right = METRICS[metric](PERFECT, PERFECT).item()
    assert (right > wrong) == higher_is_better(metric)
    [row] = [line for line in legend().splitlines() if line.startswith(f"| `{metric}` |")]
    assert ("| higher |" in row) == (right > wrong)


def test_units_are_those_of_metres_twice_as_long() -> None:
    # A unit is what a change of scale moves: metres to half metres.
    pred, gt = torch.tensor([1.0, 3.0, 4.0]), PERFECT
    for line in legend().splitlines():
        name = line.split("`")[1] if line.startswith("| `") else ""
        if name in METRICS:
            once, twice = METRICS[name](pred, gt), METRICS[name](2 * pred, 2 * gt)
            factor = 2.0 if "| m |" in line else 1.0
            torch.testing.assert_close(twice, factor * once)


def test_every_row_has_as_many_cells_as_its_head() -> None:
    columns = 0
    for line in legend().splitlines():
        cells = line.replace(r"\|", "").count("|")
        columns = (columns or cells) if cells else 0
        assert cells == columns, line


def test_the_legend_fits_into_mlflows_description() -> None:
    assert len(legend()) < 8000  # mlflow.utils.validation.MAX_TAG_VAL_LENGTH


def test_the_machines_numbers_are_named_as_mlflow_names_them(tmp_path: Path) -> None:
    theirs: set[str] = set()
    for monitor in (CPUMonitor(), DiskMonitor(), NetworkMonitor()):
        monitor.collect_metrics()
        theirs |= {f"system/{name}" for name in monitor.aggregate_metrics()}
    ours = System(tmp_path, torch.device("cpu")).read()
    assert ours.keys() <= theirs
    assert ours.keys() == {name for name in READINGS if "gpu" not in name}
    assert 0 < ours["system/system_memory_usage_percentage"] <= 100
    assert ours["system/disk_available_megabytes"] > 0
