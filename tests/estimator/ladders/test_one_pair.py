"""The gain behind one pair of losses."""

from __future__ import annotations

import math

import pytest

from cegain.ladders.one_pair import speedup

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
