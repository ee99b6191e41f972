"""Pack raw NYU Depth V2 (folders or the downloaded zips, read in place) into tar shards.

    python shards/pack_nyu.py /data/nyu_raw --out /data/nyu_shards

The format is described in shards/README.md.
"""

import sys

from llm_mde.cli import main

if __name__ == "__main__":  # worker processes import this file again
    sys.exit(main(["pack", *sys.argv[1:]]))
