"""A search space as a YAML: named trials, each a set of dotted configuration paths."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from llm_mde.config import Config, Frozen
from llm_mde.errors import ConfigError
from llm_mde.recipes import load, read_yaml


class Tiny(Frozen):
    """How to run the space on a tiny model."""

    config: Path
    """YAML of the base run, used when no other is named."""
    divide: dict[str, float] = {}
    """Dotted path of a trial's rank -> divisor, for narrower layers; alpha / r stays as it is."""
    common: dict[str, Any] = {}
    """Dotted path -> value for all trials of a tiny model, weaker than `--set`."""


class Space(Frozen):
    """Trials by name."""

    name: str
    """Name of the sweep; its trials are runs `<name>-<trial>`."""
    trials: dict[str, dict[str, Any]] = Field(min_length=1)
    """Trial -> dotted path -> value; or `trials_from: FILE`, the trials of another space."""
    common: dict[str, Any] = {}
    """Dotted path -> value for all trials, weaker than `--set`."""
    tiny: Tiny | None = None
    """The same space on a tiny model."""


S = TypeVar("S", bound=Space)


def read_space(path: Path) -> Space:
    """A space file.

    Raises:
        ConfigError: it is missing or not of this form.
    """
    return read_form(path, Space)


def read_form(path: Path, form: type[S]) -> S:
    """A file of a space and what else its form asks for.

    Raises:
        ConfigError: it is missing or not of this form.
    """
    tree = read_yaml(path)
    source = tree.pop("trials_from", None)
    if source is not None:
        if "trials" in tree:
            raise ConfigError(f"{path}: expected trials or trials_from, got both")
        tree["trials"] = read_space(Path(str(source))).trials
    try:
        return form.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in [".".join(map(str, first["loc"]))] if part)
        message = first["msg"].removeprefix("Value error, ")
        raise ConfigError(f"{path}: {where}{message[:1].lower()}{message[1:]}") from error


def trial_configs(
    space: Space, base: Path | None, *, tiny: bool, sets: list[str]
) -> dict[str, Config]:
    """The configuration of every trial; all are validated before any runs.

    From weak to strong: the base, what the space says for all trials, what it says for all trials
    of a tiny model, `sets`, the trial.

    Args:
        space: the space.
        base: YAML the trials start from; None: the space's tiny one.
        tiny: divide as the space says for tiny layers; without a base that is always so.
        sets: `a.b=c` words for all trials.

    Raises:
        ConfigError: no base, or a trial with an unknown path or a bad value.
    """
    if space.tiny is None and (tiny or base is None):
        raise ConfigError(f"space {space.name}: has no `tiny` part; give --config FILE alone")
    small = space.tiny if tiny or base is None else None
    if base is None:
        assert small is not None
        base = small.config
        if not base.is_file():
            raise ConfigError(f"{base}: not found; run `make demo` first, or give --config FILE")
    common = space.common | (small.common if small else {})
    divide = small.divide if small else {}
    configs = {}
    for name, values in space.trials.items():
        own = _narrow(values, divide) | {"name": f"{space.name}-{name}"}
        configs[name] = load(base, sets=[*_words(common), *sets, *_words(own)])
    return configs


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{path}={json.dumps(value)}" for path, value in values.items()]


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
