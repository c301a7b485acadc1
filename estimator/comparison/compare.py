"""`ceg compare`: is the treatment better than the baseline, by how much, and how many more seeds would tell?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import nctdtr, stdtrit

from cegain.comparison import worth
from cegain.comparison.arms import Arms, Pair
from cegain.comparison.difference import PAIRED, Difference, differences
from cegain.comparison.worth import Curve, JointTest
from cegain.tables.problems import EvidenceError, Problem

BETTER, WORSE, NOT_SHOWN = "better", "worse", "not shown"
LEVEL = 0.05
"""Two-sided: each of "better" and "worse" is claimed falsely in half of this at most."""
POWER = 0.8
MOST_SEEDS = 1000
APART = 0.01
"""p-value of equal gains at all budgets below which it is said that they differ."""
WIDE = 100.0
"""A 90% interval of a gain that spans more than this factor is read, and not its median."""


class Gain(NamedTuple):
    """CEG: factors; intervals (low, high). NaN where it is not known."""

    median: float
    interval_50: tuple[float, float]
    interval_90: tuple[float, float]


class AtBudget(NamedTuple):
    """One budget: both arms' runs, their difference, its two-sided p-value against `at_least`, and the gain."""

    pair: Pair
    difference: Difference
    p_value: float
    gain: Gain

    @property
    def losses(self) -> tuple[float, float]:
        """Geometric means over seeds, of the baseline and the treatment, in the table's unit (or nats)."""
        return math.exp(float(self.pair.baseline.log_loss.mean())), math.exp(float(self.pair.treatment.log_loss.mean()))


class Comparison(NamedTuple):
    """The verdict on two arms, and all it rests on.

    status: ok, or why no verdict is given whatever the numbers: `unlike_yardsticks`, `ambiguous_repeats`, `lost_runs`,
    `budgets_disagree`.
    p_better, p_worse: one-sided p-values of "CEG > at_least" and "CEG < at_least"; relative: the difference of ln loss
    all budgets together, with its 95% interval. seeds: per arm and budget, at which 8 of 10 such comparisons would
    settle it, None above `MOST_SEEDS` or where nothing is left to settle.
    """

    arms: Arms
    verdict: str
    status: str
    reason: str
    at_least: float
    level: float
    p_better: float
    p_worse: float
    relative: float
    relative_95: tuple[float, float]
    gain: Gain
    budgets: tuple[AtBudget, ...]
    curve: Curve | None
    seeds: int | None
    notes: tuple[str, ...]

    @property
    def p_value(self) -> float:
        """Two-sided."""
        return min(1.0, 2 * min(self.p_better, self.p_worse))


def compare(arms: Arms, at_least: float = 1.0, level: float = LEVEL, loss_noise: float | None = None) -> Comparison:
    """Compare two arms.

    Args:
        arms: what both have (`arms.of_one`, `arms.of_two`).
        at_least: the factor that the claim is about: better means CEG > at_least, worse CEG < at_least.
        level: two-sided; each claim is made at half of it.
        loss_noise: sd of one run's ln loss, where it is known.

    Raises:
        EvidenceError: the claim needs the baseline's slope, which is not known.
    """
    found, notes = differences(arms, loss_noise)
    known, more = worth.curve(arms, found)
    every, p_better, p_worse = _tested(arms, found, known, at_least)
    at = math.log(at_least)
    verdict, status, reason = _judged(arms, found, known, (p_better, p_worse), at, level)
    if len(found) > 1 and (apart := every.apart()) < APART:
        more.append(f"the budgets do not agree about the gain (p = {apart:.1g}): read them one by one")
    budgets = []
    for i, (pair, difference) in enumerate(zip(arms.pairs, found, strict=True)):
        alone = worth.joint_test(arms, found, known, [i])
        budgets.append(AtBudget(pair, difference, min(1.0, 2 * min(alone.refuted(at))), _gain(alone)))
    seeds = _seeds(every, found, at, level) if verdict == NOT_SHOWN and status == "ok" else None
    return Comparison(
        arms, verdict, status, reason, at_least, level, p_better, p_worse,
        every.relative(0.5), (every.relative(0.025), every.relative(0.975)),
        _gain(every), tuple(budgets), known, seeds, (*arms.notes, *notes, *more),
    )  # fmt: skip


def decided(arms: Arms, at_least: float = 1.0, level: float = LEVEL, loss_noise: float | None = None) -> str:
    """The verdict of `compare` alone, which is quicker to find than all that stands beside it."""
    found, _ = differences(arms, loss_noise)
    equal = all(pair.baseline.flops == pair.treatment.flops for pair in arms.pairs)
    known = None if equal and at_least == 1.0 else worth.curve(arms, found)[0]
    _, *p_values = _tested(arms, found, known, at_least)
    return _judged(arms, found, known, (p_values[0], p_values[1]), math.log(at_least), level)[0]


def _tested(
    arms: Arms, found: Sequence[Difference], known: Curve | None, at_least: float
) -> tuple[JointTest, float, float]:
    every = worth.joint_test(arms, found, known, range(len(found)))
    if known is None and (at_least != 1.0 or (every.starts != every.spent).any()):
        rule = "a factor other than 1, or unequal budgets, need to know how the baseline's loss falls with compute"
        value = "one budget of the baseline, whose loss is no usual one in nats per token"
        raise EvidenceError([Problem("the comparison", rule, value, "Add runs of the baseline at a second budget.")])
    return every, *every.refuted(math.log(at_least))


def _judged(
    arms: Arms, found: Sequence[Difference], known: Curve | None, p_values: tuple[float, float], at: float, level: float
) -> tuple[str, str, str]:
    """Verdict, status and reason."""
    status, reason = arms.doubts[0] if arms.doubts else ("ok", "")
    verdict = verdict_of(*p_values, level)
    # Who lost fewer runs than the other is at least as good as it looks.
    doubtful = BETTER if arms.lost[1] > arms.lost[0] else WORSE
    if status not in ("ok", "lost_runs") or (status == "lost_runs" and verdict == doubtful):
        return NOT_SHOWN, status, reason
    if verdict != NOT_SHOWN and len(found) > 1:
        each = [worth.joint_test(arms, found, known, [i]).refuted(at) for i in range(len(found))]
        opposite = min(p[1 if verdict == BETTER else 0] for p in each)
        if opposite <= level / 2 / len(found):
            reason = f"{verdict} by all budgets together, and the opposite is shown at one of them"
            return NOT_SHOWN, "budgets_disagree", reason
    return verdict, status, reason


def verdict_of(p_better: float, p_worse: float, level: float) -> str:
    """What two one-sided p-values show, each at half of a two-sided level."""
    return BETTER if p_better <= level / 2 else WORSE if p_worse <= level / 2 else NOT_SHOWN


def _gain(test: JointTest) -> Gain:
    low, first, median, third, high = (test.gain(share) for share in (0.05, 0.25, 0.5, 0.75, 0.95))
    return Gain(median, (first, third), (low, high))


def _seeds(test: JointTest, found: Sequence[Difference], at: float, level: float) -> int | None:
    """Seeds per arm and budget at which the observed effect is shown with the power `POWER`, about.

    The effect and the noise are taken to be what was observed, and the slope to be known; z's mean over budgets is put
    through one noncentral t with all their freedom.
    """
    falls = 0.0 if test.curve is None else test.curve.falls(test.starts, test.spent + at)
    effects = (test.value - falls) / [difference.sd for difference in found]
    mean = abs(float(effects.sum())) / math.sqrt(len(found))
    arms = 1 if all(difference.test == PAIRED for difference in found) else 2
    for n in range(2, MOST_SEEDS + 1):
        freedom = float(arms * len(found) * (n - 1))
        if 1 - nctdtr(freedom, mean * math.sqrt(n), stdtrit(freedom, 1 - level / 2)) >= POWER:
            return n
    return None
