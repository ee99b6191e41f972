"""The image backbone: a timm ViT from the hub, from a folder, or rebuilt from a seed.

Dosovitskiy et al. 2021, https://arxiv.org/abs/2010.11929. Also the home of what both backbones
share: where weights come from, and how they are identified.
"""

import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from timm.models import save_for_hf
from torch import Tensor, nn

from llm_mde.config import VitConfig
from llm_mde.errors import CheckpointError, ConfigError

WEIGHTS = "model.safetensors"
FILES = ("config.json", WEIGHTS)
SHARDED = "model.safetensors.index.json"  # in place of one large file
UNREACHABLE = (LocalEntryNotFoundError, ConnectionError)  # what the hub's library raises without it
REFUSED = (HfHubHTTPError, HFValidationError)  # and where the hub, or the name, says no
# What a network must have, whatever its class: timm's ViT, DeiT, BEiT, EVA and others do.
NEEDED = ("num_prefix_tokens", "embed_dim", "reset_classifier", "set_input_size")
NEEDED_EMBED = ("grid_size", "patch_size")
RANDOM = re.compile(r"random:(tiny|base):(\d+)")

# timm's ViT-Ti/16 and ViT-B/16; `tiny` keeps the former's width and heads with 4 of its 12 layers.
ARCHITECTURES = {
    "tiny": ("vit_tiny_patch16_224", {"depth": 4}),
    "base": ("vit_base_patch16_224", {}),
}


class Identity(NamedTuple):
    """Which weights a backbone started from: a frozen one is not saved, only named by this."""

    name: str
    """As configured."""
    revision: str | None
    """The hub's commit; None for folders and random weights."""
    sha256: str | None
    """Of all weights as loaded, before any resize; None on the meta device, without numbers."""


class ViT(nn.Module):
    """Patch tokens of a timm ViT: after its final norm, without class and other prefix tokens."""

    def __init__(self, config: VitConfig, *, image_size: tuple[int, int]) -> None:
        """Loads the backbone for images of `image_size` (height, width) in pixels.

        Raises:
            ConfigError: the name is unknown or no ViT's, or the size is no multiple of the patch.
            CheckpointError: the hub can't be reached, or the folder lacks weights.
        """
        super().__init__()
        seeded = parse_random(config.name, key="model.vit.name")
        if seeded:
            self.model, revision = _random(*seeded, image_size=image_size), None
        else:
            folder, revision = _folder(config)
            self.model = _load(folder)
        _give_every_token(self.model)
        self.identity = Identity(config.name, revision, weights_hash(self.model))
        _check_size(image_size, patch=self.model.patch_embed.patch_size)
        self.model.set_input_size(image_size)  # resamples the position embedding
        _cast_coordinates(self.model)
        self.embed_dim: int = self.model.embed_dim
        self.grid: tuple[int, int] = self.model.patch_embed.grid_size
        self.mean: tuple[float, ...] = tuple(self.model.pretrained_cfg["mean"])
        self.std: tuple[float, ...] = tuple(self.model.pretrained_cfg["std"])
        self.interpolation: str = self.model.pretrained_cfg["interpolation"]

    def forward(self, image: Tensor) -> Tensor:
        """Normalised image (B, 3, h, w) in the weights' dtype -> tokens (B, N, D), row by row."""
        # Not forward_features: ZeRO-3 gathers the position embedding where the model is called.
        tokens = self.model(image)  # (B, prefix + N, D)
        return tokens[:, self.model.num_prefix_tokens :]  # (B, N, D)

    def save(self, folder: Path) -> None:
        """Writes the whole backbone in timm's format; the folder's path then works as a name."""
        assert not any("lora_" in name for name, _ in self.model.named_parameters())
        save_for_hf(self.model, str(folder), safe_serialization=True)


def parse_random(name: str, *, key: str) -> tuple[str, int] | None:
    """Size and seed of a `random:tiny:0` name; None for other names.

    Raises:
        ConfigError: the name starts with `random:` and goes on otherwise.
    """
    match = RANDOM.fullmatch(name)
    if match is None and name.startswith("random:"):
        raise ConfigError(f"{key}: expected random:tiny:<seed> or random:base:<seed>, got {name}")
    return (match[1], int(match[2])) if match else None


@contextmanager
def seeded_rng(seed: int) -> Iterator[None]:
    """New CPU weights depend on `seed` alone, and the generators outside are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)  # torch.manual_seed would reseed CUDA too
        yield


def weights_hash(module: nn.Module) -> str | None:
    """SHA-256 over names, dtypes, shapes and bytes of all weights; None on the meta device."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def backbone_folder(
    name: str, *, repo: str, revision: str | None, key: str, files: tuple[str, ...]
) -> tuple[Path, str | None]:
    """The folder with a backbone's files and the hub commit it came from (None for a local folder).

    `name` is a folder where it exists or is written like one; else `repo` is fetched from the hub.

    Raises:
        ConfigError: there is no such folder or repository.
        CheckpointError: the hub can't be reached, or files are missing.
    """
    folder = Path(name).expanduser()
    if not folder.is_dir():
        if name.startswith((".", "/", "~")) or name.count("/") > 1:
            raise ConfigError(f"{key}: no folder {name}")
        folder = _download(repo, revision=revision, key=key, files=files)
    for file in FILES:
        if not (folder / file).is_file() and not (file == WEIGHTS and (folder / SHARDED).is_file()):
            raise CheckpointError(
                f"{key}: no {file} in {folder}, expected {' and '.join(FILES)} as the hub has them"
            )
    return folder, folder.name if folder.parent.name == "snapshots" else None


def _download(repo: str, *, revision: str | None, key: str, files: tuple[str, ...]) -> Path:
    try:
        return Path(snapshot_download(repo, revision=revision, allow_patterns=list(files)))
    except UNREACHABLE as error:
        raise CheckpointError(
            f"{key}: {hub_problem(error, repo=repo, revision=revision)}; download "
            f"{', '.join(FILES)} (and a language model's tokenizer files) elsewhere and set {key} "
            "to their folder, or use random:tiny:0"
        ) from error
    except REFUSED as error:
        problem = hub_problem(error, repo=repo, revision=revision)
        raise ConfigError(f"{key}: {problem}") from error


def hub_problem(error: Exception, *, repo: str, revision: str | None) -> str:
    """Why the hub gave no folder, and what helps; `error` is UNREACHABLE or REFUSED."""
    at = f" at {revision}" if revision else ""
    log_in = "log in with `hf auth login` or set HF_TOKEN"
    match error:
        case LocalEntryNotFoundError() | ConnectionError():
            return f"{repo}{at} is not in the local cache and the hub can't be reached"
        case GatedRepoError():
            return (
                f"{repo} is gated; accept its terms at https://huggingface.co/{repo}, then {log_in}"
            )
        case RepositoryNotFoundError():
            return f"the hub has no {repo}, or it is private: correct the name, or {log_in}"
        case RevisionNotFoundError():
            return f"the hub's {repo} has no revision {revision}"
    return f"the hub gives no {repo}{at}: {_first_line(error)}"


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _folder(config: VitConfig) -> tuple[Path, str | None]:
    name, key = config.name, "model.vit.name"
    repo = name
    if "/" not in name and not Path(name).is_dir():
        repo = _timm_repo(name, key=key)
    return backbone_folder(name, repo=repo, revision=config.revision, key=key, files=FILES)


def _timm_repo(name: str, *, key: str) -> str:
    known = timm.list_models(pretrained=True)
    if name not in known:
        default = None if "." in name else timm.get_pretrained_cfg(name)
        tagged = f"{name}.{default.tag}" if default else ""
        near = [tagged] if tagged in known else get_close_matches(name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{key}: no folder and no timm weights are called {name}{hint}")
    return f"timm/{name}"


def _load(folder: Path) -> Any:
    key = "model.vit.name"
    try:
        if "architecture" not in json.loads((folder / "config.json").read_text(encoding="utf-8")):
            raise ConfigError(
                f"{key}: expected a ViT in timm's format in {folder}, got a config.json without "
                f"architecture; repositories timm/... of the hub have it, those of transformers not"
            )
        # With its classifier, if it has one: without, timm would leave missing weights random.
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except (RuntimeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"{key}: {folder} can't be read: {_first_line(error)}") from error
    embed = getattr(model, "patch_embed", None)
    missing = [name for name in NEEDED if not hasattr(model, name)]
    missing += [f"patch_embed.{name}" for name in NEEDED_EMBED if not hasattr(embed, name)]
    if missing:
        raise ConfigError(
            f"{key}: expected a ViT in {folder}, got {type(model).__name__} without "
            f"{', '.join(missing)}"
        )
    return model


def _give_every_token(model: Any) -> None:
    """Makes a call return all tokens, normalised, and lets every layer be called as a layer."""
    model.reset_classifier(0, global_pool="")
    if hasattr(model, "head_dist"):
        # DeiT's distilled head takes its two tokens, whatever the pooling.
        model.forward = model.forward_features
    for layer in model.modules():
        if hasattr(layer, "qkv_bias_separate"):
            # Else EVA and BEiT read the weight of `qkv` past the adapters (and ZeRO-3's gathering).
            layer.qkv_bias_separate = True


def _cast_coordinates(model: nn.Module) -> None:
    # The MLP that makes relative positions reads a buffer, which stays fp32 beside bf16 weights.
    for layer in model.modules():
        if hasattr(layer, "rel_coords_log"):
            layer.get_submodule("mlp").register_forward_pre_hook(_in_the_dtype_of_weights)


def _in_the_dtype_of_weights(module: nn.Module, args: tuple[Tensor]) -> Tensor:
    return args[0].to(next(module.parameters()).dtype)


def _random(size: str, seed: int, *, image_size: tuple[int, int]) -> Any:
    name, changes = ARCHITECTURES[size]
    with seeded_rng(seed):
        return timm.create_model(name, num_classes=0, img_size=image_size, **changes)


def _check_size(image_size: tuple[int, int], *, patch: tuple[int, int]) -> None:
    if any(pixels < side or pixels % side for pixels, side in zip(image_size, patch, strict=True)):
        expected = patch[0] if patch[0] == patch[1] else patch
        raise ConfigError(
            f"model.image_size: expected multiples of the patch size {expected}, got {image_size}"
        )
