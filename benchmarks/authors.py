"""The network as the authors' code has it, written anew from a description of its behaviour.

Xia et al. 2024, https://arxiv.org/abs/2409.01133; the code they publish differs from their paper,
and has no licence, so nothing of it is here. Each difference is a switch of `Departures`; with all
of them off `Authors` is `DepthModel`. What is not a switch is ours: the backbones and what trains
in them, the optimizer, the prompt's words. Sizes are scaled: their 480x640 decoder works at the
size of the input, their 768 wide heads are as wide as the ViT, and there are fewer prototypes.
"""

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_mde.model.depth_model import DepthModel
from llm_mde.model.head import SLOPE
from llm_mde.model.prompt import Prompt
from llm_mde.model.vit import seeded_rng
from llm_mde.scoring.losses import SILOG_FACTOR, VARIANCE_FOCUS, silog

HEADS = 24  # of the attention, each as wide as the ViT
COARSE = 32  # side of the three maps that all tokens become
WIDTHS = (64, 32, 32)  # of the decoder; 19 GFLOP at 480x640, as theirs
CUT_SHARE = 0.75  # of the samples
CUT_WIDTH = 0.75  # of what lies right of its edge, the widest cut


@dataclass(frozen=True)
class Departures:
    """What their code does instead of what the paper says; all on is their formulation."""

    class_token: bool = True
    """The class token is kept and the last patch dropped: tokens sit one place off."""
    wide_heads: bool = True
    """24 heads, each as wide as the ViT; keys serve as values, and the values' layer is dead."""
    default_start: bool = True
    """PyTorch's default start of M and of the attention, no layer norm, no scale of words, M at the
    full rate."""
    ragged_prompt: bool = True
    """Prompts differ in length; the head reads a fixed number of tokens from the front."""
    global_decoder: bool = True
    """All tokens to three maps by two linear layers, then convolutions beside the raw image."""
    index_prompt: bool = True
    """Positions of the least, largest and median pixel; the first image's class for the batch."""
    prompt_is_llm: bool = True
    """Without a prompt there is no language model either."""
    cut_depth: bool = True
    """The true depth in metres is pasted into three quarters of the training images."""
    pooled_metres: bool = True
    """A sigmoid, at most 1, against metres, in a loss over all pixels of the batch."""


NONE = Departures(**dict.fromkeys((field.name for field in fields(Departures)), False))


class Authors(nn.Module):
    """`DepthModel`, from whose parts it is made, with departures."""

    groups = DepthModel.groups  # the same names of parts, so the same roles
    position_ids: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, base: DepthModel, *, departures: Departures, seed: int) -> None:
        """Takes the parts of `base`; what replaces some of them starts from `seed`."""
        super().__init__()
        self.on, self.config, self.patches = departures, base.config, base.patches
        self.vit, self.language, self.prompt = base.vit, base.language, base.prompt
        self.register_buffer("position_ids", base.position_ids, persistent=False)
        self.register_buffer("mean", base.mean, persistent=False)
        self.register_buffer("std", base.std, persistent=False)
        self.first = shortest(base.prompt)
        with seeded_rng(seed):
            self.prototypes, self.reprogram = _attention(base, departures)
            self.head = self._head(base)

    def forward(self, image: Tensor, depth: Tensor | None = None) -> Tensor:
        """Uint8 RGB (B, 3, h, w) -> log depth (B, 1, h, w); true depth in training, to be pasted.

        The logarithm is of metres, or of the sigmoid that is compared with metres.
        """
        size = (image.shape[-2], image.shape[-1])
        unit = image.float() / 255  # (B, 3, h, w)
        if self.on.cut_depth and self.training and depth is not None:
            unit = cut_depth(unit, depth)
        normal = (unit - self.mean) / self.std
        tokens = self._read(image, self.reprogram(self._visual(normal), self.prototypes()))
        z = self.head(tokens, normal) if self.on.global_decoder else self.head(tokens)
        z = F.interpolate(z, size, mode="bilinear", align_corners=False)  # (B, 1, h, w)
        reach = 1.0 if self.on.pooled_metres else self.config.max_depth
        return math.log(reach) + F.logsigmoid(z)

    def loss(self, log_depth: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
        """The training loss, a scalar; arguments as in `scoring.losses`."""
        return (pooled_silog if self.on.pooled_metres else silog)(log_depth, depth, valid)

    def _visual(self, normal: Tensor) -> Tensor:
        return self.vit.model(normal)[:, :-1] if self.on.class_token else self.vit(normal)

    def _read(self, image: Tensor, patches: Tensor) -> Tensor:
        """Language tokens that the head reads, from the patches' (B, N, D)."""
        if self.prompt.mode == "none" and self.on.prompt_is_llm:
            return patches
        ids = self._ids(image)  # (B, P), -1 where a shorter prompt is padded
        words = self.language.embeddings(ids.masked_fill(ids < 0, self.prompt.pad))
        hidden = torch.cat([words, patches], 1)  # (B, P + N, D)
        seen = torch.cat([ids >= 0, ids.new_ones(len(ids), self.patches).bool()], 1)
        positions = self.position_ids
        if self.on.ragged_prompt:
            hidden, seen = _closed(hidden, seen)
            positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        mask = None if seen.all() else seen
        hidden = self.language(hidden, mask=mask, positions=positions)
        if not self.on.ragged_prompt:
            return hidden[:, -self.patches :]
        last = self.first + self.patches
        return hidden[:, :last] if self.on.global_decoder else hidden[:, self.first : last]

    def _ids(self, image: Tensor) -> Tensor:
        if self.prompt.mode == "apg" and self.on.index_prompt:
            return index_ids(self.prompt, image)
        ids, mask = self.prompt(image)
        return ids.masked_fill(~mask, -1)

    def _head(self, base: DepthModel) -> nn.Module:
        if not self.on.global_decoder:
            return base.head
        silent = base.prompt.mode == "none" and self.on.prompt_is_llm
        extra = self.first if self.on.ragged_prompt and not silent else 0
        return GlobalDecoder(base.language.embed_dim, tokens=self.patches + extra)


class WideAttention(nn.Module):
    """Cross-attention with heads as wide as the ViT; what it mixes are the keys."""

    scale: Tensor

    def __init__(self, vit_dim: int, llm_dim: int, *, dropout: float, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.dropout = dropout
        self.query = nn.Linear(vit_dim, HEADS * vit_dim)
        self.key = nn.Linear(llm_dim, HEADS * vit_dim)
        self.value = nn.Linear(llm_dim, HEADS * vit_dim)  # dead
        self.out = nn.Linear(HEADS * vit_dim, llm_dim)

    def forward(self, visual: Tensor, prototypes: Tensor) -> Tensor:
        """Image tokens (B, N, D_vit), prototypes (P, D) -> (B, N, D)."""
        q = self.query(visual).unflatten(-1, (HEADS, -1)).transpose(1, 2)  # (B, K, N, D_vit)
        k = self.key(prototypes).unflatten(-1, (HEADS, -1)).transpose(0, 1)  # (K, P, D_vit)
        k = k.expand(len(q), -1, -1, -1)  # (B, K, P, D_vit)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, k, dropout_p=dropout)
        return self.scale * self.out(out.transpose(1, 2).flatten(2))  # (B, N, D)


class PlainPrototypes(nn.Module):
    """E' = M E with M as a linear layer starts, and nothing after it."""

    def __init__(self, embedding: Tensor, *, count: int) -> None:
        super().__init__()
        self.embedding = embedding
        # Not called `map`: that name would have its own rate.
        self.mix = nn.Parameter(nn.Linear(len(embedding), count, bias=False).weight.detach())

    def forward(self) -> Tensor:
        """E' (P, D)."""
        return self.mix @ self.embedding


class GlobalDecoder(nn.Module):
    """All tokens to three 32x32 maps, enlarged to the image beside it, then convolutions."""

    def __init__(self, embed_dim: int, *, tokens: int) -> None:
        super().__init__()
        self.across = nn.Linear(tokens, 3)
        self.within = nn.Linear(embed_dim, COARSE**2)
        layers: list[nn.Module] = []
        for inputs, outputs in zip((6, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(outputs), nn.LeakyReLU(SLOPE)]
        self.fine = nn.Sequential(*layers, nn.Conv2d(WIDTHS[-1], 1, 3, padding=1))

    def forward(self, tokens: Tensor, image: Tensor) -> Tensor:
        """Tokens (B, T, D) and the normalised image (B, 3, h, w) -> logits (B, 1, h, w)."""
        x = self.within(self.across(tokens.transpose(1, 2)).transpose(1, 2))  # (B, 3, 1024)
        x = x.unflatten(-1, (COARSE, COARSE))  # (B, 3, 32, 32)
        x = F.interpolate(x, image.shape[-2:], mode="bilinear", align_corners=False)
        return self.fine(torch.cat([x, image], 1))


def pooled_silog(log_depth: Tensor, depth: Tensor, valid: Tensor) -> Tensor:
    """`silog` with the valid pixels of all images of the batch taken together."""
    d = log_depth[valid] - depth[valid].log()
    return SILOG_FACTOR * (d.square().mean() - VARIANCE_FOCUS * d.mean().square()).sqrt()


def cut_depth(unit: Tensor, depth: Tensor) -> Tensor:
    """Images (B, 3, h, w) in 0..1, in most of which an upright strip is depth (B, 1, h, w), metres.

    Ishii and Yamashita 2021, https://arxiv.org/abs/2107.07684, as strips of full height: Kim et al.
    2022, https://arxiv.org/abs/2201.07436, section 3.4.
    """
    width = unit.shape[-1]
    apply, place, share = torch.rand(3, len(unit), 1, 1, 1, device=unit.device)
    left = (place * width).floor()
    right = left + ((width - left) * share * CUT_WIDTH).floor().clamp(min=1)
    column = torch.arange(width, device=unit.device)
    inside = (apply < CUT_SHARE) & (column >= left) & (column < right)  # (B, 1, 1, w)
    return torch.where(inside, depth, unit)


def index_ids(prompt: Prompt, image: Tensor) -> Tensor:
    """Ids (B, P) of prompts whose numbers are columns of pixels; -1 is padding.

    Columns, for an index into the whole picture would be several word pieces.
    """
    B, width = len(image), image.shape[-1]
    weights = torch.tensor([0.299, 0.587, 0.114], device=image.device).view(3, 1, 1)
    luma = (image.float() * weights).sum(1).round()
    flat = luma.flatten(1)  # (B, h w)
    low, high, median = (
        at % width for at in (flat.argmin(1), flat.argmax(1), flat.median(1).indices)
    )
    label = (len(prompt.tails) * flat[0].mode().values / 256).long()  # of the whole batch
    parts = [prompt.low_text.expand(B, -1), prompt.numbers[low], prompt.high_text.expand(B, -1)]
    parts += [prompt.numbers[high], prompt.median_text.expand(B, -1), prompt.numbers[median]]
    return torch.cat([*parts, prompt.tails[label].expand(B, -1)], 1)


def shortest(prompt: Prompt) -> int:
    """Tokens of the shortest prompt."""
    if prompt.mode != "apg":
        return prompt.length
    tails = (prompt.tails >= 0).sum(1)
    return prompt.length - int(tails.max() - tails.min())


def _attention(base: DepthModel, on: Departures) -> tuple[nn.Module, nn.Module]:
    """Prototypes and cross-attention."""
    prototypes: nn.Module = base.prototypes
    reprogram: Any = base.reprogram
    if on.wide_heads:
        dropout = base.config.reprogram.dropout
        reprogram = WideAttention(
            base.vit.embed_dim,
            base.language.embed_dim,
            dropout=dropout,
            scale=base.reprogram.scale,
        )
    for layer in (m for m in reprogram.modules() if isinstance(m, nn.Linear)):
        if on.default_start:
            layer.reset_parameters()
        elif on.wide_heads:  # as ours starts
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
            nn.init.zeros_(layer.bias)
    if on.default_start:
        embedding, count = base.language.embeddings.weight, base.config.reprogram.prototypes
        prototypes = PlainPrototypes(embedding, count=count)
        reprogram.scale.fill_(1)
    return prototypes, reprogram


def _closed(hidden: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """The gaps that padding leaves inside (B, T, D) closed, so that it comes last, if at all."""
    order = (~seen).byte().argsort(dim=1, stable=True)  # (B, T)
    length = int(seen.sum(1).max())
    hidden = hidden.gather(1, order[..., None].expand_as(hidden))
    return hidden[:, :length], seen.gather(1, order)[:, :length]
