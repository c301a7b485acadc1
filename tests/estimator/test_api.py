"""`from cegain import estimate`: a result object, and one error with everything wrong."""

import doctest
import html
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pandas
import pytest
from click.testing import CliRunner

import cegain
from cegain import estimate
from cegain.api import answers, steps
from cegain.api import runs as api_runs
from cegain.commands.ceg import ceg
from cegain.gain.answer import Estimate, document
from cegain.gain.evidence import shipped_files
from cegain.gain.question import QuestionError, estimate_all
from cegain.ladders import synthetic
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


def test_several_budgets_give_as_many_answers() -> None:
    answers = estimate("moe", [1e20, 1e24], currency="time", device="a100-80")
    assert [answer.flops for answer in answers] == [1e20, 1e24]
    assert told(answers[1]) == told(estimate("moe", 1e24, currency="time", device="a100-80"))
    assert told(estimate("moe", np.array([1e20, 1e24]))[1]) == told(estimate("moe", 1e24))
    assert estimate("moe", np.float64(1e24)) == estimate("moe", 1e24)
    with pytest.raises(QuestionError, match="flops: a number"):
        estimate("moe", "much")  # type: ignore[call-overload]


def printed(*words: object) -> str:
    """What a command prints."""
    result = CliRunner().invoke(ceg, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.stdout.rstrip("\n")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "runs.csv"
    path.write_text(synthetic.table("fading", rungs=9, noise=0.001, seed=3))
    return path


Case = tuple[Callable[[Path], Any], tuple[str, ...]]
CASES: dict[str, Case] = {
    "one": (lambda _: cegain.estimate("moe", 1e24), ("estimate", "--algo", "moe", "--flops", "1e24")),
    "stack": (
        lambda _: cegain.estimate(["rope", "layernorm"], 1e22, currency="usd", device="a100-80"),
        ("estimate", "--algo", "layernorm,rope", "--flops", "1e22", "--currency", "usd", "--device", "a100-80"),
    ),
    "refused": (lambda _: cegain.estimate("zero", 1e24), ("estimate", "--algo", "zero", "--flops", "1e24")),
    "law": (
        lambda runs: cegain.fit(runs, "baseline", at=1e22, bootstrap=30),
        ("fit", "RUNS", "--variant", "baseline", "--at", "1e22", "--bootstrap", "30"),
    ),
    "gain": (
        lambda runs: cegain.fit(runs, baseline="baseline", at=[1e19, 1e23]),
        ("fit", "RUNS", "--baseline", "baseline", "--at", "1e19,1e23"),
    ),
    "forecast": (
        lambda runs: cegain.forecast(runs, "treatment", "baseline"),
        ("fit", "RUNS", "--baseline", "baseline", "--variant", "treatment"),
    ),
    "backtest": (lambda runs: cegain.backtest(runs, cuts=[3, 10]), ("backtest", "RUNS", "--cut", "3", "--cut", "10")),
    "compare": (
        lambda runs: cegain.compare(runs, baseline="baseline", at_least=1.1, level=0.1),
        ("compare", "RUNS", "--baseline", "baseline", "--at-least", "1.1", "--level", "0.1"),
    ),
    "speedup": (
        lambda _: cegain.speedup(2.310, 2.290, 1e19, seed_noise=0.002),
        ("speedup", "--baseline-loss", "2.31", "--loss", "2.29", "--flops", "1e19", "--seed-noise", "0.002"),
    ),
    "step": (
        lambda _: cegain.step_time("h100", params=7e9, gpus=128, recompute=False),
        ("steptime", "--device", "h100", "--params", "7e9", "--gpus", "128", "--no-recompute"),
    ),
    "token": (
        lambda _: cegain.step_time("h100", layers=24, width=2048, decode=True, context=16384),
        ("steptime", "--device", "h100", "--layers", "24", "--width", "2048", "--decode", "--context", "16384"),
    ),
}


@pytest.mark.parametrize("which", CASES)
def test_a_result_prints_and_holds_what_the_command_does(which: str, runs: Path) -> None:
    call, words = CASES[which]
    result, command = call(runs), [str(runs) if word == "RUNS" else word for word in words]
    assert [line.rstrip() for line in str(result).splitlines()] == [
        line.rstrip() for line in printed(*command).splitlines()
    ]
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False)) == json.loads(printed(*command, "--json"))
    assert html.escape(str(result).splitlines()[0]) in result._repr_html_()


@pytest.mark.parametrize("which", ["one", "stack", "law", "gain", "backtest", "compare", "speedup", "step", "token"])
def test_a_result_draws_itself(which: str, runs: Path, tmp_path: Path) -> None:
    result = CASES[which][0](runs)
    picture = result.plot()
    assert picture._repr_svg_().lstrip().startswith("<?xml")
    picture.save(tmp_path / "x.png")
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(QuestionError, match=r"\.svg, \.pdf, \.png"):
        picture.save(tmp_path / "x.gif")


def test_the_picture_of_an_answer_is_that_of_the_command(tmp_path: Path) -> None:
    printed("plot", "--algo", "moe", "--flops", "1e17:1e26", "-o", tmp_path / "x.svg")
    assert cegain.estimate("moe", 1e24).plot()._repr_svg_() == (tmp_path / "x.svg").read_text()


def test_results_are_frozen(runs: Path) -> None:
    for which, (call, _) in CASES.items():
        if which not in ("refused", "forecast"):
            with pytest.raises(AttributeError):
                call(runs).seed = 1


def test_a_data_frame_is_a_table_of_runs(runs: Path) -> None:
    frame = pandas.read_csv(runs)
    assert cegain.fit(frame, "baseline", bootstrap=5).to_dict() == cegain.fit(runs, "baseline", bootstrap=5).to_dict()
    with pytest.raises(QuestionError, match="loss"):
        cegain.fit(frame.drop(columns="loss"), "baseline")


@pytest.mark.parametrize(
    ("call", "rules"),
    [
        (lambda runs: cegain.fit(runs, at=[-1.0]), ["at: budgets above 0", "variant: one arm is needed"]),
        (lambda runs: cegain.fit(runs, "gpt"), ["gpt"]),
        (lambda runs: cegain.fit(runs / "none", "gpt"), ["none"]),
        (lambda runs: cegain.backtest([runs, runs / "none"], cuts=[0.5]), ["cuts: a factor above 1", "none"]),
        (lambda runs: cegain.compare(runs, runs / "none", at_least=0, level=2), ["at_least", "level", "none"]),
        (lambda runs: cegain.compare(runs), ["baseline: the arm", "variant: one arm"]),
        (lambda runs: cegain.compare(runs, runs), ["baseline names the one", "variant names the one"]),
        (lambda _: cegain.speedup(-1.0, 2.0, 1e19, exponent=0.0), ["baseline loss", "exponent"]),
        (lambda _: cegain.step_time("h1000", params=-1.0), ["device", "params"]),
        (lambda _: cegain.step_time("h100", wide=3), ["wide"]),
        (lambda _: cegain.step_time("h100", params=7e9, batch=3), ["batch: it goes with decode"]),
    ],
)  # fmt: skip
def test_everything_wrong_is_one_error(call: Callable[[Path], Any], rules: list[str], runs: Path) -> None:
    with pytest.raises(QuestionError) as error:
        call(runs)
    assert [rule for rule in rules if rule not in str(error.value)] == []
    assert "--" not in str(error.value)


@pytest.mark.parametrize("module", [answers, api_runs, steps])
def test_examples_in_docstrings_run(module: ModuleType) -> None:
    failed, tried = doctest.testmod(module)
    assert tried > 2
    assert failed == 0


def test_the_page_on_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Path(__file__).parents[2] / "docs" / "python.md"
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert [path.name for path in tmp_path.iterdir()] == ["moe.svg"]
