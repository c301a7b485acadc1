"""Evidence tables: load, validate, hash, write.

A table is a CSV file with one row per published gain; the columns and their meaning are in
`estimator/data/README.md`. The loader checks every row, reports every problem at once with file, line, column,
value, rule and remedy, and never drops a row silently.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import math
import operator
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from cegain import algorithms
from cegain.common.text import as_number
from cegain.tables import csv_file
from cegain.tables.files import DATA
from cegain.tables.problems import EvidenceError, Problem, refusal

PUBLISHED_GAINS = DATA / "published_gains.csv"
OWN_GAINS = DATA / "own_gains.csv"
"""Gains of this project's own runs, made from `training_runs.csv` by `ceg ladder --write`; loaded where it exists."""

CURRENCIES = ("flop", "time", "usd", "decode", "steps", "iters_mfu", "params", "time_params", "energy")
BASES = ("measured", "observational", "derived", "claimed", "extrapolated")
CONVENTIONS = ("6nd_non_embedding", "6nd_total", "6nd", "useful", "reported", "unknown")
CONVERTIBLE = ("steps", "iters_mfu", "params")
"""Currencies that `flop_factor` can turn into FLOP. Time never is."""

OWN_ROW_COLUMNS = ("stack", "ln_ceg_se", "ln_excess_se")
"""Filled in the rows of this project's own runs, and in no others."""
OPTIONAL_COLUMNS = ("flop_factor", "same_as", "experts", "seq_len", *OWN_ROW_COLUMNS)

FLOPS_RANGE = (1.0, 1e60)
GAIN_RANGE = (1e-9, 1e9)
INTERVAL_RANGE = (0.01, 0.9999)
EXPERTS_RANGE = (1.0, 1e6)
TOKENS_RANGE = (1.0, 1e9)
ERROR_RANGE = (0.0, 100.0)
"""Far wider than anything real: what lies outside is a slip of the pen, and would overflow further on."""

UNSTATED = "?"
"""The baseline of an algorithm that is not in the registry where its row names none; its other rows decide."""
OWN = "own"
"""Kind of a row that is read off this project's own runs; that of any other row is its basis."""
QUOTED_FORMULA = re.compile(r"'(?=[=+\-@\t\r])")
"""An apostrophe that keeps spreadsheets from reading a cell as a formula, as the page of `ceg report` saves it."""
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


class PublishedGain(NamedTuple):
    """One row of `published_gains.csv`: a gain that somebody published, and where.

    `flops` is the training compute spent *with* the algorithm (FLOP), NaN where the source does not give it;
    `ceg` is in units of `currency`; `low`..`high` holds the probability `interval` (NaN: a plain range).
    `ceg * flop_factor` is the gain in FLOP (NaN: not known). Rows of one study with the same `same_as` are several
    readings of one law, ladder or run, and count once together (empty: the row is a reading of its own). `experts` is
    the size of all experts over that of those one token uses, `seq_len` in tokens (NaN: not stated).

    Rows of this project's own runs also have the `stack` that was trained ("only" where a table names none), the
    standard error of ln CEG, and of a combination that of ln(gain / product of its parts' gains at that rung), seeds in
    common counted. In all others these are empty and NaN.
    """

    algorithm: str
    treatment: str
    baseline: str
    study: str
    flops: float
    flops_convention: str
    ceg: float
    low: float
    high: float
    interval: float
    currency: str
    flop_factor: float
    basis: str
    source: str
    note: str
    same_as: str = ""
    experts: float = math.nan
    seq_len: float = math.nan
    stack: str = ""
    ln_ceg_se: float = math.nan
    ln_excess_se: float = math.nan


COLUMNS = PublishedGain._fields


class Evidence(NamedTuple):
    """Rows in file order, the SHA-256 of their sorted content, and remarks the reader should see.

    `own` are algorithms that rows name and the registry does not have, by name (for `algorithms.beside`).
    """

    rows: tuple[PublishedGain, ...]
    sha256: str
    remarks: tuple[str, ...]
    own: tuple[tuple[str, algorithms.Algorithm], ...] = ()


def is_own(row: PublishedGain) -> bool:
    """Whether a row is read off this project's own runs."""
    return bool(row.stack)


def kind_of(row: PublishedGain) -> str:
    """What a row counts as: `OWN`, or its basis."""
    return OWN if is_own(row) else row.basis


def published(tables: Evidence) -> Evidence:
    """The rows that are not this project's own: what settings shared by all algorithms are fitted to and checked on, so
    that toy models do not decide how far studies of large ones scatter."""
    rows = tuple(row for row in tables.rows if not is_own(row))
    return tables._replace(rows=rows, sha256=digest(dict.fromkeys(rows)))


def digest(rows: Iterable[PublishedGain]) -> str:
    """SHA-256 over the sorted rows: the same evidence has the same hash in any order.

    `OWN_ROW_COLUMNS` stay out of it: the study and the note of such a row say the same.
    """
    lines = sorted(repr(row[: -len(OWN_ROW_COLUMNS)]) for row in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


IsOwn = Callable[[str], bool]
"""Whether a name that the registry does not have may be that of somebody's own algorithm."""


def read_published_gains(path: Path, is_own: IsOwn = lambda name: False) -> list[PublishedGain]:
    """Read and check one table. CRLF line ends and a byte-order mark are accepted.

    is_own: for tables whose algorithms need not be in the registry.

    Raises:
        EvidenceError: unreadable, empty, not text, wrong columns, or any bad row (all of them).
    """
    text = csv_file.text_of(path, "an evidence file", COLUMNS)
    if control := CONTROL.search(text):
        value = f"{control[0]!r} in line {text.count(chr(10), 0, control.start()) + 1}"
        raise refusal(path, "a table holds no control characters", value, "Remove it.")
    has_quoted_formulas = QUOTED_FORMULA.search(text) is not None
    problems: list[Problem] = []
    rows: list[PublishedGain] = []
    first_seen: dict[PublishedGain, int] = {}
    study_of: dict[str, str] = {}
    resolve = functools.cache(functools.partial(algorithm_of, is_own=is_own))  # names repeat a lot in long tables
    header, lines = csv_file.read(path, text, problems, strict=True)
    _check_header(path, header)
    in_order = operator.itemgetter(*(header.index(name) if name in header else -1 for name in COLUMNS))
    for line, cells in lines:
        if has_quoted_formulas:
            cells = [cell[1:] if QUOTED_FORMULA.match(cell) else cell for cell in cells]
        cells.append("")  # what a missing column holds
        row, bad = parse_row(dict(zip(COLUMNS, in_order(cells), strict=True)), resolve)
        if row is None:
            where = f"{path}, line {line}, column"
            problems += [Problem(f"{where} {name}", rule, repr(value), remedy) for name, rule, value, remedy in bad]
            continue
        if (first := first_seen.setdefault(row, line)) != line:
            remedy = "Remove one; repeats of an experiment differ in treatment, study or note."
            rule = "a row stands once in a table"
            problems.append(Problem(f"{path}, line {line}", rule, f"the same as line {first}", remedy))
        problems += key_elsewhere(f"{path}, line {line}", row, study_of)
        rows.append(row)
    if not rows and not problems:
        raise refusal(path, "a table has at least one row", "only a header", "Add rows, or leave the file out.")
    if problems:
        raise EvidenceError(problems)
    return rows


def key_elsewhere(where: str, row: PublishedGain, study_of: dict[str, str]) -> list[Problem]:
    """What is wrong with the `same_as` of a row; `study_of` remembers the study of every key."""
    if not row.same_as or (study := study_of.setdefault(row.same_as, row.study)) == row.study:
        return []
    rule = "a key of same_as stands in one study"
    value = f"{row.same_as!r} in {study!r} and in {row.study!r}"
    remedy = "Two studies that read the same runs are one study; else take another key."
    return [Problem(f"{where}, column same_as", rule, value, remedy)]


def _check_header(path: Path, header: list[str]) -> None:
    problems = []
    missing = [name for name in COLUMNS if name not in header and name not in OPTIONAL_COLUMNS]
    if missing:
        rule, value = f"the columns are {', '.join(COLUMNS)}", f"no {', '.join(missing)}"
        remedy = "Add the missing columns; cells may be empty where the value is not known."
        if "ceg" in missing and "algorithm" in missing:
            remedy += " A table of your own needs a gain (ceg, gain or speedup) and the algorithm only."
        if len(header) == 1 and re.search(r"[;\t|]", header[0]):
            remedy = "Separate cells by commas."
        problems.append(Problem(f"{path}, line 1", rule, value, remedy))
    for name in header:
        if name not in COLUMNS:
            near = difflib.get_close_matches(name, COLUMNS, 1)
            hint = f"Did you mean {near[0]}?" if near else "Remove it, or put its text into note."
            problems.append(Problem(f"{path}, line 1", "every column is a known one", repr(name), hint))
    for name in sorted({n for n in header if header.count(n) > 1}):
        problems.append(Problem(f"{path}, line 1", "a column stands once", repr(name), "Remove the second one."))
    if problems:
        raise EvidenceError(problems)


BadCell = tuple[str, str, str, str]  # column, rule, value, remedy


_NUMBERS = {
    "flops": ("a number of FLOP above 0", FLOPS_RANGE),
    "ceg": ("a gain above 0", GAIN_RANGE),
    "low": ("a gain above 0", GAIN_RANGE),
    "high": ("a gain above 0", GAIN_RANGE),
    "interval": ("a probability above 0", INTERVAL_RANGE),
    "flop_factor": ("a factor above 0", GAIN_RANGE),
    "experts": ("all experts over active ones, 1 or more,", EXPERTS_RANGE),
    "seq_len": ("a number of tokens", TOKENS_RANGE),
    "ln_ceg_se": ("a standard error", ERROR_RANGE),
    "ln_excess_se": ("a standard error", ERROR_RANGE),
}
"""Columns of numbers: what the cell holds, and its ends. All but `ceg` may be empty."""


def parse_row(
    cells: dict[str, str], resolve: Callable[[str], str | BadCell]
) -> tuple[PublishedGain | None, list[BadCell]]:
    """The row in cells by column (in the order of `COLUMNS`), or all that is wrong with it.

    resolve: `algorithm_of`, or what remembers its answers.
    """
    bad: list[BadCell] = []
    values: dict[str, Any] = cells.copy()
    name = resolve(cells["algorithm"])
    if not isinstance(name, str):
        bad.append(name)
        name = ""
    values["algorithm"] = name
    for column in ("treatment", "baseline", "study", "source"):
        if not cells[column]:
            bad.append((column, "the cell is not empty", "", "Say what it is."))
    parts = name.split("+")
    if len(set(parts)) < len(parts):
        bad.append(("algorithm", "an algorithm stands once in a combination", cells["algorithm"], "Remove one."))
    baseline = values["baseline"] = cells["baseline"].lower().replace("-", "_").replace(" ", "_")
    if name and len(parts) != baseline.count("+") + 1:
        rule = "a combination a+b has one baseline per part, x+y"
        bad.append(("baseline", rule, baseline, "Name them in the same order."))
    for column in _NUMBERS:
        cell = cells[column]
        # One object for all: rows are keys, and a NaN is equal to itself only.
        values[column] = _number(bad, column, cell) if cell or column == "ceg" else math.nan
    gain, low, high = values["ceg"], values["low"], values["high"]
    if low > gain or high < gain:
        three = " ".join(cells[column] for column in ("low", "ceg", "high"))
        bad.append(("low" if low > gain else "high", "low <= ceg <= high", three, "Check the three."))
    if cells["interval"] and not (cells["low"] and cells["high"]):
        rule = "an interval has both low and high"
        bad.append(("interval", rule, cells["interval"], "Add the ends, or empty it."))
    currency = values["currency"] = _word(bad, "currency", cells["currency"].replace("*", "_"), CURRENCIES)
    if values["flop_factor"] == values["flop_factor"] and currency not in CONVERTIBLE:
        rule = f"a factor goes with {', '.join(CONVERTIBLE)} only"
        bad.append(("flop_factor", rule, cells["flop_factor"], "Empty the cell."))
    convention = cells["flops_convention"] or "unknown"
    values["flops_convention"] = _word(bad, "flops_convention", convention, CONVENTIONS)
    values["basis"] = _word(bad, "basis", cells["basis"], BASES)
    return (None if bad else PublishedGain._make(values.values())), bad


def _number(bad: list[BadCell], column: str, cell: str) -> float:
    """The number in a cell, NaN where it is bad. `1_5` and words are no numbers."""
    what, (least, most) = _NUMBERS[column]
    value = as_number(cell)
    if least <= value <= most and "_" not in cell:
        return value
    rule = f"the cell is {what} ({least:g} to {most:g})" + ("" if column == "ceg" else ", or empty")
    bad.append((column, rule, cell, "Correct the number."))
    return math.nan


def _word(bad: list[BadCell], column: str, cell: str, allowed: tuple[str, ...]) -> str:
    word = cell.lower()
    if word in allowed:
        return word
    near = difflib.get_close_matches(word, allowed, 1)
    hint = f"Did you mean {near[0]}?" if near else "Use one of them."
    bad.append((column, f"the cell is one of {', '.join(allowed)}", cell, hint))
    return word


_MOST_LETTERS = 80


def algorithm_of(cell: str, is_own: IsOwn) -> str | BadCell:
    """The registry's spelling of `cell` (parts of a combination in their given order), or a name of its own."""
    if not cell:
        return ("algorithm", "the cell is not empty", cell, "See `ceg list`.")
    names = []
    for part in map(str.strip, cell.split("+")):
        own = algorithms.normal(part)
        if known := algorithms.find(part):
            names.append(known)
        elif is_own(own) and len(own) <= _MOST_LETTERS and "," not in own and re.search("[a-z]", own):
            names.append(own)
        else:
            try:
                algorithms.resolve(part)
            except algorithms.UnknownAlgorithm as error:
                return ("algorithm", "the algorithm is in the registry", cell, str(error))
    return "+".join(names)
