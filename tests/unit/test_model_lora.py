from typing import Any

import peft
import pytest
import torch
from torch.testing import assert_close

from llm_mde.config import LoraConfig, ModelConfig
from llm_mde.errors import CheckpointError
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.lora import (
    adapter_config,
    adapter_state,
    load_adapter_state,
    trainable_names,
)

QKV = "vit.model.blocks.0.attn.qkv"


def tiny_config(*, vit: str = "lora", llm: str = "lora", r: int = 4) -> ModelConfig:
    tree: dict[str, Any] = {
        "image_size": (32, 48),
        "vit": {"name": "random:tiny:0", "tune": vit, "lora": {"r": r, "alpha": 3 * r}},
        "llm": {"name": "random:tiny:0", "tune": llm, "lora": {"r": 2, "alpha": 4}},
        "reprogram": {"prototypes": 16},
        "head": {"widths": (16, 8, 8, 4)},
    }
    return ModelConfig.model_validate(tree)


def tiny(*, vit: str = "lora", llm: str = "lora", r: int = 4) -> DepthModel:
    return DepthModel(tiny_config(vit=vit, llm=llm, r=r), seed=0).eval()


def image() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (2, 3, 32, 48), dtype=torch.uint8, generator=generator)


def trained() -> DepthModel:
    model = tiny()
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            weight.data.normal_(generator=generator)
    return model


def test_step_0_is_the_plain_model_bitwise() -> None:
    assert torch.equal(tiny()(image()), tiny(vit="frozen", llm="frozen")(image()))
    assert torch.equal(tiny()(image()), tiny(vit="full", llm="full")(image()))


def test_an_update_is_w_plus_alpha_over_r_b_a() -> None:
    model = trained()
    layer = model.get_submodule(QKV)
    weight = layer.base_layer.weight + 3.0 * (
        layer.lora_B["default"].weight @ layer.lora_A["default"].weight
    )
    x = torch.randn(5, 192)
    want = torch.nn.functional.linear(x, weight, layer.base_layer.bias)
    assert_close(layer(x), want, rtol=1e-4, atol=1e-4)


def test_the_scale_is_not_cut_to_an_integer() -> None:
    config = tiny_config()
    vit = config.vit.model_copy(update={"lora": LoraConfig(r=4, alpha=3)})
    model = DepthModel(config.model_copy(update={"vit": vit}), seed=0)
    assert model.get_submodule(QKV).scaling["default"] == 0.75


@pytest.mark.parametrize(
    ("vit", "llm", "layers"), [("frozen", "frozen", 0), ("lora", "frozen", 4), ("lora", "lora", 10)]
)
def test_exactly_the_adapters_train(vit: str, llm: str, layers: int) -> None:
    model = tiny(vit=vit, llm=llm)
    found = [
        name
        for name, weight in model.named_parameters()
        if weight.requires_grad and name.startswith(("vit", "language"))
    ]
    assert len(found) == 2 * layers
    assert all(".lora_A." in name or ".lora_B." in name for name in found)
    names = trainable_names(model.vit, vit)
    names = {f"vit.{name}" for name in names} | {
        f"language.{name}" for name in trainable_names(model.language, llm)
    }
    assert set(found) == names


def test_full_trains_every_weight_of_the_backbone() -> None:
    model = tiny(vit="full", llm="frozen")
    assert all(weight.requires_grad for weight in model.vit.parameters())
    assert not any(weight.requires_grad for weight in model.language.parameters())


def test_adapter_dropout_is_the_configured_one() -> None:
    layer = tiny().get_submodule(QKV)
    assert layer.lora_dropout["default"].p == 0.1


def test_adapters_keep_the_dtype_of_the_base() -> None:
    model = tiny().bfloat16()
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_state_moves_adapters_between_models() -> None:
    source, target = trained(), tiny()
    state = adapter_state(source)
    assert f"base_model.model.{QKV}.lora_A.weight" in state
    assert len(state) == 20
    load_adapter_state(target, state)
    assert torch.equal(target(image()), source(image()))


def test_adapters_of_another_rank_are_refused() -> None:
    with pytest.raises(
        CheckpointError,
        match=r"8 tensors do not fit the model, .* expected \(8, 192\), got \(4, 192\); exp",
    ):
        load_adapter_state(tiny(r=8), adapter_state(tiny()))
    with pytest.raises(CheckpointError, match="8 tensors do not fit"):
        load_adapter_state(tiny(vit="frozen"), adapter_state(tiny()))


def test_peft_alone_loads_what_we_describe() -> None:
    source = trained()
    plain = tiny(vit="frozen", llm="frozen")
    wrapped = peft.get_peft_model(plain, adapter_config(tiny_config()))
    result = peft.set_peft_model_state_dict(wrapped, adapter_state(source))
    assert not result.unexpected_keys
    assert torch.equal(wrapped.eval()(image()), source(image()))


def test_one_adapted_backbone_is_described_alone() -> None:
    source = tiny(vit="frozen")
    config = adapter_config(tiny_config(vit="frozen"))
    assert config is not None and (config.r, config.lora_alpha) == (2, 4)
    wrapped = peft.get_peft_model(tiny(vit="frozen", llm="frozen"), config)
    names = set(peft.get_peft_model_state_dict(wrapped))
    assert names == set(adapter_state(source))
    assert adapter_config(tiny_config(vit="full", llm="frozen")) is None
