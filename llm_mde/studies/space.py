"""A search space as a YAML: named trials, each a set of dotted configuration paths."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from llm_mde.config import Config, Frozen
from llm_mde.errors import ConfigError
from llm_mde.recipes import load, read_yaml


class Tiny(Frozen):
    """How to run the space on a tiny model."""

    config: Path
    """YAML of the base run, used when no other is named."""
    divide: dict[str, float] = {}
    """Dotted path of a rank -> divisor, for narrower layers; alpha / r stays as it is."""


class Space(Frozen):
    """Trials by name."""

    name: str
    """Name of the sweep; its trials are runs `<name>-<trial>`."""
    trials: dict[str, dict[str, Any]] = Field(min_length=1)
    """Trial -> dotted path -> value."""
    tiny: Tiny | None = None
    """The same space on a tiny model."""


def read_space(path: Path) -> Space:
    """A space file.

    Raises:
        ConfigError: it is missing or not of this form.
    """
    try:
        return Space.model_validate(read_yaml(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{path}: {where}: {first['msg'].lower()}") from error


def trial_configs(
    space: Space, base: Path | None, *, tiny: bool, sets: list[str]
) -> dict[str, Config]:
    """The configuration of every trial; all are validated before any runs.

    Args:
        space: the space.
        base: YAML the trials start from; None: the space's tiny one.
        tiny: divide as the space says for tiny layers; without a base that is always so.
        sets: `a.b=c` words for all trials, stronger than the base, weaker than the trial.

    Raises:
        ConfigError: no base, or a trial with an unknown path or a bad value.
    """
    if space.tiny is None and (tiny or base is None):
        raise ConfigError(f"space {space.name}: has no `tiny` part; give --config FILE alone")
    divide = space.tiny.divide if space.tiny and (tiny or base is None) else {}
    if base is None:
        assert space.tiny is not None
        base = space.tiny.config
        if not base.is_file():
            raise ConfigError(f"{base}: not found; run `make demo` first, or give --config FILE")
    configs = {}
    for name, values in space.trials.items():
        own = _narrow(values, divide) | {"name": f"{space.name}-{name}"}
        words = [f"{path}={json.dumps(value)}" for path, value in own.items()]
        configs[name] = load(base, sets=[*sets, *words])
    return configs


def _narrow(values: dict[str, Any], divide: dict[str, float]) -> dict[str, Any]:
    """A trial for narrower layers: ranks divided and rounded, each alpha / r as it was."""
    narrow = dict(values)
    for path, by in divide.items():
        if path in values:
            narrow[path] = max(1, round(values[path] / by))
            alpha = f"{path.rpartition('.')[0]}.alpha"
            if alpha in values:
                narrow[alpha] = values[alpha] * narrow[path] / values[path]
    return narrow
