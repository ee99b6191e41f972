"""A rank that stops in the middle of training: the other one names it, within its time-out."""

import os
import re
import signal
import subprocess
import sys
import time

from llm_mde.recipes import dump
from tests.support.training import make_shards, tiny_config


def test_a_stopped_rank_is_named_by_the_one_that_waits(tmp_path):
    config = tiny_config(
        make_shards(tmp_path / "shards"), tmp_path, "stalled", train__max_steps=100_000,
        train__timeout=5, train__eval_every=100_000,
    )  # fmt: skip
    (tmp_path / "run.yaml").write_text(dump(config))
    words = ["llm_mde", "train", "--config", str(tmp_path / "run.yaml")]
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29519", "WORLD_SIZE": "2"}
    env = os.environ | meeting | {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", *words],
            env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    try:
        for line in ranks[0].stderr:
            if line.startswith("step 2/"):
                break
        ranks[1].send_signal(signal.SIGSTOP)
        began = time.monotonic()
        said = ranks[0].stderr.read()
        assert ranks[0].wait() == 1
        assert time.monotonic() - began < 60
    finally:
        for one in ranks:
            one.kill()
            one.wait()
            one.stderr.close()
    told = r"rank 0 waits in vain: rank 1 on \S+ shows no sign of life; the same command goes on"
    assert re.search(told, said)
    assert "Traceback" not in said
