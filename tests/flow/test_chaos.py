"""Random kills, three of the many that benchmarks/chaos.py is for."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.timeout(900)
def test_a_run_killed_three_times_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    words = ["--kills", "3", "--steps", "20", "--seed", "2"]
    places = ["--work", str(tmp_path / "chaos"), "--json", str(tmp_path / "out")]
    command = [sys.executable, "-m", "benchmarks.chaos", *words, *places]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads((tmp_path / "out").read_text())
    assert sum(told["victims"].values()) == 3
    assert told["ends"] >= 1 and told["differences"] == []
    # A checkpoint every third step and at every evaluation; a step may end while one is written.
    assert max(told["lost_steps"]) <= 4
