"""Frozen hardware: paces whose answer is known, shares, seeds, and refusals."""

import math
from pathlib import Path

import numpy as np
import pytest

from cegain.common import mixture
from cegain.gain import evidence
from cegain.tables import published_gains
from cegain.views import scenario
from cegain.views.scenario import CLASSES, GROWING, LITERATURE, REGISTRY, Assumptions, Member
from tests.estimator.calls import Calls

SCENARIO = Calls("scenario")
NONE = published_gains.Evidence((), "", ())
CERTAIN = {"dependent": 0.2, "independent": 0.7, "fading": 0.1}


def member(name: str, gain: float, classes: dict[str, float] = CERTAIN, decades: float = 0.0) -> Member:
    return Member(name, mixture.point(math.log(gain)), classes, decades)


def of(*members: Member, **assumed: object) -> scenario.Scenario:
    settings = {"freeze": 1e26, "years": 4, "pace": REGISTRY, "interaction_sd": 0.0, **assumed}
    return scenario.run(NONE, Assumptions(**settings), members)  # type: ignore[arg-type]


def test_one_kind_of_algorithm_is_a_poisson_process() -> None:
    """2 a year of gain e: after 4 years ln gain is Poisson(8), of which the quantiles are known."""
    from scipy.stats import poisson

    found = of(member("rope", math.e), per_year=2.0)
    for year in found.years:
        law = poisson(2.0 * year.year)
        assert math.log(year.median / 1e26) == pytest.approx(law.ppf(0.5), abs=1e-6)
        assert math.log(year.interval_90[0] / 1e26) == pytest.approx(law.ppf(0.05), abs=1e-6)
        assert math.log(year.interval_90[1] / 1e26) == pytest.approx(law.ppf(0.95), abs=1e-6)
    assert found.shares == pytest.approx(CERTAIN)
    assert found.no_scale == pytest.approx(0.8)
    assert found.status == "ok"


def test_what_is_not_known_of_a_gain_does_not_average_out() -> None:
    """One gain per future: with ln gain normal about 0 and n arrivals, n times its quantiles; never below 0."""
    law = mixture.Mixture(np.array([1.0]), np.array([0.0]), np.array([1.0]))
    found = of(Member("rope", law, CERTAIN, 0.0), Member("muon", law, CERTAIN, 0.0), per_year=40.0, years=4)
    narrow = of(member("rope", math.e), per_year=40.0, years=4)
    assert found.years[-1].interval_90[0] < 1e26 * math.exp(10)
    assert math.log(found.years[-1].interval_90[1] / 1e26) > 160 * 1.2
    assert math.log(narrow.years[-1].interval_90[1] / narrow.years[-1].interval_90[0]) < 60


def test_a_band_past_all_numbers_is_refused() -> None:
    with pytest.raises(scenario.OutOfRangeError, match="the band stays below e\\^600 FLOP"):
        of(member("moe", math.exp(9.0)), per_year=40.0, years=4)


def test_the_registry_s_rate_is_that_of_everyone() -> None:
    everyone = [member(name, 2.0) for name in ("rope", "muon", "moe", "transformer")]
    assumed = Assumptions(freeze=1e26, years=4, pace=REGISTRY, interaction_sd=0.0)
    one = scenario.run(NONE, assumed, everyone[:1], everyone)
    assert one.rate_said == scenario.run(NONE, assumed, everyone).rate_said
    assert one.rate_said.startswith("0.56 algorithms a year (mean of what 4 leave possible)")  # 4.5 in 2017-2024


def test_what_does_not_help_is_not_adopted() -> None:
    found = of(member("rope", 0.5), per_year=3.0, interaction_sd=1.0)
    assert found.years[-1].interval_90 == pytest.approx((1e26, 1e26))
    assert found.shares == {}
    assert found.no_scale is None


def test_shares_sum_to_one_and_follow_the_gains() -> None:
    always = {name: dict.fromkeys(CLASSES, 0.0) | {name: 1.0} for name in CLASSES}
    found = of(
        member("moe", math.exp(6.0), always["dependent"]),
        member("rope", math.e, always["independent"]),
        member("muon", math.e, always["independent"]),
    )
    assert sum(found.shares.values()) == pytest.approx(1)
    assert found.shares["dependent"] == pytest.approx(0.75, abs=0.02)
    assert found.without is not None
    assert found.without[0] == "moe"
    assert found.without[1] == pytest.approx(0.75, abs=0.02)
    assert found.without[2] < found.years[-1].median
    shipped = scenario.run(evidence.load(), Assumptions(1e26, 3, REGISTRY), scenario.population(evidence.load(), 1e26))
    assert sum(shipped.shares.values()) == pytest.approx(1)
    assert shipped.status == "far_extrapolation"


def test_the_literature_s_pace_without_doubt_is_a_line() -> None:
    """8 months, half of it goes on: a doubling every 16 months."""
    found = of(pace=LITERATURE, halving_months=(8.0, 8.0), share=(0.5, 0.5))
    for year in found.years:
        assert year.median / 1e26 == pytest.approx(2 ** (12 * year.year / 16))
        assert year.interval_90 == pytest.approx((year.median, year.median))
    assert found.shares == pytest.approx({"independent": 0.5, GROWING: 0.5})
    assert found.status == "far_extrapolation"  # always: a pace is carried on
    assert found.other is None


def test_doubt_about_rate_and_kinds_widens() -> None:
    members = [member("rope", math.e), member("moe", math.exp(2.0))]
    given = of(*members, per_year=2.0, years=9)
    known = {m.name: m for m in members}
    assert set(known) == {m.name for m in given.members}
    own = of(*members, years=9)
    first, last = scenario.paper_years(members)
    assert own.rate_said.startswith(f"{2.5 / (last - first + 1):.2f} algorithms a year")
    same = of(*members, per_year=2 / (last - first + 1), years=9)
    assert np.ptp(np.log(own.years[-1].interval_90)) > np.ptp(np.log(same.years[-1].interval_90))


def test_a_stack_in_use_multiplies_the_start() -> None:
    tables = evidence.load()
    assumed = Assumptions(1e22, 1, LITERATURE, stack=("rope", "moe"))
    found = scenario.run(tables, assumed, [])
    from cegain import estimate

    answer = estimate("moe,rope", 1e22)
    assert answer.mean_median is not None
    assert found.years[0].median / 1e22 == pytest.approx(answer.mean_median, rel=0.03)


def test_the_same_question_has_the_same_digits_and_another_seed_others() -> None:
    first, again, other = (SCENARIO.answer("--freeze", "1e26", "--years", 2, "--seed", seed) for seed in (0, 0, 1))
    assert first == again
    assert first["years"][-1]["median"] != other["years"][-1]["median"]
    assert first["years"][-1]["median"] == pytest.approx(other["years"][-1]["median"], rel=0.3)


def test_the_command_says_what_it_assumes_and_draws(tmp_path: Path) -> None:
    picture = tmp_path / "frozen.svg"
    result = SCENARIO.call("--freeze", "1e26", "--pace", "literature", "-o", picture)
    assert result.exit_code == 0, result.output
    assert b"<svg" in picture.read_bytes()
    for part in ("status: far_extrapolation", "arXiv 2403.05812", "arXiv 2511.21622", "With --pace registry"):
        assert part in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120
    given = SCENARIO.call("--freeze", "1e26", "--pace", "literature", "--halving", "6:9", "--share", "0.5:1").stdout
    assert "arXiv 2403.05812" not in given
    assert "as given with --halving" in given


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), ("--freeze",)),
        (("--freeze", "x", "--years", "0", "--pace", "fast"), ("--freeze", "--years", "--pace")),
        (("--freeze", "1e26", "--pace", "-1", "--seed", "-1"), ("--pace", "--seed")),
        (("--freeze", "1e26", "--pace", "2", "--halving", "5:14"), ("--halving: it goes with --pace literature",)),
        (("--freeze", "1e26", "--pace", "literature", "--share", "2:1"), ("--share",)),
        (("--freeze", "1e26", "--from", "roope", "--stack", "zero"), ("--from", "Did you mean rope")),
        (("--freeze", "1e26", "--stack", "zero"), ("--stack", "zero")),
        (("--freeze", "1e26", "--pace", "10", "--years", "50"), ("--pace: at most 200 algorithms",)),
        (("--freeze", "1e26", "--halving", "0.1:0.1", "--years", "50"), ("--halving, --years: the band stays below",)),
        (("--freeze", "1e24,1e26", "-o", "x.txt", "--interaction", "9"), ("one budget", "--output", "--interaction")),
    ],
)
def test_bad_input_is_refused_all_at_once(words: tuple[str, ...], said: tuple[str, ...]) -> None:
    refusal = SCENARIO.refused(*words)
    for part in said:
        assert part in refusal
