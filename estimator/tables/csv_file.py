"""Reading a CSV file: its text, its header, and its rows with the lines they start on."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from cegain.tables.problems import EvidenceError, Problem, refusal

Rows = Iterator[tuple[int, list[str]]]
"""The line that a row starts on, and its cells: stripped, as many as the header has."""


def text_of(path: Path, what: str, columns: Sequence[str]) -> str:
    """The text of a file, without a byte-order mark.

    Args:
        path: the file.
        what: what it should be, "a table of runs".
        columns: those that it has; named where the file is empty.

    Raises:
        EvidenceError: the file cannot be read, is empty, or is no text in UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        remedy = "Check its spelling and permissions."
        raise refusal(path, "the file can be read", error.strerror or str(error), remedy) from None
    if not content.strip():
        raise refusal(path, f"{what} has a header and rows", "an empty file", f"Start it with {','.join(columns)}.")
    rule, remedy = f"{what} is UTF-8 text", "Save the table as CSV in UTF-8."
    if b"\0" in content:
        raise refusal(path, rule, "binary content", remedy)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise refusal(path, rule, f"byte {content[error.start]:#04x} in line {line}", remedy) from None


def read(path: Path, text: str, problems: list[Problem], *, strict: bool = False) -> tuple[list[str], Rows]:
    """The header of a table, and its rows without the empty ones; bad ones are added to `problems` as they are met.

    CRLF line ends are accepted. strict: quotes inside a cell must be doubled, and those around it closed.

    Raises:
        EvidenceError: the header is no CSV.
    """
    reader = csv.reader(io.StringIO(text, newline=""), strict=strict)
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise EvidenceError([_no_csv(path, 1, error)]) from None

    def rows() -> Rows:
        line = reader.line_num + 1  # where the next row starts; quoted cells may hold line ends
        try:
            for row in reader:
                start, line = line, reader.line_num + 1
                cells = [cell.strip() for cell in row]
                if not any(cells):
                    continue
                if len(cells) == len(header):
                    yield start, cells
                    continue
                rule, remedy = f"a row has {len(header)} cells, as the header has", "Quote cells that contain commas."
                problems.append(Problem(f"{path}, line {start}", rule, str(len(cells)), remedy))
        except csv.Error as error:
            problems.append(_no_csv(path, line, error))

    return header, rows()


def _no_csv(path: Path, line: int, error: csv.Error) -> Problem:
    remedy = "Close quotes, and save it as CSV."
    return Problem(f"{path}, line {line}", "the file is valid CSV", str(error), remedy)
