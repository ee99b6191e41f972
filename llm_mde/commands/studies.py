"""Runs of many runs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from llm_mde.commands.options import DS_CONFIG, Config, DsConfig, Json, Sets, say
from llm_mde.progress import progress

FAILED = 1
MAX_TRIALS = 500

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
    seeds: Annotated[
        int, typer.Option(min=1, help="Runs of each trial, under seeds that follow the base's.")
    ] = 1,
    searcher: Annotated[
        Literal["random", "grid", "optuna"] | None,
        typer.Option(
            help="Draw by chance, take every combination, or let Optuna learn where to look.",
            show_default="the space's, else random",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(min=1, help="Trials drawn by chance.", show_default="the space's, else 16"),
    ] = None,
    scheduler: Annotated[
        Literal["fifo", "asha", "median", "pbt"] | None,
        typer.Option(
            help="Who is stopped early: nobody, all but the best of each rung, those below the "
            "median; pbt: the worst go on from the best with other values.",
            show_default="the space's, else fifo",
        ),
    ] = None,
    max_trials: Annotated[
        int, typer.Option(min=1, help="Refuse a space of more trials.")
    ] = MAX_TRIALS,
    concurrent: Concurrent = None,
    gpus_per_trial: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs of a trial: a part of one, or several.", show_default="1"),
    ] = None,
    cpus_per_trial: Annotated[
        int | None, typer.Option(min=1, help="Cores of a trial.", show_default="an equal part")
    ] = None,
    address: Annotated[
        str | None,
        typer.Option(
            help="Ray cluster that runs already, as auto or HOST:PORT; its nodes see the same "
            "files.",
            show_default="this machine alone",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Only go on: an error where nothing was begun.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would run, and how long that takes.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Run a search space through Ray Tune and MLflow.

    The same command again goes on where it stopped; trials that are over do not run again. Ctrl-C
    once: trials save and end; twice: at once. Exit code 1 if a trial failed.
    """
    from llm_mde.studies.share import Share
    from llm_mde.studies.sweep_plan import begun, check_claim, plan_sweep

    search = {"searcher": searcher, "samples": samples, "scheduler": scheduler}
    planned = plan_sweep(
        space,
        base=config,
        tiny=tiny,
        sets=sets or [],
        ds_config=ds_config,
        search={name: value for name, value in search.items() if value is not None},
        seeds=seeds,
        max_trials=max_trials,
    )
    if resume:
        begun(planned)
    share = Share(concurrent, gpus_per_trial, cpus_per_trial)
    if dry_run:
        from llm_mde.studies.forecast import forecast

        check_claim(planned)
        seen = forecast(planned, share if address is None else Share())  # of this machine
        say(seen.payload(), seen.lines(), as_json=as_json)
        return 0
    from llm_mde.studies.sweep import run_sweep
    from llm_mde.studies.told import told

    base = planned.base.config
    about = told(base=base, tiny=tiny, sets=sets or [], ds_config=ds_config)
    done = run_sweep(planned, share=share, address=address, about={"space": str(space)} | about)
    say(done.payload(), done.said, as_json=as_json)
    return FAILED if any(row.error for row in done.board.rows) else 0


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
    from llm_mde.studies.experiments import run_all
    from llm_mde.studies.told import told

    about = told(base=config, tiny=tiny, sets=sets or [], ds_config=ds_config)
    done = run_all(planned, ds_config=ds_config, concurrent=concurrent, about=about)
    payload = {"experiments": [one.payload() for one in done]}
    say(payload, [line for one in done for line in one.lines()], as_json=as_json)
    return FAILED if any(one.errors for one in done) else 0


def compare(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Run folders; the others are measured against the first.", metavar="RUN"
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(help="All trials of a sweep or an experiment instead, the best one first."),
    ] = None,
    folder: Annotated[Path, typer.Option("--runs", help="Folder of the sweep's runs.")] = Path(
        "runs"
    ),
    shards: Annotated[
        str | None,
        typer.Option(help="Folder or URL written by pack.", show_default="the runs' own"),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Named key list of the shards.", show_default="what they validated on"),
    ] = None,
    protocol: Annotated[
        Literal["metric", "aligned_median", "aligned_affine", "paper"],
        typer.Option(help="What the terminal shows; the page has all."),
    ] = "metric",
    batch: Annotated[int, typer.Option(min=1, help="Images of one forward pass.")] = 8,
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures.")] = Path(
        "comparison"
    ),
    as_json: Json = False,
) -> None:
    """Compare runs: settings, scores, predictions.

    The settings that differ; scores on the same images, with the difference to the first run and
    its bootstrap interval over images; predictions side by side on one scale in metres. Writes one
    HTML page, with its pictures inside, and the pictures as PNG.
    """
    if bool(runs) == bool(sweep):
        raise typer.BadParameter("expected either run folders or --sweep NAME")
    from llm_mde.studies.runs import common_images, given, of_sweep

    members, missing = of_sweep(sweep, folder) if sweep else (given(runs or []), [])
    index = common_images(members, shards=shards, split=split)

    from llm_mde.studies.compare import compare as run_comparison

    with progress("compare", "image") as report:
        made, files = run_comparison(
            members,
            index,
            out=out,
            batch=batch,
            ranked=sweep is not None,
            notes=[f"left out, without an adapter: {', '.join(missing)}"] if missing else [],
            progress=report,
        )
    lines = [*made.lines(protocol), "", f"files: {' '.join(map(str, files))}"]
    say(made.payload(files), lines, as_json=as_json)


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
