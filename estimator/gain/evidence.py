"""The rows that an answer rests on: the shipped tables and the user's own."""

from __future__ import annotations

import difflib
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cegain import algorithms
from cegain.tables.files import DATA
from cegain.tables.problems import EvidenceError, Problem, refusal
from cegain.tables.published_gains import (
    OWN_GAINS,
    OWN_ROW_COLUMNS,
    PUBLISHED_GAINS,
    UNSTATED,
    Evidence,
    PublishedGain,
    digest,
    read_published_gains,
)


def shipped_files() -> list[Path]:
    """The tables that come with the package."""
    return [PUBLISHED_GAINS, *([OWN_GAINS] if OWN_GAINS.exists() else [])]


def load(paths: Iterable[str | os.PathLike[str]] = (), *, shipped: bool = True, asked: Sequence[str] = ()) -> Evidence:
    """Read the shipped tables (unless `shipped` is false) and the user's tables.

    Args:
        paths: files, or folders whose `*.csv` files are all read.
        shipped: start from the tables that come with the package.
        asked: names of the algorithms that the question is about. The only one stands for all rows of a table that
            names none; in a full table a name that is like a registered one is a slip of the pen unless it is asked
            about.

    Returns:
        the rows; a row that stands in two *files* counts once, and a remark says so. Algorithms of the user's tables
        that the registry does not have are its `own`.

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
    own: dict[str, algorithms.Algorithm] = {}
    repeated = 0
    remarks: list[str] = []
    asked = tuple(map(algorithms.normal, asked))
    tables: list[tuple[Path, _Gains]] = []
    for file in files:
        if OWN_GAINS in files and _is_same(file, DATA / "training_runs.csv"):
            remarks.append(f"{file} counts already: {OWN_GAINS.name} is made from it")
            continue
        try:
            tables.append((file, _gains(file, asked)))
        except EvidenceError as error:
            problems += error.problems
            continue
        problems += _not_ours(file, tables[-1][1].rows)
    if paths:
        own = _own([row for _, gains in tables for row in gains.rows])
    for _, gains in tables:
        table = [_against_stated(row, own) for row in gains.rows]
        remarks += gains.remarks
        before = len(rows)
        rows.update(dict.fromkeys(table))
        repeated += before + len(table) - len(rows)
    if problems:
        raise EvidenceError(tuple(dict.fromkeys(problems)))  # a file may be named twice
    if repeated:
        remarks.append(f"{repeated} row(s) stand in more than one table and count once")
    return Evidence(tuple(rows), digest(rows), (*remarks, *_said_of(own, rows)), tuple(own.items()))


def _own(rows: Sequence[PublishedGain]) -> dict[str, algorithms.Algorithm]:
    """Algorithms that rows name and the registry does not have."""
    against: dict[str, Counter[str]] = {}
    for row in rows:
        for name, baseline in zip(row.algorithm.split("+"), row.baseline.split("+"), strict=True):
            against.setdefault(name, Counter())[baseline] += 1
    unknown = {name: of for name, of in against.items() if algorithms.find(name) is None}
    if not unknown:
        return {}
    from cegain.gain import own_algorithms

    return {name: own_algorithms.of_rows(name, of) for name, of in unknown.items()}


def _against_stated(row: PublishedGain, own: Mapping[str, algorithms.Algorithm]) -> PublishedGain:
    """The row with the default baseline of an own algorithm where it names none."""
    parts = row.baseline.split("+")
    if UNSTATED not in parts or not own:
        return row
    pairs = zip(row.algorithm.split("+"), parts, strict=True)
    return row._replace(baseline="+".join(own[n].replaces[0] if b == UNSTATED and n in own else b for n, b in pairs))


MOST_SAID = 5
"""Own algorithms that are spoken of one by one."""


def _said_of(own: Mapping[str, algorithms.Algorithm], rows: Iterable[PublishedGain]) -> list[str]:
    remarks = []
    for name, entry in list(own.items())[:MOST_SAID]:
        of_it = [row.baseline for row in rows if row.algorithm == name]
        near = difflib.get_close_matches(name, algorithms.names(), 1, algorithms.MIN_SIMILARITY)
        remarks.append(
            f"{name} is not in the registry{f' (did you mean {near[0]}?)' if near else ''}: all that is known of it is "
            f"{len(of_it)} row(s), {of_it.count(entry.replaces[0])} of them against {entry.replaces[0]}; its studies "
            "are taken to scatter as those of algorithms in general"
        )
    if len(own) > MOST_SAID:
        remarks.append(f"{len(own) - MOST_SAID} more algorithms of the tables are not in the registry")
    return remarks


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


class _Gains(NamedTuple):
    rows: list[PublishedGain]
    remarks: Sequence[str] = ()


def _gains(file: Path, asked: Sequence[str]) -> _Gains:
    """Rows of a table of gains, full or with the columns that somebody has, or the gains that a table of runs shows."""
    if file in (PUBLISHED_GAINS, OWN_GAINS):
        return _Gains(read_published_gains(file))
    from cegain.run_tables import loose_gains
    from cegain.tables import table_files

    header, is_text = loose_gains.header(file)
    table = None
    if not is_text:
        table = table_files.read(file)
        header = set(table.columns)
    meant = loose_gains.columns_of(header)
    runs = "ceg" not in header and ({"variant", "C"} <= header or {"arm", "rung_flops"} <= header)
    if runs or ("ceg" not in meant and loose_gains.has_losses(header)):
        from cegain.ladders import runs_as_evidence

        return _Gains(runs_as_evidence.gains(file))
    if is_text and (loose_gains.is_full(header) or "ceg" not in meant):
        return _Gains(read_published_gains(file, lambda name: name in asked or not _is_near(name)))
    return _Gains(*loose_gains.read(file, table or table_files.read(file), asked))


def _is_near(name: str) -> bool:
    """Whether a name is like one of the registry."""
    try:
        algorithms.resolve(name)
    except algorithms.UnknownAlgorithm as error:
        return bool(error.suggestions)
    return True


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
