"""Ladders of a known gain: to check that intervals hold, and for trying the commands without any runs of one's own.

The baseline's loss is E + K C^-gamma. The treatment reaches it with exp(f(m)) times less compute, where f is either
drawn from the forecast's own prior or one of a few fixed truths, and m is the midpoint of the two (log10 FLOP).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import LN10, Array
from cegain.ladders import ladder
from cegain.ladders.forecast import SHARED, Settings

FLOOR, EXCESS, GAMMA = 1.7, 2.3, 0.12
"""Loss of the baseline: 1.7 + 2.3 (C / 1e17)^-0.12, a small language model's."""
START = 17.0
STEP = 0.5
"""Budgets: 1e17 FLOP and up, half a decade apart."""
LEVEL, LEVEL_SD = 0.7, 0.7
"""ln CEG at the first budget of a drawn truth: a typical published gain and their spread."""

TRUTHS: dict[str, Callable[[Array], Array]] = {
    "constant": lambda m: np.full_like(m, math.log(2.0)),
    "power-law": lambda m: math.log(1.5) + 0.1 * LN10 * (m - START),
    "fading": lambda m: np.log1p(3.0 * np.exp(-0.5 * (m - START))),
    "saturating": lambda m: math.log(3.0) * (1 - np.exp(-0.5 * np.maximum(m - START + 1, 0.0))),
    "crossover": lambda m: -0.4 + 0.2 * (m - START),
    "onset": lambda m: math.log(1.1) + 0.3 * np.maximum(m - START - 2.0, 0.0),
}
"""ln CEG of midpoint m: always 2x; 1.5x growing as C^0.1; 4x decaying to 1x, the excess by exp(-0.5) per decade;
growing towards 3x by exp(-0.5) per decade; 0.67x growing by exp(0.2) per decade, past 1x two decades on; 1.1x that
starts to grow by exp(0.3) per decade at the fifth budget."""


class Truth(NamedTuple):
    """Two arms, their budgets [n] (log10 FLOP), and the ln CEG behind them as a function of the treatment's log10 C."""

    baseline: ladder.Ladder
    treatment: ladder.Ladder
    log10_flops: Array
    gain: Callable[[float], float]


def fixed(name: str, rungs: int, noise: float, rng: np.random.Generator) -> Truth:
    """One of `TRUTHS`, seen through a ladder with independent noise (sd of ln loss) in both arms."""
    return observe(TRUTHS[name], rungs, noise, 0.0, rng)


def drawn(settings: Settings, rungs: int, noise: float, rng: np.random.Generator) -> Truth:
    """A gain drawn from the forecast's prior (tau, kappa, lasting, shared noise; the noise itself is given)."""
    tau = settings.tau * math.exp(settings.tau_sd * rng.standard_normal())
    kappa, lasting = float(rng.choice(settings.kappas)), float(rng.choice(settings.lasting))
    step = 0.02
    m = np.arange(START - 4, START + STEP * rungs + 4, step)
    keep = math.exp(-kappa * step)
    kicks = tau * math.sqrt(1 - lasting) * rng.standard_normal(len(m))
    slope = np.empty(len(m))
    slope[0] = kicks[0]
    for i in range(1, len(m)):
        slope[i] = keep * slope[i - 1] + math.sqrt(1 - keep**2) * kicks[i]
    slope += tau * math.sqrt(lasting) * rng.standard_normal()
    integral = np.concatenate([[0.0], np.cumsum((slope[1:] + slope[:-1]) / 2 * step)])
    path = integral - np.interp(START, m, integral) + LEVEL + LEVEL_SD * rng.standard_normal()
    shared = float(rng.choice(SHARED, p=(1 - settings.shared, settings.shared)))
    return observe(lambda x: np.interp(x, m, path), rungs, noise, shared, rng)


def observe(gain: Callable[[Array], Array], rungs: int, noise: float, shared: float, rng: np.random.Generator) -> Truth:
    """Two ladders of a gain (ln CEG by midpoint), with noise (sd of ln loss), of which the arms share a part."""
    m: Array = np.arange(START - 3.5, START + STEP * rungs + 3.5, 0.01, dtype=np.float64)
    y = gain(m)
    half = y / (2 * LN10)
    treatment_x, log_loss = m - half, np.log(loss(m + half))
    x: Array = START + STEP * np.arange(rungs, dtype=np.float64)
    common, own_b, own_t = rng.standard_normal((3, rungs))
    errors = [noise * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own) for own in (own_b, own_t)]
    truths = (np.log(loss(x)), np.interp(x, treatment_x, log_loss))
    arms = [
        ladder.build(name, np.zeros(rungs), x * LN10, clean + error)
        for name, clean, error in zip(("baseline", "treatment"), truths, errors, strict=True)
    ]
    return Truth(arms[0], arms[1], x, lambda at: float(np.interp(at, treatment_x, y)))


def loss(log10_flops: Array) -> Array:
    """The baseline's loss at log10 C."""
    return np.asarray(FLOOR + EXCESS * 10 ** (-GAMMA * (log10_flops - START)))


def table(name: str, rungs: int = 8, noise: float = 0.002, seed: int = 0) -> str:
    """A table of runs (CSV: variant,N,D,C,loss) of one of `TRUTHS`, D = 20 N."""
    truth = fixed(name, rungs, noise, np.random.default_rng(seed))
    rows = ["variant,N,D,C,loss"]
    for arm in (truth.baseline, truth.treatment):
        for log_c, log_loss in zip(arm.x, arm.y, strict=True):
            n = math.sqrt(math.exp(log_c) / 120)
            rows.append(f"{arm.name},{n:.6g},{20 * n:.6g},{math.exp(log_c):.10g},{math.exp(log_loss):.8g}")
    return "\n".join(rows) + "\n"
