"""The command table of `llm-mde`: words to calls; a command imports what it needs when it runs."""

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_mde import __version__
from llm_mde.errors import DataError, LlmMdeError
from llm_mde.launcher import launched_rank
from llm_mde.progress import log_to_stderr, progress

MISTAKE, INTERRUPTED = 2, 130

app = typer.Typer(
    name="llm-mde",
    help="LLM-MDE: depth of one image from a LoRA ViT and BERT, from NYU raw dumps to an adapter.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

DS_CONFIG = Path("launch/ds/zero2.json")
LAUNCHER_WORD = re.compile(r"--local[_-]rank=\d+")

Config = Annotated[
    Path | None, typer.Option(help="YAML of differences from the reference run; a file or recipe.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting; may be repeated, the last one wins.", metavar="A.B=C"),
]
DsConfig = Annotated[
    Path, typer.Option("--ds_config", "--ds-config", help="DeepSpeed's JSON; a file or recipe.")
]
Jobs = Annotated[int | None, typer.Option(min=1, help="Processes.", show_default="one a core")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 done, 2 the user's mistake, 75 saved: requeue me, 130 interrupted."""
    log_to_stderr()
    words = sys.argv[1:] if argv is None else argv
    # The DeepSpeed launcher puts this first, even before the command; LOCAL_RANK says the same.
    words = [word for word in words if not LAUNCHER_WORD.fullmatch(word)]
    known = {info.name for info in app.registered_commands}
    command = " ".join(["llm-mde", *(word for word in words[:1] if word in known)])
    try:
        code = app(args=words or ["--help"], prog_name="llm-mde", standalone_mode=False)
    except LlmMdeError as error:
        # What is wrong with data may be known to one rank alone; all else is wrong on all of them.
        if launched_rank() == 0 or isinstance(error, DataError):
            print(f"{command}: {error}", file=sys.stderr)
        return MISTAKE
    except typer.TyperException as error:
        if launched_rank() == 0:
            problem = error.format_message().rstrip(".")
            print(f"{command}: {problem}; see '{command} --help'", file=sys.stderr)
        return error.exit_code
    if code == INTERRUPTED and launched_rank() == 0:  # typer makes it of KeyboardInterrupt
        print(f"{command}: interrupted", file=sys.stderr)
    return code if isinstance(code, int) else 0


def run() -> None:
    """The console command."""
    sys.exit(main())


@contextmanager
def _alike_on_all_ranks() -> Iterator[None]:
    """For what every rank checks: its error is said by rank 0 alone."""
    try:
        yield
    except LlmMdeError as error:
        if launched_rank():
            raise typer.Exit(MISTAKE) from error
        raise


def _say(payload: dict[str, Any], lines: list[str], as_json: bool) -> None:
    print(json.dumps(payload) if as_json else "\n".join(lines))


def _version(wanted: bool) -> None:
    if wanted:
        print(f"llm-mde {__version__}")
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command(name="synth", epilog="Example: llm-mde synth raw --scenes 20 --frames 10")
def synth(
    out: Annotated[Path, typer.Argument(help="Folder for the scenes.", metavar="OUT")],
    scenes: Annotated[int, typer.Option(min=1, help="Number of rooms.")] = 20,
    frames: Annotated[int, typer.Option(min=1, help="Frames of each room.")] = 10,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same bytes.")] = 0,
    truncate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of frames with a file cut short, 0 to 1.")
    ] = 0.0,
    jobs: Jobs = None,
) -> None:
    """Generate raw Kinect scenes of furnished rooms.

    They are written as the recorder of NYU Depth V2 writes: disparity, RGB and accelerometer files,
    640x480 pixels.
    """
    from llm_mde.nyu.synth import synth as generate

    with progress("synth", "scene") as report:
        generate(
            out,
            scenes=scenes,
            frames=frames,
            seed=seed,
            truncate=truncate,
            jobs=jobs,
            progress=report,
        )
    print(f"{scenes} scenes of {frames} frames in {out}")


@app.command(name="pack", epilog="Example: llm-mde pack /data/nyu_raw --out /data/nyu_shards")
def pack(
    sources: Annotated[
        list[Path], typer.Argument(help="Scenes, folders of scenes, zips.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the shards.")],
    splits: Annotated[str, typer.Option(help="auto, official or scene.")] = "auto",
    depth_codec: Annotated[str, typer.Option(help="Lossless format of 16-bit depth, mm.")] = "png",
    shard_size: Annotated[int, typer.Option(min=1, help="Samples of one shard.")] = 256,
    stride: Annotated[int, typer.Option(min=1, help="Keep every n-th synchronised frame.")] = 1,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by scene.")] = 0,
    jobs: Jobs = None,
    as_json: Json = False,
) -> None:
    """Register NYU raw scenes and write WebDataset shards.

    Depth is registered to the RGB pixels as the NYU toolbox does it, in millimetres, 0 where there
    is no reading. Zips are read in place.
    """
    from llm_mde.data.pack import pack as write

    with progress("pack", "frame") as report:
        done = write(
            sources,
            out=out,
            splits=splits,
            depth_codec=depth_codec,
            shard_size=shard_size,
            stride=stride,
            seed=seed,
            jobs=jobs,
            progress=report,
        )
    payload = {
        "out": str(done.out),
        "samples": done.counts,
        "skipped": [vars(skipped) for skipped in done.skipped],
        "already_packed": done.already_packed,
    }
    _say(payload, done.lines(), as_json)


@app.command(
    name="train",
    epilog="Example: deepspeed --module llm_mde train --ds_config launch/ds/zero2.json "
    "--config launch/nyu.yaml --set data.shards=/data/nyu_shards",
)
def train(
    config: Config = None,
    ds_config: DsConfig = DS_CONFIG,
    sets: Sets = None,
    resume: Annotated[
        str, typer.Option(help="auto (newest good checkpoint), never, or a checkpoint folder.")
    ] = "auto",
) -> int:
    """Train under DeepSpeed, by python, torchrun, deepspeed or srun.

    Exit code 75 means: stopped by a signal and saved; the same command goes on.
    """
    from llm_mde.data.index import open_index
    from llm_mde.recipes import load

    with _alike_on_all_ranks():  # and before the seconds that torch takes to import
        settings = load(config, sets=sets or [])
        data = settings.data
        if data.shards is not None:
            open_index(data.shards, data.train_split)
            open_index(data.shards, data.val_split)

    from llm_mde.inference.adapter import save
    from llm_mde.training.train import train as run_training

    return run_training(settings, ds_config, resume=resume, export=save)


@app.command(name="eval", epilog="Example: llm-mde eval runs/nyu --shards /data/nyu --split val")
def evaluate(
    source: Annotated[
        Path, typer.Argument(help="A run folder or an adapter folder.", metavar="RUN_OR_ADAPTER")
    ],
    shards: Annotated[Path, typer.Option(help="Folder written by pack.")],
    split: Annotated[str, typer.Option(help="Named key list of the shards.")] = "test",
    batch: Annotated[int, typer.Option(min=1, help="Images of one forward pass.")] = 8,
    as_json: Json = False,
) -> None:
    """Score an adapter on a split under every protocol.

    Errors are in metres (abs_rel, rmse_log and deltas without unit), beside two baselines fitted on
    the split `train`: its median depth and its mean depth map. Runs on one or several ranks.
    """
    from llm_mde.data.index import open_index

    with _alike_on_all_ranks():
        index, train_index = open_index(shards, split), open_index(shards, "train")

    from llm_mde.inference.score import score

    scores = score(source, index, train_index=train_index, batch=batch)
    if scores is not None:  # rank 0
        _say(scores.payload(), scores.lines(), as_json)


@app.command(
    name="predict",
    epilog="Example: llm-mde predict room.jpg --adapter runs/nyu/adapter --out depth",
)
def predict(
    images: Annotated[list[Path], typer.Argument(help="Image files.", metavar="IMAGE")],
    adapter: Annotated[Path, typer.Option(help="Adapter folder or run folder.")],
    out: Annotated[Path, typer.Option(help="Folder for the depth maps.")],
    as_json: Json = False,
) -> None:
    """Write depth maps of image files.

    For each image a 16-bit PNG in millimetres of the image's size, and a coloured PNG with a legend
    in metres.
    """
    from llm_mde.inference.predict import predict as run_prediction

    with progress("predict", "image") as report:
        written = run_prediction(images, adapter=adapter, out=out, progress=report)
    lines = [f"{made.image}: {made.depth}, {made.figure}" for made in written]
    _say({"predictions": [made.payload() for made in written]}, lines, as_json)


@app.command(
    name="sweep",
    epilog="Example: llm-mde sweep --space tune/spaces/table5.yaml --config demo/sweep.yaml",
)
def sweep(
    space: Annotated[Path, typer.Option(help="YAML of the search space; a file or recipe.")],
    config: Config = None,
    sets: Sets = None,
    ds_config: DsConfig = DS_CONFIG,
    tiny: Annotated[
        bool,
        typer.Option("--tiny", help="The base is a tiny model: ranks as the space divides them."),
    ] = False,
    concurrent: Annotated[
        int | None, typer.Option(min=1, help="Trials at once.", show_default="what fits")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run a search space through Ray Tune and MLflow."""
    from llm_mde.studies.sweep import sweep as run_sweep

    board = run_sweep(
        space,
        base=config,
        tiny=tiny,
        sets=sets or [],
        ds_config=ds_config,
        concurrent=concurrent,
    )
    _say(board.payload(), board.lines(), as_json)


@app.command(name="demo", epilog="Example: llm-mde demo --out demo")
def demo(
    out: Annotated[Path, typer.Option(help="Folder for all it writes.")] = Path("demo"),
    seed: Annotated[int, typer.Option(min=0, help="Seed of rooms and training.")] = 0,
    small: Annotated[
        bool, typer.Option("--small", help="A few frames and steps: does it run at all?")
    ] = False,
) -> int:
    """Run the whole chain on generated rooms.

    synth, pack, train, eval, predict, then a table of scores; exit code 1 if nothing was learnt.
    """
    from llm_mde.studies.demo import demo as run_demo

    return run_demo(out, seed=seed, small=small)
