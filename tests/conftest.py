"""Tests run on the CPU, also where there is a GPU; those of tests/gpu by `pytest -m gpu tests/gpu`.

Which it is must stand before torch looks, so it is one of a whole process and its children.
"""

import os

import pytest

ON_CPU = {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("markexpr") != "gpu":
        os.environ |= ON_CPU


def pytest_runtest_setup(item: pytest.Item) -> None:
    if not item.get_closest_marker("gpu"):
        return
    import torch  # seconds, for those who look at a GPU

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is seen; 'pytest -m gpu tests/gpu' lets tests see one")
