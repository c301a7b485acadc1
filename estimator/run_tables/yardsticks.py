"""Whether two arms' losses were measured alike: tokenizer, vocabulary, corpus, evaluation set, sequence length.

Nats per token compare no tokenizers: longer tokens hold more nats. Where the table has bits per byte, these are used
instead; where it has not, or where texts differ, the arms are compared as they are and no answer is `ok`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.tables.column_meanings import meaning, yardstick
from cegain.tables.loose_numbers import numbers

Rows = NDArray[np.bool_]
PER_TOKEN = ("tokenizer", "vocabulary")
"""What bits per byte make comparable."""


class Compared(NamedTuple):
    """Losses [n] to compare two arms by (the table's where `loss` is None), what was done, and what forbids `ok`."""

    loss: Array | None
    notes: tuple[str, ...]
    unlike: str


ALIKE = Compared(None, (), "")


def compared(cells: Mapping[str, Sequence[str]], first: Rows, second: Rows, told_by: Sequence[str] = ()) -> Compared:
    """How two arms can be compared.

    Args:
        cells: all cells [n] of the table by column.
        first: which rows [n] the one arm has.
        second: which the other.
        told_by: columns that the arms are told apart by, which differ by intent.
    """
    differ: dict[str, tuple[str, str]] = {}
    for name, column in cells.items():
        what = yardstick(name)
        if what is None or name in told_by or what in differ:
            continue
        sets = [sorted({column[i] for i in np.flatnonzero(rows).tolist()} - {""}) for rows in (first, second)]
        if sets[0] != sets[1] and all(sets):
            differ[what] = (", ".join(sets[0][:3]), ", ".join(sets[1][:3]))
    tokens_differ = any(what in differ for what in PER_TOKEN)
    if tokens_differ and "corpus" in differ and _same_text(*differ["corpus"]):
        del differ["corpus"]  # one text, cut into tokens in two ways
    if not differ:
        return ALIKE
    said = "; ".join(f"{what} {a} against {b}" for what, (a, b) in differ.items())
    per_byte = _per_byte(cells, first | second) if tokens_differ else None
    if per_byte is None:
        return Compared(None, (), f"the arms' losses were measured unlike ({said})")
    note = f"compared in bits per byte, since the arms differ in {said}"
    others = [what for what in differ if what not in PER_TOKEN]
    return Compared(per_byte, (note,), f"the arms' losses were measured unlike ({said})" if others else "")


def _same_text(first: str, second: str) -> bool:
    """Whether two names of corpora differ only in the hash of their tokens, as in web@0a1b."""
    return first.split("@")[0] == second.split("@")[0]


def _per_byte(cells: Mapping[str, Sequence[str]], rows: Rows) -> Array | None:
    """Bits per byte [n] of a table that has them for all these rows."""
    for name, column in cells.items():
        known = meaning(name)
        if known is None or known.of != "bits_per_byte":
            continue
        try:
            found = numbers(column)
        except ValueError:
            continue
        if np.isfinite(found[rows]).all() and (found[rows] > 0).all():
            return found
    return None
