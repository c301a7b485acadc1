"""A cold answer against what any such tool must import: two processes, side by side in one run.

`pytest benchmarks -k cold --benchmark-only` prints both; the figure in parentheses is the ratio. Peak memory (MiB)
of the process is in `extra_info` (`--benchmark-json`).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

COMMANDS = {
    "imports": "import numpy, scipy.optimize, click, rich",
    "ceg-estimate": (
        "import sys; from cegain.commands.ceg import estimate_command;"
        "sys.argv = ['ceg-estimate', '--algo', 'moe', '--flops', '1e24'];"
        "estimate_command(standalone_mode=False)"
    ),
}
_PEAK = "import resource, sys; sys.stderr.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))"


@pytest.mark.benchmark(group="cold start", min_rounds=7)
@pytest.mark.parametrize("what", COMMANDS)
def test_cold_start(benchmark: Any, what: str) -> None:
    """Wall time of a whole process, from start to exit."""

    def run() -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        code = f"{COMMANDS[what]};{_PEAK}"
        return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True, env=environment)

    finished = benchmark(run)
    benchmark.extra_info["peak_memory_mib"] = int(finished.stderr) / 1024
    benchmark.extra_info["command"] = json.dumps(COMMANDS[what])
