import json
import math
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from llm_mde import dist
from llm_mde.errors import ConfigError
from llm_mde.launcher import peak_memory
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import build
from llm_mde.tracking.tracker import Tracker
from llm_mde.training import checkpoint, folder
from llm_mde.training.ds import read_ds
from llm_mde.training.engine import cosine, micro_batch, parameter_groups, resolve_ds
from llm_mde.training.loop import Standing
from llm_mde.training.meter import Meter
from llm_mde.training.system import System
from llm_mde.training.train import prepare
from tests.support.training import LORA, make_shards, no_export, tiny_config

SYSTEM = System(Path(), torch.device("cpu"))


def config(**train):
    return build({"train": train, "optim": {"clip": 0.5}})


def resolved(ds, *, world=2, cuda=False, **train):
    made = config(**{"batch": 16, **train})
    return resolve_ds(ds, made, micro=micro_batch(made, world), world=world, cuda=cuda)


def test_deepspeed_compiles_nothing_at_the_start():
    assert sys.modules["deepspeed.comm.torch"].build_shm_op() is None


# DeepSpeed's JSON


def test_auto_and_missing_keys_come_from_the_configuration():
    want = {
        "train_batch_size": 16,
        "train_micro_batch_size_per_gpu": 4,
        "gradient_accumulation_steps": 2,
        "gradient_clipping": 0.5,
    }
    autos = dict.fromkeys(want, "auto")
    for ds in ({}, autos, want):
        got = resolved(ds, micro_batch=4)
        assert {key: got[key] for key in want} == want
    assert autos["train_batch_size"] == "auto"  # the given one is left alone


@pytest.mark.parametrize(
    ("ds", "said"),
    [
        (
            {"train_batch_size": 64},
            r"train_batch_size is 64, but train.batch is 16 \(micro_batch 4",
        ),
        (
            {"train_micro_batch_size_per_gpu": 8},
            "train_micro_batch_size_per_gpu is 8, but train.micro_batch is 4",
        ),
        (
            {"gradient_accumulation_steps": 4},
            "gradient_accumulation_steps is 4, but train.batch / .* is 2",
        ),
        ({"gradient_clipping": 1.0}, "gradient_clipping is 1.0, but optim.clip is 0.5"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is true, expected bf16"),
        (
            {"zero_optimization": {"stage": 3, "reduce_bucket_size": "auto"}},
            'zero_optimization.reduce_bucket_size is "auto", which nothing decides',
        ),
    ],
)
def test_contradictions_name_both_sides(ds, said):
    with pytest.raises(ConfigError, match=said):
        resolved(ds, micro_batch=4)


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_bf16_auto_follows_the_device(stage):
    ds = {"zero_optimization": {"stage": stage}, "bf16": {"enabled": "auto"}}
    assert resolved(ds, cuda=True)["bf16"]["enabled"] is True
    assert resolved(ds, cuda=False)["bf16"]["enabled"] is False
    # fp32 accumulation of gradients, which ZeRO 0 refuses
    types = {"grad_accum_dtype": "fp32"} if stage else None
    assert resolved(ds, cuda=True).get("data_types") == types
    assert "data_types" not in resolved(ds, cuda=False)
    assert resolved({"bf16": {"enabled": True}}, cuda=False)["bf16"]["enabled"] is True
    assert resolved({"bf16": {"enabled": False}}, cuda=True)["bf16"]["enabled"] is False


def test_a_batch_that_ranks_cannot_share_is_refused():
    assert micro_batch(config(batch=16), 4) == 4
    for changes, world in (({"batch": 16}, 3), ({"batch": 16, "micro_batch": 8}, 4)):
        with pytest.raises(
            ConfigError, match=rf"train.batch 16 is not a multiple .* {world} ranks"
        ):
            micro_batch(config(**changes), world)
    with pytest.raises(ConfigError, match="train.batch 2 is not a multiple"):
        micro_batch(config(batch=2), 4)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"optimizer": {"type": "Adam"}}', r"optimizer is set by the configuration \(optim"),
        ('{"scheduler": {}}', "scheduler is set by the configuration"),
        ('{"bfloat16": {"enabled": true}}', "bfloat16 is an old name; write bf16"),
        ('{"bf16": true}', "bf16: expected an object, got True"),
        ("[1]", "expected an object, got list"),
        ("{", "not valid JSON"),
    ],
)
def test_an_unusable_json_is_refused(tmp_path, text, said):
    path = tmp_path / "ds.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_ds(path)


# The optimizer


def test_the_cosine_starts_at_the_peak_and_ends_at_zero():
    assert cosine(0, 100) == 1.0
    assert cosine(25, 100) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert cosine(50, 100) == pytest.approx(0.5)
    assert cosine(100, 100) == cosine(101, 100) == 0.0


def test_a_warm_up_rises_to_the_peak_before_the_cosine():
    shares = [cosine(step, 24, warmup=4) for step in range(25)]
    assert shares[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert shares[14] == pytest.approx(0.5) and shares[24] == 0.0
    assert cosine(3, 4, warmup=4) == 1.0  # nothing but warm-up


@pytest.mark.parametrize("tuned", [{}, LORA])
def test_every_trainable_parameter_is_in_one_group(tmp_path, tuned):
    settings = tiny_config(
        tmp_path, tmp_path, "groups", **tuned, optim__lr=0.1, optim__weight_decay=0.2,
        optim__lr_scale={"prototypes": 0.5, "head": 3.0},
    )  # fmt: skip
    model = DepthModel(settings.model, seed=0)
    groups = parameter_groups(model, settings.optim)
    got = [id(weight) for group in groups for weight in group["params"]]
    assert sorted(got) == sorted(id(p) for p in model.parameters() if p.requires_grad)

    where = {id(weight): group for group in groups for weight in group["params"]}
    names = {name: where[id(w)] for name, w in model.named_parameters() if w.requires_grad}
    for name, want in {
        "prototypes.map": (0.05, 0.0),
        "prototypes.weight": (0.1, 0.0),
        "reprogram.key.weight": (0.1, 0.2),
        "reprogram.out.bias": (0.1, 0.0),
        "head.linear.weight": (0.3, 0.2),
        "head.blocks.0.first.weight": (0.3, 0.2),
        "head.blocks.0.first_norm.weight": (0.3, 0.0),
    }.items():
        assert (names[name]["lr"], names[name]["weight_decay"]) == pytest.approx(want), name
    for name, group in names.items():
        if ".lora_" in name:
            assert (group["lr"], group["weight_decay"]) == (0.1, 0.2), name
        if "embeddings" in name or "pos_embed" in name or name.endswith("bias"):
            assert group["weight_decay"] == 0.0, name


# The run folder


@pytest.fixture
def settings(tmp_path):
    return tiny_config(tmp_path / "shards", tmp_path, "run")


def claim(config, ds, resume="auto"):
    folder.claim(config, ds, resume=resume)


def test_a_folder_with_other_settings_is_refused_with_the_keys_named(settings, tmp_path):
    claim(settings, {"bf16": {"enabled": False}})
    other = tiny_config(tmp_path / "shards", tmp_path, "run", optim__lr=0.5, train__max_steps=9)
    with pytest.raises(ConfigError) as error:
        claim(other, {"bf16": {"enabled": True}})
    said = str(error.value)
    assert "optim.lr was 0.0001, now 0.5" in said
    assert "train.max_steps was 20, now 9" in said
    assert "ds.bf16.enabled was False, now True" in said
    assert "model.vit.name" not in said
    assert "--resume never" in said


def test_what_moves_no_number_may_change(settings, tmp_path):
    claim(settings, {"gradient_accumulation_steps": 4, "zero_optimization": {"stage": 1}})
    free = tiny_config(
        tmp_path / "elsewhere", tmp_path, "run", data__workers=3, data__cache=True,
        train__log_every=7, train__keep=5, train__save_steps=3, train__figures=2,
        tracking__mlflow=True,
    )  # fmt: skip
    claim(free, {"gradient_accumulation_steps": 2, "zero_optimization": {"stage": 3}})
    assert "elsewhere" in (free.run_dir / "config.yaml").read_text()


def test_a_folder_without_a_run_is_taken_as_it_is(settings):
    settings.run_dir.mkdir()
    (settings.run_dir / "notes.txt").write_text("mine")
    claim(settings, {}, "never")
    assert (settings.run_dir / "notes.txt").is_file()


def test_never_sets_the_old_run_aside(settings, tmp_path):
    claim(settings, {})
    (settings.run_dir / "metrics.jsonl").write_text("first")
    other = tiny_config(tmp_path / "shards", tmp_path, "run", optim__lr=0.5)
    claim(other, {}, "never")
    assert not (settings.run_dir / "metrics.jsonl").exists()
    assert (tmp_path / "run.1" / "metrics.jsonl").read_text() == "first"
    claim(other, {}, "never")
    assert (tmp_path / "run.2" / "config.yaml").is_file()


def test_an_unreadable_run_folder_is_refused(settings):
    claim(settings, {})
    (settings.run_dir / "config.yaml").write_text("train: {bach: 3}\n")
    with pytest.raises(ConfigError, match="unknown key train.bach"):
        claim(settings, {})
    (settings.run_dir / "config.yaml").write_text("")
    (settings.run_dir / "ds.json").write_text("{")
    with pytest.raises(ConfigError, match="not readable as a run"):
        claim(settings, {})


def resume(settings, *, ranks=1, changes):
    standing = Standing(step=3, micro_batch=2)
    state = {"standing": asdict(standing), "settings": changes}
    at = settings.run_dir / "checkpoints"
    checkpoint.save(at, lambda folder: None, step=3, state=state, best=False, keep=1)
    some = dist.Ranks(0, ranks, 0, torch.device("cpu"))
    prepare(settings, {}, ranks=some, resume="auto", export=no_export)


def test_ranks_that_do_not_divide_the_runs_batch_are_refused(settings, tmp_path):
    make_shards(tmp_path / "shards")
    with pytest.raises(ConfigError, match="3 ranks .* possible numbers of ranks: 1, 2$"):
        resume(settings, ranks=3, changes={})


def test_other_samples_or_backbones_are_refused(settings, tmp_path):
    make_shards(tmp_path / "shards")
    with pytest.raises(ConfigError, match="data.train_split samples was 'x', now '[0-9a-f]{64}'"):
        resume(settings, changes={"data.train_split samples": "x"})
    with pytest.raises(ConfigError, match="model.vit weights was 'x', now '[0-9a-f]{64}'"):
        resume(settings, changes={"model.vit weights": "x"})


# The meter


class Log(Tracker):
    def __init__(self):
        self.rows = []

    def log(self, metrics, step):
        self.rows.append((step, dict(metrics)))


def test_the_meter_reports_the_mean_loss_since_the_last_report():
    log = Log()
    meter = Meter(log, system=SYSTEM, steps=10, per_epoch=4, batch=4)
    for loss in (1.0, 2.0, 6.0):
        meter.add(torch.tensor(loss, requires_grad=True), ["a", "b"])
    with meter.paused():
        pass
    meter.report(3, lr=0.5, skipped=0)
    meter.add(torch.tensor(8.0), ["a"])
    meter.report(4, lr=0.25, skipped=2)
    (step, first), (_, second) = log.rows
    assert (step, first["train/loss"], first["train/lr"]) == (3, 3.0, 0.5)
    assert first["train/img_per_s"] > 0
    assert (first["epoch"], second["epoch"]) == (0.75, 1.0)
    assert (second["train/loss"], second["train/skipped_steps"]) == (8.0, 2.0)
    assert "train/skipped_steps" not in first


def test_seconds_go_on_where_the_run_left_off_and_leave_evaluations_out(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr("llm_mde.training.meter.time.monotonic", lambda: clock[0])
    log = Log()
    meter = Meter(log, system=SYSTEM, steps=10, per_epoch=4, batch=4, spent=50.0)

    def train_for(seconds):
        meter.add(torch.tensor(1.0), ["a", "b"])
        clock[0] += seconds

    train_for(3.0)
    meter.report(1, lr=0.5, skipped=0)
    with meter.paused():
        clock[0] += 1000.0
    train_for(4.0)
    with meter.paused():
        assert meter.spent == 57.0  # what a checkpoint keeps
        clock[0] += 1000.0
    train_for(1.0)
    meter.report(3, lr=0.5, skipped=0)
    assert [row["train/seconds"] for _, row in log.rows] == [53.0, 58.0]
    assert log.rows[1][1]["train/img_per_s"] == 4 / 5.0


def test_data_wait_is_the_share_of_training_spent_waiting_for_samples(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr("llm_mde.training.meter.time.monotonic", lambda: clock[0])
    log = Log()
    meter = Meter(log, system=SYSTEM, steps=10, per_epoch=4, batch=4)

    def loader():
        for wait in (3.0, 1.0, 2.0):
            clock[0] += wait
            yield {}

    for step, _ in enumerate(meter.waited(loader()), 1):
        meter.add(torch.tensor(1.0), ["a"])
        clock[0] += 4.0  # the step
        if step == 2:
            meter.report(step, lr=0.5, skipped=0)
        with meter.paused():
            clock[0] += 100.0
    meter.report(3, lr=0.5, skipped=0)
    assert [row["train/data_wait"] for _, row in log.rows] == [4 / 12, 2 / 6]


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs Linux's /proc")
def test_memory_is_this_processs_peak_in_bytes():
    ballast = torch.ones(2**28, dtype=torch.uint8)
    page = os.sysconf("SC_PAGE_SIZE")
    size, resident, *_ = (int(n) * page for n in Path("/proc/self/statm").read_text().split())
    assert ballast.numel() < resident < 1.01 * peak_memory()
    assert peak_memory() <= size  # resident is part of the whole address space


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_meter_names_the_samples_of_a_loss_that_is_not_finite(bad):
    log = Log()
    meter = Meter(log, system=SYSTEM, steps=10, per_epoch=4, batch=2)
    meter.check(0)
    meter.add(torch.tensor(1.0), ["fine"])
    meter.check(1)
    meter.add(torch.tensor(bad), ["k1", "k2"])
    meter.add(torch.tensor(bad), ["later"])
    with pytest.raises(ConfigError, match="not finite at or before step 2: samples k1, k2; lower"):
        meter.report(2, lr=0.5, skipped=0)
    assert log.rows == []


def test_an_evaluation_is_judged_by_abs_rel_and_patience_by_the_loss():
    standing = Standing()
    assert standing.judge({"val/abs_rel": 0.3, "val/loss": 4.0})
    assert not standing.judge({"val/abs_rel": 0.4, "val/loss": 3.0})
    assert (standing.stale, standing.best_abs_rel, standing.best_loss) == (0, 0.3, 3.0)
    assert standing.judge({"val/abs_rel": 0.2, "val/loss": 3.5})
    assert (standing.stale, standing.best_abs_rel, standing.best_loss) == (1, 0.2, 3.0)
    assert standing.best_scores["val/loss"] == 3.5
    assert Standing(**json.loads(json.dumps(asdict(standing)))) == standing
