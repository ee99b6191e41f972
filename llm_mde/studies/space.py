"""A search space as a YAML: trials by name, or the rules by which they are drawn."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError, model_validator

from llm_mde.config import Config, Frozen
from llm_mde.credentials import redacted
from llm_mde.errors import ConfigError
from llm_mde.recipes import find, flat, in_words, load, read_yaml, short
from llm_mde.studies import rules
from llm_mde.studies.rules import Rule

CENTRE = "centre"
OWN = {"name", "runs"}  # by which a sweep finds its trials


class Tiny(Frozen):
    """How to run the space on a tiny model."""

    config: Path
    """YAML of the base run, used when no other is named."""
    divide: dict[str, float] = {}
    """Dotted path of a trial's rank -> divisor, for narrower layers; alpha / r stays as it is."""
    common: dict[str, Any] = {}
    """Dotted path -> value for all trials of a tiny model, weaker than `--set`."""


class Around(Frozen):
    """One factor at a time: the centre, then every other value of each path alone."""

    centre: dict[str, Any] = Field(min_length=1)
    """Dotted path -> value, all that trials set."""
    vary: dict[str, list[Any]] = Field(min_length=1)
    """Dotted path of the centre -> its other values."""

    @model_validator(mode="after")
    def _of_the_centre(self) -> "Around":
        if unknown := sorted(self.vary.keys() - self.centre.keys()):
            raise ValueError(f"vary: {unknown[0]}: expected a path of the centre")
        return self


class Search(Frozen):
    """How a space is gone through."""

    searcher: Literal["random", "grid", "optuna"] = "random"
    """Draw by chance, go through every combination, or let Optuna learn where to look."""
    samples: int = Field(16, ge=1)
    """Trials drawn: for each combination of the grids by `random`, in all by `optuna`."""
    scheduler: Literal["fifo", "asha", "median", "pbt"] = "fifo"
    """Who is stopped early: nobody, all but the best of each rung, or those below the median; by
    `pbt` the worst quarter goes on from the best with other values (optimizer, augmentation and
    dropout alone)."""
    grace: int | None = Field(None, ge=1)
    """Optimizer steps before a trial may be stopped, or between two changes by `pbt`; None: a ninth
    of the longest run."""
    reduction: int = Field(3, ge=2)
    """ASHA keeps one of so many at each rung."""
    seed: int = Field(0, ge=0)
    """Of the draws."""


class Space(Frozen):
    """Trials by name, or where they come from."""

    name: str
    """Name of the sweep; its trials are runs `<name>-<trial>`."""
    trials: dict[str, dict[str, Any]] = {}
    """Trial -> dotted path -> value; or `trials_from: FILE`, the trials of another space."""
    parameters: dict[str, Rule] = {}
    """Dotted path -> where its value comes from."""
    around: Around | None = None
    """One factor at a time."""
    search: Search = Search()
    """How `parameters` are gone through."""
    common: dict[str, Any] = {}
    """Dotted path -> value for all trials, weaker than `--set`."""
    tiny: Tiny | None = None
    """The same space on a tiny model."""

    @model_validator(mode="after")
    def _one_source(self) -> "Space":
        given = [name for name in ("trials", "parameters", "around") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(
                f"expected one of trials, parameters and around, got {', '.join(given) or 'none'}"
            )
        return self


PARTS: dict[str, type[Frozen]] = {
    "parameters": Rule,
    "around": Around,
    "search": Search,
    "tiny": Tiny,
}
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
        ConfigError: it is missing or not of this form, or sets a path that there is not.
    """
    tree = read_yaml(path)
    source = tree.pop("trials_from", None)
    if source is not None:
        if "trials" in tree:
            raise ConfigError(f"{path}: expected trials or trials_from, got both")
        tree["trials"] = read_space(Path(str(source))).trials
    try:
        space = form.model_validate(tree)
    except ValidationError as error:
        first = error.errors()[0]
        place = list(map(str, first["loc"]))
        where = f"{'.'.join(place)}: " if place else ""
        message = in_words(first)
        part = PARTS.get(place[0]) if place[1:] else form
        if first["type"] == "extra_forbidden" and part:
            message = f"unknown key, expected one of {', '.join(part.model_fields)}"
        elif first["type"] == "too_short":
            message = "expected at least one, got none"
        raise ConfigError(f"{path}: {where}{message}") from error
    rules.check_paths(_all_rules(space), str(path))
    own = OWN & _all_rules(space.model_copy(update={"common": {}})).keys()
    if own:
        raise ConfigError(f"{path}: {min(own)}: is the sweep's own, expected another path")
    return space


def _all_rules(space: Space) -> dict[str, Rule]:
    named = {path: Rule(value=None) for values in space.trials.values() for path in values}
    around = space.around
    if around:
        named |= {path: Rule(value=None) for path in around.centre}
    return named | space.parameters | {path: Rule(value=None) for path in space.common}


@dataclass(frozen=True)
class Base:
    """What the trials of a space start from."""

    space: Space
    config: Path
    """YAML of the base run."""
    words: tuple[str, ...]
    """`a.b=c` for all trials."""
    divide: Mapping[str, float]
    """Dotted path of a rank -> divisor."""

    @cached_property
    def plain(self) -> dict[str, Any]:
        """Dotted path -> value without a trial's own."""
        return flat(load(self.config, sets=self.words))

    def config_of(self, trial: str, settings: Mapping[str, Any]) -> Config:
        """The configuration of a trial.

        Raises:
            ConfigError: an unknown path or a bad value.
        """
        own = _narrow(settings, self.divide) | {"name": f"{self.space.name}-{trial}"}
        try:
            return load(self.config, sets=[*self.words, *_words(own)])
        except ConfigError as error:
            raise ConfigError(f"space {self.space.name}, trial {trial}: {error}") from error


def base_of(space: Space, base: Path | None, *, tiny: bool, sets: list[str]) -> Base:
    """What trials start from, from weak to strong.

    The base, what the space says for all trials, what it says for all trials of a tiny model,
    `sets`; then comes the trial.

    Args:
        space: the space.
        base: YAML the trials start from; None: the space's tiny one.
        tiny: divide as the space says for tiny layers; without a base that is always so.
        sets: `a.b=c` words for all trials.

    Raises:
        ConfigError: no base, or not one by itself.
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
    words = [*_words(common), *sets]
    load(base, sets=words)  # puts credentials into the environment; here words are shown and kept
    shown = tuple(map(redacted, words))
    return Base(space, find(base).absolute(), shown, small.divide if small else {})


def trial_configs(
    space: Space, base: Path | None, *, tiny: bool, sets: list[str]
) -> dict[str, Config]:
    """The configuration of every trial; all are validated before any runs.

    Arguments as in `base_of`.

    Raises:
        ConfigError: no base, or a trial with an unknown path or a bad value.
    """
    start = base_of(space, base, tiny=tiny, sets=sets)
    settings = settings_of(start)
    return {name: start.config_of(name, values) for name, values in settings.items()}


def settings_of(
    base: Base, *, seeds: int = 1, max_trials: int | None = None
) -> dict[str, dict[str, Any]]:
    """Trial -> dotted path -> value, of every trial that is known before any has run.

    Raises:
        ConfigError: more than `max_trials` under so many seeds; a grid search over a range.
    """
    space, search, where = base.space, base.space.search, f"space {base.space.name}"
    everything = search.searcher == "grid"
    number = len(space.trials)
    if space.around:
        number = 1 + sum(map(len, space.around.vary.values()))
    elif space.parameters:
        number = rules.size(space.parameters, everything=everything)
        by_chance = any(rule.drawn for rule in space.parameters.values())
        number *= search.samples if by_chance and not everything else 1
    number *= seeds
    if max_trials is not None and number > max_trials:
        raise ConfigError(
            f"{where}: {number} trials, more than --max-trials {max_trials}; ask for fewer "
            "(--samples, --seeds, shorter lists), or for more trials"
        )
    if space.trials:
        return space.trials
    if space.around:
        return _around(space.around)
    given = space.parameters, base.plain
    if everything:
        found = rules.all_of(*given, where)
    else:
        found = rules.some_of(*given, samples=search.samples, seed=search.seed)
    return {trial_name(at): settings for at, settings in enumerate(found)}


def trial_name(number: int) -> str:
    """Of a trial without a name of its own."""
    return f"t{number:03d}"


def _around(around: Around) -> dict[str, dict[str, Any]]:
    """The centre, then the others; a value that is the centre's is left out."""
    found, names = {CENTRE: around.centre}, short(around.vary)
    for path, values in around.vary.items():
        for value in values:
            if value != around.centre[path]:
                found[f"{names[path]}={_plain(value)}"] = around.centre | {path: value}
    return found


def _plain(value: Any) -> str:
    """A value as a part of a folder's name."""
    return re.sub(r"[^\w.+-]+", "_", value if isinstance(value, str) else json.dumps(value))


def _words(values: Mapping[str, Any]) -> list[str]:
    return [f"{path}={json.dumps(value)}" for path, value in values.items()]


def _narrow(values: Mapping[str, Any], divide: Mapping[str, float]) -> dict[str, Any]:
    """A trial for narrower layers: ranks divided and rounded, each alpha / r as it was."""
    narrow = dict(values)
    for path, by in divide.items():
        if path in values:
            narrow[path] = max(1, round(values[path] / by))
            alpha = f"{path.rpartition('.')[0]}.alpha"
            if alpha in values:
                narrow[alpha] = values[alpha] * narrow[path] / values[path]
    return narrow
