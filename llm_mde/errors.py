"""Errors that a user can cause; `llm_mde.cli.main` prints them as one line and exits with 2.

A message says where, what was expected, what came and what to do. Everything else that is raised is
a bug of ours and keeps its traceback.
"""


class LlmMdeError(Exception):
    """Base of every error a user can cause."""

    said_elsewhere = False
    """Another rank met it and says it; on this rank it only ends the program."""
    met_alone = False
    """One rank may be the only one to know of it; all else is wrong on all of them."""


class ConfigError(LlmMdeError):
    """A setting, a command-line word or a DeepSpeed JSON that cannot be used as given."""


class DataError(LlmMdeError):
    """A raw scene, shard, image or folder that is missing, broken or of the wrong kind."""

    met_alone = True


class StoreError(DataError):
    """A store of files that cannot be reached, or refuses; what lies in it may be whole."""


class CheckpointError(LlmMdeError):
    """A checkpoint, adapter or backbone that is missing, damaged or made for another model."""


class MemoryFullError(LlmMdeError):
    """A GPU without room for what training needs."""

    met_alone = True
