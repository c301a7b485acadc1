"""`training_runs.csv`: one row per training run, of ours or of anyone with the same code. Load, validate, append."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple, get_type_hints

from estimator.evidence import DATA, EvidenceError, Problem, write_atomically

TRAINING_RUNS = DATA / "training_runs.csv"
STATUSES = ("finished", "diverged")
_EMPTY_IF_DIVERGED = ("loss_nats_per_token", "loss_bits_per_byte")
_MAY_BE_ZERO = ("seed",)


class TrainingRun(NamedTuple):
    """One row. `flops` are useful training FLOP, `rung_flops` the budget that was asked for; losses are on held-out
    text, NaN when diverged; `tokens_per_s` and `wall_s` (seconds) are those of `device`."""

    run_id: str
    stack: str
    algorithm: str
    arm: str
    seed: int
    rung_flops: float
    n_params_active: int
    n_params_total: int
    tokens: int
    seq_len: int
    vocab: int
    flops: float
    status: str
    loss_nats_per_token: float
    loss_bits_per_byte: float
    learning_rate: float
    wall_s: float
    device: str
    tokens_per_s: float
    corpus: str
    tokenizer: str
    torch: str
    commit: str
    date: str


COLUMNS = TrainingRun._fields
_TYPES = get_type_hints(TrainingRun)


def load(path: Path) -> list[TrainingRun]:
    """Rows in file order.

    Raises:
        EvidenceError: with file, line, column, rule and remedy of everything that is wrong.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EvidenceError([Problem(str(path), "the file can be read as UTF-8", str(error), "Correct it.")]) from None
    table = list(csv.reader(io.StringIO(text)))
    if not table or tuple(table[0]) != COLUMNS:
        found = ",".join(table[0]) if table else "an empty file"
        raise EvidenceError([Problem(f"{path}, line 1", f"the columns are {','.join(COLUMNS)}", found, "Correct it.")])
    rows: list[TrainingRun] = []
    problems: list[Problem] = []
    seen: dict[str, int] = {}
    for line, cells in enumerate(table[1:], 2):
        if len(cells) != len(COLUMNS):
            rule = f"a row has {len(COLUMNS)} cells"
            problems.append(Problem(f"{path}, line {line}", rule, str(len(cells)), "Correct the row."))
            continue
        row, wrong = _parse(f"{path}, line {line}", dict(zip(COLUMNS, cells, strict=True)))
        if row.run_id in seen:
            rule = f"a run_id stands once (line {seen[row.run_id]} has it too)"
            wrong.append(Problem(f"{path}, line {line}, column run_id", rule, repr(row.run_id), "Remove one row."))
        seen.setdefault(row.run_id, line)
        problems += wrong
        rows.append(row)
    if problems:
        raise EvidenceError(problems)
    return rows


def append(path: Path, new: Iterable[TrainingRun]) -> int:
    """Add the runs whose run_id is not there yet, atomically; returns how many were added.

    Raises:
        EvidenceError: the table that is there is bad, or a new row is; nothing is written.
        OSError: the file cannot be written.
    """
    rows = load(path) if path.exists() else []
    there = {row.run_id for row in rows}
    added = list({row.run_id: row for row in new if row.run_id not in there}.values())
    problems = [p for row in added for p in _parse(f"run {row.run_id}", _cells(row))[1]]
    if problems:
        raise EvidenceError(problems)
    if added or not path.exists():
        buffer = io.StringIO()
        table = csv.writer(buffer, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(list(_cells(row).values()) for row in [*rows, *added])
        write_atomically(path, buffer.getvalue().encode())
    return len(added)


def _cells(row: TrainingRun) -> dict[str, str]:
    def cell(value: object) -> str:
        return "" if isinstance(value, float) and math.isnan(value) else str(value)

    return {name: cell(value) for name, value in row._asdict().items()}


def _parse(where: str, cells: dict[str, str]) -> tuple[TrainingRun, list[Problem]]:
    """The row, as far as it can be read, and all that is wrong with it."""
    problems: list[Problem] = []
    values: dict[str, object] = {}
    diverged = cells["status"] == "diverged"
    for name, cell in cells.items():
        place, kind = f"{where}, column {name}", _TYPES[name]
        values[name] = cell
        if kind is str:
            if name == "status" and cell not in STATUSES:
                problems.append(Problem(place, f"one of {', '.join(STATUSES)}", repr(cell), "Use one of these."))
            elif not cell.strip():
                problems.append(Problem(place, "the cell is filled", "''", "Fill it."))
            continue
        if diverged and name in _EMPTY_IF_DIVERGED:
            values[name] = math.nan
            if cell:
                problems.append(Problem(place, "a diverged run has no loss", repr(cell), "Empty the cell."))
            continue
        least = 0 if name in _MAY_BE_ZERO else math.ulp(0)
        try:
            value = kind(cell)
        except ValueError:
            value = math.nan
        values[name] = value
        if not (least <= value < math.inf):
            number = "a whole number" if kind is int else "a finite number"
            above = "of at least 0" if name in _MAY_BE_ZERO else "above 0"
            problems.append(Problem(place, f"{number} {above}", repr(cell), "Correct the number."))
    return TrainingRun(**values), problems  # type: ignore[arg-type]
