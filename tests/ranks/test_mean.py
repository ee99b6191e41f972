"""The running mean of the weights: what it is, who sees it, and that training does not."""

import functools
import json
from unittest.mock import patch

import pytest
import torch
from safetensors.torch import load_file

from llm_mde.model.depth_model import DepthModel
from llm_mde.training import loop, state
from llm_mde.training.statistics import running_statistics
from tests.support.ranks import run_ranks
from tests.support.training import ds_json, make_shards, tiny_config, watched_run

DECAY = 0.8
CASES = {
    **{f"stage {stage}": ds_json(stage) for stage in (0, 2)},
    "split": ds_json(3, whole_below=0),
    "bf16": ds_json(2, bf16={"enabled": True}),
}
# One epoch of nine steps and its evaluation, at a rate that moves the weights well.
RUN = {"train__max_steps": 9, "train__eval_every": 1, "optim__lr": 1e-3}


def run_cases(rank, folder):
    seen = {}
    for name, ds in CASES.items():
        config = tiny_config(folder / "shards", folder, name, **RUN, optim__ema=DECAY)
        weights = []
        with patch.object(loop.state, "move_mean", noting(weights)):
            run = watched_run(config, ds)
        plain = watched_run(tiny_config(folder / "shards", folder, f"{name} plain", **RUN), ds)
        seen[name] = {"weights": weights, "run": run, "plain": plain}
    if rank == 0:
        torch.save(seen, folder / "seen.pt")


def noting(weights):
    """`move_mean` that notes the whole fp32 weights of each step."""
    move = state.move_mean

    def moved(engine, *, decay):
        move(engine, decay=decay)
        named = state._trainable(engine.module)
        weights.append({n: state._whole(engine, w, state.WEIGHTS).clone() for n, w in named})

    return moved


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mean")
    make_shards(folder / "shards")
    run_ranks(run_cases, 2, folder)
    return folder, torch.load(folder / "seen.pt", weights_only=False)


def saved(folder, name, kind):
    checkpoints = folder / name / "checkpoints"
    return load_file(checkpoints / (checkpoints / "last").read_text().strip() / kind)


@pytest.mark.parametrize("name", CASES)
def test_it_is_the_mean_that_its_decay_says(ran, name):
    folder, seen = ran
    mean, weights = saved(folder, name, "ema.safetensors"), seen[name]["weights"]
    assert len(weights) == 9
    start = initial(folder, name)
    for key in weights[0]:
        want = start[key].double()
        for step in weights:
            want = DECAY * want + (1 - DECAY) * step[key].double()
        torch.testing.assert_close(mean[key].double(), want, rtol=1e-5, atol=1e-7)
        assert not torch.equal(weights[-1][key], mean[key])
    # Of the statistics, too: their moves are as large as their batches differ.
    moves = [
        torch.cat([value.flatten() for value in step]) for step in seen[name]["run"].statistics
    ]
    want = torch.cat(
        [value.flatten() for value in running_statistics(model(folder, name)).values()]
    )
    for step in moves:
        want = DECAY * want + (1 - DECAY) * step
    got = torch.cat([value.flatten() for key, value in mean.items() if key not in weights[0]])
    assert got.sort().values == pytest.approx(want.sort().values, rel=1e-5)


@functools.cache
def model(folder, name):
    config = tiny_config(folder / "shards", folder, name, **RUN)
    return DepthModel(config.model, seed=config.seed)


def initial(folder, name):
    low = CASES[name].get("bf16", {}).get("enabled") is True
    weights = {key: value.detach() for key, value in model(folder, name).named_parameters()}
    return {k: v.bfloat16().float() if low else v for k, v in weights.items()}


@pytest.mark.parametrize("name", CASES)
def test_it_is_scored_and_exported_and_trains_nothing(ran, name):
    folder, seen = ran
    run, plain = seen[name]["run"], seen[name]["plain"]
    exported = torch.load(folder / name / "exported.pt")
    mean = saved(folder, name, "ema.safetensors")
    assert set(exported) == set(mean)
    fp32 = mean if name != "bf16" else running_statistics(model(folder, name))
    for key, value in exported.items():
        want = mean[key] if key in fp32 else mean[key].bfloat16().float()
        assert torch.equal(value, want), key
    assert run.train() == plain.train()
    assert {k: v for k, v in run.files.items() if k != "ema.safetensors"} == plain.files
    assert run.train("val/loss") != plain.train("val/loss")


def test_without_it_nothing_is_kept_or_exchanged(ran):
    folder, _ = ran
    left = folder / "stage 0 plain" / "checkpoints" / "step-000009" / "manifest.json"
    assert "ema.safetensors" not in json.loads(left.read_text())["files"]
