"""Leaving combinations out: nothing of the one left out is used, and what is printed is what was scored."""

import math

import pytest

from cegain.checks.stack_coverage import EXCESS, GAIN, document, leave_one_combination_out
from cegain.gain import combinations
from cegain.gain.evidence import load
from tests.estimator.calls import Calls
from tests.estimator.gain.test_interaction import GLU, NORM, ROPE, SINGLES, factorial, rows_of, together

COVERAGE = Calls("coverage")


def test_a_combination_left_out_is_not_used() -> None:
    """However absurd it is, the interval that predicts it is the same."""
    rows = [r for i in range(3) for r in factorial(f"s{i}")]
    absurd = [r._replace(ceg=1e5) if r.study == "s0" and r.algorithm == "layernorm+rope" else r for r in rows]
    for what in (GAIN, EXCESS):
        before, after = (
            next(s for s in leave_one_combination_out(r).scores[what] if s.study == "s0: layernorm + rope")
            for r in (rows, absurd)
        )
        assert (before.low, before.high) == pytest.approx((after.low, after.high))
        assert before.low < before.value < before.high < after.value


def test_simulated_combinations_are_covered_and_beat_the_plain_product() -> None:
    rows = [r for i in range(6) for r in factorial(f"s{i}", 0.05, i)]
    found = leave_one_combination_out(rows).summaries()
    assert found[GAIN].studies == found[EXCESS].studies == 24
    for summary in found.values():
        assert summary.coverage >= 0.85
    assert found[EXCESS].interval_score < 0.8 * found[EXCESS].rival_interval_score


def test_combinations_of_a_study_have_a_vote_each() -> None:
    rows = [*SINGLES, *rows_of(GLU, 1.2, "a", "b")]
    rows += [together(NORM, ROPE, ceg=2.8, study="a"), together(NORM, GLU, ceg=2.2, study="a")]
    rows += [together(NORM, ROPE, ceg=2.9, study="a", flops=2e20)]
    report = leave_one_combination_out(rows)
    assert {s.study for s in report.scores[GAIN]} == {"a: layernorm + rope", "a: layernorm + swiglu"}
    assert report.summaries()[GAIN].rows == 3
    assert document(report)["summary"].keys() == {GAIN, EXCESS}  # type: ignore[attr-defined]


def test_the_papers_stack_is_compared_with_parts_of_its_own_runs() -> None:
    """Its table and its repository's later runs are of different models: `ceg paper`, 6, divides within each."""
    rows = load().rows
    found = [o for o in combinations.observations(rows, "flop") if o.study == "llm_e_guess_2025"]
    assert len(found) == 3  # not the later runs' large model, whose RoPE is shifted and no part of it
    for o in found:
        assert len({row.source for row, _ in o.sources}) == 1
        assert 0.9 < math.exp(o.value) < 1.2


def test_the_command_scores_the_shipped_combinations() -> None:
    shown = COVERAGE.answer("--stacks")
    assert shown["schema"] == "ceg.coverage_of_stacks"
    assert {row["question"] for row in shown["rows"]} == {GAIN, EXCESS}
    assert all(0 < row["low"] < row["high"] < math.inf for row in shown["rows"])
    text = COVERAGE.call("--stacks").output
    assert "llm_e_guess_2025: layernorm + rope" in text
    assert "--write" in COVERAGE.refused("--stacks", "--write")
