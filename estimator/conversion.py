"""From the currency in which a gain was published to the currency in which it is asked for.

Only conversions that need no guess are made; each says how, and what it costs in certainty. Time is never turned
into FLOP, because achieved FLOP/s differs between the arms: that is the error this project started from.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from cegain import algorithms
from cegain.evidence import PublishedGain

EXCHANGE_SD = {"steps": 0.05, "iters_mfu": 0.05, "params": 0.3}
"""sd of ln gain added by a conversion to FLOP. Assumed, not studied: FLOP per step is known within a few percent;
a gain in parameters at equal tokens is a gain in FLOP only if both arms sit equally far from compute-optimal."""


class Conversion(NamedTuple):
    """`factor` multiplies the published gain (NaN: no conversion); `sd` widens its logarithm; `how` is shown."""

    factor: float
    sd: float
    how: str


def convert(row: PublishedGain, currency: str) -> Conversion:
    """Express a published gain in `currency` ("flop", "time", "usd" or "decode")."""
    if row.currency == currency:
        return Conversion(1.0, 0.0, "")
    if currency == "usd" and row.currency == "time":
        return Conversion(1.0, 0.0, "time x price: equal to time on one device")
    if currency != "flop":
        return Conversion(math.nan, 0.0, f"{row.currency} says nothing about {currency}")
    if row.currency == "time":
        return Conversion(math.nan, 0.0, "time is never turned into FLOP: achieved FLOP/s differs")
    if row.flop_factor == row.flop_factor:
        return Conversion(
            row.flop_factor, EXCHANGE_SD[row.currency], f"{row.currency} x {row.flop_factor:.3g}: {row.note}"
        )
    if row.currency == "steps" and _equal_flop_per_step(row):
        return Conversion(1.0, EXCHANGE_SD["steps"], "steps x 1: equal FLOP per step")
    return Conversion(math.nan, 0.0, f"no known exchange rate from {row.currency} to FLOP")


def _equal_flop_per_step(row: PublishedGain) -> bool:
    """Whether both arms spend the same FLOP per step by nature: only norms or positions change, no matmul."""
    parts = list(zip(row.algorithm.split("+"), row.baseline.split("+"), strict=True))
    entries = [(algorithms.get(name), baseline) for name, baseline in parts]
    return all(
        entry.arm and set(entry.arm) <= {"norm", "positions"} and baseline in entry.replaces
        for entry, baseline in entries
    )
