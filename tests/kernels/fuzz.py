"""Cases by chance, as many as wanted: `python -m tests.kernels.fuzz --n 2000`, from the top of a checkout.

Each seed is a case of its own (`cases.draw`) and runs on every backend; what fails is printed with its seed, to be run
again with `--first SEED --n 1`. Without a CUDA device Triton's kernels run in its interpreter. Memory that nobody has
written is NaN. The exit status is 1 if any case failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import warnings
from collections.abc import Sequence

import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports triton

from tests.kernels import cases, interpreter


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.kernels.fuzz", description="Kernels on cases by chance.")
    parser.add_argument("--n", type=int, default=2000, help="cases a backend; 2000 by default")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="of the first case; 0 by default")
    parser.add_argument("--backends", nargs="+", choices=cases.BACKENDS, default=cases.BACKENDS)
    chosen = parser.parse_args(arguments)
    interpreter.mend()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    warnings.simplefilter("ignore")
    failed = dict.fromkeys(chosen.backends, 0)
    began = time.monotonic()
    for seed in range(chosen.first, chosen.first + chosen.n):
        case = cases.draw(seed)
        for backend in chosen.backends:
            try:
                cases.check(case, backend)
            except Exception as error:
                failed[backend] += 1
                print(f"seed {seed}, {backend}: {type(error).__name__}: {error}\n  {case}", flush=True)
    seconds = time.monotonic() - began
    for backend, count in failed.items():
        print(f"{backend}: {chosen.n} cases from seed {chosen.first}, {count} failed")
    print(f"{seconds:.0f} s, torch {torch.__version__}")
    return 1 if any(failed.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
