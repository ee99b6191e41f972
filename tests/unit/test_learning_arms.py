"""The networks of benchmarks/learning.py, with a small random BERT in place of the pretrained."""

import math
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor, nn

from benchmarks import arms, authors
from benchmarks.arms import ARMS, SINGLE, SIZE, WithoutLlm, build
from benchmarks.authors import NONE, Authors, Departures
from llm_mde.model.depth_model import DepthModel
from llm_mde.scoring.losses import silog

LLM = "random:tiny:0"
TRAINED = [arm for arm in ARMS if arm != "mean_map"]
H, W = SIZE
N = (H // 16) * (W // 16)


@pytest.fixture(scope="module")
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, 3, *SIZE), generator=generator, dtype=torch.uint8)
    image[1] //= 8  # dark: another class, so a prompt of another length
    depth = 1 + 3 * torch.rand(2, 1, *SIZE, generator=generator)
    return {"image": image, "depth": depth, "valid": depth < 3.9}


def base(*, prompt: str = "apg") -> DepthModel:
    config = arms._config(0, LLM).model_copy(update={"prompt": prompt})
    return DepthModel(config, seed=0)


def made(on: Departures, *, prompt: str = "apg") -> Authors:
    return Authors(base(prompt=prompt), departures=on, seed=7).eval()


def with_one(name: str) -> Departures:
    return replace(NONE, **{name: True})


def trainable(model: nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("arm", TRAINED)
def test_every_arm_trains_all_that_it_should(arm: str, batch: dict[str, Tensor]) -> None:
    model = build(arm, 0, LLM).train()
    log_depth = model(batch["image"])
    assert log_depth.shape == batch["depth"].shape
    assert log_depth.max() <= math.log(1 if arm == "authors" else 10)
    with torch.no_grad():  # B starts at zero, and then nothing reaches A
        for name, weight in model.named_parameters():
            if ".lora_B" in name:
                weight.fill_(0.01)
    arms.loss(model, batch).backward()
    reached = {name for name, w in model.named_parameters() if w.grad is not None and w.grad.any()}
    dead = {"reprogram.value.weight", "reprogram.value.bias"}
    assert reached == trainable(model) - (dead if arm.startswith("authors") else set())
    assert set(model.groups()) == trainable(model)


def test_each_arm_trains_these_parts() -> None:
    def parts(arm: str) -> set[str]:
        return {name.partition(".")[0] for name in trainable(build(arm, 0, LLM))}

    shared = {"vit", "head"}
    everything = shared | {"prototypes", "reprogram", "language"}
    assert parts("vit_head") == shared
    assert parts("no_llm") == everything - {"language"}
    for arm in ("ours", "one_layer", "random_bert", "authors", "authors_metres"):
        assert parts(arm) == everything
        names = trainable(build(arm, 0, LLM))
        assert all(".lora_" in name for name in names if name.startswith("language."))
    assert any(role.part == "prototypes" for role in build("no_llm", 0, LLM).groups().values())
    # Theirs has one rate for everything.
    roles = build("authors", 0, LLM).groups().values()
    assert not any(role.part == "prototypes" for role in roles)


@pytest.mark.parametrize("arm", ["vit_head", "no_llm"])
def test_an_arm_without_language_has_no_llm(arm: str, batch: dict[str, Tensor]) -> None:
    model = build(arm, 0, LLM)
    assert isinstance(model, WithoutLlm)
    kinds = {type(layer).__module__.partition(".")[0] for layer in model.modules()}
    assert "transformers" not in kinds and "peft" not in kinds
    frozen = {name for name, weight in model.named_parameters() if not weight.requires_grad}
    assert frozen == ({"prototypes.embedding"} if arm == "no_llm" else set())


def test_arms_of_one_seed_start_alike_and_of_two_differ() -> None:
    ours, vit_head, no_llm = (
        build(arm, 3, LLM).state_dict() for arm in ("ours", "vit_head", "no_llm")
    )
    for name in ("vit.model.blocks.0.attn.qkv.weight", "vit.model.pos_embed"):
        assert torch.equal(ours[name], vit_head[name])
        assert not torch.equal(ours[name], build("ours", 4, LLM).state_dict()[name])
    assert no_llm.pop("reprogram.scale") == 1  # there are no words to be as large as
    for name, value in no_llm.items():
        assert torch.equal(ours[name], value)


def test_random_bert_is_the_same_network_with_other_weights() -> None:
    ours, other = (build(arm, 0, LLM) for arm in ("ours", "random_bert"))
    ours.language.model.encoder.layer[0].output.LayerNorm.weight.data.fill_(1)
    theirs = other.state_dict()
    for name, value in ours.state_dict().items():
        matrix = name.startswith("language.") and value.ndim == 2 and ".lora_" not in name
        changed = matrix or name == "prototypes.embedding"
        assert theirs[name].shape == value.shape
        assert torch.equal(theirs[name], value) != changed, name
    assert other.prototypes.embedding is other.language.embeddings.weight
    assert other.reprogram.scale == 2**-6  # the power of two nearest to the new words' rms
    weight = other.language.model.encoder.layer[0].intermediate.dense.weight
    assert weight.std().item() == pytest.approx(arms.BERT_STD, rel=0.05)


def test_fewer_layers_start_as_ours_do() -> None:
    ours, half = (build(arm, 0, LLM).state_dict() for arm in ("ours", "one_layer"))
    assert {name for name in ours if name not in half} == {
        name
        for name in ours
        if ".encoder.layer.1." in name  # of two
    }
    # A random BERT of fewer layers has other weights; a pretrained one has not.
    bert = ("language.", "prototypes.embedding")
    shared = {name for name in half if not name.startswith(bert)}
    assert all(torch.equal(half[name], ours[name]) for name in shared)


def test_redrawing_resets_norms_and_biases() -> None:
    model = base()
    for weight in model.language.parameters():
        weight.data.fill_(5)
    arms.redraw(model.language.model, seed=1)
    state = model.language.model.state_dict()
    assert all((v == 1).all() for k, v in state.items() if k.endswith("LayerNorm.weight"))
    assert all((v == 0).all() for k, v in state.items() if k.endswith(".bias"))
    assert all((v == 5).all() for k, v in state.items() if ".lora_" in k)


def test_without_departures_authors_is_ours(batch: dict[str, Tensor]) -> None:
    model, ours = made(NONE), base().eval()
    torch.testing.assert_close(model(batch["image"]), ours(batch["image"]), atol=1e-5, rtol=0)
    assert trainable(model) == trainable(ours)
    want = silog(ours(batch["image"]), batch["depth"], batch["valid"])
    got = model.loss(model(batch["image"], batch["depth"]), batch["depth"], batch["valid"])
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", [field.name for field in fields(Departures)])
def test_each_departure_changes_the_output_where_it_acts(
    name: str, batch: dict[str, Tensor]
) -> None:
    prompt = "none" if name == "prompt_is_llm" else "apg"
    plain, changed = made(NONE, prompt=prompt), made(with_one(name), prompt=prompt)
    with torch.no_grad():
        before, after = plain(batch["image"]), changed(batch["image"])
    assert torch.equal(before, after) == (name == "cut_depth")  # which acts in training


def test_single_arms_are_ours_with_one_departure() -> None:
    assert set(SINGLE) == {f"with_{field.name}" for field in fields(Departures)} - {
        "with_prompt_is_llm"  # acts without a prompt only
    }
    for arm in SINGLE:
        model = build(arm, 0, LLM)
        assert model.on == with_one(arm.removeprefix("with_"))


def test_class_token_shifts_the_tokens_by_one(batch: dict[str, Tensor]) -> None:
    model, plain = made(with_one("class_token")), made(NONE)
    normal = torch.rand(2, 3, *SIZE)
    assert torch.equal(model._visual(normal)[:, 1:], plain._visual(normal)[:, :-1])
    assert model._visual(normal).shape[1] == N


def test_wide_heads_mix_keys(batch: dict[str, Tensor]) -> None:
    layer = made(with_one("wide_heads")).reprogram
    D_vit, D = 192, 128
    visual, prototypes = torch.rand(1, 5, D_vit), torch.rand(9, D)
    q = layer.query(visual)[0].view(5, authors.HEADS, D_vit).double()
    k = layer.key(prototypes).view(9, authors.HEADS, D_vit).double()
    weights = (torch.einsum("nhd,phd->hnp", q, k) / math.sqrt(D_vit)).softmax(-1)
    mixed = torch.einsum("hnp,phd->nhd", weights, k).reshape(1, 5, -1).float()
    assert layer.scale == base().reprogram.scale  # a departure of its own
    want = layer.scale * layer.out(mixed)
    torch.testing.assert_close(layer(visual, prototypes), want, atol=2e-6, rtol=0)


def test_default_start_makes_all_tokens_alike() -> None:
    visual = torch.randn(1, N, 192, generator=torch.Generator().manual_seed(0))

    def distinct(model: Authors) -> float:
        tokens = model.reprogram(visual, model.prototypes())[0]
        return (tokens.std(0).square().mean() / tokens.square().mean()).sqrt().item()

    changed = made(with_one("default_start"))
    assert changed.reprogram.scale == 1  # theirs has no scale
    assert distinct(changed) < 0.02 and distinct(made(NONE)) > 0.5
    assert {name for name in trainable(changed) if "prototypes" in name} == {"prototypes.mix"}


def test_ragged_prompts_push_the_last_patches_out(batch: dict[str, Tensor]) -> None:
    model = made(with_one("ragged_prompt"))
    ids = model._ids(batch["image"])
    lengths = (ids >= 0).sum(1)
    assert lengths[0] != lengths[1] and lengths.min() >= model.first
    patches = torch.rand(2, N, 128)
    read = model._read(batch["image"], patches)
    assert read.shape == (2, N, 128)
    for row in range(2):
        words = model.language.embeddings(ids[row][ids[row] >= 0])
        alone = torch.cat([words, patches[row]])[None]
        positions = torch.arange(alone.shape[1])[None]
        want = model.language(alone, mask=None, positions=positions)
        want = want[0, model.first : model.first + N]
        torch.testing.assert_close(read[row], want, atol=1e-5, rtol=0)


def test_global_decoder_reads_every_token_and_the_image(batch: dict[str, Tensor]) -> None:
    both = replace(NONE, global_decoder=True, ragged_prompt=True)
    for on, tokens in ((with_one("global_decoder"), N), (both, N + made(both).first)):
        head = made(on).head
        assert head.across.in_features == tokens
        tokens_in = torch.rand(1, tokens, 128, requires_grad=True)
        image = torch.rand(1, 3, *SIZE, requires_grad=True)
        out = head(tokens_in, image)
        assert out.shape == (1, 1, *SIZE)
        out[0, 0, 50, 60].backward()
        assert tokens_in.grad.abs().sum(-1).all()
        assert (image.grad.abs().sum(1)[0] > 0).nonzero().amin(0).tolist() == [46, 56]


def test_index_prompts_give_columns_and_the_first_image_s_class() -> None:
    image = torch.full((2, 3, *SIZE), 10, dtype=torch.uint8)
    image[1] = 250
    image[0, :, 5, 17], image[0, :, 9, 100] = 0, 255
    model = made(with_one("index_prompt"))
    prompt, ids = model.prompt, model._ids(image)
    low = prompt.low_text.shape[1]
    assert ids[0, low] == prompt.numbers[17, 0]
    high = low + 1 + prompt.high_text.shape[1]
    assert ids[0, high] == prompt.numbers[100, 0]
    tail = prompt.tails.shape[1]
    assert torch.equal(ids[:, -tail:], prompt.tails[[0, 0]])
    assert torch.equal(model._ids(image.flip(0))[:, -tail:], prompt.tails[[6, 6]])


def test_no_prompt_means_no_llm(batch: dict[str, Tensor]) -> None:
    patches = torch.rand(2, N, 128)
    model = made(with_one("prompt_is_llm"), prompt="none")
    assert model._read(batch["image"], patches) is patches
    kept = made(NONE, prompt="none")._read(batch["image"], patches)
    assert kept.shape == patches.shape and not torch.equal(kept, patches)


def test_cut_depth_pastes_an_upright_strip_of_metres() -> None:
    torch.manual_seed(0)
    unit, depth = torch.zeros(400, 3, 8, 64), torch.full((400, 1, 8, 64), 3.0)
    cut = authors.cut_depth(unit, depth)
    inside = cut == 3
    assert ((cut == 0) | inside).all()
    assert torch.equal(inside, inside[:, :1, :1].expand_as(inside))
    columns = inside[:, 0, 0].byte()
    edges = columns.diff(dim=1, prepend=torch.zeros(400, 1)).clamp(min=0).sum(1)
    assert edges.max() == 1  # in one piece
    assert columns.any(1).float().mean().item() == pytest.approx(authors.CUT_SHARE, abs=0.06)


def test_cut_depth_acts_in_training_only(batch: dict[str, Tensor]) -> None:
    model = made(with_one("cut_depth"))
    plain = model(batch["image"])
    assert torch.equal(model(batch["image"], batch["depth"]), plain)
    seen: list[Tensor] = []
    model.vit.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    torch.manual_seed(1)
    model.train()(batch["image"], batch["depth"])
    assert seen[0].max() > 1.01  # out of the range of images, (1 - 0.5) / 0.5


def test_pooled_loss_rewards_saturation(batch: dict[str, Tensor]) -> None:
    depth, valid = batch["depth"], batch["valid"]
    constant = torch.full_like(depth, 0.99).log()
    right = (depth / 10).log()
    pooled = authors.pooled_silog
    assert pooled(constant, depth, valid) < pooled(right, depth, valid)
    # Pixels count alike, not images.
    one = torch.zeros_like(valid)
    one[0], one[1, 0, 0, 0] = True, True
    first = pooled(constant[:1], depth[:1], valid[:1] | True)
    assert pooled(constant, depth, one).item() == pytest.approx(first.item(), rel=1e-3)
    assert silog(constant, depth, one).item() != pytest.approx(first.item(), rel=1e-3)
