"""Language backbones of every family, small and random, with tokenizers of their kinds."""

import json
import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.testing import assert_close

from llm_mde.config import LlmConfig, LoraConfig, ModelConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.language import Language
from llm_mde.model.lora import adapter_config, adapter_state, trainable_names, tune
from llm_mde.model.prompt import CLASSES, FIXED, Prompt
from llm_mde.model.vocabulary import Vocabulary, shipped_words

SIZE = (32, 48)
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama", "mistral", "qwen2")
CAUSAL = ("gpt2", "llama", "mistral", "qwen2")
LAYERS = {"gpt2": 2, **{name: 6 for name in FAMILIES if name != "gpt2"}}  # with adapters, of two
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


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for family in FAMILIES:
        made[family] = tmp_path_factory.mktemp("llm") / family
        words = tokenizer(family)
        shape = {"max_position_embeddings": 160, "vocab_size": len(words)}
        config = transformers.AutoConfig.for_model(family, **shape, **SHAPE.get(family, LLAMA_LIKE))
        torch.manual_seed(0)
        transformers.AutoModel.from_config(config).save_pretrained(made[family])
        words.save_pretrained(made[family])
    return made


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Iterator[str]:
    yield request.param


def load(folder: Path, *, dropout: float = 0.1) -> Language:
    return Language(LlmConfig(name=str(folder), dropout=dropout)).eval()


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


@pytest.mark.parametrize("how", ["full", "lora", "frozen"])
def test_gradient_reaches_every_trainable_tensor_and_no_frozen_one(
    how: str, family: str, folders: dict[str, Path]
) -> None:
    model = depth_model(folders[family], how=how)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)  # with B = 0 nothing reaches A
    model(images()).mean().backward()
    for name, weight in model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        if how == "full" and name.endswith(("key.bias", "k_lin.bias", "k_proj.bias")):
            continue  # adds the same to all scores of a query: softmax does not see it
        assert reached == weight.requires_grad, name


def test_an_image_does_not_depend_on_its_batch_mates(family: str, folders: dict[str, Path]) -> None:
    model = depth_model(folders[family]).double()  # in fp32 other matrix shapes round otherwise
    lengths = model.prompt(images())[1].sum(1)
    assert len(set(lengths.tolist())) > 1
    with torch.no_grad():
        together = model(images())
        alone = torch.cat([model(image[None]) for image in images()])
    assert_close(together, alone, rtol=1e-5, atol=1e-6)


def test_padding_does_not_matter(family: str, folders: dict[str, Path]) -> None:
    model = depth_model(folders[family])
    assert not model.prompt(images())[1].all()
    tokens: list[Tensor] = []
    model.language.register_forward_pre_hook(lambda m, args: tokens.append(args[0].clone()))
    with torch.no_grad():
        before = model(images())
        kept = model.prompt(images())[1]
        model.prompt.pad = 7  # another token in its place
        assert torch.equal(model(images()), before)
    words = kept.shape[1]
    changed = (tokens[0] != tokens[1]).any(-1)
    assert torch.equal(changed[:, :words], ~kept) and not changed[:, words:].any()


@pytest.mark.parametrize("prompt", ["apg", "fixed", "none"])
def test_patches_keep_their_positions_and_reach_the_head(
    prompt: str, family: str, folders: dict[str, Path]
) -> None:
    model = depth_model(folders[family], prompt=prompt)
    seen: dict[str, Tensor] = {}
    model.language.register_forward_hook(
        lambda m, args, kwargs, out: seen.update(out=out, **kwargs), with_kwargs=True
    )
    model.head.register_forward_pre_hook(lambda m, args: seen.update(tokens=args[0]))
    model(images())
    span = model.prompt.span
    assert seen["positions"][0, -6:].tolist() == list(range(span, span + 6))
    assert torch.equal(seen["tokens"], seen["out"][:, -6:])


@pytest.mark.filterwarnings("ignore:fan_in_fan_out")  # PEFT finds out by itself, and says so
def test_peft_alone_loads_what_we_describe(family: str, folders: dict[str, Path]) -> None:
    source = depth_model(folders[family], how="lora")
    for name, weight in source.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)
    wrapped = peft.get_peft_model(depth_model(folders[family]), adapter_config(source.config))
    assert set(peft.get_peft_model_state_dict(wrapped)) == set(adapter_state(source))
    result = peft.set_peft_model_state_dict(wrapped, adapter_state(source))
    assert not result.unexpected_keys
    assert torch.equal(wrapped.eval()(images()), source(images()))


@pytest.mark.parametrize("prompt", ["apg", "fixed"])
def test_no_step_asks_the_device_for_a_value(
    prompt: str, family: str, folders: dict[str, Path]
) -> None:
    # On the meta device there are no values to ask for.
    model = depth_model(folders[family], how="lora", prompt=prompt).to("meta").train()
    out = model(images().to("meta"))
    out.mean().backward()
    assert out.shape == (4, 1, *SIZE)


def test_weight_decay_leaves_embeddings_out(family: str, folders: dict[str, Path]) -> None:
    model = depth_model(folders[family], how="full")
    tables = {f"{name}.weight" for name, m in model.named_modules() if isinstance(m, nn.Embedding)}
    roles = model.groups()
    assert tables and not any(roles[name].decay for name in tables)
    layer = next(
        n
        for n in roles
        if n.endswith(("query.weight", "q_lin.weight", "c_attn.weight", "q_proj.weight"))
    )
    assert roles[layer].decay


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


def test_a_local_layers_window_limits_the_length(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["mistral"]).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 24}))
    assert load(tmp_path).positions == 24
    with pytest.raises(ConfigError, match="expected at most 24 in all"):
        depth_model(tmp_path)


def test_bf16_weights_stay_close_to_fp32(family: str, folders: dict[str, Path]) -> None:
    model, want = depth_model(folders[family]), depth_model(folders[family])(images())
    for weight in model.parameters():
        weight.data = weight.data.bfloat16()  # buffers stay fp32, as with DeepSpeed
    got = model(images())
    assert got.isfinite().all() and got.max() < math.log(10)
    assert (got - want).abs().mean() < 0.2 * want.std()
