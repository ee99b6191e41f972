"""Runs of many runs."""

from pathlib import Path
from typing import Annotated

import typer

from llm_mde.commands.options import DS_CONFIG, Config, DsConfig, Json, Sets, say

FAILED = 1

Tiny = Annotated[
    bool, typer.Option("--tiny", help="The base is a tiny model: ranks as the space divides them.")
]
Concurrent = Annotated[
    int | None, typer.Option(min=1, help="Trials at once.", show_default="what fits")
]


def sweep(
    space: Annotated[Path, typer.Option(help="YAML of the search space; a file or recipe.")],
    config: Config = None,
    sets: Sets = None,
    ds_config: DsConfig = DS_CONFIG,
    tiny: Tiny = False,
    concurrent: Concurrent = None,
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


def experiment(
    names: Annotated[
        list[str],
        typer.Argument(
            help="few-shot, zero-shot, prompts, lora, sensitivity, all, or a recipe's YAML.",
            metavar="NAME",
        ),
    ],
    config: Config = None,
    sets: Sets = None,
    ds_config: DsConfig = DS_CONFIG,
    tiny: Tiny = False,
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each trial, under seeds that follow the base's.")
    ] = 1,
    test: Annotated[
        str | None,
        typer.Option(
            help="Key list to score on in place of an experiment's single one.",
            show_default="the experiment's own",
        ),
    ] = None,
    concurrent: Concurrent = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and what is done already.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run the paper's experiments and write its tables and figures.

    A trial is trained, then scored on the experiment's tests. The same command again goes on where
    it stopped. Exit code 1 if a trial failed.
    """
    from llm_mde.studies.agenda import plan_all

    planned = plan_all(
        names,
        base=config,
        tiny=tiny,
        sets=sets or [],
        ds_config=ds_config,
        seeds=seeds,
        test=test,
    )
    if dry_run:
        payload = {"experiments": [one.payload() for one in planned]}
        say(payload, [line for one in planned for line in one.lines()], as_json=as_json)
        return 0
    from llm_mde.studies.experiments import run_all, told

    about = told(base=config, tiny=tiny, sets=sets or [], ds_config=ds_config)
    done = run_all(planned, ds_config=ds_config, concurrent=concurrent, about=about)
    payload = {"experiments": [one.payload() for one in done]}
    say(payload, [line for one in done for line in one.lines()], as_json=as_json)
    return FAILED if any(one.errors for one in done) else 0


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
