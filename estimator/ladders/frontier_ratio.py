"""The usual method, as a rival: a scaling law fitted to each arm by itself, and the ratio of computes at equal loss.

Chinchilla's L(N, D) through all runs, or the frontier L = E + K C^-gamma through the rungs; the floor E free, intervals
by a pairs bootstrap (Besiroglu et al. 2024, arXiv 2404.10102).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.ladders.ladder import Ladder, RunTable, select
from cegain.ladders.scaling_law import FLOP_PER_PARAM_TOKEN, FitResult, Runs, fit
from cegain.run_tables.repeats import TOLERANCE

UNBOUNDED = 60.0
"""|ln gain| at which a ratio counts as unbounded: the baseline's fitted floor lies above the treatment's loss."""
_USABLE = ("converged", "bound_hit")


class Laws(NamedTuple):
    """Frontiers L = E + K C^-gamma of one arm: row 0 the fit, the others its resamples; E, ln K, gamma, [s] each."""

    E: Array
    log_k: Array
    gamma: Array


def chinchilla(runs: RunTable, arm: str, max_flops: float, resamples: int, seed: int = 0) -> Laws | None:
    """Chinchilla's law of an arm's runs up to a budget (FLOP), as its frontier; None where it cannot be fitted."""
    kept = select(runs, arm) & (np.log(runs.C) <= np.log(max_flops) + TOLERANCE / 2)
    n, d = runs.N[kept], runs.D[kept]
    if not (kept.any() and np.isfinite(d).all()):
        return None
    result = fit(Runs(loss=runs.loss[kept], N=n, D=d), "chinchilla", resamples=resamples, seed=seed)
    if result.status not in _USABLE:
        return None
    # The law's own C = 6 N D, brought to the table's way of counting.
    counted = float(np.median(np.log(runs.C[kept] / (FLOP_PER_PARAM_TOKEN * n * d))))
    return _finite(_chinchilla_frontier(result, counted))


def frontier(rungs: Ladder, resamples: int, seed: int = 0) -> Laws | None:
    """L = E + K C^-gamma through the rungs, floor free; None where it cannot be fitted."""
    if not len(rungs.x):
        return None
    result = fit(Runs(loss=np.exp(rungs.y), C=np.exp(rungs.x)), "frontier", resamples=resamples, seed=seed)
    if result.status not in _USABLE:
        return None
    p = _parameters(result)
    return _finite(Laws(p["E"], np.log(p["K"]), p["gamma"]))


def gains(baseline: Laws | None, treatment: Laws | None, log10_flops: Array, probabilities: Sequence[float]) -> Array:
    """Quantiles [q, p] of ln CEG at p budgets of the treatment; the median is the fit itself. NaN without laws."""
    if baseline is None or treatment is None:
        return np.full((len(probabilities), len(log10_flops)), np.nan)
    s = min(len(baseline.E), len(treatment.E))
    b, t = (Laws(*(part[:s, None] for part in law)) for law in (baseline, treatment))
    x = np.log(10.0) * log10_flops
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        excess = t.E + np.exp(t.log_k - t.gamma * x) - b.E
        log_c = np.where(excess > 0, (b.log_k - np.log(np.maximum(excess, 1e-300))) / b.gamma, np.inf)
    log_gain = np.clip(np.nan_to_num(log_c - x, nan=UNBOUNDED), -UNBOUNDED, UNBOUNDED)
    quantiles = np.quantile(log_gain[1:] if s > 1 else log_gain, probabilities, axis=0)
    quantiles[list(probabilities).index(0.5)] = log_gain[0]
    return np.asarray(quantiles)


def floor_sensitivity(baseline: Ladder, treatment: Ladder, flops: Sequence[float]) -> dict[str, list[float]]:
    """CEG at budgets (FLOP) from frontiers through the rungs, by what is assumed of the floor E: how much hangs on it?

    `zero`: E pinned to 0 in both arms; `shared`: one E for both, the best fit; `free`: each arm its own. NaN where a
    frontier cannot be fitted (fewer than 4 rungs, say), inf where the baseline's floor lies above the treatment's loss.
    """
    x = np.log10(np.asarray(flops, dtype=np.float64))
    highest = 0.999 * math.exp(min(baseline.y[-1], treatment.y[-1])) if min(len(baseline.x), len(treatment.x)) else 0.0

    def pinned(e: float) -> tuple[float, Array]:
        fits = [
            fit(Runs(loss=np.exp(a.y), C=np.exp(a.x)), "frontier", fixed={"E": e}, resamples=0)
            for a in (baseline, treatment)
            if len(a.x)
        ]
        if len(fits) < 2 or any(f.status not in _USABLE for f in fits):
            return math.inf, np.full(len(x), np.nan)
        both = [Laws(p["E"], np.log(p["K"]), p["gamma"]) for p in map(_parameters, fits)]
        return sum(f.objective for f in fits), gains(both[0], both[1], x, (0.5,))[0]

    shared = min((pinned(e) for e in np.linspace(0.0, highest, 40)), key=lambda fitted: fitted[0])[1]
    free = gains(frontier(baseline, 0), frontier(treatment, 0), x, (0.5,))[0]
    named = {"zero": pinned(0.0)[1], "shared": shared, "free": free}
    return {name: [math.inf if y >= UNBOUNDED else math.exp(y) for y in ratios] for name, ratios in named.items()}


def _parameters(result: FitResult) -> dict[str, Array]:
    names = list(result.parameters)
    table = np.vstack([list(result.parameters.values()), result.samples.reshape(-1, len(names))])
    return {name: table[:, i] for i, name in enumerate(names)}


def _chinchilla_frontier(result: FitResult, counted: float) -> Laws:
    """min over N D = C / 6 of the law (Hoffmann et al. 2022, eq. 4), with C = exp(counted) 6 N D."""
    p = _parameters(result)
    with np.errstate(all="ignore"):  # resamples that failed are NaN or worse; `_finite` drops them
        total = p["alpha"] + p["beta"]
        gamma = p["alpha"] * p["beta"] / total
        log_a, log_b = np.log(p["A"]), np.log(p["B"])
        log_g = (np.log(p["alpha"]) + log_a - np.log(p["beta"]) - log_b) / total
        log_k = np.logaddexp(log_a - p["alpha"] * log_g, log_b + p["beta"] * log_g)
        return Laws(p["E"], log_k + gamma * (np.log(FLOP_PER_PARAM_TOKEN) + counted), gamma)


def _finite(laws: Laws) -> Laws | None:
    """Without resamples that failed; None when the fit itself did."""
    good = np.isfinite(laws.E) & np.isfinite(laws.log_k) & (laws.gamma > 0)
    return Laws(*(part[good] for part in laws)) if good[0] else None
