"""The chain of studies against one dense covariance matrix of all rows, and how evidence fades with distance."""

import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cegain.common.arrays import Array
from cegain.gain.chain import CORE, FADING, WANDER_SD, joint, line_at_centre, link, row_weights, state
from cegain.gain.study import LEVEL_SD, X0, Rows
from tests.estimator.gain.test_study import SCATTER, SEEDS, SLOPE, SPREAD, TREES, covariance_of_gains, random_rows

ONE = np.ones(1)


class Place(NamedTuple):
    """A point, as seen from a question: its side of the core's point, decades from there, and the mean slope's growth
    and share up to it."""

    side: float
    t: float
    growth: float
    share: float


def spans(rows: Rows) -> list[tuple[float, float]]:
    """Ends of each study's runs that fix the level; else of its runs; else of its rows."""
    ends = []
    contrast_of = np.repeat(np.arange(len(rows.contrast)), np.diff(rows.contrast, append=len(rows.y)))
    study_of = np.repeat(np.arange(len(rows.study)), np.diff(rows.study, append=len(rows.contrast)))[contrast_of]
    for s in range(len(rows.study)):
        own = study_of == s
        choices = (own & rows.runs & rows.fixes_level[contrast_of], own & rows.runs, own)
        x = next(rows.x[mask] for mask in choices if mask.any())
        ends.append((float(x.min()), float(x.max())))
    return ends


def core(rows: Rows) -> tuple[float, float]:
    contrast_of = np.repeat(np.arange(len(rows.contrast)), np.diff(rows.contrast, append=len(rows.y)))
    fixing = rows.fixes_level[contrast_of]
    x = next(rows.x[mask] for mask in (fixing & rows.runs, fixing, fixing | ~fixing) if mask.any())
    low, high = CORE[0] - X0, CORE[1] - X0
    inside = x[(x >= low) & (x <= high)]
    if not len(inside):
        inside = x[np.argmin(np.maximum(low - x, x - high))][None]
    return float(inside.min()), float(inside.max())


def place(x: float, start: float, ends: tuple[float, float]) -> Place:
    t = abs(x - start)
    length = ends[1] - start if x > start else start - ends[0]
    beyond = max(0.0, t - length)
    return Place(math.copysign(1, x - start), t, t - beyond + growth_of(beyond), math.exp(-FADING * beyond))


def growth_of(decades: float) -> float:
    return (1 - math.exp(-FADING * decades)) / FADING


def wander(a: Place, b: Place) -> Array:
    """Covariance [2, 2] of (f, slope) at a with those at b, from w alone: integrals of its covariance
    exp(-FADING |u - v|) - exp(-FADING (u + v)) over 0..a.t and 0..b.t."""
    if a.side != b.side:
        return np.zeros((2, 2))
    k, s, t = FADING, a.t, b.t
    both = (2 * k * min(s, t) + math.exp(-k * s) + math.exp(-k * t) - 1 - math.exp(-k * abs(s - t))) / k**2

    def mixed(up_to: float, at: float) -> float:
        inner = min(up_to, at)
        before = (math.exp(-k * (at - inner)) - math.exp(-k * at)) / k
        after = growth_of(up_to - at) if up_to > at else 0.0
        return before + after - math.exp(-k * at) * growth_of(up_to)

    ff = both - growth_of(s) * growth_of(t)
    ww = math.exp(-k * abs(s - t)) - math.exp(-k * (s + t))
    return WANDER_SD**2 * np.array([[ff, a.side * mixed(s, t)], [a.side * mixed(t, s), ww]])


def dense(rows: Rows, x: float, scatter: float, slope: float) -> tuple[Array, Array, float]:
    """Posterior mean and covariance of (f, slope) at x, and the log likelihood, by conditioning on all rows at once."""
    ends = core(rows)
    return dense_from(rows, min(max(x, ends[0]), ends[1]), x, [x], scatter, slope)


def dense_from(
    rows: Rows, start: float, speak: float, xs: list[float], scatter: float, slope: float
) -> tuple[Array, Array, float]:
    """The same at several places, with w counted from `start` and studies speaking at their points nearest `speak`."""
    ends = core(rows)
    standing = [min(max(speak, low), high) for low, high in spans(rows)]
    places = [place(q, start, ends) for q in [*standing, *xs]]
    # (f, slope) of every place from (f, b) at the start, and the covariance that w adds.
    from_start = np.array([[[1.0, p.side * p.growth], [0.0, p.share]] for p in places])
    prior_mean = np.array([0.0, SPREAD.slope_mean])
    prior_cov = np.diag([LEVEL_SD**2, (slope * SPREAD.slope_sd) ** 2])
    n = len(places)
    prior_joint = np.zeros((2 * n, 2 * n))
    for i in range(n):
        for j in range(n):
            there = from_start[i] @ prior_cov @ from_start[j].T + wander(places[i], places[j])
            prior_joint[2 * i : 2 * i + 2, 2 * j : 2 * j + 2] = there
    means = (from_start @ prior_mean).ravel()
    counts = [rows.contrast[a] for a in rows.study]
    study_of = np.searchsorted(counts, np.arange(len(rows.y)), side="right") - 1
    design = np.zeros((len(rows.y), 2 * n))
    for i, s in enumerate(study_of):
        design[i, 2 * s : 2 * s + 2] = 1.0, rows.x[i] - standing[s]
    total = covariance_of_gains(rows, SPREAD, scatter, slope) + design @ prior_joint @ design.T
    residual = rows.y - design @ means
    asked = slice(-2 * len(xs), None)
    towards = np.linalg.solve(total, design @ prior_joint[:, asked]).T
    sign, log_determinant = np.linalg.slogdet(2 * np.pi * total)
    assert sign == 1
    return (
        means[asked] + towards @ residual,
        prior_joint[asked, asked] - towards @ design @ prior_joint[:, asked],
        -0.5 * (log_determinant + float(residual @ np.linalg.solve(total, residual))),
    )


def scattered_rows(tree: list[list[int]], seed: int, other_baselines: bool = True, width: float = 8.0) -> Rows:
    """Random rows on the grid of spans, some of them no runs."""
    rows = random_rows(tree, seed, other_baselines)
    rng = np.random.default_rng(seed + 1)
    n = len(rows.y)
    return rows._replace(x=np.round(rng.uniform(-width, width, n) * 50) / 50, runs=rng.random(n) < 0.8)


@given(TREES, SEEDS, st.floats(-9, 9), st.floats(-9, 9))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_two_places_are_the_dense_posterior(tree: list[list[int]], seed: int, x: float, other: float) -> None:
    rows = scattered_rows(tree, seed, other_baselines=False)
    chain = link(rows, SPREAD, SCATTER, SLOPE)
    means, covariances = joint(chain, x, other)
    for k, (scatter, slope) in enumerate(zip(SCATTER, SLOPE, strict=True)):
        mean, covariance, _ = dense_from(rows, chain.centre, chain.centre, [x, other], scatter, slope)
        np.testing.assert_allclose(means[k], mean[::2], rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(covariances[k], covariance[::2, ::2], rtol=1e-5, atol=1e-6)


def test_two_places_are_one_where_they_meet() -> None:
    rows = scattered_rows([[3, 2], [4]], 5, other_baselines=False)
    chain = link(rows, SPREAD, ONE, ONE)
    (at_centre,) = joint(chain, chain.centre, chain.centre)[1]
    np.testing.assert_allclose(at_centre, state(chain, chain.centre)[1][0, 0, 0], rtol=1e-9)


@given(TREES, SEEDS, st.booleans(), st.floats(-9, 9))
@settings(max_examples=60, deadline=None, derandomize=True)
def test_states_are_the_dense_posterior(tree: list[list[int]], seed: int, other_baselines: bool, x: float) -> None:
    rows = scattered_rows(tree, seed, other_baselines)
    chain = link(rows, SPREAD, SCATTER, SLOPE)
    means, covariances = state(chain, x)
    tolerance = 1e-5 if not rows.fixes_level.all() else 1e-7  # the dense reference's rounding
    for k, (scatter, slope) in enumerate(zip(SCATTER, SLOPE, strict=True)):
        mean, covariance, _ = dense(rows, x, scatter, slope)
        np.testing.assert_allclose(means[k], mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(covariances[k], covariance, rtol=tolerance, atol=tolerance)


@given(TREES, SEEDS, st.booleans())
@settings(max_examples=30, deadline=None, derandomize=True)
def test_the_line_at_the_centre_and_its_likelihood_are_the_dense_ones(
    tree: list[list[int]], seed: int, other_baselines: bool
) -> None:
    rows = scattered_rows(tree, seed, other_baselines)
    chain = link(rows, SPREAD, SCATTER, SLOPE)
    lines = line_at_centre(chain)
    low, high = core(rows)
    assert chain.centre == pytest.approx(min(max(22 - X0, low), high), abs=1e-12)
    tolerance = 1e-5 if not rows.fixes_level.all() else 1e-7
    for k, (scatter, slope) in enumerate(zip(SCATTER, SLOPE, strict=True)):
        mean, covariance, likelihood = dense(rows, chain.centre, scatter, slope)
        np.testing.assert_allclose(lines.means[k], mean, rtol=tolerance, atol=tolerance)
        np.testing.assert_allclose(lines.covariances[k], covariance, rtol=tolerance, atol=tolerance)
        assert lines.log_likelihoods[k] == pytest.approx(likelihood, abs=tolerance, rel=tolerance)


@given(TREES, SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_row_weights_are_the_derivative_of_the_estimate(tree: list[list[int]], seed: int) -> None:
    rows = scattered_rows(tree, seed)
    weights = row_weights(rows, SPREAD)
    ends = link(rows, SPREAD, ONE, ONE).core

    def level(y: Array) -> float:
        means, _ = state(link(rows._replace(y=y), SPREAD, ONE, ONE), (ends[0] + ends[1]) / 2)
        return float(means[0, 0])

    base = level(rows.y)
    for i in range(len(rows.y)):  # the estimate is linear in y, so a large step costs nothing but rounding
        assert weights[i] == pytest.approx(level(rows.y + np.eye(len(rows.y))[i]) - base, abs=1e-7)


@given(TREES, SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_row_weights_sum_to_one(tree: list[list[int]], seed: int) -> None:
    """A shift of every gain shifts the estimate as much, but for the share of the level's prior precision."""
    rows = scattered_rows(tree, seed, other_baselines=False)
    chain = link(rows, SPREAD, ONE, ONE)
    _, covariances = state(chain, (chain.core[0] + chain.core[1]) / 2)
    missing = 1.0 - row_weights(rows, SPREAD).sum()
    assert missing == pytest.approx(covariances[0, 0, 0] / LEVEL_SD**2, abs=1e-9)


@given(TREES, SEEDS)
@settings(max_examples=20, deadline=None, derandomize=True)
def test_the_curve_has_no_jumps(tree: list[list[int]], seed: int) -> None:
    """Nor where a question passes the end of a study's runs, or of the core."""
    rows = scattered_rows(tree, seed)
    chain = link(rows, SPREAD, ONE, ONE)
    for end in sorted({*chain.low, *chain.high, *chain.core}):
        sides = [state(chain, float(end) + e) for e in (-1e-6, 1e-6)]
        np.testing.assert_allclose(sides[0][0][:, 0], sides[1][0][:, 0], atol=1e-4)
        np.testing.assert_allclose(sides[0][1][:, 0, 0], sides[1][1][:, 0, 0], rtol=1e-4)


def one_study(x: list[float]) -> Rows:
    n = len(x)
    first = np.zeros(1, int)
    y = 0.5 + 0.2 * np.array(x)
    return Rows(
        y, np.array(x), np.full(n, 0.01), first, first, np.zeros(1), np.ones(1, bool), np.ones(n, bool), np.ones(1)
    )


def test_past_the_evidence_growth_levels_off_and_doubt_grows() -> None:
    """One study inside the core: its line up to its end, then the integrated Ornstein-Uhlenbeck process."""
    chain = link(one_study([0.0, 1.0, 2.0]), SPREAD, ONE, ONE)
    edge, at_edge = state(chain, 2.0)
    np.testing.assert_allclose(line_at_centre(chain).means, edge)
    variances = [at_edge[0, 0, 0]]
    for d in (0.5, 1.0, 3.0, 10.0):
        mean, covariance = state(chain, 2.0 + d)
        c = growth_of(d)
        assert mean[0, 0] == pytest.approx(edge[0, 0] + c * edge[0, 1], abs=1e-12)
        free = 2 * (d - growth_of(d)) / FADING
        expected = np.array([1.0, c]) @ at_edge[0] @ np.array([1.0, c]) + WANDER_SD**2 * (free - c**2)
        assert covariance[0, 0, 0] == pytest.approx(expected, rel=1e-12)
        variances.append(covariance[0, 0, 0])
    assert variances == sorted(variances)


def test_studies_at_one_place_share_one_path() -> None:
    """However many stand at 1e12 FLOP, at 1e22 they are worth no more than what is left of one path."""
    first = np.arange(200)
    rows = Rows(
        np.full(200, 0.5), np.full(200, -8.0), np.full(200, 0.01), first, first, np.zeros(200),
        np.ones(200, bool), np.ones(200, bool), np.ones(200),
    )  # fmt: skip
    few = Rows(*(part[:1] for part in rows))
    for x in (-8.0, 2.0):
        variances = [state(link(r, SPREAD, ONE, ONE), x)[1][0, 0, 0] for r in (few, rows)]
        path = wander(*2 * [place(x, -8.0, (-8.0, -8.0))])[0, 0] if x > 0 else 0.0
        assert variances[1] > path
        assert variances[1] - path == pytest.approx((growth_of(x + 8) * SPREAD.slope_sd) ** 2, abs=0.002)
        assert variances[0] - variances[1] == pytest.approx(0.13 + 0.01, abs=0.002)
