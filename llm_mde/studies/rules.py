"""How the values of a search space come about: drawn, one of a grid, fixed, or from another one."""

import itertools
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import Field, model_validator

from llm_mde.config import Frozen
from llm_mde.errors import ConfigError
from llm_mde.recipes import nearest, paths

Range = tuple[float, float]
GRACE = 9  # by default a trial has a ninth of the longest run before it may be stopped
TRIES = 1000  # draws in a row that were there before, after which a space counts as used up


class Rule(Frozen):
    """Where the value of one dotted path comes from: exactly one of these, perhaps under `when`."""

    choice: list[Any] | None = Field(None, min_length=1)
    """One of these."""
    grid: list[Any] | None = Field(None, min_length=1)
    """Each of these, with each of every other grid."""
    uniform: Range | None = None
    """A number between two."""
    loguniform: Range | None = None
    """A number between two, its logarithm uniform."""
    randint: tuple[int, int] | None = None
    """A whole number from the first to the second, both among them."""
    value: Any = None
    """This one."""
    times: str | None = None
    """The value of another dotted path, of the space or of the base, times `by`."""
    by: float = 1
    """Factor of `times`."""
    when: dict[str, Any] = {}
    """Dotted path -> value: without them the path keeps the base's value."""

    @model_validator(mode="before")
    @classmethod
    def _plain_value(cls, given: Any) -> Any:
        """A value alone stands for itself."""
        return given if isinstance(given, dict | Rule) else {"value": given}

    @model_validator(mode="after")
    def _one_source(self) -> "Rule":
        given = [name for name in SOURCES if name in self.model_fields_set]
        if len(given) != 1:
            raise ValueError(f"expected one of {', '.join(SOURCES)}, got {given or 'none'}")
        if "by" in self.model_fields_set and self.times is None:
            raise ValueError("by: expected beside times")
        for name in ("uniform", "loguniform", "randint"):
            ends = getattr(self, name)
            if ends is not None and not ends[0] < ends[1]:
                raise ValueError(f"{name}: expected the smaller end first, got {list(ends)}")
        if self.loguniform is not None and self.loguniform[0] <= 0:
            raise ValueError(f"loguniform: expected ends above 0, got {list(self.loguniform)}")
        return self

    @property
    def drawn(self) -> bool:
        """Whether it is drawn by chance."""
        return not (self.grid or self.times or "value" in self.model_fields_set)

    def draw(self, dice: random.Random) -> Any:
        """A value by chance, of those that are drawn."""
        if self.choice:
            return dice.choice(self.choice)
        if self.uniform:
            return rounded(dice.uniform(*self.uniform), self.uniform)
        if self.loguniform:
            low, high = map(math.log, self.loguniform)
            return rounded(math.exp(dice.uniform(low, high)), self.loguniform)
        assert self.randint
        return dice.randint(*self.randint)


def rounded(value: float, ends: Range) -> float:
    """A drawn number as people write it; four digits are more than any setting needs."""
    return min(max(float(f"{value:.4g}"), ends[0]), ends[1])


SOURCES = ("choice", "grid", "uniform", "loguniform", "randint", "value", "times")

Rules = Mapping[str, Rule]
Choose = Callable[[str, Rule], Any]


def check_paths(rules: Rules, where: str) -> None:
    """Every path of a space is one of the configuration.

    Raises:
        ConfigError: names the nearest, or the circle that references make.
    """
    known = set(paths())
    for path, rule in rules.items():
        for named in (path, *([rule.times] if rule.times else []), *rule.when):
            if named not in known:
                raise ConfigError(f"{where}: unknown path {named}, did you mean {nearest(named)}?")
        _no_circle((path,), rules, where)
        _check_conditions(path, rules, where)


def _check_conditions(path: str, rules: Rules, where: str) -> None:
    """What a condition waits for can come."""
    for named, wanted in rules[path].when.items():
        rule = rules.get(named)
        values = rule and not rule.when and (rule.choice or rule.grid)
        if values and wanted not in values:
            raise ConfigError(
                f"{where}: {path}: when {named} is {wanted}, which is none of its values: "
                f"{', '.join(map(str, values))}"
            )


def _no_circle(way: tuple[str, ...], rules: Rules, where: str) -> None:
    """What a path's value hangs on never hangs on the path itself."""
    rule = rules.get(way[-1])
    for below in (*([rule.times] if rule.times else []), *rule.when) if rule else ():
        if below in way:
            raise ConfigError(f"{where}: {' -> '.join([*way, below])} is a circle")
        _no_circle((*way, below), rules, where)


def settled(rules: Rules, choose: Choose, base: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of one trial: fixed values, references and conditions worked out.

    Args:
        rules: of the space.
        choose: the value of a path that is no reference; asked once, and where it is needed.
        base: path -> value of the base's configuration.

    Raises:
        ConfigError: a multiple of what is no number.
    """
    known: dict[str, Any] = {}

    def value(path: str) -> Any:
        rule = rules.get(path)
        if rule is None or not holds(path):
            return base[path]
        if path not in known:
            known[path] = _of(path, rule)
        return known[path]

    def holds(path: str) -> bool:
        return all(value(named) == wanted for named, wanted in rules[path].when.items())

    def _of(path: str, rule: Rule) -> Any:
        if rule.times is None:
            return choose(path, rule)
        factor = value(rule.times)
        if isinstance(factor, bool) or not isinstance(factor, int | float):
            raise ConfigError(f"{path}: times {rule.times}: expected a number, got {factor!r}")
        product = factor * rule.by
        return int(product) if isinstance(factor, int) and float(rule.by).is_integer() else product

    return {path: value(path) for path in rules if holds(path)}


def size(rules: Rules, *, everything: bool) -> int:
    """Trials of the grids; with `everything` choices count as grids."""
    return math.prod(len(values) for _, values in _lists(rules, everything=everything))


def grid(rules: Rules, *, everything: bool) -> Iterator[dict[str, Any]]:
    """Every combination of the grids, the last one changing first."""
    lists = _lists(rules, everything=everything)
    names = [name for name, _ in lists]
    for values in itertools.product(*(values for _, values in lists)):
        yield dict(zip(names, values, strict=True))


def _lists(rules: Rules, *, everything: bool) -> list[tuple[str, list[Any]]]:
    return [
        (path, values)
        for path, rule in rules.items()
        if (values := rule.grid or (rule.choice if everything else None))
    ]


def all_of(rules: Rules, base: Mapping[str, Any], where: str) -> list[dict[str, Any]]:
    """The settings of every trial of a space without ranges, each once.

    Raises:
        ConfigError: a range, which has no end of values.
    """
    ranges = [path for path, rule in rules.items() if rule.drawn and not rule.choice]
    if ranges:
        raise ConfigError(
            f"{where}: {ranges[0]}: a grid search needs its values (grid or choice), got a range; "
            "list them, or draw by chance (--searcher random)"
        )
    found = (settled(rules, _from(chosen), base) for chosen in grid(rules, everything=True))
    return _each_once(found)


def some_of(
    rules: Rules, base: Mapping[str, Any], *, samples: int, seed: int
) -> list[dict[str, Any]]:
    """Settings drawn by chance, `samples` for each combination of the grids, each once.

    Of a space that is used up there are fewer. More samples begin with the same ones.
    """
    by_chance = any(rule.drawn for rule in rules.values())
    found = []
    for number, chosen in enumerate(grid(rules, everything=False)):
        choose = _from(chosen, random.Random(f"{seed} {number}"))
        draws = (settled(rules, choose, base) for _ in itertools.count())
        found.append(_new_ones(draws, samples if by_chance else 1))
    rounds = itertools.zip_longest(*found)  # so that fewer samples are the first of more
    return _each_once(one for turn in rounds for one in turn if one is not None)


def _from(chosen: Mapping[str, Any], dice: random.Random | None = None) -> Choose:
    """Values of a combination of grids, others by chance, others fixed."""

    def choose(path: str, rule: Rule) -> Any:
        if path in chosen:
            return chosen[path]
        return rule.draw(dice) if rule.drawn and dice else rule.value

    return choose


def _new_ones(draws: Iterator[dict[str, Any]], number: int) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    in_vain = 0
    while len(found) < number and in_vain < TRIES:
        one = next(draws)
        in_vain = in_vain + 1 if key(one) in found else 0
        found.setdefault(key(one), one)
    return list(found.values())


def _each_once(settings: Iterator[dict[str, Any]]) -> list[dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for one in settings:
        found.setdefault(key(one), one)
    return list(found.values())


def key(settings: Mapping[str, Any]) -> str:
    """The same text for the same settings."""
    return json.dumps(settings, sort_keys=True)


def grace_of(asked: int | None, steps: int) -> int:
    """Steps before a trial may be stopped, where the longest has so many.

    Raises:
        ConfigError: it has no more than that.
    """
    grace = asked or math.ceil(steps / GRACE)
    if grace >= steps:
        raise ConfigError(
            f"search.grace {grace}: expected fewer steps than the longest trial has, {steps}"
        )
    return grace
