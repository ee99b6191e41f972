"""The trained model as a library has it: load, predict, save, share.

model = llm_mde.DepthModel.from_pretrained("runs/nyu/adapter")
depth = model.predict(Image.open("room.jpg"))  # float32 (H, W), metres
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from torch import Tensor, nn

from llm_mde.errors import CheckpointError, DataError
from llm_mde.inference.adapter import FILES, MODELS, find, load, replace
from llm_mde.inference.card import CARD, provenance_of, settings_of
from llm_mde.inference.image import Picture
from llm_mde.inference.predict import depth_of
from llm_mde.model.vit import REFUSED, UNREACHABLE, hub_problem


class DepthModel(nn.Module, PyTorchModelHubMixin):
    """A network from an adapter folder; `push_to_hub(repo)` is huggingface_hub's own."""

    def __init__(self, folder: Path) -> None:
        """Loads an adapter or run folder, in eval mode, on the CPU.

        Raises:
            CheckpointError: the folder cannot be used.
        """
        super().__init__()
        folder = find(folder)
        self.settings = settings_of(folder)
        self.provenance = provenance_of(folder)
        self.network = load(folder)
        self.eval()

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        token: str | bool | None = None,
        local_files_only: bool = False,
        force_download: bool = False,
    ) -> "DepthModel":
        """The model of an adapter or run folder, MLflow's registry, or a repository of the hub.

        Beside the source, arguments are those of the hub. Backbones that the folder only names come
        by the hub's settings (HF_TOKEN, HF_HOME, HF_HUB_OFFLINE), not by these arguments. Not the
        mixin's own method, which looks for a `config.json` first.

        Raises:
            CheckpointError: no such folder or repository, no way to the hub, or it cannot be used.
        """
        if str(source).startswith(MODELS) or Path(source).expanduser().is_dir():
            return cls(Path(source).expanduser())
        try:
            folder = snapshot_download(
                str(source),
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                force_download=force_download,
                allow_patterns=list(FILES),
            )
        except (*UNREACHABLE, *REFUSED) as error:
            problem = hub_problem(error, repo=str(source), revision=revision)
            raise CheckpointError(f"{source}: no such folder, and {problem}") from error
        return cls(Path(folder))

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 RGB (B, 3, h, w) of the network's size -> metres, fp32 (B, 1, h, w).

        Raises:
            DataError: another dtype (0..1, say, would be taken for black) or shape.
        """
        size = self.settings.image_size
        if image.dtype != torch.uint8 or image.ndim != 4 or tuple(image.shape[1:]) != (3, *size):
            raise DataError(
                f"image: expected uint8 (B, 3, {size[0]}, {size[1]}) of 0..255, got "
                f"{image.dtype} {tuple(image.shape)}; predict takes pictures of any size"
            )
        return self.network.predict(image)

    def predict(self, image: Picture) -> np.ndarray:
        """Depth in metres, float32 (H, W), of a PIL image or uint8 array of (H, W) pixels.

        Without dropout, and with batch norm's statistics as they are, in training mode as well.

        Raises:
            DataError: it is no picture, or a damaged one.
        """
        training = self.network.training
        self.network.eval()
        try:
            return depth_of(self.network, image)
        finally:
            self.network.train(training)

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Writes the adapter folder; scores and data stay those of the folder it came from.

        Options are those of huggingface_hub's mixin.

        Raises:
            CheckpointError: the folder holds something else than an adapter.
        """
        _check_free(Path(save_directory))  # first: the mixin begins by deleting a config.json
        return super().save_pretrained(save_directory, **options)

    def _save_pretrained(self, save_directory: Path) -> None:
        replace(self.network, save_directory, config=self.settings, provenance=self.provenance)


def _check_free(folder: Path) -> None:
    """Refuse a folder with files that are no adapter's: it is replaced as a whole."""
    if folder.exists() and not folder.is_dir():
        raise CheckpointError(f"{folder}: is a file, expected a new folder or an adapter's")
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    others = found - {pattern.partition("/")[0] for pattern in FILES}
    if others or (found and CARD not in found):
        raise CheckpointError(
            f"{folder}: holds other files ({min(others or found)}), expected a new folder or an "
            f"adapter's"
        )
