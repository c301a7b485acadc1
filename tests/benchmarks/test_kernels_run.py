"""A small session from end to end: red where an implementation is wrong, rows from the JSON where it is right."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cegain.benchmarks import collect
from cegain.tables import kernel_times

ROOT = Path(__file__).parents[2]


class Session(NamedTuple):
    exit_code: int
    said: str
    results: Path


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Session:
    results = tmp_path_factory.mktemp("run") / "results.json"
    command = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "--benchmark-only", "-p",
               "tests.benchmarks.small_and_wrong", "-p", "no:cacheprovider", "--seq-lens", "40", "--rounds", "2", "-k",
               "test_ceilings or test_flash or test_decode", f"--benchmark-json={results}"]  # fmt: skip
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    for name in [name for name in environment if name.startswith("PYTEST_")]:
        del environment[name]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return Session(done.returncode, done.stdout, results)


def test_a_wrong_implementation_is_red_and_says_error_and_tolerance(ran: Session) -> None:
    assert ran.exit_code == 1, ran.said[-3000:]
    assert "wrong, attention-causal-B1-H4-KV4-T40-S40-D64, output: error " in ran.said
    assert ", allowed " in ran.said
    failed = [line for line in ran.said.splitlines() if line.startswith("FAILED")]
    assert len(failed) == 3
    assert all("-wrong-" in line for line in failed)


def test_what_is_not_wrong_is_timed_and_becomes_rows(ran: Session, tmp_path: Path) -> None:
    rows = collect.rows([ran.results], commit="none").rows
    found = {(row.op, row.implementation, row.pass_) for row in rows}
    assert "wrong" not in {name for _, name, _ in found}
    for pass_ in ("fwd", "bwd", "fwd_bwd"):
        for name in ("materialised", "sdpa_math", "sdpa_flash", "flash"):
            assert ("attention", name, pass_) in found
    assert {("gemm", "torch", "fwd"), ("copy", "torch", "fwd"), ("decode", "mqa", "decode")} <= found
    assert all(row.n_repeats == 2 and row.seq_q in (0, 1, 40, 64) for row in rows)
    assert kernel_times.append(tmp_path / "t.csv", rows) == len(rows)
    assert kernel_times.append(tmp_path / "t.csv", rows) == 0


def test_ceilings_come_first_and_skips_say_why(ran: Session) -> None:
    document: dict[str, Any] = json.loads(ran.results.read_text())
    names = [one["name"] for one in document["benchmarks"]]
    assert [name.startswith("test_ceilings") for name in names[:3]] == [True, True, False]
    assert "ceilings: " in ran.said
    assert "torch has no backward pass of FlexAttention on a CPU" in ran.said
    for one in document["benchmarks"]:
        info = one["extra_info"]
        assert one["stats"]["data"]
        assert info["roofline_fraction"] == pytest.approx(
            max(info["tflops_per_s"] / info["gemm_tflops_per_s"], info["gb_per_s"] / info["copy_gb_per_s"])
        )


def test_bad_lengths_are_refused() -> None:
    command = [sys.executable, "-m", "pytest", "benchmarks/test_kernels.py", "--seq-lens", "12,none", "--collect-only"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 4
    assert "whole numbers of at least 1 are needed, got 'none'" in done.stderr
