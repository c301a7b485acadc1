"""Minima of isoFLOP curves: at each budget, the model size with the lowest loss, and that loss.

The method is approach 2 of Hoffmann et al. 2022 (arXiv 2203.15556): a parabola of ln loss in ln N at each budget.
Far from its minimum the curve is not a parabola, so only runs near the best one are used.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.scaling_law import FLOP_PER_PARAM_TOKEN, Runs, Status

_MIN_POINTS = 4
"""A parabola has three parameters: with one run more its error can be told."""


class IsoflopMinimum(NamedTuple):
    """The bottom of one isoFLOP curve; NaN where `status` is not `converged`.

    flops: geometric mean budget; n_params, loss (nats per token): where the parabola is lowest, with standard
    errors of their logs; tokens: at that size, by the runs' own ratio of C to N D (6 where D is not given);
    n_runs: how many the parabola rests on. Status `bound_hit`: the lowest point is not inside the runs used, or the
    curve does not bend upwards.
    """

    flops: float
    n_params: float
    ln_n_params_error: float
    tokens: float
    loss: float
    ln_loss_error: float
    n_runs: int
    status: Status


def isoflop_minima(runs: Runs, *, tolerance: float = 0.1, span: float = 8.0) -> tuple[IsoflopMinimum, ...]:
    """One minimum per budget, in order of budget.

    Args:
        runs: with N, C and loss; D where known. Weights count, clusters do not.
        tolerance: runs whose C is within this share of the smallest of the group are one budget.
        span: runs whose N is within this factor of the best run's are used, or the four nearest.

    Raises:
        RunsError: unusable runs.
        ValueError: tolerance or span out of range.
    """
    if not tolerance > 0 or not span > 1:
        raise ValueError(
            f"isoflop_minima: tolerance must be > 0 and span > 1 (found {tolerance}, {span}). Leave them out."
        )
    columns = runs.checked(("N", "C"))
    columns.pop("cluster", None)
    order = np.lexsort(list(columns.values()))
    order = order[np.argsort(columns["C"][order], kind="stable")]
    columns = {name: column[order] for name, column in columns.items()}
    flops = columns["C"]
    minima, first = [], 0
    while first < len(flops):
        last = int(np.searchsorted(flops, flops[first] * (1 + tolerance), side="right"))
        minima.append(_minimum({name: column[first:last] for name, column in columns.items()}, math.log(span)))
        first = last
    return tuple(minima)


def frontier_runs(minima: Iterable[IsoflopMinimum]) -> Runs:
    """The converged minima as runs, for `fit(..., form="frontier")`.

    Raises:
        ValueError: no minimum has converged.
    """
    good = [minimum for minimum in minima if minimum.status == "converged"]
    if not good:
        raise ValueError("frontier_runs: no isoFLOP minimum converged (found 0). Add runs around the best of each.")
    return Runs(
        loss=[m.loss for m in good], N=[m.n_params for m in good], D=[m.tokens for m in good], C=[m.flops for m in good]
    )


def _minimum(columns: dict[str, Array], half_width: float) -> IsoflopMinimum:
    log_n, log_loss, weight = np.log(columns["N"]), np.log(columns["loss"]), columns["weight"]
    flops = math.exp(np.log(columns["C"]).mean())
    distance = np.abs(log_n - log_n[np.argmin(log_loss)])
    nearest = np.sort(distance)[:_MIN_POINTS][-1]
    used = distance <= max(half_width, float(nearest))
    n_used = int(used.sum())

    def failed(status: Status) -> IsoflopMinimum:
        return IsoflopMinimum(flops, math.nan, math.nan, math.nan, math.nan, math.nan, n_used, status)

    if n_used < _MIN_POINTS:
        return failed("too_few_points")
    if len(np.unique(log_n[used])) < 3:
        return failed("degenerate_design")
    centre = log_n[used].mean()
    x, y, w = log_n[used] - centre, log_loss[used], weight[used] / weight[used].mean()
    design = np.stack([np.ones_like(x), x, x * x], axis=1)
    inverse = np.linalg.inv(design.T @ (w[:, None] * design))
    level, slope, bend = inverse @ (design.T @ (w * y))
    if bend <= 0 or not x.min() < -slope / (2 * bend) < x.max():
        return failed("bound_hit")
    at = -slope / (2 * bend)
    residual = y - design @ (level, slope, bend)
    covariance = inverse * float(w @ residual**2) / (n_used - 3)
    to_place = np.array([0.0, -1 / (2 * bend), slope / (2 * bend**2)])
    to_loss = np.array([1.0, at, at * at])
    n_params = math.exp(centre + at)
    per_param_token = FLOP_PER_PARAM_TOKEN
    if "D" in columns:
        per_param_token = math.exp(np.log(columns["C"] / (columns["N"] * columns["D"]))[used].mean())
    return IsoflopMinimum(
        flops=flops,
        n_params=n_params,
        ln_n_params_error=math.sqrt(to_place @ covariance @ to_place),
        tokens=flops / (per_param_token * n_params),
        loss=math.exp(level + slope * at / 2),
        ln_loss_error=math.sqrt(to_loss @ covariance @ to_loss),
        n_runs=n_used,
        status="converged",
    )
