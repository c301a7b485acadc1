"""Cells of a long column: numbers that become text only when somebody asks for the text of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array


class Cells(Sequence[str]):
    """Text [n] that was read as numbers; an empty cell is a NaN. Rows of it are taken when they are asked for."""

    def __init__(self, values: NDArray[Any], rows: NDArray[np.intp] | None = None) -> None:
        self._values, self._rows = values, rows

    @property
    def values(self) -> NDArray[Any]:
        """The numbers [n]."""
        return self._values if self._rows is None else self._values[self._rows]

    def __len__(self) -> int:
        return len(self._values if self._rows is None else self._rows)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Cells: ...

    def __getitem__(self, at: int | slice) -> str | Cells:
        if isinstance(at, slice):
            return Cells(self.values[at])
        return _text(self._values[at if self._rows is None else self._rows[at]].item())

    def __iter__(self) -> Iterator[str]:
        return map(_text, self.values.tolist())

    def take(self, rows: NDArray[np.intp]) -> Cells:
        """Those of some rows."""
        return Cells(self._values, rows if self._rows is None else self._rows[rows])

    def floats(self) -> Array:
        """As numbers; NaN where empty or infinite."""
        values = self.values.astype(np.float64)
        return np.where(np.isfinite(values), values, np.nan)


class Words(Sequence[str]):
    """Text [n] of few different words."""

    def __init__(self, words: list[str], which: NDArray[np.intp]) -> None:
        self.words, self.which = words, which

    def __len__(self) -> int:
        return len(self.which)

    @overload
    def __getitem__(self, at: int) -> str: ...

    @overload
    def __getitem__(self, at: slice) -> Words: ...

    def __getitem__(self, at: int | slice) -> str | Words:
        return Words(self.words, self.which[at]) if isinstance(at, slice) else self.words[int(self.which[at])]

    def __iter__(self) -> Iterator[str]:
        return iter(np.array(self.words, dtype=object)[self.which].tolist())

    def take(self, rows: NDArray[np.intp]) -> Words:
        """Those of some rows."""
        return Words(self.words, self.which[rows])


def _text(value: float) -> str:
    return "" if value != value else repr(value)


def take(cells: Sequence[str], rows: NDArray[np.intp]) -> Sequence[str]:
    """The cells of some rows."""
    return cells.take(rows) if isinstance(cells, Cells | Words) else [cells[i] for i in rows.tolist()]


def distinct(cells: Sequence[str]) -> set[str]:
    """The different cells; of `Words` those of the whole column they were taken from."""
    return set(cells.words) if isinstance(cells, Words) else set(cells)


def factorized(cells: Sequence[str]) -> tuple[list[str], NDArray[np.intp]]:
    """Distinct cells, and which of them each is [n]."""
    if isinstance(cells, Words):
        there = np.bincount(cells.which, minlength=len(cells.words)) > 0
        return [word for word, is_there in zip(cells.words, there, strict=True) if is_there], np.cumsum(there)[
            cells.which
        ] - 1
    places: dict[str, int] = {}
    which = np.fromiter((places.setdefault(cell, len(places)) for cell in cells), np.intp, len(cells))
    return list(places), which
