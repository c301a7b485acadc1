"""Tables of records that grow: `training_runs.csv` and `kernel_times.csv`. Reading cells, writing rows, one writer."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cegain.tables import csv_file
from cegain.tables.files import write_atomically
from cegain.tables.problems import Problem, refusal


def read(path: Path, columns: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    """(line, cells by column) of every row of the right length, and the rows of a wrong one.

    Raises:
        EvidenceError: the file cannot be read, or has other columns.
    """
    problems: list[Problem] = []
    header, rows = csv_file.read(path, csv_file.text_of(path, "a table of records", columns), problems)
    if header != list(columns):
        raise refusal(f"{path}, line 1", f"the columns are {','.join(columns)}", ",".join(header), "Name another file.")
    return [(line, dict(zip(columns, cells, strict=True))) for line, cells in rows], problems


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
