"""Language backbones of every family, small and random, with tokenizers of their kinds."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor

from llm_mde.config import LlmConfig, ModelConfig
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.language import Language
from llm_mde.model.prompt import FIXED
from llm_mde.model.vocabulary import shipped_words

SIZE = (32, 48)
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2")
CAUSAL = ("gpt2", "llama", "mistral", "qwen2")
BERT_LIKE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SHAPE: dict[str, dict[str, Any]] = {
    "bert": {**BERT_LIKE, "intermediate_size": 64},
    "roberta": {**BERT_LIKE, "intermediate_size": 64, "pad_token_id": 1},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2},
}
LLAMA_LIKE = {**BERT_LIKE, "intermediate_size": 64, "num_key_value_heads": 1}


@cache
def pieces(*, marked: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Vocabulary and merges of a BPE of few words: GPT-2's bytes, or SentencePiece's marks."""
    bpe = Tokenizer(models.BPE())
    marks = [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.Punctuation(),
        pre_tokenizers.Metaspace(prepend_scheme="first"),
    ]
    bytes_ = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence(marks) if marked else bytes_
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>", "<|endoftext|>"],
        initial_alphabet=[] if marked else bytes_.alphabet(),
        show_progress=False,
    )
    words = [word for word in shipped_words() if word.isalpha()]
    text = [FIXED, " pixels: min 1, max 2, median 3. class:", " ".join(words * 3), "▁"]
    bpe.train_from_iterator(text, trainer)
    model = json.loads(bpe.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def tokenizer(family: str) -> Any:
    if family in ("bert", "distilbert"):
        words = [word for word in shipped_words() if not word.isdigit()]  # numbers: several pieces
        words += [mark + str(digit) for digit in range(10) for mark in ("", "##")]
        return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    vocab, merges = pieces(marked=family in ("llama", "mistral"))
    if family == "roberta":
        return transformers.RobertaTokenizer(vocab=vocab, merges=merges)
    if family == "gpt2":
        return transformers.GPT2Tokenizer(vocab=vocab, merges=merges)
    if family == "qwen2":
        return transformers.Qwen2Tokenizer(vocab=vocab, merges=merges)
    made = transformers.LlamaTokenizer(vocab=vocab, merges=merges)
    start = [("<s>", vocab["<s>"])]
    made.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=start
    )
    return made


def write_family(folder: Path, family: str) -> Path:
    """A small random network with its tokenizer, as `save_pretrained` leaves them."""
    words = tokenizer(family)
    shape = {"max_position_embeddings": 160, "vocab_size": len(words)}
    config = transformers.AutoConfig.for_model(family, **shape, **SHAPE.get(family, LLAMA_LIKE))
    torch.manual_seed(0)
    transformers.AutoModel.from_config(config).save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def load(folder: Path, *, dropout: float = 0.1, layers: int | None = None) -> Language:
    return Language(LlmConfig(name=str(folder), dropout=dropout, layers=layers)).eval()


def depth_model(folder: Path, *, how: str = "frozen", prompt: str = "apg") -> DepthModel:
    tree: dict[str, Any] = {
        "image_size": SIZE,
        "prompt": prompt,
        "vit": {"name": "random:tiny:0", "tune": "frozen"},
        "llm": {"name": str(folder), "tune": how, "lora": {"r": 4, "alpha": 6}},
        "reprogram": {"prototypes": 16},
        "head": {"widths": (16, 8, 8, 4)},
    }
    return DepthModel(ModelConfig.model_validate(tree), seed=0).eval()


def images() -> Tensor:
    """Four images whose prompts have different lengths: other classes, other digits."""
    image = torch.zeros(4, 3, *SIZE, dtype=torch.uint8)
    for row, (low, high) in enumerate([(0, 9), (3, 250), (120, 130), (70, 90)]):
        generator = torch.Generator().manual_seed(row)
        image[row] = torch.randint(low, high, (3, *SIZE), generator=generator)
    return image
