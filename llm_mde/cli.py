"""The command table of `llm-mde`: words to calls; a command imports what it needs when it runs."""

import atexit
import os
import re
import sys
from typing import Annotated

import typer

from llm_mde import __version__
from llm_mde.commands import models, shards, studies, track
from llm_mde.commands.options import INTERRUPTED, MISTAKE
from llm_mde.errors import LlmMdeError
from llm_mde.launcher import launched_rank
from llm_mde.progress import log_to_stderr

app = typer.Typer(
    name="llm-mde",
    help="LLM-MDE: depth of one image from a LoRA ViT and BERT, from NYU raw dumps to an adapter.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

GROUP = "track"
LAUNCHER_WORD = re.compile(r"--local[_-]rank=\d+")


def main(argv: list[str] | None = None) -> int:
    """Run one command: 0 done, 2 the user's mistake, 75 saved: requeue me, 130 interrupted.

    1 is a command's own: an experiment lost a row, a run its other ranks.
    """
    log_to_stderr()
    words = sys.argv[1:] if argv is None else argv
    # The DeepSpeed launcher puts this first, even before the command; LOCAL_RANK says the same.
    words = [word for word in words if not LAUNCHER_WORD.fullmatch(word)]
    known = {info.name for info in app.registered_commands} | {GROUP}
    command = " ".join(["llm-mde", *(word for word in words[:1] if word in known)])
    try:
        code = app(args=words or ["--help"], prog_name="llm-mde", standalone_mode=False)
    except LlmMdeError as error:
        if not error.said_elsewhere and (launched_rank() == 0 or error.met_alone):
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
    """The console command; its process ends without the seconds in which Python frees torch."""
    codes: list[int] = []
    atexit.register(_end, codes)  # the first to be registered is the last to be called
    codes.append(main())
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    for code in codes:  # none after an error of ours
        os._exit(code)


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


COMMANDS = (
    ("synth", shards.synth, "llm-mde synth raw --scenes 20 --frames 10"),
    ("pack", shards.pack, "llm-mde pack /data/nyu_raw --out /data/nyu_shards"),
    ("verify", shards.verify, "llm-mde verify /data/nyu_shards"),
    ("inspect", shards.inspect, "llm-mde inspect nyu_shards/train-000000.tar:den_0001-000012"),
    (
        "train",
        models.train,
        "deepspeed --module llm_mde train --ds_config launch/ds/zero1.json "
        "--config launch/nyu.yaml --set data.shards=/data/nyu_shards",
    ),
    ("doctor", models.doctor, "torchrun --nproc-per-node 2 -m llm_mde doctor --dist"),
    ("eval", models.evaluate, "llm-mde eval runs/nyu --shards /data/nyu --split val"),
    ("predict", models.predict, "llm-mde predict room.jpg --adapter runs/nyu/adapter --out depth"),
    ("export", models.export, "llm-mde export onnx runs/nyu/adapter --out nyu.onnx"),
    (
        "sweep",
        studies.sweep,
        "llm-mde sweep --space tune/spaces/table5.yaml --config demo/sweep.yaml",
    ),
    (
        "experiment",
        studies.experiment,
        "llm-mde experiment few-shot lora --config demo/sweep.yaml --tiny --seeds 3",
    ),
    ("compare", studies.compare, "llm-mde compare runs/a runs/b --split val --out comparison"),
    ("ui", track.ui, "llm-mde ui --uri sqlite:///mlflow.db --experiment llm-mde"),
    ("demo", studies.demo, "llm-mde demo --out demo"),
)
for name, function, example in COMMANDS:
    app.command(name=name, epilog=f"Example: {example}")(function)
app.add_typer(track.app, name=GROUP)
