import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from huggingface_hub import errors
from timm.models import save_for_hf
from torch.testing import assert_close

from llm_mde.config import VitConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.model.vit import ViT, seeded_rng, weights_hash

SIZE = (32, 48)


def tiny(name: str = "random:tiny:0", *, image_size: tuple[int, int] = SIZE) -> ViT:
    return ViT(VitConfig(name=name), image_size=image_size).eval()


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


def test_tokens_are_the_final_norms_without_the_class_token() -> None:
    vit = tiny()
    image = torch.randn(2, 3, *SIZE)
    tokens = vit(image)
    assert vit.grid == (2, 3) and vit.embed_dim == 192
    assert tokens.shape == (2, 6, 192)
    assert torch.equal(tokens, vit.model.forward_features(image)[:, 1:])
    assert_close(tokens.mean(-1), torch.zeros(2, 6), atol=1e-5, rtol=0)


def test_tokens_run_row_by_row() -> None:
    vit = tiny()
    image = torch.zeros(1, 3, *SIZE)
    changed = image.clone()
    changed[:, :, 16:, 32:] = 1  # second row, third column
    patches = vit.model.patch_embed(changed) - vit.model.patch_embed(image)
    assert patches[0].norm(dim=-1).nonzero().flatten().tolist() == [5]


def test_normalisation_is_the_backbones_own() -> None:
    vit = tiny()
    assert vit.mean == vit.std == (0.5, 0.5, 0.5)
    assert vit.interpolation == "bicubic"


def test_the_seed_decides_the_weights_and_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first, again, other = tiny(), tiny(), tiny("random:tiny:1")
    assert torch.equal(torch.get_rng_state(), before)
    assert first.identity == again.identity
    assert first.identity.sha256 != other.identity.sha256
    assert first.identity.name == "random:tiny:0" and first.identity.revision is None


def test_seeded_rng_restores_the_generator_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="x"), seeded_rng(3):
        torch.rand(1)
        raise ValueError("x")
    assert torch.equal(torch.get_rng_state(), before)


def test_hash_sees_values_names_and_dtype() -> None:
    layer = torch.nn.Linear(2, 2)
    first = weights_hash(layer)
    assert weights_hash(torch.nn.Sequential(layer)) != first
    assert weights_hash(layer.bfloat16()) != first
    with torch.no_grad():
        layer.weight[0, 0] += 1
    assert weights_hash(layer.float()) != first


def test_a_saved_backbone_is_loaded_by_its_folder(tmp_path: Path) -> None:
    vit = tiny()
    vit.save(tmp_path)
    loaded = tiny(str(tmp_path))
    image = torch.randn(1, 3, *SIZE)
    assert torch.equal(loaded(image), vit(image))
    assert loaded.identity.sha256 == vit.identity.sha256
    assert (loaded.mean, loaded.std, loaded.interpolation) == (vit.mean, vit.std, vit.interpolation)


def test_another_image_size_resamples_positions_and_keeps_the_identity(tmp_path: Path) -> None:
    vit = tiny()
    vit.save(tmp_path)
    larger = tiny(str(tmp_path), image_size=(64, 64))
    assert larger.grid == (4, 4)
    assert larger(torch.randn(1, 3, 64, 64)).shape == (1, 16, 192)
    assert larger.identity.sha256 == vit.identity.sha256


@pytest.mark.parametrize("size", [(100, 128), (96, 8)])
def test_image_size_is_a_multiple_of_the_patch(size: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match=r"model.image_size: expected multiples .* size 16, got"):
        tiny(image_size=size)


@pytest.mark.parametrize("name", ["random:huge:0", "random:tiny", "random:tiny:-1"])
def test_a_misspelt_random_name_is_explained(name: str) -> None:
    with pytest.raises(ConfigError, match="model.vit.name: expected random:tiny:<seed> or random:"):
        tiny(name)


def test_an_unknown_name_suggests_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match="did you mean vit_base_patch16_224.augreg2_in21k_ft_in1k"
    ):
        tiny("vit_base_patch16_224.augreg2_in21k_ft_in1")


def test_a_name_without_its_tag_is_offered_timms_own_choice() -> None:
    with pytest.raises(
        ConfigError, match=r"did you mean vit_base_patch16_224\.augreg2_in21k_ft_in1k\?"
    ):
        tiny("vit_base_patch16_224")
    with pytest.raises(ConfigError, match="are called nothing-like-it$"):
        tiny("nothing-like-it")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            errors.GatedRepoError,
            r"me/vit is gated; accept its terms at https://huggingface\.co/me/v",
        ),
        (
            errors.RepositoryNotFoundError,
            r"the hub has no me/vit, or it is private: .* `hf auth lo",
        ),
        (errors.RevisionNotFoundError, r"the hub's me/vit has no revision v9"),
        (errors.HfHubHTTPError, r"the hub gives no me/vit at v9: 403 Client Error\."),
        (errors.HFValidationError, r"the hub gives no me/vit at v9: 403 Client Error\."),
    ],
)
def test_what_the_hub_refuses_is_said_with_what_helps(
    monkeypatch: pytest.MonkeyPatch, kind: Callable[..., Exception], message: str
) -> None:
    def refuse(repo: str, **options: object) -> str:
        response = SimpleNamespace(headers={}, request=None)
        status = {} if kind is errors.HFValidationError else {"response": response}
        raise kind("403 Client Error. (Request ID: 1)\n\nMore for url: x", **status)

    monkeypatch.setattr("llm_mde.model.vit.snapshot_download", refuse)
    with pytest.raises(ConfigError, match=rf"^model\.vit\.name: {message}"):
        ViT(VitConfig(name="me/vit", revision="v9"), image_size=SIZE)


def test_a_missing_folder_is_named() -> None:
    with pytest.raises(ConfigError, match="model.vit.name: no folder ./nowhere"):
        tiny("./nowhere")


@pytest.mark.usefixtures("offline")
@pytest.mark.parametrize("name", ["vit_base_patch16_224.augreg2_in21k_ft_in1k", "somebody/vit"])
def test_an_unreachable_hub_says_how_to_point_to_a_folder(name: str) -> None:
    with pytest.raises(CheckpointError, match="hub can't be reached; download config.json, model"):
        tiny(name)


def test_a_hub_name_is_loaded_from_its_snapshot(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abc"
    tiny().save(snapshot)
    asked: list[tuple[str, str | None]] = []

    def download(repo: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((repo, revision))
        return str(snapshot)

    monkeypatch.setattr("llm_mde.model.vit.snapshot_download", download)
    name = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    vit = ViT(VitConfig(name=name, revision="v1"), image_size=SIZE)
    assert asked == [(f"timm/{name}", "v1")]
    assert vit.identity == (name, "0123abc", tiny().identity.sha256)


def test_a_folder_without_weights_is_explained(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no model.safetensors in"):
        tiny(str(tmp_path))


def test_a_damaged_file_is_an_error(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"1234567")
    with pytest.raises(CheckpointError, match="can't be read"):
        tiny(str(tmp_path))


def test_weights_of_another_network_are_no_silent_random_start(tmp_path: Path) -> None:
    tiny().save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["model_args"]["depth"] = 5
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="model.vit.name"):
        tiny(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"model_type": "vit"},
            r"expected a ViT in timm's format in .*, got a config\.json without a",
        ),
        ([], r"expected a ViT in timm's format"),
        (7, r"can't be read: argument of type 'int'"),
        ({"architecture": "vit_tiny_patch16_224"}, "can't be read"),
        (
            {
                "architecture": "vit_tiny_patch16_224",
                "model_args": {"no_such": 3},
                "pretrained_cfg": {},
            },
            r"can't be read: .* unexpected keyword argument 'no_such'",
        ),
    ],
)
def test_settings_of_another_library_are_explained(
    config: object, message: str, tmp_path: Path
) -> None:
    tiny().save(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((ConfigError, CheckpointError), match=rf"^model\.vit\.name: .*{message}"):
        tiny(str(tmp_path))


def test_only_a_vit_will_do(tmp_path: Path) -> None:
    save_for_hf(timm.create_model("resnet10t"), str(tmp_path), safe_serialization=True)
    with pytest.raises(ConfigError, match="expected a ViT in .*, got ResNet"):
        tiny(str(tmp_path))
