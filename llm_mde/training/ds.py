"""DeepSpeed's JSON as a user writes it; read without DeepSpeed, which takes seconds to import."""

import json
from pathlib import Path
from typing import Any

from llm_mde.errors import ConfigError
from llm_mde.recipes import find

# Keys that DeepSpeed knows and a run may not carry, and why.
FOREIGN = {
    "optimizer": "is set by the configuration (optim.*); remove it here",
    "scheduler": "is set by the configuration (optim.*); remove it here",
    "bfloat16": "is an old name; write bf16",
}
SECTIONS = ("bf16", "fp16", "data_types", "zero_optimization")


def read_ds(path: Path) -> dict[str, Any]:
    """DeepSpeed's JSON as written.

    Raises:
        ConfigError: the file is missing, not JSON, or has a section that may not be there.
    """
    found = find(path)
    try:
        ds = json.loads(found.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{found}: not valid JSON: {error}") from error
    if not isinstance(ds, dict):
        raise ConfigError(f"{found}: expected an object, got {type(ds).__name__}")
    for key, reason in FOREIGN.items():
        if key in ds:
            raise ConfigError(f"{found}: {key} {reason}")
    for key in SECTIONS:
        if not isinstance(ds.get(key, {}), dict):
            raise ConfigError(f"{found}: {key}: expected an object, got {ds[key]!r}")
    return ds
