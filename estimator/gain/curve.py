"""An algorithm's curve through its studies: one Gaussian process, one posterior for all budgets.

f(x) = ln CEG, x = log10 C - X0, has a slope that is an Ornstein-Uhlenbeck process: it strays about 0 with a stationary
sd and forgets itself at the rate FADING per decade. So

    cov(f(x), f(x')) = LEVEL_SD^2 + (g(x - r) + g(x' - r) - g(x - x')) / 2,
    g(h) = 2 sd^2 (FADING |h| - 1 + exp(-FADING |h|)) / FADING^2

with r = LEVEL_AT. Inside the evidence the curve follows it. Past it, and in its holes, the slope is carried on for
about 1 / FADING decades and then forgotten, and the variance grows with the distance to the nearest run. Nothing
depends on the question: every budget is answered from the same posterior.

Toy runs (`contrasts.TOY_FLOPS`) do not steer what is said of large ones. Where studies of larger runs exist, two such
posteriors are made, with the toys and without. Up to four decades above the largest toy the first answers, from six
decades the second, and in between their means and sds are joined by a smooth weight (`without_toys`). What the toys
say about how calm or wild the algorithm is counts everywhere (`prior`), so toys that contradict large runs widen every
answer.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.gain import capped, study
from cegain.gain.study import X0, Rows, Spread

FADING = 0.4
"""Rate (per decade) at which a slope is forgotten: growth goes on for about 1 / FADING decades past the evidence and
then levels off. Assumed: carrying a line on for ever loses, on public ladders of runs, to leaving the gain where it was
(see `docs/ladders.md`)."""
LEVEL_SD = 1.5
"""sd of ln CEG at LEVEL_AT before any row is seen, times the multiplier of slopes where that is above 1: what changes
fast is seldom near 1. Assumed; proper, so that a bound can be read as a bound."""
LEVEL_AT = 21.0 - X0
LINE_SD = 30.0
"""sd of a straight line's slope where the shared prior of slopes is left out."""
UNKNOWN_DECADES = 5.0  # evidence whose compute is not stated is taken to be this far away
RANGE = (18.0, 26.0)
"""log10 FLOP between which a class is meant to hold."""
TAPER = (4.0, 6.0)
"""Decades above the largest toy run over which what toys say of the level is given up."""
LENGTH_SD = 0.4
"""sd of ln gain for every decade between the length of a sequence and those that were measured. Assumed, as slopes."""
COVARIATE_SD = 0.25
"""sd of d ln CEG / d ln(covariate), such as experts' total over active size, before any row is seen. Assumed."""
_GRID = 50
"""Rows stand on whole fiftieths of a decade, coarser in long tables; the slope strays 0.02 meanwhile."""
_MAX_CELLS = 150


class Posterior(NamedTuple):
    """The curve given rows, in k scenarios: with grid [G], D = G + covariates, and K the prior covariance of theta,
    solved [k, D, m] = (I + J K)^-1 j and taken [k, D, D] = (I + J K)^-1 J.

    levels and slopes [k] are sds of the process; line_sd: of a slope that is not forgotten, 0 with the shared prior.
    """

    grid: Array
    levels: Array
    slopes: Array
    line_sd: float
    solved: Array
    taken: Array
    log_likelihoods: Array

    def at(self, x: Array, covariates: Array) -> tuple[Array, Array]:
        """f at places x [q] (log10 FLOP - X0) for covariates [p]: means [k, q], covariances [k, q, q]."""
        tail = np.broadcast_to(covariates, (len(x), len(covariates)))
        cross = prior_covariance(x, self.grid, self.levels, self.slopes, self.line_sd)
        cross = np.concatenate([cross, np.broadcast_to(tail * COVARIATE_SD**2, (len(cross), *tail.shape))], axis=2)
        means = (cross @ self.solved[:, :, :1])[:, :, 0]
        own = prior_covariance(x, x, self.levels, self.slopes, self.line_sd) + COVARIATE_SD**2 * tail @ tail.T
        return means, own - cross @ self.taken @ cross.swapaxes(1, 2)

    def weights_at(self, x: float, covariates: Array) -> Array:
        """[k, m] f at x by each set of readings."""
        tail = np.broadcast_to(covariates * COVARIATE_SD**2, (len(self.slopes), 1, len(covariates)))
        cross = np.concatenate(
            [prior_covariance(np.array([x]), self.grid, self.levels, self.slopes, self.line_sd), tail], axis=2
        )
        weights: Array = (cross @ self.solved)[:, 0]
        return weights


def variogram(decades: Array) -> Array:
    """Variance of f(x + h) - f(x) for a slope of sd 1; h in decades."""
    h = FADING * np.abs(decades)
    return np.asarray(2 * (h + np.expm1(-h)) / FADING**2)


def carried(decades: Array | float) -> Array:
    """Decades of growth that a slope still gives when the evidence has been left for `decades`."""
    return np.asarray(-np.expm1(-FADING * np.asarray(decades)) / FADING)


def prior_covariance(one: Array, other: Array, levels: Array, slopes: Array, line_sd: float) -> Array:
    """Covariance [k, n, m] of f at two sets of places."""
    a, b = one - LEVEL_AT, other - LEVEL_AT
    strays = (variogram(a)[:, None] + variogram(b) - variogram(a[:, None] - b)) / 2
    line = line_sd**2 * np.multiply.outer(a, b)
    return np.asarray(np.square(levels)[:, None, None] + line + np.square(slopes)[:, None, None] * strays)


def cells_of(x: Array) -> tuple[Array, NDArray[np.intp]]:
    """The grid [G] of places on which rows at x [n] are put, and the cell of each."""
    for per_decade in (_GRID, 10, 4, 1):
        places, cells = np.unique(np.round(x * per_decade) / per_decade, return_inverse=True)
        if len(places) <= _MAX_CELLS:
            break
    return places, cells.ravel()


def posterior(rows: Rows, spread: Spread, scatter: Array, slope: Array, readings: Array | None = None) -> Posterior:
    """The curve given rows, in k scenarios (arguments as in `study.messages`).

    A slope_sd of inf leaves the slope to the rows: a line that is not forgotten, beside the usual straying.
    """
    line_sd = 0.0
    if not math.isfinite(spread.slope_sd):
        line_sd = LINE_SD
        spread = spread._replace(slope_sd=spread.study_slope)
    grid, cells = cells_of(rows.x)
    said = study.messages(rows, cells, spread, scatter, slope, readings)
    levels, slopes = LEVEL_SD * np.maximum(1.0, slope), slope * spread.slope_sd
    size = said.precision.shape[1]
    K = np.zeros((len(slope), size, size))
    K[:, : len(grid), : len(grid)] = prior_covariance(grid, grid, levels, slopes, line_sd)
    covariates = np.arange(len(grid), size)
    K[:, covariates, covariates] = COVARIATE_SD**2
    B = np.eye(size) + said.precision @ K
    both = np.linalg.solve(B, np.concatenate([said.score, said.precision], axis=2))
    solved, taken = both[:, :, : said.score.shape[2]], both[:, :, said.score.shape[2] :]
    fit = np.einsum("ki,kij,kj->k", said.score[:, :, 0], K, solved[:, :, 0])
    likelihoods = said.constant + 0.5 * fit - 0.5 * np.linalg.slogdet(B)[1]
    return Posterior(grid, levels, slopes, line_sd, solved, taken, likelihoods)


class Curve(NamedTuple):
    """Distribution of ln CEG at any C: k scenarios, each a Gaussian curve through the studies.

    weights: [k]; above: the posterior of the studies that are no toys (of all where there are only toys), None where
    the gain is 1 by construction; below: that of all, None where there are no toys or nothing else; new_study_sds: [k];
    reach: [m] log10 FLOP of the runs that fix the level, sorted; toys: log10 FLOP of the largest toy run, -inf without;
    covariates: [p] of the question, ln of their ratio to the reference. capped: algorithm and tokens of a sequence
    where the gain is capped; the curve is then that of how far a gain stays below its cap. scenarios: [k] which of
    `prior.SCENARIOS` these are; rows: what the curve was fitted to, bounds turned into readings, and heard: which of
    the question's used rows [n] these are.
    """

    weights: Array
    above: Posterior | None
    below: Posterior | None
    new_study_sds: Array
    reach: Array
    toys: float
    covariates: Array
    capped: tuple[str, float] | None = None
    scenarios: NDArray[np.intp] = np.zeros(0, np.intp)
    rows: Rows | None = None
    heard: NDArray[np.bool_] = np.zeros(0, bool)
    lengths: tuple[float, ...] = ()
    """Tokens of a sequence that rows of a pattern were measured at."""
    whose: tuple[str, ...] = ()
    """The laboratory of each run of `reach`."""
    stretch: float = 1.0
    """All widths are multiplied by this: more than 1 where the rows contradict each other (`prior.contradiction`)."""

    @property
    def exact(self) -> bool:
        """Whether the gain is 1 by construction."""
        return self.above is None

    @property
    def only_toys(self) -> bool:
        """Whether nothing but toy runs fixes the level."""
        return self.below is None and math.isfinite(self.toys)

    def decades(self, flops: float) -> float:
        """Distance (decades) from the nearest run that fixes the level; NaN where its compute is unknown."""
        if self.exact:
            return 0.0
        if not len(self.reach):
            return math.nan
        return float(np.abs(self.reach - math.log10(flops)).min()) + self.decades_in_length

    @property
    def decades_in_length(self) -> float:
        """Distance (decades of tokens) from the nearest length that a pattern was measured at."""
        if self.capped is None or not self.lengths:
            return 0.0
        return min(abs(math.log10(self.capped[1] / length)) for length in self.lengths)

    def span(self, low: float, high: float) -> float:
        """Decades between two places (log10 FLOP) over which runs can tell growth from how studies differ: those of one
        laboratory, or those that two have at either end.
        """
        ends: dict[str, list[float]] = {}
        for whose, x in zip(self.whose, self.reach.tolist(), strict=True):
            if low <= x <= high:
                ends.setdefault(whose, []).append(x)
        if not ends:
            return 0.0
        own = max(max(xs) - min(xs) for xs in ends.values())
        if len(ends) == 1:
            return own
        lowest, highest = sorted(min(xs) for xs in ends.values()), sorted(max(xs) for xs in ends.values())
        return max(own, highest[-2] - lowest[1])

    def place(self, flops: float) -> float:
        """log10 FLOP - X0 at which a budget is read off: never near rows that do not say where they stand."""
        x = math.log10(flops) - X0
        if not len(self.reach) and self.above is not None:
            middle = float(self.above.grid.mean())
            return middle + math.hypot(UNKNOWN_DECADES, x - middle)
        return x

    def _scenarios(self, flops: Array) -> tuple[Array, Array]:
        """ln CEG at budgets (FLOP) [q]: means [k, q] and covariances [k, q, q]."""
        assert self.above is not None
        x = np.array([self.place(c) for c in flops.tolist()])
        means, covariances = self.above.at(x, self.covariates)
        covariances = covariances * self.stretch**2
        if self.below is None:
            return means, covariances
        with_toys, covered = self.below.at(x, self.covariates)
        covered = covered * self.stretch**2
        weight = without_toys(np.log10(flops) - self.toys)
        sds, with_sds = (np.sqrt(np.diagonal(c, axis1=1, axis2=2)) for c in (covariances, covered))
        joined = weight * sds + (1 - weight) * with_sds
        scale = joined / sds
        return weight * means + (1 - weight) * with_toys, covariances * scale[:, :, None] * scale[:, None, :]

    def elsewhere(self, covariates: Array, seq_len: float) -> Curve:
        """The same for other covariates [p] and another length (tokens; NaN: as it is)."""
        capped_at = self.capped
        if capped_at is not None and not math.isnan(seq_len):
            capped_at = (capped_at[0], seq_len)
        return self._replace(covariates=covariates, capped=capped_at)

    def mean(self, flops: float) -> Mixture:
        """ln CEG in the average setting."""
        if self.exact:
            return mixture.point(0.0)
        means, covariances = self._scenarios(np.array([flops]))
        elsewhere = self.stretch * LENGTH_SD * self.decades_in_length
        below_cap = Mixture(self.weights, means[:, 0], np.hypot(np.sqrt(covariances[:, 0, 0]), elsewhere))
        if self.capped is None:
            return below_cap
        return below_cap._replace(cap=0.0).shifted(self.ln_cap(np.array([flops]))[0])

    def ln_cap(self, flops: Array) -> Array:
        """ln of the largest gain [n] that counting allows at budgets [n] (FLOP)."""
        assert self.capped is not None
        return capped.ln_cap(self.capped[0], flops, self.capped[1])

    def together(self, low: float, high: float) -> tuple[Array, Array]:
        """ln CEG in the average setting at two budgets (FLOP): mean [2] and covariance [2, 2] of the mixture."""
        if self.exact:
            return np.zeros(2), np.zeros((2, 2))
        means, covariances = self._scenarios(np.array([low, high]))
        if self.capped is not None:
            means = means + self.ln_cap(np.array([low, high]))
        mean = self.weights @ means
        away = means - mean
        return mean, np.einsum("k,kij->ij", self.weights, covariances + away[:, :, None] * away[:, None, :])

    def predictive(self, flops: float) -> Mixture:
        """ln CEG that a new, independent study would find."""
        return self.new_study(self.mean(flops))

    def new_study(self, average: Mixture) -> Mixture:
        """The same from `mean` at that budget."""
        if self.exact:
            return average
        return average._replace(sds=np.hypot(average.sds, self.stretch * self.new_study_sds))

    def slope(self, low: float = RANGE[0], high: float = RANGE[1]) -> Mixture:
        """Average d ln CEG / d log10 C between two budgets (log10 FLOP)."""
        if self.exact:
            return mixture.point(0.0)
        flops = 10.0 ** np.array([low, high])
        means, covariances = self._scenarios(flops)
        if self.capped is not None:
            means = means + self.ln_cap(flops)
        view = np.array([-1.0, 1.0]) / (high - low)
        return Mixture(self.weights, means @ view, np.sqrt(np.maximum(view @ covariances @ view, 0.0)))


def without_toys(decades: Array) -> Array:
    """Weight of the posterior without toys, so many decades above the largest of them: 0, then 1, twice smooth."""
    t = np.clip((decades - TAPER[0]) / (TAPER[1] - TAPER[0]), 0.0, 1.0)
    return np.asarray(t**3 * (10 - 15 * t + 6 * t * t))
