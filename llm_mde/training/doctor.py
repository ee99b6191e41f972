"""What a machine needs to train, looked at one by one, with a remedy for each thing amiss."""

import importlib
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any, Literal

import torch
from huggingface_hub import constants, try_to_load_from_cache
from packaging.requirements import Requirement

from llm_mde import dist
from llm_mde.config import Config, tracking_uri
from llm_mde.errors import ConfigError
from llm_mde.launcher import cores
from llm_mde.tracking.address import address

State = Literal["ok", "note", "fail"]
TIMEOUT_S = 60.0  # of the all-reduce
COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True)
class Finding:
    """One thing looked at."""

    what: str
    state: State
    said: str

    def line(self) -> str:
        """For people."""
        return f"{self.state:4}  {self.what}: {self.said}"


@dataclass(frozen=True)
class Report:
    """All findings."""

    findings: list[Finding]

    @property
    def ok(self) -> bool:
        """Whether nothing is amiss."""
        return all(one.state != "fail" for one in self.findings)

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return {"ok": self.ok, "findings": [asdict(one) for one in self.findings]}

    def lines(self) -> list[str]:
        """For people."""
        return [one.line() for one in self.findings]


def examine(*, distributed: bool) -> Report | None:
    """Look at everything; with `distributed` this is one of several ranks, and rank 0 reports.

    Returns:
        The report; None on other ranks than 0.
    """
    found = [*_packages(), _pair(), _compiler(), _devices(), _disk(), _store(), *_hub()]
    if distributed:
        ranks = dist.join(timeout_s=TIMEOUT_S)
        try:
            found.append(_all_reduce(ranks))
        finally:
            dist.leave(ranks)
        if ranks.rank:
            return None
    return Report(found)


def _packages() -> Iterator[Finding]:
    """Versions against what this package asks for."""
    wanted = [Requirement(line) for line in requires("llm-mde") or ()]
    wrong = []
    for one in (one for one in wanted if one.marker is None):
        try:
            have = version(one.name)
        except PackageNotFoundError:
            have = "nothing"
        if have == "nothing" or not one.specifier.contains(have, prereleases=True):
            wrong.append(f"{one} (got {have})")
    names = ("torch", "deepspeed", "transformers", "timm", "peft", "ray", "mlflow")
    shown = ", ".join(f"{name} {version(name)}" for name in names)
    yield Finding("python", "ok", sys.version.split()[0])
    if wrong:
        yield Finding("packages", "fail", f"expected {'; '.join(wrong)}; pip install them")
    else:
        yield Finding("packages", "ok", shown)


def _pair() -> Finding:
    """Whether torchvision was built for this torch: otherwise timm cannot be imported."""
    pair = f"torch {version('torch')} with torchvision {version('torchvision')}"
    try:
        importlib.import_module("torchvision")
    except (RuntimeError, ImportError, OSError) as error:
        return Finding(
            "torchvision", "fail", f"{pair}: {error}; install both from one index, in one command"
        )
    return Finding("torchvision", "ok", pair)


def _compiler() -> Finding:
    if not any(map(shutil.which, COMPILERS)):
        said = "none for C++ found, which train.compile needs; apt-get install g++"
        return Finding("compiler", "note", said)
    return Finding("compiler", "ok", "one for C++")


def _devices() -> Finding:
    if not torch.cuda.is_available():
        return Finding("devices", "note", f"no CUDA device; {cores()} CPU cores, in fp32")
    names = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    if not torch.cuda.is_bf16_supported():
        return Finding("devices", "fail", f"{names[0]} has no bf16; write bf16.enabled false")
    return Finding("devices", "ok", f"{len(names)} x {names[0]}, bf16")


def _disk() -> Finding:
    runs = Config().runs
    folder = next(one for one in (runs, *runs.parents) if one.exists())
    said = f"{runs}: {shutil.disk_usage(folder).free / 2**30:.0f} GB free"
    if not os.access(folder, os.W_OK):
        return Finding("runs", "fail", f"{folder} can't be written; --set runs=DIR elsewhere")
    return Finding("runs", "ok", said)


def _store() -> Finding:
    """Whether MLflow answers, without making a store that is not there."""
    from llm_mde.tracking.connection import problem  # seconds to import

    tracking = Config().tracking
    uri = tracking_uri(tracking)
    try:
        why = problem(address(tracking))
    except ConfigError as error:
        return Finding("tracking", "fail", str(error))
    if why:
        return Finding("tracking", "fail", f"{uri}: {why}; training goes on without it")
    return Finding("tracking", "ok", uri)


def _hub() -> Iterator[Finding]:
    """The reference run's backbones, and where the hub's files lie."""
    model = Config().model
    cache = Path(constants.HF_HUB_CACHE)
    where = f"{cache}{' (offline)' if constants.HF_HUB_OFFLINE else ''}"
    for name, repo in (("vit", f"timm/{model.vit.name}"), ("llm", model.llm.name)):
        here = isinstance(try_to_load_from_cache(repo, "config.json"), str)
        state: State = "ok" if here else "note"
        said = "in" if here else "to be downloaded to"
        yield Finding(f"model.{name}", state, f"{repo} {said} {where}")


def _all_reduce(ranks: dist.Ranks) -> Finding:
    began = time.monotonic()
    total = dist.all_reduce_sum(torch.ones(1, device=ranks.device)).item()
    seconds = time.monotonic() - began
    if total != ranks.world:
        return Finding("all-reduce", "fail", f"expected {ranks.world}, got {total}")
    kind = f"{ranks.world} rank{'s' * (ranks.world > 1)} on {ranks.device.type}"
    return Finding("all-reduce", "ok", f"{kind}, {1000 * seconds:.0f} ms for the first")
