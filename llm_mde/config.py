"""The configuration tree: frozen pydantic models whose defaults are the reference run.

The reference run is Scheme 3 of Table V in Xia et al. 2024, https://arxiv.org/abs/2409.01133.
Files and `a.b=c` words become a tree in `llm_mde.recipes`.
"""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator

from llm_mde.credentials import URI, redacted, set_aside
from llm_mde.fields import AbsolutePath, Beta, Count, FolderOrUrl, Frozen, Zoom


class LoraConfig(Frozen):
    """Low-rank adapters on one backbone (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    r: int = Field(ge=1)
    """Rank of the update."""
    alpha: float = Field(gt=0)
    """Scale of the update: it is multiplied by alpha / r."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the adapter's input."""


class VitConfig(Frozen):
    """The image backbone (a timm ViT)."""

    name: str = "vit_base_patch16_224.augreg2_in21k_ft_in1k"
    """Hub name, local folder, or `random:{tiny,base}:<seed>`."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    tune: Literal["full", "lora", "frozen"] = "lora"
    """What trains: all weights, adapters on queries, keys and values, or nothing."""
    lora: LoraConfig = LoraConfig(r=96, alpha=192)
    """Adapters, used when `tune` is `lora`."""


class LlmConfig(Frozen):
    """The language backbone (a transformers text model such as BERT, GPT-2 or Llama)."""

    name: str = "google-bert/bert-base-uncased"
    """Hub name, local folder, or `random:{tiny,base}:<seed>`."""
    revision: str | None = None
    """Hub revision (commit, tag or branch)."""
    tune: Literal["full", "lora", "frozen"] = "lora"
    """What trains: all weights, adapters on queries, keys and values, or nothing."""
    lora: LoraConfig = LoraConfig(r=32, alpha=64)
    """Adapters, used when `tune` is `lora`; alpha is not in the paper: 2 r, as in its ViT rows."""
    layers: int | None = Field(None, ge=1)
    """Only so many of its first layers; None: all, as in the paper."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout of the language model's own layers (those it has: hidden states, attention)."""


class ReprogramConfig(Frozen):
    """Cross-modal reprogramming (Eq. 1): prototypes and attention."""

    prototypes: int = Field(1000, ge=1)
    """Number of text prototypes V', rows of E' = layernorm(M E)."""
    heads: int = Field(8, ge=1)
    """Attention heads K; each is d_m / K wide."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout on the attention weights."""


class HeadConfig(Frozen):
    """Adaptation head: one linear layer and three UpsampleBN blocks."""

    widths: tuple[Count, Count, Count, Count] = (256, 128, 64, 32)
    """Channels after the linear layer and after each block (the paper gives none)."""


class ModelConfig(Frozen):
    """Everything that decides the shape and the starting weights of the network."""

    image_size: tuple[Count, Count] = (224, 224)
    """Height and width the network sees, in pixels; multiples of the patch size."""
    max_depth: float = Field(10.0, gt=0)
    """D_max in metres: depth is D_max * sigmoid(z)."""
    prompt: Literal["apg", "fixed", "none"] = "apg"
    """Adaptive prompts (statistics and class of each image), the fixed sentences, or no prompt."""
    vit: VitConfig = VitConfig()
    """The image backbone."""
    llm: LlmConfig = LlmConfig()
    """The language backbone."""
    reprogram: ReprogramConfig = ReprogramConfig()
    """Cross-modal reprogramming."""
    head: HeadConfig = HeadConfig()
    """Adaptation head."""

    def to_dict(self) -> dict[str, Any]:
        """As a dictionary: PEFT asks the `config` of a model for one when it merges adapters."""
        return self.model_dump()


class AugmentConfig(Frozen):
    """Joint augmentation of image and depth."""

    enabled: bool = True
    """Off: every training image is the whole frame as it is."""
    flip: float = Field(0.5, ge=0, le=1)
    """Probability of a left-right flip."""
    zoom: tuple[Zoom, Zoom] = (1.0, 1.5)
    """Range of the zoom z, 1 or more: the scene is shown z times nearer, depth is divided by z."""
    rotate: float = Field(5.0, ge=0)
    """Largest rotation in degrees, either way."""
    shift: float = Field(0.1, ge=0, le=0.5)
    """Largest shift as a share of the image's sides, either way."""
    jitter: float = Field(0.2, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation."""

    @field_validator("zoom")
    @classmethod
    def _rising(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise ValueError("expected the smaller zoom first")
        return value


class DataConfig(Frozen):
    """Where samples come from and how they are shuffled."""

    shards: FolderOrUrl | None = None
    """Folder or URL (s3://, gs://, hf://) written by `llm-mde pack`."""
    depth: Literal["raw", "filled"] = "raw"
    """What trains: the readings, or the filled maps of a pack made with --fill."""
    train_split: str = "train"
    """Named key list that trains (`splits/<name>.txt`)."""
    val_split: str = "val"
    """Named key list that validates."""
    shuffle_window: int = Field(2048, ge=1)
    """Samples are permuted inside windows of this many samples of each canonical stream."""
    workers: int = Field(2, ge=0)
    """Loader processes of each rank; 0 loads in the training process."""
    cache: bool = False
    """Keep resized samples in memory, 0.25 MB each at 224x224, in each rank or loader process."""
    disk_cache: AbsolutePath | None = None
    """Folder on a local disk of each host that keeps samples of a URL; None: nothing is kept."""
    disk_cache_gb: float = Field(50.0, gt=0)
    """Its bound in GB (2**30 bytes)."""
    max_lost: int = Field(0, ge=0)
    """Damaged samples that training goes on without; 0: the first one stops the run."""
    augment: AugmentConfig = AugmentConfig()
    """Augmentation of training samples."""


class LrScale(Frozen):
    """Factors on the learning rate of parts."""

    prototypes: float = Field(0.02, ge=0)
    """Rate of M: an Adam step at the full rate would move prototypes further than their norm."""
    head: float = Field(1.0, ge=0)
    """Rate of the adaptation head."""


class OptimConfig(Frozen):
    """AdamW with a cosine to zero over the whole run."""

    lr: float = Field(2e-5, gt=0)
    """Peak learning rate."""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """AdamW's betas."""
    eps: float = Field(1e-8, gt=0)
    """AdamW's epsilon."""
    warmup: int = Field(0, ge=0)
    """Optimizer steps in which the rate rises to its peak, before the cosine."""
    weight_decay: float = Field(0.01, ge=0)
    """On LoRA, attention and convolution matrices; none on M, norms and biases."""
    clip: float = Field(1.0, gt=0)
    """Largest global gradient norm."""
    ema: float | None = Field(None, gt=0, lt=1)
    """Decay, a step, of a running mean of the weights, which is then scored and exported."""
    lr_scale: LrScale = LrScale()
    """Rates of parts."""


class TrainConfig(Frozen):
    """The loop."""

    loss: Literal["silog", "ssi"] = "silog"
    """`silog`: 10 sqrt(mean d^2 - 0.85 mean(d)^2), metric depth; `ssi`: Eq. 3, free scale."""
    batch: int = Field(32, ge=1)
    """Global batch: samples per optimizer step over all ranks."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples of one forward pass on one rank; None: batch / ranks."""
    epochs: int = Field(50, ge=1)
    """Passes over the training split; the cosine ends at the last one."""
    max_steps: int | None = Field(None, ge=1)
    """Stop here and end the cosine here, whatever `epochs` says."""
    log_every: int = Field(20, ge=1)
    """Optimizer steps between progress lines."""
    eval_every: int = Field(1, ge=1)
    """Epochs between evaluations."""
    save_every: int = Field(1, ge=1)
    """Evaluations between checkpoints."""
    save_steps: int | None = Field(None, ge=1)
    """Also save every so many optimizer steps."""
    keep: int = Field(2, ge=1)
    """Checkpoints kept beside the best one."""
    patience: int = Field(5, ge=1)
    """Evaluations without a new minimum of `val/loss` before the run stops."""
    timeout: float = Field(1800.0, gt=0)
    """Seconds that a rank waits for the others before it gives up and says which are missing."""
    deterministic: bool = False
    """GPU kernels, and so runs, repeat to the last bit, more slowly; on CPUs they always do."""
    compile: bool = False
    """Compile the network: minutes at the start, faster steps, the same but for rounding."""
    max_skips: int = Field(10, ge=1)
    """Steps in a row, left out since a gradient is not finite, after which the run stops."""
    figures: int = Field(8, ge=0)
    """Fixed validation samples drawn at each evaluation."""


class TrackingConfig(Frozen):
    """Where the run is recorded beside its own folder."""

    mlflow: bool = True
    """Off: only the run folder is written."""
    uri: Annotated[str, AfterValidator(set_aside)] | None = None
    """MLflow store; None: MLFLOW_TRACKING_URI, else `sqlite:///mlflow.db` in the working folder.

    A password in it goes to MLFLOW_TRACKING_URI of this process and its children; the field keeps
    what may be shown."""
    experiment: str = "llm-mde"
    """MLflow experiment."""
    parent_run_id: str | None = None
    """MLflow run this one belongs to (set by sweeps)."""


class Config(Frozen):
    """One training run."""

    name: str = "reference"
    """Folder of the run below `runs`."""
    runs: AbsolutePath = Field(Path("runs"), validate_default=True)
    """Folder of all runs."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the sample order, augmentation, dropout and new weights."""
    model: ModelConfig = ModelConfig()
    """The network."""
    data: DataConfig = DataConfig()
    """The samples."""
    optim: OptimConfig = OptimConfig()
    """The optimizer."""
    train: TrainConfig = TrainConfig()
    """The loop."""
    tracking: TrackingConfig = TrackingConfig()
    """The tracker."""

    @field_validator("name")
    @classmethod
    def _one_folder(cls, value: str) -> str:
        if not value or value.startswith(".") or "/" in value or "\\" in value:
            raise ValueError("expected the name of one folder")
        return value

    @model_validator(mode="after")
    def _whole_micro_batches(self) -> "Config":
        micro = self.train.micro_batch
        if micro is not None and self.train.batch % micro:
            raise ValueError(
                f"train.batch {self.train.batch} is not a multiple of train.micro_batch {micro}"
            )
        return self

    @property
    def run_dir(self) -> Path:
        """Folder of this run."""
        return self.runs / self.name


def cache_folder() -> Path:
    """Where this user keeps what can be fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "llm-mde"


def tracking_uri(config: TrackingConfig) -> str:
    """The MLflow store of a run: the configured, else the environment's, else a sqlite file.

    Without credentials: `llm_mde.tracking.address` has the whole one.
    """
    named = config.uri or os.environ.get(URI) or f"sqlite:///{Path.cwd()}/mlflow.db"
    return redacted(named)
