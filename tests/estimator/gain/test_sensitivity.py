"""What an answer rests on: influence, the answer without proposers, and the answer if gains were selected."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from cegain.gain import method, prior, sensitivity
from cegain.gain.evidence import load
from cegain.tables.published_gains import PublishedGain
from tests.estimator.gain.test_contrasts import published

ROPE = "learned_positions"


def row(study: str, basis: str = "measured", flops: float = 1e20, **cells: object) -> PublishedGain:
    stack = "bare" if study == "own bare ladder" else ""
    return published(study=study, basis=basis, flops=flops, stack=stack, **cells)


def prepared(rows: Sequence[PublishedGain], name: str = "rope", baseline: str = ROPE) -> method.Prepared:
    return method.prepare(rows, [name], [baseline], currency="flop", spread=prior.frozen())


def of(rows: Sequence[PublishedGain], flops: float = 1e20, given: Sequence[PublishedGain] = ()) -> dict[str, float]:
    (found,) = sensitivity.influences(prepared([*rows, *given]), [flops], frozenset(rows))
    return found


def test_one_kind_has_nearly_all_of_it_and_the_prior_the_rest() -> None:
    assert of([row("a"), row("b")]) == {"published measured": pytest.approx(0.97, abs=0.03)}


def test_equal_witnesses_pull_alike() -> None:
    found = of([row("a"), row("own bare ladder")], given=[row("c")])
    third = math.fsum(found.values()) / 3
    assert found == pytest.approx(
        {"given by --evidence": third, "own runs": third, "published measured": third}, rel=1e-6
    )


def test_a_surer_kind_pulls_more() -> None:
    found = of([row("a"), row("b", "claimed"), row("c", "derived"), row("d", "extrapolated")])
    order = ["published measured", "published derived", "published claimed", "published extrapolated"]
    assert list(found) == order


def test_influence_is_how_far_the_answer_moves() -> None:
    """With the scenarios' weights frozen, the mean of the curve is linear in every gain."""
    rows = [row("a", flops=1e18), row("b", "claimed", flops=1e19, ceg=2.0), row("c", flops=1e22, ceg=1.2)]
    asked = prepared(rows)
    (found,) = sensitivity.influences(asked, [1e24], None)
    weights = asked.curves[0].weights
    frozen = [0.0] * len(prior.SCENARIOS)
    for k, weight in zip(asked.curves[0].scenarios.tolist(), weights.tolist(), strict=True):
        frozen[k] = weight

    def centre(moved: float) -> float:
        changed = [r._replace(ceg=r.ceg * math.exp(moved)) if r.basis == "claimed" else r for r in rows]
        question = prepared(changed).questions[0]
        curve = method.fit_curve(question, prior.frozen(), prior.np.array(frozen), frozen=True)
        assert curve is not None
        return curve.mean(1e24).mean()

    assert (centre(0.5) - centre(0.0)) / 0.5 == pytest.approx(found["published claimed"], abs=1e-6)


def test_rows_move_an_answer_as_their_kind_does_together() -> None:
    tables = load()
    asked = method.prepare(tables.rows, ["moe"], ["dense"], currency="flop", spread=prior.frozen())
    one_by_one = sensitivity.row_influences(asked.questions[0], asked.curves[0], prior.frozen(), 1e24)
    (kinds,) = sensitivity.influences(asked, [1e24], None)
    assert one_by_one.sum() == pytest.approx(math.fsum(kinds.values()), abs=1e-9)


def test_readings_of_one_thing_pull_as_one() -> None:
    """However often they are told: in one contrast, or under other names of the treatment."""
    one = row("b", "derived")._replace(same_as="a law")
    told = [one, one._replace(note="again"), one._replace(treatment="t2"), one._replace(treatment="t3", flops=1e20)]
    assert of([row("a"), *told])["published derived"] == pytest.approx(
        of([row("a"), one])["published derived"], rel=1e-6
    )


def test_an_answer_by_construction_rests_on_no_rows() -> None:
    exact = method.prepare(
        load().rows, ["flash_attention"], ["materialised_attention"], currency="flop", spread=prior.frozen()
    )
    assert sensitivity.influences(exact, [1e20], None) == [{}]


def test_long_tables_get_no_influence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "MAX_ROWS", 2)
    assert of([row("a"), row("own bare ladder"), row("c")]) == {}


def test_without_its_proposers_an_answer_rests_on_the_others() -> None:
    others = [published(study=s, ceg=1.2) for s in "abc"]
    theirs = published(study="su_2021", ceg=3.0)
    (found,) = sensitivity.without_proposers([*others, theirs], prepared([*others, theirs]), [1e20], 0.9)
    assert found is not None
    assert found.median == pytest.approx(1.2, rel=0.02)
    assert sensitivity.without_proposers(others, prepared(others), [1e20], 0.9) == [None]
    assert sensitivity.without_proposers([theirs], prepared([theirs]), [1e20], 0.9) == [None]


def test_selection_lowers_gains_near_one_most() -> None:
    def lowered(gain: float) -> float:
        asked = prepared([published(study=s, ceg=gain) for s in "abcde"])
        (found,) = sensitivity.selected(asked, [1e20], 0.9)
        assert found is not None
        answer = method.evaluate(asked, 1e20, interval=0.9, thresholds=())
        assert answer.predictive is not None
        assert found.interval[0] < answer.predictive[0]
        assert found.interval[1] == pytest.approx(answer.predictive[1])
        return math.log((answer.median or 0) / found.median)

    assert lowered(1.1) > lowered(1.5) > lowered(5.0) > 0.1
    toys = [row("own bare ladder", flops=1e12)]
    assert sensitivity.selected(prepared(toys), [1e13], 0.9) == [None]
