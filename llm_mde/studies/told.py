"""What a report says of how its runs were made."""

from collections.abc import Sequence
from pathlib import Path

import torch

from llm_mde.clone import version
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
        "version": version(),
    }
