"""Combinations: the distribution of ln(stack / product of its parts), learnt from every measured one.

The interaction of a stack is the sum over its pairs (`combinations`). Seen at x = log10 C in study s, a pair p has

    I_p,s(x) = mu + a_p(x) + u_p,s + r_p,s(x)

mu, the mean of all pairs, normal(0, `MEAN_SD`); a_p, the pair's own, which forgets at `curve.FADING` per decade of
compute, as a slope does: toys say little of a frontier run; u, the study's; r, the rung's (all combinations of a study
there have it in common). a, u and r share one variance, sd^2, as `SHARES` says. sd is log-normal, and what the
combinations say of it, with mu integrated out, weighs seven values (Gauss-Hermite nodes). All else is Gaussian and
closed form. `mean` is mu + a; `predictive` adds u and r of a new study. Pairs nobody measured have their whole
variance; measured ones less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cegain.common import mixture
from cegain.common.arrays import Array
from cegain.common.mixture import Mixture
from cegain.gain import combinations
from cegain.gain.combinations import Member, Observation, Pair
from cegain.gain.curve import FADING
from cegain.gain.study import X0
from cegain.tables.published_gains import PublishedGain

PAIR_SD = 0.25
"""Median of sd, before any combination is seen. Assumed: a quarter either way for two algorithms together."""
PAIR_LOG_SD = 0.5
MEAN_SD = 0.05
"""sd of mu. Assumed: ten pairs, five algorithms, then lose or gain a factor of 1.6 or so on average, not of ten."""
SHARES = (0.5, 0.25, 0.25)
"""Of a pair's variance: its own; of the study; of the rung. Assumed: few pairs were measured twice."""
MAX_OBSERVATIONS = 400
"""Beyond, only those that share most with the question are used."""
_RUNG = 0.1  # decades; combinations of a study that stand in one such step share their rung's quirk
_NODES = 7
_NEGLIGIBLE = 1e-3  # values of sd less likely than this are left out


class Interaction(NamedTuple):
    """ln(stack / product of parts) at one budget: in the average setting and in a new study; the measured
    combinations that share a pair with the stack, and its pairs that nobody measured together.
    """

    mean: Mixture
    predictive: Mixture
    observations: tuple[Observation, ...]
    unmeasured: tuple[Pair, ...]


class Joint(NamedTuple):
    """How the parts of a stack interact, at any budget: the terms of k values of sd.

    target: coefficient of each of the stack's pairs; weights [k], sds [k]; solved: per sd (K^-1 [n, n], K^-1 y [n]).
    """

    target: dict[Pair, float]
    observations: tuple[Observation, ...]
    weights: Array
    sds: Array
    solved: tuple[tuple[Array, Array], ...]

    def at(self, flops: float) -> Interaction:
        """The interaction at a budget (FLOP)."""
        x = math.log10(flops) - X0
        if not self.target:
            return Interaction(mixture.point(0.0), mixture.point(0.0), (), ())
        c = np.array(list(self.target.values()))
        cross = _products(self.observations, self.target)
        near = np.exp(-FADING * np.abs(np.array([o.x for o in self.observations]) - x))
        totals = np.array([sum(o.pairs.values()) for o in self.observations])
        means, variances = np.zeros(len(self.sds)), np.zeros(len(self.sds))
        for i, (sd, (inverse, solved)) in enumerate(zip(self.sds, self.solved, strict=True)):
            k = MEAN_SD**2 * totals * c.sum() + SHARES[0] * sd**2 * near * cross
            means[i] = k @ solved
            variances[i] = MEAN_SD**2 * c.sum() ** 2 + SHARES[0] * sd**2 * (c @ c) - k @ inverse @ k
        new = (1 - SHARES[0]) * self.sds**2 * (c @ c)
        variances = np.maximum(variances, 0.0)
        measured = {pair for o in self.observations for pair, coefficient in o.pairs.items() if coefficient}
        return Interaction(
            Mixture(self.weights, means, np.sqrt(variances)),
            Mixture(self.weights, means, np.sqrt(variances + new)),
            tuple(o for o, shared in zip(self.observations, cross, strict=True) if shared),
            tuple(pair for pair in self.target if pair not in measured),
        )


def estimate(rows: Iterable[PublishedGain], members: Iterable[Member], currency: str) -> Joint:
    """What all measured combinations among `rows` say of a stack.

    Args:
        rows: all evidence.
        members: (algorithm, baseline) of those parts of the stack whose gain is not 1 by construction; two or more.
        currency: of the answer.
    """
    target = dict.fromkeys(combinations.pairs_of(members), 1.0)
    return from_observations(combinations.observations(rows, currency), target)


def from_observations(observed: Sequence[Observation], target: Mapping[Pair, float]) -> Joint:
    """What observations say of a sum of pairs with the given coefficients."""
    target = dict(target)
    if len(observed) > MAX_OBSERVATIONS:
        shared = np.abs(_products(observed, target))
        observed = [observed[i] for i in np.argsort(-shared, kind="stable")[:MAX_OBSERVATIONS]]
    nodes, weights = np.polynomial.hermite_e.hermegauss(_NODES)
    sds = PAIR_SD * np.exp(PAIR_LOG_SD * nodes)
    y = np.array([o.value for o in observed])
    fixed, shape = covariances(observed)
    solved, logs = [], []
    for sd in sds:
        covariance = fixed + sd**2 * shape
        inverse = np.linalg.inv(covariance) if len(observed) else covariance
        inverse = (inverse + inverse.T) / 2
        solved.append((inverse, inverse @ y))
        logs.append(-0.5 * float(y @ inverse @ y) - 0.5 * float(np.linalg.slogdet(covariance)[1]))
    weights = weights * np.exp(np.array(logs) - max(logs))
    kept = np.flatnonzero(weights > _NEGLIGIBLE * weights.sum())
    return Joint(
        target, tuple(observed), weights[kept] / weights[kept].sum(), sds[kept], tuple(solved[i] for i in kept)
    )


def covariances(observed: Sequence[Observation]) -> tuple[Array, Array]:
    """Covariance of the observations' values, fixed + sd^2 shape: [n, n] each."""
    products = np.array([_products(observed, o.pairs) for o in observed]).reshape(len(observed), len(observed))
    x = np.array([o.x for o in observed])
    apart = np.abs(x[:, None] - x)
    study = np.array([[o.study == p.study for p in observed] for o in observed]).reshape(apart.shape)
    rung = np.equal.outer(np.round(x / _RUNG), np.round(x / _RUNG))
    totals = np.array([sum(o.pairs.values()) for o in observed])
    fixed = combinations.noise(observed) + MEAN_SD**2 * np.outer(totals, totals) if observed else np.zeros((0, 0))
    own, by_study, by_rung = SHARES
    return fixed, products * (own * np.exp(-FADING * apart) + study * (by_study + by_rung * rung))


NONE = Joint({}, (), np.ones(1), np.zeros(1), ())
"""No interaction: one part only."""


def _products(observed: Sequence[Observation], target: Mapping[Pair, float]) -> Array:
    """sum_p c_p c'_p of the coefficients of each observation [n] with those of another."""
    return np.array([sum(c * target.get(pair, 0.0) for pair, c in o.pairs.items()) for o in observed])
