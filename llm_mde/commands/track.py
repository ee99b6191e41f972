"""Runs in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from llm_mde.commands.options import Json, say

EXPERIMENT = "llm-mde"  # as tracking.experiment has it

app = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)


Uri = Annotated[str | None, typer.Option(help="MLflow store.", show_default="each run's own")]


@app.command(epilog="Example: llm-mde track sync runs/nyu")
def sync(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN")],
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Send what the store does not have of runs.

    A run's folder holds its whole record; where the store was down or away, this fills it up. It
    may be repeated: nothing is sent twice. A run that is going on is left to itself.
    """
    from llm_mde.tracking.sync import sync as run_sync

    synced = [run_sync(run, uri=uri) for run in runs]
    say(
        {"runs": [one.payload() for one in synced]}, [one.line() for one in synced], as_json=as_json
    )


def ui(
    uri: Annotated[
        str | None,
        typer.Option(
            help="MLflow store.", show_default="MLFLOW_TRACKING_URI, else mlflow.db in this folder"
        ),
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="Port.", show_default="5000, or a free one")
    ] = None,
    experiment: Annotated[str, typer.Option(help="Whose runs the links show.")] = EXPERIMENT,
    as_json: Json = False,
) -> None:
    """Show runs in the browser, for this machine alone.

    Starts MLflow's page and prints links to where runs are compared: the charts of all runs, those
    of the last sweep, and its trials side by side. Ctrl-C ends it. Where the store is a server,
    only the links are printed.
    """
    from llm_mde.tracking.ui import show

    show(
        uri,
        experiment=experiment,
        port=port,
        announce=lambda page: say(page.payload(), page.lines(), as_json=as_json),
    )


@app.command(epilog="Example: llm-mde track register runs/nyu --name depth")
def register(
    run: Annotated[str, typer.Argument(help="A run folder, or a run's id in MLflow.")],
    name: Annotated[str, typer.Option(help="The registered model.")] = "llm-mde",
    uri: Uri = None,
    as_json: Json = False,
) -> None:
    """Make a version of a registered model from a run's adapter.

    predict, eval, export and DepthModel.from_pretrained take it as models:/NAME/VERSION,
    models:/NAME/latest or models:/NAME@ALIAS, from the store in MLFLOW_TRACKING_URI.
    """
    from llm_mde.inference.card import CARD
    from llm_mde.tracking.registry import register as run_register

    made = run_register(run, name=name, uri=uri, card=CARD)
    say(made.payload(), made.lines(), as_json=as_json)
