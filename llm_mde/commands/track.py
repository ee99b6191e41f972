"""Runs in MLflow."""

from pathlib import Path
from typing import Annotated

import typer

from llm_mde.commands.options import Json, say

app = typer.Typer(help="Runs in MLflow.", no_args_is_help=True)


@app.command(epilog="Example: llm-mde track sync runs/nyu")
def sync(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", metavar="RUN")],
    uri: Annotated[
        str | None, typer.Option(help="MLflow store.", show_default="each run's own")
    ] = None,
    as_json: Json = False,
) -> None:
    """Send what the store does not have of runs.

    A run's folder holds its whole record; where the store was down or away, this fills it up. It
    may be repeated: nothing is sent twice. A run that is going on is left to itself.
    """
    from llm_mde.locks import training
    from llm_mde.tracking.sync import sync as run_sync

    synced = []
    for run in runs:
        with training(run.absolute()):  # which sends its own record
            synced.append(run_sync(run, uri=uri))
    say(
        {"runs": [one.payload() for one in synced]}, [one.line() for one in synced], as_json=as_json
    )
