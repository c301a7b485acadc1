"""Tables of records that grow: `training_runs.csv` and `kernel_times.csv`. Reading cells, writing rows, one writer."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cegain.tables.files import write_atomically
from cegain.tables.problems import EvidenceError, Problem


def read(path: Path, columns: Sequence[str]) -> tuple[list[tuple[int, dict[str, str]]], list[Problem]]:
    """(line, cells by column) of every row of the right length, and the rows of a wrong one.

    Raises:
        EvidenceError: the file cannot be read, or has other columns.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError([Problem(str(path), "the file can be read as UTF-8", str(error), "Correct it.")]) from None
    table = list(csv.reader(io.StringIO(text)))
    if not table or table[0] != list(columns):
        found = ",".join(table[0]) if table else "an empty file"
        raise EvidenceError(
            [Problem(f"{path}, line 1", f"the columns are {','.join(columns)}", found, "Name another file.")]
        )
    rows, problems = [], []
    for line, cells in enumerate(table[1:], 2):
        if len(cells) == len(columns):
            rows.append((line, dict(zip(columns, cells, strict=True))))
        else:
            rule = f"a row has {len(columns)} cells"
            problems.append(Problem(f"{path}, line {line}", rule, str(len(cells)), "Correct the row."))
    return rows, problems


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
