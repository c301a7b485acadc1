"""`training_runs.csv`: one row per training run, of ours or of anyone with the same code. Load, validate, append."""

from __future__ import annotations

import math
from collections.abc import Iterable
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple, get_type_hints

from cegain.common.text import as_number
from cegain.tables import records
from cegain.tables.files import DATA
from cegain.tables.problems import Problem

TRAINING_RUNS = DATA / "training_runs.csv"
STATUSES = ("finished", "diverged")
ROLES = ("ladder", "learning_rate")
"""What a run was made for: to stand in its arm's ladder, or to find the learning rate of it."""
_EMPTY_IF_DIVERGED = ("loss_nats_per_token", "loss_bits_per_byte")
_MAY_BE_ZERO = ("seed",)
_CHOICES = {"status": STATUSES, "role": ROLES}


class TrainingRun(NamedTuple):
    """One row. `flops` are useful training FLOP, `rung_flops` the budget that was asked for; losses are on held-out
    text, NaN when diverged; `tokens_per_s` and `wall_s` (seconds) are those of `device`; `command` repeats the run."""

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
    role: str
    command: str


COLUMNS = TrainingRun._fields
_TYPES = get_type_hints(TrainingRun)


def append(path: Path, new: Iterable[TrainingRun]) -> int:
    """Add the runs whose run_id is not there yet, atomically; returns how many were added.

    A run that is there stays as it is, but for its role: one that was made to find a learning rate, and is found to
    stand in the ladder too, does so from now on. Several processes may append to one table.

    Raises:
        EvidenceError: the table that is there is bad, or a new row is; nothing is written.
        OSError: the file cannot be written.
    """

    def merged(old: TrainingRun, new: TrainingRun) -> TrainingRun:
        return old._replace(role="ladder") if new.role == "ladder" else old

    return _FORMAT.append(path, new, merged)


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
            if name in _CHOICES and cell not in _CHOICES[name]:
                problems.append(Problem(place, f"one of {', '.join(_CHOICES[name])}", repr(cell), "Use one of these."))
            elif not cell.strip():
                problems.append(Problem(place, "the cell is filled", "''", "Fill it."))
            continue
        if diverged and name in _EMPTY_IF_DIVERGED:
            values[name] = math.nan
            if cell:
                problems.append(Problem(place, "a diverged run has no loss", repr(cell), "Empty the cell."))
            continue
        least = 0 if name in _MAY_BE_ZERO else math.ulp(0)
        value = values[name] = as_number(cell, kind)
        if not (least <= value < math.inf):
            number = "a whole number" if kind is int else "a finite number"
            above = "of at least 0" if name in _MAY_BE_ZERO else "above 0"
            problems.append(Problem(place, f"{number} {above}", repr(cell), "Correct the number."))
    return TrainingRun(**values), problems  # type: ignore[arg-type]


_FORMAT = records.Format(
    COLUMNS, _parse, _cells, attrgetter("run_id"), "a run_id stands once", lambda row: f"run {row.run_id}"
)
load = _FORMAT.load
