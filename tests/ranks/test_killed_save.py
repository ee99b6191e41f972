"""Rank 0 is killed at each moment of a save that matters: the run ends as if it had not been."""

import contextlib
import os
import signal
from unittest.mock import patch

import pytest
import torch
from torch.multiprocessing import ProcessExitedException

from llm_mde import dist
from llm_mde.training import checkpoint, state
from llm_mde.training.stopping import DONE
from tests.support.ranks import run_ranks
from tests.support.training import ds_json, make_shards, tiny_config, watched_run

# 37 samples, nine steps an epoch. Saves after steps 3, 6 and 9, which is evaluated and the best.
RUN = {"train__max_steps": 9, "train__eval_every": 1, "train__save_steps": 3, "train__keep": 1}


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file():
    def save_file(tensors, path, about):
        path.write_bytes(b"half of it")
        die()

    return patch.object(state, "save_file", save_file)


def at_call(owner, name, number):
    """Die instead of the call, the `number`-th."""
    whole, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(args)
        if len(calls) == number:
            die()
        return whole(*args, **kwargs)

    return patch.object(owner, name, call)


def before_best():
    whole = os.replace

    def replace(source, target):
        if target.name == "best":
            die()
        whole(source, target)

    return patch.object(os, "replace", replace)


# What it dies in, and the step from which the next start goes on.
MOMENTS = {
    "half a file, in the first save": (half_a_file, 0),
    "whole, before its name": (lambda: at_call(os, "rename", 2), 3),
    "between checkpoint and pointers": (lambda: at_call(checkpoint, "_point", 2), 6),
    "between the pointers": (before_best, 9),
}


def run(folder, name):
    config = tiny_config(folder / "shards", folder, name, **RUN)
    return watched_run(config, ds_json(2))


def killed(rank, folder, name):
    with MOMENTS[name][0]() if rank == 0 else contextlib.nullcontext():
        run(folder, name)


def ended(rank, folder):
    seen = {name: run(folder, name) for name in ["undisturbed", *MOMENTS]}
    if dist.rank() == 0:
        torch.save(seen, folder / "seen.pt")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("killed")
    make_shards(folder / "shards")
    for name in MOMENTS:
        with pytest.raises(ProcessExitedException, match="SIGKILL"):
            run_ranks(killed, 2, folder, name)
    run_ranks(ended, 2, folder)
    return folder, torch.load(folder / "seen.pt", weights_only=False)


@pytest.mark.parametrize("name", MOMENTS)
def test_a_run_killed_in_a_save_ends_as_if_it_had_not_been(ran, name):
    folder, seen = ran
    whole, again = seen["undisturbed"], seen[name]
    assert (again.start, again.code) == (MOMENTS[name][1], DONE)
    assert len(whole.files) == 3 and again.files == whole.files
    assert again.train() == whole.train() and len(whole.train()) == 9
    for pointer in ("best", "last"):
        assert (folder / name / "checkpoints" / pointer).read_text() == "step-000009\n"
