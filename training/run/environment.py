"""Where a run took place: versions, device, commit, and how fast the device multiplies matrices."""

from __future__ import annotations

import datetime
import platform
import time
from typing import Any

import torch

from cegain.tables import provenance


def describe(device: torch.device, processes: int) -> dict[str, Any]:
    """What a result depends on beside its configuration, for `environment.json`."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": provenance.commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": provenance.version("triton"),
        "numpy": provenance.version("numpy"),
        "system": f"{platform.system()} {platform.machine()}",
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": processes,
        "gemm_flops_per_s": gemm_flops_per_s(device),
    }


def device_name(device: torch.device) -> str:
    """The maker's name of a GPU; for a CPU its model and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return provenance.cpu_name(torch.get_num_threads())


def gemm_flops_per_s(device: torch.device) -> float:
    """The ceiling for MFU: the median rate of seven products of square matrices, float32 on a CPU, bfloat16 on CUDA."""
    on_gpu = device.type == "cuda"
    side = 8192 if on_gpu else 1024
    a = torch.ones(side, side, device=device, dtype=torch.bfloat16 if on_gpu else torch.float32)
    seconds = []
    for _ in range(8):
        _synchronise(device)
        start = time.perf_counter()
        a @ a
        _synchronise(device)
        seconds.append(time.perf_counter() - start)
    return 2 * side**3 / sorted(seconds[1:])[3]  # without the first, which warms up


def peak_bytes(device: torch.device) -> int:
    """Most memory that was in use: of the device's allocator, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if platform.system() == "Darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
