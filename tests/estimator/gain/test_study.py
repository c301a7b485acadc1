"""The tree of 2 x 2 messages against one dense covariance matrix of all rows."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegain.common.arrays import Array
from cegain.gain.study import LEVEL_SD, OTHER_BASELINE_SD, Lines, Messages, Rows, Spread, posterior, study_messages

SPREAD = Spread(
    study_level=0.3, study_slope=0.08, contrast_level=0.2, contrast_slope=0.03, slope_mean=0.02, slope_sd=0.1
)
SCATTER = np.array([1.0, 0.4, 2.5, 1.0])
SLOPE = np.array([1.0, 3.0, 0.5, 2.0])

# Rows per contrast, contrasts per study.
TREES = st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=4)
SEEDS = st.integers(0, 2**32 - 1)


class Dense(NamedTuple):
    mean: Array
    covariance: Array
    log_likelihood: float


def random_rows(tree: list[list[int]], seed: int, other_baselines: bool = True) -> Rows:
    rng = np.random.default_rng(seed)
    sizes = [n for study in tree for n in study]
    n, c = sum(sizes), len(sizes)
    fixes = rng.random(c) < 0.7 if other_baselines else np.ones(c, bool)
    return Rows(
        y=rng.normal(0.5, 0.7, n),
        x=rng.uniform(-5, 6, n),
        variance=rng.uniform(0.03, 0.5, n) ** 2,
        contrast=np.cumsum([0, *sizes[:-1]]),
        study=np.cumsum([0, *(len(study) for study in tree[:-1])]),
        contrast_variance=rng.choice([0.0, 0.15, 0.4], c) ** 2,
        fixes_level=fixes,
        runs=np.ones(n, bool),
        votes=np.ones(c),
    )


def fit_lines(rows: Rows, spread: Spread, scatter: Array, slope: Array) -> Lines:
    """The line that all studies share if they stand at one place."""
    said = study_messages(rows, spread, scatter, slope)
    total = Messages(said.precision.sum(1), said.score.sum(1), said.constant.sum(1))
    return posterior(total, spread.slope_mean, slope * spread.slope_sd)


def covariance_of_gains(rows: Rows, spread: Spread, scatter: float, slope: float) -> Array:
    """Covariance [n, n] of y about the algorithm's line: noise, contrast effects and study effects.

    Effects tilt about the centre of mass of the information below them.
    """
    n, c = len(rows.y), len(rows.contrast)
    design = np.stack([np.ones(n), rows.x], axis=1)
    cov = np.diag(rows.variance)

    def add_effect(at: slice, level: float, tilt_variance: float) -> None:
        inner = design[at]
        information = inner.T @ np.linalg.solve(cov[at, at], inner)
        tilt = rows.x[at] - information[0, 1] / information[0, 0]
        cov[at, at] += level + tilt_variance * np.outer(tilt, tilt)

    contrast_ends = [*rows.contrast[1:], n]
    for i, (start, end) in enumerate(zip(rows.contrast, contrast_ends, strict=True)):
        level = (scatter * spread.contrast_level) ** 2 + rows.contrast_variance[i]
        level += 0.0 if rows.fixes_level[i] else OTHER_BASELINE_SD**2
        add_effect(slice(start, end), level, (slope * spread.contrast_slope) ** 2)
        cov[start:end, start:end] /= rows.votes[i]
    for first, last in zip(rows.study, [*rows.study[1:], c], strict=True):
        at = slice(rows.contrast[first], contrast_ends[last - 1])
        add_effect(at, (scatter * spread.study_level) ** 2, (slope * spread.study_slope) ** 2)
    return cov


def dense_line(rows: Rows, spread: Spread, scatter: float = 1.0, slope: float = 1.0) -> Dense:
    """Gaussian conditioning of (level, slope) on all rows at once."""
    design = np.stack([np.ones(len(rows.y)), rows.x], axis=1)
    prior_mean = np.array([0.0, spread.slope_mean])
    prior_cov = np.diag([LEVEL_SD**2, (slope * spread.slope_sd) ** 2])
    total = covariance_of_gains(rows, spread, scatter, slope) + design @ prior_cov @ design.T
    gain = np.linalg.solve(total, design @ prior_cov).T
    residual = rows.y - design @ prior_mean
    sign, log_determinant = np.linalg.slogdet(2 * np.pi * total)
    assert sign == 1
    return Dense(
        prior_mean + gain @ residual,
        prior_cov - gain @ design @ prior_cov,
        -0.5 * (log_determinant + float(residual @ np.linalg.solve(total, residual))),
    )


@given(TREES, SEEDS, st.booleans())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_lines_are_the_dense_posterior(tree: list[list[int]], seed: int, other_baselines: bool) -> None:
    rows = random_rows(tree, seed, other_baselines)
    lines = fit_lines(rows, SPREAD, SCATTER, SLOPE)
    # Rounding of the dense reference itself: its matrix spans the variances of rows and of other baselines.
    tolerance = 1e-6 if not rows.fixes_level.all() else 1e-8
    for k, (scatter, slope) in enumerate(zip(SCATTER, SLOPE, strict=True)):
        dense = dense_line(rows, SPREAD, scatter, slope)
        np.testing.assert_allclose(lines.means[k], dense.mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lines.covariances[k], dense.covariance, rtol=tolerance, atol=tolerance)
        assert lines.log_likelihoods[k] == pytest.approx(dense.log_likelihood, abs=tolerance, rel=tolerance)


def test_a_contrast_with_a_part_of_a_vote_has_that_part_of_its_information() -> None:
    rows = random_rows([[3, 2], [1, 2, 2], [4]], seed=6, other_baselines=False)
    rows = rows._replace(votes=np.array([1.0, 1.0, 0.5, 0.5, 1.0, 0.25]))
    lines, dense = fit_lines(rows, SPREAD, np.ones(1), np.ones(1)), dense_line(rows, SPREAD)
    np.testing.assert_allclose(lines.means[0], dense.mean, rtol=1e-8)
    np.testing.assert_allclose(lines.covariances[0], dense.covariance, rtol=1e-8)


def test_without_a_slope_prior_the_line_is_generalised_least_squares() -> None:
    rows = random_rows([[3, 2], [1], [4]], seed=1)
    spread = SPREAD._replace(slope_sd=np.inf, slope_mean=0.0)
    lines = fit_lines(rows, spread, np.ones(1), np.ones(1))
    design = np.stack([np.ones(len(rows.y)), rows.x], axis=1)
    weighted = np.linalg.solve(covariance_of_gains(rows, spread, 1.0, 1.0), design)
    covariance = np.linalg.inv(design.T @ weighted + np.diag([LEVEL_SD**-2.0, 0.0]))
    np.testing.assert_allclose(lines.covariances[0], covariance, rtol=1e-7)
    np.testing.assert_allclose(lines.means[0], covariance @ weighted.T @ rows.y, rtol=1e-7)


def test_rows_at_one_budget_fix_no_line_without_a_slope_prior() -> None:
    rows = random_rows([[2], [1]], seed=2, other_baselines=False)
    rows = rows._replace(x=np.zeros(3))  # elsewhere the level's prior lends a slope of sd 10 / x
    lines = fit_lines(rows, SPREAD._replace(slope_sd=np.inf, slope_mean=0.0), np.ones(1), np.ones(1))
    assert np.isinf(lines.covariances).all()
    assert lines.log_likelihoods[0] == -np.inf


def test_a_lone_contrast_against_another_baseline_says_nothing_of_the_level() -> None:
    rows = random_rows([[3], [1]], seed=3, other_baselines=False)
    rows = rows._replace(fixes_level=np.array([True, False]))
    moved = rows._replace(y=rows.y + np.array([0.0, 0.0, 0.0, 2.0]))
    before, after = (fit_lines(r, SPREAD, np.ones(1), np.ones(1)).means[0] for r in (rows, moved))
    np.testing.assert_allclose(after, before, atol=1e-4)


def test_a_ladder_against_another_baseline_tells_the_slope_only() -> None:
    rows = random_rows([[1], [3]], seed=4, other_baselines=False)
    x = np.array([0.0, -2.0, 0.0, 2.0])  # the ladder is centred where the level is fixed
    rows = rows._replace(x=x, fixes_level=np.array([True, False]), variance=np.full(4, 0.01))
    steeper = rows._replace(y=rows.y + np.array([0.0, -1.0, 0.0, 1.0]))
    before, after = (fit_lines(r, SPREAD, np.ones(1), np.ones(1)).means[0] for r in (rows, steeper))
    assert after[0] == pytest.approx(before[0], abs=1e-3)
    assert after[1] > before[1] + 0.1


def test_each_scenario_has_the_line_it_would_have_alone() -> None:
    rows = random_rows([[2, 2], [3]], seed=5)
    together = fit_lines(rows, SPREAD, SCATTER, SLOPE)
    for k in range(len(SCATTER)):
        alone = fit_lines(rows, SPREAD, SCATTER[k : k + 1], SLOPE[k : k + 1])
        np.testing.assert_allclose(together.means[k], alone.means[0], rtol=1e-12)
        assert together.log_likelihoods[k] == pytest.approx(alone.log_likelihoods[0], rel=1e-12)
