"""Numbers out of texts, and into JSON."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from cegain.common.text import as_number, finite


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
