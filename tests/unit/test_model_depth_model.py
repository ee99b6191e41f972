import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from llm_mde.config import ModelConfig
from llm_mde.errors import ConfigError
from llm_mde.model.depth_model import DepthModel
from tests.support.bf16 import halve

SIZE = (32, 48)
ANY = ("full", "lora", "frozen")


def tiny_config(*, tune: str = "lora", **changes: Any) -> ModelConfig:
    tree: dict[str, Any] = {
        "image_size": SIZE,
        "vit": {"name": "random:tiny:0", "tune": tune, "lora": {"r": 4, "alpha": 8}},
        "llm": {"name": "random:tiny:0", "tune": tune, "lora": {"r": 4, "alpha": 8}},
        "reprogram": {"prototypes": 16},
        "head": {"widths": (16, 8, 8, 4)},
    }
    return ModelConfig.model_validate({**tree, **changes})


def tiny(*, seed: int = 0, tune: str = "lora", **changes: Any) -> DepthModel:
    return DepthModel(tiny_config(tune=tune, **changes), seed=seed)


def images(count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *SIZE), dtype=torch.uint8, generator=generator)


def base(vit: str, llm: str) -> DepthModel:
    tree = {
        "vit": {"name": "random:base:0", "tune": vit},
        "llm": {"name": "random:base:0", "tune": llm},
    }
    defaults = ModelConfig()
    lora = {part: {"lora": getattr(defaults, part).lora} for part in tree}
    config = ModelConfig.model_validate({part: {**tree[part], **lora[part]} for part in tree})
    with torch.device("meta"):
        return DepthModel(config, seed=0)


@pytest.mark.parametrize(
    ("vit", "llm", "count"),
    [
        ("frozen", "frozen", 33_705_265),
        ("lora", "frozen", 37_244_209),
        ("lora", "lora", 39_013_681),
    ],
)
def test_trainable_parameters_at_base(vit: str, llm: str, count: int) -> None:
    model = base(vit, llm)
    trainable = [weight for weight in model.parameters() if weight.requires_grad]
    assert sum(weight.numel() for weight in trainable) == count


def test_shapes_at_base() -> None:
    model = base("frozen", "frozen")
    shapes: dict[str, torch.Size] = {}
    for name in ("vit", "prototypes", "reprogram", "language", "head"):
        model.get_submodule(name).register_forward_hook(
            lambda module, _, out, name=name: shapes.update({name: out.shape})
        )
    log_depth = model(torch.empty(2, 3, 224, 224, dtype=torch.uint8, device="meta"))
    assert shapes == {
        "vit": (2, 196, 768),
        "prototypes": (1000, 768),
        "reprogram": (2, 196, 768),
        "language": (2, 42 + 196, 768),
        "head": (2, 1, 112, 112),
    }
    assert log_depth.shape == (2, 1, 224, 224)


def test_log_depth_is_fp32_and_below_the_largest_depth() -> None:
    model = tiny(max_depth=4.0)
    with torch.no_grad():
        model.head.logit.bias.fill_(3)
    out = model(images())
    assert out.shape == (2, 1, *SIZE) and out.dtype == torch.float32
    assert out.max() < math.log(4) and out.isfinite().all()


def test_depth_is_the_largest_depth_times_a_sigmoid() -> None:
    model = tiny().eval()
    z: list[Tensor] = []
    model.head.register_forward_hook(lambda module, _, out: z.append(out))
    log_depth, depth = model(images()), model.predict(images())
    fine = F.interpolate(z[0], SIZE, mode="bilinear", align_corners=False)
    assert_close(log_depth.exp(), 10 * fine.sigmoid())
    assert_close(depth, 10 * fine.sigmoid())


def test_predict_interpolates_logits_to_the_size_asked_for() -> None:
    model = tiny().eval()
    z: list[Tensor] = []
    model.head.register_forward_hook(lambda module, _, out: z.append(out))
    depth = model.predict(images(), size=(50, 70))
    fine = F.interpolate(z[0], (50, 70), mode="bilinear", align_corners=False)
    assert_close(depth, 10 * fine.sigmoid())


def test_an_image_does_not_depend_on_its_batch_mates() -> None:
    model = tiny().eval()
    together = model(images(4))
    alone = torch.cat([model(image[None]) for image in images(4)])
    assert_close(together, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tune", ANY)
@pytest.mark.parametrize("prompt", ["apg", "none"])
def test_gradient_reaches_every_trainable_tensor_and_no_frozen_one(tune: str, prompt: str) -> None:
    model = tiny(tune=tune, prompt=prompt)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(weight)  # with B = 0 nothing reaches A
    model(images()).mean().backward()
    for name, weight in model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        assert reached == weight.requires_grad, name


@pytest.mark.parametrize(("mode", "length"), [("apg", 42), ("fixed", 25), ("none", 0)])
def test_the_head_gets_the_patches_whatever_the_prompt(mode: str, length: int) -> None:
    model = tiny(prompt=mode).eval()
    seen: dict[str, Tensor] = {}

    def read(module: torch.nn.Module, args: Any, kwargs: dict[str, Tensor], out: Tensor) -> None:
        seen.update(kwargs, embeds=args[0], out=out)

    model.language.register_forward_hook(read, with_kwargs=True)
    model.reprogram.register_forward_hook(lambda m, _, out: seen.update(patches=out))
    model.head.register_forward_pre_hook(lambda m, args: seen.update(tokens=args[0]))
    model(images())
    assert seen["embeds"].shape[1] == length + 6
    assert torch.equal(seen["embeds"][:, -6:], seen["patches"])
    assert torch.equal(seen["tokens"], seen["out"][:, length:])
    assert seen["positions"].tolist() == [[*range(length), *range(42, 48)]]


def test_a_padded_token_does_not_matter() -> None:
    model = tiny().eval()
    before = model(images())
    with torch.no_grad():
        model.language.embeddings.weight[model.prompt.pad] += 100
    assert not model.prompt(images())[1].all()
    assert torch.equal(model(images()), before)


def test_the_prompt_matters() -> None:
    outs = [tiny(prompt=mode).eval()(images()) for mode in ("apg", "fixed", "none")]
    assert not torch.equal(outs[0], outs[1]) and not torch.equal(outs[1], outs[2])


def test_images_are_normalised_by_the_backbones_mean_and_std() -> None:
    model = tiny().eval()
    seen: list[Tensor] = []
    model.vit.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(torch.full((1, 3, *SIZE), 255, dtype=torch.uint8))
    model(torch.zeros(1, 3, *SIZE, dtype=torch.uint8))
    assert seen[0].unique().tolist() == [1] and seen[1].unique().tolist() == [-1]


@pytest.mark.parametrize("tune", ANY)
def test_bf16_weights_run_and_stay_close_to_fp32(tune: str) -> None:
    want = tiny(tune=tune).eval()(images())
    model = tiny(tune=tune)
    halve(model)
    model.train()
    model(images()).mean().backward()
    grads = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert all(grad is not None and grad.isfinite().all() for grad in grads)
    got = tiny(tune=tune).bfloat16().eval()(images())
    assert got.dtype == torch.float32
    assert (got - want).abs().mean() < 0.1 * want.std()


def test_the_seed_decides_new_weights_and_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    first, again, other = tiny(), tiny(), tiny(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    state, same, different = (model.state_dict() for model in (first, again, other))
    assert all(torch.equal(state[name], same[name]) for name in state)
    changed = {name for name in state if not torch.equal(state[name], different[name])}
    assert {"prototypes.map", "reprogram.query.weight", "head.linear.weight"} <= changed
    assert any(".lora_A." in name for name in changed)
    assert not any("lora_" not in name for name in changed if name.startswith(("vit", "language")))


def test_tuning_one_part_leaves_the_start_of_the_others() -> None:
    lora, frozen = tiny().state_dict(), tiny(tune="frozen").state_dict()
    new = [name for name in frozen if name.startswith(("head", "reprogram", "prototypes"))]
    assert all(torch.equal(lora[name], frozen[name]) for name in new)


def test_every_trainable_parameter_has_a_part() -> None:
    model = tiny()
    groups = model.groups()
    trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert set(groups) == trainable
    parts = {role.part for role in groups.values()}
    assert parts == {"lora_vit", "lora_llm", "prototypes", "attention", "head"}
    assert [name for name in groups if groups[name].part == "prototypes"] == ["prototypes.map"]
    assert {role.part for role in tiny(tune="full").groups().values()} == {
        "vit",
        "llm",
        "prototypes",
        "attention",
        "head",
    }


@pytest.mark.parametrize("tune", ["full", "lora"])
def test_weight_decay_is_on_matrices_but_not_on_m_and_embeddings(tune: str) -> None:
    model = tiny(tune=tune)
    weights = dict(model.named_parameters())
    plain = {name for name, role in model.groups().items() if not role.decay}
    matrices = {name for name in plain if weights[name].ndim >= 2}
    embeddings = {
        "vit.model.cls_token",
        "vit.model.pos_embed",
        "language.model.embeddings.word_embeddings.weight",
        "language.model.embeddings.position_embeddings.weight",
        "language.model.embeddings.token_type_embeddings.weight",
    }
    assert matrices == {"prototypes.map"} | (embeddings if tune == "full" else set())
    assert {name for name in model.groups() if weights[name].ndim < 2} <= plain


def test_trainable_state_is_what_a_step_changes() -> None:
    model = tiny()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD((w for w in model.parameters() if w.requires_grad), lr=1.0)
    for _ in range(2):  # LoRA's A moves once B has
        optimizer.zero_grad()
        model(images()).mean().backward()
        optimizer.step()
    state = model.state_dict()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed == set(model.trainable_state())


def test_a_frozen_model_predicts_from_given_prototypes() -> None:
    model = tiny(tune="frozen").eval()
    with torch.no_grad():
        want, prototypes = model(images()), model.prototypes()
        model.prototypes.freeze(prototypes)
        assert torch.equal(model(images()), want)


def test_more_patches_than_positions_is_the_users_mistake() -> None:
    with pytest.raises(
        ConfigError, match="makes 600 patches after 42 prompt tokens, expected at m"
    ):
        tiny(image_size=(320, 480))
