r"""Train on shards written by `llm-mde pack`.

    deepspeed launch/train.py --ds_config launch/ds/zero1.json --config launch/nyu.yaml \
        --set data.shards=DIR

`torchrun --nproc-per-node N launch/train.py ...`, `srun python launch/train.py ...` and plain
`python launch/train.py ...` start the same program.
"""

import sys

from llm_mde.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
