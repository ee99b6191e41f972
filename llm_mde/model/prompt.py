"""Adaptive depth prompts (APG): what the language model reads before the image patches.

Xia et al. 2024, https://arxiv.org/abs/2409.01133, section II.B. The sentences and the rule for the
class are ours, the paper gives none. Everything depends on the image the network sees, never on
depth.
"""

from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from llm_mde.errors import ConfigError
from llm_mde.model.vocabulary import Vocabulary

# section II.B, from the darkest of seven equal ranges of luminance to the brightest
CLASSES = (
    "giant",
    "extremely close",
    "close",
    "not in distance",
    "a little remote",
    "far",
    "unseen",
)
FIXED = (
    "dataset: indoor rooms seen by a depth camera. "
    "task: estimate the distance of every image patch in meters."
)
LOW, HIGH, MEDIAN = " pixels: min", ", max", ", median"  # each before a space and a number
LEVELS = 256
LUMA = (299, 587, 114)  # ITU-R BT.601, in thousandths
EDGES = tuple(-(-LEVELS * k // len(CLASSES)) for k in range(1, len(CLASSES) + 1))


class Statistics(NamedTuple):
    """Luminance of each image of a batch, all int64 (B,)."""

    low: Tensor
    """Smallest value, 0..255."""
    high: Tensor
    """Largest value."""
    median: Tensor
    """Lower median."""
    label: Tensor
    """Index into CLASSES of the fullest of the seven ranges; ties go to the darker."""


def statistics(image: Tensor) -> Statistics:
    """Luminance statistics of uint8 RGB (B, 3, h, w), exact integers, without a host sync.

    Luminance is 0.299 R + 0.587 G + 0.114 B rounded to the nearest integer, halves up; range k of
    seven holds y with floor(7 y / 256) = k.
    """
    B, pixels = image.shape[0], image.shape[2] * image.shape[3]
    red, green, blue = image.to(torch.int32).unbind(1)
    luma = (LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue + 500) // 1000
    luma = luma.flatten(1).long()  # (B, h w)
    counts = torch.zeros(B, LEVELS, dtype=torch.int64, device=image.device)
    counts.scatter_add_(1, luma, torch.ones_like(luma))  # integers: the order does not matter
    below = counts.cumsum(1)  # pixels at or below each level
    edges = torch.stack([below[:, edge - 1] for edge in EDGES], 1)  # (B, 7)
    filled = edges.diff(dim=1, prepend=edges.new_zeros(B, 1))
    first = torch.arange(len(CLASSES), device=image.device)
    return Statistics(
        low=(below == 0).sum(1),
        high=(below < pixels).sum(1),
        median=(below <= (pixels - 1) // 2).sum(1),
        label=(filled * len(CLASSES) - first).argmax(1),
    )


class Prompt(nn.Module):
    """Token ids of each image's prompt, by table lookup; the same length for every image.

    `[CLS] dataset: ... task: ... pixels: min {a}, max {b}, median {c}. class: {name}. [SEP]` with
    the special tokens that the tokenizer itself adds; shorter ones padded and masked: a number
    inside its place, a class name at the end.
    """

    low_text: Tensor
    high_text: Tensor
    median_text: Tensor
    numbers: Tensor
    tails: Tensor
    fixed: Tensor

    def __init__(self, vocabulary: Vocabulary, *, mode: Literal["apg", "fixed", "none"]) -> None:
        """Builds the tables of one tokenizer; a token that is -1 in them is padding.

        Raises:
            ConfigError: the tokenizer merges words of an `apg` prompt with their neighbours.
        """
        super().__init__()
        self.mode = mode
        self.pad = vocabulary.pad
        tables = _tables(vocabulary)
        if mode == "apg":
            _check_tables(tables, vocabulary)
        ragged = any(len(row) < len(max(rows, key=len)) for rows in tables.values() for row in rows)
        self.padded = mode == "apg" and ragged  # else every mask is all True
        for name, rows in tables.items():
            self.register_buffer(name, _table(rows), persistent=False)
        self.span = sum(self.get_buffer(name).shape[1] for name in ("low_text", "high_text"))
        self.span += self.median_text.shape[1] + 3 * self.numbers.shape[1] + self.tails.shape[1]
        self.length = {"apg": self.span, "fixed": self.fixed.shape[1], "none": 0}[mode]

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Uint8 RGB (B, 3, h, w) -> ids int64 (B, P) and mask bool (B, P), False on padding."""
        B = image.shape[0]
        if self.mode == "apg":
            tokens = self._adaptive(image)
        elif self.mode == "fixed":
            tokens = self.fixed.expand(B, -1)
        else:
            tokens = self.fixed[:, :0].expand(B, -1)
        mask = tokens >= 0
        return tokens.masked_fill(~mask, self.pad), mask

    def _adaptive(self, image: Tensor) -> Tensor:
        B = image.shape[0]
        seen = statistics(image)
        return torch.cat(
            [
                self.low_text.expand(B, -1),
                self.numbers[seen.low],
                self.high_text.expand(B, -1),
                self.numbers[seen.high],
                self.median_text.expand(B, -1),
                self.numbers[seen.median],
                self.tails[seen.label],
            ],
            dim=1,
        )  # (B, P)


def _tables(vocabulary: Vocabulary) -> dict[str, list[list[int]]]:
    """Ids of each part, cut out of whole prompts: many tokenizers mark the space before a word."""
    pieces, start, end = vocabulary.pieces, vocabulary.start, vocabulary.end
    low = FIXED + LOW
    high = f"{low} 0{HIGH}"
    median = f"{high} 0{MEDIAN}"
    return {
        "low_text": [start + pieces(low)],
        "high_text": [pieces(HIGH, after=f"{low} 0")],
        "median_text": [pieces(MEDIAN, after=f"{high} 0")],
        "numbers": [pieces(f" {value}", after=low) for value in range(LEVELS)],
        "tails": [pieces(f". class: {name}.", after=f"{median} 0") + end for name in CLASSES],
        "fixed": [start + pieces(FIXED) + end],
    }


def _check_tables(tables: dict[str, list[list[int]]], vocabulary: Vocabulary) -> None:
    texts, joined = [], []
    for value in range(LEVELS):
        label = value % len(CLASSES)
        texts.append(
            f"{FIXED}{LOW} {value}{HIGH} {value}{MEDIAN} {value}. class: {CLASSES[label]}."
        )
        number, tail = tables["numbers"][value], tables["tails"][label]
        low, high, median = (tables[name][0] for name in ("low_text", "high_text", "median_text"))
        joined.append([*low, *number, *high, *number, *median, *number, *tail])
    for text, ours, want in zip(texts, joined, vocabulary.batch(texts), strict=True):
        if ours != want:
            raise ConfigError(
                "model.llm.name: prompts are made from tables of their parts, but this tokenizer "
                f"joins neighbouring parts of {text[len(FIXED) + 1 :]!r}; expected one that cuts "
                "at spaces and punctuation"
            )


def _table(rows: list[list[int]]) -> Tensor:
    width = max(len(row) for row in rows)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows])
