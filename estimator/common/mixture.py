"""Mixtures of normals: the distribution of ln CEG at one budget."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri

from cegain.common.arrays import Array

NORMAL_90 = 1.6448536269514722
"""Half width of a standard normal's central 90%."""
MAX_COMPONENTS = 25
"""A sum that would have more has those of like width merged."""


class Mixture(NamedTuple):
    """k normals: weights [k] (sum 1), means [k], sds [k] (0 allowed: a point)."""

    weights: Array
    means: Array
    sds: Array

    def mean(self) -> float:
        """Expectation."""
        return float(self.weights @ self.means)

    def cdf(self, value: float) -> float:
        """P(X <= value)."""
        with np.errstate(divide="ignore", invalid="ignore"):
            z = np.where(self.sds > 0, (value - self.means) / self.sds, np.inf)
        z = np.where((self.sds == 0) & (value < self.means), -np.inf, z)
        return float(self.weights @ ndtr(z))

    def quantile(self, probability: float) -> float:
        """The value below which `probability` lies, by bisection to 1e-12 of the bracket (monotone by design)."""
        ends = self.means + ndtri(probability) * self.sds
        low, high = float(ends.min()), float(ends.max())
        for _ in range(60):
            if high - low <= 1e-12 * max(1.0, abs(low), abs(high)):
                break
            middle = (low + high) / 2
            low, high = (middle, high) if self.cdf(middle) < probability else (low, middle)
        return (low + high) / 2

    def central(self, content: float) -> tuple[float, float]:
        """The interval that leaves (1 - content) / 2 on each side."""
        return self.quantile((1 - content) / 2), self.quantile((1 + content) / 2)

    def factors(self, content: float) -> tuple[float, float]:
        """The same interval of exp(X)."""
        low, high = self.central(content)
        return math.exp(low), math.exp(high)

    def widened(self, sd: float) -> Mixture:
        """The sum with an independent normal of mean 0."""
        return Mixture(self.weights, self.means, np.hypot(self.sds, sd))

    def shifted(self, by: float) -> Mixture:
        """The sum with a constant."""
        return Mixture(self.weights, self.means + by, self.sds)


def joined(first: Mixture, second: Mixture) -> Mixture:
    """Two independent readings of one quantity, weighed by precision: a normal. A point wins over everything."""
    variances = [float(m.weights @ (m.sds**2 + m.means**2)) - m.mean() ** 2 for m in (first, second)]
    if min(variances) <= 0:
        return first if variances[0] <= variances[1] else second
    weights = [1 / v for v in variances]
    mean = (weights[0] * first.mean() + weights[1] * second.mean()) / sum(weights)
    return Mixture(np.ones(1), np.full(1, mean), np.full(1, sum(weights) ** -0.5))


def point(value: float) -> Mixture:
    """All probability on one value."""
    return Mixture(np.ones(1), np.full(1, value), np.zeros(1))


def total(parts: Iterable[Mixture]) -> Mixture:
    """Distribution of a sum of independent mixtures (components of like width merged, mean and variance kept)."""
    result = point(0.0)
    for part in parts:
        weights = np.outer(result.weights, part.weights).ravel()
        means = np.add.outer(result.means, part.means).ravel()
        sds = np.hypot.outer(result.sds, part.sds).ravel()
        result = _merged(Mixture(weights, means, sds))
    return result


def _merged(mixture: Mixture) -> Mixture:
    if len(mixture.weights) <= MAX_COMPONENTS:
        return mixture
    order = np.argsort(mixture.sds, kind="stable")
    groups = np.array_split(order, MAX_COMPONENTS)
    weights = np.array([mixture.weights[g].sum() for g in groups])
    means = np.array([np.average(mixture.means[g], weights=mixture.weights[g]) for g in groups])
    second = np.array(
        [np.average(mixture.sds[g] ** 2 + mixture.means[g] ** 2, weights=mixture.weights[g]) for g in groups]
    )
    return Mixture(weights, means, np.sqrt(np.maximum(second - means**2, 0.0)))
