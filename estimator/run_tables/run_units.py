"""Whether the counts of a table of runs can be what they are called: C near 6 N D, losses in nats per token of text.

Counts that contradict each other are refused with the unit that would bring them together, never passed on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.tables.cells import factorized
from cegain.tables.problems import EvidenceError, Problem, refusal

NEAR = 10.0
"""C within this factor of 6 N D is one count of the same work: attention, embeddings and routed experts explain it."""
CLOSE = 0.02
"""log10 of C / (6 N D) that is not worth a word: 5%."""
NATS = (1.3, 15.0)
"""Losses in nats per token of text lie between these, assumed; bits per byte below, perplexities above."""
LEAST_PARAMETERS = 1000.0
LEAST_FLOP = 1e6
"""FLOP for every parameter: 170,000 tokens."""
FEW = 0.05
"""Share of losses outside of `NATS` that is named and not refused: some runs diverge."""
MANY_ARMS = 3
LN2 = math.log(2)


class SupportsPlace(Protocol):
    """Where row i stands, as its reader finds it."""

    def __getitem__(self, row: int, /) -> str: ...


def in_nats(
    path: Path, loss: Array, unit: str | None, bytes_per_token: float | None, per_byte: bool,
    columns: Mapping[str, Sequence[str]], variant: str = "",
) -> tuple[Array, list[str]]:  # fmt: skip
    """Losses [n] in nats per token, and remarks; refused if they can be none.

    Args:
        path: of the table, for messages.
        loss: as they stand in the table.
        unit: nats or bits per token, said by the owner, whose word then stands against `NATS`; None: not said.
        bytes_per_token: of the tokenizer: the losses are in bits per byte.
        per_byte: the column's name says bits per byte.
        columns: cells [n] of the other columns, to name the one that tells two units apart.
        variant: the one that tells arms apart, which may each have a unit of their own.

    Raises:
        EvidenceError: the losses can be no nats per token, or bits per byte lack the tokenizer's bytes.
    """
    factor = LN2 if per_byte or bytes_per_token or unit == "bits" else 1.0
    in_unit = loss * factor * (bytes_per_token or 1.0)
    low, high = NATS
    if per_byte and not bytes_per_token:
        rule = "bits per byte become nats per token by the tokenizer's bytes per token"
        raise refusal(path, rule, f"{loss.min():.4g} to {loss.max():.4g}", "Give --bytes-per-token 4.3, or yours.")
    outside = (in_unit < low) | (in_unit > high)
    if unit == "nats" or not outside.any():
        return in_unit, []
    if outside.mean() <= FEW:
        return in_unit, [f"{int(outside.sum())} of {len(loss)} losses lie outside of {low:g} to {high:g} nats"]
    rule = f"losses in nats per token of text lie within {low:g} to {high:g}"
    value = f"{in_unit.min():.4g} to {in_unit.max():.4g}, {int(outside.sum())} of {len(loss)} outside"
    column = _telling(outside, columns)
    if column is not None and column == variant:
        return in_unit, [f"losses of some arms lie outside of {low:g} to {high:g} nats ({value})"]
    if column is not None:
        remedy = f"Two units, told apart by the column {column}? Keep one of them in the table."
    elif np.median(in_unit) > high:
        remedy = 'Perplexities? Give their logarithm: --columns "loss=log({NAME})". Else confirm them: --unit nats.'
    else:
        remedy = "Bits per byte? Give --bytes-per-token 4.3, or yours. Nats of something else than text: --unit nats."
    raise refusal(path, rule, value, remedy)


def _telling(outside: NDArray[np.bool_], columns: Mapping[str, Sequence[str]]) -> str | None:
    """The column whose cells tell apart which losses [n] lie outside, if one does."""
    if outside.all():
        return None
    for name, cells in columns.items():
        inside, others = (
            {cell for cell, out in zip(cells, outside, strict=True) if out == side} for side in (False, True)
        )
        if len(inside) + len(others) <= max(2, len(outside) // 2) and inside.isdisjoint(others):
            return name
    return None


def ratio(N: Array, D: Array, C: Array) -> Array:
    """log10 of C / (6 N D) of every run; without tokens, of C / (6 N x 20 N), which is only good for a unit."""
    tokens = np.where(np.isfinite(D), D, 20 * N)
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        return np.asarray(np.log10(C / (6 * N * tokens)))


def agree(path: Path, N: Array, D: Array, C: Array, places: SupportsPlace, *, units_only: bool = False) -> None:
    """Refuse counts [n] whose units contradict each other.

    places: of the rows, as a reader finds them. units_only: refuse only where all are off by one factor that is a unit.

    Raises:
        EvidenceError: C is far from 6 N D, or in some rows far from what it is in the others.
    """
    if not np.isfinite(N).all():
        return
    off_by = ratio(N, D, C)
    known = bool(np.isfinite(D).all())
    if units_only and not (known and np.ptp(off_by) < math.log10(NEAR)):
        return
    near, spread = float(np.median(off_by)), float(np.ptp(off_by))
    if not math.isfinite(near) or not math.isfinite(spread):
        raise refusal(path, "counts are numbers that computers hold", "6 N D or C overflows", "Check N, D and C.")
    if known and abs(near) > math.log10(NEAR):
        thousands = round(near / 3) * 3
        if abs(near - thousands) < 0.7 and thousands:
            value = f"C is {10**near:.2g} times 6 N D"
            raise refusal(path, "C is near 6 N D", value, f"A unit? Try {_guess(N, D, thousands)}.")
        if units_only:
            return
        value = f"{10**near:.2g} times, the runs within a factor of {10**spread:.2g}"
        raise refusal(path, "C is near 6 N D", value, "Check N, D and C, or name their columns with --columns.")
    if known:
        off = np.flatnonzero(np.abs(off_by - near) > math.log10(NEAR))
        if len(off):
            value = f"{10 ** off_by[off[0]]:.2g} times in {places[off[0]]}, {len(off)} such row(s)"
            raise refusal(path, "C is near 6 N D in every row", value, "Correct these rows, or leave them out.")
    if not units_only and np.median(C / N) < LEAST_FLOP:
        value = f"C = {C[0]:.3g} for N = {N[0]:.3g}"
        rule, remedy = "a run takes millions of FLOP per parameter", "A unit? Try --columns C=NAME*1e15."
        raise refusal(path, rule, value, remedy)
    if np.median(N) < LEAST_PARAMETERS and not units_only:
        rule = f"a model has {LEAST_PARAMETERS:g} parameters or more"
        remedy = "A unit of C, N or D? Try --columns C=NAME*1e9, or N=NAME*1e6."
        raise refusal(path, rule, f"N = {N[0]:.3g}, C = {C[0]:.3g}", remedy)


def _guess(N: Array, D: Array, thousands: int) -> str:
    """The formula that would bring the counts together: of C, unless N or D look like thousands or millions."""
    size, tokens = float(np.median(N)), float(np.median(D))
    if thousands > 0 and tokens < 1e6:
        return (
            f"--columns D=NAME*1e{thousands}"
            if size > 1e5
            else f"--columns N=NAME*1e9,D=NAME*1e{max(thousands - 9, 9)}"
        )
    if thousands > 0 and size < 1e5:
        return f"--columns N=NAME*1e{thousands}"
    return f"--columns C=NAME*1e{-thousands}"


def filled(path: Path, N: Array, D: Array, C: Array, places: SupportsPlace) -> tuple[Array, Array, Array, list[str]]:
    """What follows from the others: C = 6 N D, and N or D from C where the table has no column for it.

    N and D may be unknown of all runs where C is known.

    Raises:
        EvidenceError: C cannot be known, or a count is missing in some runs.
    """
    has = {name: bool(np.isfinite(value).all()) for name, value in (("N", N), ("D", D), ("C", C))}
    some = {name: bool(np.isfinite(value).any()) for name, value in (("N", N), ("D", D), ("C", C))}
    if has["N"] and has["D"] and not some["C"]:
        return N, D, 6 * N * D, ["no column of compute: C is 6 N D"]
    if has["C"] and has["N"] and not some["D"]:
        return N, C / (6 * N), C, ["no column of tokens: D is C / (6 N)"]
    if has["C"] and has["D"] and not some["N"]:
        return C / (6 * D), D, C, ["no column of parameters: N is C / (6 D)"]
    problems = []
    for name, value, unit in (("N", N, "parameters"), ("D", D, "tokens"), ("C", C, "FLOP")):
        missing = np.flatnonzero(~np.isfinite(value))
        if not len(missing) or (name != "C" and len(missing) == len(value)):
            continue
        rule, remedy = f"{name} ({unit}) is known of every run", f"Name its column: --columns {name}=NAME."
        found = (
            "no column for it" if len(missing) == len(value) else f"none in {places[missing[0]]}, {len(missing)} in all"
        )
        if name == "C" and len(missing) == len(value):
            rule = "C (FLOP), or N (parameters) and D (tokens), is known of every run"
        problems.append(Problem(str(path), rule, found, remedy))
    if problems:
        raise EvidenceError(problems)
    unknown = [what for what, name in (("parameters", "N"), ("tokens", "D")) if not has[name]]
    return N, D, C, [f"no column of {' and '.join(unknown)}"] if unknown else []


def factors(variant: Sequence[str], N: Array, D: Array, C: Array) -> dict[str, tuple[float, float]]:
    """C / (6 N D) by arm, lowest and highest, of arms where that is not 1 to 5%; empty where N or D is not known."""
    if not (np.isfinite(D).all() and np.isfinite(N).all()):
        return {}
    off_by = ratio(N, D, C)
    if (np.abs(off_by) <= CLOSE).all():
        return {}
    arms, which = factorized(variant)
    order = np.argsort(which, kind="stable")
    parts = np.split(off_by[order], np.cumsum(np.bincount(which))[:-1])
    return {
        arm: (10 ** float(of.min()), 10 ** float(of.max()))
        for arm, of in zip(arms, parts, strict=True)
        if abs(np.median(of)) > CLOSE
    }
