"""What each study says about a straight line in log10 C: exact Gaussian inference in 2 x 2 blocks.

Where a study stands, ln CEG of its algorithm is `level + slope * x`, x = log10 C - X0 (`chain` joins studies that
stand apart). A study sees the line shifted and tilted by a study effect, a contrast within a study (one treatment
against one baseline) by a contrast effect, a row by noise:

    y = (level + study + contrast) + (slope + study' + contrast') * x + noise

Every effect is Gaussian, and the effects form a tree: rows -> contrasts -> studies -> algorithm. Each node therefore
sends its parent the information (precision matrix and score) that it holds about the line, with its own effect
integrated out, and the cost is linear in the number of rows. Effects tilt about the centre of the node's own
rows, so the spread of studies is the same wherever they measured; what grows with distance is the uncertainty of
the line itself. This is the random-effects meta-regression of the textbooks (e.g. Higgins, Thompson, Spiegelhalter
2009, doi:10.1111/j.1467-985X.2008.00552.x), written for two nested levels.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common.arrays import Array

X0 = 20.0
"""Origin of x: levels are stored at 1e20 FLOP, and rows of unknown compute stand there when no other row has any."""
LEVEL_SD = 100.0
"""Prior sd of the level in ln CEG: flat for every purpose, proper so that likelihoods can be compared."""
OTHER_BASELINE_SD = 100.0
"""Level sd of a contrast against another baseline: it tells about the slope only."""


class Rows(NamedTuple):
    """Gains of one algorithm in one currency, as arrays; n rows in c contrasts in s studies.

    y: [n] ln gain; x: [n] log10 FLOP - X0; variance: [n] of the row's own noise;
    contrast: [c] first row of each contrast; study: [s] first contrast of each study (rows stand in this order);
    contrast_variance: [c] added to the contrast's level (kind of evidence, conversion); fixes_level: [c] bool;
    runs: [n] bool, rows that stand at the compute of somebody's runs: it is stated, and no law was carried to it;
    votes: [c] what each contrast counts, 1 / n where n of them are readings of one law, ladder or run.
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


class Spread(NamedTuple):
    """How far studies and contrasts scatter about an algorithm's line (sd, ln CEG; slopes per decade)."""

    study_level: float
    study_slope: float
    contrast_level: float
    contrast_slope: float
    slope_mean: float
    slope_sd: float  # inf: no shared prior of the slope


class Lines(NamedTuple):
    """Posteriors of (level, slope) in k scenarios: means [k, 2], covariances [k, 2, 2] (inf where the rows fix no
    line), and log marginal likelihoods of the rows [k].
    """

    means: Array
    covariances: Array
    log_likelihoods: Array


class Messages(NamedTuple):
    """What nodes say about the line, exp(-theta' J theta / 2 + j' theta + c): J [..., 2, 2], j [..., 2], c [...]."""

    precision: Array
    score: Array
    constant: Array


def posterior(messages: Messages, slope_mean: float, slope_sd: Array) -> Lines:
    """Posterior of an algorithm's line in every scenario.

    Args:
        messages: [k, ...] what all rows say about (level, slope).
        slope_mean, slope_sd: of the slope's prior; the sd [k] is inf where there is none.
    """
    prior = np.zeros((len(slope_sd), 2))  # precisions
    prior[:, 0] = LEVEL_SD**-2.0
    prior[:, 1] = slope_sd**-2.0
    precision = messages.precision.copy()
    precision[:, [0, 1], [0, 1]] += prior
    score = messages.score.copy()
    score[:, 1] += prior[:, 1] * slope_mean
    # A flat slope has no normaliser; leaving it out shifts all scenarios alike.
    constant = (
        messages.constant + 0.5 * np.log(np.where(prior > 0, prior, 1.0)).sum(1) - 0.5 * prior[:, 1] * slope_mean**2
    )
    covariances, determinants = invert(precision)
    fixed = determinants > 0
    covariances = np.where(fixed[:, None, None], covariances, np.inf)
    means = np.zeros_like(score)
    means[fixed] = np.einsum("kij,kj->ki", covariances[fixed], score[fixed])
    fit = 0.5 * (score * means).sum(1)
    log_determinants = np.log(np.where(fixed, determinants, 1.0))
    return Lines(means, covariances, np.where(fixed, constant + fit - 0.5 * log_determinants, -np.inf))


def study_messages(rows: Rows, spread: Spread, scatter: Array, slope: Array) -> Messages:
    """What each of s studies says about the line in each of k scenarios, its effects integrated out: [k, s, ...].

    Args:
        rows: the gains.
        spread: scatter and slope settings.
        scatter: [k] multipliers of the levels' scatter, of studies and of contrasts.
        slope: [k] multipliers of the slopes' scatter, of studies and of contrasts.
    """
    levels, slopes = np.square(scatter)[:, None], np.square(slope)[:, None]
    level = levels * spread.contrast_level**2 + rows.contrast_variance
    level = level + np.where(rows.fixes_level, 0.0, OTHER_BASELINE_SD**2)
    contrasts = _integrate_effect(_row_messages(rows), level, slopes * spread.contrast_slope**2)
    votes = Messages(rows.votes[:, None, None], rows.votes[:, None], rows.votes)
    studies = Messages(*(np.add.reduceat(p * v, rows.study, axis=1) for p, v in zip(contrasts, votes, strict=True)))
    return _integrate_effect(studies, levels * spread.study_level**2, slopes * spread.study_slope**2)


def row_weights(rows: Rows, spread: Spread, towards: Array) -> Array:
    """How far each row's y [n] moves an estimate that moves by `towards` [s, 2] with the studies' scores.

    Scatter is as in `spread`.
    """
    rows_say = _row_messages(rows)
    level = spread.contrast_level**2 + rows.contrast_variance
    level = level + np.where(rows.fixes_level, 0.0, OTHER_BASELINE_SD**2)
    shrink_contrast, _, _ = _shrinkage(rows_say.precision, level, np.array(spread.contrast_slope**2))
    shrink_contrast = shrink_contrast * rows.votes[:, None, None]
    precision = np.add.reduceat(shrink_contrast @ rows_say.precision, rows.study, axis=0)
    shrink_study, _, _ = _shrinkage(precision, np.array(spread.study_level**2), np.array(spread.study_slope**2))
    sizes = np.diff(rows.contrast, append=len(rows.y))
    per_study = np.diff(rows.study, append=len(rows.contrast))
    towards = np.repeat((towards[:, None, :] @ shrink_study)[:, 0, :], per_study, axis=0)
    towards = np.repeat((towards[:, None, :] @ shrink_contrast)[:, 0, :], sizes, axis=0)
    return (towards[:, 0] + towards[:, 1] * rows.x) / rows.variance


def _row_messages(rows: Rows) -> Messages:
    """Rows summed by contrast: each is one Gaussian measurement of level + slope * x."""
    w, x, y = 1.0 / rows.variance, rows.x, rows.y

    def total(values: Array) -> Array:
        return np.add.reduceat(values, rows.contrast)

    cross = total(w * x)
    precision = np.stack([total(w), cross, cross, total(w * x * x)], axis=-1).reshape(-1, 2, 2)
    score = np.stack([total(w * y), total(w * x * y)], axis=-1)
    return Messages(precision, score, -0.5 * total(w * y * y + np.log(2 * np.pi * rows.variance)))


def _integrate_effect(messages: Messages, level: Array, slope: Array) -> Messages:
    """Integrate out one random effect per node (see `_shrinkage` for its variances).

    J -> B^-1 J, j -> B^-1 j, c -> c - ln|B| / 2 + j' T B^-1 j / 2.
    """
    J, j, c = messages
    inverse, determinant, T = _shrinkage(J, level, slope)
    score = (inverse @ j[..., None])[..., 0]
    constant = c - 0.5 * np.log(determinant) + 0.5 * (j * (T @ score[..., None])[..., 0]).sum(-1)
    precision = inverse @ J
    return Messages((precision + precision.swapaxes(-1, -2)) / 2, score, constant)


def _shrinkage(J: Array, level: Array, slope: Array) -> tuple[Array, Array, Array]:
    """B^-1, |B| and T for B = I + J T, where T is the covariance of a node's effect.

    The effect shifts the line by a level (variance `level`, broadcast over the nodes) at the node's own centre and
    tilts it about that centre (variance `slope`).
    """
    centre = J[..., 0, 1] / J[..., 0, 0]
    T = np.empty((*np.broadcast_shapes(level.shape, centre.shape), 2, 2))
    T[..., 0, 0] = level + slope * centre**2
    T[..., 0, 1] = T[..., 1, 0] = -slope * centre
    T[..., 1, 1] = slope
    inverse, determinant = invert(np.eye(2) + J @ T)
    return inverse, determinant, T


def invert(matrix: Array) -> tuple[Array, Array]:
    """Inverse and determinant of 2 x 2 matrices [..., 2, 2]; a singular one has determinant 0, and no warning."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    determinant = a * d - b * c
    # Rounding leaves a singular matrix with a determinant of the size of its last digits.
    determinant = np.where(np.abs(determinant) > 1e-13 * np.abs(a * d), determinant, 0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        inverse = np.stack([d, -b, -c, a], axis=-1).reshape(matrix.shape) / determinant[..., None, None]
    return inverse, determinant
