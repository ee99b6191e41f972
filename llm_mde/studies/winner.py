"""The command that trains the best configuration of a sweep in full."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Training:
    """How a configuration trains in full: as a sweep's trials, but for how short they are."""

    base: Path
    """YAML that the run starts from."""
    ds_config: Path
    """DeepSpeed's JSON."""
    sets: Sequence[str] = ()
    """`a.b=c` words that hold for the full run as well; a configuration's own settings win."""


def command(name: str, settings: Mapping[str, Any], training: Training) -> list[str]:
    """The words that train a configuration as a run of this name.

    settings: what the configuration sets, by dotted path.
    """
    own = [f"{path}={json.dumps(value, default=str)}" for path, value in settings.items()]
    words = ["deepspeed", "launch/train.py", "--ds_config", str(training.ds_config)]
    words += ["--config", str(training.base)]
    return [*words, *(w for one in (*training.sets, *own, f"name={name}") for w in ("--set", one))]


def typed(words: Sequence[str]) -> str:
    """Words for a shell, a line for each option."""
    lines: list[list[str]] = [[]]
    for word in words:
        if word.startswith("--"):
            lines.append([])
        lines[-1].append(shlex.quote(word))
    return " \\\n    ".join(" ".join(line) for line in lines)
