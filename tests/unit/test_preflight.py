"""What is checked before the first step."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from llm_mde.cli import main
from llm_mde.errors import ConfigError
from llm_mde.model.depth_model import DepthModel
from llm_mde.recipes import dump
from llm_mde.training import preflight
from llm_mde.training.preflight import GB, check, need
from tests.support.training import LORA, make_shards, tiny_config

DS = {
    "train_micro_batch_size_per_gpu": 2,
    "gradient_accumulation_steps": 1,
    "zero_optimization": {"stage": 2},
    "bf16": {"enabled": False},
}


def batch(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (2, 3, 32, 48), generator=generator, dtype=torch.uint8)
    depth = 1 + torch.rand(2, 1, 32, 48, generator=generator)
    return {"image": image, "depth": depth, "valid": depth > 0}


def made(tmp_path: Any, **changes: Any) -> tuple[DepthModel, Any]:
    config = tiny_config(tmp_path / "shards", tmp_path, "run", **changes)
    return DepthModel(config.model, seed=0).train(), config


def checked(model: DepthModel, config: Any, *, memory: int | None = None) -> preflight.Need:
    return check(model, batch(), config, ds=DS, ranks=2, memory=memory)


def needed(
    stage: int, *, bf16: bool = True, accumulation: int = 1, mean: bool = False, **zero: Any
) -> preflight.Need:
    """Of 40 trainable and 160 frozen weights on four ranks."""
    ds = {
        "train_micro_batch_size_per_gpu": 3,
        "gradient_accumulation_steps": accumulation,
        "zero_optimization": {"stage": stage, **zero},
        "bf16": {"enabled": bf16},
    }
    return need({True: 40, False: 160}, saved_per_image=1000, ds=ds, ranks=4, mean=mean)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "kept", "optimizer"),
    [  # 2 bytes a weight; 4 a trainable one for its gradient, 12 for its master and moments
        (0, 400, 240, 0, 480),  # gradients in bf16 and, as AdamW steps, in fp32
        (1, 400, 240, 160, 120),  # those in fp32 for good
        (2, 400, 40, 0, 120),
        (3, 100, 40, 40, 120),
    ],
)
def test_what_zero_shares_out_over_four_ranks(
    stage: int, weights: int, gradients: int, kept: int, optimizer: int
) -> None:
    found = needed(stage)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)
    assert (found.kept, found.host) == (kept, 0)
    assert found.activations == 1500  # half of fp32
    assert found.memory == weights + optimizer + kept + 1500  # others come as activations go
    assert found.checkpoint == 480


@pytest.mark.parametrize(("stage", "kept"), [(0, 80), (1, 240), (2, 40), (3, 40)])
def test_gradients_that_accumulate_lie_beside_activations(stage: int, kept: int) -> None:
    found = needed(stage, accumulation=2)
    assert found.kept == kept
    assert found.memory == found.weights + found.optimizer + kept + 1500


@pytest.mark.parametrize(
    ("stage", "bf16", "more"), [(0, True, 160), (0, False, 160), (2, True, 40)]
)
def test_a_running_mean_is_one_more_copy_of_the_masters(stage: int, bf16: bool, more: int) -> None:
    found, plain = (needed(stage, bf16=bf16, mean=mean) for mean in (True, False))
    assert found.optimizer == plain.optimizer + more
    assert found.checkpoint == 640


def test_an_optimizer_in_the_hosts_memory_takes_none_of_the_gpus() -> None:
    cpu = {"device": "cpu"}
    found = needed(2, offload_optimizer=cpu)
    assert (found.weights, found.optimizer, found.gradients, found.host) == (400, 0, 40, 160)
    assert found.memory == 400 + 1500 and "GB of the host's memory" in found.line()
    found = needed(3, offload_optimizer=cpu, offload_param=cpu)
    assert (found.weights, found.optimizer, found.gradients, found.host) == (0, 0, 0, 300)
    assert needed(2, offload_optimizer={"device": "none"}) == needed(2)


@pytest.mark.parametrize(
    ("stage", "weights", "gradients", "optimizer"),
    [(0, 800, 160, 320), (1, 800, 160, 120), (2, 800, 40, 120), (3, 200, 40, 120)],
)
def test_in_fp32_without_zero_weights_are_their_own_masters(
    stage: int, weights: int, gradients: int, optimizer: int
) -> None:
    found = needed(stage, bf16=False)
    assert (found.weights, found.gradients, found.optimizer) == (weights, gradients, optimizer)
    assert found.activations == 3000


def test_the_model_stays_as_it_was(tmp_path: Any) -> None:
    model, config = made(tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    generator = torch.get_rng_state()
    checked(model, config)
    assert model.training and all(weight.grad is None for weight in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_a_weight_that_does_not_learn_is_named(tmp_path: Any) -> None:
    model, config = made(tmp_path)
    model.head.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ConfigError, match="1 trainable weights get no gradient: head.idle; freeze"):
        checked(model, config)


def test_what_is_frozen_keeps_less_for_the_backward_pass(tmp_path: Any) -> None:
    def activations(**changes: Any) -> int:
        return checked(*made(tmp_path, **changes)).activations

    frozen = LORA | {"model__vit": {"name": "random:tiny:0", "tune": "frozen"}}
    assert 0 < activations(**frozen) < activations(**LORA)


def test_a_gpu_that_cannot_hold_it_is_an_error(tmp_path: Any) -> None:
    model, config = made(tmp_path)
    assert checked(model, config, memory=GB).memory < GB
    with pytest.raises(ConfigError, match=r"holds at least .* but the GPU has 0.00 GB; lower"):
        checked(model, config, memory=1000)


def test_a_disk_that_cannot_hold_the_checkpoints_is_an_error(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, config = made(tmp_path, train__keep=3)
    wanted = 5 * 12 * sum(weight.numel() for weight in model.parameters())  # all of them train

    def free(size: int) -> None:
        usage = SimpleNamespace(free=size)
        monkeypatch.setattr(preflight.shutil, "disk_usage", lambda folder: usage)

    free(wanted)
    checked(model, config)
    free(wanted - 1)
    with pytest.raises(ConfigError, match="are free, expected 0.1 GB for 5 checkpoints; make room"):
        checked(model, config)


def test_a_dry_run_says_what_it_takes_and_writes_nothing(tmp_path: Any, capsys: Any) -> None:
    config = tiny_config(make_shards(tmp_path / "shards"), tmp_path / "runs", "run")
    (tmp_path / "run.yaml").write_text(dump(config))
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "37 training samples | batch 4 = micro_batch 2 x accumulation 2 x 1 ranks" in said
    assert "a rank holds at least" in said and "nothing was written" in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run.yaml", "shards"]
