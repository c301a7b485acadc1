"""Tables of records that grow: `training_runs.csv` and `kernel_times.csv`. Reading cells, writing rows, one writer."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from cegain.tables import csv_file
from cegain.tables.files import write_atomically
from cegain.tables.problems import EvidenceError, Problem, refusal

Row = TypeVar("Row")


@dataclass(frozen=True)
class Format(Generic[Row]):
    """How the rows of one table are read and written.

    parse: place and cells by column -> the row, as far as it can be read, and all that is wrong with it.
    cells: the way back.
    key, rule: rows of one key may not stand together, as the rule says.
    name: what a row is called that is in no file yet.
    """

    columns: tuple[str, ...]
    parse: Callable[[str, dict[str, str]], tuple[Row, list[Problem]]]
    cells: Callable[[Row], dict[str, str]]
    key: Callable[[Row], Hashable]
    rule: str
    name: Callable[[Row], str]

    def load(self, path: Path) -> list[Row]:
        """Rows in file order, or an EvidenceError with file, line, column, rule and remedy of everything wrong."""
        problems: list[Problem] = []
        text = csv_file.text_of(path, "a table of records", self.columns)
        header, lines = csv_file.read(path, text, problems)
        if header != list(self.columns):
            rule = f"the columns are {','.join(self.columns)}"
            raise refusal(f"{path}, line 1", rule, ",".join(header), "Name another file.")
        rows: list[Row] = []
        seen: dict[Hashable, int] = {}
        for line, cells in lines:
            where = f"{path}, line {line}"
            row, wrong = self.parse(where, dict(zip(self.columns, cells, strict=True)))
            problems += wrong
            if (first := seen.setdefault(self.key(row), line)) != line:
                problems.append(Problem(where, self.rule, f"the same as line {first}", "Remove one row."))
            rows.append(row)
        if problems:
            raise EvidenceError(problems)
        return rows

    def append(self, path: Path, new: Iterable[Row], merged: Callable[[Row, Row], Row] = lambda old, new: old) -> int:
        """Add the rows whose key is not there yet, atomically; returns how many were added.

        `merged` says what becomes of a row that is there and comes again: it stays. Several processes may append to one
        table.

        Raises:
            EvidenceError: the table that is there is bad, or a new row is; nothing is written.
            OSError: the file cannot be written.
        """
        with locked(path.parent):
            there = {self.key(row): row for row in (self.load(path) if path.exists() else [])}
            before = dict(there)
            for row in new:
                key = self.key(row)
                there[key] = merged(there.get(key, row), row)
            added = [row for key, row in there.items() if key not in before]
            problems = [p for row in added for p in self.parse(self.name(row), self.cells(row))[1]]
            if problems:
                raise EvidenceError(problems)
            if there != before or not path.exists():
                write(path, self.columns, map(self.cells, there.values()))
        return len(added)


def write(path: Path, columns: Sequence[str], rows: Iterable[dict[str, str]]) -> None:
    """Replace a table, atomically.

    Raises:
        OSError: it cannot be written.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(columns)
    table.writerows(list(row.values()) for row in rows)
    write_atomically(path, buffer.getvalue().encode())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder against other processes that append, where the system can (not on Windows)."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
