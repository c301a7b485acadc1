"""What an answer rests on, and what it would be if some of that were not so: influence, proposers, selection."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.gain import contrasts, method, prior
from cegain.gain.answer import Range
from cegain.gain.curve import Curve, without_toys
from cegain.gain.study import Rows, Spread
from cegain.tables import studies
from cegain.tables.published_gains import PublishedGain, is_own

UNSEEN = 1 / 3
"""Of studies that find a gain below 1, the share that is published, for the line about selection. Assumed."""
BEST_OF = 1.163
"""Mean of the largest of five standard normals: the best of five settings of a study is reported. Assumed."""
_ROUNDS = 6
_AT_ONCE = 256
"""Rows whose influence is found in one pass."""


def influences(
    prepared: method.Prepared, budgets: Sequence[float], shipped: Collection[PublishedGain] | None
) -> list[dict[str, float]]:
    """How far ln of an answer moves with ln of all gains of a kind of evidence, settings as they are; largest first.

    Signed: rows that pull against the others have less than nothing. The rest, to 1, is that of the prior. One dict per
    budget (FLOP); empty where an answer rests on no rows, or on more than `method.MAX_ROWS`.

    Args:
        prepared: the question.
        budgets: FLOP.
        shipped: rows that come with the package; None: all of them do.
    """
    found: list[dict[str, float]] = [{} for _ in budgets]
    for question, curve in zip(prepared.questions, prepared.curves, strict=False):
        used = [u for u in question.used if u.contrast >= 0]
        if curve.exact or not used or len(used) > method.MAX_ROWS:
            continue
        of_row = [method.kind(u.row, shipped) for u in used]
        kinds = sorted(set(of_row))
        groups = np.array([[name == kind for kind in kinds] for name in of_row], dtype=float)
        assert prepared.spread is not None
        moved = _moved(question, curve, prepared.spread, groups, budgets)
        for at, values in zip(found, moved, strict=True):
            for kind, value in zip(kinds, values.tolist(), strict=True):
                at[kind] = at.get(kind, 0.0) + value
    return [dict(sorted(at.items(), key=lambda item: (-abs(item[1]), item[0]))) for at in found]


def row_influences(question: contrasts.QuestionRows, curve: Curve, spread: Spread, flops: float) -> Array:
    """How far ln CEG at a budget (FLOP) moves with each used row's ln gain [n]."""
    n = len([u for u in question.used if u.contrast >= 0])
    parts = []
    for start in range(0, n, _AT_ONCE):
        one_each = np.zeros((n, min(_AT_ONCE, n - start)))
        one_each[np.arange(start, start + one_each.shape[1]), np.arange(one_each.shape[1])] = 1.0
        parts.append(_moved(question, curve, spread, one_each, [flops])[0])
    return np.concatenate(parts)


def _moved(
    question: contrasts.QuestionRows, curve: Curve, spread: Spread, readings: Array, budgets: Sequence[float]
) -> list[Array]:
    """Mean of the curve [m] at each budget for m sets of readings [n, m] in place of the rows' own."""
    assert curve.rows is not None
    above, below = method.posteriors(curve.rows, spread, curve.scenarios, readings[curve.heard])
    moved = []
    for flops in budgets:
        x = curve.place(flops)
        value = curve.weights @ above.weights_at(x, curve.covariates)
        if below is not None:
            weight = float(without_toys(np.array(math.log10(flops) - curve.toys)))
            value = weight * value + (1 - weight) * (curve.weights @ below.weights_at(x, curve.covariates))
        moved.append(value)
    return moved


def without_proposers(
    rows: Sequence[PublishedGain],
    prepared: method.Prepared,
    flops: Sequence[float],
    interval: float,
    where: Mapping[str, float] = MappingProxyType({}),
) -> list[Range | None]:
    """The same question without rows of studies whose authors propose the algorithm; None where there are none, or
    where nothing else answers. One per budget (FLOP).
    """
    parts = set(prepared.algorithms)
    about = [row for row in rows if parts.intersection(row.algorithm.split("+"))]
    others = [row for row in about if is_own(row) or not studies.proposes(row.study, row.algorithm)]
    level = [u.row for question in prepared.questions for u in question.used if u.fixes_level and u.contrast >= 0]
    theirs = [row for row in level if not is_own(row) and studies.proposes(row.study, row.algorithm)]
    if prepared.missing or not theirs or prepared.spread is None or len(about) > method.MAX_ROWS:
        return [None for _ in flops]
    again = method.prepare(
        others, prepared.algorithms, prepared.baselines,
        currency=prepared.currency, spread=prepared.spread, where=where,
    )  # fmt: skip
    return [_range(again, c, interval) for c in flops]


def rests_on_proposers(prepared: method.Prepared) -> bool:
    """Whether every published row that sets the level of some part is by authors who propose it."""
    for question in prepared.questions:
        level = [u.row for u in question.used if u.fixes_level and u.contrast >= 0 and not is_own(u.row)]
        if level and all(studies.proposes(row.study, row.algorithm) for row in level):
            return True
    return False


def selected(prepared: method.Prepared, flops: Sequence[float], interval: float) -> list[Range | None]:
    """The same question if what is published was chosen: studies that find no gain are published a third as often, and
    each reports the best of five settings. From the lower end so corrected to the upper end as it stands, since nobody
    knows whether it was. One per budget (FLOP); None where there is no published row.
    """
    if prepared.missing or prepared.spread is None:
        return [None for _ in flops]
    curves = []
    for question, curve in zip(prepared.questions, prepared.curves, strict=True):
        published = [u for u in question.used if u.contrast >= 0 and u.fixes_level and not is_own(u.row)]
        if len(question.used) > method.MAX_ROWS:
            published = []
        curves.append(curve if curve.exact or not published else _corrected(question, curve, prepared.spread))
    if all(new is old for new, old in zip(curves, prepared.curves, strict=True)):
        return [None for _ in flops]
    again = prepared._replace(curves=tuple(curves))
    ranges: list[Range | None] = []
    for c in flops:
        corrected, as_it_stands = _range(again, c, interval), _range(prepared, c, interval)
        if corrected is None or as_it_stands is None:
            ranges.append(None)
            continue
        ends = corrected.interval[0], max(as_it_stands.interval[1], corrected.interval[1])
        ranges.append(Range(corrected.median, ends))
    return ranges


def _corrected(question: contrasts.QuestionRows, curve: Curve, spread: Spread) -> Curve:
    """The curve with every published reading lowered by what selection adds to it on average.

    A reading that is normal about m with sd t and published with weight UNSEEN below 0 has the mean
    m + t (1 - UNSEEN) phi(m / t) / (UNSEEN + (1 - UNSEEN) Phi(m / t)); m is found by repeating.
    """
    rows = curve.rows
    assert rows is not None
    used = [u for u in question.used if u.contrast >= 0]
    used = [u for u, heard in zip(used, curve.heard, strict=True) if heard]
    chosen = np.array([u.fixes_level and not is_own(u.row) for u in used])
    offset = np.zeros(len(used))
    if question.capped:
        offset = np.log([u.row.ceg * u.conversion.factor for u in used]) - rows.y
    scatter = float(curve.weights @ np.square(prior.SCATTERS[curve.scenarios]))
    sd = np.sqrt(scatter * spread.study_level**2 + spread.contrast_level**2 + rows.variance)
    best = BEST_OF * spread.contrast_level
    at, place = _smoother(rows, curve, spread)
    counts = np.bincount(place)
    lowered = np.zeros(len(used))
    for _ in range(_ROUNDS):
        z = ((at @ (np.bincount(place, rows.y - lowered) / counts))[place] + offset) / sd
        density = np.exp(-0.5 * z * z) / mixture.ROOT_TAU
        lowered = np.where(chosen, best + sd * (1 - UNSEEN) * density / (UNSEEN + (1 - UNSEEN) * ndtr(z)), 0.0)
    above, below = method.posteriors(rows, spread, curve.scenarios, (rows.y - lowered)[:, None])
    return curve._replace(above=above, below=below)


def _smoother(rows: Rows, curve: Curve, spread: Spread) -> tuple[Array, NDArray[np.intp]]:
    """[p, p] the curve at the places where rows stand, to tenths of a decade, as sums over the mean readings there; and
    the place of each row [n].
    """
    places, place = np.unique(np.round(rows.x, 1), return_inverse=True)
    middle = np.median(rows.covariates, axis=0)
    above, below = method.posteriors(rows, spread, curve.scenarios, np.eye(len(places))[place])
    whole = above if below is None else below
    at = np.stack([curve.weights @ whole.weights_at(float(x), middle) for x in places.tolist()])
    return at, place


def _range(prepared: method.Prepared, flops: float, interval: float) -> Range | None:
    """What a new study would find."""
    if prepared.missing or method.toys_alone(prepared, flops):
        return None
    _, predictive = method.distributions(prepared, flops)
    middle, low, high = predictive.quantiles([0.5, (1 - interval) / 2, (1 + interval) / 2])
    return Range(math.exp(middle), (math.exp(low), math.exp(high)))
