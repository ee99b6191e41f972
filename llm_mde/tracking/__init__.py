"""Where the numbers of a run go: its folder and MLflow."""
