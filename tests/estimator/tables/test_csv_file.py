"""One reader for every CSV file: what it refuses, and which line it names."""

from __future__ import annotations

from pathlib import Path

import pytest

from cegain.tables import csv_file
from cegain.tables.problems import EvidenceError, Problem


def read(path: Path, content: str, **options: bool) -> tuple[list[str], list[tuple[int, list[str]]], list[Problem]]:
    path.write_text(content, newline="")
    problems: list[Problem] = []
    header, rows = csv_file.read(path, csv_file.text_of(path, "a table", ("a", "b")), problems, **options)
    return header, list(rows), problems


def test_rows_have_the_line_that_they_start_on(tmp_path: Path) -> None:
    content = '\ufeff a ,b\r\n1, x \r\n\r\n,\r\n"2\n2","y"\r\n3,z'
    header, rows, problems = read(tmp_path / "t.csv", content)
    assert header == ["a", "b"]
    assert rows == [(2, ["1", "x"]), (5, ["2\n2", "y"]), (7, ["3", "z"])]
    assert problems == []


def test_rows_of_another_length_are_named_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    _, rows, problems = read(path, "a,b\n1\n2,y\n3,z,more\n")
    assert rows == [(3, ["2", "y"])]
    assert [(p.where, p.value) for p in problems] == [(f"{path}, line 2", "1"), (f"{path}, line 4", "3")]
    assert {p.rule for p in problems} == {"a row has 2 cells, as the header has"}


def test_only_a_strict_reader_minds_sloppy_quotes(tmp_path: Path) -> None:
    content = 'a,b\n1,x\n2,"y"y\n'
    assert read(tmp_path / "t.csv", content)[1:] == ([(2, ["1", "x"]), (3, ["2", "yy"])], [])
    _, rows, (problem,) = read(tmp_path / "t.csv", content, strict=True)
    assert rows == [(2, ["1", "x"])]
    assert problem.where.endswith("t.csv, line 3")
    assert problem.rule == "the file is valid CSV"
    with pytest.raises(EvidenceError, match=r"line 1: the file is valid CSV"):
        read(tmp_path / "t.csv", '"a"a,b\n', strict=True)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b" \n", r"a table has a header and rows \(found an empty file\). Start it with a,b."),
        (b"a,b\n1,\0\n", r"a table is UTF-8 text \(found binary content\)"),
        (b"a,b\n1,2\n1,\xfc\n", r"a table is UTF-8 text \(found byte 0xfc in line 3\)"),
        (None, "the file can be read"),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "t.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(EvidenceError, match=text):
        csv_file.text_of(path, "a table", ("a", "b"))
