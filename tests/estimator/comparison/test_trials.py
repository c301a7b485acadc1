"""Verdicts are false no more often than their level says, and see gains as often as docs/compare.md says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom

from cegain.comparison import trials
from cegain.comparison.arms import Pair
from cegain.comparison.compare import LEVEL, decided
from cegain.comparison.trials import Rate

PAGE = Path(__file__).parents[3] / "docs" / "compare.md"


def within(rate: Rate, level: float = LEVEL, certain: float = 0.9999) -> bool:
    """Whether so many false verdicts agree with a true rate of at most `level`."""
    return bool(rate.shown <= binom.ppf(certain, rate.trials, level))


def test_a_rate_above_the_level_is_found() -> None:
    assert within(Rate("", 2000, 100))
    assert not within(Rate("", 2000, 150))


def test_seeds_of_one_arm_dealt_to_two_show_nothing() -> None:
    rates = trials.splits(trials.own_ladders())
    assert [rate.trials > 300 for rate in rates] == [True, True]
    assert sum(rate.shown for rate in rates) <= LEVEL * sum(rate.trials for rate in rates)
    assert all(rate.shown <= LEVEL * rate.trials for rate in rates)


@pytest.mark.parametrize("level", [0.1, 0.2])
def test_the_same_holds_at_other_levels(level: float) -> None:
    for rate in trials.splits(trials.own_ladders(), level):
        assert within(rate, level), rate


def test_pairs_that_are_alike_show_nothing() -> None:
    rates = trials.false_positives(200)
    assert len(rates) == 12
    assert [rate for rate in rates if not within(rate)] == []
    assert sum(rate.shown for rate in rates) > 0


@pytest.mark.parametrize("noise", [(0.002, 0.004, 0.02), (0.02, 0.004, 0.002)])
def test_noise_that_differs_by_budget_is_no_gain(noise: tuple[float, ...]) -> None:
    for correlation in (None, 0.6):
        assert within(trials.rate(3, noise, correlation, trials=400))


@pytest.mark.parametrize("seeds", [(2, 10), (3, 20), (3, 4)])
def test_unequal_numbers_of_seeds_show_nothing(seeds: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    level = math.log(trials.LOSS)
    shown = 0
    for _ in range(400):
        both = [trials._sample(trials.START, level + 0.004 * rng.standard_normal(n), ()) for n in seeds]
        shown += decided(trials.arms_of([Pair(*both)])) != "not shown"
    assert within(Rate("", 400, shown))


@pytest.mark.slow
def test_the_page_quotes_the_rates_of_2000_pairs() -> None:
    rates = trials.false_positives()
    for rate in rates:
        print(f"{rate.case}: {rate.shown} of {rate.trials}, {rate.share:.1%}")
    assert [rate for rate in rates if not within(rate)] == []
    assert sum(rate.shown for rate in rates) <= LEVEL * sum(rate.trials for rate in rates)
    (table,) = re.findall(r"^\| seeds \|.*?\n\n", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    quoted = [float(share) for share in re.findall(r"([\d.]+)%", table)]
    by_seeds = [rates[k * 3 + i].share for i in range(3) for k in range(4)]
    assert quoted == pytest.approx([100 * share for share in by_seeds], abs=0.11)


@pytest.mark.slow
def test_the_page_quotes_the_powers() -> None:
    page = PAGE.read_text("utf-8")
    tables = re.findall(r"^\| true CEG \|.*?\n\n", page + "\n\n", re.DOTALL | re.MULTILINE)
    printed = [trials.power(noise, budgets) for noise in trials.NOISES for budgets in (1, 3)]
    assert len(tables) == len(printed)
    for quoted, now in zip(tables, printed, strict=True):
        print(now)
        shares = [[int(share) for share in re.findall(r"(\d+)%", text)] for text in (quoted, now)]
        assert shares[0] == pytest.approx(shares[1], abs=2)
        assert [sorted(row) == list(row) for row in zip(*[iter(shares[1])] * 4, strict=True)] == [True] * 4
