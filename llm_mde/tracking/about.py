"""What a run says of itself beside its numbers: tags, and files of its folder."""

import getpass
import json
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from llm_mde import __version__
from llm_mde.clone import commit
from llm_mde.config import Config
from llm_mde.recipes import settings_of
from llm_mde.tracking.tracker import Tracker

TAGS, LEGEND, ENVIRONMENT = "tags.json", "legend.md", "environment.json"
FILES = ("config.yaml", "ds.json", ENVIRONMENT, LEGEND)
DERIVED = (
    "name",
    "ds.train_batch_size",
    "ds.train_micro_batch_size_per_gpu",
    "ds.gradient_accumulation_steps",
    "ds.gradient_clipping",
)
NOTE = "mlflow.note.content"  # MLflow shows it, as Markdown, on top of a run's page


def origin() -> dict[str, str]:
    """Tags of whatever this process records: MLflow's own names, where it has one."""
    tags = {
        "mlflow.source.name": "llm-mde",
        "mlflow.source.type": "LOCAL",
        "llm_mde.version": __version__,
        "host": socket.gethostname(),
    }
    with suppress(OSError, KeyError):  # a user id without a name, as in many containers
        tags["mlflow.user"] = getpass.getuser()
    if found := commit():
        tags |= {"mlflow.source.git.commit": found.sha, "git.dirty": str(found.dirty).lower()}
    return tags


def parameters(config: Config, ds: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path -> value of what a run was made with, DeepSpeed's below `ds.`.

    Without its name, and what DeepSpeed has from the configuration: between the trials of a sweep
    they would differ beside what is swept.
    """
    found = settings_of(config, ds)
    return {path: value for path, value in found.items() if path not in DERIVED}


def describe(tracker: Tracker, run_dir: Path) -> None:
    """Record the tags and files that lie in a run's folder; older runs have fewer."""
    path, legend = run_dir / TAGS, run_dir / LEGEND
    tags: dict[str, str] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    if legend.is_file():
        tags[NOTE] = legend.read_text("utf-8")
    tracker.tags(tags)
    tracker.files([run_dir / name for name in FILES if (run_dir / name).is_file()])
