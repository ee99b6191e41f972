"""Image backbones of every kind, small and random, in timm's format."""

from pathlib import Path
from typing import Any

import peft
import pytest
import timm
import torch
from timm.models import save_for_hf
from torch import Tensor, nn
from torch.testing import assert_close

from llm_mde.config import LoraConfig, ModelConfig, VitConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.model.lora import adapter_config, adapter_state, trainable_names, tune
from llm_mde.model.vit import ViT

LORA = LoraConfig(r=4, alpha=6)
SMALL = {"embed_dim": 24, "depth": 2, "num_heads": 2}
# architecture: prefix tokens, patch size, layers that take adapters in a block
KINDS = {
    "vit_base_patch32_224": (1, 32, 1),
    "vit_small_patch14_reg4_dinov2": (5, 14, 1),
    "vit_base_patch16_siglip_224": (0, 16, 1),  # attention pooling
    "vit_relpos_base_patch16_224": (0, 16, 1),
    "vit_tiny_r_s16_p8_224": (1, 32, 1),  # behind a convolutional stem of stride 4
    "deit_tiny_distilled_patch16_224": (2, 16, 1),
    "beit_base_patch16_224": (1, 16, 1),
    "eva02_tiny_patch14_224": (1, 14, 1),
    "eva02_base_patch16_clip_224": (1, 16, 3),  # q_proj, k_proj, v_proj
    "vit_small_patch16_dinov3": (5, 16, 1),
}


def seeded(name: str, **args: Any) -> Any:
    torch.manual_seed(0)
    model = timm.create_model(name, **{**SMALL, **args})
    for weight_name, weight in model.named_parameters():
        if "gamma" in weight_name:
            weight.data.fill_(0.5)  # layer scale starts so near 0 that a block does nothing
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for name in KINDS:
        made[name] = tmp_path_factory.mktemp("vit") / name
        save_for_hf(seeded(name), str(made[name]), model_args=SMALL, safe_serialization=True)
    return made


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def size_of(kind: str) -> tuple[int, int]:
    return 2 * KINDS[kind][1], 3 * KINDS[kind][1]


def load(folder: Path, *, size: tuple[int, int]) -> ViT:
    return ViT(VitConfig(name=str(folder)), image_size=size).eval()


def depth_model(folder: Path, *, size: tuple[int, int], how: str) -> DepthModel:
    tree: dict[str, Any] = {
        "image_size": size,
        "vit": {"name": str(folder), "tune": how, "lora": {"r": 4, "alpha": 6}},
        "llm": {"name": "random:tiny:0", "tune": "frozen"},
        "reprogram": {"prototypes": 16, "heads": 2},
        "head": {"widths": (16, 8, 8, 4)},
    }
    return DepthModel(ModelConfig.model_validate(tree), seed=0).eval()


def noise(size: tuple[int, int], count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, 3, *size), dtype=torch.uint8, generator=generator)


def test_tokens_are_the_patches_alone(kind: str, folders: dict[str, Path]) -> None:
    vit = load(folders[kind], size=size_of(kind))
    image = torch.randn(2, 3, *size_of(kind))
    tokens = vit(image)
    assert vit.grid == (2, 3) and vit.embed_dim == 24
    assert tokens.shape == (2, 6, 24)
    assert vit.model.num_prefix_tokens == KINDS[kind][0]
    # timm's own way to features, which keeps the final norm apart from the pooling's
    features = vit.model.forward_features(image)[:, KINDS[kind][0] :]
    norm = getattr(vit.model, "fc_norm", nn.Identity())
    assert_close(tokens, norm(features))
    assert_close(tokens.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)


def test_at_its_own_size_it_is_timms_network(kind: str, folders: dict[str, Path]) -> None:
    config = timm.get_pretrained_cfg(kind)
    side = config.input_size[-1]
    image = torch.randn(1, 3, side, side)
    want = seeded(kind).eval().forward_features(image)[:, KINDS[kind][0] :]
    vit = load(folders[kind], size=(side, side))
    norm = getattr(vit.model, "fc_norm", nn.Identity())
    assert_close(vit(image), norm(want), rtol=1e-4, atol=1e-5)
    assert (vit.mean, vit.std) == (config.mean, config.std)
    assert vit.interpolation == config.interpolation


def test_step_0_of_lora_is_the_frozen_model_bitwise(kind: str, folders: dict[str, Path]) -> None:
    vit = load(folders[kind], size=size_of(kind))
    image = torch.randn(2, 3, *size_of(kind))
    tune(vit, "frozen", lora=LORA, key="model.vit")
    want = vit(image)
    tune(vit, "lora", lora=LORA, key="model.vit")
    assert torch.equal(vit.eval()(image), want)
    found = {name for name, weight in vit.named_parameters() if weight.requires_grad}
    assert found == trainable_names(vit, "lora") and len(found) == 2 * 2 * KINDS[kind][2]


def test_an_update_is_w_plus_alpha_over_r_b_a(kind: str, folders: dict[str, Path]) -> None:
    image = torch.randn(2, 3, *size_of(kind))
    vit, merged = (load(folders[kind], size=size_of(kind)) for _ in range(2))
    tune(vit, "lora", lora=LORA, key="model.vit")
    weights = dict(merged.named_parameters())
    with torch.no_grad():
        for name, layer in vit.named_modules():
            if hasattr(layer, "lora_A") and f"{name}.weight" in weights:
                layer.lora_B["default"].weight.normal_()
                update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
                weights[f"{name}.weight"] += 6 / 4 * update
    got = vit.eval()(image)
    assert_close(got, merged(image), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got, load(folders[kind], size=size_of(kind))(image), atol=1e-3)


@pytest.mark.parametrize("how", ["lora", "frozen"])
def test_gradient_reaches_every_trainable_tensor_and_no_frozen_one(
    how: str, kind: str, folders: dict[str, Path]
) -> None:
    model = depth_model(folders[kind], size=size_of(kind), how=how)
    for name, weight in model.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)  # with B = 0 nothing reaches A
    model(noise(size_of(kind))).mean().backward()
    for name, weight in model.named_parameters():
        reached = weight.grad is not None and bool(weight.grad.any())
        assert reached == weight.requires_grad, name


def test_an_image_does_not_depend_on_its_batch_mates(kind: str, folders: dict[str, Path]) -> None:
    model = depth_model(folders[kind], size=size_of(kind), how="lora").double()
    image = noise(size_of(kind), 3)
    with torch.no_grad():
        alone = torch.cat([model(row[None]) for row in image])
        assert_close(model(image), alone, rtol=1e-5, atol=1e-6)


def test_peft_alone_loads_what_we_describe(kind: str, folders: dict[str, Path]) -> None:
    source = depth_model(folders[kind], size=size_of(kind), how="lora")
    plain = depth_model(folders[kind], size=size_of(kind), how="frozen")
    for name, weight in source.named_parameters():
        if ".lora_B." in name:
            nn.init.normal_(weight)
    wrapped = peft.get_peft_model(plain, adapter_config(source.config))
    assert set(peft.get_peft_model_state_dict(wrapped)) == set(adapter_state(source))
    peft.set_peft_model_state_dict(wrapped, adapter_state(source))
    image = noise(size_of(kind))
    assert torch.equal(wrapped.eval()(image), source(image))


def test_bf16_weights_stay_close_to_fp32(kind: str, folders: dict[str, Path]) -> None:
    vit, image = load(folders[kind], size=size_of(kind)), torch.randn(2, 3, *size_of(kind))
    want = vit(image)
    for weight in vit.parameters():
        weight.data = weight.data.bfloat16()  # buffers stay fp32, as with DeepSpeed
    got = vit(image.bfloat16())
    assert got.dtype == torch.bfloat16
    assert (got.float() - want).abs().mean() < 0.05 * want.abs().mean()


def test_a_saved_backbone_is_loaded_by_its_folder(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    vit = load(folders[kind], size=size_of(kind))
    vit.save(tmp_path)
    again = load(tmp_path, size=size_of(kind))
    image = torch.randn(1, 3, *size_of(kind))
    assert_close(again(image), vit(image))


def test_missing_weights_are_no_silent_random_start(tmp_path: Path) -> None:
    kind = "vit_base_patch32_224"
    save_for_hf(
        seeded(kind), str(tmp_path), model_args={**SMALL, "depth": 3}, safe_serialization=True
    )
    with pytest.raises(CheckpointError, match="can't be read"):
        load(tmp_path, size=(64, 64))


@pytest.mark.parametrize(
    ("name", "args", "reason"),
    [
        ("resnet10t", {}, "got ResNet without num_prefix_tokens, "),
        (
            "swin_tiny_patch4_window7_224",
            {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1)},
            "got SwinTransformer without num_prefix_tokens",
        ),
        ("cait_xxs24_224", SMALL, "got Cait without set_input_size"),
    ],
)
def test_other_networks_are_refused(
    name: str, args: dict[str, Any], reason: str, tmp_path: Path
) -> None:
    model = timm.create_model(name, **args)
    save_for_hf(model, str(tmp_path), model_args=args, safe_serialization=True)
    with pytest.raises(ConfigError, match=f"expected a ViT in .*, {reason}"):
        load(tmp_path, size=(64, 64))


def test_a_vit_with_other_attention_layers_takes_no_adapters(tmp_path: Path) -> None:
    name = "vit_base_patch16_xp_224"  # attention and MLP in one projection
    save_for_hf(seeded(name), str(tmp_path), model_args=SMALL, safe_serialization=True)
    depth_model(tmp_path, size=(32, 48), how="frozen")
    with pytest.raises(ConfigError, match="model.vit.tune: expected full or frozen, got lora"):
        depth_model(tmp_path, size=(32, 48), how="lora")
