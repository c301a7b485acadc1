"""Tables as people have them: CSV of any separator, JSON lines or arrays, a trainer's log, gzip, Parquet.

Every cell comes out as text, as it was written, so that one place decides what it means. pandas reads CSV and Parquet.
"""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from cegain.tables.problems import EvidenceError, Problem, refusal

SEPARATORS = (",", ";", "\t", "|")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
NO_NEST = "Give one object per run."
MOST_COLUMNS = 10_000
MOST_PROBLEMS = 5
"""Rows of a wrong length that are named one by one."""


class Table(NamedTuple):
    """Cells [n] of text by column; where row i stands is `place` and `first + i` ("line 2"); what the file is."""

    columns: dict[str, list[str]]
    place: str
    first: int
    kind: str

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))


def read(path: Path) -> Table:
    """The cells of a file.

    Raises:
        EvidenceError: it cannot be read, is empty, or is no table of a kind that is known; all problems.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = "Check its spelling and permissions."
        raise refusal(path, "the file can be read", error.strerror or str(error), remedy) from None
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise refusal(path, "the file is whole", str(error), "Compress or copy it again.") from None
    if content[:4] == b"PAR1":
        return _parquet(path, content)
    text = _text(path, content)
    if not text.strip():
        raise refusal(path, "a table has a header and rows", "an empty file", "Give one run per row.")
    start = text.lstrip()[:1]
    return _json(path, text) if start in "[{" else _csv(path, text)


def _text(path: Path, content: bytes) -> str:
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        try:
            return content.decode("utf-16")
        except UnicodeDecodeError:
            raise refusal(path, "a table is text", "broken UTF-16", "Save it as UTF-8.") from None
    if b"\0" in content:
        raise refusal(path, "a table is CSV, JSON or Parquet", "binary content", "Save it as one of these.")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")  # spreadsheets of old: names may look odd, numbers do not


def _csv(path: Path, text: str) -> Table:
    import pandas as pd

    head = text.lstrip("\r\n").split("\n", 1)[0]
    separator = max(SEPARATORS, key=head.count)
    if head.count(separator) > MOST_COLUMNS:
        raise refusal(
            path, f"a table has at most {MOST_COLUMNS} columns", f"{head.count(separator)}", "Give runs as rows."
        )
    try:
        frame = pd.read_csv(
            io.StringIO(text), sep=separator, dtype=str, keep_default_na=False, skipinitialspace=True, header=None
        )
    except (pd.errors.ParserError, ValueError) as error:
        said = str(error).removeprefix("Error tokenizing data. C error: ").strip()
        remedy = "Quote cells that contain the separator, and close quotes."
        rule = f"every row has as many cells as the header, between {NAMES[separator]}"
        raise refusal(path, rule, said, remedy) from None
    cells = [frame[i].fillna("").str.strip() for i in frame.columns]
    names = [str(column.iloc[0]) for column in cells]
    rows = [column.iloc[1:].tolist() for column in cells]
    return _named(path, names, rows, "line", 2, f"CSV between {NAMES[separator]}")


def _parquet(path: Path, content: bytes) -> Table:
    import pandas as pd

    try:
        frame = pd.read_parquet(io.BytesIO(content))
    except ImportError:
        raise refusal(
            path, "Parquet can be read", "no pyarrow", "Try: pip install pyarrow, or save it as CSV."
        ) from None
    except Exception as error:  # pyarrow has errors of many kinds
        raise refusal(path, "the file is whole", str(error), "Write it again.") from None
    columns = [["" if pd.isna(cell) else str(cell) for cell in frame[name]] for name in frame.columns]
    return _named(path, [str(name) for name in frame.columns], columns, "row", 1, "Parquet")


def _json(path: Path, text: str) -> Table:
    """One object per line, an array of objects, an object of columns, or a trainer's state with its log."""
    try:
        whole = json.loads(text)
    except ValueError:
        return _json_lines(path, text)
    except RecursionError:
        raise refusal(
            path, "a table in JSON is objects with names", "objects within objects without end", NO_NEST
        ) from None
    if isinstance(whole, Mapping) and isinstance(whole.get("log_history"), list):
        rows = [row for row in whole["log_history"] if isinstance(row, Mapping) and "eval_loss" in row]
        return _records(path, rows or whole["log_history"], "record", 1, "a trainer's state: its evaluations")
    if isinstance(whole, Mapping) and whole and all(isinstance(values, list) for values in whole.values()):
        columns = [[_cell(value) for value in values] for values in whole.values()]
        if len({len(column) for column in columns}) == 1:
            return _named(path, list(map(str, whole)), columns, "row", 1, "JSON by columns")
    rows = [whole] if isinstance(whole, Mapping) else whole
    return _records(path, rows, "record", 1, "JSON")


def _json_lines(path: Path, text: str) -> Table:
    rows, problems = [], []
    for i, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except RecursionError:
            problems.append(
                Problem(f"{path}, line {i}", "each line is one JSON object", "objects without end", NO_NEST)
            )
        except ValueError as error:
            rule, remedy = "each line is one JSON object", "Write it again, or give CSV."
            problems.append(Problem(f"{path}, line {i}", rule, str(error), remedy))
    if problems:
        more = len(problems) - MOST_PROBLEMS
        rest = (
            [Problem(str(path), "and so are the others", f"{more} more line(s) that are not", "")] if more > 0 else []
        )
        raise EvidenceError([*problems[:MOST_PROBLEMS], *rest])
    return _records(path, rows, "line", 1, "JSON lines")


def _records(path: Path, rows: Sequence[Any], place: str, first: int, kind: str) -> Table:
    flat = [_flat(row) for row in rows if isinstance(row, Mapping)]
    if not flat or len(flat) < len(rows):
        raise refusal(path, "a table in JSON is objects with names", "something else", "Give one object per run.")
    names = list(dict.fromkeys(name for row in flat for name in row))
    return _named(path, names, [[row.get(name, "") for row in flat] for name in names], place, first, kind)


def _flat(row: Mapping[str, Any], before: str = "") -> dict[str, str]:
    """Cells by name; those of an object within have its name before theirs, as in summary/loss."""
    cells: dict[str, str] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            cells |= _flat(value, f"{before}{name}/")
        elif not isinstance(value, list):
            cells[f"{before}{name}"] = _cell(value)
    return cells


def _cell(value: object) -> str:
    return "" if value is None else repr(value) if isinstance(value, float) else str(value).strip()


def _named(path: Path, names: Sequence[str], columns: Sequence[list[str]], place: str, first: int, kind: str) -> Table:
    found: dict[str, list[str]] = {}
    for i, (name, cells) in enumerate(zip(names, columns, strict=True), 1):
        if not name and not any(cells):
            continue
        found[name if name and name not in found else f"{name or 'column'} {i}"] = cells
    if not found or not len(next(iter(found.values()))):
        raise refusal(path, "a table has a header and rows", "no rows", "Give one run per row.")
    return Table(found, place, first, kind)
