"""The machine beside the training: processor, memory, network, disk and GPU of rank 0's host.

Names and units are those of MLflow's own monitor, so that its page knows them; unlike its numbers,
these are of a training step and lie in the run's folder, too.
"""

from contextlib import suppress
from pathlib import Path

import psutil
import torch
from pynvml import NVMLError

MB = 1e6  # as MLflow counts

READINGS = {
    "system/cpu_utilization_percentage": ("%", "", "of all cores, since the last line"),
    "system/system_memory_usage_percentage": ("%", "", "of the host's memory"),
    "system/system_memory_usage_megabytes": ("MB", "", "of the host's memory"),
    "system/disk_usage_percentage": ("%", "", "of the disk that holds the run"),
    "system/disk_available_megabytes": ("MB", "", "free on the disk that holds the run"),
    "system/network_receive_megabytes": ("MB", "", "received by the host since the run began"),
    "system/network_transmit_megabytes": ("MB", "", "sent by the host since the run began"),
    "system/gpu_N_memory_usage_percentage": ("%", "", "of the GPU's memory, by all processes"),
    "system/gpu_N_memory_usage_megabytes": ("MB", "", "of the GPU's memory, by all processes"),
    "system/gpu_N_utilization_percentage": ("%", "higher", "of the time a kernel was running"),
    "system/gpu_N_power_usage_watts": ("W", "", "drawn by the GPU"),
}
"""Name -> unit, which way is better, what it says; N is the GPU's number."""


class System:
    """Reads the machine; cheap, and never waits for it."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        """Begins to count; `folder` lies on the disk of the run."""
        self.folder, self.device = folder, device
        self.sent, self.received = _network()
        psutil.cpu_percent()  # the first call has nothing to compare with

    def read(self) -> dict[str, float]:
        """Every number of READINGS that this machine has."""
        memory = psutil.virtual_memory()
        sent, received = _network()
        numbers = {
            "cpu_utilization_percentage": psutil.cpu_percent(),
            "system_memory_usage_percentage": memory.percent,
            "system_memory_usage_megabytes": memory.used / MB,
            "network_receive_megabytes": (received - self.received) / MB,
            "network_transmit_megabytes": (sent - self.sent) / MB,
            **_disk(self.folder),
            **_gpu(self.device),
        }
        return {f"system/{name}": value for name, value in numbers.items()}


def _network() -> tuple[int, int]:
    """Bytes sent and received; a host without a network card has none."""
    counters = psutil.net_io_counters()
    return (counters.bytes_sent, counters.bytes_recv) if counters else (0, 0)


def _disk(folder: Path) -> dict[str, float]:
    usage = psutil.disk_usage(str(folder))
    return {"disk_usage_percentage": usage.percent, "disk_available_megabytes": usage.free / MB}


def _gpu(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    numbers = {
        "memory_usage_percentage": 100 * (1 - free / total),
        "memory_usage_megabytes": (total - free) / MB,
    }
    with suppress(NVMLError, RuntimeError):  # a part of a GPU, or a container, may not tell
        numbers["utilization_percentage"] = torch.cuda.utilization(device)
        numbers["power_usage_watts"] = torch.cuda.power_draw(device) / 1000
    return {f"gpu_{device.index or 0}_{name}": float(value) for name, value in numbers.items()}
