"""Adaptation head: language tokens on the patch grid to one depth logit per pixel of a finer grid.

Xia et al. 2024, https://arxiv.org/abs/2409.01133, section II.C; UpsampleBN there joins convolution,
batch norm and leaky ReLU with a residual connection. Ours: the widths, the slope, the 1x1 residual.
"""

from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.01  # PyTorch's default; the paper gives none


class Fp32BatchNorm(nn.BatchNorm2d):
    """Batch norm in fp32 with fp32 running statistics, whatever the dtype of inputs and weights.

    PyTorch's own raises for bf16 weights with fp32 statistics, and bf16 statistics would drift.
    """

    running_mean: Tensor
    running_var: Tensor

    def forward(self, input: Tensor) -> Tensor:
        """Activations (B, C, h, w) -> the same shape and dtype."""
        return F.batch_norm(
            input.float(),
            self.running_mean,
            self.running_var,
            self.weight.float(),
            self.bias.float(),
            self.training,
            self.momentum or 0.0,
            self.eps,
        ).to(input.dtype)

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def] # as nn.Module has it
        kept = {"running_mean": self.running_mean, "running_var": self.running_var}
        super()._apply(fn, recurse)
        for name, value in kept.items():
            moved = self._buffers[name]
            assert moved is not None
            if moved.dtype != value.dtype:
                self._buffers[name] = value.to(moved.device)
        return self


class UpsampleBN(nn.Module):
    """LeakyReLU(BN(conv3(LeakyReLU(BN(conv3 u)))) + conv1 u) of u, the input at twice the size."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.first_norm = Fp32BatchNorm(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = Fp32BatchNorm(outputs)
        self.skip = nn.Conv2d(inputs, outputs, 1, bias=False)
        for layer in (self.first, self.second, self.skip):
            _he(layer)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', 2h, 2w)."""
        u = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        y = F.leaky_relu(self.first_norm(self.first(u)), SLOPE)
        return F.leaky_relu(self.second_norm(self.second(y)) + self.skip(u), SLOPE)


class Head(nn.Module):
    """One linear layer, three UpsampleBN, one convolution to a single channel."""

    def __init__(
        self, embed_dim: int, *, grid: tuple[int, int], widths: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        self.grid = grid
        self.linear = nn.Linear(embed_dim, widths[0])
        self.blocks = nn.Sequential(*map(UpsampleBN, widths, widths[1:]))
        self.logit = nn.Conv2d(widths[-1], 1, 3, padding=1)
        _he(self.logit)

    def forward(self, tokens: Tensor) -> Tensor:
        """Patch tokens (B, N, D), row by row -> logits (B, 1, 8 rows, 8 columns)."""
        x = self.linear(tokens).transpose(1, 2).unflatten(-1, self.grid)  # (B, C, rows, columns)
        return self.logit(self.blocks(x))


def _he(layer: nn.Conv2d) -> None:
    # He et al. 2015, https://arxiv.org/abs/1502.01852, Eq. 15
    nn.init.kaiming_normal_(layer.weight, a=SLOPE, nonlinearity="leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
