"""The gain behind one pair of losses."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest

from cegain.ladders.one_pair import speedup
from cegain.ladders.pair import slope_prior
from cegain.ladders.pair.problems import Law

PINNED = {"floor": 1.7, "floor_sd": 0.0, "exponent": 0.15, "exponent_sd": 0.0, "seed_noise": 0.0}


def test_with_everything_pinned_it_is_the_formula() -> None:
    answer = speedup(2.31, 2.29, 1e19, **PINNED)
    assert answer.median == pytest.approx((0.61 / 0.59) ** (1 / 0.15))
    assert answer.interval == pytest.approx((answer.median, answer.median))
    assert answer.equivalent_flops == pytest.approx(1e19 * answer.median)


def test_equal_losses_are_no_gain_and_swapping_inverts_it() -> None:
    assert speedup(2.3, 2.3, 1e19, **PINNED).median == 1.0
    forth, back = speedup(2.31, 2.29, 1e19, **PINNED), speedup(2.29, 2.31, 1e19, **PINNED)
    assert forth.median * back.median == pytest.approx(1.0)


def test_a_lower_floor_makes_a_smaller_gain() -> None:
    gains = [gain for _, gain in speedup(2.31, 2.29, 1e19).sensitivity]
    assert gains == sorted(gains)
    assert gains[0] < gains[-1]


@pytest.mark.parametrize("part", ["floor_sd", "exponent_sd", "seed_noise"])
def test_each_uncertainty_widens(part: str) -> None:
    def width(**change: float) -> float:
        low, high = speedup(2.31, 2.29, 1e19, **(PINNED | change)).interval
        return math.log(high / low)

    size = {"floor_sd": 0.2, "exponent_sd": 0.03, "seed_noise": 0.002}[part]
    assert width() < 1e-9 < width(**{part: size}) < width(**{part: 2 * size})


def test_contributions_sum_to_one_and_name_what_varies() -> None:
    assert math.fsum(speedup(2.31, 2.29, 1e19).contributions.values()) == pytest.approx(1.0)
    alone = speedup(2.31, 2.29, 1e19, **(PINNED | {"seed_noise": 0.001})).contributions
    assert alone == pytest.approx({"floor": 0.0, "exponent": 0.0, "seed noise": 1.0})


def test_seed_noise_agrees_with_its_first_order_size() -> None:
    answer = speedup(2.31, 2.29, 1e19, **(PINNED | {"seed_noise": 0.0005}))
    sd = 0.0005 / 0.15 * math.hypot(1 / 0.61, 1 / 0.59)
    half = math.log(answer.interval[1] / answer.interval[0]) / 2
    assert half == pytest.approx(1.645 * sd, rel=0.03)


def test_the_same_seed_gives_the_same_digits() -> None:
    assert speedup(2.31, 2.29, 1e19, seed=3) == speedup(2.31, 2.29, 1e19, seed=3)
    assert speedup(2.31, 2.29, 1e19, seed=3) != speedup(2.31, 2.29, 1e19, seed=4)


def test_every_problem_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="baseline loss") as caught:
        speedup(-1, math.nan, 0, floor_sd=-1)
    for name in ("loss:", "flops:", "floor sd:"):
        assert name in str(caught.value)


def test_a_floor_above_the_losses_is_refused() -> None:
    with pytest.raises(ValueError, match="floor"):
        speedup(2.31, 2.29, 1e19, floor=2.3, floor_sd=0.0)


def test_losses_in_another_unit_need_their_floor() -> None:
    """Bits per byte lie below the floor of nats per token, which would be squeezed under them."""
    with pytest.raises(ValueError, match=r"no nats per token.*--floor 0.4"):
        speedup(0.748, 0.745, 4.3e19)
    answer = speedup(0.748, 0.745, 4.3e19, floor=0.4, floor_sd=0.06)
    assert answer.interval[1] < 1.2


def test_a_slope_has_no_unit() -> None:
    nats = speedup(2.31, 2.29, 4e19, seed_noise=0.001)
    bits = speedup(0.77, 2.29 / 3, 4e19, unit="bpb", seed_noise=0.001 / 3)
    assert bits.interval == pytest.approx(nats.interval, rel=1e-9)
    assert bits.unit == "bpb"
    assert speedup(0.748, 0.745, 4.3e19, unit="bpb").interval[1] < 1.2


def test_a_second_baseline_run_fixes_the_slope() -> None:
    """L = 1.7 + K C^-0.15: a run a decade below says how steep the frontier is, if not how bent."""
    below = 1.7 + 0.61 * 10**0.15
    alone, two = speedup(2.31, 2.27, 1e19), speedup(2.31, 2.27, 1e19, baseline_at=[(1e18, below)])
    truth = (0.61 / 0.57) ** (1 / 0.15)
    assert two.interval[0] < truth < two.interval[1]
    assert math.log(two.interval[1] / two.interval[0]) < 0.8 * math.log(alone.interval[1] / alone.interval[0])
    assert "2 runs of the baseline" in str(two)


def test_a_second_run_that_the_prior_does_not_expect_is_followed() -> None:
    answer = speedup(3.0, 2.97, 1e19, baseline_at=[(1e18, 3.03)], seed_noise=0.0001)
    assert answer.interval[0] < 10.0 < answer.interval[1] * 2
    assert "widened" in str(answer)


def test_a_fitted_law_with_its_covariance() -> None:
    sure = speedup(2.31, 2.29, 1e19, law=Law(1.7, 0.15, ((0.0, 0.0), (0.0, 0.0))), seed_noise=0.0)
    assert sure.interval == pytest.approx(((0.61 / 0.59) ** (1 / 0.15),) * 2)

    def width(covariance: float) -> float:
        low, high = speedup(
            2.31, 2.29, 1e19, law=Law(1.7, 0.15, ((0.01, covariance), (covariance, 0.0004))), seed_noise=0.0
        ).interval
        return math.log(high / low)

    assert width(0.0018) < 0.7 * width(0.0)  # a higher floor and a higher exponent make up for each other


def test_a_floor_alone_keeps_the_slope() -> None:
    low, high = speedup(2.31, 2.29, 1e19, floor=1.0, floor_sd=0), speedup(2.31, 2.29, 1e19, floor=1.9, floor_sd=0)
    assert low.median == pytest.approx(high.median, rel=0.02)
    assert low.slope == pytest.approx(high.slope, rel=1e-6)
    assert high.exponent[0] > 2 * low.exponent[0]
    assert "Floor of C4 as given" in str(speedup(2.31, 2.29, 1e19, floor=1.0, evaluation="C4"))


def test_what_it_rests_on_and_how_the_answer_changes_with_it() -> None:
    answer = speedup(2.31, 2.29, 1e19)
    prior = slope_prior.load()
    assert len(prior.sets) >= 5
    assert [name for name, _ in answer.by_set] == list(prior.sets)
    steepest = max(prior.sets, key=lambda name: prior.sets[name].level)
    gains = dict(answer.by_set)
    assert gains[steepest] == min(gains.values()) < max(gains.values())
    assert all(name in str(answer) for name in prior.sets)
    other = speedup(2.31, 2.29, 1e19, prior=prior._replace(level=prior.level + math.log(2)))
    assert math.log(other.median) == pytest.approx(math.log(answer.median) / 2, rel=0.1)


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        ({"unit": "bits"}, "unit: one of nats, bpb"),
        ({"floor_sd": 0.1}, "floor sd: it goes with a floor"),
        ({"exponent_sd": 0.1}, "exponent sd: it goes with an exponent"),
        ({"baseline_at": [(1e18, 2.2)]}, "more compute has the lower loss"),
        ({"baseline_at": [(1.05e19, 2.305)]}, "1.2 times or more"),
        ({"baseline_at": [(1e18, math.nan)]}, "finite number above 0"),
        ({"law": Law(2.5, 0.1, ((0.0, 0.0), (0.0, 0.0)))}, "its floor lies below"),
        ({"law": Law(1.5, 0.1, ((0.0, 0.0), (0.0, 0.0))), "floor": 1.0}, "law: it goes without"),
        ({"baseline_at": [(1e18, 2.5)], "floor": 1.0, "exponent": 0.1}, "leave nothing to learn"),
    ],
)
def test_what_does_not_go_together_is_refused(given: dict[str, Any], rule: str) -> None:
    with pytest.raises(ValueError, match=re.escape(rule)):
        speedup(2.31, 2.29, 1e19, **given)


def test_far_from_the_ladders_it_is_wider_and_says_so() -> None:
    near, far = speedup(2.31, 2.29, 1e19), speedup(2.31, 2.29, 1e24)
    assert math.log(far.interval[1] / far.interval[0]) > 2 * math.log(near.interval[1] / near.interval[0])
    assert "outside the ladders" in str(far)
    assert "outside the ladders" not in str(near)
    arms = [arm for arm in slope_prior.read_rungs() if arm.grows]
    ends = [math.exp(x) for arm in arms for x in (arm.x[0], arm.x[-1])]
    assert (min(ends), max(ends)) == pytest.approx(slope_prior.RANGE, rel=0.2)
    assert all(map(math.isfinite, speedup(6.0, 2.0, 1e26).interval))


def test_runs_that_contradict_each_other_are_said() -> None:
    calm = speedup(2.31, 2.29, 1e19, baseline_at=[(1e18, 2.56)])
    torn = speedup(2.31, 2.29, 1e19, baseline_at=[(1e18, 2.56), (1e20, 1.0)])
    assert "contradict each other" not in str(calm)
    assert "contradict each other" in str(torn)


@pytest.mark.parametrize(("flops", "exponent"), [(1e300, None), (1e19, 1e-4)])
def test_slips_of_the_pen_are_refused(flops: float, exponent: float | None) -> None:
    with pytest.raises(ValueError, match=r"FLOP are what|exponent: at least"):
        speedup(2.31, 2.29, flops, exponent=exponent)
