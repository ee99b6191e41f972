"""The language model's token ids: what prompt tables and prototypes are built from."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

WORD = re.compile(r"[A-Za-z]{2,}")
# Tokenizers that mark the beginnings of words: byte-level BPE (GPT-2, RoBERTa), SentencePiece
MARKED_WORD = re.compile(r"[Ġ▁][A-Za-z]{2,}")


@dataclass(frozen=True)
class Vocabulary:
    """Token ids, for building tables; no tokenizer runs in a step."""

    tokenizer: Any
    """A transformers tokenizer."""

    def pieces(self, text: str, *, after: str = "") -> list[int]:
        """Ids of `text`, without special tokens, where it continues the text `after`."""
        return self._plain(after + text)[len(self._plain(after)) :]

    def batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of whole texts, special tokens included, as the tokenizer alone makes them."""
        return [list(ids) for ids in self.tokenizer(list(texts))["input_ids"]]

    @property
    def start(self) -> list[int]:
        """What the tokenizer puts before a text: [CLS] with BERT, nothing with GPT-2."""
        return self._around()[0]

    @property
    def end(self) -> list[int]:
        """What the tokenizer puts after a text: [SEP] with BERT, nothing with GPT-2 and Llama."""
        return self._around()[1]

    @property
    def pad(self) -> int:
        """Id of the padding token, or any other, as padding is masked."""
        return self.tokenizer.pad_token_id or 0

    def words(self) -> list[int]:
        """Ids of whole words of two or more Latin letters, ascending: prototypes start there.

        A whole word is one by the tokenizer's own marking: a mark before it, or no ## (WordPiece).
        """
        ids = self.tokenizer.get_vocab()
        marked = sorted(ids[token] for token in ids if MARKED_WORD.fullmatch(token))
        return marked or sorted(ids[token] for token in ids if WORD.fullmatch(token))

    def _plain(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _around(self) -> tuple[list[int], list[int]]:
        plain, whole = self._plain("depth"), list(self.tokenizer.encode("depth"))
        extra = range(len(whole) - len(plain) + 1)
        at = next(i for i in extra if whole[i : i + len(plain)] == plain)
        return whole[:at], whole[at + len(plain) :]


def shipped_words() -> list[str]:
    """The word list of random language models: special tokens, 0..255, the prompt's words, others.

    As in BERT's own list `dataset` is two pieces, so that prompts are as long as with BERT.
    """
    text = (resources.files("llm_mde.model") / "words.txt").read_text(encoding="utf-8")
    return text.split()
