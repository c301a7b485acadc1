"""Damaged tables of runs and odd command lines: an answer or one clear error, never a traceback, a hang or half a file.

Case number k is the same table and the same words on every machine: `case(k, folder)` builds it again.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from cegain.commands.ceg import ceg

FAST = range(150)
SLOW = range(150, 2150)
LONGEST_S = 10.0
LONGEST_MESSAGE = 4000
"""Letters of one refusal of `ceg import`: more is no clear error."""

Row = dict[str, Any]
Change = Callable[[random.Random, bytes], bytes]

ROWS = (0, 1, 2, 5, 12, 20, 20, 30, 30, 60, 60, 200)
LONG_ROWS = (2_000, 20_000, 100_000)
NAMES = {
    "variant": ("variant", "arch", "optimizer", "method", "model", "Group", "run", "Arm "),
    "N": ("N", "params", "n_params", "num_params", "params (M)", "parameter_count", "Model Size", "N_no_emb"),
    "D": ("D", "tokens", "total_tokens", "tokens_B", "throughput/total_tokens", "train tokens"),
    "C": ("C", "flops", "total_flops", "total_gflops", "Training FLOP", "C (1e18)", "compute_pflops"),
    "loss": ("loss", "val_loss", "eval/loss", "final_loss", "Eval Loss", "val_bpb", "perplexity", "eval_loss"),
    "seed": ("seed", "random_seed", "Seed"),
    "step": ("step", "_step", "iter", "global_step"),
    "state": ("state", "State", "status"),
    "lr": ("lr", "learning_rate", "lr", "note"),
}
"""How people call what stands in a column, and some names that mean something else."""
ODD_CELLS = (
    "", " ", "nan", "NaN", "inf", "-inf", "None", "null", "N/A", "-", "0", "-1", "-0.0", "1e400", "-1e400", "1e-400",
    "7B", "2.5T", "1,234", "1.234,5", "1 234", "10^26", "10^99999", "10**", "1.2 × 10^21", "0x10", "1_000", "١٢٣",
    "½", "²", "true", "crashed", "finished", "=1+1", "#REF!", "12%", "3.2±0.1", "(3.2)", "3.2.1", "e", "1e", ".", ",",
    "'", '"', "\\", "\t", "9" * 400, "9" * 5000, "1" * 300 + "." + "1" * 300, "é", "\x00", "\x1a", "\r", "\ufeff",
    "\u202f", "\ud83d\ude00", "[1, 2]", "{}", "2024-01-01", "1:30", "3.2e", "--", "+", "1e+", "$5", "1/3",
    "5e18 FLOP", "nats",
)  # fmt: skip
ODD_NAMES = (
    "", " ", "loss", "N", "1", "a,b", 'a"b', "{loss}", "a{b", "é/ü", "x" * 3000, "\n", "\ufeffN", "__class__",
    "loss\t",
)  # fmt: skip
FORMULAS = (
    "C=6*N*D", "C=C*1e9", "C=C*1e-9", "N=N*1e6", "N=params", "D=tokens*1e9", "loss=loss", "loss={eval/loss}",
    "variant=arch", "seed=seed", "loss=1/0", "loss=0/0", "C=1e400", "C=", "=C", "C", "C==D", "Q=1", "N=N;D=D",
    "N=__import__('os')", "N=N**9999", "N=N[0]", "loss=(" + "(" * 300 + "loss" + ")" * 301, "loss=-" * 50 + "loss",
    "loss=loss if 1 else 2", "C=9" + "9" * 5000, "N={", "N={}", "loss='a'", "D=True", "N=1e9", "D=step*524288",
    "N=124e6,D=step*524288", "variant='x'", "loss=é", "C=\x01", "loss=loss+", "loss=lambda: 0", "N=N\n",
    "loss=" + "+".join(["loss"] * 4000),
)  # fmt: skip
AMOUNTS = ("1e20", "1e19", "1e18,1e20", "1e18:1e20")
ODD_AMOUNTS = ("0", "-1", "nan", "inf", "1e400", "1e20:", ":", "", "1e18:1e18", "1e30:1e10", "ten")


class Case(NamedTuple):
    """A command line, the folder it writes into, and its outputs with what they held before."""

    words: list[str]
    folder: Path
    outputs: dict[Path, bytes | None]


def case(number: int, folder: Path, long: bool = False) -> Case:
    """The case of a number: its files are written into `folder`, which is empty."""
    rng = random.Random(f"damaged tables {number}")
    kind = rng.choices(("import", "fit", "one arm", "plot", "backtest", "evidence", "line"), (60, 10, 8, 3, 5, 7, 7))[0]
    rows = clean_rows(rng, rng.choice(LONG_ROWS) if long else rng.choice(ROWS))
    known = rng.random() < (0.6 if kind == "import" else 0.9)
    names = {key: some[0] if known else rng.choice(some) for key, some in NAMES.items() if rows and key in rows[0]}
    rows = [{names[key]: value for key, value in row.items()} for row in rows]
    intact = kind not in ("import", "line") and rng.random() < 0.5
    for _ in range(0 if intact else rng.choice((0, 0, 0, 1, 1, 2, 4))):
        rows = rng.choice(ROW_CHANGES)(rng, rows)
    content, ending = _as_csv(rng, rows, ",") if intact else rng.choice(WRITERS)(rng, rows)
    for _ in range(0 if intact else rng.choice((0, 0, 0, 0, 1, 3))):
        content = rng.choice(BYTE_CHANGES)(rng, content)
    if not intact and rng.random() < 0.15:
        content, ending = gzip.compress(content, mtime=0), f"{ending}.gz"
        if rng.random() < 0.5:
            content = rng.choice((_flipped, _cut))(rng, content)
    table = folder / rng.choice((f"runs{ending}", f"my runs é{ending}", "runs", "runs.dat", "runs.csv"))
    table.write_bytes(content)
    return _command(rng, kind, table, list(names.values()))


def clean_rows(rng: random.Random, rows: int) -> list[Row]:
    """Made-up runs of one to three arms, with some columns that people have beside them."""
    arms, beside = rng.choice((1, 2, 2, 3)), [key for key in ("seed", "step", "state", "lr") if rng.random() < 0.3]
    without = rng.choice((None, None, None, "C", "D", "variant", "N"))
    gives: list[Row] = []
    for i in range(rows):
        c = 10 ** rng.uniform(17, 21)
        n = 0.12 * math.sqrt(c) * rng.choice((0.4, 1.0, 2.5))
        d = c / (6 * n)
        row: Row = {"variant": f"arm{i % arms}", "N": round(n), "D": round(d), "C": c}
        row["loss"] = round(1.7 + 400 / n**0.34 + 410 / d**0.28 + rng.gauss(0, 0.003), 4)
        extra: Row = {"seed": i % 3, "step": 1000 * (i % 7), "state": rng.choice(("finished", "crashed")), "lr": 3e-4}
        gives.append(
            {key: value for key, value in (row | {key: extra[key] for key in beside}).items() if key != without}
        )
    return gives


def _odd_cells(rng: random.Random, rows: list[Row]) -> list[Row]:
    for _ in range(rng.choice((1, 1, 3, 10))):
        if rows and rows[0]:
            row = rng.choice(rows)
            row[rng.choice(list(rows[0]))] = rng.choice(ODD_CELLS)
    return rows


def _odd_column(rng: random.Random, rows: list[Row]) -> list[Row]:
    name, cell = rng.choice(list(rows[0])) if rows and rows[0] else "loss", rng.choice(ODD_CELLS)
    return [row | {name: cell} for row in rows]


def _other_unit(rng: random.Random, rows: list[Row]) -> list[Row]:
    name, factor = (
        rng.choice(list(rows[0])) if rows and rows[0] else "C",
        rng.choice((1e-9, 1e-6, 1e-3, 1e3, 1e9, -1, 0, 1e290, 1e-290)),
    )
    return [{k: v * factor if k == name and isinstance(v, int | float) else v for k, v in row.items()} for row in rows]


def _as_people_write(rng: random.Random, rows: list[Row]) -> list[Row]:
    write = rng.choice(
        (
            lambda v: f"{v:,.0f}",
            lambda v: f"{v:.3e}",
            lambda v: f"{v:.4f}".replace(".", ","),
            lambda v: f"{v / 1e6:.1f}M",
        )
    )
    name = rng.choice(list(rows[0])) if rows and rows[0] else "N"
    return [{k: write(v) if k == name and isinstance(v, int | float) else v for k, v in row.items()} for row in rows]


def _without_column(rng: random.Random, rows: list[Row]) -> list[Row]:
    name = rng.choice(list(rows[0])) if rows and rows[0] else ""
    return [{key: value for key, value in row.items() if key != name} for row in rows]


def _odd_name(rng: random.Random, rows: list[Row]) -> list[Row]:
    old, new = rng.choice(list(rows[0])) if rows and rows[0] else "", rng.choice(ODD_NAMES)
    return [{new if key == old else key: value for key, value in row.items()} for row in rows]


def _doubled_rows(rng: random.Random, rows: list[Row]) -> list[Row]:
    return [dict(row) for row in rows for _ in range(2)]


def _nested(rng: random.Random, rows: list[Row]) -> list[Row]:
    wrap = rng.choice(
        (lambda v: {"value": v}, lambda v: [v, v], lambda v: {"a": {"b": {}}}, lambda v: None, lambda v: True)
    )
    name = rng.choice(list(rows[0])) if rows and rows[0] else ""
    return [{key: wrap(value) if key == name else value for key, value in row.items()} for row in rows]


ROW_CHANGES = (
    _odd_cells,
    _odd_cells,
    _odd_column,
    _other_unit,
    _as_people_write,
    _without_column,
    _odd_name,
    _doubled_rows,
    _nested,
)


def _as_csv(rng: random.Random, rows: list[Row], separator: str = "") -> tuple[bytes, str]:
    stream, separator = io.StringIO(), separator or rng.choice(",,,,;;\t\t| :")
    quoting = rng.choice((csv.QUOTE_MINIMAL, csv.QUOTE_ALL, csv.QUOTE_NONNUMERIC))
    writer = csv.writer(
        stream, delimiter=separator, quoting=quoting, lineterminator=rng.choice(("\n", "\n", "\r\n", "\r"))
    )
    if rows:
        writer.writerow(list(rows[0]))
        if rng.random() < 0.1:
            writer.writerow(list(rows[0]))
    writer.writerows([list(row.values()) for row in rows])
    return _encoded(rng, stream.getvalue()), rng.choice((".csv", ".tsv", ".txt"))


def _as_json(rng: random.Random, rows: list[Row]) -> tuple[bytes, str]:
    shapes: tuple[Callable[[], Any], ...] = (
        lambda: rows,
        lambda: {"log_history": rows},
        lambda: {"runs": rows},
        lambda: {key: [row.get(key) for row in rows] for key in (rows[0] if rows else {})},
        lambda: rows[0] if rows else {},
        lambda: [list(row.values()) for row in rows],
        lambda: {"a": 1, "log_history": [*rows, 5]},
        lambda: 5,
        lambda: [[[[rows]]]],
    )
    return _encoded(rng, json.dumps(rng.choice(shapes)(), ensure_ascii=rng.random() < 0.5)), ".json"


def _as_json_lines(rng: random.Random, rows: list[Row]) -> tuple[bytes, str]:
    lines = [json.dumps(row) for row in rows]
    if lines and rng.random() < 0.3:
        lines[rng.randrange(len(lines))] = rng.choice(
            ("", "{", "[]", "5", "null", '{"a": 1}', "[" * 3000, '{"a":' * 3000, "NaN")
        )
    return _encoded(rng, "\n".join(lines)), ".jsonl"


WRITERS = (_as_csv, _as_csv, _as_csv, _as_json, _as_json_lines)


def _encoded(rng: random.Random, text: str) -> bytes:
    coding = rng.choice(
        ("utf-8",) * 12 + ("utf-8-sig", "utf-8-sig", "utf-16", "utf-16", "utf-16-le", "latin-1", "cp1252", "utf-32")
    )
    return text.encode(coding, errors=rng.choice(("replace", "ignore")))


def _flipped(rng: random.Random, content: bytes) -> bytes:
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 20)) if content else 0):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def _cut(rng: random.Random, content: bytes) -> bytes:
    return content[: rng.randrange(len(content) + 1)]


def _headless(rng: random.Random, content: bytes) -> bytes:
    return content[rng.randrange(min(len(content), 200) + 1) :]


def _inserted(rng: random.Random, content: bytes) -> bytes:
    at = rng.randrange(len(content) + 1)
    piece = rng.choice(
        (
            b"\0",
            b'"',
            b"\n",
            b"\n\n\n",
            b",",
            b"\xff\xfe",
            b"\xef\xbb\xbf",
            b"{",
            b"]",
            b"\x1f\x8b",
            b"PAR1",
            b"\r",
            b"\x80" * 9,
        )
    )
    return content[:at] + piece + content[at:]


def _prefixed(rng: random.Random, content: bytes) -> bytes:
    return (
        rng.choice(
            (b"# a comment\n", b"\n\n", b"sep=;\n", b"PAR1", b"\x1f\x8b", b"\xff\xfe", b"PK\x03\x04", b'"', b" ")
        )
        + content
    )


def _repeated(rng: random.Random, content: bytes) -> bytes:
    return content * 2


BYTE_CHANGES: tuple[Change, ...] = (_flipped, _cut, _headless, _inserted, _prefixed, _repeated)


def _command(rng: random.Random, kind: str, table: Path, names: list[str]) -> Case:
    folder = table.parent
    elsewhere = (str(folder), str(folder / "none.csv"), "", "-", "x" * 300, str(table) + "/x")
    source = str(table) if rng.random() < 0.96 else rng.choice(elsewhere)
    pair = [
        "--baseline",
        rng.choice(("arm0",) * 9 + ("none", "", "é")),
        "--variant",
        rng.choice(("arm1",) * 9 + ("arm0",)),
    ]
    amount = rng.choice(AMOUNTS if rng.random() < 0.85 else ODD_AMOUNTS)
    outputs: dict[Path, bytes | None] = {}
    if kind == "fit":
        words = ["fit", source, *pair, "--at", amount]
    elif kind == "one arm":
        resamples = rng.choice(("20",) * 9 + ("0", "-1", "x"))
        words = ["fit", source, *pair[2:], "--bootstrap", resamples, "--at", amount]
    elif kind == "plot":
        outputs = {folder / "gain.svg": None}
        words = ["plot", "--runs", source, *pair, "--flops", amount, "-o", str(folder / "gain.svg")]
    elif kind == "backtest":
        words = ["backtest", source, "--cut", rng.choice(("10",) * 9 + ("0", "nan", "1e400")), "--jobs", "1"]
    elif kind == "evidence":
        words = ["estimate", "--algo", rng.choice(("moe", "rope", "none")), "--flops", amount, "--evidence", source]
    else:
        words = ["import", source]
        if rng.random() < 0.6:
            target = folder / rng.choice(("out.csv",) * 12 + ("old.csv",) * 4 + ("out.txt", "nowhere/out.csv", "."))
            words += ["-o", str(target)]
            outputs = {target: None}
            if target.name == "old.csv":
                target.write_bytes(b"kept,as,it,was\n1,2,3,4\n")
                outputs = {target: target.read_bytes()}
        words += _import_options(rng, names)
    if kind == "line":
        return Case(_odd_line(rng, words), folder, {})
    return Case(words, folder, outputs)


def _import_options(rng: random.Random, names: list[str]) -> list[str]:
    words: list[str] = []
    if rng.random() < 0.25:
        for _ in range(rng.choice((1, 1, 2))):
            own = f"{rng.choice(('N', 'D', 'C', 'loss', 'variant', 'seed'))}={rng.choice(names or ['x'])}"
            words += ["--columns", rng.choice((own, own, rng.choice(FORMULAS)))]
    if rng.random() < 0.15:
        words += ["--unit", rng.choice(("nats", "nats", "bits", "bits", "", "perplexity"))]
    if rng.random() < 0.15:
        words += ["--bytes-per-token", rng.choice(("4.3", "4.3", "3.5", "0", "-1", "nan", "x", "1e400"))]
    return words + [flag for flag in ("--last", "--strict") if rng.random() < 0.15]


def _odd_line(rng: random.Random, words: list[str]) -> list[str]:
    changed = list(words)
    for _ in range(rng.choice((1, 2, 3))):
        at = rng.randrange(1, len(changed) + 1)
        piece = rng.choice(
            ("--", "-o", "--columns", "--nope", "", "-", "=", "--last=1", "--strict", "é", "--unit=bits", "\t")
        )
        changed[at:at] = [piece]
    if rng.random() < 0.3:
        rest = changed[1:]
        rng.shuffle(rest)
        changed = [changed[0], *rest]
    return changed


class TooLongError(Exception):
    """A command that took longer than it may."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise in the code within once it takes longer."""

    def stop(number: int, frame: object) -> None:
        raise TooLongError(f"over {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def faults(number: int, folder: Path, long: bool = False) -> list[str]:
    """What one case does that no command may do."""
    folder.mkdir()
    built = case(number, folder, long)
    before = {path for path in folder.rglob("*") if path.is_file()}
    start = time.perf_counter()
    with at_most(LONGEST_S):
        result = CliRunner().invoke(ceg, built.words)
    wrong = list(_wrong_result(result, built.words[0]))
    if time.perf_counter() - start > LONGEST_S:
        wrong.append(f"took over {LONGEST_S:g} s")
    left = {path for path in folder.rglob("*") if path.is_file()}
    if result.exit_code == 0:
        wrong += [f"{path.name}: not whole" for path in built.outputs if path.suffix == ".csv" and not _whole(path)]
    else:
        wrong += [f"left a file behind: {path.name}" for path in left - before]
        wrong += [
            f"{path.name}: lost"
            for path, held in built.outputs.items()
            if held is not None and path.read_bytes() != held
        ]
    words = " ".join(word if len(word) < 200 else f"{word[:90]}..." for word in built.words)
    return [f"case {number}{' (long)' if long else ''}: {what}\n    ceg {words}" for what in wrong]


def _wrong_result(result: Result, command: str) -> Iterable[str]:
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        yield f"{type(result.exception).__name__}: {str(result.exception)[:200]}"
    elif result.exit_code not in (0, 2):
        yield f"exit code {result.exit_code}"
    elif result.exit_code == 2:
        if result.stderr.count("Error:") != 1:
            yield f"not one error: {result.stderr[:300]!r}"
        if command == "import" and len(result.stderr) > LONGEST_MESSAGE:
            yield f"a message of {len(result.stderr)} letters: {result.stderr[:300]!r}"
        if result.stdout:
            yield f"an error and an answer: {result.stdout[:100]!r}"


def _whole(path: Path) -> bool:
    """Whether a written table has a row for every run, with a loss that is a number in each."""
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    return bool(rows) and all(
        None not in row and None not in row.values() and math.isfinite(float(row["loss"])) for row in rows
    )


def _check(numbers: Iterable[int], folder: Path, long: bool = False) -> None:
    wrong = [fault for number in numbers for fault in faults(number, folder / str(number), long)]
    assert not wrong, f"{len(wrong)} fault(s)\n" + "\n".join(wrong[:20])


def test_an_answer_or_one_clear_error(tmp_path: Path) -> None:
    _check(FAST, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_two_thousand_more(part: int, tmp_path: Path) -> None:
    _check(SLOW[part::4], tmp_path)


@pytest.mark.slow
def test_long_tables(tmp_path: Path) -> None:
    _check(range(40), tmp_path, long=True)


def test_cases_are_of_many_kinds_and_repeat(tmp_path: Path) -> None:
    """Some tables are read, some refused, and a number gives the same bytes again."""
    codes: Counter[int] = Counter()
    for number in range(60):
        for name in ("first", "again"):
            (tmp_path / f"{name}{number}").mkdir()
        first, again = (case(number, tmp_path / f"{name}{number}") for name in ("first", "again"))
        files = [sorted((p.name, p.read_bytes()) for p in built.folder.iterdir()) for built in (first, again)]
        assert files[0] == files[1]
        codes[CliRunner().invoke(ceg, first.words).exit_code] += 1
    assert codes[0] >= 3
    assert codes[2] >= 10


@pytest.mark.parametrize("damage", ["a traceback", "half a file", "a long message"])
def test_the_judge_sees_what_is_wrong(damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind of fault, put into the command, is reported."""
    from cegain.run_tables import run_import
    from cegain.tables.problems import refusal

    def damaged(path: Path, *_: object) -> object:
        if damage == "a traceback":
            raise KeyError("loss")
        if damage == "half a file":
            (path.parent / "half.tmp").write_text("variant,N")
        raise refusal(path, "x" * (5000 if damage == "a long message" else 1), "y", "Try z.")

    monkeypatch.setattr(run_import, "read", damaged)
    reported = " ".join(fault for number in range(6) for fault in faults(number, tmp_path / str(number)))
    expected = {"a traceback": "KeyError", "half a file": "half.tmp", "a long message": "a message of"}[damage]
    assert expected in reported
