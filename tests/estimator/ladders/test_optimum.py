"""Exponents and tokens per parameter of the compute optimum, and losses of given models, against known laws."""

import math
from pathlib import Path

import numpy as np
import pytest

from cegain.common.arrays import Array
from cegain.ladders import fit_report, ladder, optimum, scaling_law

A, B, E, ALPHA, BETA = 482.01, 2085.43, 1.8172, 0.3478, 0.3658  # Besiroglu et al. 2024 (arXiv 2404.10102)
BUDGETS = (1e18, 1e19, 1e20, 1e21)


def best_size(flops: float) -> float:
    """N that minimises the law at 6 N D = C: Hoffmann et al. 2022, eq. 4."""
    g = (ALPHA * A / (BETA * B)) ** (1 / (ALPHA + BETA))
    return float(g * (flops / 6) ** (BETA / (ALPHA + BETA)))


def sweep(noise: float, rng: np.random.Generator) -> tuple[Array, Array, Array, Array]:
    """N, D, C and loss of nine sizes around the best one at each budget."""
    n = np.concatenate([best_size(c) * np.exp(np.linspace(-0.95, 1.05, 9)) for c in BUDGETS])
    c = np.repeat(BUDGETS, 9)
    d = c / (6 * n)
    return n, d, c, (E + A / n**ALPHA + B / d**BETA) * np.exp(noise * rng.standard_normal(len(n)))


def found(noise: float, seed: int, resamples: int = 200) -> optimum.Optimum:
    n, d, c, loss = sweep(noise, np.random.default_rng(seed))
    law = scaling_law.fit(scaling_law.Runs(loss=loss, N=n, D=d), resamples=resamples)
    return optimum.optimum(law, n, d, c, np.log(loss), BUDGETS)


def test_without_noise_both_ways_find_the_optimum() -> None:
    both = found(0.0, 0, resamples=0)
    assert both.six_nd
    assert both.of_law is not None
    assert both.of_minima is not None
    a = BETA / (ALPHA + BETA)
    assert float(both.of_law.a.value) == pytest.approx(a, abs=1e-4)
    assert float(both.of_law.b.value) == pytest.approx(1 - a, abs=1e-4)
    assert float(both.of_minima.a.value) == pytest.approx(a, abs=0.01)
    for of_law, of_parabola in zip(both.by_law, both.minima, strict=True):
        assert float(of_law.n_params.value) == pytest.approx(best_size(of_law.flops), rel=1e-3)
        assert float(of_parabola.n_params.value) == pytest.approx(best_size(of_parabola.flops), rel=0.1)
        assert float(of_law.n_params.value * of_law.tokens.value) == pytest.approx(of_law.flops / 6)


def held(draws: int) -> dict[str, float]:
    """How often 90% intervals hold the exponent, by law and by parabolas, and the loss of one model."""
    inside: dict[str, list[bool]] = {"law": [], "parabolas": []}
    for seed in range(draws):
        both = found(0.002, seed)
        for name, exponents in (("law", both.of_law), ("parabolas", both.of_minima)):
            assert exponents is not None
            inside[name].append(bool(exponents.a.low <= BETA / (ALPHA + BETA) <= exponents.a.high))
    return {name: float(np.mean(values)) for name, values in inside.items()}


def test_intervals_of_exponents_hold() -> None:
    shares = held(40)
    assert all(share >= 0.7 for share in shares.values()), shares


@pytest.mark.slow
def test_intervals_of_exponents_hold_as_often_as_they_say() -> None:
    shares = held(400)
    assert 0.84 <= shares["law"] <= 0.97, shares
    assert shares["parabolas"] >= 0.84, shares  # of four budgets, whose line has two degrees of freedom: 99%


def table(tmp_path: Path, seed: int = 0) -> ladder.RunTable:
    rows = zip(*sweep(0.002, np.random.default_rng(seed)), strict=True)
    path = tmp_path / "runs.csv"
    path.write_text("variant,N,D,C,loss\n" + "".join(f"a,{n:.6g},{d:.6g},{c:.6g},{x:.6g}\n" for n, d, c, x in rows))
    return ladder.read_runs(path)


def test_losses_of_given_models(tmp_path: Path) -> None:
    arm = fit_report.one_arm(table(tmp_path), "a", 200, 0)
    models = [fit_report.Model(1e9, 4e11), fit_report.Model(1e9, 1e17)]
    near, far = fit_report.of_models(arm, models)
    assert near["status"] == "ok"
    assert far["status"] == "far_extrapolation"
    # Neither size nor tokens is three decades past the runs, but their product, the compute, is.
    (dear,) = fit_report.of_models(arm, [fit_report.Model(2e12, 2e13)])
    assert dear["status"] == "far_extrapolation"
    truth = E + A / 1e9**ALPHA + B / 4e11**BETA
    low, high = near["loss_interval_90"]  # type: ignore[misc]
    assert low < near["loss"] < high
    assert near["loss"] == pytest.approx(truth, rel=0.02)
    text = fit_report.one_arm_text(arm, [], models)
    assert "N* ~ C^0.5" in text
    assert "tokens each" in text
    assert "decades past the runs" in text


def test_tables_without_tokens_have_no_optimum_and_say_so(tmp_path: Path) -> None:
    without = table(tmp_path)
    without = without._replace(D=np.full(len(without.N), math.nan))
    arm = fit_report.one_arm(without, "a", 50, 0)
    assert "compute-optimal" not in fit_report.one_arm_text(arm, [])
    (row,) = fit_report.of_models(arm, [fit_report.Model(1e9, 1e11)])
    assert (row["loss"], row["status"]) == (None, "no_law")
    assert fit_report.one_arm_document(arm)["compute_optimal"] == {
        "six_nd": False,
        "by_law": None,
        "by_parabolas": None,
    }


def test_compute_that_is_not_six_n_d_is_said(tmp_path: Path) -> None:
    runs = table(tmp_path)
    arm = fit_report.one_arm(runs._replace(C=runs.C * 1.3), "a", 0, 0)
    assert "not 6 N D" in fit_report.one_arm_text(arm, [])


def test_printed_errors_are_those_of_the_resamples() -> None:
    n, d, _, loss = sweep(0.002, np.random.default_rng(0))
    law = scaling_law.fit(scaling_law.Runs(loss=loss, N=n, D=d), resamples=400)
    for i, (name, error) in enumerate(law.errors.items()):
        assert error == pytest.approx(law.samples[:, i].std(), rel=0.15), name
