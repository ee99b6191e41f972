"""Whom a rank names that waits in vain: those that are away, not those that wait as it does."""

from datetime import timedelta

import pytest
import torch.distributed

from llm_mde import pulse
from llm_mde.pulse import Pulse, announce

WORLD = 4


@pytest.fixture
def ranks(monkeypatch):
    """The pulses of four ranks, the first of which keeps the store; quick ones."""
    monkeypatch.setattr(pulse, "PULSE_S", 0.2)
    waits = timedelta(seconds=5)
    keeper = torch.distributed.TCPStore("127.0.0.1", 0, is_master=True, timeout=waits)
    stores = [keeper]
    for _ in range(1, WORLD):
        stores.append(torch.distributed.TCPStore("127.0.0.1", keeper.port, timeout=waits))
    for rank, store in enumerate(stores):
        announce(store, rank)
    made = [
        Pulse(store, rank=rank, world=WORLD, timeout_s=60, host="first")
        for rank, store in enumerate(stores)
    ]
    yield made
    for one in made:
        one.end()


def test_nobody_is_named_where_all_are_at_one_place(ranks):
    assert [one.missing() for one in ranks] == [[]] * WORLD


def test_who_is_behind_is_named(ranks):
    for rank, one in enumerate(ranks):
        one.turns = 7 - (rank == 2)
    [said] = ranks[0].missing()
    assert said.startswith("rank 2 on ") and said.endswith("is at micro-batch 6, others at 7")


def test_who_leaves_after_waiting_in_vain_is_not_named(ranks, caplog):
    """Each sees its neighbour end before it looks around itself."""
    ranks[1].end()
    for rank in (2, 3, 0):
        assert ranks[rank].blame()
        ranks[rank].end()
    told = [text.partition(";")[0] for text in caplog.messages]
    assert [text.partition(" on ")[0] for text in told] == [
        f"rank {rank} waits in vain: rank 1" for rank in (2, 3, 0)
    ]
    assert all(text.endswith(" shows no sign of life") for text in told)


def test_rank_0_and_its_store_stay_while_others_look_around(ranks, monkeypatch):
    slept = []
    ranks[1].end()
    for rank in (3, 0):
        assert ranks[rank].blame()
    monkeypatch.setattr(pulse.time, "sleep", slept.append)
    for rank in (3, 2):
        ranks[rank].end()
        assert slept == []
    ranks[0].end()
    assert sum(slept) > pulse.LATE * pulse.PULSE_S


def test_all_signs_come_in_one_request(ranks):
    asked = []

    class Counting:
        def multi_get(self, keys):
            asked.append(keys)
            return [b"1 0 here"] * len(keys)

    ranks[0]._store = Counting()
    ranks[0].missing()
    assert asked == [[f"pulse/{rank}" for rank in range(WORLD)]] * 2
