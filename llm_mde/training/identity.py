"""Which run this is: hashes of settings, samples and backbones, and what it runs on."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from llm_mde import dist
from llm_mde.clone import version
from llm_mde.data.index import Index
from llm_mde.model.depth_model import DepthModel
from llm_mde.tracking.about import ENVIRONMENT, LEGEND, TAGS
from llm_mde.training.folder import FREE_TO_CHANGE, write_whole
from llm_mde.training.legend import legend


def identity(
    settings: Mapping[str, Any], model: DepthModel, *, train: Index, val: Index
) -> dict[str, str]:
    """Tags that are the same for runs of the same settings, samples or backbones.

    Settings that may differ when a run goes on are not part of their hash.
    """
    ours = {key: value for key, value in settings.items() if not key.startswith(FREE_TO_CHANGE)}
    tags = {
        "config.sha256": _digest([json.dumps(ours, sort_keys=True)]),
        "data.split.sha256": _digest(_names(train, val)),
        "data.shards.sha256": _digest(_samples(train, val)),
    }
    for name, backbone in (("model.vit", model.vit), ("model.llm", model.language)):
        tags[f"{name}.sha256"] = str(backbone.identity.sha256)
        if backbone.identity.revision:
            tags[f"{name}.revision"] = backbone.identity.revision
    return tags


def _names(train: Index, val: Index) -> Iterable[str]:
    """Every key of both splits, in whatever shards and order they lie."""
    for part, index in (("train", train), ("val", val)):
        yield from sorted(f"{part} {entry.key}" for entry in index.entries)


def _samples(train: Index, val: Index) -> Iterable[str]:
    """Every sample's content, in the written order."""
    for part, index in (("train", train), ("val", val)):
        yield from (f"{part} {entry.key} {entry.sha256}" for entry in index.entries)


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def write_about(run_dir: Path, tags: Mapping[str, str], *, ranks: dist.Ranks) -> None:
    """Tags, legend and environment of a run, into its folder."""
    devices = _devices(ranks)
    tags = {**tags, "devices": devices, "world_size": str(ranks.world)}
    write_whole(run_dir / TAGS, json.dumps(tags, indent=1) + "\n")
    write_whole(run_dir / LEGEND, legend())
    write_whole(run_dir / ENVIRONMENT, json.dumps(_environment(devices), indent=1) + "\n")


def _devices(ranks: dist.Ranks) -> str:
    kind = ranks.device.type
    name = torch.cuda.get_device_name(ranks.device) if kind == "cuda" else platform.machine()
    return f"{ranks.world} x {kind} ({name})"


def _environment(devices: str) -> dict[str, Any]:
    """Versions alone: variables of the environment may hold what nobody is to read."""
    packages = {one.metadata["Name"]: one.version for one in distributions()}
    return {
        "llm_mde": version(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cuda": torch.version.cuda,
        "devices": devices,
        "packages": dict(sorted(packages.items(), key=lambda one: one[0].lower())),
    }
