"""Numbers as people write them: 7B, 2.5T, 22,592,403, 3,94, 1.0000e+18, 10^26, 1.2 x 10^21.

A comma means one thing in a whole column, which decides between thousands and decimals where one cell could be both.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np

from cegain.common.arrays import Array
from cegain.tables.cells import Cells

SUFFIXES = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12, "p": 1e15, "e": 1e18, "z": 1e21}
"""What a letter behind a number multiplies it by; B is a thousand million, as in 7B."""
EMPTY = frozenset(("", "-", "--", "nan", "none", "null", "n/a", "na", "#n/a", "inf", "-inf", "infinity", "-infinity"))
"""Cells that hold no number, in small letters."""
_SPACES = re.compile(r"[\s\u00a0\u2009\u202f_']")
_THOUSANDS = re.compile(r"[+-]?\d{1,3}(,\d{3})+(\.\d+)?")
_DECIMAL = re.compile(r"[+-]?\d+,\d+(e[+-]?\d+)?")
_BOTH = re.compile(r"[+-]?\d{1,3}(\.\d{3})+,\d+")
_POWER = re.compile(r"(?:([+-]?[\d.]+)[x*\u00d7\u00b7])?10(?:\^|\*\*)([+-]?\d+)")
_SUFFIXED = re.compile(r"([+-]?[\d.]+(?:e[+-]?\d+)?)([kmbgtpez])")


def numbers(cells: Sequence[str]) -> Array:
    """The numbers [n] of a column's cells; NaN where a cell is empty or says that it has none, infinity included.

    Raises:
        ValueError: the first cell that is no number, as its only argument.
    """
    if isinstance(cells, Cells):
        return cells.floats()
    try:
        plain = np.array(cells, dtype=np.float64)
        return np.where(np.isfinite(plain), plain, np.nan)
    except ValueError:
        pass
    cleaned = [_SPACES.sub("", cell).lower() for cell in cells]
    distinct = dict.fromkeys(cleaned)
    commas = [cell for cell in distinct if "," in cell]
    thousands = bool(commas) and all(_THOUSANDS.fullmatch(cell) for cell in commas)
    if thousands and not any(cell.count(",") > 1 or "." in cell for cell in commas):
        # 1,234 alone may be either: without a comma others of the column are whole numbers, or they are not.
        thousands = not any("." in cell for cell in distinct if "," not in cell)
    known = {}
    for i, cell in enumerate(cleaned):
        if cell not in known:
            try:
                known[cell] = number(cell, thousands=thousands)
            except ValueError:
                raise ValueError(cells[i]) from None
    return np.array([known[cell] for cell in cleaned])


def number(cell: str, *, thousands: bool = True) -> float:
    """One number; `thousands` says what a comma between digits is where it could be either.

    Raises:
        ValueError: it is none.
    """
    text = _SPACES.sub("", cell).lower()
    if text in EMPTY:
        return math.nan
    if "," in text:
        if _BOTH.fullmatch(text):
            text = text.replace(".", "").replace(",", ".")
        elif thousands and _THOUSANDS.fullmatch(text):
            text = text.replace(",", "")
        elif _DECIMAL.fullmatch(text):
            text = text.replace(",", ".")
    if power := _POWER.fullmatch(text):
        value = float(power[1] or 1) * float(f"1e{power[2]}")
        return value if math.isfinite(value) else math.nan
    try:
        value = float(text)
    except ValueError:
        suffixed = _SUFFIXED.fullmatch(text)
        if suffixed is None:
            raise
        value = float(suffixed[1]) * SUFFIXES[suffixed[2]]
    return value if math.isfinite(value) else math.nan
