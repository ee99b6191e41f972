"""What a report says of how its runs were made."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from llm_mde import __version__
from llm_mde.credentials import redacted
from llm_mde.launcher import cores
from llm_mde.studies.process import gpu_ids


def told(*, base: Path | None, tiny: bool, sets: Sequence[str], ds_config: Path) -> dict[str, str]:
    """What a report says of how its runs were made."""
    device = f"{cores()} CPU cores"
    if gpus := len(gpu_ids()):
        device = f"{gpus} x {torch.cuda.get_device_name()}"
    named = str(base or "the recipe's")
    return {
        "base": f"{named}, as a tiny model" if tiny or base is None else named,
        "settings": redacted(" ".join(sets)) or "none beside the recipe's",
        "ds_config": str(ds_config),
        "device": device,
        "version": _version(),
    }


def _version() -> str:
    """The version, and the commit where this package lies in a clone."""
    # --always alone would find the commit of whatever clone an environment lies in.
    package = Path(__file__).parents[1]
    git = ["git", "-C", str(package)]
    try:
        subprocess.run(
            [*git, "ls-files", "--error-unmatch", "cli.py"], capture_output=True, check=True
        )
        words = [*git, "describe", "--always", "--dirty", "--exclude=*"]
        said = subprocess.run(words, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return __version__
    return f"{__version__}, commit {said}"
