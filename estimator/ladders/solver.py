"""Minimise the Huber loss of a sum of power laws on a log scale, for many starts or resamples at once.

The law is L = sum_j exp(c_j - a_j x_j) + exp(e) with x_j centred logs (of N, D or C), and the objective
sum_i w_i huber_delta(ln L_i - ln L(x_i)) with huber(r) = r^2 / 2 for |r| <= delta, else delta (|r| - delta / 2)
(Hoffmann et al. 2022, arXiv 2203.15556, eq. 3). A resample is a vector of weights on the same runs.

Method: Levenberg's damped Newton with the exact Hessian. With p_j the share of term j in the predicted loss,
z_j = ln of term j, psi = clip(r, -delta, delta) and t = [|r| < delta],

    gradient_j = -sum w psi p_j
    Hessian_jk =  sum w ((t + psi) p_j p_k - psi p_j [j = k])

in z, and z is linear in the parameters. delta is far below the scatter of real runs, so most runs sit on the linear
part, t jumps as runs enter and leave the quadratic zone, and the plain Hessian may be nearly singular or indefinite.
The damping is therefore not a multiple of the identity but of the matrix of iteratively reweighted least squares,
sum w (psi / r) J J^T: it is positive definite, covers all runs and majorises the Huber loss, so that a damping of
about 1 is always a descent step up to the curvature of the law.

Many problems are first brought close in single precision, where exp and log are several times faster, and always
finished in double precision.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cegain.common.arrays import Array

AnyFloat = npt.NDArray[np.floating]
Flags = npt.NDArray[np.bool_]

_BLOCK = 128
"""Problems advanced together: enough to hide the interpreter, few enough for the temporaries to stay in cache."""
_SINGLE_FROM = 24
"""From this many problems on, the pass in single precision pays for itself."""
_WIDER_FIRST = (1000.0, 30.0)
_MAX_DAMPING = 1e12
_MIN_DAMPING = 1e-8
_FIRST_DAMPING = 0.3
_EXACT = 1e-24
"""Objective per unit of weight that counts as zero: log residuals of 1e-12."""
_SINGLE_TOLERANCE = 1e-6
"""Relative decrease at which single precision hands over: an order above its rounding."""


class Derivatives(NamedTuple):
    """For b problems with p parameters: objective [b], gradient [b, p], Hessian [b, p, p]."""

    objective: Array
    gradient: Array
    hessian: Array


class Solution(NamedTuple):
    """For b problems: parameters [b, p], objective [b], whether it converged [b]."""

    theta: Array
    objective: Array
    converged: Flags


class PowerSum:
    """The objective for m power-law terms and a floor. Parameters: c_1..c_m, e, a_1..a_m (p = 2 m + 1)."""

    def __init__(self, log_x: Array, log_loss: Array, delta: float, dtype: type[np.floating] = np.float64) -> None:
        """Take log_x [m, n] (centred where that is wanted), log_loss [n] (of loss in nats), delta of the Huber loss."""
        m, n = log_x.shape
        one = np.ones(n)
        self.n_terms = m
        self.n_params = 2 * m + 1
        self.dtype = dtype
        self.delta = delta
        self._upper = np.triu_indices(self.n_params, 1)
        self.log_x, self.log_loss = log_x, log_loss
        self._log_loss = log_loss.astype(dtype)
        self._design = [np.stack([one, -x]).astype(dtype) for x in log_x]
        self._square = [np.stack([one, -x, x * x], axis=1).astype(dtype) for x in log_x]
        self._cross = {
            (j, k): np.stack([one, -log_x[j], -log_x[k], log_x[j] * log_x[k]], axis=1).astype(dtype)
            for j in range(m)
            for k in range(j + 1, m)
        }

    def with_dtype(self, dtype: type[np.floating]) -> PowerSum:
        """The same objective computed in another precision."""
        return PowerSum(self.log_x, self.log_loss, self.delta, dtype)

    def with_delta(self, delta: float) -> PowerSum:
        """The same runs under another delta."""
        return PowerSum(self.log_x, self.log_loss, delta, self.dtype)

    def shares(self, theta: Array) -> tuple[AnyFloat, list[AnyFloat]]:
        """Predicted loss [b, n] and the share of each power-law term in it (m arrays [b, n]), for theta [b, p]."""
        m = self.n_terms
        theta = theta.astype(self.dtype)
        terms = [np.exp(theta[:, [j, m + 1 + j]] @ self._design[j]) for j in range(m)]
        total = sum(terms[1:], terms[0]) + np.exp(theta[:, m : m + 1])
        reciprocal = 1 / total
        for term in terms:
            term *= reciprocal
        return total, terms

    def evaluate(self, theta: Array, weights: AnyFloat) -> Derivatives:
        """Objective and its derivatives at theta [b, p] under weights [b, n] (of this object's dtype)."""
        residual, psi, shares = self._residual(theta)
        slope = weights * psi
        curved = (psi == residual) * weights
        curved += slope
        residual -= self.dtype(0.5) * psi
        objective = np.einsum("ij,ij->i", slope, residual).astype(np.float64)
        return Derivatives(objective, *self._assemble(shares, curved, slope))

    def metric(self, theta: Array, weights: AnyFloat) -> Array:
        """The matrix [b, p, p] of reweighted least squares: positive semi-definite, majorises the Huber part."""
        residual, psi, shares = self._residual(theta)
        ratio = np.divide(psi, residual, out=np.ones_like(psi), where=residual != 0)
        return self._assemble(shares, ratio * weights, np.zeros_like(psi))[1]

    def smoothed_hessian(self, theta: Array, weights: Array, bandwidth: float) -> Array:
        """The expected Hessian [p, p] at one theta [p]: which runs lie within delta is read off a wider window.

        Powell's estimate for quantile regression (Koenker 2005, section 3.4.2); the exact Hessian hangs on the few
        runs that happen to lie within delta.
        """
        width = max(bandwidth, self.delta)
        residual, psi, shares = self._residual(theta[None])
        slope = weights * psi
        near = weights * (np.abs(residual) <= width) * (self.delta / width)
        hessian: Array = self._assemble(shares, near + slope, slope)[1][0]
        return hessian

    def scores(self, theta: Array, weights: Array) -> Array:
        """The gradient of each run's part of the objective, [n, p], at one theta [p]."""
        _, psi, shares = self._residual(theta[None])
        slope = -(weights * psi[0])
        parts = [share[0] for share in shares]
        floor = 1 - sum(parts)
        exponents = [-x * part for x, part in zip(self.log_x, parts, strict=True)]
        return np.stack([slope * part for part in (*parts, floor, *exponents)], axis=1)

    def _residual(self, theta: Array) -> tuple[AnyFloat, AnyFloat, list[AnyFloat]]:
        total, shares = self.shares(theta)
        residual = self._log_loss - np.log(total)
        delta = self.dtype(self.delta)
        return residual, np.minimum(np.maximum(residual, -delta), delta), shares

    def _assemble(self, shares: list[AnyFloat], curved: AnyFloat, slope: AnyFloat) -> tuple[Array, Array]:
        """Gradient and Hessian from moments: every sum over runs is a product with a fixed matrix of monomials."""
        m, b = self.n_terms, len(curved)
        gradient = np.zeros((b, self.n_params))
        hessian = np.zeros((b, self.n_params, self.n_params))
        slope_left, curved_floor = slope.sum(axis=1), curved.sum(axis=1)
        to_floor = []
        weighted = [curved * share for share in shares]
        scratch = np.empty_like(curved)
        for j, share in enumerate(shares):
            a = m + 1 + j
            first = np.multiply(slope, share, out=scratch) @ self._square[j]
            second = np.multiply(weighted[j], share, out=scratch) @ self._square[j]
            both = second - first
            gradient[:, j], gradient[:, a] = -first[:, 0], -first[:, 1]
            hessian[:, j, j], hessian[:, j, a], hessian[:, a, a] = both[:, 0], both[:, 1], both[:, 2]
            slope_left = slope_left - first[:, 0]
            to_floor.append(weighted[j] @ self._square[j][:, :2])
            curved_floor = curved_floor - to_floor[j][:, 0]
            to_floor[j] -= second[:, :2]
        for (j, k), cross in self._cross.items():
            mixed = np.multiply(weighted[j], shares[k], out=scratch) @ cross
            aj, ak = m + 1 + j, m + 1 + k
            hessian[:, j, k], hessian[:, k, aj] = mixed[:, 0], mixed[:, 1]
            hessian[:, j, ak], hessian[:, aj, ak] = mixed[:, 2], mixed[:, 3]
            to_floor[j] -= mixed[:, [0, 1]]
            to_floor[k] -= mixed[:, [0, 2]]
        gradient[:, m] = -slope_left
        for j in range(m):
            hessian[:, j, m], hessian[:, m, m + 1 + j] = to_floor[j][:, 0], to_floor[j][:, 1]
            curved_floor = curved_floor - to_floor[j][:, 0]
        hessian[:, m, m] = curved_floor - slope_left
        rows, columns = self._upper
        hessian[:, columns, rows] = hessian[:, rows, columns]
        return gradient, hessian


class Box(NamedTuple):
    """Bounds of the parameters, [p] each; equal bounds hold a parameter fixed."""

    low: Array
    high: Array

    def frozen(self, theta: Array, gradient: Array) -> Flags:
        """Which parameters [b, p] are fixed, or on a bound with the descent direction pointing out of the box."""
        outward = ((theta <= self.low) & (gradient > 0)) | ((theta >= self.high) & (gradient < 0))
        frozen: Flags = outward | (self.low == self.high)
        return frozen


def minimise(
    problem: PowerSum,
    starts: Array,
    weights: AnyFloat,
    box: Box,
    *,
    tolerance: float = 1e-12,
    rounds: int = 20,
    steps: int = 40,
) -> Solution:
    """Local minima from starts [b, p] under weights [b, n] (or [1, n] for all).

    A problem has converged when the decrease that Newton's step promises is below `tolerance` times the objective
    (or what rounding leaves of an exact fit); that step is then taken. Each round has at most `steps` evaluations per
    problem and starts with a fresh metric; what has not converged goes on to the next round.
    """
    theta = np.clip(starts, box.low, box.high)
    b = len(theta)
    objective, converged = np.full(b, np.inf), np.zeros(b, dtype=bool)
    weights = np.broadcast_to(weights, (b, weights.shape[1]))
    damping: float | Array = _FIRST_DAMPING
    metric = _damping_metric(problem, theta, weights)
    if b >= _SINGLE_FROM:
        single = problem.with_dtype(np.float32)
        part = _descend(single, theta, weights.astype(np.float32), box, metric, damping, _SINGLE_TOLERANCE, steps)
        theta = part.theta
        damping = np.where(part.converged, _MIN_DAMPING, _FIRST_DAMPING)
    left = np.arange(b)
    for _ in range(rounds):
        part = _descend(problem, theta[left], weights[left], box, metric, damping, tolerance, steps)
        theta[left], objective[left], converged[left] = part.theta, part.objective, part.converged
        left = np.flatnonzero(~converged)
        if not left.size:
            break
        metric, damping = _damping_metric(problem, theta[left], weights[left]), _FIRST_DAMPING
    return Solution(theta, objective, converged)


def grid_starts(problem: PowerSum, weight: Array, box: Box, exponents: Sequence[float], keep: int) -> Array:
    """Starts [<= keep, p] for a fit without prior knowledge, under weights [n].

    At given exponents the law is linear in its coefficients and floor: these are least squares in the relative
    residual, so that only the exponents need a grid (Hoffmann et al. 2022 use one over all five).
    """
    m = problem.n_terms
    axes = [np.unique(np.clip(exponents, box.low[m + 1 + j], box.high[m + 1 + j])) for j in range(m)]
    points = np.array(list(itertools.product(*axes)))
    loss = np.exp(problem.log_loss)
    root = np.sqrt(weight)
    held = box.low[: m + 1] == box.high[: m + 1]
    sizes = np.where(held, np.exp(box.low[: m + 1]), 0.0)
    starts = np.empty((len(points), problem.n_params))
    for start, point in zip(starts, points, strict=True):
        columns = np.concatenate([np.exp(-point[:, None] * problem.log_x), np.ones((1, len(loss)))]) / loss * root
        target = root - sizes @ columns
        fitted = sizes.copy()
        fitted[~held] = np.linalg.lstsq(columns[~held].T, target, rcond=None)[0]
        # A negative size says that the term is hardly there: start it small.
        with np.errstate(divide="ignore"):
            start[: m + 1] = np.log(np.where(held, fitted, np.maximum(fitted, 1e-2 * loss.min())))
        start[m + 1 :] = point
    starts = np.clip(starts, box.low, box.high)
    objective = problem.evaluate(starts, np.broadcast_to(weight, (len(starts), len(weight)))).objective
    return starts[np.argsort(objective, kind="stable")[:keep]]


def minimise_from_afar(
    problem: PowerSum, starts: Array, weights: AnyFloat, box: Box, *, tolerance: float = 1e-15
) -> Solution:
    """`minimise` for starts that may be hopeless: first with a delta so wide that the objective is smooth there."""
    for factor in _WIDER_FIRST:
        wider = problem.with_delta(problem.delta * factor)
        starts = minimise(wider, starts, weights, box, tolerance=1e-5, steps=30).theta
    return minimise(problem, starts, weights, box, tolerance=tolerance)


def _damping_metric(problem: PowerSum, theta: Array, weights: AnyFloat) -> Array:
    """The metric at theta [b, p], made safely positive definite; one for all where all problems share the start."""
    rows: AnyFloat = weights
    if (theta == theta[0]).all():
        # Resamples of the same runs: their mean weight serves them all.
        theta = theta[:1]
        rows = weights.mean(axis=0, keepdims=True)
    metric = np.concatenate(
        [problem.metric(theta[i : i + _BLOCK], rows[i : i + _BLOCK]) for i in range(0, len(theta), _BLOCK)]
    )
    diagonal = np.einsum("bii->bi", metric)
    diagonal *= 1 + 1e-6
    diagonal += 1e-9 * diagonal.max(axis=1, keepdims=True) + 1e-300
    return np.asarray(np.nan_to_num(metric, posinf=0.0, neginf=0.0))


def _solve(hessian: Array, gradient: Array, frozen: Flags) -> Array:
    """The step -H^-1 g [b, p] with frozen parameters held."""
    if frozen.any():
        kept = ~frozen
        hessian = hessian * (kept[:, :, None] & kept[:, None, :])
        np.einsum("bii->bi", hessian)[frozen] = 1.0
        gradient = gradient * kept
    return np.asarray(-np.linalg.solve(hessian, gradient[..., None])[..., 0])


def _descend(
    problem: PowerSum,
    starts: Array,
    weights: AnyFloat,
    box: Box,
    metrics: Array,
    first_damping: float | Array,
    tolerance: float,
    max_steps: int,
) -> Solution:
    """One round. At most `_BLOCK` problems are in work; a finished one makes room for the next."""
    b = len(starts)
    done_theta, done_objective = starts.copy(), np.full(b, np.inf)
    done_converged = np.zeros(b, dtype=bool)
    metrics = np.broadcast_to(metrics, (b, *metrics.shape[1:]))
    initial = np.broadcast_to(np.asarray(first_damping, dtype=np.float64), b)

    slot = np.arange(min(b, _BLOCK))
    waiting = len(slot)
    theta, w, metric = starts[slot], weights[slot], metrics[slot].copy()
    exact = _EXACT * weights.sum(axis=1, dtype=np.float64)
    # A problem that has just come in has an infinite objective, no gradient, and so a first "step" of zero.
    objective, gradient, hessian = np.full(len(slot), np.inf), np.zeros_like(theta), metric.copy()
    damping, steps = initial[slot].copy(), np.zeros(len(slot), dtype=np.intp)
    while slot.size:
        frozen = box.frozen(theta, gradient)
        step = _solve(hessian + damping[:, None, None] * metric, gradient, frozen)
        gain = -np.einsum("ij,ij->i", gradient, step)
        old = np.isfinite(objective)
        enough = tolerance * objective + exact[slot]
        small = old & (np.abs(gain) <= enough)
        finished = (steps >= max_steps) | (damping > _MAX_DAMPING)
        if small.any():
            near = np.flatnonzero(small)
            # The damped step is short because of the damping, or because this is a minimum: only the latter counts.
            full = _solve(hessian[near] + _MIN_DAMPING * metric[near], gradient[near], frozen[near])
            promise = -np.einsum("ij,ij->i", gradient[near], full)
            good = np.abs(promise) <= 10 * enough[near]
            theta[near[good]] = np.clip(theta[near[good]] + full[good], box.low, box.high)
            done_converged[slot[near[good]]] = True
            finished[near[good]] = True
            damping[near[~good]] *= 0.1
        if finished.any():
            out = np.flatnonzero(finished)
            done_theta[slot[out]], done_objective[slot[out]] = theta[out], objective[out]
            new = np.arange(waiting, min(b, waiting + len(out)))
            waiting += len(new)
            into = out[: len(new)]
            slot[into], theta[into], w[into], metric[into] = new, starts[new], weights[new], metrics[new]
            objective[into], gradient[into], step[into], steps[into] = np.inf, 0.0, 0.0, 0
            damping[into] = initial[new]
            if len(new) < len(out):
                keep = np.ones(len(slot), dtype=bool)
                keep[out[len(new) :]] = False
                slot, theta, w, metric = slot[keep], theta[keep], w[keep], metric[keep]
                objective, gradient, hessian = objective[keep], gradient[keep], hessian[keep]
                step, steps, damping, gain = step[keep], steps[keep], damping[keep], gain[keep]
                if not slot.size:
                    break
        trial = np.clip(theta + step, box.low, box.high)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            value, slope, curvature = problem.evaluate(trial, w)
        steps += 1
        # The quadratic model with its damping promises half of `gain`; the damping follows how well it kept its word.
        fresh = ~np.isfinite(objective)
        decrease = np.where(fresh, 0.0, np.where(fresh, 0.0, objective) - value)
        better = np.where(fresh, np.isfinite(value), (value < objective) & (gain > 0))
        kept_word = decrease / np.maximum(gain / 2, 1e-300)
        factor = np.where(kept_word > 0.75, 0.1, np.where(kept_word < 0.25, 2.0, 1.0))
        damping = np.where(fresh, damping, np.maximum(damping * np.where(better, factor, 5.0), _MIN_DAMPING))
        steps[fresh & ~better] = max_steps
        theta[better], objective[better] = trial[better], value[better]
        gradient[better], hessian[better] = slope[better], curvature[better]
    return Solution(done_theta, done_objective, done_converged)
