"""Cross-modal reprogramming: image tokens become mixtures of text prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_mde.errors import ConfigError


class Reprogram(nn.Module):
    """Cross-attention from image tokens to text prototypes: softmax(Q K^T / sqrt(d)) V.

    Xia et al. 2024, https://arxiv.org/abs/2409.01133, Eq. 1 (after Jin et al. 2024, Time-LLM,
    https://arxiv.org/abs/2310.01728, section 3.1), d = D_vit / heads. The paper leaves biases open:
    the last projection has one, queries, keys and values have none. Ours: all weights start with
    std 1 / sqrt(inputs), which keeps tokens distinct (see `prototypes`), and the result is
    multiplied by the rms of words: prototypes are normalised to 1, but the language model adds
    positions to its words, which tokens of that size drown. As attention averages prototypes,
    tokens start some four times below words; as large as words they learnt no better.
    """

    scale: Tensor

    def __init__(
        self, vit_dim: int, llm_dim: int, *, heads: int, dropout: float, scale: Tensor
    ) -> None:
        """Builds the four projections; the inner width is that of the image tokens.

        `scale` () is a constant on the result, kept with the weights.

        Raises:
            ConfigError: the width is not a multiple of the heads.
        """
        super().__init__()
        if vit_dim % heads:
            raise ConfigError(
                f"model.reprogram.heads: expected a divisor of the ViT's width {vit_dim}, "
                f"got {heads}"
            )
        self.heads, self.dropout = heads, dropout
        self.query = nn.Linear(vit_dim, vit_dim, bias=False)
        self.key = nn.Linear(llm_dim, vit_dim, bias=False)
        self.value = nn.Linear(llm_dim, vit_dim, bias=False)
        self.out = nn.Linear(vit_dim, llm_dim)
        for layer in (self.query, self.key, self.value, self.out):
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        nn.init.zeros_(self.out.bias)
        self.register_buffer("scale", scale)

    def forward(self, visual: Tensor, prototypes: Tensor) -> Tensor:
        """Image tokens (B, N, D_vit), prototypes (P, D) -> (B, N, D)."""
        B = visual.shape[0]
        q = self.query(visual).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, K, N, d)
        k = self.key(prototypes).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (K, P, d)
        v = self.value(prototypes).unflatten(-1, (self.heads, -1)).transpose(0, 1)  # (K, P, d)
        out = F.scaled_dot_product_attention(
            q,
            k.expand(B, -1, -1, -1),
            v.expand(B, -1, -1, -1),
            dropout_p=self.dropout if self.training else 0.0,
        )
        return self.scale * self.out(out.transpose(1, 2).flatten(2))  # (B, N, D)


@torch.no_grad()
def word_scale(embedding: Tensor) -> Tensor:
    """Root mean square of word embeddings (V, D), as the nearest power of two: exact in bf16."""
    rms = embedding.float().square().mean().sqrt()
    return torch.ldexp(torch.ones_like(rms), rms.log2().round())
