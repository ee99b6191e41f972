"""Text prototypes E' = layernorm(M E): a few learnt mixtures of the language model's words.

Xia et al. 2024, https://arxiv.org/abs/2409.01133, section II.A (M is the paper's linear
transformation of E). Ours: rows of M start as single words and a layer norm follows; from PyTorch's
default start every prototype is the same mean word, and almost no gradient reaches the image
backbone.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from llm_mde.errors import ConfigError


class Prototypes(nn.Module):
    """The map M (P, V) on the word embedding E (V, D), and the layer norm after it.

    E is the language model's own parameter, registered here too: ZeRO-3 gathers a module's direct
    parameters before its forward pass, whatever else they belong to.
    """

    def __init__(self, embedding: Tensor, *, count: int, words: Sequence[int], seed: int) -> None:
        """Starts every row of M at one of `words` (ids), drawn without repetition.

        Raises:
            ConfigError: there are fewer words than prototypes.
        """
        super().__init__()
        if count > len(words):
            raise ConfigError(
                f"model.reprogram.prototypes: expected at most {len(words)}, the whole words of "
                f"the vocabulary, got {count}"
            )
        V, D = embedding.shape
        self.embedding = embedding
        self.map = nn.Parameter(_one_hot(words, count=count, width=V, seed=seed).to(embedding))
        self.weight = nn.Parameter(torch.ones(D))
        self.bias = nn.Parameter(torch.zeros(D))
        self.register_buffer("given", None)
        self._cache: Tensor | None = None
        self.register_load_state_dict_post_hook(_forget)

    def forward(self) -> Tensor:
        """E' (P, D) in the weights' dtype; computed once an evaluation, every step of training."""
        if self.given is not None:
            return self.given
        reuse = not self.training and not torch.is_grad_enabled()
        if not reuse:
            self.forget()  # an optimizer step may follow
        if self._cache is not None:
            return self._cache
        mixed = self.map @ self.embedding  # (P, D)
        normed = F.layer_norm(
            mixed.float(), mixed.shape[-1:], self.weight.float(), self.bias.float()
        ).to(mixed.dtype)
        if reuse:
            self._cache = normed
        return normed

    def freeze(self, prototypes: Tensor) -> None:
        """Holds `prototypes` (P, D) from now on, in place of M, E and the layer norm."""
        assert prototypes.shape == (self.map.shape[0], self.embedding.shape[1])
        dtype = self.embedding.dtype
        del self.map, self.weight, self.bias, self.embedding
        self.forget()
        self.given = prototypes.detach().to(dtype)

    def forget(self) -> None:
        """Drops the cached E'; whoever writes into weights in evaluation mode calls this."""
        self._cache = None

    def train(self, mode: bool = True) -> "Prototypes":
        """Sets the mode, as every module does, and drops the cached E'."""
        self.forget()
        super().train(mode)
        return self

    def _apply(self, fn, recurse=True):  # type: ignore[no-untyped-def] # as nn.Module has it
        self.forget()
        return super()._apply(fn, recurse)


def _forget(module: Prototypes, _: object) -> None:  # a lambda could not be pickled
    module.forget()


def _one_hot(words: Sequence[int], *, count: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randperm(len(words), generator=generator, device="cpu")[:count].tolist()
    rows = torch.zeros(count, width)
    rows[torch.arange(count), torch.tensor([words[i] for i in drawn])] = 1
    return rows
