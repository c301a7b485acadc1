from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import approx_fprime, minimize, minimize_scalar

from cegain.common.arrays import Array
from cegain.ladders.scaling_law import FitResult, Runs, RunsError, fit
from cegain.ladders.solver import Box, PowerSum, minimise, minimise_from_afar

TRUTH = {"A": 482.0, "B": 2085.0, "E": 1.817, "alpha": 0.348, "beta": 0.366}
FRONTIER = {"E": 1.7, "K": 1500.0, "gamma": 0.16}
WIDE = Box(np.array([-14.0, -14, -14, 0, 0]), np.array([6.0, 6, 6, 4, 4]))


def chinchilla_loss(n_params: Array, tokens: Array) -> Array:
    t = TRUTH
    return np.asarray(t["E"] + t["A"] / n_params ** t["alpha"] + t["B"] / tokens ** t["beta"])


def chinchilla_runs(n: int = 120, noise: float = 0.0, seed: int = 0, **more: Any) -> Runs:
    rng = np.random.default_rng(seed)
    n_params, tokens = 10 ** rng.uniform(7.5, 10, n), 10 ** rng.uniform(8.5, 11, n)
    loss = chinchilla_loss(n_params, tokens) * np.exp(noise * rng.standard_t(3, n))
    return Runs(loss, n_params, tokens, 6 * n_params * tokens, **more)


def frontier(budgets: Array) -> Runs:
    return Runs(FRONTIER["E"] + FRONTIER["K"] * budgets ** -FRONTIER["gamma"], C=budgets)


def arrays(runs: Runs) -> tuple[Array, Array, Array]:
    return np.asarray(runs.loss, float), np.asarray(runs.N, float), np.asarray(runs.D, float)


def huber(theta: Array, runs: Runs, weight: Array | float = 1.0, delta: float = 1e-3) -> float:
    """The objective of the paper, in natural logs of the coefficients, written without the solver."""
    loss, n_params, tokens = arrays(runs)
    a, b, e, alpha, beta = theta
    predicted = np.exp(a) / n_params**alpha + np.exp(b) / tokens**beta + np.exp(e)
    size = np.abs(np.log(loss / predicted))
    return float(np.sum(weight * np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))))


def log_theta(parameters: Any) -> Array:
    p = parameters
    return np.array([math.log(p["A"]), math.log(p["B"]), math.log(p["E"]), p["alpha"], p["beta"]])


def centred(runs: Runs) -> tuple[PowerSum, Array]:
    loss, n_params, tokens = arrays(runs)
    logs = np.log([n_params, tokens])
    centre = logs.mean(axis=1)
    return PowerSum(logs - centre[:, None], np.log(loss), 1e-3), centre


# The solver


@pytest.mark.parametrize("m", [1, 2, 3])
def test_derivatives_agree_with_differences(m: int) -> None:
    rng = np.random.default_rng(m)
    problem = PowerSum(rng.normal(size=(m, 40)), rng.normal(1, 0.3, 40), 0.2)
    theta = np.concatenate([rng.normal(0, 0.3, m + 1), rng.uniform(0.2, 0.6, m)])
    weights = rng.integers(0, 4, (1, 40)).astype(float)
    at = problem.evaluate(theta[None], weights)

    def objective(x: Array) -> float:
        return float(problem.evaluate(x[None], weights).objective[0])

    def slope(x: Array) -> Array:
        return np.asarray(problem.evaluate(x[None], weights).gradient[0])

    gradient, hessian = approx_fprime(theta, objective, 1e-7), approx_fprime(theta, slope, 1e-7)
    np.testing.assert_allclose(at.gradient[0], gradient, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(at.hessian[0], hessian, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(problem.scores(theta, weights[0]).sum(axis=0), at.gradient[0], rtol=1e-12, atol=1e-13)


def test_resamples_end_no_worse_than_bfgs() -> None:
    runs = chinchilla_runs(noise=0.004)
    problem, centre = centred(runs)
    best = log_theta(fit(runs, resamples=0).parameters)
    weights = np.random.default_rng(5).multinomial(120, np.full(120, 1 / 120), size=40).astype(float)
    start = best.copy()
    start[:2] -= best[3:] * centre
    found = minimise(problem, np.repeat(start[None], 40, axis=0), weights, WIDE)
    assert found.converged.all()
    theta = found.theta.copy()
    theta[:, :2] += theta[:, 3:] * centre
    for row, w, claimed in zip(theta, weights, found.objective, strict=True):
        reached = huber(row, runs, w)
        assert reached == pytest.approx(claimed, rel=1e-10)

        def centred_objective(x: Array, w: Array = w) -> float:
            return float(problem.evaluate(x[None], w[None]).objective[0])

        theirs = minimize(centred_objective, start, method="BFGS", options={"gtol": 1e-8}).fun
        assert reached <= theirs + 1e-12


def test_single_precision_pass_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    problem, centre = centred(chinchilla_runs(noise=0.004))
    weights = np.random.default_rng(2).multinomial(120, np.full(120, 1 / 120), size=60).astype(float)
    start = log_theta(TRUTH)
    start[:2] -= start[3:] * centre
    starts = np.repeat(start[None], 60, axis=0)
    mixed = minimise(problem, starts, weights, WIDE)
    monkeypatch.setattr("cegain.ladders.solver._SINGLE_FROM", 10**9)
    double = minimise(problem, starts, weights, WIDE)
    np.testing.assert_allclose(mixed.objective, double.objective, rtol=1e-11)
    np.testing.assert_allclose(mixed.theta, double.theta, atol=1e-5)


# Truth and starts


@given(alpha=st.floats(0.2, 0.6), beta=st.floats(0.2, 0.6), floor=st.floats(0.5, 2.5), seed=st.integers(0, 1000))
@settings(max_examples=10, deadline=None)
def test_truth_is_recovered_without_noise(alpha: float, beta: float, floor: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    n_params, tokens = 10 ** rng.uniform(7.5, 10, 60), 10 ** rng.uniform(8.5, 11, 60)
    truth = {"A": 10 ** (8.5 * alpha), "B": 10 ** (9.5 * beta), "E": floor, "alpha": alpha, "beta": beta}
    loss = floor + truth["A"] / n_params**alpha + truth["B"] / tokens**beta
    result = fit(Runs(loss, n_params, tokens), resamples=0)
    assert result.status == "converged"
    assert result.parameters == pytest.approx(truth, rel=1e-6)


def test_frontier_is_recovered_without_noise() -> None:
    result = fit(frontier(10 ** np.linspace(18, 23, 9)), form="frontier", resamples=0)
    assert result.status == "converged"
    assert result.parameters == pytest.approx(FRONTIER, rel=1e-6)


def test_every_start_ends_at_the_best_minimum() -> None:
    runs = chinchilla_runs(n=80, noise=0.004)
    best = fit(runs, resamples=0)
    problem, centre = centred(runs)
    rng = np.random.default_rng(0)
    starts = rng.uniform([0, 0, -1, 0, 0], [25, 25, 1.5, 2, 2], (8, 5))
    starts[:, :2] -= starts[:, 3:] * centre
    reached = minimise_from_afar(problem, starts, np.ones((1, 80)), WIDE).objective
    np.testing.assert_allclose(reached, best.objective, rtol=1e-10)
    assert best.objective == pytest.approx(huber(log_theta(best.parameters), runs), rel=1e-12)
    assert best.objective < huber(log_theta(TRUTH), runs)


# What must not matter


def test_order_of_rows_does_not_matter() -> None:
    runs = chinchilla_runs(noise=0.004)
    columns = np.array(arrays(runs))
    shuffled = columns[:, np.random.default_rng(9).permutation(columns.shape[1])]
    one, other = fit(Runs(*columns), resamples=50), fit(Runs(*shuffled), resamples=50)
    assert one.as_dict() == other.as_dict()


def test_scale_of_weights_changes_only_the_objective() -> None:
    weight = np.random.default_rng(1).uniform(0.5, 2, 120)
    one = fit(chinchilla_runs(noise=0.004, weight=weight), resamples=20)
    other = fit(chinchilla_runs(noise=0.004, weight=64 * weight), resamples=20)
    assert other.parameters == pytest.approx(dict(one.parameters), rel=1e-9)
    assert other.errors == pytest.approx(dict(one.errors), rel=1e-9)
    assert other.objective == pytest.approx(64 * one.objective, rel=1e-12)


def test_weight_two_is_the_run_twice() -> None:
    columns = np.array(arrays(chinchilla_runs(n=60, noise=0.004)))
    weight = np.where(np.arange(60) < 10, 2.0, 1.0)
    doubled = fit(Runs(*np.concatenate([columns, columns[:, :10]], axis=1)), resamples=0)
    weighted = fit(Runs(columns[0], columns[1], columns[2], weight=weight), resamples=0)
    assert doubled.parameters == pytest.approx(dict(weighted.parameters), rel=1e-7)
    assert doubled.objective == pytest.approx(weighted.objective, rel=1e-10)
    assert "10 runs repeat another one exactly" in doubled.notes[0]


# Uncertainty


def test_bootstrap_is_deterministic_and_depends_on_the_seed() -> None:
    runs = chinchilla_runs(noise=0.004)
    one, same, other = (fit(runs, resamples=30, seed=s) for s in (3, 3, 4))
    np.testing.assert_array_equal(one.samples, same.samples)
    assert one.intervals == same.intervals != other.intervals
    assert one.parameters == other.parameters


def test_errors_agree_with_the_scatter_over_new_data() -> None:
    fits = [fit(chinchilla_runs(n=150, noise=0.004, seed=s), resamples=0) for s in range(40)]
    for name in ("E", "alpha", "beta"):
        scatter = np.std([result.parameters[name] for result in fits])
        typical = np.median([result.errors[name] for result in fits])
        assert 0.6 < typical / scatter < 1.6, name


def test_intervals_cover_the_truth() -> None:
    inside = []
    for seed in range(40):
        result = fit(chinchilla_runs(n=150, noise=0.004, seed=seed), resamples=150)
        assert result.intervals is not None
        optimum = result.compute_optimal(1e23).n_params
        a, b, alpha, beta = (TRUTH[name] for name in ("A", "B", "alpha", "beta"))
        true_n = (alpha * a / (beta * b)) ** (1 / (alpha + beta)) * (1e23 / 6) ** (beta / (alpha + beta))
        inside.append([optimum.low < true_n < optimum.high])
        inside[-1] += [low < TRUTH[name] < high for name, (low, high) in result.intervals.items()]
    # 40 draws of a 90% interval: 30 or fewer has a probability below 0.2%.
    assert (np.sum(inside, axis=0) > 30).all()


def test_runs_of_one_cluster_count_once() -> None:
    rng = np.random.default_rng(0)
    n_params, tokens = 10 ** rng.uniform(7.5, 10, 40), 10 ** rng.uniform(8.5, 11, 40)
    loss = chinchilla_loss(n_params, tokens) * np.exp(0.004 * rng.standard_t(3, 40))
    copies = [np.repeat(column, 4) for column in (loss, n_params, tokens)]
    labels = np.repeat([f"curve {i}" for i in range(40)], 4)
    honest = fit(Runs(loss, n_params, tokens), resamples=200)
    clustered = fit(Runs(copies[0], copies[1], copies[2], cluster=labels), resamples=200)
    naive = fit(Runs(*copies), resamples=200)
    assert clustered.n_clusters == 40
    assert clustered.parameters == pytest.approx(dict(honest.parameters), rel=1e-6)
    # The same clusters are drawn; the bandwidth of the smoothed Hessian depends on the number of runs.
    assert np.ptp(clustered.samples[:, 3]) == pytest.approx(np.ptp(honest.samples[:, 3]), rel=0.5)
    assert clustered.errors["alpha"] == pytest.approx(honest.errors["alpha"], rel=0.3)
    assert naive.errors["alpha"] < 0.75 * clustered.errors["alpha"]
    assert naive.samples[:, 3].std() < 0.75 * clustered.samples[:, 3].std()


def test_one_cluster_gives_no_interval() -> None:
    result = fit(chinchilla_runs(noise=0.004, cluster=["only"] * 120), resamples=20)
    assert result.intervals is None
    assert any("one cluster" in note for note in result.notes)


# What a law is used for


def test_compute_optimal_is_the_minimum_along_the_budget() -> None:
    result = fit(chinchilla_runs(), resamples=0)
    for budget in (1e20, 1e25):

        def loss(log_n: float, budget: float = budget) -> float:
            return float(result.predict(N=math.exp(log_n), D=budget / 6 / math.exp(log_n)).value)

        found = minimize_scalar(loss, bracket=(18, 26), tol=1e-10)
        best = result.compute_optimal(budget)
        assert float(best.n_params.value) == pytest.approx(math.exp(found.x), rel=1e-4)
        assert float(6 * best.n_params.value * best.tokens.value) == pytest.approx(budget, rel=1e-12)
        assert float(best.loss.value) == pytest.approx(found.fun, rel=1e-12)
        assert result.predict(C=budget).value == best.loss.value


def test_predictions_keep_the_shape_and_carry_intervals() -> None:
    result = fit(chinchilla_runs(noise=0.004), resamples=100)
    grid = result.predict(N=np.array([[1e8], [1e9]]), D=np.array([1e9, 1e10, 1e11]))
    assert grid.value.shape == grid.low.shape == (2, 3)
    assert ((grid.low < grid.value) & (grid.value < grid.high)).all()
    best = result.compute_optimal([1e21, 1e26])
    width = np.log(best.n_params.high / best.n_params.low)
    assert width[1] > width[0] > 0
    assert result.predict(C=1e21).value == pytest.approx(best.loss.value[0])


def test_prediction_asks_for_what_the_form_has() -> None:
    law = fit(frontier(10 ** np.linspace(18, 23, 9)), form="frontier", resamples=0)
    assert float(law.predict(C=1e24).value) == pytest.approx(1.7 + 1500 * 1e24**-0.16, rel=1e-6)
    with pytest.raises(ValueError, match="takes C alone"):
        law.predict(N=1e9, D=1e9)
    with pytest.raises(ValueError, match="no N and D"):
        law.compute_optimal(1e24)
    with pytest.raises(ValueError, match="finite and positive"):
        fit(chinchilla_runs(), resamples=0).compute_optimal(-1.0)


# Holding parameters


@pytest.mark.parametrize("floor", [0.0, 1.5, 1.9])
def test_the_floor_can_be_held(floor: float) -> None:
    runs = chinchilla_runs(noise=0.004)
    free, held = fit(runs, resamples=0), fit(runs, fixed={"E": floor}, resamples=20)
    assert held.parameters["E"] == floor
    assert held.fixed == ("E",)
    assert held.objective > free.objective
    assert (held.samples[:, 2] == pytest.approx(floor, rel=1e-12)) if floor else (held.samples[:, 2] == 0).all()
    assert "(fixed)" in str(held)


def test_holding_the_truth_gives_the_truth() -> None:
    for name in ("A", "E", "beta"):
        held = fit(chinchilla_runs(n=60), fixed={name: TRUTH[name]}, resamples=0)
        assert held.parameters == pytest.approx(TRUTH, rel=1e-6)
        assert math.isnan(held.errors[name])


# Soft status


def check_unusable(result: FitResult, status: str) -> None:
    assert result.status == status
    assert all(math.isnan(v) for v in result.parameters.values())
    assert result.intervals is None
    assert result.notes
    assert status in str(result)
    assert json.loads(json.dumps(result.as_dict()))["objective"] is None
    assert np.isnan(result.predict(C=1e24).value)


def test_too_few_points() -> None:
    columns = np.array(arrays(chinchilla_runs(n=5)))
    check_unusable(fit(Runs(*columns)), "too_few_points")
    check_unusable(fit(Runs(*np.repeat(columns, 10, axis=1))), "too_few_points")
    check_unusable(fit(frontier(np.array([1e18, 1e19, 1e20])), form="frontier"), "too_few_points")


def test_n_and_d_that_move_together_are_degenerate() -> None:
    n_params = 10 ** np.linspace(7, 10, 30)
    check_unusable(fit(Runs(chinchilla_loss(n_params, 20 * n_params), n_params, 20 * n_params)), "degenerate_design")
    tokens = np.full(30, 1e9)
    check_unusable(fit(Runs(chinchilla_loss(n_params, tokens), n_params, tokens)), "degenerate_design")


def test_two_sizes_do_not_fix_an_exponent() -> None:
    n_params, tokens = np.repeat([1e8, 1e9], 12), np.tile(10 ** np.linspace(9, 11, 12), 2)
    loss = chinchilla_loss(n_params, tokens)
    check_unusable(fit(Runs(loss, n_params, tokens)), "degenerate_design")
    held = fit(Runs(loss, n_params, tokens), fixed={"E": TRUTH["E"]}, resamples=0)
    assert held.parameters == pytest.approx(TRUTH, rel=1e-6)


def test_a_floor_that_is_not_there_is_a_bound() -> None:
    budgets = 10 ** np.linspace(18, 23, 12)
    result = fit(Runs(50 * budgets**-0.05, C=budgets), form="frontier", resamples=20)
    assert result.status == "bound_hit"
    assert result.at_boundary == ("E",)
    assert "at boundary" in str(result)
    assert result.parameters["gamma"] == pytest.approx(0.05, rel=1e-3)


def test_a_rising_frontier_is_noted() -> None:
    budgets = 10 ** np.linspace(18, 23, 12)
    loss = np.asarray(frontier(budgets).loss) * np.where(np.arange(12) == 6, 1.3, 1)
    result = fit(Runs(loss, C=budgets), form="frontier", resamples=0)
    assert "loss rises with C at 1 of 11 steps" in result.notes[0]


# Errors


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(RunsError) as caught:
        fit(Runs(loss=[2.0, math.nan, -1.0], N=[1e8, 0.0, 1e9], D=[1e9, math.inf], C=[1.0, 2.0, 3.0]))
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert len(caught.value.problems) == 4
    for part in ("loss", "[1] = nan, [2] = -1", "N: ", "[1] = 0", "[1] = inf", "same length", "D 2"):
        assert part in text


@pytest.mark.parametrize(
    ("runs", "text"),
    [
        (Runs(loss=[]), "at least one run"),
        (Runs(loss=[2.0, 3.0]), "needs it"),
        (Runs(loss=[[2.0, 3.0]], C=[1.0, 2.0]), "one-dimensional"),
        (Runs(loss=["a", "b"], C=[1.0, 2.0]), "must be numbers"),
        (Runs(loss=[2.0, 3.0], C=[1.0, 2.0], weight=[1.0, 0.0]), "weight: must be finite and positive"),
        (Runs(loss=[2.0, 3.0], C=[1.0, 2.0], cluster=["a"]), "cluster 1"),
    ],
)
def test_unusable_runs(runs: Runs, text: str) -> None:
    with pytest.raises(RunsError, match=text.replace("[", r"\[")):
        fit(runs, form="frontier")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"form": "kaplan"}, "must be one of chinchilla, frontier"),
        ({"fixed": {"gamma": 0.1}}, "no such parameter"),
        ({"fixed": {"E": -1.0}}, "not negative"),
        ({"fixed": TRUTH}, "must be free"),
        ({"delta": 0.0}, "delta"),
        ({"resamples": -1}, "resamples"),
        ({"level": 1.0}, "level"),
    ],
)
def test_unusable_options(options: dict[str, Any], text: str) -> None:
    with pytest.raises(RunsError, match=text):
        fit(chinchilla_runs(), **options)


# Report


def test_report_and_dictionary_say_the_same() -> None:
    result = fit(chinchilla_runs(noise=0.004), resamples=40, seed=5)
    told = json.loads(json.dumps(result.as_dict()))
    assert set(told["parameters"]) == set(TRUTH)
    assert told["objective"] == result.objective
    assert (told["n_resamples"], told["seed"], told["n_runs"]) == (40, 5, 120)
    text = str(result)
    for name, value in told["parameters"].items():
        assert f"{name:8}{value:12.6g}" in text
    for part in ("status converged", "40 resamples, seed 5", "120 runs", f"{result.objective:.10g}"):
        assert part in text
