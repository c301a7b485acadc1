"""How often `ceg compare` is wrong, and how often it sees what is there: real seeds split in halves, and made-up pairs.

Splits: the seeds of one arm at one budget, or at several, are dealt to two arms that are therefore alike. Made-up pairs
have the noise of our own ladders, budget by budget (`seed_noise`), and a gain that is known.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.comparison.arms import Arms, Pair, Sample
from cegain.comparison.compare import LEVEL, NOT_SHOWN, decided
from cegain.ladders import seed_ladder
from cegain.ladders.seed_ladder import Rung, StackRuns
from cegain.tables.files import DATA

SLOPE = 0.045
"""-d ln loss / d ln C of made-up runs: what is usual for language models of 1e19 FLOP (`one_pair`)."""
START, STEP = math.log(1e19), math.log(10) / 2
LOSS = 2.5
"""Nats per token at the first budget."""

MOST_DEALS = 60
"""Of one arm at all of its budgets: there are three ways at each."""
GAINS, SEEDS, NOISES = (1.02, 1.05, 1.1, 1.2), (2, 3, 5, 8), (0.0005, 0.004)
"""Of the table of powers. GPT-2 small has a noise of 0.04% of its loss; 0.4% is what is assumed without seeds."""


class Rate(NamedTuple):
    """Of so many comparisons, how many showed something; `case` in words."""

    case: str
    trials: int
    shown: int

    @property
    def share(self) -> float:
        """Of comparisons that showed something."""
        return self.shown / self.trials


def own_ladders() -> list[StackRuns]:
    """Our own ladders, all stacks of all tables that come with the package."""
    tables = sorted(DATA.glob("training_runs*.csv"))
    return [stack for path in tables for stack in seed_ladder.load(path).values()]


def splits(stacks: Sequence[StackRuns], level: float = LEVEL) -> list[Rate]:
    """Ways to deal an arm's seeds to two arms, at each of its budgets, and at all together (`MOST_DEALS` drawn).

    Whatever is shown is shown falsely, better or worse.
    """
    random = np.random.default_rng(0)
    verdicts: dict[str, list[str]] = {"one budget of an arm": [], "all budgets of an arm": []}
    for rungs in (rungs for stack in stacks for rungs in stack.arms.values()):
        deals = [_deals(rung) for rung in rungs if len(rung.losses) > 1]
        verdicts["one budget of an arm"] += [decided(arms_of([pair]), level=level) for deal in deals for pair in deal]
        if len(deals) < 2:
            continue
        together = list(itertools.product(*deals))
        if len(together) > MOST_DEALS:
            together = [together[i] for i in random.choice(len(together), MOST_DEALS, replace=False)]
        verdicts["all budgets of an arm"] += [decided(arms_of(pairs), level=level) for pairs in together]
    return [Rate(case, len(each), sum(v != NOT_SHOWN for v in each)) for case, each in verdicts.items()]


def _deals(rung: Rung) -> list[Pair]:
    """Every way to deal the seeds of one arm at one budget to two sides, half of them (rounded down) to the first."""
    deals = []
    for first in itertools.combinations(sorted(rung.losses), len(rung.losses) // 2):
        sides = first, tuple(seed for seed in sorted(rung.losses) if seed not in first)
        logs = (np.log([rung.losses[seed] for seed in side]) for side in sides)
        x = math.log(rung.flops)
        deals.append(Pair(*(_sample(x, y, side) for y, side in zip(logs, sides, strict=True))))
    return deals


def made_up(
    random: np.random.Generator, seeds: int, noise: Sequence[float], correlation: float | None, gain: float = 1.0
) -> Arms:
    """A pair of arms half decades apart, the treatment worth `gain` everywhere.

    Args:
        random: what draws the noise, normal in ln loss.
        seeds: of each arm.
        noise: sd of one run's ln loss at each budget.
        correlation: of two runs with one seed; None: the arms share no seeds.
        gain: CEG.
    """
    pairs = []
    for i, sd in enumerate(noise):
        x = START + i * STEP
        shared = math.sqrt(correlation or 0.0) * random.normal(size=seeds)
        own = math.sqrt(1 - (correlation or 0.0)) * random.normal(size=(2, seeds))
        curve = math.log(LOSS) - SLOPE * (x - START + np.array([0.0, math.log(gain)]))
        first, second = curve[:, None] + sd * (shared + own)
        labels = tuple(map(str, range(seeds)))
        others = labels if correlation is not None else tuple(str(seeds + k) for k in range(seeds))
        pairs.append(Pair(_sample(x, first, labels), _sample(x, second, others)))
    return arms_of(pairs)


def rate(
    seeds: int, noise: Sequence[float], correlation: float | None, gain: float = 1.0, trials: int = 2000,
    level: float = LEVEL, seed: int = 0,
) -> Rate:  # fmt: skip
    """How often something is shown of made-up pairs: falsely at a gain of 1; above it, that the treatment is better."""
    random = np.random.default_rng([seed, seeds, len(noise), correlation is not None, round(1000 * gain)])
    verdicts = [decided(made_up(random, seeds, noise, correlation, gain), level=level) for _ in range(trials)]
    shown = sum(v != NOT_SHOWN for v in verdicts) if gain == 1.0 else verdicts.count("better")
    kind = "unpaired" if correlation is None else "paired"
    return Rate(f"{seeds} seeds, {len(noise)} budget(s), {kind}, CEG {gain:g}", trials, shown)


def _sample(x: float, log_loss: Array, seeds: tuple[str, ...]) -> Sample:
    return Sample(log_loss, seeds, math.exp(x), math.nan, math.nan, math.nan)


def arms_of(pairs: Sequence[Pair]) -> Arms:
    """Arms that nothing is to be said of but their losses."""
    x = np.array([math.log(pair.baseline.flops) for pair in pairs])
    y = np.array([pair.baseline.log_loss.mean() for pair in pairs])
    repeats = np.array([float(len(pair.baseline.log_loss)) for pair in pairs])
    return Arms(("baseline", "treatment"), tuple(pairs), (x, y, repeats), 0.0, (0.0, 0.0), (), (0, 0), ())


def fitted_noise(stacks: Sequence[StackRuns]) -> tuple[list[float], float]:
    """sd of one run's ln loss at the three budgets that most of our arms have, and the correlation at one seed."""
    modern = next(stack for stack in stacks if stack.stack == "modern")
    return [modern.noise[budget].pooled.sd for budget in (3e11, 1e12, 3e12)], modern.correlation


def false_positives(trials: int = 2000) -> list[Rate]:
    """Of pairs that are alike, with our own noise: 2, 3, 5 seeds, one budget and three, paired or not."""
    noise, correlation = fitted_noise(own_ladders())
    return [
        rate(seeds, noise[:budgets], paired, trials=trials)
        for paired in (None, correlation) for budgets in (1, 3) for seeds in (2, 3, 5)
    ]  # fmt: skip


def power(noise: float, budgets: int, trials: int = 1000) -> str:
    """A table in Markdown: how often a true gain is shown, by seeds per arm, unpaired."""
    lines = ["| true CEG | " + " | ".join(f"{n} seeds" for n in SEEDS) + " |", "|---|" + "---|" * len(SEEDS)]
    for gain in GAINS:
        shares = [rate(n, [noise] * budgets, None, gain, trials).share for n in SEEDS]
        lines.append(f"| {gain:g} | " + " | ".join(f"{share:.0%}" for share in shares) + " |")
    return "\n".join(lines)


def main() -> None:
    """Print what docs/compare.md quotes."""
    for each in (*splits(own_ladders()), *false_positives()):
        print(f"{each.case}: {each.shown} of {each.trials}, {each.share:.1%}")
    for noise in NOISES:
        for budgets in (1, 3):
            print(f"\nnoise {noise:.2%} of the loss, {budgets} budget(s)\n\n{power(noise, budgets)}")


if __name__ == "__main__":
    main()
