"""A run folder without a training run."""

from pathlib import Path

from llm_mde.inference import adapter
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import load, shipped


def write_run(folder: Path) -> Path:
    """A run folder with the adapter of an untrained tiny model."""
    sets = ["model.vit.tune=lora", "model.llm.tune=frozen"]
    model = DepthModel(load(shipped("launch/demo.yaml"), sets=sets).model, seed=0)
    state = {name: model.state_dict()[name].clone() for name in model.trainable_state()}
    adapter.save(model.config, state, folder / "adapter", seed=0, scores={})
    return folder
