"""What `--dry-run` says of a sweep."""

from pathlib import Path

import pytest

from llm_mde.recipes import shipped
from llm_mde.studies import forecast as module
from llm_mde.studies.forecast import START_S, forecast
from llm_mde.studies.records import Record, Records
from llm_mde.studies.share import Share
from llm_mde.studies.sweep_plan import Sweep, plan_sweep
from tests.support.shards import write_shards

IMAGE_S = 0.5


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    write_shards(tmp_path / "shards", [8])
    write_shards(tmp_path / "shards", [3], split="val")
    (tmp_path / "base.yaml").write_text(
        f"data: {{shards: {tmp_path}/shards}}\nruns: {tmp_path}/runs\n"
        "train: {batch: 2, epochs: 3}\n"
    )
    (tmp_path / "space.yaml").write_text(
        "name: s\ntrials:\n  a: {train.epochs: 3, model.vit.lora.r: 60}\n"
        "  b: {train.epochs: 6, model.vit.lora.r: 60}\n"
        f"tiny: {{config: {tmp_path}/base.yaml, divide: {{model.vit.lora.r: 6}}}}\n"
    )
    monkeypatch.setattr(module, "_image_s", lambda config, devices: IMAGE_S)
    monkeypatch.setattr(module, "here", lambda: (2, 0))
    return plan_sweep(
        tmp_path / "space.yaml",
        base=None,
        tiny=False,
        sets=[],
        ds_config=shipped("launch/ds/zero1.json"),
        search={},
    )


def test_time_is_that_of_all_images_shared_out_over_trials_at_once(sweep: Sweep) -> None:
    # a: 3 epochs of 8 images and of 3 evaluated ones, each a third of a trained one; b: 6 of them.
    images = (3 * (8 + 3 / 3), 6 * (8 + 3 / 3))
    seen = forecast(sweep, Share())
    assert seen.seconds == pytest.approx((sum(images) * IMAGE_S + 2 * START_S) / 2)
    assert forecast(sweep, Share(1)).seconds == pytest.approx(2 * seen.seconds)


def test_what_is_over_takes_no_time_and_nothing_is_written(sweep: Sweep) -> None:
    sweep.folder.mkdir(parents=True)
    Records(sweep.folder / "trials.jsonl").add(Record("a", {}, "done"))
    before = (sweep.folder / "trials.jsonl").stat().st_mtime_ns
    seen = forecast(sweep, Share(1))
    assert seen.seconds == pytest.approx(6 * (8 + 3 / 3) * IMAGE_S + START_S)
    assert (sweep.folder / "trials.jsonl").stat().st_mtime_ns == before
    said = seen.lines()
    assert said[0].split() == ["a", "train.epochs=3", "steps", "12", "done"]
    assert said[1].split() == ["b", "train.epochs=6", "steps", "24", "to", "do"]
    assert "all: vit.r=10" in said  # as it runs on tiny layers
