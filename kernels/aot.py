"""What the compiler makes of every Triton kernel, on a machine without a GPU: `make aot`.

    python -m cegain.kernels.aot [--arch 80 90 100] [--only NAME ... | --out table.csv] [--jobs N]

Compiles each case that a `kernels/*_triton.py` lists in `aot_cases()`, for A100 (sm_80), H100 and H200 (sm_90) and B200
(sm_100), and prints one line for each:

    flash_forward.fp16.d128.causal.sm90 sm_90 BLOCK_M=128 BLOCK_N=64 num_warps=8 num_stages=3 registers 189 spilled 0 \
    shared 131072 wgmma

A case's name says the oldest architecture that it is for; ".2" is the second of what may be tuned there. Registers are
per thread; so are spilled bytes, which is the stack that ptxas set aside. Shared memory is in bytes per
thread block. The instructions are those that multiply matrices: mma on sm_80, also wgmma on sm_90, tcgen05 on sm_100.
Ends with exit status 1 where a rule of `broken_rules` does not hold.
"""

from __future__ import annotations

import argparse
import csv
import functools
import importlib
import multiprocessing
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cegain.kernels.aot_case import AotCase

SHARED_LIMIT = {80: 101_376, 90: 232_448, 100: 232_448}
"""Bytes of shared memory that a thread block may ask for, by compute capability (CUDA programming guide, table of
technical specifications per compute capability: 227 KiB on 9.0 and 10.0). What is for 80 also runs on 8.6, 8.9 and
12.0, where it is 99 KiB; 8.0 itself has 163."""

INSTRUCTIONS = {"mma": "mma.sync", "wgmma": "wgmma.mma_async", "tcgen05": "tcgen05.mma"}
"""Names of matrix instructions, and how PTX spells them."""


class Row(NamedTuple):
    """One line of the table."""

    case: str
    arch: str
    configuration: str
    registers: int
    spilled: int
    shared: int
    instructions: str


@functools.cache
def cases() -> dict[str, AotCase]:
    """Those of every `*_triton` module of this package, by name.

    Raises:
        ValueError: two cases of one name.
    """
    found: dict[str, AotCase] = {}
    for module in sorted(module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])):
        if module.endswith("_triton"):
            for case in importlib.import_module(f"cegain.kernels.{module}").aot_cases():
                if case.name in found:
                    raise ValueError(f"kernels.{module}: names of cases must differ, got {case.name} twice; rename one")
                found[case.name] = case
    return found


def compile_all(names: Sequence[str], capabilities: Sequence[int], jobs: int) -> Iterator[Row]:
    """Rows of the cases with these names where they are shipped, in order, compiled in `jobs` processes."""
    todo = [(name, c) for name in names for c in capabilities if c in cases()[name].capabilities]
    if jobs == 1:
        yield from map(_compile_named, todo)
    else:
        # A new process imports everything again: a copy of this one may hold a lock of a thread that it lacks.
        with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
            yield from pool.map(_compile_named, todo)


def _compile_named(task: tuple[str, int]) -> Row:
    name, capability = task
    return compile_case(cases()[name], capability)


def compile_case(case: AotCase, capability: int) -> Row:
    """Compile for a compute capability, such as 90 for sm_90.

    Raises:
        Exception: what the compiler raises, with the case's name as a note.
    """
    source = ASTSource(case.kernel, case.signature, case.constexprs, case.attrs)
    # Fused multiply-adds are what a launch gets by default; newer versions of Triton want to be told.
    options = {"num_warps": case.num_warps, "num_stages": case.num_stages, "enable_fp_fusion": True}
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    except Exception as error:
        error.add_note(f"while compiling {case.name} for sm_{capability}")
        raise
    registers, spilled = resources(compiled.asm["cubin"])
    present = [name for name, spelled in INSTRUCTIONS.items() if spelled in compiled.asm["ptx"]]
    shared = compiled.metadata.shared
    return Row(case.name, f"sm_{capability}", configuration(case), registers, spilled, shared, " ".join(present))


def configuration(case: AotCase) -> str:
    """Sizes of blocks, warps and stages, as in BLOCK_M=128 BLOCK_N=64 num_warps=8 num_stages=3."""
    blocks = {
        name: size for name, size in case.constexprs.items() if str(name).startswith("BLOCK_") and name != "BLOCK_D"
    }
    options = {**blocks, "num_warps": case.num_warps, "num_stages": case.num_stages}
    return " ".join(f"{name}={value}" for name, value in options.items())


def resources(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack and local memory) per thread of the one kernel in a cubin."""
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        said = subprocess.run([tool, "--dump-resource-usage", file.name], check=True, capture_output=True, text=True)
    usage = re.search(r"REG:(\d+) STACK:(\d+) .*?LOCAL:(\d+)", said.stdout)
    if usage is None:
        raise RuntimeError(f"cuobjdump must print REG, STACK and LOCAL, it printed {said.stdout!r}")
    registers, stack, local = map(int, usage.groups())
    return registers, stack + local


def broken_rules(case: AotCase, row: Row) -> list[str]:
    """What a row breaks, one line each.

    Shared memory fits everywhere. On sm_90 the matrix instruction that the case expects is there, and in half precision
    nothing is spilled at head widths up to 128.
    """
    where = f"{row.case} {row.arch}"
    capability = int(row.arch.removeprefix("sm_"))
    broken = []
    if row.shared > SHARED_LIMIT[capability]:
        broken.append(f"{where}: shared memory must be at most {SHARED_LIMIT[capability]} bytes, is {row.shared}")
    if capability == 90:
        if case.expects and case.expects not in row.instructions.split():
            broken.append(f"{where}: {case.expects} must be there, found {row.instructions or 'no matrix instruction'}")
        if row.spilled and is_half(case) and case.constexprs.get("D", 0) <= 128:
            broken.append(f"{where}: nothing may be spilled, {row.spilled} bytes are")
    return broken


def is_half(case: AotCase) -> bool:
    """Whether an argument, or a member of one that is a tuple, points to half-precision numbers."""
    return bool(re.search(r"\b(fp16|bf16)\b", repr(case.signature)))


def commit() -> str:
    """The checkout's commit, `-dirty` where files differ from it; empty outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    said = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    return said.stdout.strip()


def _wrong(chosen: argparse.Namespace) -> list[str]:
    """What is wrong with the arguments, said before anything is compiled, which takes minutes."""
    wrong = []
    if os.environ.get("TRITON_INTERPRET", "0") != "0":
        wrong.append("TRITON_INTERPRET must be unset, since interpreted kernels are not compiled")
    if chosen.jobs < 1:
        wrong.append(f"--jobs must be at least 1, got {chosen.jobs}; leave it out for all cores")
    if chosen.out and chosen.only:
        wrong.append(
            f"--out must not come with --only, got {chosen.out}: a part would replace the table; leave out one"
        )
    if chosen.out and not chosen.out.parent.is_dir():
        wrong.append(f"--out must lie in a directory, got {chosen.out}; make {chosen.out.parent} first")
    if chosen.out and chosen.out.is_dir():
        wrong.append(f"--out must be a file, got the directory {chosen.out}; name a file in it")
    for name in chosen.only or ():
        case = cases().get(name)
        if case is None:
            wrong.append(f"--only must name cases, got {name}; there are {', '.join(cases())}")
        elif not set(case.capabilities) & set(chosen.arch):
            shipped = " ".join(map(str, case.capabilities))
            wrong.append(f"--only must name cases that are shipped on --arch, got {name}; use --arch {shipped}")
    return wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m cegain.kernels.aot", description="Compile all Triton kernels, no GPU."
    )
    parser.add_argument("--arch", type=int, nargs="+", choices=SHARED_LIMIT, default=list(SHARED_LIMIT))
    parser.add_argument("--only", nargs="+", metavar="NAME", help="cases, by their whole names")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes that compile; all cores by default")
    parser.add_argument("--out", type=Path, help="also write the table to this file, as CSV; not with --only")
    chosen = parser.parse_args(arguments)
    wrong = _wrong(chosen)
    if wrong:
        parser.error("\n".join(wrong))

    rows, broken = [], []
    for row in compile_all(chosen.only or list(cases()), chosen.arch, chosen.jobs):
        rows.append(row)
        broken += broken_rules(cases()[row.case], row)
        print(
            f"{row.case} {row.arch} {row.configuration} registers {row.registers} spilled {row.spilled} "
            f"shared {row.shared} {row.instructions or '-'}",
            flush=True,
        )
    versions = {"torch": torch.__version__, "triton": triton.__version__, "commit": commit()}
    print(*(f"{name} {version}" for name, version in versions.items()))
    if chosen.out:
        whole = chosen.out.with_name(f"{chosen.out.name}.part")
        with whole.open("w", newline="") as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow([*Row._fields, *versions])
            table.writerows([*row, *versions.values()] for row in rows)
        whole.replace(chosen.out)
    for rule in broken:
        print(rule, file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
