"""Our own runs by stack, arm, rung and seed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cegain.ladders import arm_names, ladder, seed_ladder
from cegain.tables.problems import EvidenceError
from tests.estimator.ladders import made_ladder
from tests.estimator.ladders.made_ladder import RUNGS, runs, write


def load(path: Path, *args: object, **options: object) -> seed_ladder.StackRuns:
    return seed_ladder.load(write(path / "training_runs.csv", runs(*args, **options)))["bare"]  # type: ignore[arg-type]


def test_known_gains_are_found_at_every_rung(tmp_path: Path) -> None:
    made = load(tmp_path)
    assert set(made.pairs) == {
        ("rope", "rope", "baseline"),
        ("layernorm", "layernorm", "baseline"),
        ("layernorm+rope", "layernorm+rope", "baseline"),
        ("swiglu", "swiglu", "baseline"),
        ("transformer", "baseline", "lstm"),
    }
    for arm in ("rope", "layernorm", "layernorm+rope"):
        for at in seed_ladder.gains(made, arm, "baseline"):
            assert at.read is not None
            assert at.why == ""
            # Nine reads: one further out than 3 standard errors would be a surprise.
            assert abs(at.read.log_gain - math.log(made_ladder.GAINS[arm])) < 3 * at.read.se
    assert made.run_noise() == pytest.approx(made_ladder.NOISE, rel=0.5)
    assert [len(rung.losses) for rung in made.arms["rope"]] == [5, 3, 3]
    assert made.arms["rope"][0].learning_rates == (0.008,)


def test_an_arm_may_be_the_baseline_of_the_stack_itself(tmp_path: Path) -> None:
    made = load(tmp_path)
    found = seed_ladder.gains(made, "baseline", "lstm")
    assert [at.rung.budget for at in found] == list(made_ladder.TALL)
    assert found[0].read is not None
    assert math.exp(found[0].read.log_gain) == pytest.approx(2.0, rel=0.1)
    assert found[-1].read is None
    assert found[-1].why == "its loss lies below those of lstm"
    assert found[-1].baseline is None


def test_runs_that_looked_for_a_learning_rate_are_left_out_and_counted(tmp_path: Path) -> None:
    table = ladder.read_runs(write(tmp_path / "runs.csv", runs()))
    assert table.remarks == ("12 run(s) with the role 'learning_rate' left out",)
    assert set(table.cells["role"]) == {"ladder"}
    other = tmp_path / "other.csv"
    other.write_text("variant,N,D,C,loss,role\na,1,1,1e17,3,anything\n")
    assert ladder.read_runs(other).remarks == ()


def test_a_baseline_that_does_not_fall_gives_no_curve(tmp_path: Path) -> None:
    rows = [
        row._replace(loss_nats_per_token=2.5) if row.arm == "baseline" and row.rung_flops == 1e12 else row
        for row in runs()
    ]
    made = seed_ladder.load(write(tmp_path / "t.csv", rows))["bare"]
    found = seed_ladder.gains(made, "rope", "baseline")
    assert {at.read for at in found} == {None}
    assert found[0].why == "the loss of baseline does not fall from 3e11 to 1e12 FLOP: more seeds are needed"
    one = load(tmp_path, rungs={"baseline": RUNGS[:1]})
    assert "has one rung" in seed_ladder.gains(one, "rope", "baseline")[0].why


def test_everything_wrong_with_a_table_is_said(tmp_path: Path) -> None:
    rows = runs()
    last = rows[-3]
    rows.append(last._replace(run_id="again", corpus="library@1", seq_len=512, loss_nats_per_token=1.7))
    with pytest.raises(EvidenceError) as caught:
        seed_ladder.load(write(tmp_path / "t.csv", rows))
    text = str(caught.value)
    assert "one run per rung and seed (lstm at 3e+12 FLOP) (found seed 2 again)" in text
    assert "all runs of a ladder have one corpus (found library@1, mini@0)" in text
    assert "all runs of a ladder have one seq_len (found 128, 512)" in text
    other = tmp_path / "other.csv"
    other.write_text("variant,N,D,C,loss\na,1,1,1e17,3\n")
    with pytest.raises(EvidenceError, match="`ceg fit`"):
        seed_ladder.load(other)
    broken = [*runs()[:-3], last._replace(rung_flops=math.inf)]
    with pytest.raises(EvidenceError, match=r"rung_flops is a number above 0 \(found 'inf'\)"):
        seed_ladder.load(write(tmp_path / "t.csv", broken))


def test_combinations_are_found_in_any_order(tmp_path: Path) -> None:
    made = load(tmp_path)
    assert seed_ladder.pair_of(made, "rope+layernorm") == ("layernorm+rope", "layernorm+rope", "baseline")
    assert seed_ladder.pair_of(made, "moe") is None


def test_only_contrasts_with_the_default_baseline_count() -> None:
    def pairs(stack: str, *arms: str) -> list[tuple[str, str, str]]:
        return arm_names.pairs(Path("t"), ["baseline", *arms], [], stack)

    assert pairs("modern", "layernorm") == []  # against RMSNorm, which the stack has
    assert pairs("bare", "layernorm") == [("layernorm", "layernorm", "baseline")]
    assert pairs("bare", "rmsnorm") == []  # its default baseline is LayerNorm
    assert ("rmsnorm", "rmsnorm", "layernorm") in pairs("bare", "rmsnorm", "layernorm")
    assert pairs("modern", "no_rmsnorm", "no_rope") == [
        ("rmsnorm", "baseline", "no_rmsnorm"),
        ("rope", "baseline", "no_rope"),
    ]
    assert pairs("modern", "no_layernorm", "no_moe") == []  # nothing that the stack has was taken out
    assert pairs("bare", "no_rope") == []
    assert arm_names.baseline_of("rmsnorm", "no_rmsnorm", "modern") == "no_norm"  # its default is LayerNorm
    assert arm_names.baseline_of("rope", "no_rope", "modern") == "learned_positions"
    assert arm_names.baseline_of("rmsnorm", "layernorm", "bare") == "layernorm"
    assert arm_names.baseline_of("layernorm+rope", "baseline", "bare") == "no_norm+learned_positions"
    assert pairs("modern", "moe") == [("moe", "moe", "baseline")]
    assert pairs("bare", "layernorm+rope") == [("layernorm+rope", "layernorm+rope", "baseline")]
    assert arm_names.replaced("layernorm+rope") == "no_norm+learned_positions"
