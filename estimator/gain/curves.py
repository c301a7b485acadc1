"""One algorithm's gain as a curve in compute, pinned by its studies."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.gain import chain, contrasts, prior
from cegain.gain.study import X0, Spread

MAX_SLOPE_SD = 1.0
"""A slope less certain than this (ln CEG per decade) is not identified."""
UNKNOWN_DECADES = 3.0  # evidence whose compute is not stated is taken to be this far away


class Curve(NamedTuple):
    """Distribution of ln CEG at any C: k scenarios of scatter, each a Gaussian curve through the studies.

    weights: [k]; studies: None where the gain is 1 by construction; new_study_sds: [k]; reach: [m] log10 FLOP of the
    runs that fix the level, sorted; `inflation` is above 1 where the rows contradict each other.
    """

    weights: Array
    studies: chain.Chain | None
    new_study_sds: Array
    reach: Array
    inflation: float = 1.0

    @property
    def exact(self) -> bool:
        """Whether the gain is 1 by construction."""
        return self.studies is None

    def decades(self, flops: float) -> float:
        """Distance (decades of compute) from the evidence: 0 inside its range, NaN where its compute is unknown."""
        if self.exact:
            return 0.0
        if not len(self.reach):
            return math.nan
        x = math.log10(flops)
        return max(0.0, x - float(self.reach[-1]), float(self.reach[0]) - x)

    def mean(self, flops: float) -> Mixture:
        """ln CEG in the average setting."""
        if self.studies is None:
            return mixture.point(0.0)
        x = math.log10(flops) - X0
        if not len(self.reach):  # rows of unknown compute may stand anywhere
            away = x - self.studies.centre
            x = self.studies.centre + math.copysign(max(UNKNOWN_DECADES, abs(away)), away)
        means, covariances = chain.state(self.studies, x)
        return Mixture(self.weights, means[:, 0], np.sqrt(covariances[:, 0, 0]))

    def together(self, low: float, high: float) -> tuple[Array, Array]:
        """ln CEG in the average setting at two budgets (FLOP): mean [2] and covariance [2, 2] of the mixture.

        Means and variances are those of `mean`; how far both move together is the chain's (`chain.joint`).
        """
        if self.studies is None:
            return np.zeros(2), np.zeros((2, 2))
        ends = [self.mean(low), self.mean(high)]
        _, apart = chain.joint(self.studies, math.log10(low) - X0, math.log10(high) - X0)
        correlation = apart[:, 0, 1] / np.sqrt(apart[:, 0, 0] * apart[:, 1, 1])
        means, sds = np.stack([m.means for m in ends], axis=1), np.stack([m.sds for m in ends], axis=1)
        within = sds[:, :, None] * sds[:, None, :]
        within[:, [0, 1], [1, 0]] *= correlation[:, None]
        mean = self.weights @ means
        away = means - mean
        return mean, np.einsum("k,kij->ij", self.weights, within + away[:, :, None] * away[:, None, :])

    def predictive(self, flops: float) -> Mixture:
        """ln CEG that a new, independent study would find."""
        average = self.mean(flops)
        if self.exact:
            return average
        return Mixture(average.weights, average.means, np.hypot(average.sds, self.new_study_sds))

    def slope(self) -> Mixture:
        """d ln CEG / d log10 C over the core of the evidence, seen from its point nearest to 1e22 FLOP."""
        if self.studies is None:
            return mixture.point(0.0)
        lines = chain.line_at_centre(self.studies)
        return Mixture(self.weights, lines.means[:, 1], np.sqrt(lines.covariances[:, 1, 1]))


def fit_curve(question: contrasts.Question, spread: Spread, weights: Array) -> Curve | None:
    """The curve that the rows of one question support; None when none of them fixes its level or its slope.

    Args:
        question: rows of one algorithm, baseline and currency.
        spread: scatter and slope settings; `slope_sd` of inf leaves the slope to the rows alone.
        weights: [k] of the `prior.SCENARIOS`, sum 1.
    """
    rows = question.rows
    if rows is None or not rows.fixes_level.any():
        return None
    fitted = prior.fit_frozen(rows, spread, weights)
    lines, weights = fitted.lines, fitted.weights
    slope_variance = weights @ lines.covariances[:, 1, 1]
    if not (np.isfinite(lines.covariances).all() and slope_variance < MAX_SLOPE_SD**2):
        return None
    new_study = fitted.scatter * math.hypot(spread.study_level, spread.contrast_level)
    return Curve(
        weights,
        fitted.chain,
        np.hypot(new_study, contrasts.ROW_SD),
        np.log10(contrasts.budgets(question.used)),
        fitted.inflation,
    )


def exact_curve() -> Curve:
    """CEG = 1 at every C, for an algorithm that computes the same function with the same FLOP, or against itself."""
    empty = np.zeros((0,))
    return Curve(empty, None, empty, empty)
