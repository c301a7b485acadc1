"""Where a run took place: versions, device, commit, and how fast the device multiplies matrices."""

from __future__ import annotations

import datetime
import importlib.metadata
import platform
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import torch


def describe(device: torch.device, processes: int) -> dict[str, Any]:
    """What a result depends on beside its configuration, for `environment.json`."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "numpy": _version("numpy"),
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
    model = ""
    if Path("/proc/cpuinfo").exists():
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1].strip() if found else ""
    return f"{model or platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


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


def commit() -> str:
    """The checkout's commit, `-dirty` where files differ from it; the package's version outside a checkout."""
    root = Path(__file__).parents[1]
    if not ((root / ".git").exists() and (root / "pyproject.toml").exists()):  # installed, perhaps inside another's
        return _version("ceg")
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return _version("ceg")
    return said.stdout.strip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
