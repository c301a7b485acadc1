"""Bootstrap of a Chinchilla fit: time per resample against scipy's BFGS, same resamples, same warm start.

    OMP_NUM_THREADS=1 pytest benchmarks -k fit --benchmark-only      # side by side, objectives in extra_info
    OMP_NUM_THREADS=1 python -m cegain.benchmarks.test_fit           # interleaved repeats, with spread and ratios

The runs are synthetic (240, seeded). `CEG_FIT_RUNS=runs.csv` takes a table with columns N, D, loss instead, and
`CEG_FIT_DROP=5` leaves out its five highest losses, as Besiroglu et al. 2024 (arXiv 2404.10102) do.
"""

from __future__ import annotations

import csv
import os
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
from scipy.optimize import minimize

from cegain.common.arrays import Array
from cegain.ladders.scaling_law import DELTA, Runs, fit
from cegain.ladders.solver import Box, PowerSum, minimise

RESAMPLES = 200


class Case(NamedTuple):
    """Centred logs x [2, n], log loss [n], optimum on all runs [5] (solver's order), resamples as weights [r, n]."""

    x: Array
    log_loss: Array
    optimum: Array
    weights: Array


def synthetic_runs(n: int = 240, seed: int = 0) -> Runs:
    """Runs of a law like Chinchilla's with heavy-tailed noise of about 0.5% in loss."""
    rng = np.random.default_rng(seed)
    n_params, tokens = 10 ** rng.uniform(7.5, 10, n), 10 ** rng.uniform(8.5, 11, n)
    loss = 1.8 + 480 / n_params**0.35 + 2100 / tokens**0.37
    return Runs(loss=loss * np.exp(0.004 * rng.standard_t(3, n)), N=n_params, D=tokens)


def runs_to_fit() -> Runs:
    """The table named by CEG_FIT_RUNS, or synthetic runs."""
    path = os.environ.get("CEG_FIT_RUNS")
    if not path:
        return synthetic_runs()
    with open(path, newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: float(row["loss"]))
    rows = rows[: len(rows) - int(os.environ.get("CEG_FIT_DROP", "0"))]
    return Runs(*([float(row[name]) for row in rows] for name in ("loss", "N", "D")))


def make_case(runs: Runs, resamples: int, seed: int = 1) -> Case:
    """The full-data optimum and the resamples to refit."""
    columns = runs.checked(("N", "D"))
    logs = np.log([columns["N"], columns["D"]])
    centre = logs.mean(axis=1)
    best = fit(runs, resamples=0).parameters
    exponents = np.array([best["alpha"], best["beta"]])
    sizes = np.log([best["A"], best["B"]]) - exponents * centre
    n = logs.shape[1]
    weights = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), size=resamples).astype(np.float64)
    optimum = np.array([*sizes, np.log(best["E"]), *exponents])
    return Case(logs - centre[:, None], np.log(columns["loss"]), optimum, weights)


def ours(case: Case) -> Array:
    """Optima [r, 5] by the batched Newton solver."""
    low, high = np.array([-14.0, -14, -14, 0, 0]), np.array([6.0, 6, 6, 4, 4])
    starts = np.repeat(case.optimum[None], len(case.weights), axis=0)
    return minimise(PowerSum(case.x, case.log_loss, DELTA), starts, case.weights, Box(low, high)).theta


def objective(theta: Array, case: Case, weights: Array) -> float:
    """The objective, written out independently of the solver."""
    a, b, e, alpha, beta = theta
    total = np.exp(a - alpha * case.x[0]) + np.exp(b - beta * case.x[1]) + np.exp(e)
    residual = case.log_loss - np.log(total)
    clipped = np.clip(residual, -DELTA, DELTA)
    return float(weights @ (clipped * (residual - 0.5 * clipped)))


def with_gradient(theta: Array, case: Case, weights: Array) -> tuple[float, Array]:
    """The objective and its gradient."""
    a, b, e, alpha, beta = theta
    first, second, floor = np.exp(a - alpha * case.x[0]), np.exp(b - beta * case.x[1]), np.exp(e)
    total = first + second + floor
    residual = case.log_loss - np.log(total)
    clipped = np.clip(residual, -DELTA, DELTA)
    slope = -weights * clipped / total
    first, second = slope * first, slope * second
    gradient = [first.sum(), second.sum(), slope.sum() * floor, -(first @ case.x[0]), -(second @ case.x[1])]
    return float(weights @ (clipped * (residual - 0.5 * clipped))), np.array(gradient)


def bfgs_analytic(case: Case) -> Array:
    """Optima [r, 5] by scipy's BFGS with the gradient above."""
    found = [minimize(with_gradient, case.optimum, (case, w), method="BFGS", jac=True).x for w in case.weights]
    return np.array(found)


def bfgs_numeric(case: Case) -> Array:
    """Optima [r, 5] by scipy's BFGS with finite differences."""
    return np.array([minimize(objective, case.optimum, (case, w), method="BFGS").x for w in case.weights])


METHODS: dict[str, Callable[[Case], Array]] = {
    "ours": ours,
    "bfgs_analytic": bfgs_analytic,
    "bfgs_numeric": bfgs_numeric,
}


def objectives(case: Case, optima: Array) -> Array:
    """What each resample's optimum is worth, [r]."""
    return np.array([objective(theta, case, w) for theta, w in zip(optima, case.weights, strict=True)])


@pytest.fixture(scope="module")
def case() -> Case:
    """One set of runs and resamples for all methods."""
    return make_case(runs_to_fit(), RESAMPLES)


@pytest.mark.benchmark(group=f"fit: {RESAMPLES} bootstrap resamples")
@pytest.mark.parametrize("method", METHODS)
def test_fit(benchmark: Any, case: Case, method: str, full: bool) -> None:
    """All resamples refitted; the objectives must not be worse than where the resample started."""
    rounds = 5 if full or method == "ours" else 1
    optima = benchmark.pedantic(
        METHODS[method], args=(case,), rounds=rounds, warmup_rounds=1 if method == "ours" else 0
    )
    reached = objectives(case, optima)
    benchmark.extra_info["mean_objective"] = float(reached.mean())
    benchmark.extra_info["objectives"] = [float(f"{value:.13g}") for value in reached]
    benchmark.extra_info["ms_per_resample"] = 1e3 * benchmark.stats.stats.median / RESAMPLES
    benchmark.extra_info["omp_num_threads"] = os.environ.get("OMP_NUM_THREADS", "not set")
    started = objectives(case, np.repeat(case.optimum[None], RESAMPLES, axis=0))
    assert (reached <= started * (1 + 1e-12)).all()


def main(repeats: int = 5, numeric: int = 20, batch: int = 1000) -> None:
    """Print ms per resample, interleaved: `batch` resamples for ours, RESAMPLES and `numeric` of them for BFGS."""
    full = make_case(runs_to_fit(), batch)
    sizes = {"ours": batch, "bfgs_analytic": RESAMPLES, "bfgs_numeric": numeric}
    times: dict[str, list[float]] = {name: [] for name in METHODS}
    reached: dict[str, Array] = {}
    for _ in range(repeats):
        for name, method in METHODS.items():
            part = full._replace(weights=full.weights[: sizes[name]])
            begin = time.perf_counter()
            optima = method(part)
            times[name].append(1e3 * (time.perf_counter() - begin) / sizes[name])
            reached[name] = objectives(part, optima)
    for name, spent in times.items():
        ratios = [theirs / own for theirs, own in zip(spent, times["ours"], strict=True)]
        worse = reached["ours"][: sizes[name]] - reached[name]
        print(
            f"{name:14} {statistics.median(spent):8.4f} ms ({min(spent):.4f} to {max(spent):.4f}), "
            f"{statistics.median(ratios):6.1f}x ours ({min(ratios):.1f} to {max(ratios):.1f}); mean objective of the "
            f"first {numeric} {reached[name][:numeric].mean():.13e}; ours worse by at most {worse.max():.1e}"
        )


if __name__ == "__main__":
    main()
