"""One rank on this machine's device, in a process of its own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing

from llm_mde import dist


def run_alone(fn: Callable[..., Any], *args: Any, out: Path, deterministic: bool = False) -> Any:
    """What fn(*args) returns in a fresh process that has joined as the only rank, through `out`.

    `fn` lives at the top of a module, so that the process can find it.
    """
    torch.multiprocessing.spawn(_enter, (fn, args, out, deterministic))
    return torch.load(out, weights_only=False)


def _enter(
    _: int, fn: Callable[..., Any], args: tuple[Any, ...], out: Path, deterministic: bool
) -> None:
    ranks = dist.join(deterministic=deterministic)
    torch.save(fn(*args), out)
    dist.leave(ranks)
