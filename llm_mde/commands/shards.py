"""Raw scenes to shards, and a look at them."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm_mde.commands.options import MISTAKE, Jobs, Json, say
from llm_mde.progress import progress


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


def pack(
    sources: Annotated[
        list[Path],
        typer.Argument(help="Scenes, folders or zips of scenes, the .mat.", metavar="SOURCE"),
    ],
    out: Annotated[str, typer.Option(help="Folder or URL (s3://, gs://, hf://) for the shards.")],
    splits: Annotated[str, typer.Option(help="auto, official or scene.")] = "auto",
    stride: Annotated[int, typer.Option(min=1, help="Keep every n-th frame of a scene.")] = 1,
    depth_codec: Annotated[
        str, typer.Option(help="Lossless 16-bit depth: pco (fast) or png (portable).")
    ] = "pco",
    fill: Annotated[
        bool, typer.Option("--fill", help="Add depth without holes, by colorization.")
    ] = False,
    shard_size: Annotated[int, typer.Option(min=1, help="Frames of one shard.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the split by scene.")] = 0,
    on_corrupt: Annotated[
        Literal["skip", "raise"],
        typer.Option(help="What a damaged file does: it is skipped, or ends the run."),
    ] = "skip",
    max_lost: Annotated[
        float, typer.Option(min=0, max=1, help="Largest share of frames that may be skipped.")
    ] = 0.05,
    list_file: Annotated[
        Path | None, typer.Option("--list", help="Published list of synchronised pairs.")
    ] = None,
    rgb: Annotated[
        str | None, typer.Option(help="Any folder: its RGB files, as 'frame-{index}.color.jpg'.")
    ] = None,
    depth: Annotated[
        str | None, typer.Option(help="Its depth files, as '{scene}/frame-{index}.depth.png'.")
    ] = None,
    depth_scale: Annotated[
        float | None, typer.Option(help="Depth values a metre.", show_default="1000")
    ] = None,
    invalid: Annotated[
        str | None, typer.Option(help="Values that mean no reading.", show_default="0,65535")
    ] = None,
    intrinsics: Annotated[
        str | None, typer.Option(help="fx,fy,cx,cy of its RGB camera, pixels.", metavar="PIXELS")
    ] = None,
    jobs: Jobs = None,
    ray: Annotated[
        str | None, typer.Option(help="Pack on this Ray cluster: its address, auto or local.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would be packed, and what it takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Register NYU frames and write WebDataset shards.

    Depth is registered to the RGB pixels as the NYU toolbox does it, in millimetres, 0 where there
    is no reading. Zips are read in place. An interrupted run is continued by the same command.
    """
    from llm_mde.data.layout import PackSettings
    from llm_mde.data.sources import describe_pattern

    settings = PackSettings(
        splits=splits,
        depth_codec=depth_codec,
        shard_size=shard_size,
        stride=stride,
        seed=seed,
        fill=fill,
    )
    pattern = describe_pattern(
        rgb, depth, depth_scale=depth_scale, invalid=invalid, intrinsics=intrinsics
    )
    if dry_run:
        from llm_mde.data.estimate import estimate
        from llm_mde.data.folder import ShardFolder

        ShardFolder(out)  # refuses what could not be written

        planned = estimate(sources, settings, pattern=pattern, list_file=list_file, jobs=jobs)
        say(planned.payload(), planned.lines(), as_json=as_json)
        return

    from llm_mde.data.pack import pack as write

    with progress("pack", "frame") as report:
        done = write(
            sources,
            out=out,
            settings=settings,
            pattern=pattern,
            list_file=list_file,
            jobs=jobs,
            ray=ray,
            on_corrupt=on_corrupt,
            max_lost=max_lost,
            progress=report,
        )
    say(done.payload(), done.lines(), as_json=as_json)


def verify(
    shards: Annotated[str, typer.Argument(help="Folder or URL written by pack.", metavar="SHARDS")],
    decode: Annotated[
        bool, typer.Option("--decode/--no-decode", help="Also decode every picture.")
    ] = True,
    as_json: Json = False,
) -> int:
    """Read a shard folder whole and compare it with its index.

    Checksums, counts, key lists and splits are checked and samples are decoded; exit code 2 where
    anything is wrong.
    """
    from llm_mde.data.verify import verify as check

    with progress("verify", "sample") as report:
        done = check(shards, decode=decode, progress=report)
    say(done.payload(), done.lines(), as_json=as_json)
    return MISTAKE if done.problems else 0


def inspect(
    target: Annotated[str, typer.Argument(help="A shard, or one sample.", metavar="SHARD[:KEY]")],
    out: Annotated[Path | None, typer.Option(help="The picture.", show_default="KEY.png")] = None,
    as_json: Json = False,
) -> None:
    """Show a sample as a picture, with its metadata.

    RGB and depth side by side, in metres, grey where there is no reading.
    """
    from llm_mde.data.show import inspect as look

    seen = look(target, out=out)
    say(seen.payload(), seen.lines(), as_json=as_json)
