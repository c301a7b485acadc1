"""Rows that contradict each other: how much further apart they lie than the model says they can.

The scenarios of `prior` are of how studies differ. Rows that disagree within a study, or by more than any scenario
allows, would leave widths as they are. So the spread of all rows is compared with what is expected of it, and widths
grow by what exceeds that (a Birge ratio; Birge 1932, doi:10.1103/PhysRev.40.207).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import chdtri

from cegain.common.arrays import Array
from cegain.gain import study
from cegain.gain.curve import COVARIATE_SD, LEVEL_SD, LINE_SD, prior_covariance
from cegain.gain.study import Rows, Spread

MOST_ROWS = 600
"""It takes the cube of the number of rows; longer tables are taken as they are."""
TAIL = 0.001
"""Share of tables, drawn as the model says, that count as odd."""


def ratio(rows: Rows, spread: Spread, scatter: float, slope: float) -> float:
    """How many times further apart rows lie than one scenario says they do, 1 or more.

    It is the root of chi squared over the point that only a share `TAIL` of tables passes.

    Args:
        rows: the gains, without bounds.
        spread: scatter and slope settings.
        scatter: multiplier of how far the levels of studies scatter.
        slope: multiplier of how far slopes stray.
    """
    n = len(rows.x)
    if not 1 < n <= MOST_ROWS:
        return 1.0
    chi_squared = float(rows.y @ np.linalg.solve(covariance(rows, spread, scatter, slope), rows.y))
    return max(1.0, math.sqrt(chi_squared / float(chdtri(n, TAIL))))


def covariance(rows: Rows, spread: Spread, scatter: float, slope: float) -> Array:
    """Of ln gains [n, n] before any is seen: the curve, its covariates, studies, contrasts and each row's own."""
    contrast, of_study = rows.contrast_of_row, rows.study_of_contrast[rows.contrast_of_row]
    strange = np.where(rows.fixes_level, 0.0, study.OTHER_BASELINE_SD**2)
    level = spread.contrast_level**2 + rows.contrast_variance + strange
    slope_sd = spread.slope_sd if math.isfinite(spread.slope_sd) else LINE_SD
    levels, slopes = np.array([LEVEL_SD * max(1.0, slope)]), np.array([slope * slope_sd])
    whole = prior_covariance(rows.x, rows.x, levels, slopes, 0.0)[0]
    whole = whole + COVARIATE_SD**2 * rows.covariates @ rows.covariates.T + np.diag(rows.variance)
    whole += (contrast[:, None] == contrast) * level[contrast]
    dx = rows.x - rows.x.mean()
    tilts = (slope * spread.study_slope) ** 2 * np.multiply.outer(dx, dx)
    whole += (of_study[:, None] == of_study) * ((scatter * spread.study_level) ** 2 + tilts)
    return np.asarray(whole)
