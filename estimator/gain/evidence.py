"""The rows that an answer rests on: the shipped tables and the user's own."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterable
from pathlib import Path

from cegain.tables.files import DATA
from cegain.tables.problems import EvidenceError, Problem, refusal
from cegain.tables.published_gains import (
    OWN_GAINS,
    OWN_ROW_COLUMNS,
    PUBLISHED_GAINS,
    Evidence,
    PublishedGain,
    digest,
    read_published_gains,
)


def shipped_files() -> list[Path]:
    """The tables that come with the package."""
    return [PUBLISHED_GAINS, *([OWN_GAINS] if OWN_GAINS.exists() else [])]


def load(paths: Iterable[str | os.PathLike[str]] = (), *, shipped: bool = True) -> Evidence:
    """Read the shipped tables (unless `shipped` is false) and the user's tables.

    Args:
        paths: files, or folders whose `*.csv` files are all read.
        shipped: start from the tables that come with the package.

    Returns:
        the rows; a row that stands in two *files* counts once, and a remark says so.

    Raises:
        EvidenceError: with every problem of every file.
    """
    files = shipped_files() if shipped else []
    problems: list[Problem] = []
    for path in paths:
        try:
            files += _files(path)
        except EvidenceError as error:
            problems += error.problems
    rows: dict[PublishedGain, None] = {}
    repeated = 0
    remarks = []
    for file in files:
        if OWN_GAINS in files and _is_same(file, DATA / "training_runs.csv"):
            remarks.append(f"{file} counts already: {OWN_GAINS.name} is made from it")
            continue
        try:
            table = _gains(file)
        except EvidenceError as error:
            problems += error.problems
            continue
        problems += _not_ours(file, table)
        before = len(rows)
        rows.update(dict.fromkeys(table))
        repeated += before + len(table) - len(rows)
    if problems:
        raise EvidenceError(tuple(dict.fromkeys(problems)))  # a file may be named twice
    if repeated:
        remarks.append(f"{repeated} row(s) stand in more than one table and count once")
    return Evidence(tuple(rows), digest(rows), tuple(remarks))


def _is_same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # none, or a link to itself
        return False


def _not_ours(file: Path, table: Iterable[PublishedGain]) -> list[Problem]:
    """Rows of somebody's table that would pass for this project's own runs, or be joined to them."""
    if file in (PUBLISHED_GAINS, OWN_GAINS):
        return []
    ours = set(read_published_gains(OWN_GAINS)) if OWN_GAINS.exists() else set()
    foreign = [row for row in table if row not in ours]
    filled: dict[str, str] = {}
    for row in foreign:
        for column in OWN_ROW_COLUMNS:
            if (value := getattr(row, column)) not in ("", math.nan):
                filled.setdefault(row.study, f"{column} {value} in study {row.study!r}")
    rule, remedy = f"only this project's own runs fill {', '.join(OWN_ROW_COLUMNS)}", "Empty these columns."
    problems = [Problem(str(file), rule, value, remedy) for value in filled.values()]
    studies = {row.study for row in foreign} & {row.study for row in ours}
    rule, remedy = "a study of this project's own runs has no rows but ours", "Give the study another name."
    return problems + [Problem(str(file), rule, repr(study), remedy) for study in sorted(studies)]


def _gains(file: Path) -> list[PublishedGain]:
    """Rows of a table of gains, or the gains that a table of runs shows."""
    header: set[str] = set()
    with contextlib.suppress(OSError, UnicodeDecodeError), file.open(encoding="utf-8-sig") as stream:
        header = {name.strip() for name in stream.readline(10_000).split(",")}
    if "ceg" not in header and ({"variant", "C"} <= header or {"arm", "rung_flops"} <= header):
        from cegain.ladders import runs_as_evidence

        return runs_as_evidence.gains(file)
    return read_published_gains(file)


def _files(name: str | os.PathLike[str]) -> list[Path]:
    path = Path(name)
    where = f"evidence {str(path)!r}"
    if not os.fspath(name):  # Path("") is the current folder
        raise refusal("evidence", "the path is not empty", "''", "Name a file or folder.")
    try:
        path.stat()
        files = sorted(p for p in path.iterdir() if p.suffix.lower() == ".csv") if path.is_dir() else [path]
    except FileNotFoundError:
        raise refusal(where, "the path exists", "nothing there", "Check the spelling.") from None
    except (OSError, ValueError) as error:
        detail = getattr(error, "strerror", None) or str(error)
        raise refusal(where, "the path can be read", detail, "Check its spelling and permissions.") from None
    if not files:
        raise refusal(where, "a folder holds .csv files", "none", "Name a file, or add one there.")
    return files
