"""The whole network on language backbones of every family."""

import json
import math
from pathlib import Path

import peft
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from llm_mde.errors import ConfigError
from llm_mde.model.lora import adapter_config, adapter_state
from tests.support.bf16 import halve
from tests.support.families import FAMILIES, SIZE, depth_model, images, load, write_family


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: write_family(tmp_path_factory.mktemp("llm") / name, name) for name in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


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


def test_a_local_layers_window_limits_the_length(folders: dict[str, Path], tmp_path: Path) -> None:
    load(folders["mistral"]).save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "sliding_window": 24}))
    assert load(tmp_path).positions == 24
    with pytest.raises(ConfigError, match="expected at most 24 in all"):
        depth_model(tmp_path)


def test_bf16_weights_stay_close_to_fp32(family: str, folders: dict[str, Path]) -> None:
    model, want = depth_model(folders[family]), depth_model(folders[family])(images())
    halve(model)
    got = model(images())
    assert got.isfinite().all() and got.max() < math.log(10)
    assert (got - want).abs().mean() < 0.2 * want.std()
