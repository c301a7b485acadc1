"""Scores of intervals, and how far a share may be from its expectation."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping

import numpy as np
from scipy.special import betaincinv

from cegain.common.arrays import Array

DIGITS = 6
"""Significant digits of stored scores."""


def interval_score(low: Array | float, high: Array | float, value: Array | float, penalty: float) -> Array:
    """Width plus `penalty` times the distance by which the value lies outside; lower is better.

    Proper for an interval that holds a share c of all values where the penalty is 2 / (1 - c), 20 for 90% (Gneiting &
    Raftery 2007, eq. 43, doi:10.1198/016214506000001437).
    """
    return np.asarray(high - low + penalty * np.maximum(np.maximum(low - value, value - high), 0.0))


def binomial_range(votes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Clopper-Pearson range of a probability after `votes` of `n`; part votes widen it to whole ones."""
    few, many = math.floor(votes + 1e-9), math.ceil(votes - 1e-9)
    tail = (1 - confidence) / 2
    low = 0.0 if few == 0 else float(betaincinv(few, n - few + 1, tail))
    high = 1.0 if many == n else float(betaincinv(many + 1, n - many, 1 - tail))
    return low, high


def rounded(document: Mapping[str, object]) -> dict[str, object]:
    """A document as JSON has it, its floats to the `DIGITS` digits that a stored result keeps.

    Raises:
        ValueError: a float is NaN or infinite.
    """
    text = json.dumps(document, allow_nan=False)
    result: dict[str, object] = json.loads(text, parse_float=lambda digits: float(f"{float(digits):.{DIGITS}g}"))
    return result
