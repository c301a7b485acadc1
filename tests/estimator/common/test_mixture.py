"""Mixtures of normals: quantiles, sums and their limits."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from cegain.common import mixture
from cegain.common.mixture import Mixture

PROBABILITIES = np.array([0.001, 0.025, 0.05, 0.25, 0.5, 0.75, 0.95, 0.975, 0.999])


@st.composite
def mixtures(draw: st.DrawFn, max_components: int = 25) -> Mixture:
    k = draw(st.integers(1, max_components))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return Mixture(rng.dirichlet(np.ones(k)), rng.normal(0, 2, k), np.exp(rng.uniform(-3, 2, k)))


def variance(m: Mixture) -> float:
    return float(m.weights @ (m.sds**2 + m.means**2) - m.mean() ** 2)


@given(mixtures())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_quantile_inverts_the_distribution_and_never_falls(m: Mixture) -> None:
    quantiles = [m.quantile(p) for p in PROBABILITIES]
    np.testing.assert_allclose([m.cdf(q) for q in quantiles], PROBABILITIES, atol=1e-9)
    assert np.all(np.diff(quantiles) > 0)


def test_one_component_is_the_normal() -> None:
    m = Mixture(np.ones(1), np.array([0.3]), np.array([2.0]))
    expected = norm(0.3, 2.0)
    np.testing.assert_allclose([m.quantile(p) for p in PROBABILITIES], expected.ppf(PROBABILITIES), atol=1e-10)
    np.testing.assert_allclose([m.cdf(v) for v in (-3.0, 0.3, 1.0)], expected.cdf([-3.0, 0.3, 1.0]), atol=1e-14)


@given(mixtures())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_central_intervals_are_nested(m: Mixture) -> None:
    ends = [m.central(content) for content in (0.1, 0.5, 0.8, 0.9, 0.95, 0.99)]
    for (low, high), (lower, higher) in itertools.pairwise(ends):
        assert lower < low <= high < higher


def test_point_has_all_its_probability_at_one_value() -> None:
    m = mixture.point(0.7)
    assert m.central(0.9) == (0.7, 0.7)
    assert (m.cdf(0.7 - 1e-9), m.cdf(0.7)) == (0.0, 1.0)


@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.01, 3)), min_size=1, max_size=6))
@settings(max_examples=30, deadline=None, derandomize=True)
def test_a_sum_of_normals_is_the_normal_of_the_sums(parts: list[tuple[float, float]]) -> None:
    result = mixture.total(Mixture(np.ones(1), np.array([m]), np.array([s])) for m, s in parts)
    assert result.means == pytest.approx(sum(m for m, _ in parts), abs=1e-12)
    assert result.sds == pytest.approx(np.sqrt(sum(s * s for _, s in parts)), rel=1e-12)


@given(st.lists(mixtures(), min_size=2, max_size=4))
@settings(max_examples=25, deadline=None, derandomize=True)
def test_a_sum_keeps_mean_and_variance_whatever_is_merged(parts: list[Mixture]) -> None:
    result = mixture.total(parts)
    assert len(result.weights) <= 25
    assert result.weights.sum() == pytest.approx(1.0, abs=1e-12)
    assert result.mean() == pytest.approx(sum(m.mean() for m in parts), abs=1e-9)
    assert variance(result) == pytest.approx(sum(variance(m) for m in parts), rel=1e-9)


def test_sum_shift_and_widening_against_draws() -> None:
    """Means of the components differ little, as those of one algorithm's scenarios do."""
    rng = np.random.default_rng(7)
    parts = [Mixture(rng.dirichlet(np.ones(25)), rng.normal(1, 0.1, 25), rng.uniform(0.1, 0.8, 25)) for _ in "abc"]
    draws = np.full(400_000, 0.4) + rng.normal(0, 0.3, 400_000)
    for m in parts:
        chosen = rng.choice(25, size=400_000, p=m.weights)
        draws += rng.normal(m.means[chosen], m.sds[chosen])
    result = mixture.total(parts).shifted(0.4).widened(0.3)
    # Four standard errors of a quantile of 400 000 draws, and 0.005 for the merging of components.
    tolerance = 0.005 + 4 * draws.std() * np.sqrt(0.05 * 0.95 / 400_000) / norm.pdf(norm.ppf(0.05))
    for p in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert result.quantile(p) == pytest.approx(float(np.quantile(draws, p)), abs=tolerance)


def test_a_sum_with_a_point_is_a_shift() -> None:
    m = Mixture(np.array([0.3, 0.7]), np.array([0.0, 1.0]), np.array([0.5, 1.0]))
    result = mixture.total([m, mixture.point(2.0)])
    np.testing.assert_array_equal(result.means, m.means + 2.0)
    np.testing.assert_allclose(result.sds, m.sds, rtol=1e-15)
