"""What a launcher tells a process before it joins its peers; no torch, so that it costs nothing."""

import os


def launched_rank() -> int:
    """This process's rank as deepspeed, torchrun or srun gave it; 0 without a launcher."""
    slurm_step = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1
    fallback = os.environ.get("SLURM_PROCID", "0") if slurm_step else "0"
    return int(os.environ.get("RANK") or fallback)
