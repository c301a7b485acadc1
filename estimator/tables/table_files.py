"""Tables as people have them: CSV of any separator, JSON lines or arrays, a trainer's log, gzip, Parquet.

Every cell comes out as text, as it was written, so that one place decides what it means. pandas reads CSV and Parquet.
"""

from __future__ import annotations

import gzip
import io
import re
import warnings
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.tables import json_tables, log_files
from cegain.tables.cells import Cells, Words
from cegain.tables.problems import EvidenceError, Problem, refusal

SEPARATORS = (",", ";", "\t", "|")
NAMES = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MOST_COLUMNS = 10_000
_HISTORIES = ("a log:", "a trainer's state", "JSON: the curve")
_FIRST = re.compile(r"\S")
LONG = 4_000_000
"""Letters from which on plain tables are read as numbers and words at once, which is quicker by much."""
MOST_WORDS = 10_000
_LONGEST_HEAD = 1_000_000
LOG_ENDINGS = (".log", ".txt", ".out")
"""Files that are logs if some line in them looks like one."""
FOLDER_ENDINGS = (".csv", ".tsv", ".json", ".jsonl", ".txt", ".log", ".gz", ".parquet")
"""Files that a folder of tables stands for."""
MOST_FILES = 2000


class Table(NamedTuple):
    """Cells [n] of text by column; what the file is; where row i stands: `place` and `first + i` ("line 2"), or
    `places` where rows are of several files.
    """

    columns: dict[str, Sequence[str]]
    place: str
    first: int
    kind: str
    places: Sequence[str] = ()

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    @property
    def is_history(self) -> bool:
        """Whether rows are evaluations of a run by what the file is."""
        return any(what in self.kind for what in _HISTORIES)

    def at(self, row: int) -> str:
        """Where a row stands, as its reader finds it."""
        return self.places[row] if self.places else f"{self.place} {self.first + row}"


def read_all(paths: Sequence[Path]) -> Table:
    """The cells of several files, or of the files of a folder, as one table with a column `file`, a file's stem.

    Raises:
        EvidenceError: what is wrong with any of them, or a folder holds none.
    """
    files: list[Path] = []
    problems: list[Problem] = []
    for path in paths:
        if _is_folder(path):
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in FOLDER_ENDINGS and file.is_file())
            rule, remedy = f"a folder holds 1 to {MOST_FILES} tables", "Name the files."
            if not 0 < len(inside) <= MOST_FILES:
                problems.append(Problem(str(path), rule, f"{len(inside)}", remedy))
            files += inside[:MOST_FILES]
        else:
            files.append(path)
    tables: list[Table] = []
    read_files: list[Path] = []
    left_out: list[str] = []
    for file in files:
        try:
            tables.append(read(file))
            read_files.append(file)
        except EvidenceError as error:
            if file in paths or file.suffix.lower() not in LOG_ENDINGS:
                problems += error.problems
            left_out.append(file.name)  # a note beside the tables of a folder
    if problems:
        raise EvidenceError(problems)
    if not tables:
        raise refusal(paths[0], "some file is a table or a log", ", ".join(left_out), "Name the files.")
    if len(tables) == 1 and not _is_folder(paths[0]):
        return tables[0]
    names = list(dict.fromkeys(name for table in tables for name in table.columns))
    joined: dict[str, list[str]] = {"file": []} if "file" not in names else {}
    joined |= {name: [] for name in names}
    places: list[str] = []
    for file, table in zip(read_files, tables, strict=True):
        n = len(table)
        for name in names:
            joined[name] += table.columns.get(name) or [""] * n
        if "file" not in names:
            joined["file"] += [file.name.removesuffix(".gz").rsplit(".", 1)[0]] * n
        places += [f"{file.name}, {table.at(i)}" for i in range(n)]
    kind = f"{len(tables)} files, the first {tables[0].kind}" + f" (not {', '.join(left_out[:5])})" * bool(left_out)
    return Table(dict[str, Sequence[str]](joined), "row", 1, kind, places)


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that no file can have
        return False


def read(path: Path) -> Table:
    """The cells of a file.

    Raises:
        EvidenceError: it cannot be read, is empty, or is no table of a kind that is known; all problems.
    """
    try:
        if path.suffix.lower() in (".csv", ".tsv") and path.stat().st_size > LONG:
            long = _long_csv(path)
            if long is not None:
                return long
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
    if not text or text.isspace():
        raise refusal(path, "a table has a header and rows", "an empty file", "Give one run per row.")
    first = _FIRST.search(text)
    start = first[0] if first else ""
    if start in "[{" and (not path.name.lower().endswith(LOG_ENDINGS) or text.lstrip()[:2] in ('{"', "[{", "{}")):
        return _json(path, text)
    if path.suffix.lower() in LOG_ENDINGS and (log := _log(path, text)) is not None:
        return log
    return _csv(path, text)


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


def _long_csv(path: Path) -> Table | None:
    """A long table of plain numbers and words; None where it is anything else, which is then read cell by cell."""
    import pandas as pd

    with path.open("rb") as stream:
        start = stream.readline(_LONGEST_HEAD)
    try:
        head = start.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        return None
    separator = max(SEPARATORS, key=head.count)
    names = [name.strip() for name in head.split(separator)]
    if '"' in head or not all(names) or len(set(names)) < len(names) or len(names) > MOST_COLUMNS:
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # parts of a column may be of several kinds; such a table is not for here
            frame = pd.read_csv(
                path, sep=separator, keep_default_na=False, na_values=["", "nan", "NaN", "inf", "-inf"],
                skip_blank_lines=False, index_col=False,
            )  # fmt: skip
    except (pd.errors.ParserError, ValueError):
        return None
    columns: dict[str, Sequence[str]] = {}
    for name, label in zip(names, frame.columns, strict=True):
        values = frame[label].to_numpy()
        if values.dtype.kind in "if":
            columns[name] = Cells(values)
            continue
        which, words = pd.factorize(frame[label], use_na_sentinel=False)
        known = ["" if word != word else str(word).strip() for word in words.tolist()]
        if len(known) > MOST_WORDS or any(word[:1].isdigit() for word in known):
            return None  # numbers as people write them are among the words
        columns[name] = Words(known, which.astype(np.intp))
    return Table(columns, "line", 2, f"CSV between {NAMES[separator]}") if len(frame) else None


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
    found, kind, place = json_tables.records(path, text)
    cells = found if isinstance(found, json_tables.Columns) else json_tables.columns(found)
    return _named(path, list(cells), list(cells.values()), place, 1, kind)


def _log(path: Path, text: str) -> Table | None:
    """A log of training, where some line has a loss beside a step."""
    found, kind = log_files.records(text.splitlines())
    if not found:
        return None
    cells = json_tables.columns(found)
    return _named(path, list(cells), list(cells.values()), "evaluation", 1, kind)


def _named(path: Path, names: Sequence[str], columns: Sequence[list[str]], place: str, first: int, kind: str) -> Table:
    found: dict[str, Sequence[str]] = {}
    for i, (name, cells) in enumerate(zip(names, columns, strict=True), 1):
        if not name and not any(cells):
            continue
        found[name if name and name not in found else f"{name or 'column'} {i}"] = cells
    if not found or not len(next(iter(found.values()))):
        raise refusal(path, "a table has a header and rows", "no rows", "Give one run per row.")
    return Table(found, place, first, kind)
