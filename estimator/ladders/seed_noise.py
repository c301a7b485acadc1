"""Seed noise of ladders whose arms share their seeds, and the standard error of a gain that is read off them.

The loss of an arm at one rung with one seed is

    ln L = the arm's mean at this rung + what the seed does to all arms there + what it does to this arm alone

Arms with one seed see the same text in the same order from the same initial values, so part of their noise is common.
Per rung there is a variance v of one run's ln loss (pooled over arms, and each arm's own), and per pair of arms the
variance D of the difference at equal seeds; their covariance is c = (v_a + v_b - D) / 2. Three to five seeds say little
about one arm, so every v counts together with the rung's pooled one as `PRIOR_FREEDOM` more degrees of freedom (Smyth
2004, doi:10.2202/1544-6115.1027, with that number assumed), and every D together with what the correlation r of all
pairs at all rungs would make of it.

A gain is read off where the baseline's curve, a monotone interpolation (PCHIP) of ln C through its rungs, has the
treatment's mean loss: ln CEG = ln C_b(ln L_t) - ln C_t. To first order its error is

    g e_t + sum_j w_j e_bj,    g = d ln C_b / d ln L_t,   w_j = d ln C_b / d ln L_bj  (together about -g)

with e the errors of mean ln losses. The weights w are those of the baseline's rungs near the *baseline's* budget C_b.
At a gain near 1 that is the treatment's own rung, e_t and e_b have seeds in common, and what they share cancels. At a
gain of 3 it is another rung, with other shapes and another stretch of text, whose errors are taken to be independent:
the pairing is lost and the error is that of two unpaired means. The formula holds between the two as well:

    var = g^2 v_t / n_t + sum_j w_j^2 v_bj / n_bj + 2 g w_r c n_both / (n_t n_br),   r the treatment's rung

That a noisy curve is not linear, and that PCHIP is not the curve (at most 0.011 in ln CEG for E + K C^-gamma in half
decades and three rungs or more, 0.04 with two), is left out. `tests/estimator/ladders/test_seed_noise.py` holds the
standard errors against the scatter of made-up ladders.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from cegain.common.arrays import Array
from cegain.common.text import number
from cegain.ladders.ladder import Ladder
from cegain.ladders.reading import compute_at

PRIOR_FREEDOM = 4.0
"""Degrees of freedom that the pooled variance of a rung adds to an arm's own: that of arms whose noise (sd) differs by
a factor of about 1.5. Assumed, not studied."""
MAX_CORRELATION = 0.95
"""Few seeds may by chance agree perfectly; arms that really did would not need seeds."""
NEGLIGIBLE = 0.05
"""Share of a reading's weights below which a baseline's rung does not decide whether its error is known."""
_PROBE = 0.2  # of the smallest step of ln loss: the most a rung is moved to see what a reading does

Losses = Mapping[str, float]
"""ln loss of one arm at one rung, by seed."""


class Spread(NamedTuple):
    """A variance (of ln loss) and the degrees of freedom behind it; NaN and 0 where nothing tells it."""

    variance: float
    freedom: float

    @property
    def sd(self) -> float:
        """Its root."""
        return math.sqrt(self.variance)


UNKNOWN = Spread(math.nan, 0.0)


class Noise(NamedTuple):
    """Seed noise of one run's ln loss at one rung: pooled over arms, each arm's own, and of pairs at equal seeds.

    `correlation` is that of two arms with one seed, pooled over the pairs of this rung (NaN without a pair of two
    common seeds); `products` are the sums behind it, (covariances, products of sds), each times its freedom.
    """

    pooled: Spread
    arms: dict[str, Spread]
    correlation: float
    products: tuple[float, float]
    losses: Mapping[str, Losses]

    def of_arm(self, arm: str) -> Spread:
        """An arm's variance, drawn towards the rung's (see the head of this file)."""
        return _drawn(self.arms[arm], self.pooled.variance, self.pooled.freedom)

    def of_difference(self, a: str, b: str, correlation: float) -> Spread:
        """Variance of ln L_a - ln L_b at one seed, drawn towards what a correlation of all pairs makes of it."""
        va, vb = self.of_arm(a).variance, self.of_arm(b).variance
        expected = va + vb - 2 * correlation * math.sqrt(va * vb)
        return _drawn(self.difference(a, b), expected, self.pooled.freedom)

    def difference(self, a: str, b: str) -> Spread:
        """Variance of ln L_a - ln L_b over the seeds that two arms have in common."""
        common = _common(self.losses[a], self.losses[b])
        return _spread([self.losses[a][seed] - self.losses[b][seed] for seed in common])


def noise(losses: Mapping[str, Losses]) -> Noise:
    """Seed noise of the arms that were trained at one rung, from their ln losses by seed."""
    arms = {name: _spread(list(of_arm.values())) for name, of_arm in losses.items()}
    total = sum(spread.freedom for spread in arms.values())
    if not total:
        return Noise(UNKNOWN, arms, math.nan, (0.0, 0.0), losses)
    variance = sum(s.freedom * s.variance for s in arms.values() if s.freedom) / total
    known = Noise(Spread(variance, total), arms, math.nan, (0.0, 0.0), losses)
    covariances = sizes = 0.0
    names = [name for name, spread in arms.items() if spread.freedom]
    for i, a in enumerate(names):
        for b in names[:i]:
            common = _common(losses[a], losses[b])
            if len(common) < 2:
                continue
            x, y = (np.array([losses[name][seed] for seed in common]) for name in (a, b))
            covariances += float((x - x.mean()) @ (y - y.mean()))
            sizes += (len(common) - 1) * math.sqrt(known.of_arm(a).variance * known.of_arm(b).variance)
    r = correlation([known._replace(products=(covariances, sizes))])
    # Arms that move together are fewer witnesses than they are arms (variances of two normals correlate by r^2).
    witnesses = total / (1 + (len(names) - 1) * r**2) if r == r else total
    return known._replace(pooled=Spread(variance, witnesses), correlation=r, products=(covariances, sizes))


def correlation(rungs: Sequence[Noise]) -> float:
    """Correlation of two arms' ln losses at one seed, over all pairs and rungs; 0 to `MAX_CORRELATION`, or NaN."""
    covariances, sizes = (sum(rung.products[i] for rung in rungs) for i in (0, 1))
    return min(MAX_CORRELATION, max(0.0, covariances / sizes)) if sizes > 0 else math.nan


class Read(NamedTuple):
    """ln CEG read off at one rung; `se` and `freedom` are NaN and 0 where `why` says why there is none.

    weights: [n] w_j of the baseline's rungs; slope: g, both of the head of this file.
    """

    log_gain: float
    se: float
    freedom: float
    slope: float
    weights: Array
    why: str

    def interval(self, content: float = 0.9) -> tuple[float, float]:
        """Interval of the gain (a factor) by Student's t: the noise itself is estimated from few seeds."""
        half = self.se * float(stdtrit(self.freedom, (1 + content) / 2)) if self.freedom else math.nan
        return math.exp(self.log_gain - half), math.exp(self.log_gain + half)


def read(
    baseline: Ladder, at: Sequence[Noise], names: tuple[str, str], log_flops: float, rung: Noise, r: float
) -> Read | None:
    """The gain of a treatment at one of its rungs, with its standard error; None outside the baseline's curve.

    Args:
        baseline: mean ln loss y [n] at ln FLOP x [n], falling, two rungs or more.
        at: the noise [n] at each of the baseline's rungs.
        names: arms in `at` and `rung`: the treatment's, the baseline's.
        log_flops: ln FLOP that the treatment spent at its rung.
        rung: the noise there; one of `at` (the same object) where the baseline was trained at that budget too.
        r: correlation of arms at one seed (`correlation`).
    """
    treatment, against = names
    seeds = rung.losses[treatment]
    y = math.fsum(seeds.values()) / len(seeds)
    if not baseline.y[-1] <= y <= baseline.y[0]:
        return None
    gain = float(compute_at(baseline, np.array([y]))[0]) - log_flops
    slope, weights = _derivatives(baseline, y, [noise.of_arm(against).sd for noise in at])
    lone = [f"{treatment} has one seed there"] if len(seeds) < 2 else []
    used = _decide(weights)
    for noise, x, needed in zip(at, baseline.x, used, strict=True):
        if needed and len(noise.losses[against]) < 2:
            lone.append(f"{against} has one seed at {number(math.exp(x))} FLOP, where the gain is read")
    if lone:
        return Read(gain, math.nan, 0.0, slope, weights, "; ".join(lone))
    own = rung.of_arm(treatment)
    parts = [Spread(slope**2 * own.variance / len(seeds), own.freedom)]
    for noise, w, needed in zip(at, weights, used, strict=True):
        if not needed:
            continue
        spread, n = noise.of_arm(against), len(noise.losses[against])
        alone = w**2 * spread.variance / n
        if noise is not rung:
            parts.append(Spread(alone, spread.freedom))
            continue
        shared = 2 * slope * w * _covariance(noise, treatment, against, r) * _both(noise, names)
        parts[0] = Spread(parts[0].variance + alone + shared, min(own.freedom, spread.freedom))
    variance = sum(part.variance for part in parts)
    # Satterthwaite's degrees of freedom of a sum of variances.
    freedom = variance**2 / sum(part.variance**2 / part.freedom for part in parts)
    return Read(gain, math.sqrt(variance), float(freedom), slope, weights, "")


def combined_error(
    terms: Sequence[tuple[float, str, Read]], at: Sequence[Noise], against: str, rung: Noise, r: float
) -> float:
    """Standard error of a sum of ln CEGs of several treatments at one rung, over one baseline; NaN where one has none.

    The errors of all readings hold the baseline's noise, and what seeds do to all arms of the rung:

        sum_i f_i (g_i e_i + sum_j w_ij e_bj),    a stack less its parts: f = 1, -1, -1, ...

    `terms` are factor f_i, arm and reading of each treatment, `against` the baseline's arm; the rest is as in `read`.
    """
    if any(math.isnan(read.se) for _, _, read in terms):
        return math.nan
    weights = np.sum([f * read.weights for f, _, read in terms], axis=0)
    used = np.any([_decide(read.weights) for _, _, read in terms], axis=0)
    arms = [(f * read.slope, arm) for f, arm, read in terms]
    variance = 0.0
    for noise, w, needed in zip(at, weights, used, strict=True):
        if needed and noise is rung:
            arms.append((float(w), against))
        elif needed:
            variance += w**2 * noise.of_arm(against).variance / len(noise.losses[against])
    for i, (g, a) in enumerate(arms):
        variance += g**2 * rung.of_arm(a).variance / len(rung.losses[a])
        for h, b in arms[:i]:
            variance += 2 * g * h * _covariance(rung, a, b, r) * _both(rung, (a, b))
    return math.sqrt(max(variance, 0.0))


def _decide(weights: Array) -> NDArray[np.bool_]:
    """Which of the baseline's rungs a reading rests on."""
    return np.asarray(np.abs(weights) > NEGLIGIBLE * np.abs(weights).sum())


def _covariance(noise: Noise, a: str, b: str, r: float) -> float:
    """Of two arms' ln losses at one seed."""
    va, vb = noise.of_arm(a).variance, noise.of_arm(b).variance
    d = noise.of_difference(a, b, 0.0 if math.isnan(r) else r).variance
    return min(MAX_CORRELATION * math.sqrt(va * vb), max(0.0, (va + vb - d) / 2))


def _both(noise: Noise, names: tuple[str, str]) -> float:
    """Covariance of two arms' means over that of two runs with one seed."""
    first, second = (noise.losses[name] for name in names)
    return len(_common(first, second)) / (len(first) * len(second))


def _derivatives(baseline: Ladder, y: float, sds: Sequence[float]) -> tuple[float, Array]:
    """Of the ln FLOP read at ln loss y: by y, and by the baseline's rungs [n]; over about a rung's own error."""
    most = _PROBE * float(np.min(-np.diff(baseline.y)))
    steps = [min(most, sd) if sd > 0 else most * 1e-3 for sd in sds]  # a NaN sd is not above 0
    nearest = steps[int(np.argmin(np.abs(baseline.y - y)))]

    def inside(at: float) -> float:
        return min(max(at, float(baseline.y[-1])), float(baseline.y[0]))

    ends = inside(y - nearest), inside(y + nearest)
    low, high = compute_at(baseline, np.array(ends))
    weights = []
    for j, step in enumerate(steps):
        shifted = []
        for sign in (-1, 1):
            moved = baseline.y.copy()
            moved[j] += sign * step
            shifted.append(float(compute_at(baseline._replace(y=moved), np.array([y]))[0]))
        weights.append((shifted[1] - shifted[0]) / (2 * step))
    return float(high - low) / (ends[1] - ends[0]), np.array(weights)


def _drawn(own: Spread, towards: float, freedom: float) -> Spread:
    added = min(PRIOR_FREEDOM, freedom)
    total = own.freedom + added
    if not total:
        return UNKNOWN
    return Spread(((own.variance * own.freedom if own.freedom else 0.0) + towards * added) / total, total)


def _spread(values: Sequence[float]) -> Spread:
    return Spread(float(np.var(values, ddof=1)), len(values) - 1) if len(values) > 1 else UNKNOWN


def _common(a: Losses, b: Losses) -> list[str]:
    return [seed for seed in a if seed in b]
