"""`kernel_times.csv`: one row per operation, implementation, pass and shape on a device. Load, check, append."""

from __future__ import annotations

import datetime
import math
from typing import Any, NamedTuple, get_type_hints

from cegain.common.text import as_number
from cegain.tables import records
from cegain.tables.files import DATA
from cegain.tables.problems import Problem

KERNEL_TIMES = DATA / "kernel_times.csv"
PASSES = ("fwd", "bwd", "fwd_bwd", "decode")
PATTERNS = ("causal", "full", "window", "strided", "fixed", "blocks")
_ATTENTION = ("batch", "heads_q", "heads_kv", "seq_q", "seq_kv", "head_dim")
SIZES: dict[str, tuple[str, ...]] = {
    "attention": _ATTENTION,
    "decode": _ATTENTION,
    "moe": ("seq_q", "d_model", "d_ff", "experts", "top_k"),
    "feed_forward": ("seq_q", "d_model", "d_ff"),
    "gemm": ("seq_q", "d_model", "d_ff"),
    "copy": (),
}
"""Every operation, and the sizes it has: those of the others are empty cells, 0 in the record. seq_q counts the tokens
of a feed-forward layer, d_ff is an expert's width, and gemm multiplies [seq_q, d_model] by [d_model, d_ff]."""
SESSION = ("device", "torch", "triton", "driver", "commit")
"""What rows that may be compared have in common."""
_CHOICES = {"op": tuple(SIZES), "pass": PASSES}
_MAY_BE_EMPTY = ("triton", "driver")  # on a CPU
_MEASURED = (
    "n_repeats", "median_s", "p20_s", "p80_s", "p90_s", "flops", "executed_flops", "bytes", "peak_bytes", "date",
)  # fmt: skip


class KernelTime(NamedTuple):
    """One row; the column of `pass_` is `pass`. Times are seconds of the device, quantiles over `n_repeats` rounds.

    `density` is the share of query-key pairs that are not masked (NaN unless attention); `flops` are useful ones,
    `executed_flops` and `bytes` what the implementation does (`cegain.kernels.costs`); `peak_bytes` is the memory that
    a call adds at its peak, NaN where it was not measured; `triton` and `driver` are empty on a CPU.
    """

    device: str
    op: str
    implementation: str
    pass_: str
    pattern: str
    dtype: str
    batch: int
    heads_q: int
    heads_kv: int
    seq_q: int
    seq_kv: int
    head_dim: int
    d_model: int
    d_ff: int
    experts: int
    top_k: int
    density: float
    n_repeats: int
    median_s: float
    p20_s: float
    p80_s: float
    p90_s: float
    flops: int
    executed_flops: int
    bytes: int
    peak_bytes: float
    torch: str
    triton: str
    driver: str
    commit: str
    date: str

    def session(self) -> tuple[str, ...]:
        """Device, versions and commit: rows that may be compared, and share ceilings."""
        return tuple(getattr(self, name) for name in SESSION)

    def key(self) -> tuple[object, ...]:
        """What was measured, where, with which versions: all but the measurement."""
        # Two copies differ in nothing but their size.
        size = self.bytes if self.op == "copy" else 0
        # NaN is unequal to itself.
        fixed = (str(v) for name, v in zip(COLUMNS, self, strict=True) if name not in _MEASURED)
        return (*fixed, size)


COLUMNS = tuple(name.rstrip("_") for name in KernelTime._fields)
ALL_SIZES = tuple(dict.fromkeys(size for sizes in SIZES.values() for size in sizes))
"""Columns that are empty where an operation has no such size."""
_TYPES = {name.rstrip("_"): kind for name, kind in get_type_hints(KernelTime).items()}


def cells(row: KernelTime) -> dict[str, str]:
    """A row as it is written: nothing for NaN and for a size that the operation does not have."""

    def cell(name: str, value: object) -> str:
        absent = (isinstance(value, float) and math.isnan(value)) or (name in ALL_SIZES and value == 0)
        return "" if absent else str(value)

    return {name: cell(name, value) for name, value in zip(COLUMNS, row, strict=True)}


def parse(where: str, cells: dict[str, str]) -> tuple[KernelTime, list[Problem]]:
    """The row in cells by column, as far as it can be read, and all that is wrong with it."""
    problems: list[Problem] = []

    def wrong(name: str, rule: str, remedy: str) -> None:
        problems.append(Problem(f"{where}, column {name}", rule, repr(cells[name]), remedy))

    values: dict[str, Any] = {}
    op = cells["op"]
    sizes = SIZES.get(op, ())
    attends = "heads_q" in sizes
    for name, cell in cells.items():
        values[name] = cell
        if _TYPES[name] is str:
            if name in _CHOICES and cell not in _CHOICES[name]:
                wrong(name, f"one of {', '.join(_CHOICES[name])}", "Use one of these.")
            elif name == "pattern":
                if attends and cell not in PATTERNS:
                    wrong(name, f"attention has one of {', '.join(PATTERNS)}", "Use one of these.")
                elif cell and not attends:
                    wrong(name, f"{op or 'this operation'} has no pattern", "Empty the cell.")
            elif not cell.strip() and name not in _MAY_BE_EMPTY:
                wrong(name, "the cell is filled", "Fill it.")
            elif name == "date" and not _is_date(cell):
                wrong(name, "a date as in 2026-01-31 or 2026-01-31T12:00:00+00:00", "Correct it.")
        elif name in ALL_SIZES and op in SIZES and name not in sizes:
            values[name] = 0
            if cell:
                wrong(name, f"{op} has no such size", "Empty the cell.")
        elif name == "density" and not attends:
            values[name] = math.nan
            if cell:
                wrong(name, "attention has a density, and nothing else", "Empty the cell.")
        elif name == "peak_bytes" and not cell:
            values[name] = math.nan
        else:
            values[name] = as_number(cell, _TYPES[name])
            least = 0 if name in ("flops", "executed_flops", "peak_bytes") else math.ulp(0)
            if not least <= values[name] < math.inf:
                number = "a whole number" if _TYPES[name] is int else "a finite number"
                wrong(name, f"{number} {'of at least' if least == 0 else 'above'} 0", "Correct the number.")
    if not problems:
        for low, high in (("p20_s", "median_s"), ("median_s", "p80_s"), ("p80_s", "p90_s"), ("flops", "executed_flops"),
                          ("heads_kv", "heads_q"), ("top_k", "experts")):  # fmt: skip
            if values[low] > values[high]:
                wrong(low, f"at most {high}, {cells[high]}", "Check the two.")
        if attends and values["density"] > 1:
            wrong("density", "a share of at most 1", "Correct the number.")
    return KernelTime(*values.values()), problems


def _is_date(cell: str) -> bool:
    try:
        datetime.datetime.fromisoformat(cell)
    except ValueError:
        return False
    return True


_FORMAT = records.Format(
    COLUMNS,
    parse,
    cells,
    KernelTime.key,
    "a case is measured once for each device, versions and commit",
    lambda row: f"new row of {row.op}, {row.implementation}",
)
load = _FORMAT.load
append = _FORMAT.append
"""The same case is measured anew under another commit or version only."""
