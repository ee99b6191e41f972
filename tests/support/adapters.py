"""Small trained models and the adapter folders written from them."""

from pathlib import Path

import torch

from llm_mde.config import DataConfig, ModelConfig
from llm_mde.inference import adapter
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import load, shipped

SCORES = {
    "val/abs_rel": 0.1234,
    "val/delta1": 0.5,
    "val/loss": 2.5,
    "val_paper/delta1": 0.9,
    "val_mean_map/rmse": 1.5,
    "val/images": 66.0,
    "val/cropped": 0.0,
    "val/left_out": 2.0,
}
DATA = DataConfig(shards="s3://bucket/private/rooms/", train_split="few-shot-1")
LORA = {"r": 4, "alpha": 6.0, "dropout": 0.0}


def settings(
    vit: str, llm: str, *, vit_name: str = "random:tiny:0", llm_name: str = "random:tiny:1"
) -> ModelConfig:
    tree = load(shipped("launch/demo.yaml")).model.model_dump()
    tree["vit"] |= {"tune": vit, "lora": LORA, "name": vit_name}
    tree["llm"] |= {"tune": llm, "lora": LORA | {"r": 2}, "name": llm_name}
    return ModelConfig.model_validate(tree)


def trained(config: ModelConfig) -> DepthModel:
    """A model in which everything trainable, and every statistic, has moved."""
    model = DepthModel(config, seed=3)
    generator = torch.Generator().manual_seed(0)
    state = model.state_dict()
    with torch.no_grad():
        for name in model.trainable_state():
            noise = torch.randn(state[name].shape, generator=generator)
            state[name].add_(noise.abs() if name.endswith("running_var") else noise, alpha=0.02)
    model.prototypes.forget()
    return model.eval()


def save(model: DepthModel, folder: Path) -> Path:
    state = model.state_dict()
    changed = {name: state[name].clone() for name in model.trainable_state()}
    adapter.save(model.config, changed, folder, seed=3, scores=SCORES, data=DATA)
    return folder


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (2, 3, 96, 128), generator=generator, dtype=torch.uint8)


@torch.no_grad()
def depth(model: DepthModel) -> torch.Tensor:
    return model.predict(images(), size=(48, 50))
