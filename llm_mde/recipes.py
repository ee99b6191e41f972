"""Files and words to a configuration, and back: YAML of differences, `--set a.b=c`, recipes.

A YAML lists differences from the defaults; `--set` and a sweep trial use the same dotted paths.
"""

import difflib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from llm_mde.config import Config
from llm_mde.credentials import redacted
from llm_mde.errors import ConfigError

PACKAGE = Path(__file__).parent


def shipped(name: str) -> Path:
    """Path of a recipe such as `launch/nyu.yaml`: in the clone or, installed, the wheel's copy.

    Raises:
        ConfigError: there is no such recipe.
    """
    for root in (PACKAGE / "shipped", PACKAGE.parent):
        if (root / name).is_file():
            return root / name
    raise ConfigError(f"{name}: no such file, neither here nor among the shipped recipes")


def find(path: Path) -> Path:
    """The file itself, else the shipped recipe of that name.

    Raises:
        ConfigError: neither exists.
    """
    return path if path.is_file() else shipped(str(path))


def read_yaml(path: Path) -> dict[str, Any]:
    """One mapping from a YAML file.

    Raises:
        ConfigError: the file is missing, not YAML, or not a mapping.
    """
    found = find(path)
    try:
        tree = yaml.load(found.read_text(encoding="utf-8"), _Unique)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{found}: not a readable YAML file: {_said(error)}") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{found}: expected `key: value` lines, got {type(tree).__name__}")
    return tree or {}


MERGE = "tag:yaml.org,2002:merge"


class _Unique(yaml.SafeLoader):
    """Refuses a key that stands twice, of which the last would win without a word."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        """PyYAML's hook; before aliases and merges are worked out, where a key may come again."""
        node = super().compose_mapping_node(anchor)
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            if (key.tag, key.value) in seen:
                where = key.start_mark
                raise yaml.constructor.ConstructorError(None, None, f"{key.value} again", where)
            seen.add((key.tag, key.value))
        return node


def _said(error: Exception) -> str:
    """What is wrong with a YAML file, in one line."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {getattr(error, 'problem', error)}"


def load(path: Path | None = None, *, sets: Iterable[str] = ()) -> Config:
    """The configuration from a YAML of differences and `a.b=c` words, the later ones winning.

    Raises:
        ConfigError: an unknown key (names the nearest), a bad value, a missing file.
    """
    tree = read_yaml(path) if path else {}
    sources = [str(path)] if path else []
    for word in sets:
        key, equals, value = word.partition("=")
        if not equals or not key.strip():
            raise ConfigError(redacted(f"--set {word}: expected a.b=c"))
        try:
            put(tree, key.strip(), yaml.safe_load(value))
        except yaml.YAMLError as error:
            said = redacted(f"--set {word}: not a valid value: {_said(error)}")
            raise ConfigError(said) from error
        sources.append(f"--set {word}")
    return build(tree, where=", ".join(sources) or "configuration")


def put(tree: dict[str, Any], dotted: str, value: object) -> None:
    """Set one dotted path in a nested mapping, in place.

    Raises:
        ConfigError: the path goes through a value.
    """
    *parents, last = dotted.split(".")
    for key in parents:
        child = tree.setdefault(key, {})
        if not isinstance(child, dict):
            raise ConfigError(f"{dotted}: {key} is a value, not a group of settings")
        tree = child
    tree[last] = value


def build(tree: Mapping[str, Any], *, where: str = "configuration") -> Config:
    """Validate a nested mapping into a Config.

    Raises:
        ConfigError: every offending key with what was expected and what came.
    """
    try:
        return Config.model_validate(_merged(Config().model_dump(), tree))
    except ValidationError as error:
        problems = [_explain(dict(item)) for item in error.errors()]
        raise ConfigError(redacted(f"{where}: " + "; ".join(problems))) from None


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    # Defaults differ by place (the two LoRA ranks): a partial group changes its own place's.
    for key, value in changes.items():
        below = base.get(key)
        if isinstance(below, dict) and isinstance(value, dict):
            value = _merged(below, value)
        base[key] = value
    return base


def _explain(item: dict[str, Any]) -> str:
    dotted = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"unknown key {dotted}, did you mean {nearest(dotted)}?"
    return f"{dotted + ': ' if dotted else ''}{in_words(item)}"


def in_words(item: Mapping[str, Any]) -> str:
    """What is wrong with a value, of one of pydantic's errors, and what came."""
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    got = "" if isinstance(item["input"], dict | BaseModel) else f", got {item['input']!r}"
    return f"{message[:1].lower()}{message[1:]}{got}"


def nearest(dotted: str) -> str:
    """The known path most like an unknown one: as a whole, in its last word, and before that."""

    def likeness(path: str) -> float:
        (parent, _, word), (its, _, own) = dotted.rpartition("."), path.rpartition(".")
        pairs = [(dotted, path), (word, own)] + [(parent, its)] * bool(parent)
        return sum(difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)

    return max(paths(), key=likeness)


def paths(node: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted path of the tree, groups included."""
    for name, field in node.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from paths(field.annotation, f"{prefix}{name}.")


def flat(config: BaseModel) -> dict[str, Any]:
    """Dotted path to JSON value of every leaf."""
    return leaves(config.model_dump(mode="json"))


def settings_of(config: Config, ds: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted path to JSON value of the configuration and, below `ds.`, of DeepSpeed's JSON."""
    return flat(config) | leaves(ds, "ds.")


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted path to value of every leaf of a nested mapping."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        path = prefix + key
        found |= leaves(value, f"{path}.") if isinstance(value, Mapping) else {path: value}
    return found


def dump(config: BaseModel) -> str:
    """The whole tree as YAML that `load` reads back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def short(paths: Iterable[str]) -> dict[str, str]:
    """Path -> its name without what all paths of the model share, where that tells them apart."""
    names = {path: path.removeprefix("model.").replace(".lora.", ".") for path in paths}
    taken = Counter(names.values())
    return {path: name if taken[name] == 1 else path for path, name in names.items()}
