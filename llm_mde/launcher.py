"""What a launcher tells a process before it joins its peers; no torch, so that it costs nothing."""

import os
import re
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from llm_mde.errors import ConfigError

# In the command lines of launchers, which start modules of their own on each node, and of the
# workers that Ray gives its tasks to.
LAUNCHER = re.compile(
    r"(.*/)?(deepspeed|torchrun)|deepspeed\.launcher\..*|torch\.distributed\.run|ray::.*"
)
VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


REACH_S = 5.0  # for a connection to a cluster


def check_cluster(address: str, *, option: str, otherwise: str) -> None:
    """Somebody listens at HOST:PORT, where Ray itself would try for minutes.

    Raises:
        ConfigError: nobody does; it names the option and what else there is to do.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdecimal() or "/" in host:  # auto, local, ray://...
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_S).close()
    except (OSError, ValueError, OverflowError) as error:  # ValueError: a name that cannot be one
        raise ConfigError(
            f"{option} {address}: no Ray cluster answers there ({error}); start one with 'ray "
            f"start --head', or {otherwise}"
        ) from error


def launched_rank() -> int:
    """This process's rank as deepspeed, torchrun or srun gave it; 0 without a launcher."""
    fallback = os.environ.get("SLURM_PROCID", "0") if _slurm_step(os.environ) else "0"
    return int(os.environ.get("RANK") or fallback)


def _slurm_step(found: Mapping[str, str]) -> bool:
    # An allocation's own shell has SLURM's rank variables too; only a step of several tasks counts.
    return int(found.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def launcher_variables(found: Mapping[str, str]) -> dict[str, str]:
    """The launcher variables as `found`, those that are missing filled in.

    deepspeed and torchrun set all of them, srun has its own names, plain python has none.

    Raises:
        ConfigError: several ranks, and nothing says where they meet.
    """
    guess = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    if "RANK" not in found and _slurm_step(found):
        job, step = int(found["SLURM_JOB_ID"]), int(found["SLURM_STEP_ID"])
        guess = {
            "RANK": found["SLURM_PROCID"],
            "WORLD_SIZE": found["SLURM_STEP_NUM_TASKS"],
            "LOCAL_RANK": found["SLURM_LOCALID"],
            "MASTER_ADDR": first_host(found["SLURM_STEP_NODELIST"]),
            "MASTER_PORT": str(12000 + (job + step) % 20000),  # below Linux's ephemeral ports
        }
    variables = {name: found.get(name) or guess.get(name, "") for name in VARIABLES}
    if not variables["MASTER_PORT"]:
        if variables["WORLD_SIZE"] != "1":
            raise ConfigError(
                f"MASTER_PORT: expected the port of rank 0 of {variables['WORLD_SIZE']} ranks, "
                "got nothing; start with deepspeed, torchrun or srun"
            )
        variables["MASTER_PORT"] = str(free_port())
    return variables


def threads(found: Mapping[str, str], *, cores: int) -> int:
    """CPU cores for each rank of this host, of those that a process may use; at least one.

    torchrun and deepspeed share them between their ranks. srun says how many a task has, and most
    often binds it to them; where it was not asked for any, tasks share those of the node.
    """
    ranks = next(found[n] for n in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE") if n in found)
    if "LOCAL_WORLD_SIZE" not in found and "LOCAL_SIZE" not in found and _slurm_step(found):
        if "SLURM_CPUS_PER_TASK" in found:
            return min(cores, int(found["SLURM_CPUS_PER_TASK"]))
        counts = re.sub(r"\(x\d+\)", "", found.get("SLURM_STEP_TASKS_PER_NODE", ranks))  # 4(x2),3
        ranks = max(counts.split(","), key=int)
    return max(1, cores // int(ranks))


def first_host(nodelist: str) -> str:
    """`gpu01` of SLURM's `gpu[01-04,07],big3`: the node of task 0."""
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])+", nodelist)
    return re.sub(r"\[([^\],-]+)[^\]]*\]", r"\1", first[0] if first else nodelist)


def alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that nobody has waited for yet does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@dataclass(frozen=True)
class Launcher:
    """A process that started this one as a rank."""

    process: psutil.Process

    def alive(self) -> bool:
        """Whether it still runs."""
        return alive(self.process)


def launchers() -> list[Launcher]:
    """Of the processes above this one those of deepspeed, torchrun and Ray."""
    return [Launcher(one) for one in psutil.Process().parents() if _launches(one)]


def _launches(process: psutil.Process) -> bool:
    try:
        return any(LAUNCHER.fullmatch(word) for word in process.cmdline()[:4])
    except psutil.Error:
        return False


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0))


def peak_memory() -> int:
    """Largest resident memory of this process so far, bytes; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:  # Windows
        return 0
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def visible_devices() -> list[str] | None:
    """The GPUs named by CUDA_VISIBLE_DEVICES; None where it is not set."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return None if named is None else [name.strip() for name in named.split(",") if name.strip()]
