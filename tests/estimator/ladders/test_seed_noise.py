"""Seed noise, what arms share of it, and the standard error of a gain read off a noisy curve."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pytest

from cegain.common.arrays import Array
from cegain.ladders import seed_noise
from cegain.ladders.ladder import Ladder
from tests.estimator.ladders.made_ladder import RUNGS, TALL, log_loss

SEEDS = dict.fromkeys(TALL, 3) | {RUNGS[0]: 5}
Rungs = dict[float, seed_noise.Noise]


def ladders(
    rng: np.random.Generator,
    gain: float,
    shared: float,
    noise: float = 0.004,
    others: int = 3,
    seeds: Mapping[float, int] = SEEDS,
) -> tuple[Ladder, Rungs]:
    """A baseline's ladder and the noise of all rungs; arm `t` of a gain, and others, at the lower rungs."""
    found: Rungs = {}
    for c in TALL:
        common = rng.standard_normal(seeds[c])
        arms = {"baseline": 1.0} | ({"t": gain} | {f"o{i}": 1.3 for i in range(others)} if c in RUNGS else {})
        losses = {}
        for arm, factor in arms.items():
            own = rng.standard_normal(seeds[c])
            errors = noise * (math.sqrt(shared) * common + math.sqrt(1 - shared) * own)
            losses[arm] = {str(s): float(log_loss(math.log(c * factor)) + e) for s, e in enumerate(errors)}
        found[c] = seed_noise.noise(losses)
    means = [float(np.mean(list(found[c].losses["baseline"].values()))) for c in TALL]
    return curve(means), found


def curve(means: list[float]) -> Ladder:
    n = len(means)
    return Ladder("baseline", np.log(TALL[:n]), np.array(means), np.zeros(n), np.full(n, 3.0), n, ())


def read(base: Ladder, rungs: Rungs, at: float) -> seed_noise.Read:
    found = seed_noise.read(
        base, list(rungs.values()), ("t", "baseline"), math.log(at), rungs[at],
        seed_noise.correlation(list(rungs.values())),
    )  # fmt: skip
    assert found is not None
    return found


def test_noise_is_pooled_by_degrees_of_freedom() -> None:
    noise = seed_noise.noise({"a": {"0": 1.0, "1": 1.2}, "b": {"0": 0.0, "1": 0.1, "2": 0.2}, "lone": {"0": 5.0}})
    assert noise.arms["a"] == pytest.approx((0.02, 1))
    assert noise.arms["b"] == pytest.approx((0.01, 2))
    assert noise.arms["lone"].freedom == 0
    assert math.isnan(noise.arms["lone"].variance)
    assert noise.pooled.variance == pytest.approx((0.02 + 2 * 0.01) / 3)
    # The common seeds 0 and 1 of a and b differ by 0.2 and 0.1: b's third seed takes no part.
    assert noise.difference("a", "b") == pytest.approx((0.005, 1))
    assert seed_noise.noise({"a": {"0": 1.0}}).pooled.freedom == 0


@pytest.mark.parametrize("shared", [0.0, 0.6])
def test_many_seeds_tell_the_noise_and_what_arms_share(shared: float) -> None:
    rng = np.random.default_rng(1)
    _, rungs = ladders(rng, 1.0, shared, seeds=dict.fromkeys(TALL, 2000))
    noise = rungs[RUNGS[0]]
    assert noise.pooled.sd == pytest.approx(0.004, rel=0.03)
    assert noise.correlation == pytest.approx(shared, abs=0.05)
    assert noise.difference("t", "baseline").sd == pytest.approx(0.004 * math.sqrt(2 - 2 * shared), rel=0.05)
    # Five arms that move together are fewer witnesses than five.
    assert noise.pooled.freedom == pytest.approx(5 * 1999 / (1 + 4 * shared**2), rel=0.15)


def test_few_seeds_of_one_arm_are_drawn_towards_the_rung() -> None:
    calm = {str(s): x for s, x in enumerate((-1e-3, 0.0, 1e-3))}
    noise = seed_noise.noise({f"a{i}": {s: 4 * x for s, x in calm.items()} for i in range(4)} | {"calm": calm})
    own, rung = noise.arms["calm"], noise.pooled
    assert own.variance < noise.of_arm("calm").variance < rung.variance
    assert noise.of_arm("calm").freedom > own.freedom


def test_a_known_gain_is_read_without_noise() -> None:
    rng = np.random.default_rng(0)
    base, rungs = ladders(rng, 1.5, 0.5, noise=1e-9)
    for at in RUNGS:
        found = read(base, rungs, at)
        assert math.exp(found.log_gain) == pytest.approx(1.5, rel=0.005)
        assert found.se < 1e-6
        assert found.weights.sum() == pytest.approx(-found.slope, rel=0.01)


def test_pairing_helps_at_the_same_rung_and_nowhere_else() -> None:
    rng = np.random.default_rng(2)
    near, near_rungs = ladders(rng, 1.0 + 1e-6, 0.9, seeds=dict.fromkeys(TALL, 200))
    far, far_rungs = ladders(rng, 3.2, 0.9, seeds=dict.fromkeys(TALL, 200))
    at = RUNGS[1]
    single = near_rungs[at].pooled.sd * abs(read(near, near_rungs, at).slope) / math.sqrt(200)
    assert read(near, near_rungs, at).se == pytest.approx(single * math.sqrt(2 - 2 * 0.9), rel=0.25)
    single = far_rungs[at].pooled.sd * abs(read(far, far_rungs, at).slope) / math.sqrt(200)
    assert read(far, far_rungs, at).se == pytest.approx(single * math.sqrt(2), rel=0.15)


def test_one_seed_has_no_error() -> None:
    rng = np.random.default_rng(6)
    base, rungs = ladders(rng, 1.5, 0.5)
    alone = {arm: dict(list(seeds.items())[: 1 if arm == "t" else 3]) for arm, seeds in rungs[1e12].losses.items()}
    found = read(base, rungs | {1e12: seed_noise.noise(alone)}, 1e12)
    assert math.isnan(found.se)
    assert all(map(math.isnan, found.interval()))
    assert found.why == "t has one seed there"
    assert math.exp(found.log_gain) == pytest.approx(1.5, rel=0.2)


def test_a_lone_run_of_the_baseline_counts_where_the_gain_is_read() -> None:
    rng = np.random.default_rng(4)
    base, rungs = ladders(rng, 2.0, 0.5)
    lone = dict(list(rungs[1e13].losses["baseline"].items())[:1])
    rungs[1e13] = seed_noise.noise({"baseline": lone})
    assert read(base, rungs, 3e11).why == ""
    assert "baseline has one seed at 1e13 FLOP" in read(base, rungs, 3e12).why


@pytest.mark.parametrize("gain", [0.5, 200.0])
def test_a_loss_outside_the_curve_is_not_read(gain: float) -> None:
    base, rungs = ladders(np.random.default_rng(5), gain, 0.5)
    at = RUNGS[0]
    assert seed_noise.read(base, list(rungs.values()), ("t", "baseline"), math.log(at), rungs[at], 0.5) is None


def scatter(
    n: int, gain: float, shared: float, others: int, at: float, noise: float = 0.004
) -> tuple[float, float, float]:
    """Over n made-up ladders: stated error (root mean square) / sd of the gains; bias / sd; coverage of 90%."""
    rng = np.random.default_rng(20)
    found: list[tuple[float, float, bool]] = []
    for _ in range(n):
        base, rungs = ladders(rng, gain, shared, noise=noise, others=others)
        one = read(base, rungs, at)
        low, high = one.interval()
        found.append((one.log_gain, one.se, low < gain < high))
    gains, errors, inside = (np.array(part, dtype=float) for part in zip(*found, strict=True))
    sd = float(gains.std())
    stated: Array = np.sqrt((errors**2).mean())
    return float(stated) / sd, float(gains.mean() - math.log(gain)) / sd, float(inside.mean())


@pytest.mark.parametrize("gain", [1.1, 1.7, 3.33])
def test_stated_errors_are_the_scatter_of_made_up_ladders(gain: float) -> None:
    ratio, bias, inside = scatter(150, gain, 0.6, 2, RUNGS[1])
    assert 0.8 < ratio < 1.25
    assert abs(bias) < 0.35
    assert inside > 0.82


@pytest.mark.parametrize(("gain", "shared"), [(1.2, 0.9), (2.5, 0.6)])
def test_the_error_of_a_difference_counts_what_readings_share(gain: float, shared: float) -> None:
    """A treatment less another of gain 1.3 at one rung: its stated error is the scatter over made-up ladders."""
    rng = np.random.default_rng(3)
    at, found = RUNGS[1], []
    for _ in range(100):
        base, rungs = ladders(rng, gain, shared, others=2)
        noises, r = list(rungs.values()), seed_noise.correlation(list(rungs.values()))
        reads = [seed_noise.read(base, noises, (arm, "baseline"), math.log(at), rungs[at], r) for arm in ("t", "o0")]
        terms = [(f, arm, one) for f, arm, one in zip((1.0, -1.0), ("t", "o0"), reads, strict=True) if one is not None]
        assert len(terms) == 2
        value = terms[0][2].log_gain - terms[1][2].log_gain
        found.append((value, seed_noise.combined_error(terms, noises, "baseline", rungs[at], r)))
    values, errors = np.array(found).T
    assert math.sqrt((errors**2).mean()) == pytest.approx(values.std(), rel=0.25)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("gain", "shared", "others"),
    [(1.1, 0.0, 7), (1.1, 0.6, 0), (1.1, 0.9, 7), (1.7, 0.6, 7), (1.7, 0.9, 0), (3.33, 0.6, 0), (5.5, 0.9, 7)],
)
def test_stated_errors_are_the_scatter_of_a_thousand_ladders(gain: float, shared: float, others: int) -> None:
    for at in RUNGS[1:]:  # at the lowest a gain near 1 may leave the curve
        ratio, bias, inside = scatter(1000, gain, shared, others, at)
        print(f"{gain=} {shared=} {others=} {at=:.0e}: se/sd {ratio:.2f}, bias/sd {bias:+.2f}, 90% holds {inside:.0%}")
        assert 0.8 < ratio < 1.2
        assert abs(bias) < 0.3
        assert 0.84 < inside < 0.96
