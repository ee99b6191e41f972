"""A run that goes on from another one's: its newest checkpoint, and with it record and adapter.

Scores and adapter must be of the weights that a run has, wherever these come from.
"""

import json
import shutil
from contextlib import suppress
from pathlib import Path

from llm_mde.tracking.tracker import METRICS_FILE, read_metrics
from llm_mde.training.checkpoint import copy_last, last_step
from llm_mde.training.folder import write_whole

CHECKPOINTS, ADAPTER = "checkpoints", "adapter"  # of a run's folder


def copy(run: Path, into: Path) -> None:
    """Copy what a run has that may be going on.

    Raises:
        CheckpointError: no checkpoint comes.
    """
    (into / CHECKPOINTS).mkdir()
    copy_last(run / CHECKPOINTS, into / CHECKPOINTS)
    step = last_step(into / CHECKPOINTS)
    rows = [row for row in read_metrics(run / METRICS_FILE) if row["step"] <= step]
    write_whole(into / METRICS_FILE, "".join(json.dumps(row) + "\n" for row in rows))
    with suppress(FileNotFoundError):  # none yet, or just being replaced
        shutil.copytree(run / ADAPTER, into / ADAPTER)


def adopt(run: Path, source: Path) -> None:
    """Put what `copy` made in place of a run's own."""
    for name in (CHECKPOINTS, ADAPTER):
        shutil.rmtree(run / name, ignore_errors=True)
        if (source / name).is_dir():
            shutil.copytree(source / name, run / name)
    shutil.copyfile(source / METRICS_FILE, run / METRICS_FILE)
