"""Runs of many runs."""

from pathlib import Path
from typing import Annotated

import typer

from llm_mde.commands.options import DS_CONFIG, Config, DsConfig, Json, Sets, say


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
    say(board.payload(), board.lines(), as_json=as_json)


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
