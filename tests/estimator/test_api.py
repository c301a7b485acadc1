"""`from cegain import estimate`: a result object, and one error with everything wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

import cegain
from cegain import estimate
from cegain.gain.answer import Estimate, document
from cegain.gain.evidence import shipped_files
from cegain.gain.question import QuestionError, estimate_all
from cegain.tables.published_gains import PUBLISHED_GAINS


def told(answer: Estimate) -> dict[str, object]:
    """All that is reported of an answer, to compare two of them."""
    return document([answer])


def test_the_result_has_fields_and_prints_a_report() -> None:
    answer = estimate("moe", flops=1e24)
    assert (answer.algorithms, answer.baselines, answer.currency, answer.flops) == (("moe",), ("dense",), "flop", 1e24)
    assert answer.predictive is not None
    assert answer.median is not None
    assert answer.predictive[0] < answer.median < answer.predictive[1]
    assert answer.equivalent_flops == answer.median * 1e24
    assert str(answer).startswith("CEG of Mixture of experts")


def test_names_as_text_or_sequence_in_any_order() -> None:
    expected = told(estimate("layernorm,rope", 1e20))
    for names in ("rope,ln", "rope+layernorm", ["layernorm", "rope"], ("rope", "LN")):
        assert told(estimate(names, 1e20)) == expected


def test_baselines_go_with_their_algorithms() -> None:
    expected = told(estimate("layernorm,rope", 1e20))
    assert told(estimate("rope,layernorm", 1e20, baseline="learned_positions,no_norm")) == expected
    assert told(estimate(["rope", "layernorm"], 1e20, baseline=["learned-positions", "No norm"])) == expected
    with pytest.raises(QuestionError):
        estimate("rope,layernorm", 1e20, baseline="no_norm,learned_positions")


def test_an_alias_names_a_baseline_too() -> None:
    assert estimate("rmsnorm", 1e17, baseline="ln").baselines == ("layernorm",)


def test_against_itself_is_one() -> None:
    answer = estimate("moe", 1e24, baseline="moe")
    assert (answer.median, answer.predictive) == (1.0, (1.0, 1.0))


def test_several_budgets_are_single_answers() -> None:
    single = [estimate("moe", flops) for flops in (1e20, 1e24)]
    assert document(estimate_all("moe", [1e20, 1e24])) == document(single)


def test_evidence_as_one_path_or_several() -> None:
    one = told(estimate("moe", 1e24, evidence=str(PUBLISHED_GAINS), only_evidence=True))
    assert told(estimate("moe", 1e24, evidence=[PUBLISHED_GAINS], only_evidence=True)) == one
    everything = told(estimate("moe", 1e24, evidence=shipped_files(), only_evidence=True))
    assert everything == told(estimate("moe", 1e24))


def test_everything_wrong_in_one_error(tmp_path: Path) -> None:
    with pytest.raises(QuestionError) as caught:
        estimate(
            "meo", float("nan"), currency="eur", interval=1.0, thresholds=[-1.0], evidence=tmp_path / "none.csv",
            baseline="x",
        )  # fmt: skip
    assert len(caught.value.problems) == 6
    assert isinstance(caught.value, ValueError)
    for part in ("Did you mean moe", "nan", "eur", "1.0", "-1.0", "none.csv"):
        assert part in str(caught.value)


@pytest.mark.parametrize("flops", [0.0, -1.0, float("inf"), float("nan"), 1e-300, 1e300])
def test_budgets_that_are_none(flops: float) -> None:
    with pytest.raises(QuestionError, match="above 0"):
        estimate("moe", flops)


def test_a_wide_interval_that_the_evidence_cannot_carry() -> None:
    assert estimate("moe", 1e24, interval=0.9999).predictive is not None
    with pytest.raises(QuestionError, match=r"0\.9999"):
        estimate("moe", 1e24, interval=0.99999)


def test_only_evidence_needs_some() -> None:
    with pytest.raises(QuestionError, match="Add --evidence"):
        estimate("moe", 1e24, only_evidence=True)


def test_unknown_attributes_are_errors() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = cegain.nonsense


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, cegain, cegain.commands.ceg; print([n for n in ('scipy', 'numpy', 'rich') if n in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout == "[]\n"
