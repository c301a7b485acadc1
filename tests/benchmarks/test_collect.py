"""Results to rows: append-only by device, versions and commit; everything that is wrong is said at once."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.benchmarks import collect
from cegain.commands.ceg import ceg
from cegain.tables import kernel_times
from cegain.tables.kernel_times import KernelTime
from cegain.tables.problems import EvidenceError
from tests.benchmarks.made_rows import attention, session


def benchmark(row: KernelTime, **changes: Any) -> dict[str, Any]:
    """A row as pytest-benchmark would store it."""
    info = dict(zip(kernel_times.COLUMNS, row, strict=True))
    info = {name: None if value != value else value for name, value in info.items()}
    info = {name: value for name, value in info.items() if name not in kernel_times.ALL_SIZES or value}
    info |= {"tflops_per_s": row.flops / row.median_s / 1e12}
    return {"name": f"test[{row.implementation}]", "extra_info": info | changes, "stats": {"median": row.median_s}}


def results(path: Path, *benchmarks: dict[str, Any]) -> Path:
    path.write_text(json.dumps({"machine_info": {}, "benchmarks": list(benchmarks)}))
    return path


def run(*arguments: str | Path) -> Any:
    return CliRunner().invoke(ceg, ["bench", "collect", *map(str, arguments)])


def test_all_rows_come_through_and_the_same_file_adds_nothing(tmp_path: Path) -> None:
    rows = session()
    other = {"name": "test_cpu_moe", "extra_info": {"median_s": {"moe": 1.0}}, "stats": {"median": 1.0}}
    path, table = results(tmp_path / "r.json", *map(benchmark, rows), other), tmp_path / "t.csv"
    first = run(path, "--out", table)
    assert first.exit_code == 0, first.output
    assert f"{len(rows)} added, 0 there already, 1 other benchmarks left out" in first.output
    assert len({row.key() for row in rows}) == len(rows)
    stored = kernel_times.load(table)
    assert [row.key()[:12] for row in stored] == [row.key()[:12] for row in rows]
    assert [row.flops for row in stored] == [row.flops for row in rows]
    content = table.read_bytes()
    again = run(path, path, "--out", table)
    assert f"0 added, {len(rows)} there already" in again.output
    assert table.read_bytes() == content


@pytest.mark.parametrize("column", ["device", "torch", "triton", "driver", "commit"])
def test_another_device_version_or_commit_adds_rows_and_changes_none(column: str, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    old = attention("flash", 512, 0.5)
    new = old._replace(**{column: "other", "median_s": 2 * old.median_s, "p80_s": 1.0, "p90_s": 1.0})
    assert run(results(tmp_path / "a.json", benchmark(old)), "--out", table).exit_code == 0
    before = table.read_text().splitlines()
    assert "1 added" in run(results(tmp_path / "b.json", benchmark(new)), "--out", table).output
    after = table.read_text().splitlines()
    assert after[:-1] == before
    assert "other" in after[-1]


def test_a_case_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    old = attention("flash", 512, 0.5)
    slower = old._replace(median_s=2 * old.median_s, p80_s=1.0, p90_s=1.0, date="2026-02-01")
    run(results(tmp_path / "a.json", benchmark(old)), "--out", table)
    assert "0 added, 1 there already" in run(results(tmp_path / "b.json", benchmark(slower)), "--out", table).output
    assert kernel_times.load(table)[0].date == old.date


def test_everything_wrong_is_said_at_once_and_nothing_is_written(tmp_path: Path) -> None:
    good = attention("flash", 512, 0.5)
    (tmp_path / "not.json").write_text("{")
    (tmp_path / "list.json").write_text("[1]")
    results(tmp_path / "none.json", {"name": "x", "extra_info": {}, "stats": {"median": 1.0}})
    without = benchmark(good)
    del without["extra_info"]["dtype"]
    results(
        tmp_path / "bad.json",
        benchmark(good),
        benchmark(good, op="atention", **{"pass": "forward"}),
        benchmark(good, batch=0, median_s=-1.0),
        benchmark(good, heads_kv=17, density=1.5),
        benchmark(good, median_s=good.p20_s * 1.01),
        without,
    )
    table = tmp_path / "t.csv"
    found = run(*(tmp_path / f"{name}.json" for name in ("not", "list", "none", "bad", "missing")), "--out", table)
    assert found.exit_code == 2
    said = " ".join(found.output.split())
    for part in (
        "not.json: the file is JSON", "list.json: the file has a list of benchmarks",
        "none.json: there is a kernel's benchmark", "missing.json: the file is JSON",
        "column op: one of attention", "column pass: one of fwd", "column batch: a whole number above 0",
        "column median_s: a finite number above 0", "column heads_kv: at most heads_q, 16",
        "column density: a share of at most 1", "median_s is the median of stats", "every column (found no dtype)",
    ):  # fmt: skip
        assert part in said, part
    assert not table.exists()


def test_a_bad_table_is_left_alone(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    row = attention("flash", 512, 0.5)
    kernel_times.append(table, [row])
    lines = table.read_text().splitlines()
    table.write_text("\n".join([*lines, lines[1], lines[1].replace("attention", "attend"), "1,2"]) + "\n")
    before = table.read_bytes()
    with pytest.raises(EvidenceError) as caught:
        kernel_times.append(table, [row._replace(commit="new")])
    said = str(caught.value)
    for part in (
        "line 3: a case is measured once",
        "line 4, column op",
        f"line 5: a row has {len(lines[1].split(','))}",
    ):
        assert part in said, part
    assert table.read_bytes() == before


def test_rows_survive_the_file(tmp_path: Path) -> None:
    rows = session()
    assert kernel_times.append(tmp_path / "t.csv", rows) == len(rows)
    assert [kernel_times.cells(row) for row in kernel_times.load(tmp_path / "t.csv")] == list(
        map(kernel_times.cells, rows)
    )
    copy = next(row for row in rows if row.op == "copy")
    assert copy.key() != copy._replace(bytes=2 * copy.bytes).key()


def test_a_commit_is_needed_and_may_be_given(tmp_path: Path) -> None:
    path = results(tmp_path / "r.json", benchmark(attention("flash", 512, 0.5), commit=""))
    table = tmp_path / "t.csv"
    assert "column commit: the cell is filled" in run(path, "--out", table).output
    assert run(path, "--out", table, "--commit", "f00d").exit_code == 0
    assert kernel_times.load(table)[0].commit == "f00d"


def test_rows_of_a_changed_checkout_are_remarked_on(tmp_path: Path) -> None:
    path = results(tmp_path / "r.json", benchmark(attention("flash", 512, 0.5), commit="f00d-dirty"))
    assert "f00d-dirty: files differed" in run(path, "--out", tmp_path / "t.csv").output


def test_a_table_is_needed_outside_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = results(tmp_path / "r.json", benchmark(attention("flash", 512, 0.5)))
    assert "--out: a table is needed" in run(path).output


def test_collecting_needs_neither_torch_nor_pytest() -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['pytest'] = None\n"
        "from cegain.commands.ceg import ceg\n"
        "ceg(['bench', 'collect', 'missing.json', '--out', 'x.csv'])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "missing.json: the file is JSON that can be read" in found.stderr
    assert "Traceback" not in found.stderr


def test_collect_reads_what_it_is_given_in_order(tmp_path: Path) -> None:
    rows = [attention("flash", tokens, 0.5) for tokens in (512, 1024)]
    paths = [results(tmp_path / f"{i}.json", benchmark(row)) for i, row in enumerate(rows)]
    assert [row.seq_q for row in collect.rows(paths[::-1]).rows] == [1024, 512]
