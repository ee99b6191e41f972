"""Training, scores and depth maps."""

import time
from pathlib import Path
from typing import Annotated, Literal

import typer

from llm_mde.commands.options import (
    DS_CONFIG,
    Config,
    DsConfig,
    Json,
    Sets,
    alike_on_all_ranks,
    importing,
    say,
)
from llm_mde.progress import progress, seconds


def train(
    config: Config = None,
    ds_config: DsConfig = DS_CONFIG,
    sets: Sets = None,
    resume: Annotated[
        str, typer.Option(help="auto (newest good checkpoint), never, or a checkpoint folder.")
    ] = "auto",
    exit_after: Annotated[
        str | None,
        typer.Option(help="Save and exit with 75 after this time, as 3h50m.", metavar="TIME"),
    ] = None,
    deterministic: Annotated[
        bool,
        typer.Option(
            "--deterministic",
            help="--set train.deterministic=true: GPUs repeat a run to the last bit.",
        ),
    ] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, say what it takes, write nothing."),
    ] = False,
    change_settings: Annotated[
        bool,
        typer.Option(
            "--change-settings",
            help="Go on with other settings of optimizer, augmentation or dropout.",
        ),
    ] = False,
) -> int:
    """Train under DeepSpeed, by python, torchrun, deepspeed or srun.

    Exit code 75 means: stopped by a signal or --exit-after, and saved; the same command goes on.
    Leave a scheduler's limit room for an evaluation and a save.
    """
    began = time.monotonic()
    try:
        deadline = None if exit_after is None else began + seconds(exit_after)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--exit-after") from error
    from llm_mde.data.index import open_index
    from llm_mde.recipes import load
    from llm_mde.tracking.address import address

    with alike_on_all_ranks():  # and before the seconds that torch takes to import
        sets = [*(sets or []), *["train.deterministic=true"] * deterministic]
        settings = load(config, sets=sets)
        if settings.tracking.mlflow:
            address(settings.tracking)
        data = settings.data
        if data.shards is not None:
            open_index(data.shards, data.train_split)
            open_index(data.shards, data.val_split)

    with importing():
        from llm_mde.inference.adapter import save
        from llm_mde.training.train import train as run_training

    return run_training(
        settings,
        ds_config,
        resume=resume,
        export=save,
        deadline=deadline,
        dry_run=dry_run,
        changes=change_settings,
    )


def doctor(
    distributed: Annotated[
        bool, typer.Option("--dist", help="Also an all-reduce over the ranks of the launcher.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Look at what training needs.

    Versions, the torch and torchvision pair, compiler, devices, disk, tracking store, hub cache.
    Exit code 1 if something is amiss.
    """
    with importing():
        from llm_mde.training.doctor import examine

    report = examine(distributed=distributed)
    if report is None:  # not rank 0
        return 0
    say(report.payload(), report.lines(), as_json=as_json)
    return 0 if report.ok else 1


def evaluate(
    source: Annotated[
        Path,
        typer.Argument(
            help="A run folder, an adapter folder, or models:/NAME/VERSION.",
            metavar="RUN_OR_ADAPTER",
        ),
    ],
    shards: Annotated[str, typer.Option(help="Folder or URL written by pack.")],
    split: Annotated[str, typer.Option(help="Named key list of the shards.")] = "test",
    baselines: Annotated[
        str, typer.Option(help="Named key list whose depths make the baselines.")
    ] = "train",
    batch: Annotated[int, typer.Option(min=1, help="Images of one forward pass.")] = 8,
    disk_cache: Annotated[
        Path | None, typer.Option(help="Local folder that keeps samples of a URL, as in training.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Score an adapter on a split under every protocol.

    Errors are in metres (abs_rel, rmse_log and deltas without unit), beside two baselines: the
    median of the training depths and their mean map. Runs on one or several ranks.
    """
    from llm_mde.data.index import open_index

    with alike_on_all_ranks():
        index, train_index = open_index(shards, split), open_index(shards, baselines)

    with importing():
        from llm_mde.inference.score import score

    scores = score(source, index, train_index=train_index, batch=batch, cache=disk_cache)
    if scores is not None:  # rank 0
        say(scores.payload(), scores.lines(), as_json=as_json)


def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE")],
    adapter: Annotated[Path, typer.Option(help="Adapter or run folder, or models:/NAME/VERSION.")],
    out: Annotated[Path, typer.Option(help="Folder for the depth maps.")],
    as_json: Json = False,
) -> None:
    """Write depth maps of image files.

    For each image a 16-bit PNG in millimetres of the image's size, and a coloured PNG with a legend
    in metres.
    """
    with importing():
        from llm_mde.inference.predict import predict as run_prediction

    with progress("predict", "image") as report:
        written = run_prediction(images, adapter=adapter, out=out, progress=report)
    lines = [f"{made.image}: {made.depth}, {made.figure}" for made in written]
    say({"predictions": [made.payload() for made in written]}, lines, as_json=as_json)


def export(
    kind: Annotated[
        Literal["merge", "onnx", "pt2"],
        typer.Argument(help="merge: folder with everything; onnx, pt2: one file.", metavar="KIND"),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="A run folder, an adapter folder, or models:/NAME/VERSION.",
            metavar="RUN_OR_ADAPTER",
        ),
    ],
    out: Annotated[Path, typer.Option(help="File, or folder for merge; must not exist.")],
    as_json: Json = False,
) -> None:
    """Write the whole model for other programs.

    Adapters are merged into the weights.

    What was written is opened again and compared with the live model on a few images; the largest
    difference in metres is printed, and above its bound nothing is kept. onnx needs
    pip install 'llm-mde[export]'.
    """
    with importing():
        from llm_mde.inference.export import export as run_export

    made = run_export(source, out, kind=kind)
    say(made.payload(), made.lines(), as_json=as_json)
