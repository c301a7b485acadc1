"""Numbers out of texts, and into JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cegain.common.text import as_number, finite, quantity


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, np.float64("nan")])
def test_json_has_null_where_a_number_is_not_finite(value: float) -> None:
    assert json.dumps(finite(value), allow_nan=False) == "null"


def test_a_finite_number_is_a_plain_float() -> None:
    assert finite(np.float64(0.1)) == 0.1
    assert type(finite(np.float64(0.1))) is float


def test_text_that_holds_no_number_is_nan() -> None:
    assert as_number(" 1e3 ") == 1000.0
    assert as_number("12", int) == 12
    assert all(math.isnan(number) for number in (as_number(""), as_number("1,5"), as_number("1e3", int)))


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e26", 1e26), ("10^26", 1e26), ("10**26", 1e26), ("3x10^24", 3e24), ("3.8 * 10^25", 3.8e25),
        ("7B", 7e9), ("2.5T", 2.5e12), ("125m", 125e6), ("4k", 4e3), (" 1e24 ", 1e24),
    ],
)  # fmt: skip
def test_large_numbers_are_read_as_people_write_them(text: str, value: float) -> None:
    assert quantity(text) == pytest.approx(value, rel=1e-15)


@pytest.mark.parametrize("text", ["", "B", "1e", "10^", "10^1e3", "3e24x", "e26", "1,5"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        quantity(text)
