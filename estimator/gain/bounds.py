"""Rows that state a bound: read as "at least" or "at most", not as a measurement.

A reading that is not seen, only known to lie above (below) a limit, is replaced by the normal reading that moves mean
and variance of what the other rows expect there as the bound does (assumed-density filtering, one moment-matched site
per bound in turn; Minka 2001, arXiv 1301.2294). A bound that nobody doubted says nothing; one far above what is
expected draws the curve up to it. The sites are made once, at the usual scatter, so every scenario reads the same rows.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr

from cegain.gain.curve import posterior
from cegain.gain.study import Rows, Spread, keep_rows

_MAX_BOUNDS = 20
"""With more, each is read beside the rows that are no bounds, without the other bounds."""
_SILENT = 1e4
"""A site with a variance so many times the row's own says nothing and is left out."""


def as_readings(rows: Rows, spread: Spread) -> Rows:
    """The same rows with every bound replaced by the normal reading that says as much; those that say nothing go."""
    return heard(rows, spread)[0]


def heard(rows: Rows, spread: Spread) -> tuple[Rows, NDArray[np.bool_]]:
    """`as_readings`, and which of the rows [n] are left.

    A question with bounds alone is answered too: the curve's prior level is proper.
    """
    bounds = np.flatnonzero(rows.bound)
    if not len(bounds):
        return rows, np.ones(len(rows.y), bool)
    y, variance = rows.y.copy(), rows.variance.copy()
    silent = np.zeros(len(y), bool)
    silent[bounds] = True
    before = (y.copy(), variance.copy(), silent.copy())
    for i in bounds.tolist():
        seen = (y, variance, silent) if len(bounds) <= _MAX_BOUNDS else before
        mean, spread_there = _expected(rows._replace(y=seen[0], variance=seen[1]), ~seen[2], i, spread)
        y[i], variance[i] = _site(rows.y[i], rows.variance[i], int(rows.bound[i]), mean, spread_there)
        silent[i] = variance[i] > _SILENT * rows.variance[i]
    kept = rows._replace(y=y, variance=variance, bound=np.zeros_like(rows.bound))
    left = ~silent if not silent.all() else np.ones(len(y), bool)
    return keep_rows(kept, left), left


def _expected(rows: Rows, others: NDArray[np.bool_], i: int, spread: Spread) -> tuple[float, float]:
    """Mean and variance of row i, its own noise left out, as `others` (mask) and the scatter of studies foresee it."""
    one = np.ones(1)
    contrast = int(rows.contrast_of_row[i])
    scatter = spread.study_level**2 + spread.contrast_level**2 + float(rows.contrast_variance[contrast])
    probe = others.copy()
    silent = not others.any()
    if silent:  # the prior alone: read the row with no weight
        probe[i] = True
        rows = rows._replace(variance=np.full_like(rows.variance, 1e12))
    given = posterior(keep_rows(rows, probe), spread, one, one)
    means, covariances = given.at(rows.x[[i]], rows.covariates[i])
    return float(means[0, 0]), float(covariances[0, 0, 0]) + scatter


def _site(limit: float, noise: float, side: int, mean: float, variance: float) -> tuple[float, float]:
    """The reading (value, variance) that stands for a bound on something expected at `mean` with `variance`."""
    total = variance + noise
    z = side * (mean - limit) / math.sqrt(total)
    ratio = math.exp(-0.5 * z * z - 0.5 * math.log(2 * math.pi) - float(log_ndtr(z)))
    moved = mean + side * variance * ratio / math.sqrt(total)
    left = max(variance * (1 - variance / total * ratio * (z + ratio)), 1e-6 * variance)
    weight = 1 / left - 1 / variance
    if weight <= 1e-9 / variance:
        return limit, 1e12
    return (moved / left - mean / variance) / weight, 1 / weight
