"""The curve against one dense covariance matrix of all rows, how evidence fades with distance, and toys."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegain.common.arrays import Array
from cegain.gain import curve, study
from cegain.gain.curve import COVARIATE_SD, FADING, LEVEL_AT, LEVEL_SD, TAPER, posterior, without_toys
from cegain.gain.study import OTHER_BASELINE_SD, Rows, Spread

SPREAD = Spread(study_level=0.3, study_slope=0.06, contrast_level=0.2, slope_sd=0.1)
SCATTER = np.array([1.0, 0.4, 2.5, 1.0])
SLOPE = np.array([1.0, 3.0, 0.5, 2.0])
ONE = np.ones(1)

# Rows per contrast, contrasts per study.
TREES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


def random_rows(tree: list[list[int]], seed: int, other_baselines: bool = True, covariates: int = 1) -> Rows:
    """Rows on the grid of places; lone studies have whole votes, as `contrasts` gives them."""
    rng = np.random.default_rng(seed)
    sizes = [n for of_study in tree for n in of_study]
    n, c = sum(sizes), len(sizes)
    fixes = rng.random(c) < 0.7 if other_baselines else np.ones(c, bool)
    of_study = [len(contrasts) for contrasts in tree for _ in contrasts]
    return Rows(
        y=rng.normal(0.5, 0.7, n),
        x=np.round(rng.uniform(-8, 6, n) * 50) / 50,
        variance=rng.uniform(0.03, 0.5, n) ** 2,
        contrast=np.cumsum([0, *sizes[:-1]]),
        study=np.cumsum([0, *(len(of_study) for of_study in tree[:-1])]),
        contrast_variance=rng.choice([0.0, 0.15, 0.4], c) ** 2,
        fixes_level=fixes,
        runs=rng.random(n) < 0.8,
        votes=np.where(np.array(of_study) > 1, rng.choice([1.0, 0.5], c), 1.0),
        covariates=rng.normal(0, 1, (n, covariates)),
        toy=np.zeros(len(tree), bool),
        bound=np.zeros(n, int),
    )


def effects(rows: Rows, scatter: float, slope: float) -> Array:
    """Covariance [n, n] of y about the curve: noise, contrast effects and study effects."""
    cov = np.diag(rows.variance)
    ends = [*rows.contrast[1:], len(rows.y)]
    for i, (start, end) in enumerate(zip(rows.contrast, ends, strict=True)):
        level = SPREAD.contrast_level**2 + rows.contrast_variance[i]
        cov[start:end, start:end] += level + (0.0 if rows.fixes_level[i] else OTHER_BASELINE_SD**2)
        cov[start:end, start:end] /= rows.votes[i]
    of = rows.contrast_of_row
    for first, last in zip(rows.study, [*rows.study[1:], len(rows.contrast)], strict=True):
        at = slice(rows.contrast[first], ends[last - 1])
        fixing = rows.fixes_level[of[at]]
        centre = rows.x[at][fixing].mean() if fixing.any() else rows.x[at].mean()
        tilt = (rows.x[at] - centre) * slope * SPREAD.study_slope
        cov[at, at] += (scatter * SPREAD.study_level) ** 2 + np.outer(tilt, tilt)
    return cov


def prior_covariance(a: Array, b: Array, slope: float) -> Array:
    """Of f at places a and b: the level, and the double integral of the slope's covariance, term by term."""

    def both(s: float, t: float) -> float:
        """Integral over 0..s and 0..t of exp(-FADING |u - v|)."""
        if s * t < 0:
            return -float(-np.expm1(-FADING * abs(s)) / FADING * (-np.expm1(-FADING * abs(t)) / FADING))
        s, t, k = abs(s), abs(t), FADING
        return (2 * k * min(s, t) + math.exp(-k * s) + math.exp(-k * t) - 1 - math.exp(-k * abs(s - t))) / k**2

    sd = slope * SPREAD.slope_sd
    level = (LEVEL_SD * max(1.0, slope)) ** 2
    return np.array([[level + sd**2 * both(s - LEVEL_AT, t - LEVEL_AT) for t in b] for s in a])


def dense(rows: Rows, x: Array, z: Array, scatter: float, slope: float) -> tuple[Array, Array, float]:
    """Posterior of f at x for covariates z, and the log likelihood, by conditioning on all rows at once."""
    own = np.broadcast_to(z, (len(x), len(z)))
    there = prior_covariance(rows.x, rows.x, slope) + COVARIATE_SD**2 * rows.covariates @ rows.covariates.T
    cross = prior_covariance(x, rows.x, slope) + COVARIATE_SD**2 * own @ rows.covariates.T
    total = effects(rows, scatter, slope) + there
    towards = np.linalg.solve(total, cross.T).T
    sign, log_determinant = np.linalg.slogdet(2 * np.pi * total)
    assert sign == 1
    fit = float(rows.y @ np.linalg.solve(total, rows.y))
    prior = prior_covariance(x, x, slope) + COVARIATE_SD**2 * own @ own.T
    return towards @ rows.y, prior - towards @ cross.T, -0.5 * (log_determinant + fit)


@given(TREES, SEEDS, st.booleans(), st.integers(0, 2))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_curve_is_the_dense_posterior(
    tree: list[list[int]], seed: int, other_baselines: bool, covariates: int
) -> None:
    rows = random_rows(tree, seed, other_baselines, covariates)
    x, z = np.array([-9.0, -2.5, 0.3, 4.0, 7.0]), np.linspace(-1, 1, covariates)
    found = posterior(rows, SPREAD, SCATTER, SLOPE)
    means, covariances = found.at(x, z)
    # Rounding of the dense reference itself: its matrix spans the variances of rows and of other baselines.
    tolerance = 2e-5 if not rows.fixes_level.all() else 1e-7
    for k, (scatter, slope) in enumerate(zip(SCATTER, SLOPE, strict=True)):
        mean, covariance, likelihood = dense(rows, x, z, scatter, slope)
        np.testing.assert_allclose(means[k], mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(covariances[k], covariance, rtol=tolerance, atol=tolerance)
        if (rows.votes == 1).all():
            assert found.log_likelihoods[k] == pytest.approx(likelihood, abs=1e-4, rel=1e-6)


@given(TREES, SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_readings_move_the_curve_as_their_weights_say(tree: list[list[int]], seed: int) -> None:
    rows = random_rows(tree, seed)
    z = np.array([0.4])
    weights = posterior(rows, SPREAD, SCATTER, SLOPE, np.eye(len(rows.y))).weights_at(1.2, z)
    means, _ = posterior(rows, SPREAD, SCATTER, SLOPE).at(np.array([1.2]), z)
    np.testing.assert_allclose(weights @ rows.y, means[:, 0], rtol=1e-6, atol=1e-6)


def test_rows_that_are_kept_are_those_of_the_mask() -> None:
    rows = random_rows([[3, 2], [1, 2, 2], [4]], seed=6)
    kept = np.ones(len(rows.y), bool)
    kept[[3, 4, 5, 7]] = False  # a contrast, a row that is all of another, and half of a third
    found = study.keep_rows(rows, kept)
    assert list(found.contrast) == [0, 3, 4, 6]
    assert list(found.study) == [0, 1, 3]
    np.testing.assert_array_equal(found.y, rows.y[kept])
    np.testing.assert_array_equal(found.votes, rows.votes[[0, 3, 4, 5]])


def one_study(places: list[float], slope: float = 0.0) -> Rows:
    x = np.array(places)
    n = len(x)
    return Rows(
        0.5 + slope * x, x, np.full(n, 0.01), np.array([0]), np.array([0]), np.zeros(1), np.ones(1, bool),
        np.ones(n, bool), np.ones(1), np.zeros((n, 0)), np.zeros(1, bool), np.zeros(n, int),
    )  # fmt: skip


def test_past_the_evidence_growth_levels_off_and_doubt_grows() -> None:
    found = posterior(one_study([0.0, 1.0, 2.0], 0.3), SPREAD, ONE, np.array([3.0]))
    x = 2.0 + np.array([0.0, 1.0, 3.0, 8.0, 20.0])
    means, covariances = found.at(x, np.zeros(0))
    grown = np.diff(means[0])
    assert (grown > 0).all()
    # What is left of a slope s d decades on is s (1 - exp(-FADING d)) / FADING, but for the level's prior.
    assert grown[0] / (means[0, 3] - means[0, 0]) == pytest.approx(
        float(curve.carried(1.0) / curve.carried(8.0)), abs=0.05
    )
    assert grown[-1] < 0.1 * grown[:3].sum()
    assert (np.diff(np.diag(covariances[0])) > 0).all()


def test_a_hole_in_the_evidence_is_less_sure_than_its_edges() -> None:
    rows = one_study([-8.0, 0.0])._replace(
        contrast=np.arange(2), study=np.arange(2), contrast_variance=np.zeros(2), fixes_level=np.ones(2, bool),
        votes=np.ones(2), toy=np.zeros(2, bool),
    )  # fmt: skip
    _, covariances = posterior(rows, SPREAD, ONE, 2 * ONE).at(np.array([-8.0, -6.0, -4.0, -2.0, 0.0]), np.zeros(0))
    sds = np.sqrt(np.diag(covariances[0]))
    assert sds[2] > 1.15 * max(sds[0], sds[-1])
    assert sds[0] < sds[1] < sds[2] > sds[3] > sds[4]


def test_long_tables_stand_on_a_coarser_grid() -> None:
    x = np.random.default_rng(0).uniform(-6, 6, 5000)
    places, cells = curve.cells_of(x)
    assert len(places) <= 150
    assert np.abs(places[cells] - x).max() <= 0.05 + 1e-9
    few = np.array([0.1234, 1.0])
    assert np.abs(curve.cells_of(few)[0] - few).max() <= 0.01


def test_toys_are_given_up_smoothly_between_four_and_six_decades() -> None:
    decades = np.linspace(2, 8, 601)
    weight = without_toys(decades)
    assert (weight[decades <= TAPER[0]] == 0).all()
    assert (weight[decades >= TAPER[1]] == 1).all()
    assert (np.diff(weight) >= 0).all()
    assert np.abs(np.diff(weight, 2)).max() < 1.5 * 0.01**2
