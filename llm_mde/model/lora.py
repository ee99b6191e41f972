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
from llm_mde.errors import CheckpointError, ConfigError

# Last names of the layers that make queries, keys and values, fused in one or not. A backbone's are
# the first row it has whole.
TARGETS: tuple[tuple[str, ...], ...] = (
    ("qkv",),  # timm
    ("query", "key", "value"),  # BERT, RoBERTa
    ("q_lin", "k_lin", "v_lin"),  # DistilBERT
    ("q_proj", "k_proj", "v_proj"),  # Llama, Mistral, Qwen, Gemma, OPT; EVA-02 in timm
    ("c_attn",),  # GPT-2, with a transposed weight
    ("query_key_value",),  # GPT-NeoX
    ("qkv_proj",),  # Phi-3
    ("Wqkv",),  # ModernBERT
)
PREFIX = "base_model.model."  # of every name in PEFT's adapter_model.safetensors

Tune = Literal["full", "lora", "frozen"]


def tune(backbone: nn.Module, how: Tune, *, lora: LoraConfig, key: str) -> None:
    """Sets `requires_grad` of a backbone's weights, in place, and adds adapters for `lora`.

    `key` is the backbone's place in the configuration, for the message.

    Raises:
        ConfigError: `lora`, and no layer of the backbone has a name that we know.
    """
    backbone.requires_grad_(how == "full")
    names = targets(backbone)
    if how == "lora" and not names:
        known = "; ".join(", ".join(row) for row in TARGETS)
        raise ConfigError(
            f"{key}.tune: expected full or frozen, got lora: none of the layers it adapts is in "
            f"this network ({known})"
        )
    if how == "lora":
        peft = _peft(lora, list(names))
        # GPT-2 keeps its weights transposed, in a layer of its own.
        peft.fan_in_fan_out = any(type(m).__name__ == "Conv1D" for m in backbone.modules())
        inject_adapter_in_model(peft, backbone)
    found = {name for name, weight in backbone.named_parameters() if weight.requires_grad}
    assert found == trainable_names(backbone, how)


def targets(backbone: nn.Module) -> tuple[str, ...]:
    """Last names of the layers of a backbone that get adapters; empty if it has none we know."""
    found = {name.rpartition(".")[2] for name, _ in backbone.named_modules()}
    return next((row for row in TARGETS if found.issuperset(row)), ())


def trainable_names(backbone: nn.Module, how: Tune) -> set[str]:
    """Names of exactly the weights that may train, from the structure alone."""
    if how == "full":
        return {name for name, _ in backbone.named_parameters()}
    if how == "frozen":
        return set()
    last = targets(backbone)
    layers = [name for name, _ in backbone.named_modules() if name.rpartition(".")[2] in last]
    return {f"{layer}.lora_{side}.default.weight" for layer in layers for side in "AB"}


def adapter_config(config: ModelConfig) -> PeftConfig | None:
    """PEFT's configuration of all adapters of a `DepthModel`, or None where there are none.

    One file describes both backbones: the ranks of the language model are PEFT's `rank_pattern`
    beside those of the ViT. Its pattern of layers is that of every family, of which a network has
    one. PEFT keeps one dropout, so it is the first backbone's; it only acts in training.
    """
    how = {
        "vit": (config.vit.tune, config.vit.lora),
        "language": (config.llm.tune, config.llm.lora),
    }
    tuned = {name: lora for name, (tune, lora) in how.items() if tune == "lora"}
    if not tuned:
        return None
    names = "|".join(name for row in TARGETS for name in row)
    first, *others = tuned
    whole = _peft(tuned[first], rf"({'|'.join(tuned)})\..*\.({names})")
    for name in others:
        whole.rank_pattern[rf"{name}\..*"] = tuned[name].r
        whole.alpha_pattern[rf"{name}\..*"] = tuned[name].alpha
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
    problem = misfit({name: tuple(weight.shape) for name, weight in weights.items()}, state)
    if problem:
        raise CheckpointError(
            f"adapter: {problem}; expected the backbones and ranks it was trained with"
        )
    with torch.no_grad():
        for name, weight in weights.items():
            weight.copy_(state[name])


def misfit(wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, Tensor]) -> str | None:
    """How tensors differ from the shapes that a model wants, by name; None if they do not."""
    shapes = {name: tuple(tensor.shape) for name, tensor in found.items()}
    wrong = sorted(name for name in {**wanted, **shapes} if wanted.get(name) != shapes.get(name))
    if not wrong:
        return None
    name = wrong[0]
    return (
        f"{len(wrong)} tensors do not fit the model, the first is {name}: "
        f"expected {wanted.get(name, 'none')}, got {shapes.get(name, 'none')}"
    )


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
