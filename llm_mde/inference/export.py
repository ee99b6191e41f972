"""Trained models for programs that do not have this one: merged weights, ONNX, torch.export.

What is written is opened again and compared with the live model before it gets its name.
"""

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from llm_mde.config import ModelConfig
from llm_mde.errors import CheckpointError, ConfigError
from llm_mde.inference.adapter import BACKBONES, replace
from llm_mde.inference.pretrained import DepthModel
from llm_mde.training.folder import make_folder

Kind = Literal["merge", "onnx", "pt2"]
Run = Callable[[Tensor], Tensor]
"""Uint8 RGB (B, 3, h, w) to metres (B, 1, h, w), any B."""

BOUND = 1e-4  # relative: 0.1 mm at 1 m; sums in another order measured 1e-5 and less
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
ONNX_BYTES = 2**31 - 2**20  # one protobuf file; the rest is room for the graph


@dataclass(frozen=True)
class Exported:
    """What `llm-mde export` says."""

    out: Path
    kind: Kind
    size: int
    """Bytes."""
    images: int
    """Images on which both models were compared."""
    difference_m: float
    """Largest difference of a pixel from the live model, metres."""
    relative: float
    """Largest difference of a pixel as a share of its depth."""
    bound: float
    """The largest share that passes."""
    interface: str
    """What goes in and comes out."""

    def payload(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"out": str(self.out)}

    def lines(self) -> list[str]:
        """For people."""
        return [
            f"{self.out}: {self.kind}, {self.size / 1e6:.1f} MB, opened again; on {self.images} "
            f"images the largest difference from the live model is {self.difference_m:.2g} m, "
            f"relative {self.relative:.2g} (bound {self.bound:g})",
            self.interface,
        ]


class Form(NamedTuple):
    """One kind of export."""

    write: Callable[[DepthModel, Path], None]
    """Writes a merged model."""
    open: Callable[[Path], Run]


def export(source: Path, out: Path, *, kind: Kind) -> Exported:
    """Write the model of an adapter or run folder, low-rank updates merged into the weights.

    `merge` is an adapter folder that holds everything: `vit/` and `llm/` as timm and transformers
    load them, the head beside them. `onnx` and `pt2` are one file each.

    Raises:
        ConfigError: `out` exists, or packages for ONNX are missing, or it is too large for ONNX.
        CheckpointError: the source can't be used, or what was written differs from the live model.
    """
    _check(out, kind)
    model = DepthModel(source)
    images = samples(model.settings.image_size)
    want = _in_two(model, images)
    merge(model.network)
    make_folder(out.parent)
    form = FORMS[kind]
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out.parent) as aside:
        path = Path(aside) / f"model.{kind}"
        form.write(model, path)
        got = _in_two(form.open(path), images)
        made = _compared(got, want, out=out, kind=kind, size=_bytes(path), model=model)
        os.rename(path, out)
    return made


@torch.no_grad()
def _in_two(run: Run, images: Tensor) -> Tensor:
    """The images in batches of two sizes, so that a file that knows one size alone fails."""
    return torch.cat([run(images[:1]), run(images[1:])])


def merge(network: nn.Module) -> None:
    """Puts W + (alpha / r) B A in place of every adapted layer; Hu et al. 2021, section 4.1."""
    for name, layer in list(network.named_modules()):
        if hasattr(layer, "lora_A"):
            adapted: Any = layer
            adapted.merge()
            network.set_submodule(name, adapted.get_base_layer())
    network.requires_grad_(False)


def samples(size: tuple[int, int]) -> Tensor:
    """Noise, a ramp, black and white: uint8 RGB (4, 3, h, w)."""
    height, width = size
    noise = torch.randint(256, (3, height, width), generator=torch.Generator().manual_seed(0))
    ramp = torch.linspace(0, 255, width).expand(3, height, width)
    black = torch.zeros(3, height, width)
    return torch.stack([noise.float(), ramp, black, black + 255]).to(torch.uint8)


def _check(out: Path, kind: Kind) -> None:
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None] if kind == "onnx" else []
    if missing:
        raise ConfigError(
            f"export onnx: needs {', '.join(missing)}; run pip install 'llm-mde[export]'"
        )
    if out.exists():
        raise ConfigError(f"--out: {out} exists; remove it or choose another name")


def _compared(
    got: Tensor, want: Tensor, *, out: Path, kind: Kind, size: int, model: DepthModel
) -> Exported:
    apart = (got - want).abs()
    worst, relative = apart.max().item(), (apart / want).max().item()
    if not relative <= BOUND:  # NaN as well
        raise CheckpointError(
            f"export {kind}: what was written differs from the live model by {worst:.2g} m, "
            f"relative {relative:.2g}, expected at most {BOUND:g}; nothing is kept"
        )
    height, width = model.settings.image_size
    return Exported(
        out=out,
        kind=kind,
        size=size,
        images=len(want),
        difference_m=worst,
        relative=relative,
        bound=BOUND,
        interface=f"image uint8 RGB (B, 3, {height}, {width}), the whole frame resized antialiased "
        f"{model.network.vit.interpolation} -> depth float32 (B, 1, {height}, {width}), metres",
    )


def _bytes(path: Path) -> int:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    return sum(file.stat().st_size for file in files)


def _write_merged(model: DepthModel, path: Path) -> None:
    tree = model.settings.model_dump()
    for name in BACKBONES:
        tree[name]["tune"] = "full"
    whole = ModelConfig.model_validate(tree)
    replace(model.network, path, config=whole, provenance=model.provenance)


def _program(model: DepthModel) -> torch.export.ExportedProgram:
    image = samples(model.settings.image_size)
    free = {"image": {0: torch.export.Dim.DYNAMIC}}
    return torch.export.export(model.eval(), (image,), dynamic_shapes=free)


def _write_pt2(model: DepthModel, path: Path) -> None:
    torch.export.save(_program(model), path)


def _open_pt2(path: Path) -> Run:
    return torch.export.load(path).module()


def _write_onnx(model: DepthModel, path: Path) -> None:
    weights = sum(weight.nbytes for weight in model.state_dict().values())
    if weights > ONNX_BYTES:
        raise ConfigError(
            f"export onnx: weights of {weights / 1e9:.1f} GB, expected less than 2.1 GB, which one "
            f"file can hold; use pt2"
        )
    with _quiet("onnxscript", "onnx_ir", "torch.onnx"):
        program = torch.onnx.export(
            _program(model),
            dynamo=True,
            input_names=["image"],
            output_names=["depth"],
            external_data=False,
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=False)


def _open_onnx(path: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return lambda image: torch.from_numpy(session.run(None, {"image": image.numpy()})[0])


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    # The optimizer reports every constant that it tried to fold and could not.
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


FORMS = {
    "merge": Form(_write_merged, DepthModel),
    "onnx": Form(_write_onnx, _open_onnx),
    "pt2": Form(_write_pt2, _open_pt2),
}
