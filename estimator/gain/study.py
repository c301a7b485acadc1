"""What the rows of studies say about a curve: exact Gaussian inference, linear in the number of rows.

A question has D unknowns theta: ln CEG on the grid of the rows' budgets, and the coefficients of covariates. A row
reads one of them, shifted and tilted by its study effect, shifted by its contrast effect (a contrast is one treatment
against one baseline within a study), with noise:

    y = theta[cell] + covariates . theta[G:] + study + tilt * (x - centre of the study) + contrast + noise

All effects are Gaussian. They are integrated out contrast by contrast and study by study, and what is left is one
quadratic form in theta (`Messages`). This is the random-effects meta-regression of the textbooks (e.g. Higgins,
Thompson, Spiegelhalter 2009, doi:10.1111/j.1467-985X.2008.00552.x), written for two nested levels and any curve.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array

X0 = 20.0
"""Origin of x = log10 FLOP - X0; rows of unknown compute stand there when no other row has any."""
OTHER_BASELINE_SD = 100.0
"""Level sd of a contrast against another baseline: it tells how a gain changes, and nothing of its level."""
_AT_ONCE = 1000
"""Contrasts of a study that are taken together: dense matrices of more would not stay in the cache."""
_CHUNK = 2_000_000
"""Numbers held at once while effects are integrated out; bounds the memory of long tables."""


class Rows(NamedTuple):
    """Gains of one algorithm in one currency, as arrays; n rows in c contrasts in s studies.

    y: [n] ln gain; x: [n] log10 FLOP - X0; variance: [n] of the row's own noise;
    contrast: [c] first row of each contrast; study: [s] first contrast of each study (rows stand in this order);
    contrast_variance: [c] added to the contrast's level (kind of evidence, conversion); fixes_level: [c] bool;
    runs: [n] bool, rows that stand at the compute of somebody's runs: it is stated, and no law was carried to it;
    votes: [c] what each contrast counts, 1 / n where n of them are readings of one law, ladder or run;
    covariates: [n, p] what else moves a gain, as ln of its ratio to the reference; toy: [s] bool, studies of toy runs;
    bound: [n] 1 where the gain is at least y, -1 where at most, 0 where it is read.
    """

    y: Array
    x: Array
    variance: Array
    contrast: NDArray[np.intp]
    study: NDArray[np.intp]
    contrast_variance: Array
    fixes_level: NDArray[np.bool_]
    runs: NDArray[np.bool_]
    votes: Array
    covariates: Array
    toy: NDArray[np.bool_]
    bound: NDArray[np.intp]

    @property
    def contrast_of_row(self) -> NDArray[np.intp]:
        """[n] contrast of each row."""
        return np.repeat(np.arange(len(self.contrast)), np.diff(self.contrast, append=len(self.x)))

    @property
    def study_of_contrast(self) -> NDArray[np.intp]:
        """[c] study of each contrast."""
        return np.repeat(np.arange(len(self.study)), np.diff(self.study, append=len(self.contrast)))


class Spread(NamedTuple):
    """How far studies and contrasts scatter about a curve, and how its slope strays: sds of ln CEG, and per decade."""

    study_level: float
    study_slope: float
    contrast_level: float
    slope_sd: float


class Messages(NamedTuple):
    """exp(-theta' J theta / 2 + j' theta + c) in k scenarios: J [k, D, D], j [k, D, m] for m sets of readings, c [k] of
    the first set."""

    precision: Array
    score: Array
    constant: Array


def keep_rows(rows: Rows, kept: NDArray[np.bool_]) -> Rows:
    """The rows with a mask [n]; contrasts and studies that are left empty go."""
    contrast_of, study_of = rows.contrast_of_row, rows.study_of_contrast
    contrasts, first = np.unique(contrast_of[kept], return_index=True)
    studies, first_contrast = np.unique(study_of[contrasts], return_index=True)
    return Rows(
        rows.y[kept], rows.x[kept], rows.variance[kept], first, first_contrast, rows.contrast_variance[contrasts],
        rows.fixes_level[contrasts], rows.runs[kept], rows.votes[contrasts], rows.covariates[kept],
        rows.toy[studies], rows.bound[kept],
    )  # fmt: skip


def messages(
    rows: Rows, cells: NDArray[np.intp], spread: Spread, scatter: Array, slope: Array, readings: Array | None = None
) -> Messages:
    """What all rows say about theta in each of k scenarios.

    Args:
        rows: the gains.
        cells: [n] the point of the grid at which each row stands.
        spread: scatter and slope settings.
        scatter: [k] multipliers of how far the levels of studies scatter; that treatments of one study agree says
            nothing of how studies do.
        slope: [k] multipliers of the tilts' scatter.
        readings: [n, m] other values of y, for what moves with them; None: `rows.y` alone.
    """
    y = rows.y[:, None] if readings is None else readings
    size = int(cells.max()) + 1 + rows.covariates.shape[1]
    contrast_of = rows.contrast_of_row
    level = spread.contrast_level**2 + rows.contrast_variance + np.where(rows.fixes_level, 0.0, OTHER_BASELINE_SD**2)
    study_level = np.square(scatter * spread.study_level)
    tilt = np.square(slope * spread.study_slope)
    total = Messages(
        np.zeros((len(scatter), size, size)), np.zeros((len(scatter), size, y.shape[1])), np.zeros(len(scatter))
    )
    first_rows = rows.contrast[rows.study]
    sizes = np.diff(np.append(first_rows, len(rows.x)))
    lone = first_rows[sizes == 1]
    step = max(1, _CHUNK // (len(scatter) * size))
    for start in range(0, len(lone), step):
        part = lone[start : start + step]
        weights = 1 / (rows.variance[part] + level[contrast_of[part]] + study_level[:, None])
        design = _design(rows, cells, part, size)
        weighted = design.T[None] * weights[:, None, :]
        total.precision[:] += weighted @ design
        total.score[:] += weighted @ y[part]
        total.constant[:] -= 0.5 * (np.log(2 * np.pi / weights) + weights * y[part, 0] ** 2).sum(1)
    for s in np.flatnonzero(sizes > 1).tolist():
        contrasts = slice(rows.study[s], rows.study[s + 1] if s + 1 < len(rows.study) else len(rows.contrast))
        said = _contrasts_say(rows, cells, y, contrasts, level, size)
        _add_study(total, said, study_level, tilt)
    return total


def _design(rows: Rows, cells: NDArray[np.intp], part: slice | NDArray[np.intp], size: int) -> Array:
    """[m, D] how the rows `part` read theta."""
    at = cells[part]
    design = np.zeros((len(at), size))
    design[np.arange(len(at)), at] = 1.0
    if rows.covariates.shape[1]:
        design[:, size - rows.covariates.shape[1] :] = rows.covariates[part]
    return design


def _contrasts_say(
    rows: Rows, cells: NDArray[np.intp], y: Array, contrasts: slice, level: Array, size: int
) -> tuple[Array, Array, float]:
    """What the contrasts of one study say together about (theta, level and tilt of the study), their own levels
    integrated out (Woodbury for one effect): precision [D + 2, D + 2], score [D + 2, m], constant. All scenarios share
    it.
    """
    ends = np.append(rows.contrast, len(rows.x))
    x = rows.x[ends[contrasts.start] : ends[contrasts.stop]]
    fixing = np.repeat(rows.fixes_level[contrasts], np.diff(ends[contrasts.start : contrasts.stop + 1]))
    centre = float(x[fixing].mean()) if fixing.any() else float(x.mean())
    precision, score, constant = np.zeros((size + 2, size + 2)), np.zeros((size + 2, y.shape[1])), 0.0
    for start in range(contrasts.start, contrasts.stop, _AT_ONCE):
        some = slice(start, min(start + _AT_ONCE, contrasts.stop))
        mine = slice(ends[some.start], ends[some.stop])
        first = rows.contrast[some] - mine.start
        w, dx, vote, levels = 1.0 / rows.variance[mine], rows.x[mine] - centre, rows.votes[some], level[some]
        votes = np.repeat(vote, np.diff(np.append(first, len(w))))
        design = _design(rows, cells, mine, size)
        design = np.concatenate([design, np.ones((len(w), 1)), dx[:, None]], axis=1)
        weighted = w[:, None] * design
        sums, t = np.add.reduceat(weighted, first), np.add.reduceat(w[:, None] * y[mine], first)
        s = np.add.reduceat(w, first)
        shrink = vote / (1.0 / levels + s)
        weighted *= votes[:, None]
        precision += weighted.T @ design - (sums.T * shrink) @ sums
        score += weighted.T @ y[mine] - (sums.T * shrink) @ t
        squares = (w * votes) @ y[mine, 0] ** 2 + votes @ np.log(2 * np.pi * rows.variance[mine])
        constant -= 0.5 * float(squares - shrink @ t[:, 0] ** 2 + np.log1p(levels * s) @ vote)
    return precision, score, constant


def _add_study(total: Messages, said: tuple[Array, Array, float], study_level: Array, tilt: Array) -> None:
    """Add a study to the total, its level and tilt integrated out: J -> J - C T (I + J_u T)^-1 C', with J_u [2, 2] of
    the effects, C [D, 2], and T the effects' variances [k].
    """
    precision, score, constant = said
    size = total.precision.shape[1]
    (a, b), (_, d) = precision[size:, size:].tolist()
    determinant = (1 + a * study_level) * (1 + d * tilt) - b * b * study_level * tilt
    M = np.empty((len(study_level), 2, 2))
    M[:, 0, 0], M[:, 1, 1] = study_level * (1 + d * tilt), tilt * (1 + a * study_level)
    M[:, 0, 1] = M[:, 1, 0] = -b * study_level * tilt
    M /= determinant[:, None, None]
    cross, j_u = precision[:size, size:], score[size:]
    both = cross @ M
    total.precision[:] += precision[:size, :size] - both @ cross.T
    total.score[:] += score[:size] - both @ j_u
    u = j_u[:, 0]
    total.constant[:] += constant + 0.5 * (M @ u @ u) - 0.5 * np.log(determinant)
