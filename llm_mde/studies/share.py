"""What a trial gets of the machines: CPUs, GPUs or a part of one, and how many fit at once."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from llm_mde.errors import ConfigError


@dataclass(frozen=True)
class Share:
    """What was asked for; None: what fits."""

    at_once: int | None = None
    """Trials at the same time."""
    gpus: float | None = None
    """GPUs of a trial, a part of one or several whole ones."""
    cpus: int | None = None
    """CPU cores of a trial."""


@dataclass(frozen=True)
class Devices:
    """What a trial gets."""

    at_once: int
    gpus: float
    cpus: int

    def resources(self) -> dict[str, float]:
        """In Ray's words."""
        return {"cpu": self.cpus} | ({"gpu": self.gpus} if self.gpus else {})


def devices_of(asked: Share, *, nodes: Sequence[tuple[int, int]], of: int) -> Devices:
    """Devices of each of `of` trials on nodes of so many CPUs and GPUs.

    Without a word a trial has a GPU where there are any, else an equal part of the cores.

    Raises:
        ConfigError: no node has as many as a trial asks for.
    """
    all_cpus, all_gpus = (sum(counts) for counts in zip(*nodes, strict=True))
    most_cpus, most_gpus = (max(counts) for counts in zip(*nodes, strict=True))
    gpus = _gpus(asked, most=most_gpus, total=all_gpus)
    if (asked.cpus or 1) > most_cpus:
        raise ConfigError(_too_many("--cpus-per-trial", asked.cpus or 1, "CPU core", most_cpus))
    if gpus:
        cpus = asked.cpus or 1
        fit = max(1, sum(min(math.floor(g / gpus + 1e-9), c // cpus) for c, g in nodes))
        return Devices(min(asked.at_once or fit, fit), gpus, cpus)
    at_once = min(asked.at_once or of, all_cpus // (asked.cpus or 1))
    return Devices(at_once, 0.0, asked.cpus or max(1, min(all_cpus // at_once, most_cpus)))


def _gpus(asked: Share, *, most: int, total: int) -> float:
    if asked.gpus is None:
        return 1 / math.ceil((asked.at_once or total) / total) if total else 0.0
    if asked.gpus > most:
        raise ConfigError(_too_many("--gpus-per-trial", asked.gpus, "GPU", most))
    if asked.gpus > 1 and asked.gpus % 1:
        raise ConfigError(f"--gpus-per-trial {asked.gpus:g}: above 1, expected a whole number")
    return asked.gpus


def _too_many(option: str, asked: float, unit: str, most: int) -> str:
    found = f"{most or 'no'} {unit}{'s' * (most != 1)}"
    return f"{option} {asked:g}: no machine has as many, the largest has {found}; ask for fewer"
