"""The language backbone: a BERT without pooler from the hub, from a folder, or rebuilt from a seed.

Devlin et al. 2019, https://arxiv.org/abs/1810.04805.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoTokenizer, BertConfig, BertModel, BertTokenizer
from transformers.utils import logging as transformers_logging

from llm_mde.config import LlmConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.vit import (
    FILES,
    Identity,
    backbone_folder,
    parse_random,
    seeded_rng,
    weights_hash,
)

KEY = "model.llm.name"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
WORD = re.compile(r"[A-Za-z]{2,}")

# `base` is BERT-base (Devlin et al. 2019, section 3; V = 30522 of the uncased model).
ARCHITECTURES = {
    "tiny": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 512,
    },
    "base": {"vocab_size": 30522},
}


@dataclass(frozen=True)
class Vocabulary:
    """The language model's token ids, for building tables; no tokenizer runs in a step."""

    tokenizer: Any
    """A transformers tokenizer."""

    def pieces(self, text: str) -> list[int]:
        """Ids of the word pieces of `text`, without special tokens."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    @property
    def start(self) -> int:
        """Id of [CLS]."""
        return self.tokenizer.cls_token_id

    @property
    def end(self) -> int:
        """Id of [SEP]."""
        return self.tokenizer.sep_token_id

    @property
    def pad(self) -> int:
        """Id of [PAD]."""
        return self.tokenizer.pad_token_id

    def words(self) -> list[int]:
        """Ids of whole words of two or more Latin letters, ascending: prototypes start there."""
        ids = self.tokenizer.get_vocab()
        return sorted(ids[token] for token in ids if WORD.fullmatch(token))


class Language(nn.Module):
    """A BERT that reads embeddings instead of ids."""

    def __init__(self, config: LlmConfig) -> None:
        """Loads the backbone.

        Random ones use the word list shipped with the package. `random:base` has BERT's 30,522 rows
        without BERT's words: those after the list get made-up names, as good as any for random
        rows.

        Raises:
            ConfigError: the name is unknown or is no BERT.
            CheckpointError: the hub can't be reached, or the folder lacks weights or a tokenizer.
        """
        super().__init__()
        dropout = {
            "hidden_dropout_prob": config.dropout,
            "attention_probs_dropout_prob": config.dropout,
        }
        random = parse_random(config.name, key=KEY)
        if random:
            self.model, tokenizer = _random(*random, dropout=dropout)
            revision = None
        else:
            folder, revision = backbone_folder(
                config.name,
                repo=config.name,
                revision=config.revision,
                key=KEY,
                files=(*FILES, *TOKENIZER_FILES, "tokenizer_config.json"),
            )
            self.model, tokenizer = _load(folder, dropout=dropout)
        self.vocabulary = Vocabulary(tokenizer)
        self.identity = Identity(config.name, revision, weights_hash(self.model))
        self.embed_dim: int = self.model.config.hidden_size
        self.positions: int = self.model.config.max_position_embeddings

    @property
    def embeddings(self) -> nn.Embedding:
        """The layer that looks up the word embedding E (V, D)."""
        return self.model.embeddings.word_embeddings

    def forward(self, embeds: Tensor, *, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Hidden states of the last layer.

        embeds (B, T, D); mask bool (B, T), False where a token is padding, or None where none is;
        positions int64 (1, T) or (B, T) -> (B, T, D).
        """
        if mask is not None:
            # Four dimensions pass through transformers as they are; with two it asks the GPU, every
            # step, whether they are all ones.
            T = mask.shape[1]
            mask = mask[:, None, None, :].expand(-1, 1, T, -1)  # (B, 1, T, T)
        return self.model(
            inputs_embeds=embeds, attention_mask=mask, position_ids=positions
        ).last_hidden_state

    def save(self, folder: Path) -> None:
        """Writes the whole backbone with its tokenizer; the folder's path then works as a name."""
        assert not any("lora_" in name for name, _ in self.model.named_parameters())
        with _quiet():
            self.model.save_pretrained(folder)
        self.vocabulary.tokenizer.save_pretrained(folder)


def shipped_words() -> list[str]:
    """The word list of random language models: special tokens, 0..255, the prompt's words, others.

    As in BERT's own list `dataset` is two pieces, so that prompts are as long as with BERT.
    """
    text = (resources.files("llm_mde.model") / "words.txt").read_text(encoding="utf-8")
    return text.split()


def _random(size: str, seed: int, *, dropout: dict[str, float]) -> tuple[Any, Any]:
    words = shipped_words()
    config = BertConfig(**{"vocab_size": len(words), **ARCHITECTURES[size]}, **dropout)
    config._attn_implementation = "sdpa"
    with seeded_rng(seed):
        model = BertModel(config, add_pooling_layer=False)
    named = words + [_made_up(i) for i in range(len(words), config.vocab_size)]
    return model, BertTokenizer(vocab={word: i for i, word in enumerate(named)})


def _made_up(number: int) -> str:
    return "x" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def _load(folder: Path, *, dropout: dict[str, float]) -> tuple[Any, Any]:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise CheckpointError(f"{KEY}: no {' or '.join(TOKENIZER_FILES)} in {folder}")
    try:
        config = AutoConfig.from_pretrained(folder)
        if config.model_type != "bert":
            raise ConfigError(f"{KEY}: expected a BERT in {folder}, got {config.model_type}")
        with _quiet():
            model, report = BertModel.from_pretrained(
                folder,
                add_pooling_layer=False,
                attn_implementation="sdpa",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **dropout,
            )
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{KEY}: {folder} can't be read: {error}") from error
    if report["missing_keys"] or len(tokenizer) > config.vocab_size:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{KEY}: {folder} does not fit its config.json: {len(missing)} tensors missing "
            f"{missing[:1]}, {len(tokenizer)} tokens for {config.vocab_size} embeddings"
        )
    return model, tokenizer


@contextmanager
def _quiet() -> Iterator[None]:
    # Every rank would print a bar, and a report that we do not build the pooler.
    level, bar = (
        transformers_logging.get_verbosity(),
        transformers_logging.is_progress_bar_enabled(),
    )
    transformers_logging.set_verbosity(transformers_logging.ERROR)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bar:
            transformers_logging.enable_progress_bar()
