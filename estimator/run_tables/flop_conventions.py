"""How the compute of a table was counted, and what it is in ours: useful training FLOP of active parameters.

Ours is 6 N D with N the active parameters, unembedding included, or that and attention's scores where the table counts
them (docs/scale.md). What a conversion changed is said; arms that were not counted as claimed are refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array
from cegain.tables.column_meanings import key_of
from cegain.tables.loose_numbers import numbers
from cegain.tables.problems import EvidenceError, Problem

CONVENTIONS = ("auto", "6nd", "6nd-active", "non-embedding", "with-attention", "hardware")
SAME = 0.03
"""Counts that differ by less than this share are one count: tables round."""
TOTAL = ("totalparams", "paramstotal", "nparamstotal", "totalparameters", "numtotalparams")
NON_EMBEDDING = (
    "nonembeddingparams", "nparamsnonembedding", "nonembparams", "paramsnonembedding", "numnonembeddingparams",
    "nonembeddingparameters", "nparamsnonemb",
)  # fmt: skip
VOCABULARY = ("vocab", "vocabsize", "nvocab", "vocabularysize")
WIDTH = ("dmodel", "width", "nembd", "hiddensize", "hiddendim")


def converted(
    path: Path,
    convention: str,
    variant: Sequence[str],
    counts: tuple[Array, Array, Array],
    columns: Mapping[str, Sequence[str]],
) -> tuple[Array, list[str]]:
    """C [n] in our convention, and remarks.

    Args:
        path: of the table, for messages.
        convention: one of `CONVENTIONS`; auto converts only what the table itself shows to be total parameters.
        variant: the arm of each run [n].
        counts: N (active parameters where the table tells), D, C, each [n]; NaN where not known.
        columns: all cells [n] by name: total and non-embedding parameters, vocabulary and width are looked for.

    Raises:
        EvidenceError: runs were not counted as claimed, or what a conversion needs is not in the table.
    """
    N, D, C = counts
    if not (np.isfinite(N).all() and np.isfinite(D).all()):
        if convention in ("auto", "with-attention"):
            return C, []
        rule = f"compute counted as {convention} is checked against parameters and tokens"
        raise EvidenceError([Problem(str(path), rule, "no column for one of them", "Name N and D with --columns.")])
    total = _numbers(columns, TOTAL)
    if convention == "auto":
        return _auto(variant, N, D, C, total)
    if convention == "hardware":
        return 6 * N * D, [f"C was executed FLOP: 6 N D is taken, {_times(C / (6 * N * D))} less"]
    if convention == "with-attention":
        _check(path, convention, variant, C >= (1 - SAME) * 6 * N * D)
        return C, []
    if convention == "non-embedding":
        return _with_unembedding(path, variant, counts, columns)
    counted = N if total is None or convention == "6nd-active" else total
    _check(path, convention, variant, _same(C, 6 * counted * D))
    if counted is N:
        return C, []
    return 6 * N * D, [f"C was 6 x all parameters x tokens: active parameters are taken, {_times(counted / N)} less"]


def _auto(variant: Sequence[str], N: Array, D: Array, C: Array, total: Array | None) -> tuple[Array, list[str]]:
    """Arms whose C is 6 x all parameters x tokens, though active ones are known, in ours."""
    if total is None:
        return C, []
    arms = np.array(variant)
    taken = C.copy()
    remarks = []
    for arm in dict.fromkeys(variant):
        of = arms == arm
        by_total = _same(C[of], 6 * total[of] * D[of]) & ~_same(C[of], 6 * N[of] * D[of])
        if by_total.all():
            taken[of] = 6 * (N * D)[of]
            remarks.append(
                f"C of {arm} is 6 x all parameters x tokens: active parameters are taken, "
                f"{_times((total / N)[of])} less (--flops-convention with-attention leaves C as it is)"
            )
    return taken, remarks


def _with_unembedding(
    path: Path, variant: Sequence[str], counts: tuple[Array, Array, Array], columns: Mapping[str, Sequence[str]]
) -> tuple[Array, list[str]]:
    N, D, C = counts
    body, vocabulary, width = (_numbers(columns, names) for names in (NON_EMBEDDING, VOCABULARY, WIDTH))
    if vocabulary is not None and width is not None:
        output = vocabulary * width
    elif body is not None:
        output = N - body
    else:
        rule = "the unembedding of non-embedding compute is known: vocabulary and width, or parameters with and without"
        remedy = "Add columns vocab_size and d_model, or leave --flops-convention out to take C as it is."
        raise EvidenceError([Problem(str(path), rule, "no such columns", remedy)])
    _check(path, "non-embedding", variant, _same(C, 6 * (body if body is not None else N - output) * D))
    return C + 6 * output * D, [f"C left the unembedding out: with it, {_times((C + 6 * output * D) / C)} more"]


def _numbers(columns: Mapping[str, Sequence[str]], names: Sequence[str]) -> Array | None:
    """The numbers [n] of the first column of these names that has one in every row."""
    for name, cells in columns.items():
        if key_of(name) in names:
            try:
                found = numbers(cells)
            except ValueError:
                continue
            if np.isfinite(found).all() and (found > 0).all():
                return found
    return None


def _same(counted: Array, claimed: Array) -> NDArray[np.bool_]:
    return np.asarray(np.abs(np.log(counted / claimed)) < SAME)


def _check(path: Path, convention: str, variant: Sequence[str], fits: NDArray[np.bool_]) -> None:
    """Refuse a table whose runs were not all counted as its owner says; arms are named."""
    if fits.all():
        return
    others = list(dict.fromkeys(arm for arm, fit in zip(variant, fits, strict=True) if not fit))
    rule = f"every run's compute was counted as {convention}"
    value = f"{int((~fits).sum())} of {len(fits)} were not, of {', '.join(others[:5])}"
    remedy = "Count all arms alike, or leave --flops-convention out: then C is taken as it is."
    raise EvidenceError([Problem(str(path), rule, value, remedy)])


def _times(factor: Array) -> str:
    low, high = float(factor.min()), float(factor.max())
    return f"{low:.3g} times" if high < low * 1.005 else f"{low:.3g} to {high:.3g} times"
