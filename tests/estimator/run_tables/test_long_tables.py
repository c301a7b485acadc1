"""Long tables: read at once, to the same runs as cell by cell, in a few times pandas' own time."""

import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from cegain.ladders import ladder
from cegain.run_tables import run_import
from cegain.tables import table_files

ROWS = 1_000_000


def long_table(path: Path, rows: int, header: str = "variant,N,D,C,loss", *, twice: int = 0) -> Path:
    """Runs of two arms, some of them twice."""
    rng = np.random.default_rng(0)
    N = 10 ** rng.uniform(7, 9, rows)
    D = 20 * N * 10 ** rng.uniform(-0.3, 0.3, rows)
    loss = 1.7 + 400 * (6 * N * D) ** -0.13
    columns = zip(N.tolist(), D.tolist(), (6 * N * D).tolist(), loss.tolist(), strict=True)
    lines = [f"{'ab'[i % 2]},{n:.6g},{d:.6g},{c:.6g},{y:.5f}" for i, (n, d, c, y) in enumerate(columns)]
    path.write_text("\n".join([header, *lines, *lines[:twice]]) + "\n")
    return path


@pytest.mark.parametrize("header", ["variant,N,D,C,loss", "arch,n_params,total_tokens,total_flops,val_loss"])
@pytest.mark.parametrize(
    "change", [lambda t: t, lambda t: t.replace(",", ";"), lambda t: t.replace("\n", "\r\n"), lambda t: "\ufeff" + t]
)
def test_long_tables_are_the_same_runs(
    header: str, change: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = long_table(tmp_path / "runs.csv", 500, header, twice=7)
    with path.open(newline="") as stream:
        text = stream.read()
    path.write_bytes(change(text).encode())  # type: ignore[operator]
    cell_by_cell = ladder.read_runs(path)
    monkeypatch.setattr(table_files, "LONG", 0)
    at_once = ladder.read_runs(path)
    for field in ("N", "D", "C", "loss"):
        assert getattr(at_once, field).tolist() == getattr(cell_by_cell, field).tolist()
    assert list(at_once.variant) == list(cell_by_cell.variant)
    assert len(at_once.loss) == 500
    assert any("7 duplicated row(s)" in remark for remark in at_once.remarks)
    assert ladder.ladder(at_once, "a").y.tolist() == ladder.ladder(cell_by_cell, "a").y.tolist()


def test_what_is_no_plain_number_is_read_cell_by_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LONG", 0)
    path = tmp_path / "runs.csv"
    path.write_text(
        "arch;params;tokens;loss\n" + "".join(f"a;{7 + i}B;1.400.000.000.00{i},0;2,{9 - i}\n" for i in range(5))
    )
    found = run_import.read(path)
    assert found.N.tolist() == [7e9, 8e9, 9e9, 10e9, 11e9]
    assert found.loss.tolist() == [2.9, 2.8, 2.7, 2.6, 2.5]


def test_empty_cells_and_states_of_long_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_files, "LONG", 0)
    path = tmp_path / "runs.csv"
    rows = ["finished,a,1e8,2e9,3.5", "crashed,a,1e8,2e9,", "finished,a,2e8,4e9,nan", "finished,b,2e8,4e9,3.2"]
    path.write_text("\n".join(["state,arch,params,tokens,loss", *rows]))
    found = run_import.read(path)
    assert found.loss.tolist() == [3.5, 3.2]
    assert list(found.variant) == ["a", "b"]
    assert any("2 of 4 rows left out: 1 crashed, 1 without a loss" in remark for remark in found.remarks)


@pytest.mark.slow
@pytest.mark.parametrize("twice", [0, 1000])
def test_a_million_rows_take_a_few_times_what_pandas_takes(twice: int, tmp_path: Path) -> None:
    import pandas as pd

    whole = long_table(tmp_path / "whole.csv", ROWS, twice=twice)
    half = long_table(tmp_path / "half.csv", ROWS // 2, twice=twice // 2)
    ladder.read_runs(half)
    times: dict[str, list[float]] = {"pandas": [], "whole": [], "half": []}
    for _ in range(7):
        for name, read, path in (("pandas", pd.read_csv, whole), ("whole", ladder.read_runs, whole),
                                 ("half", ladder.read_runs, half)):  # fmt: skip
            start = time.perf_counter()
            read(path)
            times[name].append(time.perf_counter() - start)
    middle = {name: statistics.median(values) for name, values in times.items()}
    assert middle["whole"] <= 5 * middle["pandas"], middle
    assert middle["whole"] <= 4 * middle["half"], middle  # twice, and what a busy machine adds


@pytest.mark.slow
def test_a_million_rows_fit_into_a_gigabyte(tmp_path: Path) -> None:
    path = long_table(tmp_path / "whole.csv", ROWS)
    program = (
        "import resource, sys; from cegain.ladders import ladder; ladder.read_runs(sys.argv[1]);"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True)
    kilobytes = int(done.stdout)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss > 0  # in kilobytes on Linux
    assert kilobytes < 1_000_000
