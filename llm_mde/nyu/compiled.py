"""Loops over pixels as machine code (numba), kept on disk where a folder can be written."""

from collections.abc import Callable
from typing import Any

from numba import njit


def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as machine code, made at its first call and kept on disk for later processes.

    Sums and products are done in the written order, so they are IEEE float64 on every machine.
    """
    try:
        return njit(cache=True, error_model="numpy")(function)
    except RuntimeError:  # neither the package nor the user's cache folder can be written
        return njit(error_model="numpy")(function)
