"""The language backbone alone, of every family."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, trainers
from torch import nn
from torch.testing import assert_close

from llm_mde.config import LoraConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.lora import trainable_names, tune
from llm_mde.model.prompt import CLASSES, FIXED, Prompt
from llm_mde.model.vocabulary import Vocabulary
from tests.support.families import CAUSAL, FAMILIES, SHAPE, load, tokenizer, write_family

LAYERS = {"gpt2": 2, **{name: 6 for name in FAMILIES if name != "gpt2"}}  # with adapters, of two


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_family(tmp_path_factory.mktemp("llm") / name, name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def test_every_prompt_has_the_ids_of_the_real_tokenizer(
    family: str, folders: dict[str, Path]
) -> None:
    vocabulary = load(folders[family]).vocabulary
    levels = [[v] * 4 for v in range(256)] + [[255 - v, 0, 255, v] for v in range(128)]
    gray = torch.tensor(levels, dtype=torch.uint8)[:, None, None].expand(-1, 3, -1, -1)
    ids, mask = Prompt(vocabulary, mode="apg")(gray)
    texts = []
    for values in levels:
        low, median, _, high = sorted(values)
        bins = [7 * value // 256 for value in values]
        numbers = f"pixels: min {low}, max {high}, median {median}."
        texts.append(f"{FIXED} {numbers} class: {CLASSES[max(range(7), key=bins.count)]}.")
    assert {7 * row[0] // 256 for row in levels} == set(range(7))
    want = tokenizer(family)(texts)["input_ids"]
    assert [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)] == want
    fixed, _ = Prompt(vocabulary, mode="fixed")(gray[:1])
    assert fixed[0].tolist() == tokenizer(family).encode(FIXED)


def test_the_first_layers_alone_are_those_of_the_whole_model(
    family: str, folders: dict[str, Path]
) -> None:
    whole, first = load(folders[family]), load(folders[family], layers=1)
    kept, all_ = first.model.state_dict(), whole.model.state_dict()
    assert kept.keys() < all_.keys()
    assert all(torch.equal(value, all_[name]) for name, value in kept.items())
    assert {name.split(".")[2] for name in kept if ".layer." in name} <= {"0"}
    assert first.identity.sha256 != whole.identity.sha256
    # What the second layer of the whole model reads, and the last norm where there is one.
    embeds = torch.randn(2, 7, whole.embed_dim, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(7)[None]
    seen: list[torch.Tensor] = []
    layers = max((m for m in whole.model.modules() if isinstance(m, nn.ModuleList)), key=len)
    layers[1].register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    with torch.no_grad():
        whole(embeds, mask=None, positions=positions)
        norm = getattr(whole.model, "ln_f", None) or getattr(whole.model, "norm", nn.Identity())
        got = first(embeds, mask=None, positions=positions)
        assert_close(got, norm(seen[0]), rtol=1e-5, atol=1e-6)


def test_more_layers_than_there_are_is_an_error(folders: dict[str, Path]) -> None:
    with pytest.raises(ConfigError, match="model.llm.layers: expected at most 2, the layers of"):
        load(folders["bert"], layers=3)


def test_whole_words_go_by_the_tokenizers_own_marks(family: str, folders: dict[str, Path]) -> None:
    words = tokenizer(family)
    found = words.convert_ids_to_tokens(load(folders[family]).vocabulary.words())
    mark = {"bert": "", "distilbert": "", "llama": "▁", "mistral": "▁"}.get(family, "Ġ")
    assert f"{mark}depth" in found and len(found) > 100
    assert all(token.startswith(mark) and token[len(mark) :].isalpha() for token in found)
    assert all(len(token[len(mark) :]) > 1 for token in found)


def test_given_embeddings_are_read_as_the_family_reads_ids(
    family: str, folders: dict[str, Path]
) -> None:
    language = load(folders[family])
    ids = torch.randint(10, 150, (2, 9), generator=torch.Generator().manual_seed(0))
    want = transformers.AutoModel.from_pretrained(folders[family]).eval()(ids).last_hidden_state
    got = language(language.embeddings(ids), mask=None, positions=torch.arange(9)[None])
    assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_masked_token_is_as_good_as_none(family: str, folders: dict[str, Path]) -> None:
    language = load(folders[family])
    embeds = torch.randn(2, 9, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 1, 2, 3, 4, 20, 21, 22, 23]])
    keep = torch.tensor([True, True, False, True, False, True, True, True, True])
    mask = torch.stack([keep, torch.ones(9, dtype=torch.bool)])
    got = language(embeds, mask=mask, positions=positions)
    # The same network without fused attention and without our mask, on what is left.
    plain = transformers.AutoModel.from_pretrained(
        folders[family], attn_implementation="eager"
    ).eval()
    want = plain(
        inputs_embeds=embeds[:1, keep],
        position_ids=positions[:, keep] + (2 if family == "roberta" else 0),
        attention_mask=torch.ones(1, 7, dtype=torch.long),
    ).last_hidden_state
    assert_close(got[:1, keep], want, rtol=1e-4, atol=1e-5)
    whole = language(embeds, mask=None, positions=positions)
    assert_close(got[1], whole[1], rtol=1e-4, atol=1e-5)


def test_decoders_look_back_only_and_encoders_both_ways(
    family: str, folders: dict[str, Path]
) -> None:
    language = load(folders[family])
    embeds = torch.randn(1, 6, 32, generator=torch.Generator().manual_seed(0))
    changed = embeds.clone()
    changed[:, 4, 0] += 1
    positions = torch.arange(6)[None]
    first = language(embeds, mask=None, positions=positions)
    second = language(changed, mask=None, positions=positions)
    moved = (first - second).abs().amax(-1)[0] > 1e-6
    assert moved.tolist() == ([False] * 4 + [True] * 2 if family in CAUSAL else [True] * 6)
    assert language.causal == (family in CAUSAL)


def test_dropout_is_the_configured_one(family: str, folders: dict[str, Path]) -> None:
    language = load(folders[family], dropout=0.3)
    layers = {m.p for m in language.modules() if isinstance(m, nn.Dropout)}
    own = {m.attention_dropout for m in language.modules() if hasattr(m, "attention_dropout")}
    assert {p for p in layers | own if isinstance(p, float)} == {0.3}
    embeds, positions = torch.randn(1, 6, 32), torch.arange(6)[None]
    language.train()
    assert not torch.equal(*(language(embeds, mask=None, positions=positions) for _ in "ab"))
    language = load(folders[family], dropout=0.0).train()
    assert torch.equal(*(language(embeds, mask=None, positions=positions) for _ in "ab"))


def test_positions_that_fit_are_the_familys(family: str, folders: dict[str, Path]) -> None:
    language = load(folders[family])
    assert language.positions == (158 if family == "roberta" else 160)
    last = torch.arange(language.positions - 3, language.positions)[None]
    assert language(torch.randn(1, 3, 32), mask=None, positions=last).isfinite().all()


def test_a_saved_backbone_is_loaded_by_its_folder(
    family: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    language = load(folders[family])
    language.save(tmp_path)
    again = load(tmp_path)
    assert again.identity.sha256 == language.identity.sha256
    text = f"{FIXED} pixels: min 17"
    assert again.vocabulary.pieces(text) == language.vocabulary.pieces(text)


def test_step_0_of_lora_is_the_frozen_model_bitwise(family: str, folders: dict[str, Path]) -> None:
    embeds, positions = torch.randn(2, 6, 32), torch.arange(6)[None]
    language = load(folders[family])
    want = language(embeds, mask=None, positions=positions)
    tune(language, "lora", lora=LoraConfig(r=4, alpha=6), key="model.llm")
    assert torch.equal(language.eval()(embeds, mask=None, positions=positions), want)
    found = {name for name, weight in language.named_parameters() if weight.requires_grad}
    assert found == trainable_names(language, "lora") and len(found) == 2 * LAYERS[family]


def test_an_update_is_w_plus_alpha_over_r_b_a(family: str, folders: dict[str, Path]) -> None:
    embeds, positions = torch.randn(2, 6, 32), torch.arange(6)[None]
    language, merged = load(folders[family]), load(folders[family])
    tune(language, "lora", lora=LoraConfig(r=4, alpha=6), key="model.llm")
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, layer in language.named_modules():
            if hasattr(layer, "lora_A") and f"{name}.weight" in weights:
                layer.lora_B["default"].weight.normal_()
                update = 6 / 4 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                weights[f"{name}.weight"] += update.T if family == "gpt2" else update
    got = language.eval()(embeds, mask=None, positions=positions)
    want = merged(embeds, mask=None, positions=positions)
    assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert not torch.equal(load(folders[family])(embeds, mask=None, positions=positions), got)


def test_weights_in_several_files_are_loaded(folders: dict[str, Path], tmp_path: Path) -> None:
    llama = load(folders["llama"])
    llama.model.save_pretrained(tmp_path, max_shard_size="50KB")
    llama.vocabulary.tokenizer.save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    assert load(tmp_path).identity.sha256 == llama.identity.sha256


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"model_type": "t5"}, "got t5, an encoder-decoder"),
        ({"model_type": "vit"}, "got vit, one whose forward takes no inputs_embeds, position_ids"),
        ({"model_type": "gptj"}, "got gptj, one without fused attention"),
        ({"model_type": "mamba"}, "got mamba, one whose forward takes no .*position_ids"),
    ],
)
def test_a_model_that_does_not_fit_is_refused(
    config: dict[str, Any], reason: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    load(folders["bert"]).save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=f"expected a text model like BERT.*{reason}"):
        load(tmp_path)


def test_narrow_word_embeddings_are_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    words = tokenizer("bert")
    config = transformers.ElectraConfig(**SHAPE["bert"], embedding_size=16, vocab_size=len(words))
    transformers.ElectraModel(config).save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"as wide as the hidden states \(32\) .*, got 16"):
        load(tmp_path)


def test_a_width_that_heads_do_not_divide_is_explained(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    load(folders["bert"]).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_attention_heads": 5}))
    with pytest.raises(CheckpointError, match="hidden size .32. is not a multiple of"):
        load(tmp_path)


def test_a_tokenizer_that_joins_parts_of_the_prompt_is_refused() -> None:
    bpe = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=300, show_progress=False)
    text = f"{FIXED} pixels: min 7, max 7, median 7. class: giant."
    bpe.train_from_iterator([text] * 3, trainer)
    whole = transformers.PreTrainedTokenizerFast(tokenizer_object=bpe)
    with pytest.raises(ConfigError, match="this tokenizer joins neighbouring parts of 'pixels: mi"):
        Prompt(Vocabulary(whole), mode="apg")


def test_a_network_without_known_layers_can_not_take_adapters() -> None:
    with pytest.raises(ConfigError, match="model.vit.tune: expected full or frozen, got lora"):
        tune(nn.Linear(2, 2), "lora", lora=LoraConfig(r=1, alpha=1), key="model.vit")
