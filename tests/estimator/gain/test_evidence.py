"""The loader: what is accepted, and that everything wrong is named at once, with place, rule, value and remedy."""

import csv
import io
import math
import os
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cegain.gain.evidence import load
from cegain.tables import problems
from cegain.tables.files import write_atomically
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import COLUMNS as ALL_COLUMNS
from cegain.tables.published_gains import OWN_ROW_COLUMNS, PUBLISHED_GAINS, read_published_gains

GOOD = {
    "algorithm": "moe", "treatment": "8 experts", "baseline": "dense", "study": "s1", "flops": "1e22",
    "flops_convention": "useful", "ceg": "4", "currency": "flop", "basis": "measured", "source": "a source",
}  # fmt: skip


COLUMNS = tuple(name for name in ALL_COLUMNS if name not in ("same_as", *OWN_ROW_COLUMNS))
"""Those that anybody's table has."""
WITH_KEY = (*COLUMNS, "same_as")


def table(*rows: dict[str, str], columns: tuple[str, ...] = COLUMNS) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: v for k, v in (GOOD | row).items() if k in columns} for row in rows)
    return stream.getvalue()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: str | bytes, name: str = "mine.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


Save = Callable[..., Path]


def problems(path: Path) -> tuple[problems.Problem, ...]:
    with pytest.raises(EvidenceError) as caught:
        load([path], shipped=False)
    for problem in caught.value.problems:
        assert str(path) in problem.where
        assert all((problem.rule, problem.value, problem.remedy))
    return caught.value.problems


def test_a_row_is_read_as_it_stands(save: Save) -> None:
    content = table({"low": "3", "high": "5", "interval": "0.9", "note": 'a "word", and\nanother line'})
    (row,) = load([save(content)], shipped=False).rows
    assert (row.algorithm, row.flops, row.ceg, row.low, row.high, row.interval) == ("moe", 1e22, 4, 3, 5, 0.9)
    assert row.note == 'a "word", and\nanother line'
    assert math.isnan(row.flop_factor)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("\n", "\r"),
        lambda text: "\ufeff" + text,
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text + "\n\n  \n",
        lambda text: text.rstrip("\n"),
        lambda text: text.replace(",", " , "),
    ],
    ids=["CRLF", "CR", "BOM", "both", "blank lines at the end", "no end of line", "spaces"],
)
def test_forms_of_the_same_table_read_alike(save: Save, change: Callable[[str], str]) -> None:
    plain = table({"flops": ""}, {"study": "s2", "source": "Müller 2020"})
    expected = load([save(plain)], shipped=False)
    assert load([save(change(plain))], shipped=False) == expected


def test_column_order_and_spelling_of_names_do_not_matter(save: Save) -> None:
    expected = load([save(table({"algorithm": "flash_attention"}))], shipped=False)
    turned = tuple(reversed(COLUMNS))
    words = {"algorithm": "Flash-Attention", "baseline": "Dense", "currency": "FLOP"}
    assert load([save(table(words, columns=turned))], shipped=False) == expected


def test_flop_factor_may_be_left_out(save: Save) -> None:
    columns = tuple(c for c in COLUMNS if c != "flop_factor")
    assert len(load([save(table({}, columns=columns))], shipped=False).rows) == 1


def test_a_key_stands_in_one_study(save: Save) -> None:
    law = {"same_as": "law"}
    path = save(table(law, law | {"note": "b"}, law | {"study": "s2"}, columns=WITH_KEY))
    (problem,) = problems(path)
    assert problem.where.endswith("line 4, column same_as")
    assert "'law' in 's1' and in 's2'" in problem.value


def test_a_key_changes_the_digest(save: Save) -> None:
    tables = [table({}), *(table({"same_as": key}, columns=WITH_KEY) for key in ("", "law"))]
    without, empty, keyed = (load([save(content)], shipped=False).sha256 for content in tables)
    assert without == empty != keyed


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (table().encode(), "only a header"),
        (bytes(range(256)), "binary content"),
        (table({"note": "x\0y"}).encode(), "binary content"),
        (table({}).encode("utf-16"), "UTF-8"),
        (table({"source": "Müller"}).encode("latin-1"), "0xfc in line 2"),
        (table({"note": "\x1b[31mred"}).encode(), "'\\x1b' in line 2"),
        (table({}).replace(",", ";").encode(), "Separate cells by commas"),
        (table({}).replace(",", "\t").encode(), "Separate cells by commas"),
        (b"a,b\n1,2\n", "the columns are algorithm"),
        (table({}).replace("ceg", "cge", 1).encode(), "Did you mean ceg?"),
        (table({}).replace("note", "note,note", 1).encode(), "a column stands once"),
        (table({}).replace("note", "note,mine", 1).encode(), "'mine'"),
        (table({"note": "x" * 200_000}).encode(), "valid CSV"),
        (("x" * 200_000 + table({})).encode(), "valid CSV"),
    ],
)
def test_files_that_are_no_table(save: Save, content: bytes, words: str) -> None:
    assert words in "\n".join(map(str, problems(save(content))))


@pytest.mark.parametrize(
    ("cell", "column", "value"),
    [
        *(({"ceg": v}, "ceg", v) for v in ("-1", "0", "", "nan", "inf", "1e309", "1e300", "four", "1_5", "4,5", "5x")),
        *(({"flops": v}, "flops", v) for v in ("-1e20", "0", "inf", "1e309", "1e-300", "many")),
        ({"low": "5"}, "low", "5 4 "),
        ({"high": "3"}, "high", " 4 3"),
        ({"low": "-3"}, "low", "-3"),
        ({"interval": "0.9"}, "interval", "0.9"),
        ({"interval": "0.9", "low": "3"}, "interval", "0.9"),
        *(({"interval": v, "low": "3", "high": "5"}, "interval", v) for v in ("90", "1", "0", "1e-320", "-0.9")),
        ({"flop_factor": "2"}, "flop_factor", "2"),
        ({"flop_factor": "-2", "currency": "steps"}, "flop_factor", "-2"),
        ({"currency": "euro"}, "currency", "euro"),
        ({"basis": "guess"}, "basis", "guess"),
        ({"flops_convention": "6nnd"}, "flops_convention", "6nnd"),
        ({"algorithm": "mooe"}, "algorithm", "mooe"),
        ({"algorithm": ""}, "algorithm", ""),
        ({"algorithm": "moe+moe", "baseline": "dense+dense"}, "algorithm", "moe+moe"),
        ({"algorithm": "moe+rope"}, "baseline", "dense"),
        *(({column: " "}, column, "") for column in ("treatment", "baseline", "study", "source")),
    ],
)
def test_a_bad_cell_is_named_with_line_column_and_value(
    save: Save, cell: dict[str, str], column: str, value: str
) -> None:
    path = save(table({}, {"study": "s2"} | cell))
    (problem,) = problems(path)
    assert problem.where == f"{path}, line 3, column {column}"
    assert problem.value == repr(value)


def test_the_nearest_algorithm_is_offered(save: Save) -> None:
    (problem,) = problems(save(table({"algorithm": "flash_atention"})))
    assert "Did you mean flash_attention" in problem.remedy


def test_all_problems_of_all_files_at_once(save: Save, tmp_path: Path) -> None:
    one = save(table({"ceg": "-1", "basis": "x"}, {"study": "s2", "flops": "x"}), "one.csv")
    two = save(table({}, {}), "two.csv")
    with pytest.raises(EvidenceError) as caught:
        load([one, tmp_path / "none.csv", two, one])
    text = str(caught.value)
    assert [p.where.removeprefix(str(tmp_path)) for p in caught.value.problems] == [
        f"evidence {str(tmp_path / 'none.csv')!r}",
        "/one.csv, line 2, column ceg",
        "/one.csv, line 2, column basis",
        "/one.csv, line 3, column flops",
        "/two.csv, line 3",
    ]
    assert "the same as line 2" in text


def test_a_row_starts_where_its_first_line_is(save: Save) -> None:
    (problem,) = problems(save(table({"note": "two\nlines"}, {"study": "s2", "note": "two\nmore", "ceg": "0"})))
    assert ", line 4, column ceg" in problem.where


def test_rows_of_another_length_are_named(save: Save) -> None:
    lines = table({}, {"study": "s2"}).splitlines()
    found = problems(save("\n".join([lines[0], lines[1] + ",more", lines[2].rsplit(",", 3)[0]])))
    assert [(p.where[-6:], p.value) for p in found] == [("line 2", "18"), ("line 3", "14")]


def test_an_open_quote_swallows_no_rows(save: Save) -> None:
    content = table({"note": "MARK"}, {"study": "s2"}, {"study": "s3"}).replace("MARK", '"open')
    (problem,) = problems(save(content))
    assert "line 2" in problem.where
    assert "valid CSV" in problem.rule


@pytest.mark.parametrize("name", ["", "none.csv", "x" * 5000, "file.csv/below.csv", "a\0b"])
def test_paths_that_lead_nowhere(save: Save, tmp_path: Path, name: str) -> None:
    save(table({}), "file.csv")
    with pytest.raises(EvidenceError, match="path"):
        load([str(tmp_path / name) if name else ""])


def test_a_folder_gives_its_tables_and_nothing_else(save: Save, tmp_path: Path) -> None:
    with pytest.raises(EvidenceError, match=r"holds \.csv files"):
        load([tmp_path])
    save(table({}), "b.csv")
    save(table({"study": "s2"}), "a.CSV")
    save("text", "readme.md")
    assert [row.study for row in load([tmp_path], shipped=False).rows] == ["s2", "s1"]


def test_a_folder_named_like_a_table_and_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "folder.csv").mkdir()
    os.symlink(tmp_path / "loop.csv", tmp_path / "loop.csv")
    with pytest.raises(EvidenceError) as caught:
        load([tmp_path])
    assert len(caught.value.problems) == 2


def test_a_row_in_two_tables_counts_once_and_a_remark_says_so(save: Save) -> None:
    one = save(table({}, {"study": "s2"}), "one.csv")
    two = save(table({"study": "s2"}, {"study": "s3"}), "two.csv")
    tables = load([one, two], shipped=False)
    assert [row.study for row in tables.rows] == ["s1", "s2", "s3"]
    (remark,) = tables.remarks
    assert remark.startswith("1 row(s)")
    assert load([one, one], shipped=False).rows == load([one], shipped=False).rows
    assert load([one, one], shipped=False).remarks


@pytest.mark.parametrize("copied", [False, True])
def test_the_shipped_table_given_again_changes_nothing_but_a_remark(tmp_path: Path, copied: bool) -> None:
    path = shutil.copy(PUBLISHED_GAINS, tmp_path / "copy.csv") if copied else PUBLISHED_GAINS
    once, twice = load(), load([path])
    assert twice._replace(remarks=()) == once
    again = len(read_published_gains(PUBLISHED_GAINS))
    assert twice.remarks == (f"{again} row(s) stand in more than one table and count once",)


def test_digest_is_of_content_not_order(save: Save) -> None:
    rows: list[dict[str, str]] = [{"study": f"s{i}"} for i in range(5)]
    forward = load([save(table(*rows))], shipped=False).sha256
    assert load([save(table(*reversed(rows)))], shipped=False).sha256 == forward
    assert load([save(table(*rows[:4]))], shipped=False).sha256 != forward
    assert load([save(table(*rows[:4], {"study": "s4", "ceg": "4.1"}))], shipped=False).sha256 != forward


def test_the_shipped_table_is_read_in_full() -> None:
    with PUBLISHED_GAINS.open(newline="", encoding="utf-8") as stream:
        assert len(read_published_gains(PUBLISHED_GAINS)) == sum(1 for _ in csv.DictReader(stream))


def test_loading_time_grows_with_rows_and_no_faster(save: Save) -> None:
    rng = random.Random(0)

    def seconds(n: int) -> float:
        rows: list[dict[str, str]] = [{"study": f"s{i}", "ceg": f"{rng.uniform(1, 9):.4g}"} for i in range(n)]
        path = save(table(*rows))
        start = time.process_time()
        assert len(load([path], shipped=False).rows) == n
        return time.process_time() - start

    seconds(100)
    assert seconds(20_000) < 10 * max(seconds(5_000), 0.02)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.csv"
    write_atomically(path, b"old")
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["out.csv"]


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@pytest.mark.parametrize("first", ["=", "+", "-", "@", "\t", "\r"])
def test_an_apostrophe_that_kept_a_spreadsheet_from_a_formula_is_taken_off(tmp_path: Path, first: str) -> None:
    formula = f'{first}HYPERLINK("x")'
    kept = "'tis", "''=1", "a'=1", "' =1", "'"

    def notes(cells: list[str]) -> list[str]:
        path = tmp_path / "mine.csv"
        row = ["moe", "t", "dense", "s", "1e18", "useful", "2", "", "", "", "flop", "", "measured", "source"]
        with path.open("w", newline="", encoding="utf-8") as stream:
            csv.writer(stream).writerows([COLUMNS, *([*row, cell, "", ""] for cell in cells)])
        return [row.note for row in read_published_gains(path)]

    assert notes([f"'{formula}"]) == [formula]
    assert notes([*kept]) == [*kept]
