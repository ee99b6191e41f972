"""What may be shown of an address, and where the rest of it is kept: in the environment alone.

A password written into an address would end up in logs, configuration echoes, artifacts and the
pickles of child processes. So a configuration holds the address without it; the whole one lies in
MLFLOW_TRACKING_URI, where MLflow looks for it and children inherit it.
"""

import os
import re

from llm_mde.errors import ConfigError

HIDDEN = "***"
URI = "MLFLOW_TRACKING_URI"
# As SQLAlchemy reads one, a password may hold a slash; as people write one, an at sign.
PASSWORD = re.compile(r"(?<=://)[^\s/:@'\"]*:(?:[^\s/'\"]*|[^\s@'\"]*)@")
TOKEN = re.compile(r"(https?://)[^\s/:@'\"]+@")
PARAMETER = re.compile(
    r"(?<=[?&;])([^\s=&;'\"]*(?:password|passwd|pwd|token|secret|signature|key)[^\s=&;'\"]*=)"
    r"[^\s&;'\"]+",
    re.IGNORECASE,
)


def redacted(text: str) -> str:
    """A text without the passwords and tokens in its addresses."""
    hidden = PASSWORD.sub(f"{HIDDEN}@", text)
    hidden = TOKEN.sub(rf"\1{HIDDEN}@", hidden)
    return PARAMETER.sub(rf"\1{HIDDEN}", hidden)


def set_aside(uri: str) -> str:
    """What may be shown of a tracking address; one with credentials goes to the environment."""
    shown = redacted(uri)
    if shown != uri:
        os.environ[URI] = uri
    return shown


def whole(shown: str) -> str:
    """The address that `set_aside` gave back as `shown`.

    Raises:
        ConfigError: its credentials are not in the environment.
    """
    if HIDDEN not in shown:
        return shown
    named = os.environ.get(URI, "")
    if redacted(named) != shown:
        raise ConfigError(
            f"tracking.uri {shown}: its credentials are never written down; say the whole address "
            f"again, in {URI} or --set tracking.uri=..."
        )
    return named
