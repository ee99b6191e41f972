"""Damaged samples: named, counted, and no rank waits for another."""

import json

import pytest
import torch

from llm_mde import dist
from llm_mde.data.index import open_index
from llm_mde.data.plan import Plan
from llm_mde.errors import DataError, LlmMdeError
from llm_mde.training.stopping import DONE
from tests.support.ranks import run_ranks
from tests.support.training import begin, ds_json, make_shards, tiny_config, watch

EPOCH = 9  # steps over the 37 samples, in batches of 4
# Of the first epoch: the first sample of all, and one of each rank later on.
POSITIONS = (0, 13, 22)


def hurt_in_training(folder):
    index = open_index(folder, "train")
    order = Plan(index.counts, batch=4, micro_batch=2, window=3, seed=0).epoch(0)
    places = [order.sample(at) for at in POSITIONS]
    hurt(folder, [index.shards[shard][at] for shard, at in places])


def hurt(folder, entries):
    for entry in entries:
        path = folder / entry.shard
        data = bytearray(path.read_bytes())
        data[entry.offset + entry.size // 2] ^= 1
        path.write_bytes(data)


def train(folder, name, shards, **changes):
    """How the run ended on this rank, what it said, and its record."""
    config = tiny_config(folder / shards, folder, name, **changes)
    run, standing = begin(config, ds_json(2))
    try:
        ended = ("done", watch(run, standing).code)
    except LlmMdeError as error:
        ended = (type(error).__name__, str(error), error.said_elsewhere)
    run.engine.destroy()
    rows = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").open()]
    saved = sorted(path.name for path in config.run_dir.glob("checkpoints/step-*"))
    return {"ended": ended, "lost": standing.lost, "step": standing.step, "rows": rows} | {
        "saved": saved
    }


def refused(folder, name, shards):
    config = tiny_config(folder / shards, folder, name)
    with pytest.raises(DataError) as caught:
        begin(config, ds_json(2))
    return str(caught.value), caught.value.said_elsewhere


def run_cases(rank, folder):
    seen = {
        "before the first step": refused(folder, "refused", "hurt"),
        # Over two epochs and some: each is met at least twice.
        "allowed": train(folder, "allowed", "hurt", data__max_lost=3, train__max_steps=20),
        "too many": train(folder, "too many", "hurt", data__max_lost=2, train__max_steps=EPOCH),
        "in validation": train(folder, "val", "hurt val", train__max_steps=EPOCH),
    }
    torch.save(seen, folder / f"rank{dist.rank()}.pt")


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lost")
    hurt_in_training(make_shards(folder / "hurt"))
    val = make_shards(folder / "hurt val")
    hurt(val, open_index(val, "val").entries[:1])
    run_ranks(run_cases, 2, folder)
    return [torch.load(folder / f"rank{rank}.pt", weights_only=False) for rank in (0, 1)]


def test_one_is_said_before_the_first_step_by_one_rank(ran):
    (said, elsewhere), (_, other) = (ran[rank]["before the first step"] for rank in (0, 1))
    assert "train-00000" in said and "checksum" in said
    assert (elsewhere, other) == (False, True)


def test_as_many_as_allowed_are_left_out_and_counted(ran):
    for rank in (0, 1):
        assert ran[rank]["allowed"]["ended"] == ("done", DONE)
        assert len(ran[rank]["allowed"]["lost"]) == 3
    rows = ran[0]["allowed"]["rows"]
    counts = [row["train/lost_samples"] for row in rows if "train/lost_samples" in row]
    assert counts[-1] == 3
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert len(losses) == 20 and all(map(torch.isfinite, torch.tensor(losses)))


def test_one_too_many_ends_all_ranks_and_saves_nothing(ran):
    ends = [ran[rank]["too many"]["ended"] for rank in (0, 1)]
    told = [end for end in ends if not end[2]]
    assert told and all(end[0] == "DataError" for end in told)
    assert "with it 3 are lost, data.max_lost allows 2" in told[0][1]
    assert ran[0]["too many"]["step"] == ran[1]["too many"]["step"]
    assert ran[0]["too many"]["saved"] == []


def test_one_in_validation_ends_all_ranks(ran):
    ends = [ran[rank]["in validation"]["ended"] for rank in (0, 1)]
    [told] = [end for end in ends if not end[2]]
    assert told[0] == "DataError" and "val-000000.tar" in told[1]
    assert ran[0]["in validation"]["saved"] == []
