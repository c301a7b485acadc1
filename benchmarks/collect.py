"""pytest-benchmark's JSON to rows of `kernel_times.csv`. Needs neither pytest nor torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cegain.tables import kernel_times
from cegain.tables.kernel_times import COLUMNS, KernelTime
from cegain.tables.problems import EvidenceError, Problem, refusal

_DIGITS = 6
"""Of times: far more than they are worth."""
_SECONDS = ("median_s", "p20_s", "p80_s", "p90_s")
_MARKS = ("op", "implementation", "pass")
"""What a benchmark of a kernel has in its extra_info, and no other benchmark has."""


class Collected(NamedTuple):
    """Rows in file order, how many benchmarks are no kernel's, and what readers of the rows should know."""

    rows: list[KernelTime]
    others: int
    remarks: list[str]


def rows(paths: Sequence[Path], commit: str | None = None) -> Collected:
    """Read results.

    Args:
        paths: files that `pytest benchmarks --benchmark-json FILE` wrote.
        commit: that of the code that was measured, for results that do not know it.

    Raises:
        EvidenceError: with everything that is wrong with any file.
    """
    found: list[KernelTime] = []
    problems: list[Problem] = []
    others = 0
    for path in paths:
        try:
            benchmarks = _benchmarks(path)
        except EvidenceError as error:
            problems += error.problems
            continue
        kernels = 0
        for i, benchmark in enumerate(benchmarks):
            name = benchmark.get("name", i) if isinstance(benchmark, Mapping) else i
            where = f"{path}, benchmark {name}"
            info = benchmark.get("extra_info") if isinstance(benchmark, Mapping) else None
            if isinstance(info, Mapping) and not any(mark in info for mark in _MARKS):
                others += 1
                continue
            kernels += 1
            row, wrong = _row(where, benchmark, info, commit)
            problems += wrong
            found += [] if row is None else [row]
        if not kernels:
            rule = "there is a kernel's benchmark"
            problems.append(Problem(str(path), rule, "none", "Run benchmarks/test_kernels.py with --benchmark-only."))
    if problems:
        raise EvidenceError(problems)
    changed = sorted({row.commit for row in found if row.commit.endswith("-dirty")})
    remarks = [f"{name}: files differed from the commit, so nobody can repeat these rows" for name in changed]
    return Collected(found, others, remarks)


def _benchmarks(path: Path) -> list[Any]:
    remedy = "Give a file that pytest wrote with --benchmark-json."
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValueError) as error:
        said = getattr(error, "strerror", None) or str(error)
        raise refusal(path, "the file is JSON that can be read", said, remedy) from None
    if isinstance(document, dict) and document.get("rehearsal"):
        measured = "Measure on the device: python3 -m cegain.benchmarks.gpu without --rehearse."
        raise refusal(path, "times are measured ones", "those of a rehearsal", measured)
    benchmarks = document.get("benchmarks") if isinstance(document, dict) else None
    if not isinstance(benchmarks, list):
        raise refusal(path, "the file has a list of benchmarks", "none", remedy)
    return benchmarks


def _row(where: str, benchmark: Any, info: Any, commit: str | None) -> tuple[KernelTime | None, list[Problem]]:
    remedy = "Measure anew with this version of the benchmarks."
    stats = benchmark.get("stats") if isinstance(benchmark, Mapping) else None
    if not isinstance(info, Mapping) or not isinstance(stats, Mapping):
        return None, [Problem(where, "a benchmark has extra_info and stats", "", remedy)]
    if info.get("rehearsal"):
        return None, [Problem(where, "times are measured ones", "that of a rehearsal", remedy)]
    filled = dict(info)
    if commit and not filled.get("commit"):
        filled["commit"] = commit
    # A size that the operation does not have may be missing.
    needed = [name for name in COLUMNS if name not in kernel_times.ALL_SIZES]
    missing = [name for name in needed if name not in filled]
    if missing:
        return None, [Problem(where, "extra_info has every column", f"no {', '.join(missing)}", remedy)]
    cells = {name: _cell(name, filled.get(name)) for name in COLUMNS}
    row, problems = kernel_times.parse(where, cells)
    if not problems and not _same(stats.get("median"), filled["median_s"]):
        said = f"{filled['median_s']!r} and {stats.get('median')!r}"
        problems.append(Problem(where, "extra_info's median_s is the median of stats", said, remedy))
    return (None if problems else row), problems


def _cell(name: str, value: object) -> str:
    if value is None:
        return ""
    return f"{value:.{_DIGITS}g}" if name in (*_SECONDS, "density") and isinstance(value, float) else str(value)


def _same(a: object, b: object) -> bool:
    return isinstance(a, int | float) and isinstance(b, int | float) and math.isclose(a, b, rel_tol=1e-6)
