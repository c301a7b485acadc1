"""Exchange rates between currencies: the few that are allowed, and all that are not."""

import math

import pytest

from cegain.gain.contrasts import convert
from cegain.gain.method import contrasts
from cegain.tables.published_gains import CURRENCIES
from tests.estimator.gain.test_contrasts import FIRST, ask, mean_width, median, published

ASKED = ("flop", "time", "usd", "decode")
TO_FLOP = ("flop", "steps", "iters_mfu", "params")


@pytest.mark.parametrize("currency", ASKED)
def test_a_gain_in_the_currency_asked_for_stays_as_it_is(currency: str) -> None:
    assert convert(published(currency=currency), currency) == (1.0, 0.0, "")


@pytest.mark.parametrize("asked", ASKED)
@pytest.mark.parametrize("given", CURRENCIES)
def test_only_these_currencies_are_exchanged(given: str, asked: str) -> None:
    """RoPE takes as many FLOP per step as learned positions, so its steps convert without a factor."""
    allowed = given == asked or (given, asked) in {("time", "usd"), ("steps", "flop")}
    result = convert(published(currency=given), asked)
    assert math.isnan(result.factor) is not allowed
    assert allowed or result.how


@pytest.mark.parametrize("given", ["time", "usd", "decode", "energy", "time_params"])
def test_nothing_timed_becomes_flop_even_with_a_factor(given: str) -> None:
    # The loader refuses a factor here; the rule must not rest on that alone.
    result = convert(published(currency=given, flop_factor=1.0 if given == "time" else math.nan), "flop")
    assert math.isnan(result.factor)


def test_flop_never_becomes_time() -> None:
    for given in TO_FLOP:
        for asked in ("time", "usd", "decode"):
            assert math.isnan(convert(published(currency=given, flop_factor=1.0), asked).factor)


def test_steps_count_as_flop_where_a_step_costs_the_same() -> None:
    rope = convert(published(currency="steps"), "flop")
    assert rope.factor == 1.0
    assert rope.sd == contrasts.EXCHANGE_SD["steps"] > 0


@pytest.mark.parametrize(("algorithm", "baseline"), [("mqa", "mha"), ("sparse_attention", "dense_attention")])
def test_steps_of_another_cost_need_their_factor(algorithm: str, baseline: str) -> None:
    row = published(algorithm=algorithm, baseline=baseline, currency="steps", ceg=0.9)
    assert math.isnan(convert(row, "flop").factor)
    assert convert(row._replace(flop_factor=1.05), "flop").factor == 1.05


def test_a_stated_factor_goes_before_the_formula() -> None:
    assert convert(published(currency="steps", flop_factor=0.9), "flop").factor == 0.9


def test_a_combination_converts_when_all_of_it_costs_the_same() -> None:
    same = published(algorithm="layernorm+rope", baseline="no_norm+learned_positions", currency="steps")
    other = published(algorithm="mqa+rope", baseline="mha+learned_positions", currency="steps")
    assert convert(same, "flop").factor == 1.0
    assert math.isnan(convert(other, "flop").factor)


def test_iterations_times_mfu_need_the_ratio_of_mfu() -> None:
    """0.81 x (15.0 / 11.3): the weighting by MFU is undone, and FlashAttention gains nothing in FLOP."""
    row = published(algorithm="flash_attention", baseline="materialised_attention", currency="iters_mfu", ceg=0.81)
    assert math.isnan(convert(row, "flop").factor)
    found = convert(row._replace(flop_factor=15.0 / 11.3), "flop")
    assert row.ceg * found.factor == pytest.approx(1.075, abs=1e-3)
    assert found.sd == contrasts.EXCHANGE_SD["iters_mfu"] > 0


def test_params_count_only_with_a_factor_and_widened_most() -> None:
    row = published(currency="params")
    assert math.isnan(convert(row, "flop").factor)
    found = convert(row._replace(flop_factor=1.0), "flop")
    assert found.factor == 1.0
    assert found.sd >= 0.3 > contrasts.EXCHANGE_SD["steps"]


def test_time_is_money_at_one_price() -> None:
    found = convert(published(currency="time"), "usd")
    assert found.factor == 1.0
    assert "one device" in found.how


def test_a_factor_multiplies_the_gain_in_the_answer() -> None:
    steps = [row._replace(currency="steps", flop_factor=2.0) for row in FIRST]
    assert median(steps) == pytest.approx(2.0 * median(FIRST), rel=0.03)


@pytest.mark.parametrize("currency", ["steps", "iters_mfu", "params"])
def test_a_converted_row_moves_the_answer_less_than_a_native_one(currency: str) -> None:
    native = median([*FIRST, published(study="d", ceg=4.0)])
    converted = median([*FIRST, published(study="d", ceg=4.0, currency=currency, flop_factor=1.0)])
    assert median(FIRST) < converted < native


def test_the_doubt_of_a_conversion_is_shared_by_the_rows_of_a_contrast() -> None:
    """Twenty rows through one doubtful exchange rate are as doubtful as the rate."""
    rate = {"study": "d", "currency": "params", "flop_factor": 1.0}
    many = [published(note=str(i), **rate) for i in range(20)]
    exact = [row._replace(currency="flop") for row in many]
    assert mean_width([*FIRST, *many]) > 1.02 * mean_width([*FIRST, *exact])


def test_rows_without_a_rate_do_not_count_and_the_answer_says_why() -> None:
    for currency in ("time", "params", "iters_mfu", "energy"):
        answer = ask([published(currency=currency)])
        assert answer.status == "no_evidence"
        assert currency in answer.reason
        with_it = ask([*FIRST, published(study="d", ceg=50.0, currency=currency)])
        assert with_it.median == ask(FIRST).median
