"""What trains in a backbone: everything, low-rank adapters, or nothing.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: W + (alpha / r) B A, with B zero at the start, so
that step 0 is the pretrained model. Base weights are frozen first and adapters added after.
"""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn

from llm_mde.config import LoraConfig, ModelConfig
from llm_mde.errors import CheckpointError

VIT_TARGETS: tuple[str, ...] = ("qkv",)
LLM_TARGETS: tuple[str, ...] = ("query", "key", "value")
PREFIX = "base_model.model."  # of every name in PEFT's adapter_model.safetensors

Tune = Literal["full", "lora", "frozen"]


def tune(backbone: nn.Module, how: Tune, *, lora: LoraConfig, targets: tuple[str, ...]) -> None:
    """Sets `requires_grad` of a backbone's weights, in place, and adds adapters for `lora`.

    `targets` are the last names of the linear layers that get adapters.
    """
    backbone.requires_grad_(how == "full")
    if how == "lora":
        inject_adapter_in_model(_peft(lora, list(targets)), backbone)
    found = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert found == trainable_names(backbone, how, targets=targets)


def trainable_names(backbone: nn.Module, how: Tune, *, targets: tuple[str, ...]) -> set[str]:
    """Names of exactly the weights that may train, from the structure alone."""
    if how == "full":
        return {name for name, _ in backbone.named_parameters()}
    if how == "frozen":
        return set()
    layers = [name for name, _ in backbone.named_modules() if name.rpartition(".")[2] in targets]
    return {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}


def adapter_config(config: ModelConfig) -> PeftConfig | None:
    """PEFT's configuration of all adapters of a `DepthModel`, or None where there are none.

    One file describes both backbones: the ranks of the language model are PEFT's `rank_pattern`
    beside those of the ViT. PEFT keeps one dropout, so it is the first backbone's; it only acts in
    training.
    """
    vit, llm = config.vit, config.llm
    tuned = [("vit", vit.lora, VIT_TARGETS)] if vit.tune == "lora" else []
    tuned += [("language", llm.lora, LLM_TARGETS)] if llm.tune == "lora" else []
    if not tuned:
        return None
    pattern = "|".join(rf"{name}\..*\.({'|'.join(targets)})" for name, _, targets in tuned)
    first, *others = tuned
    whole = _peft(first[1], pattern)
    for name, lora, _ in others:
        whole.rank_pattern[rf"{name}\..*"] = lora.r
        whole.alpha_pattern[rf"{name}\..*"] = lora.alpha
    return whole


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """All adapter weights by the names PEFT gives them on disk."""
    return {_on_disk(name): weight.detach() for name, weight in _adapters(model).items()}


def load_adapter_state(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Writes adapter weights by PEFT's names on disk into the adapters of `model`.

    Raises:
        CheckpointError: names or shapes differ from the model's adapters.
    """
    weights = {_on_disk(name): weight for name, weight in _adapters(model).items()}
    wrong = sorted(weights.keys() ^ state.keys()) or [
        name for name, weight in weights.items() if weight.shape != state[name].shape
    ]
    if wrong:
        raise CheckpointError(
            f"adapter: {len(wrong)} tensors do not fit the model, the first is {wrong[0]}; "
            f"expected the backbones and ranks it was trained with"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])


def _peft(lora: LoraConfig, targets: list[str] | str) -> Any:
    return PeftConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        bias="none",
    )


def _adapters(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if ".lora_" in name}


def _on_disk(name: str) -> str:
    return PREFIX + name.replace(".default.", ".")
