"""Run a search space through Ray Tune, each trial a child run in MLflow.

python tune/sweep.py --space tune/spaces/table5.yaml --config demo/sweep.yaml
"""

import sys

from llm_mde.cli import main

if __name__ == "__main__":
    sys.exit(main(["sweep", *sys.argv[1:]]))
