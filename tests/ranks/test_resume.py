"""A run that was stopped, or whose newest checkpoint is damaged, ends as if it had not been.

To the last bit: fp32 masters, moments and batch-norm statistics of every rank, learning rates,
losses, sample keys.
"""

import json
import logging
import os
import signal
import subprocess
import sys

import pytest
import torch

from llm_mde import dist
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.recipes import dump
from llm_mde.training import checkpoint
from llm_mde.training.stopping import DONE, REQUEUE
from tests.support.ranks import run_ranks
from tests.support.training import (
    RESUMED,
    assert_the_same,
    begin,
    ds_json,
    make_shards,
    same,
    steady,
    tiny_config,
    watched_run,
)

STAGES = (0, 1, 2, 3)
STOPS = (1, 2, 3, 4)  # every step, one after the other
POISON = 2  # the global batch in which the last rank's losses are not numbers
# The same without accumulation, and in bf16.
OTHERS = {
    "accumulation 1": ({"train__batch": 4}, {}),
    "bf16 and a running mean": ({"optim__ema": 0.8}, {"bf16": {"enabled": True}}),
}
# What of it lies in the host's memory: ZeRO stage, DeepSpeed's JSON beside the shipped one.
OFFLOADED = {
    "offload 2": (2, {}),
    "offload 3": (3, {}),
    "offload 3, bf16": (3, {"bf16": {"enabled": True}}),
}


def run_cases(rank, folder):
    seen = {}
    for stage in STAGES:
        seen[f"whole {stage}"] = [run(folder, f"whole{stage}", stage)]
        seen[f"parts {stage}"] = [
            run(folder, f"parts{stage}", stage, stop_at=stop) for stop in (*STOPS, None)
        ]
        for name, (changes, ds) in OTHERS.items():
            seen[f"{name}, whole {stage}"] = [run(folder, f"{name} {stage}", stage, changes, ds)]
            seen[f"{name}, parts {stage}"] = [
                run(folder, f"{name} parts {stage}", stage, changes, ds, stop_at=stop)
                for stop in (3, None)
            ]
        seen |= poisoned_runs(folder, stage)
        if stage == 2:  # before 3, which changes torch's linear layer for the rest of a process
            seen["other saves"] = [run(folder, "other saves", 2, {"train__save_steps": 3})]
            seen |= damaged_runs(folder)
        seen |= offloaded_runs(folder, stage)
    seen["again"] = [run(folder, "whole1", 1)]
    refuse_foreign(folder)
    refuse_unknown(folder)
    seen["diverged"] = {loss: diverge(folder, loss) for loss in ("silog", "ssi")}
    torch.save(seen, folder / f"rank{rank}.pt")


def run(folder, name, stage, changes=None, ds=None, *, offload=False, **how):
    config = tiny_config(folder / "shards", folder, name, **RESUMED | (changes or {}))
    return watched_run(config, ds_json(stage, offload=offload, **ds or {}), **how)


def offloaded_runs(folder, stage):
    seen = {}
    for name, (of_stage, more) in OFFLOADED.items():
        if of_stage == stage:
            how = {"ds": more, "offload": True}
            seen[name] = [run(folder, name, stage, **how)]
            seen[f"{name}, parts"] = [
                run(folder, f"{name} parts", stage, stop_at=stop, **how) for stop in (3, None)
            ]
    return seen


def poisoned_runs(folder, stage):
    with warnings() as heard:
        whole = run(folder, f"poisoned {stage}", stage, poison=POISON)
    parts = [
        run(folder, f"poisoned parts {stage}", stage, poison=POISON, stop_at=stop)
        for stop in (3, None)
    ]
    name = f"poisoned {stage}"
    return {name: [whole], f"{name}, parts": parts, f"{name}, heard": heard}


def damaged_runs(folder):
    seen = {}
    newest = folder / "whole2" / "checkpoints" / "step-000005"
    for name, hurt in DAMAGES.items():
        if dist.rank() == 0:
            hurt(newest)
        dist.all_agree(True)
        with warnings() as heard:
            seen[name] = [run(folder, "whole2", 2)]
        seen[f"{name}, heard"] = heard
        seen[f"{name}, afterwards"] = checkpoint.problem(newest)
        dist.all_agree(True)  # before the next damage
    return seen


def flip_a_byte(newest):
    path = newest / "exp_avg.safetensors"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def lose_a_file(newest):
    (newest / "exp_avg_sq.safetensors").unlink()


DAMAGES = {"flipped byte": flip_a_byte, "missing file": lose_a_file}


class warnings(logging.Handler):
    """Warnings of this project while the block runs."""

    def __enter__(self):
        self.heard = []
        logging.getLogger("llm_mde").addHandler(self)
        return self.heard

    def __exit__(self, *_):
        logging.getLogger("llm_mde").removeHandler(self)

    def emit(self, record):
        self.heard.append(record.getMessage())


def refuse_foreign(folder):
    foreign = folder / "foreign" / "step-000001"
    foreign.mkdir(parents=True, exist_ok=True)
    (foreign / "mp_rank_00_model_states.pt").write_bytes(b"code")  # DeepSpeed's own, a pickle
    config = tiny_config(folder / "shards", folder, "fresh")
    with pytest.raises(CheckpointError, match="no manifest.json, so it was not written by this"):
        begin(config, ds_json(1), resume=str(foreign))
    config = tiny_config(folder / "shards", folder, "foreign")
    named = folder / "whole1" / "checkpoints" / "last"
    with pytest.raises(ConfigError, match="ds.bf16.enabled was False, now True"):
        begin(config, ds_json(1, bf16={"enabled": True}), resume=str(named))


def refuse_unknown(folder):
    config = tiny_config(folder / "shards", folder, "unknown")
    ds = ds_json(1, zero_optimization={"stage": 1, "reduce_bucket": 5})
    with pytest.raises(ConfigError, match="ds_config: .*reduce_bucket: Extra inputs are not"):
        begin(config, ds)


def diverge(folder, loss):
    config = tiny_config(
        folder / "shards", folder, f"diverged {loss}", optim__lr=1e30, train__log_every=100,
        train__save_steps=4, train__max_steps=6, train__loss=loss,
    )  # fmt: skip
    with pytest.raises(ConfigError) as error:
        watched_run(config, ds_json(0))
    left = sorted(path.name for path in config.run_dir.glob("checkpoints/*"))
    return str(error.value), left


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    make_shards(folder / "shards")
    run_ranks(run_cases, 2, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_run_in_three_parts_is_the_whole_run(ran, stage, rank):
    [whole], parts = ran[rank][f"whole {stage}"], ran[rank][f"parts {stage}"]
    assert [part.code for part in parts] == [REQUEUE] * len(STOPS) + [DONE]
    assert [part.start for part in parts] == [0, *STOPS]
    assert_the_same(whole, parts)
    assert len(whole.train()) == 5 and sum("val/loss" in row for row in whole.rows) == 2


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("stage", STAGES)
def test_so_is_one_without_accumulation_or_in_bf16(ran, name, stage):
    for rank in (0, 1):
        [whole], parts = ran[rank][f"{name}, whole {stage}"], ran[rank][f"{name}, parts {stage}"]
        assert [part.start for part in parts] == [0, 3]
        assert_the_same(whole, parts)


@pytest.mark.parametrize("name", OFFLOADED)
def test_what_lies_in_the_hosts_memory_moves_nothing(ran, name):
    stage, more = OFFLOADED[name]
    for rank in (0, 1):
        [whole], parts = ran[rank][name], ran[rank][f"{name}, parts"]
        assert_the_same(whole, parts)
        [there] = ran[rank][f"bf16 and a running mean, whole {stage}" if more else f"whole {stage}"]
        # Masters are cut otherwise, so that the norm of the gradients is summed otherwise.
        assert whole.train() == pytest.approx(there.train(), rel=1e-5)


def test_saves_move_nothing(ran):
    for rank in (0, 1):
        [often], [seldom] = ran[rank]["whole 2"], ran[rank]["other saves"]
        assert_the_same(often, [seldom])


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_whose_gradient_is_not_finite_moves_nothing(ran, stage):
    for rank in (0, 1):
        [whole], parts = ran[rank][f"poisoned {stage}"], ran[rank][f"poisoned {stage}, parts"]
        assert_the_same(whole, parts)
        assert whole.code == DONE and len(whole.train()) == 5
        assert len(whole.keys) == 6 * 3  # a global batch more than steps
        assert all(torch.isfinite(value).all() for value in whole.state.values())
        assert [n for row in whole.rows if (n := row.get("train/skipped_steps"))] == [1.0] * 4
        # Before the poison, it is the run that was never poisoned.
        [clean] = ran[rank][f"whole {stage}"]
        assert whole.train()[:2] == clean.train()[:2] and whole.train()[2] != clean.train()[2]
        assert same(whole.statistics[:2], clean.statistics[:2])
    said, keys = ran[1][f"poisoned {stage}, heard"], ran[1][f"poisoned {stage}"][0].keys
    lost = [key for micro_batch in keys[3 * POISON :][:3] for key in micro_batch]
    assert (
        said[0]
        == f"left out a batch after step 2: a loss of samples {', '.join(lost)} is not finite"
    )
    assert "after step 2: the gradient is not finite" in ran[0][f"poisoned {stage}, heard"][0]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_taken(ran, damage):
    for rank in (0, 1):
        [whole], [again] = ran[rank]["whole 2"], ran[rank][damage]
        assert (again.start, again.code) == (4, DONE)
        assert same(again.state, whole.state) and same(again.moments, whole.moments)
        assert ran[rank][f"{damage}, afterwards"] is None
        heard = ran[rank][f"{damage}, heard"]
        assert "step-000005" in heard[0] and "trying the one before" in heard[0]


def test_a_complete_run_has_nothing_to_do(ran):
    [again] = ran[0]["again"]
    assert (again.start, again.code, again.keys) == (5, DONE, [])
    assert steady(again.rows) == steady(ran[0]["whole 1"][0].rows)


@pytest.mark.parametrize("loss", ["silog", "ssi"])
def test_a_run_that_no_longer_learns_stops_before_it_is_saved(ran, loss):
    said, left = zip(*(ran[rank]["diverged"][loss] for rank in (0, 1)), strict=True)
    assert all("10 batches in a row had a gradient that is not finite" in one for one in said)
    assert left[0] == []


def test_sigterm_to_every_process_saves_and_the_next_start_completes(tmp_path):
    config = tiny_config(
        make_shards(tmp_path / "shards"), tmp_path, "stopped", train__max_steps=60,
        train__eval_every=100, data__workers=1,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(dump(config))
    command = [sys.executable, "launch/train.py", "--config", str(tmp_path / "run.yaml")]
    env = os.environ | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    options = {"env": env, "text": True, "stderr": subprocess.PIPE, "stdout": subprocess.PIPE}

    with subprocess.Popen(command, start_new_session=True, **options) as child:
        assert child.stderr is not None
        for line in child.stderr:
            if line.startswith("step 2/60"):
                os.killpg(child.pid, signal.SIGTERM)
                break
        said = child.stderr.read()
    assert child.returncode == 75
    assert "stopped as asked, saved at step" in said
    [saved] = (config.run_dir / "checkpoints").glob("step-*")

    done = subprocess.run(command, **options, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert f"resuming from {saved}" in done.stderr
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").open()]
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(1, 61))
    assert (config.run_dir / "adapter" / "llm_mde.json").is_file()
