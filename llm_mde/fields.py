"""What the configuration tree is made of: kinds of values, and the base of its nodes."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from llm_mde.credentials import redacted


def _absolute(path: Path) -> Path:
    try:
        return path.expanduser().absolute()
    except RuntimeError as error:  # `~name` of a user who does not exist
        raise ValueError(f"expected a path, {path.parts[0]} has no home folder") from error


def _folder_or_url(value: object) -> object:
    """An absolute path for a path; a URL as it is."""
    if not isinstance(value, str | Path) or "://" in str(value):
        return value
    return str(_absolute(Path(value)))


def _no_credentials(url: str) -> str:
    if redacted(url) != url:
        raise ValueError("expected a URL without credentials, which go into the environment")
    return url


Count = Annotated[int, Field(ge=1)]
Beta = Annotated[float, Field(ge=0, lt=1)]
Zoom = Annotated[float, Field(ge=1)]
AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
"""Ray and launchers change the working folder, so a path is made absolute when it is read."""
FolderOrUrl = Annotated[str, BeforeValidator(_folder_or_url), AfterValidator(_no_credentials)]


class Frozen(BaseModel):
    """Base of every node: immutable, unknown keys are errors, docstrings describe the fields."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )
