"""The table of memory of a tiny model; benchmarks/memory.py is for the reference model."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


def test_two_ranks_hold_what_is_said(tmp_path: Path) -> None:
    words = ["--config", "launch/demo.yaml", "--ds_config", "launch/ds/zero2.json"]
    command = [sys.executable, "-m", "benchmarks.memory", *words, "--json", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    table = [line for line in done.stdout.splitlines() if line.startswith("| zero2 |")]
    told = json.loads((tmp_path / "out").read_text())
    result = told["results"]["zero2"]
    said = result["said"]["2"]
    assert len(table) == 1 and said["gradients"] == 2 * told["trainable"]
    for rank, measured in enumerate(result["measured"]):
        held = measured["held"]["cpu"]
        assert measured["rank"] == rank and measured["peak"] > measured["before"] > 2**20
        assert held["frozen"] + held["trainable"] == pytest.approx(said["weights"], rel=0.01)
        assert held["gradients"] == pytest.approx(said["gradients"], rel=0.01)
        assert held["masters"] + held["moments"] == pytest.approx(said["optimizer"], rel=0.01)
