"""LLM-MDE: image tokens become text, a language model reads them, a head gives depth.

Xia et al. 2024, https://arxiv.org/abs/2409.01133.
"""

import hashlib
import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_mde.config import ModelConfig
from llm_mde.errors import ConfigError
from llm_mde.model.head import Head
from llm_mde.model.language import Language
from llm_mde.model.lora import tune
from llm_mde.model.prompt import Prompt
from llm_mde.model.prototypes import Prototypes
from llm_mde.model.reprogram import Reprogram, word_scale
from llm_mde.model.vit import ViT, seeded_rng

Part = Literal["lora_vit", "lora_llm", "vit", "llm", "prototypes", "attention", "head"]

OWNERS: dict[str, Part] = {
    "vit": "vit",
    "language": "llm",
    "prototypes": "attention",
    "reprogram": "attention",
    "head": "head",
}
ADAPTERS: dict[str, Part] = {"vit": "lora_vit", "language": "lora_llm"}
MAP = "prototypes.map"
TOKENS = ("pos_embed", "cls_token", "reg_token", "dist_token", "relative_position_bias_table")


class Role(NamedTuple):
    """What a trainable parameter is to the optimizer."""

    part: Part
    """`prototypes` is M alone; the layer norm after it counts as `attention`."""
    decay: bool
    """Whether weight decay applies: matrices, except M and embeddings."""


class DepthModel(nn.Module):
    """Monocular depth in metres from uint8 RGB.

    `vit` -> `reprogram` against `prototypes` -> `language` after the `prompt` -> `head`.
    """

    position_ids: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig, *, seed: int) -> None:
        """Loads both backbones; every new weight comes from `seed`, none from the global generator.

        Raises:
            ConfigError: a setting does not fit the backbones.
            CheckpointError: a backbone can't be loaded.
        """
        super().__init__()
        self.vit = ViT(config.vit, image_size=config.image_size)
        self.language = Language(config.llm)
        self.config = self._pinned(config)
        self.prompt = Prompt(self.language.vocabulary, mode=config.prompt)
        self.patches = math.prod(self.vit.grid)
        self._check_positions()
        self._build_new(seed)
        self._tune(seed)
        positions = [*range(self.prompt.length)]
        positions += range(self.prompt.span, self.prompt.span + self.patches)
        self.register_buffer("position_ids", torch.tensor([positions]), persistent=False)
        self.register_buffer("mean", _per_channel(self.vit.mean), persistent=False)
        self.register_buffer("std", _per_channel(self.vit.std), persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 RGB (B, 3, h, w) -> log of depth in metres, fp32 (B, 1, h, w), below log D_max."""
        return self._log_depth(image, (image.shape[-2], image.shape[-1]))

    def predict(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Uint8 RGB (B, 3, h, w) -> depth in metres, fp32 (B, 1, *size); None: the image's size."""
        return self._log_depth(image, size or (image.shape[-2], image.shape[-1])).exp()

    def groups(self) -> dict[str, Role]:
        """Part and weight decay of every trainable parameter, by name; ask before ZeRO-3."""
        embeddings = {id(m.weight) for m in self.modules() if isinstance(m, nn.Embedding)}
        return {
            name: Role(_part(name), id(weight) not in embeddings and _decays(name, weight))
            for name, weight in self.named_parameters()
            if weight.requires_grad
        }

    def trainable_state(self) -> list[str]:
        """Names of what training changes: trainable parameters, then batch norm's statistics."""
        buffers = self.head.named_buffers(prefix="head")
        return [*self.groups(), *(name for name, value in buffers if value.is_floating_point())]

    def _log_depth(self, image: Tensor, size: tuple[int, int]) -> Tensor:
        z = self.head(self._tokens(image)).float()
        z = F.interpolate(z, size, mode="bilinear", align_corners=False)  # (B, 1, *size)
        return math.log(self.config.max_depth) + F.logsigmoid(z)

    def _tokens(self, image: Tensor) -> Tensor:
        dtype = next(self.vit.parameters()).dtype  # ZeRO-3 keeps it, but not the shape
        normal = ((image.float() / 255 - self.mean) / self.std).to(dtype)
        patches = self.reprogram(self.vit(normal), self.prototypes().to(dtype))  # (B, N, D)
        ids, mask = self.prompt(image)  # (B, P)
        words = self.language.embeddings(ids)  # (B, P, D)
        full = mask.new_ones(mask.shape[0], self.patches)
        hidden = self.language(
            torch.cat([words, patches], 1),  # (B, P + N, D)
            mask=torch.cat([mask, full], 1) if self.prompt.padded else None,
            positions=self.position_ids,
        )
        return hidden[:, -self.patches :]  # (B, N, D)

    def _build_new(self, seed: int) -> None:
        config, dim = self.config, self.language.embed_dim
        self.prototypes = Prototypes(
            self.language.embeddings.weight,
            count=config.reprogram.prototypes,
            words=self.language.vocabulary.words(),
            seed=_seed(seed, "prototypes"),
        )
        with seeded_rng(_seed(seed, "reprogram")):
            self.reprogram = Reprogram(
                self.vit.embed_dim,
                dim,
                heads=config.reprogram.heads,
                dropout=config.reprogram.dropout,
                scale=word_scale(self.language.embeddings.weight),
            )
        with seeded_rng(_seed(seed, "head")):
            self.head = Head(dim, grid=self.vit.grid, widths=config.head.widths)

    def _tune(self, seed: int) -> None:
        vit, llm = self.config.vit, self.config.llm
        with seeded_rng(_seed(seed, "lora_vit")):
            tune(self.vit, vit.tune, lora=vit.lora, key="model.vit")
        with seeded_rng(_seed(seed, "lora_llm")):
            tune(self.language, llm.tune, lora=llm.lora, key="model.llm")

    def _pinned(self, config: ModelConfig) -> ModelConfig:
        """Backbones of the hub by their commits: a branch may move before the next loading."""
        vit = self.vit.identity.revision or config.vit.revision
        llm = self.language.identity.revision or config.llm.revision
        return config.model_copy(
            update={
                "vit": config.vit.model_copy(update={"revision": vit}),
                "llm": config.llm.model_copy(update={"revision": llm}),
            }
        )

    def _check_positions(self) -> None:
        needed = self.prompt.span + self.patches
        if needed > self.language.positions:
            raise ConfigError(
                f"model.image_size: {self.config.image_size} makes {self.patches} patches after "
                f"{self.prompt.span} prompt tokens, expected at most {self.language.positions} in "
                f"all, the positions of {self.config.llm.name}"
            )


def _per_channel(values: tuple[float, ...]) -> Tensor:
    return torch.tensor(values).view(1, -1, 1, 1)


def _seed(seed: int, part: str) -> int:
    # Each part has its own stream, so that a setting of one leaves the others' weights alone.
    digest = hashlib.sha256(f"{seed} {part}".encode()).digest()
    return int.from_bytes(digest[:7])  # a torch seed has 63 bits


def _part(name: str) -> Part:
    owner = name.partition(".")[0]
    if name == MAP:
        return "prototypes"
    return ADAPTERS[owner] if ".lora_" in name else OWNERS[owner]


def _decays(name: str, weight: Tensor) -> bool:
    return weight.ndim >= 2 and name != MAP and not name.endswith(TOKENS)
