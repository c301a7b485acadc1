"""Stacks: the sum of the parts, widened where unknown, moved by measured combinations."""

import itertools
import math

import numpy as np
import pytest

import cegain as api
from cegain.common import mixture
from cegain.gain import combinations, contrasts, interaction, method, prior
from cegain.gain.answer import Estimate
from cegain.tables.published_gains import PublishedGain
from tests.estimator.gain.test_contrasts import SPREAD, ask, published, width

NORM, ROPE = ("layernorm", "no_norm"), ("rope", "learned_positions")
FLASH = ("flash_attention", "materialised_attention")


def rows_of(part: tuple[str, str], ceg: float, *studies: str) -> list[PublishedGain]:
    return [published(algorithm=part[0], baseline=part[1], study=s, ceg=ceg) for s in studies]


def together(*parts: tuple[str, str], ceg: float, study: str, **cells: object) -> PublishedGain:
    names, baselines = zip(*parts, strict=True)
    return published(algorithm="+".join(names), baseline="+".join(baselines), ceg=ceg, study=study, **cells)


def stack(rows: list[PublishedGain], *parts: tuple[str, str], currency: str = "flop") -> Estimate:
    names, baselines = zip(*sorted(parts), strict=True)
    return ask(rows, names=names, baselines=baselines, currency=currency)


def asked(*parts: tuple[str, str]) -> list[tuple[contrasts.QuestionRows, tuple[str, str]]]:
    return [(contrasts.question(SINGLES, *part, "flop"), part) for part in parts]


SINGLES = rows_of(NORM, 2.0, "a", "b", "c") + rows_of(ROPE, 1.5, "a", "b", "c")


def test_a_stack_with_one_inexact_member_is_that_member() -> None:
    alone, stacked = stack(SINGLES, ROPE), stack(SINGLES, ROPE, FLASH)
    for field in ("median", "predictive", "mean_interval", "growth_per_decade", "classes", "decades"):
        assert getattr(stacked, field) == pytest.approx(getattr(alone, field), rel=5e-3)  # a sum merges components


def test_an_unknown_interaction_widens_the_product_and_leaves_its_centre() -> None:
    answer = stack(SINGLES, NORM, ROPE)
    norm, rope = stack(SINGLES, NORM), stack(SINGLES, ROPE)
    assert answer.median == pytest.approx((norm.median or 0) * (rope.median or 0), rel=0.03)
    independent = math.hypot(width(norm.mean_interval), width(rope.mean_interval))
    assert width(answer.mean_interval) > 1.05 * independent
    fitted = [method.fit_curve(q, SPREAD, prior.prior_weights(), frozen=True) for q, pair in asked(NORM, ROPE)]
    low, high = mixture.total(c.predictive(1e20) for c in fitted if c).central(0.9)
    assert width(answer.predictive) > 1.01 * (high - low)
    assert answer.interaction is not None
    assert answer.interaction.unmeasured == ((NORM, ROPE),)
    assert "No study measured together and apart: layernorm + rope." in str(answer)


def test_a_measured_combination_moves_the_stack_towards_it_and_narrows_it() -> None:
    product = stack(SINGLES, NORM, ROPE)
    short = stack([*SINGLES, together(NORM, ROPE, ceg=2.0, study="a")], NORM, ROPE)
    above = stack([*SINGLES, together(NORM, ROPE, ceg=4.5, study="a")], NORM, ROPE)
    assert product.median is not None
    assert short.median is not None
    assert above.median is not None
    assert product.median * 2 / 3 < short.median < product.median < above.median < product.median * 3 / 2
    assert above.median / product.median == pytest.approx(product.median / short.median, rel=0.01)
    for answer in (short, above):
        assert width(answer.mean_interval) < width(product.mean_interval)
        assert answer.interaction is not None
        assert [o.study for o in answer.interaction.observations] == ["a"]
        assert not answer.interaction.unmeasured


def test_more_studies_move_it_further() -> None:
    medians = []
    for studies in ("", "a", "ab", "abc"):
        rows = [*SINGLES, *(together(NORM, ROPE, ceg=2.0, study=s) for s in studies)]
        medians.append(stack(rows, NORM, ROPE).median or math.nan)
    assert medians == sorted(medians, reverse=True)
    assert len(set(medians)) == 4


def test_many_rows_of_one_study_count_little_more_than_one() -> None:
    one = stack([*SINGLES, together(NORM, ROPE, ceg=2.0, study="a")], NORM, ROPE)
    many = stack(SINGLES + [together(NORM, ROPE, ceg=2.0, study="a", note=str(i)) for i in range(10)], NORM, ROPE)
    two = stack([*SINGLES, *(together(NORM, ROPE, ceg=2.0, study=s) for s in "ab")], NORM, ROPE)
    assert (two.median or 0) < (many.median or 0) < (one.median or 0)


def test_a_combination_counts_only_where_the_study_measured_its_parts() -> None:
    elsewhere = [*SINGLES, together(NORM, ROPE, ceg=9.0, study="d")]
    assert stack(elsewhere, NORM, ROPE).median == stack(SINGLES, NORM, ROPE).median
    assert combinations.observations(elsewhere, "flop") == []


def test_parts_are_taken_at_like_compute() -> None:
    """A part measured three decades away says nothing of the interaction: gains change with compute."""
    far = [*SINGLES, together(NORM, ROPE, ceg=9.0, study="a", flops=1e23)]
    assert combinations.observations(far, "flop") == []


def test_an_exact_member_leaves_the_combination_measured() -> None:
    """LayerNorm + RoPE + FlashAttention in FLOP is LayerNorm + RoPE."""
    rows = [*SINGLES, together(NORM, ROPE, FLASH, ceg=2.0, study="a")]
    (seen,) = combinations.observations(rows, "flop")
    assert seen.members == (NORM, ROPE)
    assert seen.value == pytest.approx(math.log(2 / 3))
    assert combinations.observations(rows, "time") == []


def test_a_combination_moves_neither_part_alone() -> None:
    rows = [*SINGLES, together(NORM, ROPE, ceg=2.0, study="a")]
    assert stack(rows, ROPE).median == stack(SINGLES, ROPE).median


def test_a_combination_does_not_depend_on_the_order_of_its_parts() -> None:
    forwards = [*SINGLES, together(NORM, ROPE, ceg=2.0, study="a")]
    backwards = [*SINGLES, together(ROPE, NORM, ceg=2.0, study="a")]
    assert stack(forwards, NORM, ROPE).median == stack(backwards, NORM, ROPE).median


@pytest.mark.parametrize("names", [("rope", "moe", "muon"), ("layernorm", "flash_attention", "rope")])
def test_a_question_does_not_depend_on_the_order_of_its_parts(names: tuple[str, ...]) -> None:
    asked = [api.estimate(order, 1e22) for order in (names, names[::-1], ",".join(names), "+".join(names[::-1]))]
    for other in asked[1:]:
        assert str(other) == str(asked[0])
        assert other.median == asked[0].median
        assert other.predictive == asked[0].predictive
        assert other.classes == asked[0].classes


def test_a_stack_is_refused_where_a_part_has_no_evidence() -> None:
    answer = stack(SINGLES, ROPE, ("moe", "dense"))
    assert answer.status == "no_evidence"
    assert "moe" in answer.reason
    assert answer.median is None


GLU, MIX = ("swiglu", "gelu"), ("moe", "dense")
ALONE = {NORM: 0.7, ROPE: 0.4, GLU: 0.2, MIX: 0.9}
BETWEEN = {(NORM, ROPE): -0.4, (NORM, GLU): 0.3, (ROPE, GLU): 0.0, (MIX, ROPE): -0.2}


def ln_gain(*parts: tuple[str, str]) -> float:
    """Of a made-up world in which pairs are all there is."""
    return sum(ALONE[p] for p in parts) + sum(BETWEEN.get(pair, 0.0) for pair in combinations.pairs_of(parts))


def factorial(study: str, noise: float = 0.0, seed: int = 0) -> list[PublishedGain]:
    """All cells of LayerNorm x RoPE x SwiGLU, with errors of ln gain."""
    rng = np.random.default_rng(seed)
    cells = [cell for n in (1, 2, 3) for cell in itertools.combinations((NORM, ROPE, GLU), n)]
    return [
        together(*cell, ceg=math.exp(ln_gain(*cell) + noise * rng.standard_normal()), study=study) for cell in cells
    ]


def test_interactions_of_simulated_factorials_are_found_again() -> None:
    rows = [row for i in range(12) for row in factorial(f"s{i}", 0.05, i)]
    for pair in ((NORM, ROPE), (NORM, GLU), (ROPE, GLU)):
        found = interaction.estimate(rows, pair, "flop").at(1e20)
        assert found.mean.quantile(0.5) == pytest.approx(BETWEEN[pair], abs=0.06)
        low, high = found.mean.central(0.9)
        assert low < BETWEEN[pair] < high
        assert high - low < 0.3
    whole = interaction.estimate(rows, (NORM, ROPE, GLU), "flop").at(1e20)
    assert whole.mean.quantile(0.5) == pytest.approx(-0.4 + 0.3 + 0.0, abs=0.1)


def test_pairs_inform_larger_stacks_and_the_unmeasured_stay_wide() -> None:
    rows = [row for i in range(4) for row in factorial(f"s{i}")]
    known = interaction.estimate(rows, (NORM, ROPE, GLU), "flop").at(1e20)
    wider = interaction.estimate(rows, (NORM, ROPE, MIX), "flop").at(1e20)
    assert known.unmeasured == ()
    assert set(wider.unmeasured) == {(NORM, MIX), (MIX, ROPE)}
    assert np.ptp(wider.mean.central(0.9)) > 1.3 * np.ptp(known.mean.central(0.9))
    assert np.ptp(wider.predictive.central(0.9)) > 1.15 * np.ptp(known.predictive.central(0.9))


def test_an_interaction_fades_with_compute() -> None:
    rows = [row for i in range(4) for row in factorial(f"s{i}")]
    joint = interaction.estimate(rows, (NORM, ROPE), "flop")
    near, far = joint.at(1e20), joint.at(1e30)
    assert near.mean.quantile(0.5) < -0.25 < far.mean.quantile(0.5)
    assert np.ptp(far.mean.central(0.9)) > 1.5 * np.ptp(near.mean.central(0.9))


def test_parts_taken_out_hold_the_pairs_with_the_rest() -> None:
    """Gains of leaving one out overlap where adding one does not: the excess has the other sign."""
    whole = (NORM, ROPE, GLU)
    rows = [together(*whole, ceg=math.exp(ln_gain(*whole)), study="a")]
    for part in whole:
        rest = [p for p in whole if p != part]
        rows.append(
            published(
                algorithm=part[0],
                baseline=part[1],
                study="a",
                ceg=math.exp(ln_gain(*whole) - ln_gain(*rest)),
                treatment="taken out of the whole",
            )
        )
    (seen,) = combinations.observations(rows, "flop")
    assert set(seen.pairs.values()) == {-1.0}
    assert seen.value == pytest.approx(sum(c * BETWEEN.get(p, 0.0) for p, c in seen.pairs.items()))


def test_our_own_stacks_tell_of_pairs_with_what_one_has_and_the_other_lacks() -> None:
    rows = [
        published(study=f"own {stack} ladder", stack=stack, ceg=ceg, flops=flops)
        for stack, ceg, flops in (("bare", 2.0, 1e12), ("modern", 1.5, 1.001e12), ("modern", 1.2, 3e12))
    ]
    (seen,) = combinations.observations(rows, "flop")  # bare was not trained at 3e12
    assert seen.label == "rope on rmsnorm + swiglu"
    assert seen.value == pytest.approx(math.log(1.5 / 2.0))
    assert set(seen.pairs) == {(("rmsnorm", "no_norm"), ROPE), (ROPE, GLU)}
    assert set(seen.pairs.values()) == {1.0}


def test_combinations_that_share_a_part_err_together() -> None:
    rows = [published(algorithm=p[0], baseline=p[1], ceg=2.0, study="a") for p in (NORM, ROPE, GLU)]
    rows += [together(NORM, ROPE, ceg=3.0, study="a"), together(NORM, GLU, ceg=3.0, study="a")]
    covariance = combinations.noise(combinations.observations(rows, "flop"))
    assert np.allclose(np.diag(covariance), 3 * contrasts.ROW_SD**2)
    assert covariance[0, 1] == pytest.approx(contrasts.ROW_SD**2)
    stated = [r._replace(stack="bare", ln_excess_se=0.2) for r in rows]
    covariance = combinations.noise(combinations.observations(stated, "flop"))
    assert np.allclose(np.diag(covariance), 0.2**2)
    assert covariance[0, 1] == pytest.approx(0.2**2 / 3)


def test_readings_of_one_thing_err_together() -> None:
    """Of parts or of stacks that have a key in common; a stack and a part never cancel each other's error."""
    rows = [*SINGLES, together(NORM, ROPE, ceg=3.0, study="a"), together(NORM, ROPE, ceg=3.1, study="a", note="again")]
    apart = combinations.noise(combinations.observations(rows, "flop"))
    stacks = [r._replace(same_as="runs") if "+" in r.algorithm else r for r in rows]
    as_one = combinations.noise(combinations.observations(stacks, "flop"))
    assert np.allclose(np.diag(as_one), np.diag(apart))
    assert as_one[0, 1] == pytest.approx(apart[0, 1] + contrasts.ROW_SD**2)
    everything = [r._replace(same_as="runs") if r.study == "a" else r for r in rows]
    both = combinations.noise(combinations.observations(everything, "flop"))
    assert np.diag(both) == pytest.approx([contrasts.ROW_SD**2 * (1 + 2**2)] * 2)


def test_a_long_table_of_combinations_is_answered() -> None:
    rows = [r for i in range(150) for r in factorial(f"s{i}", 0.05, i)]
    assert len(combinations.observations(rows, "flop")) > interaction.MAX_OBSERVATIONS
    found = interaction.estimate(rows, (NORM, ROPE), "flop").at(1e20)
    assert found.mean.quantile(0.5) == pytest.approx(-0.4, abs=0.05)


def test_the_answer_and_its_json_show_the_interaction() -> None:
    from cegain.gain.answer import document

    answer = stack([*SINGLES, together(NORM, ROPE, ceg=2.0, study="a")], NORM, ROPE)
    assert "layernorm + rope against its parts: a 0.67x." in str(answer)
    (one,) = document([answer])["estimates"]  # type: ignore[misc]
    shown = one["interaction"]
    low, high = shown["stack_over_product_interval"]
    assert low < shown["stack_over_product_median"] < high
    assert shown["measured"][0]["over_product_of_parts"] == pytest.approx(2 / 3)
    (alone,) = document([stack(SINGLES, ROPE)])["estimates"]  # type: ignore[misc]
    assert alone["interaction"] is None
