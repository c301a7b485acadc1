"""Compute that was counted otherwise is converted, or the table is refused with the arms that do not fit."""

from pathlib import Path

import numpy as np
import pytest

from cegain.run_tables import flop_conventions, run_import
from cegain.run_tables.run_import import ReadOptions
from cegain.tables.problems import EvidenceError
from tests.estimator.calls import Calls
from tests.estimator.run_tables.made_runs import Row, arm, write


def counted(row: Row, size: float, more: Row | None = None) -> Row:
    """The run with its compute counted as 6 x `size` x tokens."""
    return row | {"C": f"{6 * size * float(str(row['D'])):.8g}"} | (more or {})


def read(tmp_path: Path, rows: list[Row], convention: str) -> run_import.Runs:
    return run_import.read(write(tmp_path / "runs.csv", rows), ReadOptions(convention=convention))


def size(row: Row) -> float:
    return float(str(row["N"]))


def test_total_parameters_become_active_ones(tmp_path: Path) -> None:
    """An arm counted by all its experts, which the table's own columns show."""
    rows = [row | {"total_params": row["N"]} for row in arm("dense", 1.0)]
    rows += [counted(row, 4 * size(row), {"total_params": f"{4 * size(row):.8g}"}) for row in arm("moe", 2.0)]
    found = read(tmp_path, rows, "auto")
    assert np.allclose(found.C, 6 * found.N * found.D, rtol=1e-4)
    assert any("C of moe" in remark and "4 times less" in remark for remark in found.remarks)
    assert np.allclose(read(tmp_path, rows, "6nd").C, found.C, rtol=1e-4)
    kept = read(tmp_path, rows, "with-attention")
    assert kept.C[-1] == pytest.approx(4 * found.C[-1], rel=1e-4)


def test_arms_of_unlike_convention_are_refused(tmp_path: Path) -> None:
    rows = [*arm("dense", 1.0), *(counted(row, 1.4 * size(row)) for row in arm("other", 2.0))]
    for convention in ("6nd", "6nd-active"):
        with pytest.raises(EvidenceError, match=r"7 of 14 were not, of other"):
            read(tmp_path, rows, convention)
    assert any("C of other is 1.4 to 1.4 times 6 N D" in remark for remark in read(tmp_path, rows, "auto").remarks)


def test_non_embedding_compute_gets_its_unembedding(tmp_path: Path) -> None:
    output = 32000 * 512
    rows = [counted(row, size(row) - output, {"vocab_size": 32000, "d_model": 512}) for row in arm("big", 1.0)[2:]]
    found = read(tmp_path, rows, "non-embedding")
    assert np.allclose(found.C, 6 * found.N * found.D, rtol=1e-4)
    bare = [{k: v for k, v in row.items() if k not in ("vocab_size", "d_model")} for row in rows]
    with pytest.raises(EvidenceError, match="Add columns vocab_size and d_model"):
        read(tmp_path, bare, "non-embedding")


def test_executed_flop_become_useful_ones(tmp_path: Path) -> None:
    rows = [counted(row, 4 / 3 * size(row)) for row in arm("recomputed", 1.0)]
    found = read(tmp_path, rows, "hardware")
    assert np.allclose(found.C, 6 * found.N * found.D, rtol=1e-4)
    assert any("1.33 times less" in remark for remark in found.remarks)


def test_a_convention_that_cannot_be_checked_is_refused(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k not in ("N", "D")} for row in arm("bare", 1.0)]
    with pytest.raises(EvidenceError, match="checked against parameters and tokens"):
        read(tmp_path, rows, "6nd")
    said = Calls().refused("import", tmp_path / "runs.csv", "--flops-convention", "guess")
    assert all(name in said for name in flop_conventions.CONVENTIONS)
