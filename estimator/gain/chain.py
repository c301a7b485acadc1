"""One algorithm's curve through studies that stand far apart: evidence fades with distance.

f(x) = ln CEG, x = log10 C - X0, has the slope

    f'(x) = b rho(x) + w(x)

b is the algorithm's own mean slope. It holds over the core of its evidence (the rows between the ends of `CORE`, or
the row nearest to them) and fades outside, rho = exp(-FADING * decades from the core). w is an Ornstein-Uhlenbeck
process of rate FADING and stationary sd WANDER_SD, counted from the point of the core nearest to the question, where
the slope is b. Past the last row the slope therefore forgets the evidence, and between studies it strays just as far.

A study says something about a straight line (`study.study_messages`). It says it where it stands: at the point of
the span of its own runs that is nearest to the question. The points make a chain of states (f, w, b), so the posterior
is exact and costs one step per point (Rauch, Tung, Striebel 1965, doi:10.2514/3.3166; the curve is a smoothing spline
whose slope reverts to its mean).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.gain import study
from cegain.gain.study import X0, Lines, Messages, Rows, Spread, invert, posterior, study_messages

FADING = 0.4
"""Rate (per decade) at which the slope forgets the evidence: growth goes on for about 1 / FADING decades past it and
then levels off. Assumed: carrying a line on for ever loses, on public ladders of runs, to leaving the gain where it was
(see `docs/ladders.md`)."""
WANDER_SD = 0.12
"""Stationary sd of the slope (ln CEG per decade) with which it wanders meanwhile; the size of `Spread.slope_sd`."""
UNKNOWN_DECADES = 3.0  # evidence whose compute is not stated is taken to be this far away
CORE = (18.0, 26.0)
"""log10 FLOP over which an algorithm is taken to have one mean slope, and a class by it."""
_CENTRE = 22.0 - X0
_FLAT_SD = 1e3  # of a slope without a prior: flat for every purpose, proper so that the state has moments on the way
_CHUNK = 200_000
_GRID = 50
"""Spans end on whole fiftieths of a decade, so that a long table has few points; the slope strays 0.02 meanwhile."""


class Chain(NamedTuple):
    """What g groups of studies say in k scenarios, and where; x is log10 FLOP - X0.

    low, high: [g] span of each group's runs; precision [k, g, 2, 2] and score [k, g, 2] of (level, slope), as in
    `study.Messages`; constant [k]; core: ends of the range where the mean slope holds; slope_mean and slope_sd [k]
    of its prior.
    """

    low: Array
    high: Array
    precision: Array
    score: Array
    constant: Array
    core: tuple[float, float]
    slope_mean: float
    slope_sd: Array

    @property
    def centre(self) -> float:
        """The point of the core nearest to 1e22 FLOP: where slope and likelihood are taken."""
        return min(max(_CENTRE, self.core[0]), self.core[1])


class _Points(NamedTuple):
    """Messages about (f, w, b) at n points, t [n] > 0 decades from a point of the core, ascending: precision
    [k, n, 3, 3], score [k, n, 3]; views [n, 2, 3] give (level, slope) of the line from (f, w, b).
    """

    t: Array
    precision: Array
    score: Array
    views: Array


def link(rows: Rows, spread: Spread, scatter: Array, slope: Array) -> Chain:
    """The chain of an algorithm's studies; arguments as in `study.study_messages`."""
    spans, group = _groups(rows)
    order = np.argsort(group, kind="stable")
    first = np.flatnonzero(np.diff(group[order], prepend=-1))
    parts = []
    chunks = max(1, math.ceil(len(scatter) * len(rows.contrast) / _CHUNK))  # bounds the memory of long tables
    for chunk in np.array_split(np.arange(len(scatter)), chunks):
        messages = study_messages(rows, spread, scatter[chunk], slope[chunk])
        parts.append(Messages(*(np.add.reduceat(part[:, order], first, axis=1) for part in messages)))
    precision, score, constant = (np.concatenate(fields) for fields in zip(*parts, strict=True))
    slopes = np.minimum(slope * spread.slope_sd, _FLAT_SD)
    return Chain(spans[:, 0], spans[:, 1], precision, score, constant.sum(1), _core(rows), spread.slope_mean, slopes)


def line_at_centre(chain: Chain) -> Lines:
    """Posterior of (f, slope) at the centre, and the likelihood of the rows, in every scenario."""
    x = chain.centre
    at = np.clip(x, chain.low, chain.high)
    return _at_core(chain, x, at, (-1, 1))


def state(chain: Chain, x: float) -> tuple[Array, Array]:
    """Posterior of (f, slope) at x in every scenario: means [k, 2], covariances [k, 2, 2]."""
    start = min(max(x, chain.core[0]), chain.core[1])
    return _state_from(chain, start, np.clip(x, chain.low, chain.high), x)


def joint(chain: Chain, x: float, other: float) -> tuple[Array, Array]:
    """Posterior of f at two places in every scenario: means [k, 2], covariances [k, 2, 2].

    Two questions need one place from which w is counted, and one where each study speaks: here the centre, or the point
    of the study's span nearest to it. A reading of f at the one place moves f at the other by their covariance.
    """
    start = chain.centre
    at = np.clip(start, chain.low, chain.high)
    first, second = (_state_from(chain, start, at, place) for place in (x, other))
    sd = np.sqrt(first[1][:, 0, 0])
    view = np.array([1.0, x])
    precision = (view[:, None] * view) / sd[:, None, None] ** 2
    score = ((first[0][:, 0] + sd) / sd**2)[:, None] * view  # one sd above what is expected, as sure as that is
    read = chain._replace(
        low=np.append(chain.low, x),
        high=np.append(chain.high, x),
        precision=np.concatenate([chain.precision, precision[:, None]], axis=1),
        score=np.concatenate([chain.score, score[:, None]], axis=1),
    )
    moved = _state_from(read, start, np.append(at, x), other)[0][:, 0] - second[0][:, 0]
    shared = 2 * sd * moved
    covariances = np.array([[first[1][:, 0, 0], shared], [shared, second[1][:, 0, 0]]])
    return np.stack([first[0][:, 0], second[0][:, 0]], axis=1), np.moveaxis(covariances, -1, 0)


def _state_from(chain: Chain, start: float, at: Array, x: float) -> tuple[Array, Array]:
    """Posterior of (f, slope) at x, with w counted from a point of the core; `at` [g]: where each group speaks."""
    if x == start:
        lines = _at_core(chain, x, at, (-1, 1))
        return lines.means, lines.covariances
    side = 1 if x > start else -1
    length = _core_left(chain, start, side)
    lines = _at_core(chain, start, at, (-side,))
    k = len(lines.means)
    mean, covariance = np.zeros((k, 3)), np.zeros((k, 3, 3))
    mean[:, ::2], covariance[:, ::2, ::2] = lines.means, lines.covariances
    points = _points(chain, start, at, side)
    end = abs(x - start)
    here = 0.0
    for i in np.flatnonzero(points.t < end):
        mean, covariance = _carry(mean, covariance, here, points.t[i], length, side)
        mean, covariance = _update(mean, covariance, points.precision[:, i], points.score[:, i])
        here = points.t[i]
    mean, covariance = _carry(mean, covariance, here, end, length, side)
    beyond = points.t >= end
    if beyond.any():
        outer = _Points(points.t[beyond], points.precision[:, beyond], points.score[:, beyond], points.views[beyond])
        mean, covariance = _update(mean, covariance, *_pull(outer, end, length, side)[:2])
    view = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, float(np.exp(-FADING * max(0.0, end - length)))]])
    return mean @ view.T, view @ covariance @ view.T


def row_weights(rows: Rows, spread: Spread) -> Array:
    """Weight [n] of each row's y in f at the middle of the core (scatter as in `spread`); f is linear in y."""
    chain = link(rows, spread, np.ones(1), np.ones(1))
    x = (chain.core[0] + chain.core[1]) / 2
    at = np.clip(x, chain.low, chain.high)
    covariance = _at_core(chain, x, at, (-1, 1)).covariances[0]
    towards = np.tile(covariance[0] @ np.array([[1.0, 0.0], [-x, 1.0]]), (len(at), 1))
    for side in (-1, 1):
        points = _points(chain, x, at, side)
        if len(points.t):
            trail: list[Array] = []
            _pull(points, 0.0, _core_left(chain, x, side), side, trail)
            moves = np.array([covariance[0, 0], 0.0, covariance[0, 1]])
            for i, passed in enumerate(reversed(trail)):
                moves = moves @ passed[0]
                there = side * (at - x) == points.t[i]
                towards[there] = points.views[i] @ moves
    _, group = _groups(rows)
    return study.row_weights(rows, spread, towards[group])


def _groups(rows: Rows) -> tuple[Array, NDArray[np.intp]]:
    """Distinct spans [g, 2] of the studies, and the span of each study [s].

    A study stands where its runs are that fix the level; failing these its runs, failing these all its rows.
    """
    rank = rows.runs.astype(int) * (1 + _by_row(rows, rows.fixes_level))
    starts = rows.contrast[rows.study]
    best = np.repeat(np.maximum.reduceat(rank, starts), np.diff(starts, append=len(rows.x)))
    low = np.minimum.reduceat(np.where(rank == best, rows.x, np.inf), starts)
    high = np.maximum.reduceat(np.where(rank == best, rows.x, -np.inf), starts)
    spans, group = np.unique(np.stack(_widened(low, high), axis=1), axis=0, return_inverse=True)
    return spans, group.ravel()


def _by_row(rows: Rows, values: NDArray[np.bool_]) -> NDArray[np.bool_]:
    return np.repeat(values, np.diff(rows.contrast, append=len(rows.x)))


def _widened(low: Array, high: Array) -> tuple[Array, Array]:
    return np.floor(low * _GRID + 1e-6) / _GRID, np.ceil(high * _GRID - 1e-6) / _GRID


def _core(rows: Rows) -> tuple[float, float]:
    """Ends of the range over which the mean slope holds: of the runs within `CORE`, or the run nearest to it."""
    fixing = _by_row(rows, rows.fixes_level)
    x = next(rows.x[mask] for mask in (rows.runs & fixing, fixing, rows.x == rows.x) if mask.any())
    outside = np.maximum(CORE[0] - X0 - x, x - (CORE[1] - X0)).clip(0)
    x = x[outside == outside.min()]
    low, high = _widened(x.min(), x.max())
    return float(low), float(high)


def _at_core(chain: Chain, start: float, at: Array, sides: tuple[int, ...]) -> Lines:
    """Posterior of (f, b) at a point of the core, from what is said there and on the given sides of it."""
    near = at == start
    move = np.array([[1.0, -start], [0.0, 1.0]])  # (level, slope) of a line from (f, b)
    precision = move.T @ chain.precision[:, near].sum(1) @ move
    score = chain.score[:, near].sum(1) @ move
    constant = chain.constant.copy()
    for side in sides:
        points = _points(chain, start, at, side)
        if len(points.t):
            J, j, c = _pull(points, 0.0, _core_left(chain, start, side), side)
            precision = precision + J[:, ::2, ::2]  # w is 0 here
            score = score + j[:, ::2]
            constant += c
    return posterior(Messages(precision, score, constant), chain.slope_mean, chain.slope_sd)


def _points(chain: Chain, start: float, at: Array, side: int) -> _Points:
    """The messages on one side of a point of the core, those at one place added, about (f, w, b) there."""
    t = side * (at - start)
    kept = np.flatnonzero(t > 0)
    kept = kept[np.argsort(t[kept], kind="stable")]
    t = t[kept]
    first = np.flatnonzero(np.diff(t, prepend=0.0))
    x = at[kept[first]]
    rho = np.exp(-FADING * np.maximum(0.0, t[first] - _core_left(chain, start, side)))
    view = np.zeros((len(first), 2, 3))  # (level, slope) of the line from (f, w, b)
    view[:, 0, 0] = view[:, 1, 1] = 1.0
    view[:, 1, 2] = rho
    view[:, 0] -= x[:, None] * view[:, 1]
    precision = view.swapaxes(1, 2) @ np.add.reduceat(chain.precision[:, kept], first, axis=1) @ view
    score = (np.add.reduceat(chain.score[:, kept], first, axis=1)[:, :, None] @ view)[:, :, 0]
    return _Points(t[first], precision, score, view)


def _core_left(chain: Chain, start: float, side: int) -> float:
    """Decades that the core still reaches on one side of a point in it."""
    return chain.core[1] - start if side > 0 else start - chain.core[0]


def carried(decades: Array | float) -> Array:
    """Decades of growth that a slope still gives when the evidence has been left for `decades`."""
    return np.asarray(-np.expm1(-FADING * np.asarray(decades)) / FADING)


def wander(decades: Array) -> Array:
    """Covariance [n, 2, 2] of (f, w), `decades` [n] after a point where they are known: the integrated OU process."""
    kh = FADING * decades
    free = 2 * (kh + np.expm1(-kh)) / FADING**2  # of f when w starts from its stationary distribution
    c = carried(decades)
    q = np.array([[np.maximum(0.0, free - c**2), FADING * c**2], [FADING * c**2, -np.expm1(-2 * kh)]])
    return WANDER_SD**2 * np.moveaxis(q, -1, 0)


def _steps(t: Array, length: float, side: int) -> tuple[Array, Array]:
    """Transition [n - 1, 3, 3] of (f, w, b) outwards between t [n], and the covariance [n - 1, 2, 2] of (f, w) added.

    length: decades that the core still reaches on this side.
    """
    decades = np.diff(t)
    growth = np.minimum(t, length) + carried(np.maximum(0.0, t - length))  # integral of rho
    A = np.zeros((len(decades), 3, 3))
    A[:, 0, 0] = A[:, 2, 2] = 1.0
    A[:, 0, 1] = side * carried(decades)
    A[:, 0, 2] = side * np.diff(growth)
    A[:, 1, 1] = np.exp(-FADING * decades)
    Q = wander(decades)
    Q[:, 0, 1] *= side
    Q[:, 1, 0] *= side
    return A, Q


def _pull(points: _Points, to: float, length: float, side: int, trail: list[Array] | None = None) -> Messages:
    """What the points say together about the state at `to`, which is not beyond the first of them.

    trail: gets, from the last point inwards, how the score further in moves with the score at the point [k, 3, 3].
    """
    t = np.concatenate([[to], points.t])
    A, Q = _steps(t, length, side)
    J, j = np.zeros_like(points.precision[:, 0]), np.zeros_like(points.score[:, 0])
    c = np.zeros(len(j))
    for i in range(len(A) - 1, -1, -1):
        J, j = J + points.precision[:, i], j + points.score[:, i]
        # Integrate out what w adds on the way: with B = I + J Q, J -> B^-1 J, j -> B^-1 j (Woodbury in 2 x 2).
        back, determinant = invert(np.eye(2) + J[:, :2, :2] @ Q[i])
        S = Q[i] @ back
        c += 0.5 * (j[:, None, :2] @ S @ j[:, :2, None])[:, 0, 0] - 0.5 * np.log(determinant)
        U = J[:, :, :2] @ S
        j = j - (U @ j[:, :2, None])[:, :, 0]
        if trail is not None:
            trail.append(A[i].T @ (np.eye(3) - np.pad(U, ((0, 0), (0, 0), (0, 1)))))
        J = A[i].T @ (J - U @ J[:, :2, :]) @ A[i]
        J = (J + J.swapaxes(1, 2)) / 2
        j = j @ A[i]
    return Messages(J, j, c)


def _carry(mean: Array, covariance: Array, start: float, end: float, length: float, side: int) -> tuple[Array, Array]:
    """Moments [k, 3], [k, 3, 3] of the state further out."""
    A, Q = _steps(np.array([start, end]), length, side)
    covariance = A[0] @ covariance @ A[0].T
    covariance[:, :2, :2] += Q[0]
    return mean @ A[0].T, covariance


def _update(mean: Array, covariance: Array, precision: Array, score: Array) -> tuple[Array, Array]:
    """Moments after a message about the same state."""
    updated = covariance @ np.linalg.inv(np.eye(3) + precision @ covariance)
    updated = (updated + updated.swapaxes(1, 2)) / 2
    return mean + (updated @ (score - (precision @ mean[..., None])[..., 0])[..., None])[..., 0], updated


class Curve(NamedTuple):
    """Distribution of ln CEG at any C: k scenarios of scatter, each a Gaussian curve through the studies.

    weights: [k]; studies: None where the gain is 1 by construction; new_study_sds: [k]; reach: [m] log10 FLOP of the
    runs that fix the level, sorted; `inflation` is above 1 where the rows contradict each other.
    """

    weights: Array
    studies: Chain | None
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
        means, covariances = state(self.studies, x)
        return Mixture(self.weights, means[:, 0], np.sqrt(covariances[:, 0, 0]))

    def together(self, low: float, high: float) -> tuple[Array, Array]:
        """ln CEG in the average setting at two budgets (FLOP): mean [2] and covariance [2, 2] of the mixture.

        Means and variances are those of `mean`; how far both move together is the chain's (`chain.joint`).
        """
        if self.studies is None:
            return np.zeros(2), np.zeros((2, 2))
        ends = [self.mean(low), self.mean(high)]
        _, apart = joint(self.studies, math.log10(low) - X0, math.log10(high) - X0)
        correlation = apart[:, 0, 1] / np.sqrt(apart[:, 0, 0] * apart[:, 1, 1])
        means, sds = np.stack([m.means for m in ends], axis=1), np.stack([m.sds for m in ends], axis=1)
        within = sds[:, :, None] * sds[:, None, :]
        within[:, [0, 1], [1, 0]] *= correlation[:, None]
        mean = self.weights @ means
        away = means - mean
        return mean, np.einsum("k,kij->ij", self.weights, within + away[:, :, None] * away[:, None, :])

    def predictive(self, flops: float) -> Mixture:
        """ln CEG that a new, independent study would find."""
        return self.new_study(self.mean(flops))

    def new_study(self, average: Mixture) -> Mixture:
        """The same from `mean` at that budget."""
        if self.exact:
            return average
        return Mixture(average.weights, average.means, np.hypot(average.sds, self.new_study_sds))

    def slope(self) -> Mixture:
        """d ln CEG / d log10 C over the core of the evidence, seen from its point nearest to 1e22 FLOP."""
        if self.studies is None:
            return mixture.point(0.0)
        lines = line_at_centre(self.studies)
        return Mixture(self.weights, lines.means[:, 1], np.sqrt(lines.covariances[:, 1, 1]))
