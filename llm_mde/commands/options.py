"""Words that several commands understand, and how they say their result."""

import gc
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from llm_mde.errors import LlmMdeError
from llm_mde.launcher import launched_rank

MISTAKE, INTERRUPTED = 2, 130
DS_CONFIG = Path("launch/ds/zero1.json")

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


@contextmanager
def alike_on_all_ranks() -> Iterator[None]:
    """For what every rank checks: its error is said by rank 0 alone."""
    try:
        yield
    except LlmMdeError as error:
        if launched_rank():
            raise typer.Exit(MISTAKE) from error
        raise


@contextmanager
def importing() -> Iterator[None]:
    """For imports of torch and what stands on it: a quarter less time, without a look for garbage.

    It would go through a million new objects again and again, all of which stay.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def say(payload: dict[str, Any], lines: list[str], *, as_json: bool) -> None:
    """Print a result on stdout, for programs or for people."""
    print(json.dumps(payload) if as_json else "\n".join(lines), flush=True)
