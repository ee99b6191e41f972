import socket

import pytest
import torch

from llm_mde import dist
from llm_mde.errors import ConfigError
from llm_mde.training.doctor import _all_reduce
from tests.support.ranks import run_ranks


def check_collectives(rank):
    assert (dist.rank(), dist.world()) == (rank, 2)

    mine = torch.tensor([1.0 + rank, 10.0], dtype=torch.float64)
    assert dist.all_reduce_sum(mine).tolist() == [3.0, 20.0]
    assert mine.tolist() == [1.0 + rank, 10.0]

    rows = dist.gather_rows(torch.full((1 + rank, 2), float(rank)))
    assert rows.tolist() == [[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]

    found = _all_reduce(dist.Ranks(rank, 2, rank, torch.device("cpu")))
    assert found.state == "ok" and found.said.startswith("2 ranks on cpu")

    tensors = [torch.full((2, 3), float(rank)), torch.tensor([4.0 * rank]).bfloat16()]
    dist.average(tensors)
    assert tensors[0].tolist() == [[0.5] * 3] * 2
    assert tensors[1].tolist() == [2.0]
    assert tensors[1].dtype == torch.bfloat16
    dist.average([])

    assert dist.from_rank_0({"rank": rank}) == {"rank": 0}
    assert dist.all_agree(True)
    assert not dist.all_agree(rank == 0)


def test_collectives_of_two_ranks_give_hand_values():
    run_ranks(check_collectives, 2)


def test_a_port_that_is_taken_is_said_to_be(monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        given = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (given | {"MASTER_PORT": port}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ConfigError, match=f"MASTER_PORT {port}: is taken .* --master_port"):
            dist.join()
