"""The model as a library has it: five lines, folders, the hub's cache, uploads."""

import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hub_mixin
from PIL import Image

import llm_mde
from llm_mde import DepthModel
from llm_mde.errors import CheckpointError, DataError
from llm_mde.inference import adapter, pretrained
from llm_mde.inference.card import Provenance, read_card
from llm_mde.inference.image import read_image
from llm_mde.inference.predict import depth_of
from llm_mde.model import depth_model
from llm_mde.recipes import load, shipped

SCORES = {"val/abs_rel": 0.2}
COMMIT = "c" * 40


def write_adapter(folder: Path, *, vit: str, llm: str) -> Path:
    sets = [f"model.vit.tune={vit}", f"model.llm.tune={llm}"]
    network = depth_model.DepthModel(load(shipped("launch/demo.yaml"), sets=sets).model, seed=0)
    data = {"shards": "rooms", "train_split": "train", "val_split": "val", "depth": "raw"}
    provenance = Provenance(SCORES, data)
    adapter.replace(network.eval(), folder, config=network.config, provenance=provenance)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    write_adapter(run / "adapter", vit="lora", llm="full")
    return run


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("picture") / "room.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 50, 3), np.uint8)).save(path)
    return path


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def same_model(one: Path, other: Path) -> bool:
    """The same files; equal weights, settings and cards (a tokenizer notes where it was read)."""
    ours, theirs = files(one), files(other)
    exact = [name for name in theirs if name.endswith((".safetensors", "README.md", "mde.json"))]
    assert len(exact) == 5
    return ours.keys() == theirs.keys() and all(ours[name] == theirs[name] for name in exact)


def test_predict_gives_metres_of_the_images_size_as_the_command_does(
    run: Path, picture: Path
) -> None:
    model = DepthModel.from_pretrained(str(run))
    with Image.open(picture) as image:
        depth = model.predict(image)
    assert depth.shape == (30, 50)
    assert depth.dtype == np.float32
    assert 0 < depth.min() <= depth.max() < 10
    pixels = read_image(picture)
    assert np.array_equal(depth, depth_of(adapter.load(run), pixels))
    assert np.array_equal(depth, model.predict(pixels))
    assert not model.training and not model.network.training
    with pytest.raises(DataError, match="image: expected a PIL image or an array uint8"):
        model.predict(pixels / 255)


def test_forward_is_metres_of_a_batch(run: Path) -> None:
    model = DepthModel.from_pretrained(run / "adapter")
    batch = torch.randint(0, 256, (2, 3, 96, 128), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(model(batch), model.network(batch).exp())


@pytest.mark.parametrize(
    "image",
    [
        torch.rand(2, 3, 96, 128),  # 0..1 would be black
        torch.zeros(2, 3, 64, 64, dtype=torch.uint8),
        torch.zeros(3, 96, 128, dtype=torch.uint8),
    ],
)
def test_forward_refuses_other_tensors(run: Path, image: torch.Tensor) -> None:
    message = rf"expected uint8 \(B, 3, 96, 128\) of 0\.\.255, got {image.dtype} .*; predict takes"
    with pytest.raises(DataError, match=message):
        DepthModel.from_pretrained(run)(image)


def test_predict_while_training_has_no_dropout_and_moves_no_statistic(
    run: Path, picture: Path
) -> None:
    model, pixels = DepthModel.from_pretrained(run), read_image(picture)
    want = model.predict(pixels)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    assert np.array_equal(model.predict(pixels), want)
    assert model.network.training and model.network.head.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_pickled_model_is_the_same(run: Path, picture: Path) -> None:
    model, pixels = DepthModel.from_pretrained(run), read_image(picture)
    again = pickle.loads(pickle.dumps(model))
    assert np.array_equal(again.predict(pixels), model.predict(pixels))


def test_saving_what_was_loaded_gives_the_same_folder(run: Path, tmp_path: Path) -> None:
    model = DepthModel.from_pretrained(run)
    model.save_pretrained(tmp_path / "copy")
    assert same_model(tmp_path / "copy", run / "adapter")
    assert read_card(tmp_path / "copy")["scores"] == SCORES
    own = DepthModel.from_pretrained(tmp_path / "copy")
    own.save_pretrained(tmp_path / "copy")  # in place of the one it was loaded from
    assert same_model(tmp_path / "copy", run / "adapter")


@pytest.mark.parametrize("other", ["thesis.txt", "config.json", "README.md"])
def test_other_peoples_files_are_not_replaced(run: Path, tmp_path: Path, other: str) -> None:
    (tmp_path / other).write_text("years")
    message = rf"holds other files \({other}\), expected a new folder or an ada"
    with pytest.raises(CheckpointError, match=message):
        DepthModel.from_pretrained(run).save_pretrained(tmp_path)
    assert files(tmp_path) == {other: b"years"}
    with pytest.raises(CheckpointError, match=f"{other}: is a file, expected a new folder"):
        DepthModel.from_pretrained(run).save_pretrained(tmp_path / other)


def test_a_cloned_repository_keeps_its_history(run: Path, tmp_path: Path) -> None:
    clone = Path(shutil.copytree(run / "adapter", tmp_path / "clone"))
    (clone / ".git").mkdir()
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/main")
    with pytest.raises(CheckpointError, match=r"holds other files \(\.git\)"):
        DepthModel.from_pretrained(clone).save_pretrained(clone)
    assert (clone / ".git" / "HEAD").is_file()


def test_push_uploads_a_whole_adapter_folder(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            asked["token"] = token

        def create_repo(self, repo_id: str, **options: object) -> object:
            asked.update(options)
            return type("Repo", (), {"repo_id": repo_id})

        def upload_folder(self, *, repo_id: str, folder_path: Path, **options: object) -> str:
            shutil.copytree(folder_path, tmp_path / repo_id)
            asked["revision"] = options["revision"]
            return f"https://hub/{repo_id}"

    monkeypatch.setattr(hub_mixin, "HfApi", Hub)
    model = DepthModel.from_pretrained(run)
    url = model.push_to_hub("me/rooms", token="secret", private=True, branch="draft")
    assert url == "https://hub/me/rooms"
    assert asked == {"token": "secret", "private": True, "exist_ok": True, "revision": "draft"}
    assert same_model(tmp_path / "me" / "rooms", run / "adapter")


def test_a_repository_in_the_hubs_cache_is_loaded_by_its_id(
    run: Path, picture: Path, tmp_path: Path
) -> None:
    repo = tmp_path / "models--me--rooms"
    shutil.copytree(run / "adapter", repo / "snapshots" / COMMIT)
    (repo / "refs").mkdir()
    (repo / "refs" / "v1").write_text(COMMIT)
    model = DepthModel.from_pretrained(
        "me/rooms", revision="v1", cache_dir=tmp_path, local_files_only=True
    )
    pixels = read_image(picture)
    assert np.array_equal(model.predict(pixels), DepthModel.from_pretrained(run).predict(pixels))


def test_the_hub_is_asked_for_an_adapters_files_alone(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(run / "adapter")

    monkeypatch.setattr(pretrained, "snapshot_download", download)
    DepthModel.from_pretrained("me/rooms", token="secret", force_download=True)
    wanted = asked.pop("allow_patterns")
    assert asked == {
        "repo": "me/rooms",
        "revision": None,
        "cache_dir": None,
        "token": "secret",
        "local_files_only": False,
        "force_download": True,
    }
    for name in files(run / "adapter"):
        assert any(Path(name).match(pattern) for pattern in wanted)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("me/rooms", r"^me/rooms: no such folder, and me/rooms is not in the local cache and the"),
        ("runs/none/adapter", r"no such folder, and the hub gives no runs/none/adapter: Repo id"),
    ],
)
def test_what_is_neither_folder_nor_repository_is_named(
    tmp_path: Path, source: str, message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        DepthModel.from_pretrained(source, cache_dir=tmp_path, local_files_only=True)


def test_the_package_loads_the_model_when_it_is_asked_for() -> None:
    code = (
        "import sys, llm_mde\n"
        "heavy = {'torch', 'timm', 'transformers', 'peft', 'numpy'} & set(sys.modules)\n"
        "sys.exit(repr(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert llm_mde.DepthModel is DepthModel is pretrained.DepthModel
    with pytest.raises(AttributeError, match="'llm_mde' has no attribute 'Nothing'"):
        llm_mde.Nothing  # noqa: B018 - looking it up is the test
