"""A model in bf16 as DeepSpeed has it."""

from torch import nn


def halve(model: nn.Module) -> None:
    """Weights to bf16, in place; buffers stay fp32."""
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()
