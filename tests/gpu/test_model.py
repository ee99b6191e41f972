"""The reference model on a GPU against the same weights in fp32 on the CPU."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import build
from llm_mde.scoring.losses import silog
from tests.support.bf16 import halve

pytestmark = pytest.mark.gpu
FUSED = [
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.CUDNN_ATTENTION,
]
IMAGES = 4
BASE = {"vit": {"name": "random:base:0"}, "llm": {"name": "random:base:1"}}


def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images from dark to bright, of smooth colours and noise; depths; which of them count."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(IMAGES, 3, 7, 7, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (224, 224), mode="bilinear")
    noise = 0.1 * torch.rand(smooth.shape, generator=generator)
    bright = torch.linspace(0.1, 0.9, IMAGES).view(-1, 1, 1, 1)
    image = (255 * bright * (smooth + noise)).clamp(0, 255).to(torch.uint8)
    depth = 1 + 3 * torch.rand(IMAGES, 1, 224, 224, generator=generator)
    return image, depth, depth > 1.5


def without_dropout(model: DepthModel) -> DepthModel:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model.reprogram.dropout = 0.0
    return model


def pass_through(model: DepthModel) -> dict[str, Any]:
    """Log depth, loss and gradients by part, brought to the CPU."""
    device = model.mean.device
    image, depth, valid = (one.to(device) for one in batch())
    log_depth = model(image)
    loss = silog(log_depth, depth, valid)
    loss.backward()
    parts: dict[str, list[Tensor]] = {}
    weights = dict(model.named_parameters())
    for name, role in model.groups().items():
        gradient = weights[name].grad
        assert gradient is not None, name
        parts.setdefault(role.part, []).append(gradient.float().flatten().cpu())
    gradients = {part: torch.cat(ones) for part, ones in parts.items()}
    return {"log_depth": log_depth.detach().float().cpu(), "loss": loss.item()} | gradients


@pytest.fixture(scope="module")
def model() -> DepthModel:
    config = build({"model": BASE}).model
    made = DepthModel(config, seed=0).train()
    with torch.no_grad():  # B starts at zero, where A has no gradient
        for name, weight in made.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(1))
    return without_dropout(made)


@pytest.fixture(scope="module")
def passes(model: DepthModel) -> dict[str, dict[str, Any]]:
    """In fp32 on the CPU, in fp32 and bf16 on the GPU."""
    seen = {"cpu": pass_through(copy.deepcopy(model))}
    seen["fp32"] = pass_through(copy.deepcopy(model).cuda())
    half = copy.deepcopy(model).cuda()
    halve(half)
    with sdpa_kernel(FUSED):
        seen["bf16"] = pass_through(half)
    return seen


def apart(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


@pytest.mark.parametrize(("kind", "bound"), [("fp32", 2e-3), ("bf16", 0.1)])
def test_depths_and_loss_are_those_of_the_cpu(passes: Any, kind: str, bound: float) -> None:
    got, want = passes[kind], passes["cpu"]
    # Log depths of an untrained model are nearly one number: what differs from it is what counts.
    level = want["log_depth"].mean()
    distance = apart(got["log_depth"] - level, want["log_depth"] - level)
    print(kind, "log depth", distance, "loss", got["loss"] / want["loss"] - 1)
    assert distance < bound
    assert got["loss"] == pytest.approx(want["loss"], rel=bound / 2)


@pytest.mark.parametrize(("kind", "least"), [("fp32", 0.9999), ("bf16", 0.97)])
def test_gradients_point_where_those_of_the_cpu_do(passes: Any, kind: str, least: float) -> None:
    parts = [name for name in passes["cpu"] if name not in ("log_depth", "loss")]
    assert set(parts) == {"lora_vit", "lora_llm", "prototypes", "attention", "head"}
    for part in parts:
        got, want = passes[kind][part], passes["cpu"][part]
        cosine = torch.nn.functional.cosine_similarity(got, want, dim=0).item()
        print(kind, part, "cosine", cosine, "norms", (got.norm() / want.norm()).item())
        assert cosine > least, part
        spread = 0.1 if kind == "bf16" else 0.01
        assert got.norm().item() == pytest.approx(want.norm().item(), rel=spread)


@pytest.mark.parametrize("mode", ["apg", "fixed"])
def test_prompts_are_those_of_the_cpu(mode: str) -> None:
    config = build({"model": BASE | {"prompt": mode}}).model
    prompt = DepthModel(config, seed=0).prompt
    generator = torch.Generator().manual_seed(2)
    image = torch.randint(0, 256, (64, 3, 32, 48), generator=generator, dtype=torch.uint8)
    image[:8] = torch.arange(0, 256, 32, dtype=torch.uint8).view(8, 1, 1, 1)  # of one grey each
    want = prompt(image)
    got = copy.deepcopy(prompt).cuda()(image.cuda())
    assert all(torch.equal(mine.cpu(), its) for mine, its in zip(got, want, strict=True))


def test_training_keeps_no_matrix_of_attention_scores() -> None:
    """With masks and dropout, as it trains: only fused kernels are allowed, in both passes."""
    config = build({"model": BASE}).model
    half = DepthModel(config, seed=0).train().cuda()
    halve(half)
    image, depth, valid = (one.cuda() for one in batch())
    assert half.prompt.padded
    with sdpa_kernel(FUSED):
        silog(half(image), depth, valid).backward()
