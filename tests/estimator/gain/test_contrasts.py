"""Which rows count for what: baselines, kinds of evidence, laws, studies, unknown compute."""

import math
from collections.abc import Iterable

import numpy as np
import pytest

from cegain.gain import contrasts, method, prior
from cegain.gain.answer import Estimate
from cegain.gain.study import X0, Rows, Spread
from cegain.tables.published_gains import PublishedGain

SPREAD = Spread(study_level=0.3, study_slope=0.08, contrast_level=0.2, slope_sd=0.1)


def published(**cells: object) -> PublishedGain:
    """A measured gain of RoPE, 1.5 at 1e20 FLOP, with some cells changed."""
    row = PublishedGain(
        algorithm="rope",
        treatment="RoPE",
        baseline="learned_positions",
        study="first",
        flops=1e20,
        flops_convention="useful",
        ceg=1.5,
        low=math.nan,
        high=math.nan,
        interval=math.nan,
        currency="flop",
        flop_factor=math.nan,
        basis="measured",
        source="synthetic",
        note="",
    )
    return row._replace(**cells)  # type: ignore[arg-type]


def ask(
    rows: Iterable[PublishedGain],
    flops: float = 1e20,
    *,
    names: tuple[str, ...] = ("rope",),
    baselines: tuple[str, ...] = ("learned_positions",),
    currency: str = "flop",
    interval: float = 0.9,
    spread: Spread = SPREAD,
    frozen: bool = True,
) -> Estimate:
    """An answer from `rows` and nothing else; `frozen`: whatever the rows say of how far studies scatter."""
    rows, fitted = list(rows), {}
    for name, baseline in zip(names, baselines, strict=True) if frozen else ():
        asked = contrasts.question(rows, name, baseline, currency)
        curve = method.fit_curve(asked, spread, prior.prior_weights(), frozen=True)
        if curve is not None:
            fitted[name, baseline, currency] = curve
    prepared = method.prepare(rows, names, baselines, currency=currency, spread=spread, fitted=fitted)
    return method.evaluate(prepared, flops, interval=interval, thresholds=())


def width(interval: tuple[float, float] | None) -> float:
    """Of an interval of gains, in ln."""
    assert interval is not None
    return math.log(interval[1] / interval[0])


def mean_width(rows: Iterable[PublishedGain], flops: float = 1e20) -> float:
    return width(ask(rows, flops).mean_interval)


def median(rows: Iterable[PublishedGain], flops: float = 1e20) -> float:
    value = ask(rows, flops).median
    assert value is not None
    return value


def arrays_of(*rows: PublishedGain, currency: str = "flop") -> Rows:
    arrays = contrasts.question(rows, "rope", "learned_positions", currency).rows
    assert arrays is not None
    return arrays


FIRST = [published(study=name, ceg=ceg) for name, ceg in (("a", 1.4), ("b", 1.5), ("c", 1.6))]


def test_rows_become_logs_in_contrasts_in_studies() -> None:
    rows = arrays_of(
        published(study="b", treatment="t2", ceg=3.0, flops=1e22),
        published(study="a", treatment="t1", ceg=2.0, flops=1e18),
        published(study="b", treatment="t1", ceg=1.0, flops=1e21),
        published(study="b", treatment="t2", ceg=4.0, flops=1e23),
        published(algorithm="muon", baseline="adamw"),
    )
    np.testing.assert_allclose(rows.y, np.log([2.0, 1.0, 3.0, 4.0]))
    np.testing.assert_allclose(rows.x, np.array([18, 21, 22, 23]) - X0)
    np.testing.assert_array_equal(rows.contrast, [0, 1, 2])
    np.testing.assert_array_equal(rows.study, [0, 1])


def test_the_noise_of_a_row_is_read_off_its_interval() -> None:
    wide = arrays_of(published(ceg=2.0, low=1.0, high=4.0, interval=0.9))
    assert math.sqrt(wide.variance[0]) == pytest.approx(math.log(4.0) / (2 * 1.6448536), rel=1e-6)
    narrow = arrays_of(published(ceg=2.0, low=1.99, high=2.01, interval=0.9))
    unstated = arrays_of(published(ceg=2.0, low=1.0, high=4.0))
    assert narrow.variance[0] == unstated.variance[0] == pytest.approx(contrasts.ROW_SD**2)


def test_a_row_with_a_wide_interval_moves_the_answer_less() -> None:
    sure = [*FIRST, published(study="d", ceg=4.0)]
    unsure = [*FIRST, published(study="d", ceg=4.0, low=1.0, high=16.0, interval=0.9)]
    assert median(FIRST) < median(unsure) < median(sure)


@pytest.mark.parametrize("basis", ["derived", "observational", "claimed", "extrapolated"])
def test_a_row_that_is_not_measured_moves_the_answer_less(basis: str) -> None:
    measured = median([*FIRST, published(study="d", ceg=4.0)])
    weaker = median([*FIRST, published(study="d", ceg=4.0, basis=basis)])
    assert median(FIRST) < weaker < 0.999 * measured


def test_a_measured_row_beside_an_unsure_one_of_the_same_contrast_keeps_its_weight() -> None:
    """Only rows off one law share their doubt; a claim does not taint what the study measured."""
    measured = published(study="d", ceg=4.0)
    claimed = published(study="d", ceg=4.0, basis="claimed")
    assert mean_width([*FIRST, measured, claimed]) <= mean_width([*FIRST, measured]) * (1 + 1e-9)


def test_rows_off_one_law_weigh_as_one() -> None:
    """n points of a fitted law fix its level no better than one; n measured points do, up to their contrast."""
    law = [published(study="d", ceg=2.0, basis="derived", note=str(i)) for i in range(50)]
    assert mean_width([*FIRST, *law]) == pytest.approx(mean_width([*FIRST, law[0]]), rel=1e-9)
    noisy = {"low": 1.0, "high": 4.0, "interval": 0.9}
    points = [published(study="d", ceg=1.5, note=str(i), **noisy) for i in range(50)]
    assert mean_width([*FIRST, *points]) < 0.97 * mean_width([*FIRST, points[0]])


KEYED = published(study="d", ceg=2.5, same_as="one ladder")
AGAIN = ({"note": "again"}, {"treatment": "RoPE, once more"}, {"treatment": "RoPE, read by another", "note": "again"})


@pytest.mark.parametrize("flops", [1e20, math.nan])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_copies_of_a_row_with_one_key_are_that_row(n: int, flops: float) -> None:
    """Of one contrast or of several, at a known budget or not."""
    row = KEYED._replace(flops=flops)
    once, copied = ([*FIRST, row], [*FIRST, row, *(row._replace(**cells) for cells in AGAIN[:n])])
    for budget in (1e18, 1e24):
        one, many = ask(once, budget), ask(copied, budget)
        for name in ("median", "mean_median", "growth_per_decade"):
            assert getattr(many, name) == pytest.approx(getattr(one, name), rel=1e-9)
        for name in ("predictive", "mean_interval", "growth_interval"):
            assert getattr(many, name) == pytest.approx(getattr(one, name), rel=1e-9)
    without = [r._replace(same_as="") for r in copied]
    assert mean_width(without) < (1 - 1e-6) * mean_width(once)


@pytest.mark.parametrize("budget", [1e17, 1e20, 1e23])
@pytest.mark.parametrize("basis", ["measured", "derived"])
def test_many_budgets_of_one_key_fix_the_level_no_better_than_one_reading_there(basis: str, budget: float) -> None:
    row = KEYED._replace(low=1.5, high=4.0, interval=0.9, basis=basis)
    ladder = [row._replace(flops=flops) for flops in (1e18, 1e19, 1e20, 1e21, 1e22)]
    there = mean_width([*FIRST, row._replace(flops=budget)], budget)
    assert mean_width([*FIRST, *ladder], budget) >= (1 - 1e-9) * there
    apart = [r._replace(same_as="") for r in ladder]
    if basis == "measured":
        assert mean_width([*FIRST, *apart]) < 0.985 * mean_width([*FIRST, *ladder])


def test_a_reading_less_sure_than_another_of_its_key_takes_nothing_from_it() -> None:
    claimed = KEYED._replace(basis="claimed", note="the abstract")
    assert mean_width([*FIRST, KEYED, claimed]) == pytest.approx(mean_width([*FIRST, KEYED]), rel=1e-9)


def test_readings_against_another_baseline_leave_those_that_set_the_level_their_vote() -> None:
    other = KEYED._replace(baseline="sinusoidal_positions")
    found = contrasts.question([*FIRST, KEYED, other], "rope", "learned_positions", "flop")
    assert found.rows is not None
    assert found.rows.votes.tolist() == [1.0] * 5


def test_a_law_and_its_extension_are_one_contrast() -> None:
    law = [published(study="d", ceg=2.0, basis="derived"), published(study="d", ceg=2.0, basis="extrapolated")]
    assert len(arrays_of(*law).contrast) == 1
    assert len(arrays_of(law[0], law[1]._replace(basis="measured")).contrast) == 2


@pytest.mark.parametrize("basis", ["derived", "observational"])
def test_a_law_with_many_points_narrows_less_than_as_many_studies(basis: str) -> None:
    law = [published(study="d", ceg=1.5, basis=basis, note=str(i)) for i in range(10)]
    studies = [published(study=f"d{i}", ceg=1.5) for i in range(10)]
    assert mean_width([*FIRST, *studies]) < 0.8 * mean_width([*FIRST, *law]) < mean_width(FIRST)


@pytest.mark.parametrize("treatments", [1, 10])
def test_ten_rows_of_one_study_narrow_the_mean_less_than_ten_studies(treatments: int) -> None:
    """The rows share their study's effect, whether they are one treatment or ten."""
    one = [published(study="d", treatment=f"t{i % treatments}", note=str(i)) for i in range(10)]
    ten = [row._replace(study=f"d{i}") for i, row in enumerate(one)]
    assert mean_width([*FIRST, *ten]) < 0.8 * mean_width([*FIRST, *one])


def test_a_contrast_with_another_baseline_never_moves_the_level() -> None:
    other = published(study="d", baseline="sinusoidal_positions", ceg=8.0)
    for row in (other, other._replace(study="a")):  # alone, and beside a row that counts
        before, after = ask(FIRST), ask([*FIRST, row])
        assert after.median == pytest.approx(before.median, rel=1e-3)
        assert width(after.mean_interval) == pytest.approx(width(before.mean_interval), rel=1e-2)
    alone = ask([other])
    assert alone.status == "no_evidence"
    assert "sinusoidal_positions" in alone.reason


def test_a_ladder_against_another_baseline_moves_the_slope() -> None:
    ladder = [
        published(study="d", baseline="sinusoidal_positions", flops=c, ceg=8.0 * (c / 1e20) ** 0.15)
        for c in (1e18, 1e19, 1e20, 1e21, 1e22)
    ]
    before, after = ask(FIRST), ask([*FIRST, *ladder])
    assert before.growth_per_decade is not None
    assert after.growth_per_decade is not None
    assert after.growth_per_decade > 1.05 * before.growth_per_decade
    assert after.median == pytest.approx(before.median, rel=1e-2)


def test_the_baseline_asked_about_decides_which_rows_set_the_level() -> None:
    rows = [*FIRST, published(study="d", baseline="sinusoidal_positions", ceg=8.0)]
    assert ask(rows, baselines=("sinusoidal_positions",)).median == pytest.approx(8.0, rel=0.12)


def test_a_row_of_unknown_compute_stands_among_the_others_and_counts_less() -> None:
    unknown = published(study="d", flops=math.nan, flops_convention="unknown", ceg=4.0)
    known = published(study="d", ceg=4.0)
    rows = arrays_of(published(study="b", flops=1e18), published(study="c", flops=1e20), unknown)
    assert rows.x[2] == 20 - X0
    assert rows.variance[2] == pytest.approx(contrasts.ROW_SD**2 + contrasts.UNKNOWN_FLOPS_SD**2)
    assert median(FIRST) < median([*FIRST, unknown]) < 0.999 * median([*FIRST, known])
    assert ask([*FIRST, unknown]).decades == 0.0


def test_evidence_of_unknown_compute_only_is_far_away() -> None:
    answer = ask([published(flops=math.nan, flops_convention="unknown")])
    assert answer.status == "far_extrapolation"
    assert answer.decades is not None
    assert math.isnan(answer.decades)
    assert answer.median is not None
    assert width(answer.predictive) > width(ask([published()]).predictive)


def test_every_row_of_the_algorithm_is_accounted_for() -> None:
    rows = [*FIRST, published(currency="time"), published(baseline="sinusoidal_positions")]
    found = contrasts.question(rows, "rope", "learned_positions", "flop")
    assert len(found.used) == len(rows)
    (unused,) = [u for u in found.used if u.contrast < 0]
    assert unused.row.currency == "time"
    assert "never turned into FLOP" in unused.why
    assert found.studies == ("a", "b", "c", "first")
