"""Where MLflow's store is; looked at before anything heavy is loaded."""

from llm_mde.config import TrackingConfig, tracking_uri
from llm_mde.credentials import whole
from llm_mde.errors import ConfigError

DATABRICKS = ("databricks", "uc")  # MLflow's two names of stores that are no addresses
# A new file: MLflow would offer to overwrite one that is there.
MIGRATED = "sqlite:///migrated.db"
MIGRATE = f"mlflow migrate-filestore --source %s --target {MIGRATED}"


def address(config: TrackingConfig) -> str:
    """What MLflow is given, credentials and all: not to be shown.

    Raises:
        ConfigError: a folder of files, which MLflow no longer takes; credentials that are needed
            and not at hand.
    """
    shown = tracking_uri(config)
    scheme, separator, rest = shown.partition(":")
    if scheme == "file" or not (separator or scheme.startswith(DATABRICKS)):
        folder = rest.removeprefix("//localhost").replace("///", "/") if separator else shown
        raise ConfigError(
            f"tracking.uri {shown}: a folder of files, which MLflow refuses since 3.13; move what "
            f"it holds by '{MIGRATE % folder}', then --set tracking.uri={MIGRATED}"
        )
    return whole(shown)
