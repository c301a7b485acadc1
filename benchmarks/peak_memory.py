"""Memory that one call adds at its peak on a CPU, read from Linux: each call in a process of its own.

That is the resident peak (VmHWM, reset before) minus the resident size with inputs made and threads warm. A process
that computed before would give back less than it took; so one that has imported torch and computed nothing forks for
every call. NaN where Linux's /proc is missing.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import torch

from cegain.benchmarks import suite
from cegain.benchmarks.cases import Case, PassName

CLEAR_REFS = Path("/proc/self/clear_refs")
"""5 written to it resets the peak."""
_WARM = 64
"""Tokens of the call before, which starts threads and loads code."""


def measure(case: Case, wanted: Sequence[tuple[str, PassName]]) -> dict[tuple[str, PassName], float]:
    """Bytes by implementation and pass; NaN where a call failed."""
    if not CLEAR_REFS.exists() or not wanted:
        return dict.fromkeys(wanted, math.nan)
    question = json.dumps({"case": dataclasses.asdict(case), "wanted": list(wanted)})
    command = [sys.executable, "-m", "cegain.benchmarks.peak_memory", question]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return dict(zip(wanted, map(float, said.split()), strict=True))


def added(case: Case, name: str, pass_: PassName) -> int:
    """Bytes of one call in this process."""
    _once(dataclasses.replace(case, seq_q=min(_WARM, case.seq_q), seq_kv=min(_WARM, case.seq_kv)), name, pass_)
    return _once(case, name, pass_)


def _once(case: Case, name: str, pass_: PassName) -> int:
    operation = suite.OPERATIONS[case.op](case, torch.device("cpu"))
    (implementation,) = (one for one in operation.implementations() if one.name == name)
    leaves = operation.leaves(0)
    if "bwd" in implementation.skips:
        leaves = [leaf.detach() for leaf in leaves]
    grad = None
    if pass_ in ("bwd", "fwd_bwd"):
        with torch.no_grad():
            grad = torch.ones_like(operation.leaves(0)[0])  # outputs are shaped as their first input
    out = implementation.run(*leaves) if pass_ == "bwd" else None
    CLEAR_REFS.write_text("5", encoding="ascii")
    before = resident("VmRSS")
    if out is None:
        out = implementation.run(*leaves)
    if grad is not None:
        torch.autograd.grad(out, leaves, grad)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Bytes that Linux reports for this process: VmRSS now, VmHWM at most so far."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    (kilobytes,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return 1024 * int(kilobytes)


def main() -> None:
    """Print a number for every call that the argument names, one process after the other."""
    question = json.loads(sys.argv[1])
    case = Case(**question["case"])
    for name, pass_ in question["wanted"]:
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                os.write(writing, str(added(case, name, pass_)).encode())
            except Exception:
                traceback.print_exc()
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as stream:
            print(stream.read() or "nan", flush=True)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main()
