"""The commit of this package's code, where it lies in a clone."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from llm_mde import __version__

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Commit:
    """What is checked out."""

    sha: str
    """40 hexadecimal digits."""
    short: str
    """As git shortens it, with `-dirty` where files were changed since."""

    @property
    def dirty(self) -> bool:
        """Whether files were changed since."""
        return self.short.endswith("-dirty")


def commit() -> Commit | None:
    """The commit; None where the package is installed without a clone."""
    try:
        # First: rev-parse would find the commit of whatever clone an environment lies in.
        _git("ls-files", "--error-unmatch", "cli.py")
        short = _git("describe", "--always", "--dirty", "--exclude=*")
        return Commit(_git("rev-parse", "HEAD"), short)
    except (OSError, subprocess.CalledProcessError):
        return None


def version() -> str:
    """The version, and the commit where there is one."""
    found = commit()
    return f"{__version__}, commit {found.short}" if found else __version__


def _git(*words: str) -> str:
    command = ["git", "-C", str(PACKAGE), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
