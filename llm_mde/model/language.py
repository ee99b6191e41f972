"""The language backbone: a transformers text model from the hub, a folder, or rebuilt from a seed.

BERT (Devlin et al. 2019, https://arxiv.org/abs/1810.04805), RoBERTa, DistilBERT and their kin read
in both directions; GPT-2, Llama and theirs only backwards, and keep to that: a patch sees the
prompt and the patches before it.
"""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    MODEL_MAPPING,
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
)
from transformers.utils import logging as transformers_logging

from llm_mde.config import LlmConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.vit import (
    FILES,
    SHARDED,
    Identity,
    backbone_folder,
    parse_random,
    seeded_rng,
    weights_hash,
)
from llm_mde.model.vocabulary import Vocabulary, shipped_words

KEY = "model.llm.name"
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model")
OTHER_FILES = (
    *("merges.txt", "tokenizer_config.json", "special_tokens_map.json"),
    *(SHARDED, "model-*.safetensors"),
)
NEEDED = ("inputs_embeds", "attention_mask", "position_ids")  # what a text model must take
# What configurations call the dropout of a layer's outputs and of attention: BERT and RoBERTa;
# DistilBERT and OPT, Llama; GPT-2; GPT-NeoX; ModernBERT
DROPOUTS = (
    *("hidden_dropout_prob", "attention_probs_dropout_prob"),
    *("dropout", "attention_dropout"),
    *("resid_pdrop", "embd_pdrop", "attn_pdrop"),
    *("hidden_dropout", "embedding_dropout", "mlp_dropout"),
)

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


class Language(nn.Module):
    """A text model that reads embeddings instead of ids."""

    def __init__(self, config: LlmConfig) -> None:
        """Loads the backbone.

        Random ones use the word list shipped with the package. `random:base` has BERT's 30,522 rows
        without BERT's words: those after the list get made-up names, as good as any for random
        rows.

        Raises:
            ConfigError: the name is unknown or is no text model that fits.
            CheckpointError: the hub can't be reached, or the folder lacks weights or a tokenizer.
        """
        super().__init__()
        random = parse_random(config.name, key=KEY)
        if random:
            self.model, tokenizer = _random(*random, config=config)
            revision = None
        else:
            folder, revision = backbone_folder(
                config.name,
                repo=config.name,
                revision=config.revision,
                key=KEY,
                files=(*FILES, *TOKENIZER_FILES, *OTHER_FILES),
            )
            self.model, tokenizer = _load(folder, config)
        self.vocabulary = Vocabulary(tokenizer)
        self.identity = Identity(config.name, revision, weights_hash(self.model))
        self.embed_dim: int = self.model.config.hidden_size
        self.causal = any(getattr(layer, "is_causal", False) for layer in self.model.modules())
        self.offset = _position_offset(self.model)
        self.positions = _positions(self.model.config) - self.offset

    @property
    def embeddings(self) -> nn.Embedding:
        """The layer that looks up the word embedding E (V, D)."""
        layer: nn.Embedding = self.model.get_input_embeddings()
        return layer

    def forward(self, embeds: Tensor, *, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Hidden states of the last layer.

        embeds (B, T, D); mask bool (B, T), False where a token is padding, or None where none is;
        positions int64 (1, T) or (B, T) -> (B, T, D).
        """
        return self.model(
            inputs_embeds=embeds,
            attention_mask=self._visible(embeds, mask),
            position_ids=positions + self.offset,
            **({"use_cache": False} if self.causal else {}),
        ).last_hidden_state

    def _visible(self, embeds: Tensor, mask: Tensor | None) -> Tensor | None:
        """What each token sees, bool (B, 1, T, T), or None for everything."""
        # Four dimensions pass through transformers as they are. With two it asks the GPU, every
        # step, whether they are all ones; with none a causal model takes the gap between a short
        # prompt's positions and the patches' for the border of two texts.
        B, T = embeds.shape[:2]
        seen = None if mask is None else mask[:, None, None, :].expand(-1, 1, T, -1)  # (B, 1, T, T)
        if not self.causal:
            return seen
        earlier = torch.ones(T, T, dtype=torch.bool, device=embeds.device).tril()
        earlier = earlier.expand(B, 1, T, T)
        return earlier if seen is None else earlier & seen

    def save(self, folder: Path) -> None:
        """Writes the whole backbone with its tokenizer; the folder's path then works as a name."""
        assert not any("lora_" in name for name, _ in self.model.named_parameters())
        with _quiet():
            self.model.save_pretrained(folder)
        self.vocabulary.tokenizer.save_pretrained(folder)


def _random(size: str, seed: int, *, config: LlmConfig) -> tuple[Any, Any]:
    words = shipped_words()
    bert = BertConfig(**{"vocab_size": len(words), **ARCHITECTURES[size]})
    _set_dropout(bert, config.dropout)
    _cut(bert, config.layers, name=config.name)
    bert._attn_implementation = "sdpa"
    with seeded_rng(seed):
        model = BertModel(bert, add_pooling_layer=False)
    named = words + [_made_up(i) for i in range(len(words), bert.vocab_size)]
    return model, BertTokenizer(vocab={word: i for i, word in enumerate(named)})


def _made_up(number: int) -> str:
    return "x" + str(number).translate(str.maketrans("0123456789", "abcdefghij"))


def _load(folder: Path, asked: LlmConfig) -> tuple[Any, Any]:
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        raise CheckpointError(f"{KEY}: no tokenizer ({' or '.join(TOKENIZER_FILES)}) in {folder}")
    try:
        # Else a folder with Python code stops every rank at a question on the terminal.
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        family = _family(config, folder=folder)
        _set_dropout(config, asked.dropout)
        _cut(config, asked.layers, name=asked.name)
        poolable = "add_pooling_layer" in inspect.signature(family.__init__).parameters
        with _quiet():
            model, report = family.from_pretrained(
                folder,
                config=config,
                attn_implementation="sdpa",
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                **({"add_pooling_layer": False} if poolable else {}),
            )
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{KEY}: {folder} can't be read: {error}") from error
    _check_words(model, folder=folder)
    if report["missing_keys"] or len(tokenizer) > config.vocab_size:
        missing = sorted(report["missing_keys"])
        raise CheckpointError(
            f"{KEY}: {folder} does not fit its config.json: {len(missing)} tensors missing "
            f"{missing[:1]}, {len(tokenizer)} tokens for {config.vocab_size} embeddings"
        )
    return model, tokenizer


def _family(config: Any, *, folder: Path) -> Any:
    """The network of a configuration, if it reads embeddings at given positions."""
    family: Any = MODEL_MAPPING.get(type(config), None)
    taken = inspect.signature(family.forward).parameters if hasattr(family, "forward") else {}
    problem = None
    if config.is_encoder_decoder:
        problem = "an encoder-decoder"
    elif missing := [name for name in NEEDED if name not in taken]:
        problem = f"one whose forward takes no {', '.join(missing)}"
    elif missing := [
        name
        for name in ("hidden_size", "max_position_embeddings")
        if not getattr(config, name, None)
    ]:
        problem = f"one whose config.json has no {', '.join(missing)}"
    elif not family._supports_sdpa:
        problem = "one without fused attention (SDPA)"
    if problem:
        raise ConfigError(
            f"{KEY}: expected a text model like BERT, RoBERTa, DistilBERT, GPT-2 or Llama in "
            f"{folder}, got {config.model_type}, {problem}"
        )
    return family


def _check_words(model: Any, *, folder: Path) -> None:
    words, width = model.get_input_embeddings(), model.config.hidden_size
    if not isinstance(words, nn.Embedding) or words.embedding_dim != width:
        got = words.embedding_dim if isinstance(words, nn.Embedding) else type(words).__name__
        raise ConfigError(
            f"{KEY}: expected word embeddings as wide as the hidden states ({width}) in {folder}, "
            f"got {got}"
        )


def _cut(config: Any, layers: int | None, *, name: str) -> None:
    """Keep the first layers, and whatever norm follows the last one."""
    if layers is None:
        return
    if layers > config.num_hidden_layers:
        raise ConfigError(
            f"model.llm.layers: expected at most {config.num_hidden_layers}, the layers of {name}, "
            f"got {layers}"
        )
    config.num_hidden_layers = layers
    if getattr(config, "layer_types", None):  # Qwen's: which layers see how far
        config.layer_types = config.layer_types[:layers]


def _set_dropout(config: Any, dropout: float) -> None:
    for name in DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, dropout)


def _positions(config: Any) -> int:
    """How many tokens fit: the position limit, or a smaller window that a local layer sees."""
    window: int | None = getattr(config, "sliding_window", None)
    limit: int = config.max_position_embeddings
    return min(limit, window or limit)


def _position_offset(model: nn.Module) -> int:
    """RoBERTa's positions start after the row of the padding token; others' start at 0."""
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = [getattr(table, "padding_idx", None) for table in tables]
    return padding[0] + 1 if padding and padding[0] is not None else 0


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
