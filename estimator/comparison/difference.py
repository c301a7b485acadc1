"""The difference of two arms' losses at one budget, how certain it is, and by which test.

d = mean ln loss of the baseline less that of the treatment: above 0 the treatment is better. Where the arms share
their seeds (every seed of the arm with fewer is in the other, two or more), the differences of pairs are the data;
else two means with variances of their own are compared (Welch 1947, with Satterthwaite's degrees of freedom; where
the arms have unequal numbers of seeds, with those of the smaller arm, since two seeds that happen to agree would else
be believed: 2 against 10 seeds would be false in 10% at a level of 5%). An arm with one seed is taken to be as noisy
as the other, and where both have one, as noisy as the arms are at other budgets. At last a noise is assumed:
`repeats.NOISE` of the loss, for one run. It is three times what GPT-2 small shows (`one_pair`), about the median of
our own small models, and less than a few of them have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.common.text import counted
from cegain.comparison.arms import Arms, Pair
from cegain.run_tables.repeats import NOISE

PAIRED, WELCH, LONE, POOLED, ASSUMED, GIVEN = "paired", "welch", "one seed", "other budgets", "assumed", "given"
"""How the noise of a difference is known."""

UNLIKE = 1.5
"""Arms of which one has so many times the seeds of the other are compared with the smaller one's degrees of freedom."""
LEAST = 1e-9
"""sd of a loss, as a share of it, below which no run is: arms that are the same runs then differ by nothing."""


class Difference(NamedTuple):
    """d (ln loss) at one budget, its standard error and degrees of freedom (infinite where the noise is stated).

    sd: of the difference of one run of each arm. runs: seeds of the baseline and of the treatment that count; pairs are
    counted in both. weight: of this budget among others, by its seeds alone.
    """

    value: float
    se: float
    freedom: float
    sd: float
    runs: tuple[int, int]
    test: str

    @property
    def weight(self) -> float:
        """Root of the harmonic number of seeds: fixed before any loss is seen, so that the joint test stays exact."""
        a, b = self.runs
        return math.sqrt(2 * a * b / (a + b))

    @property
    def noise(self) -> float:
        """sd of one run's ln loss, were both arms alike (of pairs: of what their seeds do not share)."""
        return self.sd / math.sqrt(2)


def differences(arms: Arms, loss_noise: float | None = None) -> tuple[list[Difference], list[str]]:
    """The difference at every budget, and what was assumed.

    Args:
        arms: what both have.
        loss_noise: sd of one run's ln loss where it is known; it then stands in place of what the seeds show.
    """
    notes: list[str] = []
    elsewhere = _within(arms.pairs)
    found = [_difference(pair, arms.rounding, loss_noise, elsewhere) for pair in arms.pairs]
    tests = [difference.test for difference in found]
    lone = sum(
        max(map(len, _logs(pair))) - d.runs[0] for pair, d in zip(arms.pairs, found, strict=True) if d.test == PAIRED
    )
    if lone:
        notes.append(f"{counted(lone, 'run')} without a partner of the same seed left out")
    if GIVEN in tests:
        notes.append(f"seed noise as given: {loss_noise:.2g} of the loss for one run")
        variance, freedom = elsewhere
        if loss_noise and freedom >= 2 and variance > 4 * loss_noise**2:
            notes.append(f"the seeds spread more than that: {math.sqrt(variance):.2g} of the loss")
    if LONE in tests:
        notes.append(f"an arm has one seed at {_at(tests, LONE)}: taken to be as noisy as the other arm there")
    if POOLED in tests:
        where = f"one seed in each arm at {_at(tests, POOLED)}"
        notes.append(f"{where}: taken to be as noisy as runs at the other budgets, {math.sqrt(elsewhere[0]):.2g}")
    if ASSUMED in tests:
        notes.append(
            f"one seed in each arm: seed noise of {NOISE:.1%} of the loss is assumed, since nothing here shows it "
            "(--loss-noise states it; a second seed measures it)"
        )
    return found, notes


def _difference(pair: Pair, rounding: float, given: float | None, elsewhere: tuple[float, float]) -> Difference:
    a, b = pair.baseline.log_loss, pair.treatment.log_loss
    runs = len(a), len(b)
    value = float(a.mean() - b.mean())
    rounded = 2 * max(rounding, LEAST) ** 2

    def unpaired(variances: tuple[float, float], freedom: float, test: str) -> Difference:
        parts = [(v + rounded / 2) / n for v, n in zip(variances, runs, strict=True)]
        return Difference(value, math.sqrt(sum(parts)), freedom, math.sqrt(sum(variances) + rounded), runs, test)

    if given is not None:
        return unpaired((given**2, given**2), math.inf, GIVEN)
    common = _common(pair)
    if len(common) >= 2:
        each = np.array([a[i] - b[j] for i, j in common])
        variance = float(each.var(ddof=1)) + rounded
        n = len(common)
        return Difference(float(each.mean()), math.sqrt(variance / n), n - 1.0, math.sqrt(variance), (n, n), PAIRED)
    if min(runs) >= 2:
        variances = float(a.var(ddof=1)), float(b.var(ddof=1))
        parts = [(v + rounded / 2) / n for v, n in zip(variances, runs, strict=True)]
        freedom = sum(parts) ** 2 / sum(v**2 / (n - 1) for v, n in zip(parts, runs, strict=True))
        if max(runs) >= UNLIKE * min(runs):
            freedom = min(runs) - 1.0
        return unpaired(variances, freedom, WELCH)
    if max(runs) >= 2:
        variance = float((a if len(a) > 1 else b).var(ddof=1))
        return unpaired((variance, variance), max(runs) - 1.0, LONE)
    variance, freedom = elsewhere
    if freedom:
        return unpaired((variance, variance), freedom, POOLED)
    return unpaired((NOISE**2, NOISE**2), math.inf, ASSUMED)


def _logs(pair: Pair) -> tuple[Array, Array]:
    return pair.baseline.log_loss, pair.treatment.log_loss


def _common(pair: Pair) -> list[tuple[int, int]]:
    """Places of the seeds that both arms have, if these are all seeds of the arm that has fewer."""
    first, second = pair.baseline.seeds, pair.treatment.seeds
    common = [(i, second.index(seed)) for i, seed in enumerate(first) if seed in second]
    return common if len(common) == min(len(first), len(second)) else []


def _within(pairs: Sequence[Pair]) -> tuple[float, float]:
    """Variance of one run's ln loss within arms and budgets, pooled, and its degrees of freedom."""
    samples: list[Array] = [sample.log_loss for pair in pairs for sample in pair if len(sample.log_loss) > 1]
    freedom = sum(len(sample) - 1 for sample in samples)
    squares = sum(float(np.square(sample - sample.mean()).sum()) for sample in samples)
    return (squares / freedom, float(freedom)) if freedom else (math.nan, 0.0)


def _at(tests: Sequence[str], test: str) -> str:
    """At how many budgets."""
    n = tests.count(test)
    return "every budget" if n == len(tests) else f"{n} of {counted(len(tests), 'budget')}"
