"""Tables of gains with only the columns that somebody has: a gain and an algorithm; the rest has defaults, all said.

Files are read as `table_files` reads them and numbers as `loose_numbers` does. Every row is then checked by the rules
of a full table (`published_gains`). An algorithm that the registry does not have keeps its own name.
"""

from __future__ import annotations

import csv
import difflib
import functools
import io
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cegain import algorithms
from cegain.tables import column_meanings, published_gains
from cegain.tables.loose_numbers import number, numbers
from cegain.tables.problems import EvidenceError, Problem, refusal
from cegain.tables.published_gains import COLUMNS, CONTROL, OPTIONAL_COLUMNS, QUOTED_FORMULA, UNSTATED, PublishedGain
from cegain.tables.table_files import SEPARATORS, Table

ALIASES: Mapping[str, tuple[str, ...]] = {
    "ceg": (
        "ceg", "computeequivalentgain", "gain", "cegain", "gainfactor", "speedup", "speedupfactor", "multiplier",
        "computemultiplier", "efficiencygain", "computegain", "flopgain", "ratio",
    ),
    "algorithm": (
        "algorithm", "algorithms", "algo", "method", "technique", "trick", "innovation", "intervention",
        "modification", "optimizer", "optimiser", "variant", "arm",
    ),
    "baseline": ("baseline", "base", "against", "versus", "vs", "over", "comparedto", "comparedwith", "control"),
    "flops": ("flops", "budget", "flopbudget"),
    "low": ("low", "lower", "lo", "ceglow", "gainlow", "speeduplow", "cilow", "cilower", "lowerbound"),
    "high": ("high", "upper", "hi", "ceghigh", "gainhigh", "speeduphigh", "cihigh", "ciupper", "upperbound"),
    "interval": ("interval", "probability", "coverage", "confidence", "level"),
    "study": ("study", "paper", "publication"),
    "treatment": ("treatment",),
    "flops_convention": ("flopsconvention", "convention"),
    "currency": ("currency",),
    "flop_factor": ("flopfactor",),
    "basis": ("basis",),
    "source": ("source", "url", "link", "citation", "doi", "arxiv"),
    "note": ("note", "notes", "comment", "comments", "remark", "remarks"),
    "same_as": ("sameas",),
    "experts": ("experts",),
    "seq_len": ("seqlen", "sequencelength", "contextlength"),
    "stack": ("stack",),
    "ln_ceg_se": ("lncegse",),
    "ln_excess_se": ("lnexcessse",),
}  # fmt: skip
"""Names of a column by what it is, small letters and digits only, the best first."""
NEEDED = tuple(name for name in COLUMNS if name not in OPTIONAL_COLUMNS)
"""Columns of a full table."""
NUMBERS = ("ceg", "flops", "low", "high", "interval", "flop_factor", "experts", "seq_len")
CURRENCIES = {
    "flops": "flop", "compute": "flop", "wall_clock": "time", "walltime": "time", "wall_time": "time",
    "seconds": "time", "dollars": "usd", "$": "usd",
}  # fmt: skip
"""What people call a currency."""
MOST_NAMED = 5
"""Columns that are not used and named one by one."""
_TIMES = re.compile(r"(?<=\d)\s*(x|×|-?\s?fold|times)$", re.IGNORECASE)


class Found(NamedTuple):
    """A column of a table, and what its numbers are multiplied by."""

    column: str
    factor: float


class Loose(NamedTuple):
    """Rows, in which own algorithms may be against `UNSTATED`, and what was taken where the table says nothing."""

    rows: list[PublishedGain]
    remarks: list[str]


def columns_of(names: Iterable[str]) -> dict[str, Found]:
    """Which column is what, for every column of a full table that there is."""
    ranked: dict[str, tuple[int, Found]] = {}
    for name in names:
        key = re.sub(r"[^a-z0-9]", "", name.lower())
        candidates = [(of, known.index(key), 1.0) for of, known in ALIASES.items() if key in known]
        compute = column_meanings.meaning(name)
        if not candidates and compute is not None and compute.of == "C":
            candidates = [("flops", len(ALIASES["flops"]) + compute.rank, compute.factor)]
        for of, rank, factor in candidates:
            if of not in ranked or rank < ranked[of][0]:
                ranked[of] = rank, Found(name, factor)
    return {of: found for of, (_, found) in ranked.items()}


def is_full(names: Iterable[str]) -> bool:
    """Whether a table has all columns of a full one, by their own names."""
    return {*NEEDED} <= {*names}


_HEAD = 10_000
"""Bytes that a header is looked for in."""


def header(path: Path) -> tuple[set[str], bool]:
    """The names in the first line of a file, and whether it is CSV: false for JSON, Parquet and gzip.

    None where the file cannot be read: who reads it says why.
    """
    try:
        with path.open("rb") as stream:
            head = stream.read(_HEAD)
    except OSError:
        return set(), True
    if head[:2] == b"\x1f\x8b" or head[:4] == b"PAR1":
        return set(), False
    encoding = "utf-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    text = head.decode(encoding, errors="replace").lstrip()
    if text[:1] in ("[", "{"):
        return set(), False
    line = io.StringIO(text, newline=None).readline().rstrip("\n")
    separator = max(SEPARATORS, key=line.count)
    try:
        return {name.strip() for name in next(csv.reader([line], delimiter=separator), [])}, True
    except csv.Error:
        return set(), True


def has_losses(names: Iterable[str]) -> bool:
    """Whether some column holds losses, as in a table of runs."""
    meanings = map(column_meanings.meaning, names)
    return any(meaning is not None and meaning.of in ("loss", "bits_per_byte") for meaning in meanings)


def read(path: Path, table: Table, asked: Sequence[str]) -> Loose:
    """The gains of a table.

    Args:
        path: its file.
        table: its cells.
        asked: algorithms that the question names; the only one stands for all rows where no column names any.

    Raises:
        EvidenceError: no column of gains or of algorithms, no row with a gain, or any bad cell; all problems.
    """
    columns = columns_of(table.columns)
    where = f"{path}, {table.place} 1" if table.place == "line" else str(path)
    if "ceg" not in columns:
        rule = f"a table of gains has a column {', '.join(ALIASES['ceg'][:3])}, speedup, multiplier or ratio"
        raise refusal(where, rule, _named(table.columns), "Rename the column of gains to ceg.")
    if "algorithm" not in columns and len(asked) != 1:
        rule = "a table of gains names the algorithm of each row"
        remedy = "Add a column algorithm, or ask about one algorithm only (--algo NAME)."
        raise refusal(where, rule, _named(table.columns), remedy)
    problems = _Problems(path, table)
    cells = {of: _texts(of, table.columns[found.column], problems) for of, found in columns.items()}
    for of in NUMBERS:
        if of in cells:
            cells[of] = _numbers(of, cells[of], columns[of].factor, problems)
    left_out = cells["ceg"].count("")
    if left_out == len(table) and not problems:
        raise refusal(path, "some row has a gain", f"{len(table)} without", "Fill the column of gains.")
    rows, taken, repeated = _rows(path, table, cells, asked, problems)
    problems.end()
    remarks = [_said(path, columns, len(rows), taken)]
    unused = [name for name in table.columns if name not in {found.column for found in columns.values()}]
    if unused:
        remarks.append(f"{path.name}: columns that are not used: {_named(unused, hints=True)}")
    for count, what in ((left_out, "without a gain, left out"), (repeated, "that stand twice and count once")):
        if count:
            remarks.append(f"{path.name}: {count} row(s) {what}")
    return Loose(rows, remarks)


class _Problems:
    """What is wrong, one entry per column and rule: the first place, and how many more."""

    def __init__(self, path: Path, table: Table) -> None:
        self.path, self.table = path, table
        self.first: dict[tuple[str, str], tuple[int, str, str]] = {}
        self.count: Counter[tuple[str, str]] = Counter()
        self.others: list[Problem] = []

    def __bool__(self) -> bool:
        return bool(self.first or self.others)

    def where(self, i: int) -> str:
        return f"{self.path}, {self.table.place} {self.table.first + i}"

    def add(self, i: int, column: str, rule: str, value: str, remedy: str) -> None:
        self.first.setdefault((column, rule), (i, value[:200], remedy))
        self.count[column, rule] += 1

    def end(self) -> None:
        """Raise EvidenceError where anything is wrong."""
        problems = []
        for (column, rule), (i, value, remedy) in self.first.items():
            more = self.count[column, rule] - 1
            value = repr(value) + (f", and {more} more row(s)" if more else "")
            problems.append(Problem(f"{self.where(i)}, column {column}", rule, value, remedy))
        if problems or self.others:
            raise EvidenceError([*problems, *self.others])


def _texts(of: str, cells: Sequence[str], problems: _Problems) -> list[str]:
    """Cells without what spreadsheets and people add to them."""
    texts = []
    for i, cell in enumerate(cells):
        if CONTROL.search(cell):
            problems.add(i, of, "a table holds no control characters", cell, "Remove it.")
        text = cell[1:] if QUOTED_FORMULA.match(cell) else cell
        texts.append(_TIMES.sub("", text) if of in ("ceg", "low", "high") else text)
    return texts


def _numbers(of: str, cells: Sequence[str], factor: float, problems: _Problems) -> list[str]:
    """Numbers as text that Python reads; empty where there are none."""
    if of == "interval":
        cells = [f"{number(cell[:-1]) / 100:.6g}" if re.fullmatch(r"[\d.,]+%", cell) else cell for cell in cells]
    try:
        values = numbers(cells).tolist()
    except ValueError:
        values = []
        for i, cell in enumerate(cells):
            try:
                values.append(number(cell))
            except ValueError:
                remedy = "Write 1.3 for 30% more." if cell.endswith("%") else "Correct it, or empty the cell."
                problems.add(i, of, "the cell is a number", cell, remedy)
                values.append(math.nan)
    return ["" if math.isnan(value) else repr(value * factor) for value in values]


def _rows(
    path: Path, table: Table, cells: Mapping[str, Sequence[str]], asked: Sequence[str], problems: _Problems
) -> tuple[list[PublishedGain], dict[str, set[str]], int]:
    """The rows; what was taken, by column; how many rows repeat another."""
    resolve = functools.cache(functools.partial(published_gains.algorithm_of, is_own=lambda name: True))
    default_of, baseline_of = functools.cache(_default_baseline), functools.cache(_baseline)
    known: dict[PublishedGain, None] = {}
    taken: dict[str, set[str]] = {}
    study_of: dict[str, str] = {}
    repeated = 0
    for i in range(len(table)):
        row = {column: cells[column][i] if column in cells else "" for column in COLUMNS}
        if not row["ceg"]:
            continue
        if "algorithm" not in cells:
            row["algorithm"] = asked[0]
        name = resolve(row["algorithm"])
        name = name if isinstance(name, str) else ""
        defaults = {
            "treatment": row["algorithm"], "baseline": default_of(name), "study": path.stem,
            "flops_convention": "unknown", "currency": "flop", "basis": "measured", "source": path.name,
        }  # fmt: skip
        for column, value in defaults.items():
            if not row[column]:
                row[column] = value
                taken.setdefault(column, set()).add(value)
        row["baseline"] = baseline_of(name, row["baseline"])
        currency = row["currency"].lower().replace("-", "_").replace(" ", "_")
        row["currency"] = CURRENCIES.get(currency, row["currency"])
        if not row["flops"]:
            taken.setdefault("flops", set()).add(str(i))
        gain, bad = published_gains.parse_row(row, resolve)
        for column, rule, value, remedy in bad:
            problems.add(i, column, rule, value, remedy)
        if gain is not None:
            problems.others += published_gains.key_elsewhere(problems.where(i), gain, study_of)
            repeated += gain in known
            known[gain] = None
    return list(known), taken, repeated


def _default_baseline(name: str) -> str:
    parts = [
        algorithms.get(part).replaces[0] if algorithms.find(part) is not None else UNSTATED for part in name.split("+")
    ]
    return "+".join(parts)


def _baseline(name: str, cell: str) -> str:
    """A baseline by its name in the registry, where it is an algorithm's alias and not what `name` replaces."""
    parts = cell.split("+")
    replaces = [algorithms.get(part).replaces if algorithms.find(part) is not None else () for part in name.split("+")]
    if len(parts) != len(replaces):
        return cell
    return "+".join(
        part if algorithms.normal(part) in usual else algorithms.find(part) or part
        for part, usual in zip(parts, replaces, strict=True)
    )


def _said(path: Path, columns: Mapping[str, Found], count: int, taken: Mapping[str, set[str]]) -> str:
    """What was read, and what was taken where the table says nothing."""
    words = {
        "algorithm": "the algorithm that is asked about", "baseline": "the algorithm's default baseline",
        "study": f"study {path.stem}", "currency": "currency flop", "basis": "basis measured",
        "flops_convention": "FLOP of an unknown convention", "source": f"source {path.name}",
        "treatment": "the algorithm as treatment",
    }  # fmt: skip
    read_as = ", ".join(
        f"{_shown(found.column)}{'' if found.column.strip().lower() == of else f' as {of}'}"
        f"{'' if found.factor == 1 else f' x {found.factor:g}'}"
        for of, found in columns.items()
    )
    absent = [words[of] for of in words if of in taken or (of == "algorithm" and of not in columns)]
    text = f"{path.name}: {count} gain(s), read from {read_as}"
    if absent:
        text += f"; taken where it says nothing: {', '.join(absent)}"
    if unknown := len(taken.get("flops", ())):
        text += f"; compute not known of {unknown}"
    if {"low", "high"} <= columns.keys() and "interval" not in columns:
        text += "; low to high is a range without a probability (add a column interval, as 0.9)"
    return text


def _named(names: Iterable[str], hints: bool = False) -> str:
    names = list(names)
    texts = []
    for name in names[:MOST_NAMED]:
        near = difflib.get_close_matches(name.lower()[:80], COLUMNS, 1, 0.8) if hints else []
        texts.append(_shown(name) + (f" (did you mean {near[0]}?)" if near else ""))
    rest = len(names) - MOST_NAMED
    return ", ".join(texts) + (f" and {rest} more" if rest > 0 else "")


def _shown(name: str) -> str:
    text = CONTROL.sub("?", name)
    return text if len(text) <= 40 else text[:37] + "..."
