"""What an adapter says about itself: `llm_mde.json` for programs, the model card for people."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from llm_mde.config import DataConfig, LlmConfig, ModelConfig, VitConfig
from llm_mde.errors import CheckpointError

FORMAT = "llm-mde adapter 2"
CARD, README = "llm_mde.json", "README.md"

SHOWN = ("abs_rel", "rmse", "delta1")
GROUPS = {  # of scores, `<split>_<group>/<metric>`, as `scoring.evaluate` names them
    "": "`metric`: metres as predicted",
    "aligned_median": "`aligned_median`: scale fitted to each image's truth",
    "aligned_affine": "`aligned_affine`: scale and shift fitted to each image's truth",
    "paper": "`paper`: each image's depths min-max normalised",
    "constant": "baseline: median depth of the training images",
    "mean_map": "baseline: mean depth map of the training images",
}

MODEL_CARD = """\
---
library_name: llm-mde
pipeline_tag: depth-estimation
license: other
license_name: backbones-and-training-data
{bases}tags:
- monocular-depth-estimation
- lora
- peft
---

# LLM-MDE adapter

Depth in metres, up to {max_depth:g} m, from one image, with the image backbone `{vit}` and the
language backbone `{llm}` (Xia et al. 2024, https://arxiv.org/abs/2409.01133).

## Use

```python
from PIL import Image
from llm_mde import DepthModel

model = DepthModel.from_pretrained("THIS_FOLDER_OR_HUB_ID")
depth = model.predict(Image.open("room.jpg"))  # float32 (H, W), metres
```

or `llm-mde predict IMAGE --adapter THIS_FOLDER --out DIR`. `llm_mde.json` holds every setting and
the hashes of the weights it stands on; loading checks them. Low-rank adapters are a PEFT folder:
`peft.PeftModel.from_pretrained(network, "THIS_FOLDER")` puts them on a network
(`llm_mde.model.depth_model.DepthModel`) with the same backbones and none of its own.

## Backbones

| part | name | revision | what is here |
|---|---|---|---|
{backbones}

## Data

{data}

## Scores

{scores}

## Licence

The backbones' licences and the terms of the training data apply; neither is known to this file. Add
yours in `license`, `license_name` and `license_link` above before you publish.
"""
HERE = {
    "full": "all weights, tuned or merged",
    "lora": "low-rank adapters",
    "frozen": "nothing: used as it is",
}


@dataclass(frozen=True)
class Provenance:
    """Where an adapter's numbers come from."""

    scores: dict[str, float] = field(default_factory=dict)
    """`split/metric` numbers of the run, as its tracker has them."""
    data: dict[str, str] | None = None
    """Shards and splits; None where nobody told."""


def described(data: DataConfig | None) -> dict[str, str] | None:
    """What a card tells of the data: the shards by their folder's name, not by where they lie."""
    if data is None or data.shards is None:
        return None
    return {
        "shards": data.shards.rstrip("/").rpartition("/")[2],
        "train_split": data.train_split,
        "val_split": data.val_split,
        "depth": data.depth,
    }


def write_card(
    folder: Path, config: ModelConfig, backbones: Mapping[str, Any], provenance: Provenance
) -> None:
    """Write both files of a folder: settings, `backbones` by part, scores and data."""
    card = {
        "format": FORMAT,
        "model": config.model_dump(mode="json"),
        "backbones": dict(backbones),
        **asdict(provenance),
    }
    (folder / CARD).write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    (folder / README).write_text(_model_card(config, provenance), encoding="utf-8")


def read_card(folder: Path) -> dict[str, Any]:
    """The contents of `llm_mde.json`.

    Raises:
        CheckpointError: it is damaged or of another format.
    """
    path = folder / CARD
    try:
        card = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: not readable JSON: {error}") from error
    found = card.get("format") if isinstance(card, dict) else None
    if found != FORMAT:
        raise CheckpointError(f"{path}: expected format {FORMAT!r}, got {found!r}")
    whole: dict[str, Any] = card
    return whole


def settings_of(folder: Path) -> ModelConfig:
    """The settings the adapter was trained with.

    Raises:
        CheckpointError: the card is damaged.
    """
    try:
        return ModelConfig.model_validate(read_card(folder).get("model"))
    except ValidationError as error:
        fields = ", ".join(".".join(map(str, item["loc"])) or "model" for item in error.errors())
        raise CheckpointError(f"{folder / CARD}: unusable model settings: {fields}") from error


def provenance_of(folder: Path) -> Provenance:
    """Scores and data of an adapter's card, empty where it has none."""
    card = read_card(folder)
    return Provenance(card.get("scores") or {}, card.get("data"))


def in_words(protocol: str) -> str:
    """A protocol as tables of scores are headed."""
    return GROUPS["" if protocol == "metric" else protocol].replace("`", "")


def _model_card(config: ModelConfig, provenance: Provenance) -> str:
    parts: dict[str, VitConfig | LlmConfig] = {"image": config.vit, "language": config.llm}
    rows = [
        f"| {part} | `{backbone.name}` | {backbone.revision or '-'} | {HERE[backbone.tune]} |"
        for part, backbone in parts.items()
    ]
    return MODEL_CARD.format(
        bases=_bases(config),
        max_depth=config.max_depth,
        vit=config.vit.name,
        llm=config.llm.name,
        backbones="\n".join(rows),
        data=_data(provenance.data),
        scores=_scores(provenance.scores),
    )


def _bases(config: ModelConfig) -> str:
    """The hub's field for the backbones that came from there; a commit says that one did."""
    owners: list[tuple[VitConfig | LlmConfig, str]] = [(config.vit, "timm/"), (config.llm, "")]
    ids = [
        backbone.name if "/" in backbone.name else owner + backbone.name
        for backbone, owner in owners
        if backbone.revision and not backbone.name.startswith(("/", "random:"))
    ]
    if not ids:
        return ""
    relation = "adapter" if "lora" in (config.vit.tune, config.llm.tune) else "finetune"
    lines = ["base_model:", *(f"- {name}" for name in ids), f"base_model_relation: {relation}"]
    return "".join(f"{line}\n" for line in lines)


def _data(data: Mapping[str, str] | None) -> str:
    if data is None:
        return "Not recorded."
    return (
        f"Trained on split `{data['train_split']}` of the shards `{data['shards']}` "
        f"({data['depth']} depth), scored on split `{data['val_split']}`."
    )


def _scores(scores: Mapping[str, float]) -> str:
    found: dict[tuple[str, str], dict[str, float]] = {}
    for name, value in scores.items():
        place, _, metric = name.rpartition("/")
        if metric in SHOWN:
            found.setdefault(_split_and_group(place), {})[metric] = value
    if not found:
        return "Not recorded."
    rows = [
        f"| {split} | {GROUPS[group]} | "
        + " | ".join(f"{row[metric]:.4f}" if metric in row else "-" for metric in SHOWN)
        + " |"
        for (split, group), row in found.items()
    ]
    head = [f"| split | protocol | {' | '.join(SHOWN)} |", f"|---|---|{'---|' * len(SHOWN)}"]
    notes = [_pixels(scores, split) for split in dict.fromkeys(split for split, _ in found)]
    return "\n".join([*head, *rows, "", *(note for note in notes if note)]).rstrip()


def _split_and_group(place: str) -> tuple[str, str]:
    for group in GROUPS:
        if group and place.endswith(f"_{group}"):
            return place.removesuffix(f"_{group}"), group
    return place, ""


def _pixels(scores: Mapping[str, float], split: str) -> str:
    """Which images and pixels the numbers of a split are of."""
    counts = [scores.get(f"{split}/{name}") for name in ("images", "cropped", "left_out")]
    images, cropped, left_out = (None if count is None else int(count) for count in counts)
    if images is None:
        return ""
    crop = {0: "no crop", images: "Eigen crop"}.get(cropped or 0, f"Eigen crop in {cropped}")
    return (
        f"`{split}`: {images} images ({left_out or 0} without a reading left out), {crop}, pixels "
        f"with a reading below the largest depth; each image alone, then the mean over images."
    )
