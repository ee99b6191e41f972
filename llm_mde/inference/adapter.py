"""Adapter folders: what a run gives away, as safetensors, and the model built from one.

    adapter_config.json, adapter_model.safetensors    PEFT's own two files (where something is LoRA)
    head.safetensors      prototypes E', Eq. 1's attention, adaptation head with its statistics
    vit/, llm/            a fully tuned or merged backbone, whole, in its library's format
    llm_mde.json          model settings, names and hashes of the backbones, scores, data
    README.md             model card

It holds E' (V' x D), not the map M (V' x V), which stays in checkpoints.
"""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from llm_mde.config import DataConfig, ModelConfig
from llm_mde.errors import CheckpointError, LlmMdeError
from llm_mde.inference.card import (
    CARD,
    README,
    Provenance,
    described,
    read_card,
    settings_of,
    write_card,
)
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.lora import adapter_config, adapter_state, load_adapter_state, misfit
from llm_mde.model.vit import Identity, weights_hash

BACKBONES = {"vit": "vit", "llm": "language"}  # folder and setting -> the model's attribute
LORA, REST = "adapter_model.safetensors", "head.safetensors"
FILES = (CARD, README, LORA, REST, "adapter_config.json", *(f"{name}/*" for name in BACKBONES))
MODELS = "models:/"  # of MLflow's registry: models:/NAME/3, models:/NAME@ALIAS
OWN_PARTS = ("reprogram.", "head.")
PROTOTYPES = "prototypes"


def save(
    config: ModelConfig,
    state: dict[str, Tensor],
    folder: Path,
    *,
    seed: int,
    scores: dict[str, float],
    data: DataConfig | None = None,
) -> None:
    """Write an adapter folder, whole or not at all; an older one of that name is replaced.

    Args:
        config: the model that trained.
        state: its trainable parameters and batch-norm statistics, fp32, by name.
        folder: the adapter folder.
        seed: the seed the model was built from.
        scores: `split/metric` numbers for the card.
        data: shards and splits, for the card.
    """
    # Built anew on the CPU: the live model may be split over ranks (ZeRO-3) and in bf16.
    model = DepthModel(config, seed=seed)
    unknown = model.load_state_dict(state, strict=False).unexpected_keys
    assert not unknown and state.keys() >= set(model.trainable_state())
    replace(model.eval(), folder, config=config, provenance=Provenance(scores, described(data)))


def replace(
    model: DepthModel, folder: Path, *, config: ModelConfig, provenance: Provenance
) -> None:
    """Write the adapter folder of a model, whole or not at all, in place of an older one.

    `config` says what to write of each backbone: its adapters, all of it (`full`), or its name.
    """
    aside = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    _write(model, aside, config=_portable(model, config), provenance=provenance)
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.rename(folder, old)
    os.rename(aside, folder)
    shutil.rmtree(old, ignore_errors=True)


def _write(model: DepthModel, folder: Path, *, config: ModelConfig, provenance: Provenance) -> None:
    peft = adapter_config(config)
    if peft is not None:
        # PEFT leaves these two empty for a custom model, and then nobody can tell what it adapts.
        peft.base_model_name_or_path = f"{config.vit.name} + {config.llm.name}"
        peft.auto_mapping = {
            "base_model_class": DepthModel.__name__,
            "parent_library": DepthModel.__module__,
        }
        peft.save_pretrained(folder)
        save_file(_plain(adapter_state(model)), folder / LORA, metadata={"format": "pt"})
    own = {k: v for k, v in model.state_dict().items() if k.startswith(OWN_PARTS)}
    with torch.no_grad():
        own[PROTOTYPES] = model.prototypes()
    save_file(_plain(own), folder / REST, metadata={"format": "pt"})
    backbones = {}
    for name, attribute in BACKBONES.items():
        backbone, settings = getattr(model, attribute), getattr(config, name)
        sha256 = backbone.identity.sha256
        if settings.tune == "full":
            backbone.save(folder / name)
            sha256 = weights_hash(backbone.model)
        backbones[name] = {"name": settings.name, "revision": settings.revision, "sha256": sha256}
    write_card(folder, config, backbones, provenance)
    _share(folder)


def _portable(model: DepthModel, config: ModelConfig) -> ModelConfig:
    """The same settings, local backbone folders by absolute paths, hub ones by their commits."""
    tree = config.model_dump()
    for name, attribute in BACKBONES.items():
        identity = getattr(model, attribute).identity
        folder = Path(tree[name]["name"]).expanduser()
        if folder.is_dir():
            tree[name]["name"] = str(folder.absolute())
        tree[name]["revision"] = identity.revision or tree[name]["revision"]
    return ModelConfig.model_validate(tree)


def _share(folder: Path) -> None:
    # safetensors writes files that only their owner can read.
    mode = (folder / CARD).stat().st_mode
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}


def find(source: Path) -> Path:
    """The adapter folder named by itself, by its run folder, or in MLflow's model registry.

    Raises:
        CheckpointError: neither is one, or it cannot be fetched.
    """
    if str(source).startswith(MODELS):
        from llm_mde.tracking.registry import download  # seconds to import

        source = download(str(source))
    for folder in (source, source / "adapter"):
        if (folder / CARD).is_file():
            return folder
    if (source / "config.yaml").is_file():
        problem = "no adapter in this run, which writes it at its first evaluation"
    elif source.is_dir():
        problem = f"no {CARD} found, expected an adapter folder or the folder of a run"
    else:
        problem = "no such folder, expected that of an adapter or of a run"
    raise CheckpointError(f"{source}: {problem}")


def as_base(folder: Path) -> ModelConfig:
    """The settings that rebuild the adapter's model: fully tuned backbones become its own folders.

    Raises:
        CheckpointError: the card is damaged.
    """
    tree = settings_of(folder).model_dump()
    for name in BACKBONES:
        if tree[name]["tune"] == "full":
            own = str((folder / name).absolute())
            tree[name] |= {"name": own, "revision": None, "tune": "frozen"}
    return ModelConfig.model_validate(tree)


def load(source: Path) -> DepthModel:
    """The model of an adapter or run folder, in eval mode, on the CPU.

    Raises:
        CheckpointError: a missing or damaged file, or backbones other than those it was trained on.
    """
    folder = find(source)
    card, config = read_card(folder), as_base(folder)
    try:
        model = DepthModel(config, seed=0)
    except LlmMdeError as error:
        raise CheckpointError(
            f"{folder}: its backbones cannot be loaded: {error}; {CARD} there names them"
        ) from error
    for name, attribute in BACKBONES.items():
        _check_hash(card, name, getattr(model, attribute).identity, folder=folder)
    _fill(model, _read(folder / REST), path=folder / REST)
    if adapter_config(config) is not None:
        try:
            load_adapter_state(model, _read(folder / LORA))
        except CheckpointError as error:
            raise CheckpointError(f"{folder / LORA}: {error}") from error
    return model.eval()


def _fill(model: DepthModel, tensors: dict[str, Tensor], *, path: Path) -> None:
    """Puts E', attention and head into the model; every shape is checked first."""
    state = model.state_dict()
    wanted = {k: tuple(v.shape) for k, v in state.items() if k.startswith(OWN_PARTS)}
    wanted[PROTOTYPES] = (model.config.reprogram.prototypes, model.language.embed_dim)
    problem = misfit(wanted, tensors)
    if problem:
        raise CheckpointError(f"{path}: {problem}; {CARD} there describes the model")
    # A copy: what safetensors gives may lie in the file, which may be replaced while we run.
    model.prototypes.freeze(tensors.pop(PROTOTYPES).clone())
    model.load_state_dict(tensors, strict=False)


def _check_hash(card: dict[str, Any], name: str, identity: Identity, *, folder: Path) -> None:
    try:
        trained_on, sha256 = card["backbones"][name]["name"], card["backbones"][name]["sha256"]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / CARD}: no name and sha256 of backbone {name}") from error
    if identity.sha256 == sha256:
        return
    own = identity.name == str((folder / name).absolute())
    want = "weights it was saved with" if own else f"weights it was trained with, {trained_on}"
    remedy = "get the folder again" if own else f"correct model.{name}.name in {CARD}"
    raise CheckpointError(
        f"{folder}: expected the {name} {want} (hash {sha256}), got {identity.name} with hash "
        f"{identity.sha256}; {remedy}"
    )


def _read(path: Path) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: missing; the adapter folder is not whole") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    return tensors
