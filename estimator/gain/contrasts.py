"""From evidence rows to the arrays of one question: an algorithm, its baseline, a currency.

A contrast is what one gain is a gain of: (treatment, baseline, study, how sure the kind of evidence is). Contrasts
whose baseline is the one asked about set the level; others tell only how a gain changes with compute.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.gain import capped
from cegain.gain.study import X0, Rows
from cegain.tables import studies as study_table
from cegain.tables.published_gains import PublishedGain, is_own

ROW_SD = 0.05
"""sd of ln gain of a row without an interval: one seed, one reading. Assumed: the measured series that have
several rows scatter by 0.03-0.06 about a line."""
BASIS_SD = {"measured": 0.0, "derived": 0.15, "observational": 0.3, "claimed": 0.4, "extrapolated": 1.0}
"""sd of ln gain shared by the rows of a contrast, by kind of evidence. Assumed, not studied: a claim in an abstract
is a best case, a fitted law carries its form, an observational estimate its confounders."""
LAW = ("derived", "observational", "extrapolated")
"""Kinds of evidence read off one fitted law: all its rows together weigh as much as one. So do the rows of a contrast
that have a `same_as`; contrasts that have it in common weigh as much as one of them."""
ONE_END_SD = 0.3
"""sd of ln gain of a row that states one end of an interval beside the gain (`low` or `high` alone). Assumed. Where the
end is the gain itself the row is a bound: it says that the gain is at least, or at most, so much (`bounds`)."""
TOY_FLOPS = 5e14
"""A study all of whose runs are smaller is one of toy runs, whoever made them."""
EXPERTS = 16.0
"""Experts' total over active size at which a gain of a sparse model is taken where nobody says: what large open models
had in 2024-2025 lies between 8 and 50."""
UNKNOWN_COVARIATE_SD = 0.3
"""sd of ln gain of a row that does not state a covariate which moves the gain."""
UNKNOWN_FLOPS_SD = 0.3
"""sd of ln gain for a row whose compute is not known, three decades of the usual slope (0.1 per decade)."""


def covariates_at(row: PublishedGain) -> Array:
    """Covariates [p] of a row, as ln of their ratio to the reference; NaN where it does not state them."""
    return np.array([math.log(getattr(row, name) / EXPERTS) for name in covariates_of(row.algorithm)])


def covariates_where(algorithm: str, where: Mapping[str, float]) -> Array:
    """Covariates [p] of a question, those that it does not name at their reference."""
    return np.array([math.log(where.get(name, EXPERTS) / EXPERTS) for name in covariates_of(algorithm)])


class UsedRow(NamedTuple):
    """A row, how it was converted, and its place among the contrasts (-1: not used, `why` says why)."""

    row: PublishedGain
    conversion: Conversion
    contrast: int
    fixes_level: bool
    why: str


class QuestionRows(NamedTuple):
    """Arrays for `study` (None when no row can be used) and the account of every row of the algorithm; whether the
    arrays hold how far gains stay below their cap (`capped`), not the gains."""

    rows: Rows | None
    used: tuple[UsedRow, ...]
    studies: tuple[str, ...]
    capped: bool = False


def question(evidence: Iterable[PublishedGain], algorithm: str, baseline: str, currency: str) -> QuestionRows:
    """Collect what `evidence` says about `algorithm` against `baseline` in `currency`.

    Studies of one laboratory are one study.
    """
    # Contrast by contrast and study by study, and within them in a fixed order: no digit of an answer depends on
    # the order of the file.
    groups: dict[tuple[str, ...], list[PublishedGain]] = {}
    for row in evidence:
        if row.algorithm == algorithm:
            groups.setdefault(_contrast(row), []).append(row)
    measured = {
        (row.study, row.baseline)
        for rows in groups.values()
        for row in rows
        if row.basis == "measured" and row.flops == row.flops and convert(row, currency).factor > 0
    }
    used: list[UsedRow] = []
    index = 0
    for key in sorted(groups):
        usable = False
        for row in sorted(groups[key], key=_order):
            conversion = convert(row, currency)
            if conversion.factor != conversion.factor:
                used.append(UsedRow(row, conversion, -1, False, conversion.how))
                continue
            if row.basis == "extrapolated" and (row.study, row.baseline) in measured:
                why = "a law carried beyond runs of its study that count already"
                used.append(UsedRow(row, conversion, -1, False, why))
                continue
            usable = True
            used.append(UsedRow(row, conversion, index, row.baseline == baseline, ""))
        index += usable
    kept = [u for u in used if u.contrast >= 0]
    studies = tuple(dict.fromkeys(u.row.study for u in kept))
    return QuestionRows(
        _arrays(kept, index, currency) if kept else None, tuple(used), studies, capped.applies(algorithm, currency)
    )


def unused(question: QuestionRows, why: str) -> QuestionRows:
    """The same rows with none of them used: for an answer that needs no evidence."""
    used = tuple(u._replace(contrast=-1, fixes_level=False, why=why) for u in question.used)
    return QuestionRows(None, used, ())


def tells_growth(used: Iterable[UsedRow]) -> list[UsedRow]:
    """Rows against another baseline that say how a gain changes: their contrast has two budgets or more."""
    budgets_of: dict[int, set[float]] = {}
    others = [u for u in used if u.contrast >= 0 and not u.fixes_level]
    for u in others:
        if u.row.flops == u.row.flops:
            budgets_of.setdefault(u.contrast, set()).add(u.row.flops)
    return [u for u in others if u.row.flops == u.row.flops and len(budgets_of[u.contrast]) > 1]


def budgets(used: Iterable[UsedRow]) -> list[float]:
    """Sorted FLOP at which rows that fix the level were run; a law carried beyond its runs is not a run."""
    return [flops for flops, _ in runs(used)]


def runs(used: Iterable[UsedRow]) -> list[tuple[float, str]]:
    """The same with the laboratory of each."""
    return sorted(
        (u.row.flops, laboratory(u.row))
        for u in used
        if u.fixes_level and u.row.flops == u.row.flops and u.row.basis != "extrapolated"
    )


def _contrast(row: PublishedGain) -> tuple[str, ...]:
    kind = "law" if row.basis in LAW or row.same_as else row.basis
    return laboratory(row), row.study, row.treatment, row.baseline, kind, row.same_as


def laboratory(row: PublishedGain) -> str:
    """Whose study a row is of; this project's own stacks are one."""
    return "own" if is_own(row) else study_table.laboratory(row.study)


def covariates_of(algorithm: str) -> tuple[str, ...]:
    """Columns that move a gain of this algorithm."""
    return ("experts",) if algorithms.get(algorithm).kind == "sparsity" else ()


def _order(row: PublishedGain) -> tuple[object, ...]:
    """Every cell that may differ inside a contrast; NaN has no order and stands at 0."""
    low, high, interval, factor = (v if v == v else 0.0 for v in (row.low, row.high, row.interval, row.flop_factor))
    flops = row.flops if row.flops == row.flops else 0.0
    return (flops, row.ceg, row.currency, row.basis, row.source, row.note, low, high, interval, factor, row[5])


def _arrays(kept: Sequence[UsedRow], n_contrasts: int, currency: str) -> Rows:
    contrast = np.array([u.contrast for u in kept])
    first = np.flatnonzero(np.diff(contrast, prepend=-1))
    y = np.log([u.row.ceg * u.conversion.factor for u in kept])
    x = np.log10([u.row.flops for u in kept]) - X0
    basis = np.array([BASIS_SD[u.row.basis] for u in kept]) ** 2
    conversion = np.array([u.conversion.sd for u in kept]) ** 2
    variance = np.array([reading_sd(u.row) for u in kept]) ** 2
    covariates = np.array([covariates_at(u.row) for u in kept])
    variance = variance + UNKNOWN_COVARIATE_SD**2 * np.isnan(covariates).sum(1)

    shared = np.full(n_contrasts, np.inf)
    np.minimum.at(shared, contrast, basis)
    unknown = np.isnan(x)
    variance = variance + basis - shared[contrast] + np.where(unknown, UNKNOWN_FLOPS_SD**2, 0.0)
    # Rows of one law, and of one key, share the weight of the heaviest row.
    law = np.array([u.row.basis in LAW or bool(u.row.same_as) for u in kept])
    heaviest, together = np.full(n_contrasts, np.inf), np.bincount(contrast, 1.0 / variance, n_contrasts)
    np.minimum.at(heaviest, contrast, variance)
    variance = np.where(law, variance * (together * heaviest)[contrast], variance)

    extra = np.zeros(n_contrasts)
    np.maximum.at(extra, contrast, conversion)
    fixes = np.zeros(n_contrasts, bool)
    fixes[contrast] = [u.fixes_level for u in kept]
    if unknown.any():
        known = x[fixes[contrast] & ~unknown]
        if not len(known):
            known = x[~unknown]
        # Where the known row nearest to 1e20 FLOP stands: rows far from the rest do not draw it away.
        x = np.where(unknown, known[np.argmin(np.abs(known))] if len(known) else 0.0, x)
    if capped.applies(kept[0].row.algorithm, currency):  # what is read is how far a gain stays below its cap
        lengths = np.array([u.row.seq_len for u in kept])
        lengths = np.where(np.isnan(lengths), capped.SEQ_LEN, lengths)
        y = y - capped.ln_cap(kept[0].row.algorithm, 10.0 ** (x + X0), lengths)
    names = [laboratory(kept[i].row) for i in first.tolist()]
    study = np.array([i for i, name in enumerate(names) if i == 0 or name != names[i - 1]])
    runs = ~unknown & np.array([u.row.basis != "extrapolated" for u in kept])
    votes = _votes([kept[i] for i in first.tolist()])
    largest = np.maximum.reduceat(np.where(unknown, np.inf, x), first[study])
    toy = largest < math.log10(TOY_FLOPS) - X0
    bound = np.array([bound_of(u.row) for u in kept])
    return Rows(
        y, x, variance, first, study, shared + extra, fixes, runs, votes,
        np.nan_to_num(covariates, nan=0.0), toy, bound,
    )  # fmt: skip


def bound_of(row: PublishedGain) -> int:
    """1 where a row says that the gain is at least so much, -1 where at most, 0 where the gain was read."""
    if not math.isnan(row.interval) or math.isnan(row.low) == math.isnan(row.high):
        return 0
    return int(row.low == row.ceg) - int(row.high == row.ceg)


def _votes(contrasts: Sequence[UsedRow]) -> Array:
    """What each contrast counts: 1 / n where n of a study have one `same_as`, of those that set the level or of others.

    contrasts: one row of each; its key, study and baseline are those of all.
    """
    keys = [(u.row.study, u.row.same_as or i, u.fixes_level) for i, u in enumerate(contrasts)]
    together = Counter(keys)
    return np.array([1.0 / together[key] for key in keys])


def reading_sd(row: PublishedGain) -> float:
    """sd of ln gain from the row's own interval, taken as log-normal; `ROW_SD` or `ONE_END_SD` where there is none."""
    if math.isnan(row.interval):
        return ONE_END_SD if math.isnan(row.low) != math.isnan(row.high) else ROW_SD
    from scipy.special import ndtri

    return max(ROW_SD, math.log(row.high / row.low) / (2 * float(ndtri(0.5 + row.interval / 2))))


EXCHANGE_SD = {"steps": 0.05, "iters_mfu": 0.05, "params": 0.3}
"""sd of ln gain added by a conversion to FLOP. Assumed, not studied: FLOP per step is known within a few percent;
a gain in parameters at equal tokens is a gain in FLOP only if both arms sit equally far from compute-optimal."""


class Conversion(NamedTuple):
    """`factor` multiplies the published gain (NaN: no conversion); `sd` widens its logarithm; `how` is shown."""

    factor: float
    sd: float
    how: str


def convert(row: PublishedGain, currency: str) -> Conversion:
    """Express a published gain in `currency` ("flop", "time", "usd" or "decode")."""
    if row.currency == currency:
        return Conversion(1.0, 0.0, "")
    if currency == "usd" and row.currency == "time":
        return Conversion(1.0, 0.0, "time x price: equal to time on one device")
    if currency != "flop":
        return Conversion(math.nan, 0.0, f"{row.currency} says nothing about {currency}")
    if row.currency == "time":
        return Conversion(math.nan, 0.0, "time is never turned into FLOP: achieved FLOP/s differs")
    if row.flop_factor == row.flop_factor:
        return Conversion(
            row.flop_factor, EXCHANGE_SD[row.currency], f"{row.currency} x {row.flop_factor:.3g}: {row.note}"
        )
    if row.currency == "steps" and _equal_flop_per_step(row):
        return Conversion(1.0, EXCHANGE_SD["steps"], "steps x 1: equal FLOP per step")
    return Conversion(math.nan, 0.0, f"no known exchange rate from {row.currency} to FLOP")


def _equal_flop_per_step(row: PublishedGain) -> bool:
    """Whether both arms spend the same FLOP per step by nature: only norms or positions change, no matmul."""
    parts = list(zip(row.algorithm.split("+"), row.baseline.split("+"), strict=True))
    entries = [(algorithms.get(name), baseline) for name, baseline in parts]
    return all(
        entry.arm and set(entry.arm) <= {"norm", "positions"} and baseline in entry.replaces
        for entry, baseline in entries
    )
