"""Settings in few letters, for tables and figures."""

import json
from typing import Any

from llm_mde.axis import number

UNSET = ""  # a path that a trial leaves as the base has it
NAMES = {UNSET: "base", None: "none", True: "true", False: "false"}


def label(value: Any) -> str:
    """A setting's value; numbers to four digits, 0.00002 as 2e-5."""
    if isinstance(value, float):
        return number(value)
    if isinstance(value, list | tuple):
        return ",".join(label(item) for item in value)
    if value is None or isinstance(value, bool) or value == UNSET:
        return NAMES[value]
    return value if isinstance(value, str) else json.dumps(value, default=str, sort_keys=True)


def identity(value: Any) -> str:
    """Text that is the same for equal settings, whatever the type of number or sequence."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return repr(float(value))
    return json.dumps(value, default=str, sort_keys=True)
