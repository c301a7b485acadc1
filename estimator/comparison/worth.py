"""What a difference in loss is worth in compute, and how probable it is that the gain exceeds a factor.

The baseline reaches at x = ln C what its curve says. At budget r it has spent x_b and stands at y_b; were it given f
times the treatment's compute, x_t + ln f, it would lose a further

    fall_r(f) = s(x_b) - s(x_t + ln f)

The claim "CEG >= f" is d_r > fall_r(f), with d_r the difference of losses (`difference`). The data at hand decide how
well s is known, by a factor u on every fall that all budgets share:

- a baseline at two budgets or more: s is a line (two), a parabola or a cubic in ln C through its mean ln losses,
  straight past its ends; the first that falls clearly. u is log-normal: seeds' noise in the slope, and what such a
  curve is not (`LINE`, `CURVED`).
- a baseline at one budget, or whose loss does not clearly fall: the slope that is usual, `one_pair.speedup`, with that
  function's own uncertainty. It is called without seed noise, which d_r has already.

At f = 1 and equal budgets every fall is 0: whether one arm is better rests on the losses alone.

Budgets are put together by Stouffer's rule: each gives the t of d_r - u fall_r, turned into a normal z_r with the same
probability, and z = sum w_r z_r / sqrt(sum w_r^2) with weights by seeds alone. Noise may then differ from budget to
budget as it likes, and only paired or equally noisy arms' z_r are assumed independent. The gain's interval is made of
the factors f that this test does not refute, so that interval and verdict never contradict each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import chdtrc, ndtr, ndtri, stdtr

from cegain.common.arrays import Array
from cegain.common.text import number
from cegain.comparison.arms import Arms
from cegain.comparison.difference import Difference
from cegain.ladders import one_pair

LINE, CURVED = 0.06, 0.05
"""sd of a fall, as a share of it: `LINE` per e-fold of compute that a line spans, and `CURVED` of a parabola (more by
the square of what it spans past `WIDE`) or a cubic. Over E + K C^-gamma with E 30 to 70% of the first loss, gamma 0.08
to 0.2 and gains up to 2, the root mean square of what they are off is 0.045 per e-fold, and 0.02."""
WIDE = math.log(100)
"""ln C that a parabola spans at most where there are budgets enough for a cubic."""
CLEAR = 1 / 3
"""A slope with a standard error above this share of it is taken from the prior. Assumed."""
LEAST = 0.002
"""A difference of ln loss below this is too small to read a slope off: the slope is that of this difference."""
FARTHEST = math.log(1e6)
"""Gains (ln) are looked for up to here."""
_Z90 = 1.6448536269514722
_NAMES = {1: "a line", 2: "a parabola", 3: "a cubic"}
_SCALES = ndtri((np.arange(41) + 0.5) / 41)


class Curve(NamedTuple):
    """How the baseline's loss falls: `x` [n] and `coefficients` of s, or a slope [r] at each budget; scales u [k].

    source: frontier or prior; words: how it was taken, for the reader; slopes: -d ln loss / d ln C at each budget.
    """

    source: str
    words: str
    slopes: Array
    scales: Array
    ends: tuple[float, float] | None
    polynomial: np.polynomial.Polynomial | None

    def falls(self, start: Array, to: Array) -> Array:
        """ln loss lost from ln C `start` to `to`, [r] each, one budget per place."""
        if self.polynomial is None or self.ends is None:
            return np.asarray(self.slopes * (to - start))
        return np.asarray(self._at(start) - self._at(to))

    def _at(self, x: Array) -> Array:
        assert self.polynomial is not None
        assert self.ends is not None
        inside = np.clip(x, *self.ends)
        return np.asarray(self.polynomial(inside) + self.polynomial.deriv()(inside) * (x - inside))


def curve(arms: Arms, differences: Sequence[Difference]) -> tuple[Curve | None, list[str]]:
    """The baseline's curve; None, with a reason, where neither its budgets nor the prior give one."""
    notes: list[str] = []
    x, y, repeats = arms.rungs
    noise = math.sqrt(np.mean([difference.noise**2 for difference in differences]))
    starts = np.array([math.log(pair.baseline.flops) for pair in arms.pairs])
    span = float(np.ptp(x))
    for degree in [d for d, least in ((3, 5), (2, 3), (1, 2)) if len(x) >= least and (d < 3 or span > WIDE)]:
        polynomial = np.polynomial.Polynomial.fit(x, y, degree)
        ends = float(x.min()), float(x.max())
        at = np.clip(starts, *ends)
        slopes = -polynomial.deriv()(at)
        everywhere = -polynomial.deriv()(np.linspace(*ends, 50))
        errors = _slope_errors(x, noise / np.sqrt(repeats), degree, at)
        if min(slopes.min(), everywhere.min()) > 0 and float((errors / np.maximum(slopes, 1e-300)).max()) < CLEAR:
            shape = LINE * span if degree == 1 else CURVED * max(1.0, (span / WIDE) ** 2 if degree == 2 else 1.0)
            share = math.hypot(shape, float((errors / slopes).max()))
            words = f"{_NAMES[degree]} in ln C through the baseline's {len(x)} budgets"
            scales = np.exp(math.sqrt(math.log1p(share**2)) * _SCALES)
            return Curve("frontier", words, slopes, scales, ends, polynomial), notes
    if len(x) > 1:
        notes.append("the baseline's loss does not clearly fall over its budgets: the usual slope is taken")
    try:
        return _usual(arms, differences), notes
    except ValueError as error:
        notes.append(f"no gain in compute: the baseline has one budget, and {str(error).splitlines()[0]}")
        return None, notes


def _slope_errors(x: Array, sd: Array, degree: int, at: Array) -> Array:
    """Standard errors [r] of the fitted slope at `at`, from errors sd [n] of the points."""
    centre = float(x.mean())
    design = np.vander(x - centre, degree + 1, increasing=True)
    solve = np.linalg.pinv(design)
    slope = np.stack([k * (at - centre) ** max(k - 1, 0) for k in range(degree + 1)], axis=1)
    return np.asarray(np.sqrt(((slope @ solve) ** 2 * sd**2).sum(1)))


def _usual(arms: Arms, differences: Sequence[Difference]) -> Curve:
    """The slope by `one_pair.speedup` at every budget.

    Raises:
        ValueError: losses that can be no nats per token.
    """
    slopes, ends = [], []
    for pair, difference in zip(arms.pairs, differences, strict=True):
        d = difference.value if abs(difference.value) > LEAST else LEAST
        loss = math.exp(float(pair.baseline.log_loss.mean()))
        answer = one_pair.speedup(loss, loss * math.exp(-d), pair.baseline.flops, seed_noise=0.0)
        low, middle, high = sorted(d / math.log(gain) for gain in (*answer.interval, answer.median))
        slopes.append(middle)
        ends.append((math.log(low / middle) / -_Z90, math.log(high / middle) / _Z90))
    below, above = (float(np.mean([end[i] for end in ends])) for i in (0, 1))
    scales = np.exp(np.where(_SCALES < 0, below, above) * _SCALES)
    words = "the slope that is usual for language models (ceg speedup)"
    return Curve("prior", words, np.array(slopes), scales, None, None)


class JointTest(NamedTuple):
    """One-sided tests of "the gain is at least f" on some budgets: d, se, freedom, weights, ln C of both, [r] each.

    favours: how much lower the baseline and the treatment might be; the treatment's chances count the first, the
    baseline's the second.
    """

    value: Array
    se: Array
    freedom: Array
    weight: Array
    starts: Array
    spent: Array
    curve: Curve | None
    favours: tuple[float, float]

    def _each(self, falls: Array, shift: float) -> Array:
        """z [r, k] of the claim that d exceeds the falls [r, k], with the probability that its t has."""
        t = (self.value[:, None] + shift - falls) / self.se[:, None]
        freedom = np.broadcast_to(np.minimum(self.freedom, 1e9)[:, None], t.shape)
        tail = np.where(freedom < 1e8, stdtr(freedom, -np.abs(t)), ndtr(-np.abs(t)))
        return np.asarray(-np.sign(t) * ndtri(np.maximum(tail, 1e-300)))

    def _z(self, falls: Array, shift: float) -> Array:
        """Stouffer's z [k] of all budgets."""
        total = (self.weight[:, None] * self._each(falls, shift)).sum(0)
        return np.asarray(total / math.sqrt(float((self.weight**2).sum())))

    def apart(self) -> float:
        """p-value of one gain (one difference of losses, where no curve is known) at all budgets: their z about it."""
        if self.curve is None:
            falls = np.full((len(self.value), 1), self.relative(0.5))
        else:
            falls = self._falls(math.log(self.gain(0.5)))[:, len(self.curve.scales) // 2, None]
        return float(chdtrc(len(self.value) - 1, float((self._each(falls, 0.0) ** 2).sum())))

    def _falls(self, log_gain: float) -> Array:
        to = self.spent + log_gain
        if self.curve is None:  # at f = 1 and equal budgets nothing falls; else nobody asks
            return np.zeros((len(self.value), 1))
        return self.curve.falls(self.starts, to)[:, None] * self.curve.scales

    def refuted(self, log_gain: float) -> tuple[float, float]:
        """One-sided p-values of a gain f: of data as good as these (small: it is more), and as bad (it is less)."""
        falls = self._falls(log_gain)
        more = float(ndtr(-self._z(falls, -self.favours[0])).mean())
        less = float(ndtr(self._z(falls, self.favours[1])).mean())
        return more, less

    def gain(self, share: float) -> float:
        """The factor below which the gain lies with this share of confidence; NaN where no curve is known."""
        if self.curve is None:
            return math.nan
        shift = -self.favours[0] if share < 0.5 else self.favours[1] if share > 0.5 else 0.0
        return math.exp(
            _solved(lambda log_gain: float(ndtr(-self._z(self._falls(log_gain), shift)).mean()), share, FARTHEST)
        )

    def relative(self, share: float) -> float:
        """The same of a difference of ln loss that all budgets have."""
        shift = -self.favours[0] if share < 0.5 else self.favours[1] if share > 0.5 else 0.0
        ones = np.ones((len(self.value), 1))
        return _solved(lambda d: float(ndtr(-self._z(d * ones, shift)).mean()), share, 20.0)


def joint_test(arms: Arms, differences: Sequence[Difference], known: Curve | None, which: Sequence[int]) -> JointTest:
    """The test on some of the budgets."""
    at = np.array(which, dtype=np.intp)
    some = [differences[i] for i in which]
    part = known
    if known is not None and known.polynomial is None:
        part = known._replace(slopes=known.slopes[at])
    starts, spent = (
        np.array([math.log(sample.flops) for sample in samples])
        for samples in zip(*(arms.pairs[i] for i in which), strict=True)
    )
    if part is None and float(np.abs(starts - spent).max()) < NEAR:
        spent = starts
    value, se, freedom, weight = (
        np.array([getattr(d, name) for d in some]) for name in ("value", "se", "freedom", "weight")
    )
    return JointTest(value, se, freedom, weight, starts, spent, part, arms.favours)


NEAR = 0.01
"""Budgets (ln FLOP) that are one where no slope is known to correct for their difference."""


def _solved(share_above: Callable[[float], float], share: float, most: float) -> float:
    """Where a rising function of x passes a value, between -most and most, by halving."""
    low, high = -most, most
    for _ in range(34):
        middle = (low + high) / 2
        low, high = (middle, high) if share_above(middle) < share else (low, middle)
    return (low + high) / 2


def words_of(found: Curve) -> str:
    """How a slope was taken, and what it is."""
    low, high = (100 * math.log(2) * float(end) for end in (found.slopes.min(), found.slopes.max()))
    shown = f"{low:.2g}%" if high < 1.05 * low else f"{low:.2g}% to {high:.2g}%"
    spread = float(np.log(found.scales).std())
    return f"{found.words}: twice the compute lowers the loss by {shown} (+- {number(spread * 100)}% of that)"
