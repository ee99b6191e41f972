"""The recipe for SLURM, under a pretended srun."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

RECIPE = Path("launch/slurm.sbatch").absolute()


def pretend(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/bash\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


@pytest.mark.parametrize("restarts", ["", "1"])
@pytest.mark.parametrize(("code", "requeued"), [(0, False), (75, True), (2, False), (137, False)])
def test_a_job_is_requeued_where_it_saved_alone(
    tmp_path: Path, code: int, requeued: bool, restarts: str
) -> None:
    pretend(tmp_path, "srun", f'printf "%s\\n" "$PWD" "$@" > {tmp_path}/asked; exit {code}')
    pretend(tmp_path, "scontrol", f'echo "$@" > {tmp_path}/requeued')
    env = (
        os.environ
        | {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SLURM_SUBMIT_DIR": str(RECIPE.parents[1]),
            "SLURM_JOB_ID": "17",
        }
        | ({"SLURM_RESTART_COUNT": restarts} if restarts else {})
    )
    words = ["--config", "a b.yaml"]
    done = subprocess.run(["bash", str(RECIPE), *words], env=env, check=False)
    assert done.returncode == code
    folder, *asked = (tmp_path / "asked").read_text().splitlines()
    assert folder == str(RECIPE.parents[1])
    assert asked[:2] == ["--kill-on-bad-exit=1", "--cpus-per-task=8"]
    assert asked[2:4] == [".venv/bin/python", "launch/train.py"]
    again = ["--resume", "auto"] if restarts else []
    assert asked[4:] == ["--ds_config", "launch/ds/zero1.json", "--config", "a b.yaml", *again]
    told = tmp_path / "requeued"
    assert told.exists() is requeued
    assert not requeued or told.read_text() == "requeue 17\n"


def test_it_asks_to_be_told_before_its_limit() -> None:
    options = [line.split()[1] for line in RECIPE.read_text().splitlines() if "#SBATCH" in line]
    assert {"--signal=USR1@300", "--requeue", "--open-mode=append"} <= set(options)
