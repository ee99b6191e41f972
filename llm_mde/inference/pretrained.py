"""The trained model as a library has it: load, predict, save, share.

model = llm_mde.DepthModel.from_pretrained("runs/nyu/adapter")
depth = model.predict(Image.open("room.jpg"))  # float32 (H, W), metres
"""

from pathlib import Path

import numpy as np
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from torch import Tensor, nn

from llm_mde.errors import CheckpointError
from llm_mde.inference.adapter import FILES, find, load, replace
from llm_mde.inference.card import CARD, provenance_of, settings_of
from llm_mde.inference.image import Picture
from llm_mde.inference.predict import depth_of


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
        """The model of an adapter folder, a run folder, or a repository of the hub.

        Beside the source, arguments are those of the hub. Not the mixin's own method, which looks
        for a `config.json` first.

        Raises:
            CheckpointError: no such folder or repository, no way to the hub, or it cannot be used.
        """
        if Path(source).expanduser().is_dir():
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
        except (LocalEntryNotFoundError, ConnectionError) as error:
            raise CheckpointError(
                f"{source}: no such folder; as a repository it is not in the local cache and the "
                f"hub can't be reached"
            ) from error
        except (HfHubHTTPError, HFValidationError) as error:
            at = f" at {revision}" if revision else ""
            reason = str(error).strip().partition("\n")[0]
            raise CheckpointError(
                f"{source}: no such folder, and the hub gives no such repository{at}: {reason}"
            ) from error
        return cls(Path(folder))

    def forward(self, image: Tensor) -> Tensor:
        """Uint8 RGB (B, 3, h, w) of the network's size -> metres, fp32 (B, 1, h, w)."""
        return self.network.predict(image)

    def predict(self, image: Picture) -> np.ndarray:
        """Depth in metres, float32 (H, W), of a PIL image or uint8 array of (H, W) pixels.

        Raises:
            DataError: it is no picture, or a damaged one.
        """
        return depth_of(self.network, image)

    def _save_pretrained(self, save_directory: Path) -> None:
        """Writes the adapter folder; scores and data stay those of the folder it came from.

        Raises:
            CheckpointError: the folder holds something else than an adapter.
        """
        # The folder is replaced, and a slip must not cost anybody's other files.
        if any(save_directory.iterdir()) and not (save_directory / CARD).is_file():
            raise CheckpointError(
                f"{save_directory}: holds other files, expected a new folder or an adapter's"
            )
        replace(self.network, save_directory, config=self.settings, provenance=self.provenance)
