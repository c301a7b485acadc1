"""Mixture of experts in Triton, compiled without a GPU: a part of `make aot`, and offsets that have 64 bits."""

import os
import re
import subprocess
import sys
from collections import Counter

import pytest

SCRIPT = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from cegain.kernels import aot, moe_routing_triton, moe_triton
cases = {case.name: case for case in (*moe_triton.aot_cases(), *moe_routing_triton.aot_cases())}
for name in sys.argv[1:]:
    case = cases[name]
    row = aot.compile_case(case, 90)
    print(name, row.instructions, row.spilled, *aot.broken_rules(case, row))
    source = ASTSource(case.kernel, case.signature, case.constexprs, case.attrs)
    print(triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ttir"])
"""


def compiled(*names: str) -> dict[str, tuple[str, dict[str, int]]]:
    """What the rules say of each case, and how many products of integers its code has, by their width.

    Comes from a process that compiles kernels rather than interpreting them.
    """
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", SCRIPT, *names]
    said = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert said.returncode == 0, said.stderr
    found: dict[str, tuple[str, dict[str, int]]] = {}
    for line in said.stdout.splitlines():
        if line.startswith("moe_"):
            name, _, verdict = line.partition(" ")
            products: Counter[str] = Counter()
            found[name] = (verdict, products)
        elif width := re.search(r"arith\.muli .*: (?:tensor<\d+x)?(i\d+)", line):
            products[width[1]] += 1
    return found


def test_a_part_keeps_the_rules_and_counts_elements_in_64_bits() -> None:
    """Numbers of rows, tokens and assignments are below 2^31, numbers of elements are not.

    Other kernels are run past 2^31 elements, in the interpreter; in this one all rows would have to exist.
    """
    up, activation = "moe_up.r128.bf16.h2048.i768.sm90", "moe_dactivation.fp16.h2048.i768.sm90"
    found = compiled(up, activation)
    assert found[up][0] == "wgmma 0"
    # 32 bits for the first row of a program; 64 for rows times F, and for all R rows times F
    assert found[activation] == (" 0", {"i32": 1, "i64": 2})


@pytest.mark.slow
def test_more_of_it() -> None:
    sort, combine = "moe_sort.e128", "moe_combine.fp16.h2048.i768.sm90"
    found = compiled(sort, combine)
    assert found[sort][0] == " 0"
    # 32 bits for the first token, the first column, and tokens times K; 64 for rows and tokens times their widths
    assert found[combine] == (" 0", {"i32": 3, "i64": 2})
