import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

from llm_mde.errors import ConfigError
from llm_mde.model.prototypes import Prototypes

WORDS = [3, 5, 7, 8, 11]


def make(*, count: int = 4, seed: int = 0) -> Prototypes:
    embedding = nn.Parameter(torch.randn(12, 6, generator=torch.Generator().manual_seed(1)))
    return Prototypes(embedding, count=count, words=WORDS, seed=seed)


def test_rows_start_at_different_whole_words() -> None:
    rows = make(count=5).map
    assert torch.equal(rows.sum(1), torch.ones(5))
    assert sorted(rows.argmax(1).tolist()) == WORDS


def test_start_is_the_layer_norm_of_words() -> None:
    prototypes = make()
    words = prototypes.embedding[prototypes.map.argmax(1)]
    centred = words - words.mean(1, keepdim=True)
    want = centred / (words.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert_close(prototypes(), want)


def test_scale_and_shift_apply() -> None:
    prototypes = make()
    before = prototypes()
    with torch.no_grad():
        prototypes.weight.fill_(3)
        prototypes.bias.fill_(2)
    assert_close(prototypes(), 3 * before + 2)


def test_the_seed_decides_the_words_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    assert torch.equal(make().map, make().map)
    assert any(not torch.equal(make().map, make(seed=seed).map) for seed in range(1, 5))
    assert torch.equal(torch.get_rng_state(), before)


def test_more_prototypes_than_words_is_the_users_mistake() -> None:
    with pytest.raises(
        ConfigError, match="model.reprogram.prototypes: expected at most 5, .* got 6"
    ):
        make(count=6)


def test_e_is_the_language_models_own_parameter() -> None:
    embedding = nn.Parameter(torch.randn(12, 6))
    prototypes = Prototypes(embedding, count=2, words=WORDS, seed=0)
    assert prototypes.embedding is embedding
    assert "embedding" in dict(prototypes.named_parameters())


def test_gradient_reaches_every_parameter() -> None:
    prototypes = make()
    F.silu(prototypes()).sum().backward()
    assert all(weight.grad is not None and weight.grad.any() for weight in prototypes.parameters())


def test_evaluation_computes_once_until_training_or_new_weights() -> None:
    prototypes = make().eval()
    with torch.no_grad():
        first = prototypes()
        assert prototypes() is first
        prototypes.load_state_dict(make(seed=3).state_dict())
        second = prototypes()
        assert not torch.equal(second, first)
        prototypes.train()
        prototypes.map.mul_(2).add_(0.1)
        prototypes.eval()
        assert not torch.equal(prototypes(), second)
        assert prototypes.double()().dtype == torch.float64
    assert prototypes().requires_grad  # a cached result would carry no gradient
    prototypes().sum().backward()
    prototypes().sum().backward()


def test_bf16_weights_give_bf16_close_to_fp32() -> None:
    prototypes = make()
    want = prototypes()
    got = prototypes.bfloat16()()
    assert got.dtype == torch.bfloat16
    assert_close(got.float(), want, atol=0.03, rtol=0.02)


def test_frozen_prototypes_replace_the_map() -> None:
    prototypes = make().eval()
    given = torch.randn(4, 6)
    prototypes.freeze(given)
    assert torch.equal(prototypes(), given)
    assert not list(prototypes.parameters())
    assert list(prototypes.state_dict()) == ["given"]
    assert prototypes.bfloat16()().dtype == torch.bfloat16


def test_a_step_taken_in_evaluation_mode_is_seen() -> None:
    prototypes = make().eval()
    with torch.no_grad():
        before = prototypes().clone()
    prototypes().square().sum().backward()
    with torch.no_grad():
        prototypes.weight += 1  # what an optimizer step does: in place
        assert not torch.equal(prototypes(), before)
