import math
from typing import NamedTuple

import numpy as np
import pytest

from cegain.common import arrays
from cegain.common.arrays import Array
from cegain.ladders import forecast, frontier_ratio, ladder, reading, synthetic

SETTINGS = forecast.Settings(0.15, 0.6, 0.003, 0.5, (0.2, 0.8), (0.0, 0.5), 0.5, 0.2)


def arm(name: str, losses: list[float], start: float = 17.0, step: float = 0.5) -> ladder.Ladder:
    x: Array = (start + step * np.arange(len(losses), dtype=np.float64)) * arrays.LN10
    return ladder.build(name, np.zeros(len(losses)), x, np.log(losses))


def pair(truth: str = "fading", rungs: int = 8, noise: float = 0.002, seed: int = 0) -> synthetic.Truth:
    return synthetic.fixed(truth, rungs, noise, np.random.default_rng(seed))


def posterior(baseline: ladder.Ladder, treatment: ladder.Ladder) -> forecast.Posterior:
    reads = reading.read_gains(baseline, treatment)
    assert reads is not None
    return forecast.Posterior(baseline, treatment, reads, forecast.grid(SETTINGS))


def test_identical_arms_gain_exactly_one() -> None:
    truth = pair()
    found = forecast.forecast(truth.baseline, truth.baseline._replace(name="again"), [1e18, 1e25])
    assert found.status == "ok"
    for at in found.at:
        assert (at.median, at.interval_90, at.interval_50, at.last) == (1.0, (1.0, 1.0), (1.0, 1.0), 1.0)


def test_arms_that_tie_at_one_budget_are_no_ladders() -> None:
    one = arm("a", [3.0])
    assert forecast.forecast(one, one._replace(name="b"), [1e20], SETTINGS).status == "too_few"


def test_swapping_the_arms_flips_the_sign_at_every_midpoint() -> None:
    truth = pair()
    forth, back = posterior(truth.baseline, truth.treatment), posterior(truth.treatment, truth.baseline)
    assert forth.reads.y.tolist() == (-back.reads.y).tolist()
    assert forth.reads.m.tolist() == back.reads.m.tolist()
    for m in (17.2, 20.0, 23.0):
        a, b = forth.midpoint_mixture(m), back.midpoint_mixture(m)
        assert a.weights == pytest.approx(b.weights, abs=1e-9)
        assert a.means == pytest.approx(-b.means, abs=1e-8)
        assert a.sds == pytest.approx(b.sds, abs=1e-8)
        assert a.quantile(0.95) == pytest.approx(-b.quantile(0.05), abs=1e-8)


def test_a_doubling_is_found_and_carried_far() -> None:
    truth = pair("constant", 12, 0.0005)
    found = forecast.forecast(truth.baseline, truth.treatment, [1e20, 1e24], SETTINGS)
    near, far = found.at
    assert near.interval_90[0] < 2 < near.interval_90[1]
    assert near.median == pytest.approx(2, rel=0.05)
    assert far.interval_90[0] < 2 < far.interval_90[1]
    assert far.interval_90[1] / far.interval_90[0] > near.interval_90[1] / near.interval_90[0]
    assert found.label in ("independent", "undetermined")


def test_noise_of_the_loss_widens_the_interval() -> None:
    truth = pair(noise=0.0005)
    small, large = (
        forecast.forecast(truth.baseline, truth.treatment, [1e20], SETTINGS, loss_noise=s).at[0] for s in (5e-4, 2e-2)
    )
    width = [math.log(a.interval_90[1] / a.interval_90[0]) for a in (small, large)]
    assert width[1] > 2 * width[0]


def test_variogram_between_linear_and_constant() -> None:
    h = np.array([0.0, 0.5, 3.0])
    none, half, all_of_it = np.array(0.0), np.array(0.5), np.array(1.0)
    assert forecast.variogram(h, np.array(1e-9), none) == pytest.approx(h**2)  # a slope never forgotten: linear growth
    assert forecast.variogram(h, np.array(1.0), all_of_it) == pytest.approx(h**2)  # the same
    at_once = forecast.variogram(h, np.array(1e3), none)
    assert at_once == pytest.approx(2 * h / 1e3, rel=1e-2)  # a random walk
    assert forecast.variogram(h, np.array(1e3), half) == pytest.approx((h**2 + at_once) / 2)
    near, above = (
        forecast.variogram(np.array([1.0]), np.array([9.99e-4]), none),
        forecast.variogram(np.array([1.0]), np.array([1.001e-3]), none),
    )
    assert near == pytest.approx(above, rel=1e-5)


def test_rough_ladders_say_that_their_noise_is_large() -> None:
    noises = np.array([0.0005, 0.02])
    smooth = forecast.smoothness(pair(noise=0.0003).baseline, noises)
    rough = forecast.smoothness(pair(noise=0.02, seed=3).baseline, noises)
    assert smooth[0] > smooth[1]
    assert rough[1] > rough[0]


def test_refusals_say_why() -> None:
    long, short = arm("base", [4, 3.5, 3.1, 2.8]), arm("new", [4, 3.0])
    few = forecast.forecast(long, short, [1e20], SETTINGS)
    assert (few.status, few.at) == ("too_few", ())
    assert "new has 2" in few.reason
    apart = forecast.forecast(long, arm("new", [2.5, 2.4, 2.3, 2.2]), [1e20], SETTINGS)
    assert (apart.status, apart.at) == ("no_overlap", ())
    assert "2.8 to 4" in apart.reason


def test_far_few_and_long_steps_are_flagged() -> None:
    truth = pair("constant", 10)
    found = forecast.forecast(truth.baseline, truth.treatment, [1e21, 1e26], SETTINGS)
    assert [a.status for a in found.at] == ["ok", "far_extrapolation"]
    assert "decades past" in found.at[1].reason
    barely = forecast.forecast(arm("base", [4, 3.5, 3.1, 2.8]), arm("new", [3.0, 2.7, 2.5, 2.4]), [1e19], SETTINGS)
    assert barely.reads < forecast.FEW_READS
    assert barely.status == "far_extrapolation"


def test_short_noisy_ladders_are_not_ok() -> None:
    def status(rungs: int, noise: float, stated: float | None = None) -> str:
        truth = pair("constant", rungs, noise, seed=1)
        found = forecast.forecast(truth.baseline, truth.treatment, [10.0 ** truth.log10_flops[-1]], loss_noise=stated)
        return found.at[0].status

    assert [status(rungs, 0.0005) for rungs in (4, 5, 6)] == ["few_rungs", "ok", "ok"]
    assert [status(rungs, 0.0005, 0.0005) for rungs in (3, 4, 5)] == ["far_extrapolation", "ok", "ok"]
    assert [status(rungs, 0.0005, 0.003) for rungs in (4, 5)] == ["few_rungs", "ok"]
    assert [status(rungs, 0.0005, 0.006) for rungs in (5, 6)] == ["few_rungs", "ok"]  # what is stated counts
    assert [status(rungs, 0.0005, 0.009) for rungs in (9, 10)] == ["few_rungs", "ok"]
    assert status(4, 0.01) == "few_rungs"
    truth = pair("constant", 5, 0.0005, seed=1)
    seeds = truth.treatment._replace(repeats=np.full(5, 4.0)), truth.baseline._replace(repeats=np.full(5, 4.0))
    assert forecast.forecast(seeds[1], seeds[0], [1e19], loss_noise=0.006).status == "ok"  # 0.3% of their means


def test_a_growing_gain_is_not_forgotten() -> None:
    """Ten times beyond ladders that show growth as C^0.1, the middle of the answer has gone most of the way."""
    errors = []
    for seed in range(10):
        truth = pair("power-law", 8, 0.001, seed)
        top = float(truth.log10_flops[-1])
        found = forecast.forecast(truth.baseline, truth.treatment, [10 ** (top + 1)])
        errors.append(truth.gain(top + 1) - math.log(found.at[0].median))
    assert abs(np.mean(errors)) < 0.5 * 0.1 * arrays.LN10  # of 0.23 that it grows


def test_a_flattening_arm_is_flagged_beyond_its_reads() -> None:
    base = arm("base", [4, 3.6, 3.27, 3.0, 2.78, 2.6, 2.45])
    stuck = arm("stuck", [3.9, 3.5, 3.2, 3.03, 2.97, 2.955, 2.953])
    found = forecast.forecast(base, stuck, [1e18, 2e20])
    assert found.at[1].status == "far_extrapolation"
    assert "stuck flattens" in found.at[1].reason


def test_rough_ladders_are_wide_and_flagged() -> None:
    rng = np.random.default_rng(3)
    widths = []
    for size in (0.0, 0.05):
        losses = [
            np.exp(np.log([4, 3.6, 3.27, 3.0, 2.78, 2.6, 2.45, 2.32]) + size * rng.standard_normal(8)) for _ in "ab"
        ]
        found = forecast.forecast(arm("base", list(losses[0])), arm("new", list(losses[1] * 0.98)), [1e21])
        (at,) = found.at
        widths.append(math.log(at.interval_90[1] / at.interval_90[0]))
        assert ("rougher" in at.reason) == (size > 0)
    assert widths[1] > 3 * widths[0]
    assert at.status == "far_extrapolation"


def test_few_reads_are_wide() -> None:
    barely = forecast.forecast(arm("base", [4, 3.5, 3.1, 2.8]), arm("new", [3.0, 2.7, 2.5, 2.4]), [1e19], SETTINGS)
    low, high = barely.at[0].interval_90
    assert high / low > 1.5


def test_bad_questions_are_errors() -> None:
    truth = pair()
    for flops, noise in (([0.0], None), ([math.inf], None), ([math.nan], None), ([1e20], -1.0), ([1e20], math.nan)):
        with pytest.raises(ValueError, match="found"):
            forecast.forecast(truth.baseline, truth.treatment, flops, SETTINGS, noise)


def test_slope_classes_and_floors() -> None:
    truth = pair("power-law", 12, 0.0005)
    found = forecast.forecast(truth.baseline, truth.treatment, [1e20], SETTINGS)
    assert found.classes is not None
    assert sum(found.classes.values()) == pytest.approx(1)
    assert found.classes["dependent"] > found.classes["fading"]
    floors = frontier_ratio.floor_sensitivity(truth.baseline, truth.treatment, [1e20])
    assert floors["free"][0] == pytest.approx(math.exp(truth.gain(20.0)), rel=0.1)
    assert set(floors) == {"zero", "shared", "free"}


def test_shipped_settings_cover_the_four_sets() -> None:
    default = forecast.load_settings()
    assert default.tau > 0
    for name in ("porian", "routing", "gadre", "olmo"):
        assert forecast.load_settings(without=name).kappas == default.kappas
    with pytest.raises(ValueError, match="There are: "):
        forecast.load_settings(without="no such set")


BAND_HALF = 1.6448536269514722
CELLS = [(rungs, noise) for rungs in (5, 8, 12) for noise in (0.002, 0.01)]


class Held(NamedTuple):
    """Share of truths inside the 90% interval, and median widths (ln) of the interval and of the rule's band."""

    inside: float
    width: float
    band: float


def held(truths: list[synthetic.Truth], settings: forecast.Settings, noise: float) -> list[Held]:
    """At the top rung, and ten times beyond it."""
    rows: list[list[tuple[bool, float, float]]] = [[], []]
    for truth in truths:
        reads = reading.read_gains(truth.baseline, truth.treatment, noise)
        assert reads is not None
        found = forecast.Posterior(truth.baseline, truth.treatment, reads, forecast.grid(settings, noise))
        for at, beyond in zip(rows, (0.0, 1.0), strict=True):
            x = float(truth.log10_flops[-1]) + beyond
            low, high = found.mixture(x).central(0.9)
            band = 2 * BAND_HALF * forecast.last_gain(reads, settings, x)[1]
            at.append((low < truth.gain(x) < high, high - low, band))
    return [
        Held(float(np.mean([r[0] for r in at])), *map(float, np.median([r[1:] for r in at], axis=0))) for at in rows
    ]


def usable(truth: synthetic.Truth) -> bool:
    if min(len(truth.baseline.x), len(truth.treatment.x)) < forecast.MIN_RUNGS:
        return False
    return reading.read_gains(truth.baseline, truth.treatment) is not None


def show(name: str, cells: list[Held]) -> float:
    """The table of docs/ladders.md, with `pytest -s`; the mean coverage."""
    shares = [cell.inside for cell in cells]
    widths = " ".join(f"{math.exp(cell.width):.1f}x/{math.exp(cell.band):.1f}x" for cell in cells)
    covered = f"{100 * np.mean(shares):.1f}% ({100 * min(shares):.1f}-{100 * max(shares):.1f}%)"
    print(f"{name}: {covered}, widths ours/band {widths}")
    return float(np.mean(shares))


@pytest.mark.slow
def test_intervals_hold_for_truths_from_the_prior() -> None:
    settings, cells = forecast.load_settings(), []
    for rungs, noise in CELLS:
        rng = np.random.default_rng(101)
        truths = [t for _ in range(1000) if usable(t := synthetic.drawn(settings, rungs, noise, rng))]
        cells.append(held(truths, settings, noise))
    top, beyond = (list(part) for part in zip(*cells, strict=True))
    shown = [show("drawn, top rung", top), show("drawn, 10x beyond", beyond)]
    assert 0.87 <= np.mean(shown) <= 0.93
    assert all(0.84 <= cell.inside <= 0.96 for cell in top + beyond)
