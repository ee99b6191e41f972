import json
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from llm_mde.config import LlmConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.language import Language
from llm_mde.model.vocabulary import shipped_words


def tiny(name: str = "random:tiny:0", *, dropout: float = 0.1) -> Language:
    return Language(LlmConfig(name=name, dropout=dropout)).eval()


def some(language: Language, *, tokens: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    embeds = torch.randn(2, tokens, language.embed_dim)
    return embeds, torch.arange(tokens)[None]


def test_padding_changes_no_other_token() -> None:
    language = tiny()
    embeds, positions = some(language)
    mask = torch.tensor([[True, True, False, True, True], [True] * 5])
    noisy = embeds.clone()
    noisy[0, 2] = 100
    first = language(embeds, mask=mask, positions=positions)
    second = language(noisy, mask=mask, positions=positions)
    assert torch.equal(first[mask], second[mask])
    assert not torch.equal(language(noisy, mask=None, positions=positions)[mask], first[mask])


def test_no_mask_equals_a_mask_of_ones() -> None:
    language = tiny()
    embeds, positions = some(language)
    ones = torch.ones(2, 5, dtype=torch.bool)
    assert_close(
        language(embeds, mask=None, positions=positions),
        language(embeds, mask=ones, positions=positions),
    )


def test_positions_are_the_ones_given() -> None:
    language = tiny()
    embeds, positions = some(language)
    shifted = language(embeds, mask=None, positions=positions + 7)
    language.model.embeddings.position_embeddings.weight.data.copy_(
        language.model.embeddings.position_embeddings.weight.roll(-7, 0)
    )
    assert_close(language(embeds, mask=None, positions=positions), shifted)


def test_the_mask_works_in_bf16() -> None:
    language = tiny()
    embeds, positions = some(language)
    mask = torch.tensor([[True, True, False, True, True], [True] * 5])
    want = language(embeds, mask=mask, positions=positions)
    got = language.bfloat16()(embeds.bfloat16(), mask=mask, positions=positions)
    assert got.dtype == torch.bfloat16
    assert_close(got.float()[mask], want[mask], atol=0.1, rtol=0.1)


def test_dropout_is_the_configured_one() -> None:
    drops = [m.p for m in tiny(dropout=0.3).modules() if isinstance(m, torch.nn.Dropout)]
    assert len(drops) == 7 and set(drops) == {0.3}
    language = tiny(dropout=0.0).train()
    embeds, positions = some(language)
    first = language(embeds, mask=None, positions=positions)
    assert torch.equal(first, language(embeds, mask=None, positions=positions))


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = tiny(), tiny(), tiny("random:tiny:1")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.identity == again.identity
    assert first.identity.sha256 != other.identity.sha256


def test_tiny_and_base_have_the_documented_sizes() -> None:
    language = tiny()
    assert (language.embed_dim, len(language.model.encoder.layer)) == (128, 2)
    assert language.embeddings.weight.shape == (len(shipped_words()), 128)
    assert not any("pooler" in name for name, _ in language.named_parameters())
    with torch.device("meta"):
        base = tiny("random:base:0")
    assert base.embeddings.weight.shape == (30522, 768)
    assert sum(weight.numel() for weight in base.parameters()) == 108_891_648
    assert len(base.vocabulary.words()) > 1000
    assert base.identity.sha256 is None


def test_shipped_words_are_unique_and_hold_every_number_as_one_piece() -> None:
    words = shipped_words()
    assert len(set(words)) == len(words)
    vocabulary = tiny().vocabulary
    assert [vocabulary.pieces(str(i)) for i in range(256)] == [
        [words.index(str(i))] for i in range(256)
    ]


def test_whole_words_leave_out_numbers_pieces_and_special_tokens() -> None:
    words = shipped_words()
    found = {words[i] for i in tiny().vocabulary.words()}
    assert "room" in found
    assert not found & {"a", "17", "##set", "[CLS]", "[PAD]", "."}


def test_a_saved_backbone_is_loaded_by_its_folder(tmp_path: Path) -> None:
    language = tiny()
    language.save(tmp_path)
    loaded = tiny(str(tmp_path))
    embeds, positions = some(language)
    assert torch.equal(
        loaded(embeds, mask=None, positions=positions),
        language(embeds, mask=None, positions=positions),
    )
    assert loaded.identity.sha256 == language.identity.sha256
    text = "dataset: indoor rooms. pixels: min 17"
    assert loaded.vocabulary.pieces(text) == language.vocabulary.pieces(text)
    assert loaded.vocabulary.words() == language.vocabulary.words()


def test_loading_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tiny().save(tmp_path)
    capfd.readouterr()
    tiny(str(tmp_path))
    assert capfd.readouterr() == ("", "")


def test_a_folder_without_a_tokenizer_is_explained(tmp_path: Path) -> None:
    language = tiny()
    language.model.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match="model.llm.name: no tokenizer .tokenizer.json or v"):
        tiny(str(tmp_path))


def test_missing_tensors_are_no_silent_random_start(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    with pytest.raises(CheckpointError, match="does not fit its config.json: 16 tensors missing"):
        tiny(str(tmp_path))


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(CheckpointError, match="does not fit its config.json"):
        tiny(str(tmp_path))


def test_code_beside_the_weights_is_refused_without_a_question(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny().save(tmp_path)
    settings = {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    asked: list[str] = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "n")
    with pytest.raises(CheckpointError, match=r"model\.llm\.name: .* contains custom code"):
        tiny(str(tmp_path))
    assert not asked


def test_an_unreachable_hub_says_how_to_point_to_a_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        CheckpointError, match="the hub can't be reached; download config.json, model"
    ):
        tiny("google-bert/bert-base-uncased")


def test_a_misspelt_random_name_is_explained() -> None:
    with pytest.raises(ConfigError, match="model.llm.name: expected random:tiny:<seed> or random:"):
        tiny("random:small:0")
