"""Devices of a trial."""

import pytest

from llm_mde.errors import ConfigError
from llm_mde.studies.share import Devices, Share, devices_of


@pytest.mark.parametrize(
    ("asked", "nodes", "of", "expected"),
    [
        (Share(), [(8, 0)], 24, Devices(8, 0.0, 1)),  # a core each
        (Share(), [(8, 0)], 2, Devices(2, 0.0, 4)),  # few trials share out all cores
        (Share(at_once=2), [(8, 0)], 24, Devices(2, 0.0, 4)),
        (Share(cpus=4), [(8, 0)], 24, Devices(2, 0.0, 4)),
        (Share(), [(64, 4)], 24, Devices(4, 1.0, 1)),  # a GPU each
        (Share(at_once=8), [(64, 4)], 24, Devices(8, 0.5, 1)),
        (Share(at_once=6), [(64, 4)], 24, Devices(6, 0.5, 1)),  # two on some
        (Share(gpus=0.25), [(64, 4)], 24, Devices(16, 0.25, 1)),
        (Share(gpus=2), [(64, 4)], 24, Devices(2, 2, 1)),
        (Share(gpus=2), [(64, 3), (64, 3)], 24, Devices(2, 2, 1)),  # no trial on two nodes
        (Share(gpus=0.25, cpus=8), [(16, 1)], 24, Devices(2, 0.25, 8)),  # cores are what lacks
        (Share(gpus=0), [(8, 4)], 24, Devices(8, 0.0, 1)),
        (Share(), [(2, 0), (2, 0)], 24, Devices(4, 0.0, 1)),
        (Share(at_once=1), [(2, 0), (2, 0)], 24, Devices(1, 0.0, 2)),
    ],
)
def test_each_trial_gets_its_part(
    asked: Share, nodes: list[tuple[int, int]], of: int, expected: Devices
) -> None:
    assert devices_of(asked, nodes=nodes, of=of) == expected


@pytest.mark.parametrize(
    ("asked", "nodes", "message"),
    [
        (Share(gpus=4), [(8, 2)], "--gpus-per-trial 4: .*the largest has 2 GPUs"),
        (Share(gpus=1), [(8, 0)], "--gpus-per-trial 1: .*the largest has no GPUs"),
        (Share(gpus=4), [(8, 2), (8, 2)], "no machine has as many, the largest has 2 GPUs"),
        (Share(cpus=9), [(8, 0), (4, 0)], "--cpus-per-trial 9: .*the largest has 8 CPU cores"),
        (Share(gpus=1.5), [(8, 2)], "above 1, expected a whole number"),
    ],
)
def test_more_than_there_is_says_how_many_there_are(
    asked: Share, nodes: list[tuple[int, int]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        devices_of(asked, nodes=nodes, of=2)
