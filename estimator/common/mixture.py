"""Mixtures of normals: the distribution of ln CEG at one budget."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from cegain.common.arrays import Array

NORMAL_90 = 1.6448536269514722
"""Half width of a standard normal's central 90%."""
ROOT_TAU = math.sqrt(2 * math.pi)
TINY = 1e-12
MAX_COMPONENTS = 25
"""A sum that would have more has those of like width merged."""


class Mixture(NamedTuple):
    """k normals: weights [k] (sum 1), means [k], sds [k] (0 allowed: a point); what lies above `cap` is cut off."""

    weights: Array
    means: Array
    sds: Array
    cap: float = math.inf

    def mean(self) -> float:
        """Expectation."""
        if self.cap < math.inf:
            return self.spelled_out().mean()
        return float(self.weights @ self.means)

    def sd(self) -> float:
        """Standard deviation."""
        whole = self.spelled_out() if self.cap < math.inf else self
        square = float(whole.weights @ (whole.sds**2 + whole.means**2))
        return math.sqrt(max(0.0, square - whole.mean() ** 2))

    def spelled_out(self) -> Mixture:
        """The same without a cap, to be added to others: as many points of equal weight as a sum may have."""
        if self.cap == math.inf:
            return self
        n = MAX_COMPONENTS
        points = np.array(self.quantiles([(i + 0.5) / n for i in range(n)]))
        return Mixture(np.full(n, 1 / n), points, np.zeros(n))

    def cdf(self, value: float) -> float:
        """P(X <= value)."""
        if self.cap < math.inf:
            below = self._replace(cap=math.inf)
            kept = below.cdf(self.cap)
            return 1.0 if value >= self.cap else below.cdf(value) / kept if kept > 0 else 0.0
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(self.sds > 0, (value - self.means) / self.sds, np.inf)
        z = np.where((self.sds == 0) & (value < self.means), -np.inf, z)
        return float(self.weights @ ndtr(z))

    def quantiles(self, probabilities: Sequence[float]) -> list[float]:
        """The values below which so much lies: Newton's steps inside a bracket that is halved where they leave it."""
        if self.cap < math.inf:
            below = self._replace(cap=math.inf)
            kept = below.cdf(self.cap)
            if kept < TINY:  # all that is expected lies above
                return [self.cap] * len(probabilities)
            return [min(q, self.cap) for q in below.quantiles([p * kept for p in probabilities])]
        if len(self.means) == 1:
            return [float(self.means[0] + ndtri(probability) * self.sds[0]) for probability in probabilities]
        wanted = np.asarray(probabilities, dtype=float)
        ends = self.means + np.multiply.outer(ndtri(wanted), self.sds)
        low, high = ends.min(axis=1), ends.max(axis=1)
        spread = self.sds > 0
        sds = np.where(spread, self.sds, 1.0)
        sd = math.sqrt(self.weights @ (self.sds**2 + (self.means - self.mean()) ** 2))
        at, todo = np.clip(self.mean() + ndtri(wanted) * sd, low, high), np.full(wanted.shape, True)
        for _ in range(100):
            away = at[:, None] - self.means
            z = away / sds
            excess = np.where(spread, ndtr(z), away >= 0) @ self.weights - wanted
            density = np.where(spread, np.exp(-z * z / 2) / (sds * ROOT_TAU), 0.0) @ self.weights
            low, high = np.where(excess < 0, at, low), np.where(excess < 0, high, at)
            step = at - excess / np.maximum(density, 1e-300)
            todo &= np.abs(step - at) > 1e-13 * np.maximum(1.0, np.abs(at))
            if not todo.any():
                break
            step = np.where((step > low) & (step < high), step, (low + high) / 2)
            at = np.where(todo, step, at)
        return [float(value) for value in at]

    def quantile(self, probability: float) -> float:
        """The value below which `probability` lies."""
        return self.quantiles([probability])[0]

    def central(self, content: float) -> tuple[float, float]:
        """The interval that leaves (1 - content) / 2 on each side."""
        low, high = self.quantiles([(1 - content) / 2, (1 + content) / 2])
        return low, high

    def factors(self, content: float) -> tuple[float, float]:
        """The same interval of exp(X)."""
        low, high = self.central(content)
        return math.exp(low), math.exp(high)

    def widened(self, sd: float) -> Mixture:
        """The sum with an independent normal of mean 0."""
        parts = self.spelled_out()
        return Mixture(parts.weights, parts.means, np.hypot(parts.sds, sd))

    def shifted(self, by: float) -> Mixture:
        """The sum with a constant."""
        return Mixture(self.weights, self.means + by, self.sds, self.cap + by)


def shared_out(first: Mixture, second: Mixture) -> float:
    """The weight of the first of two independent readings of one quantity, by precision. A point wins over all."""
    variances = [first.sd() ** 2, second.sd() ** 2]
    if min(variances) <= 0:
        return 1.0 if variances[0] <= variances[1] else 0.0
    return variances[1] / sum(variances)


def joined(first: Mixture, second: Mixture, weight: float) -> Mixture:
    """Two independent readings of one quantity, the first with a weight (`shared_out`): a normal.

    Readings further apart than their errors make it as much wider (the Birge ratio; Birge 1932,
    doi:10.1103/PhysRev.40.207).
    """
    if weight in (0.0, 1.0):
        return (first if weight else second).spelled_out()
    variances = [first.sd() ** 2, second.sd() ** 2]
    mean = weight * first.mean() + (1 - weight) * second.mean()
    variance = weight**2 * variances[0] + (1 - weight) ** 2 * variances[1]
    apart = (first.mean() - second.mean()) ** 2 / sum(variances)
    return Mixture(np.ones(1), np.full(1, mean), np.full(1, math.sqrt(variance * max(1.0, apart))))


def point(value: float) -> Mixture:
    """All probability on one value."""
    return Mixture(np.ones(1), np.full(1, value), np.zeros(1))


def total(parts: Iterable[Mixture]) -> Mixture:
    """Distribution of a sum of independent mixtures (components of like width merged, mean and variance kept)."""
    parts = list(parts)
    if len(parts) == 1:
        return parts[0]
    result = point(0.0)
    for part in (p.spelled_out() for p in parts):
        weights = np.outer(result.weights, part.weights).ravel()
        means = np.add.outer(result.means, part.means).ravel()
        sds = np.hypot.outer(result.sds, part.sds).ravel()
        result = _merged(Mixture(weights, means, sds))
    # Merging gives points a width again, and what is added cannot exceed the sum of its limits.
    return result._replace(cap=math.fsum(p.cap if p.sds.any() or p.cap < math.inf else p.means.max() for p in parts))


def _merged(mixture: Mixture) -> Mixture:
    if len(mixture.weights) <= MAX_COMPONENTS:
        return mixture
    order = np.argsort(mixture.sds, kind="stable")
    first = [int(group[0]) for group in np.array_split(np.arange(len(order)), MAX_COMPONENTS)]
    weights, means, sds = (values[order] for values in mixture[:3])
    together = np.add.reduceat(weights, first)
    mean = np.add.reduceat(weights * means, first) / together
    second = np.add.reduceat(weights * (sds**2 + means**2), first) / together
    return Mixture(together, mean, np.sqrt(np.maximum(second - mean**2, 0.0)))
