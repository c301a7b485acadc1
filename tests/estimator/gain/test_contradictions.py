"""Rows that contradict each other widen the answer and say so; labels are earned; what cannot be is refused."""

import math
from pathlib import Path

import numpy as np
import pytest

from cegain import estimate
from cegain.gain import contrasts, method, prior
from cegain.gain.answer import Estimate
from cegain.gain.evidence import load
from cegain.gain.question import QuestionError

HEADER = (
    "algorithm,treatment,baseline,study,flops,flops_convention,ceg,low,high,interval,currency,flop_factor,basis,"
    "source,note"
)


def table(path: Path, rows: list[tuple[str, str, float, float]], name: str = "rope") -> Path:
    """A table of measured gains: (study, treatment, FLOP, gain)."""
    baseline = {"rope": "learned_positions", "moe": "dense"}[name]
    lines = [
        f"{name},{what},{baseline},{study},{c:g},useful,{gain:g},,,,flop,,measured,s," for study, what, c, gain in rows
    ]
    path.write_text("\n".join([HEADER, *lines]))
    return path


def width(answer: Estimate) -> float:
    assert answer.predictive is not None
    return math.log(answer.predictive[1] / answer.predictive[0])


@pytest.mark.parametrize("what", ["one treatment", "treatment {}"])
def test_contradictions_within_a_study_widen_the_answer(what: str, tmp_path: Path) -> None:
    gains = [0.02] * 4 + [200.0] * 4
    odd = table(tmp_path / "odd.csv", [("one", what.format(i), 1e22 * 10**i / 1e4, g) for i, g in enumerate(gains)])
    even = table(tmp_path / "even.csv", [("one", what.format(i), 1e22 * 10**i / 1e4, 2.0) for i in range(8)])
    answers = [estimate("rope", 1e22, evidence=path, only_evidence=True) for path in (odd, even)]
    assert width(answers[0]) > 2 * width(answers[1])
    assert any("contradict each other" in note for note in answers[0].notes)
    assert not any("contradict each other" in note for note in answers[1].notes)


def test_contradictions_between_studies_widen_the_answer(tmp_path: Path) -> None:
    rows = [(f"s{i}", "x", 1e22, g) for i, g in enumerate([0.1] * 3 + [10.0] * 3)]
    answer = estimate("rope", 1e22, evidence=table(tmp_path / "odd.csv", rows), only_evidence=True)
    assert answer.predictive is not None
    assert answer.predictive[0] < 0.13
    assert answer.predictive[1] > 7.5


def test_the_shipped_rows_do_not_contradict_each_other() -> None:
    from cegain import algorithms

    evidence = load()
    for name in algorithms.names():
        for currency in ("flop", "time", "decode"):
            question = contrasts.question(evidence.rows, name, algorithms.get(name).replaces[0], currency)
            fitted = method.fit_curve(question, prior.frozen(), prior.prior_weights())
            assert fitted is None or fitted.stretch == 1.0, (name, currency)


def test_rows_drawn_as_assumed_are_no_contradiction() -> None:
    """The ratio is above 1 for one table in a thousand."""
    question = contrasts.question(load().rows, "moe", "dense", "flop")
    assert question.rows is not None
    rows, spread = question.rows._replace(bound=np.zeros_like(question.rows.bound)), prior.frozen()
    rng = np.random.default_rng(0)
    V = prior.covariance(rows, spread, 1.0, 1.0)
    root = np.linalg.cholesky(V)
    drawn = [rows._replace(y=root @ rng.normal(size=len(V))) for _ in range(200)]
    ratios = np.array([prior.contradiction(some, spread, 1.0, 1.0) for some in drawn])
    assert (ratios > 1).mean() <= 0.01
    assert prior.contradiction(rows._replace(y=3 * drawn[0].y), spread, 1.0, 1.0) > 1.5


def test_one_far_row_earns_no_label(tmp_path: Path) -> None:
    for gain in (10.0, 30.0, 100.0):
        answer = estimate("rope", 1e24, evidence=table(tmp_path / "far.csv", [("far", "x", 1e24, gain)]))
        assert answer.label == "undetermined"


def test_rows_that_say_nothing_earn_no_label(tmp_path: Path) -> None:
    path = tmp_path / "vague.csv"
    lines = [f"rope,x,learned_positions,s,{c},useful,1,0.01,100,0.9,flop,,measured,s," for c in ("1e20", "1e23")]
    path.write_text("\n".join([HEADER, *lines]))
    answer = estimate("rope", 1e21, evidence=path, only_evidence=True)
    assert answer.label == "undetermined"
    assert "was not assumed before" in answer.label_lacks


def test_a_ladder_of_one_study_earns_its_label(tmp_path: Path) -> None:
    rows = [("one", "x", 10.0 ** (19 + i / 2), 1.5) for i in range(9)]
    rows += [("two", "x", 10.0 ** (19 + i / 2), 1.6) for i in range(9)]
    answer = estimate("rope", 1e22, evidence=table(tmp_path / "ladders.csv", rows), only_evidence=True)
    assert answer.label == "independent"


@pytest.mark.parametrize("seq_len", [512, 2048, 16384, 131072])
@pytest.mark.parametrize("flops", [1e18, 1e20, 1e22])
def test_a_stack_stays_below_what_counting_allows(flops: float, seq_len: int) -> None:
    answer = estimate("mqa,sparse_attention", flops, seq_len=seq_len, interval=0.95)
    assert answer.cap is not None
    assert answer.predictive is not None
    assert answer.mean_interval is not None
    assert max(answer.predictive[1], answer.mean_interval[1]) <= answer.cap


@pytest.mark.parametrize(
    ("words", "rule"),
    [
        ({"algo": "layernorm,rmsnorm", "flops": 1e20}, "one model has one norm"),
        ({"algo": "moe", "flops": 1e24, "experts": 1}, "4 to 4096"),
        ({"algo": "moe", "flops": 1e24, "experts": 1e6}, "4 to 4096"),
        ({"algo": "moe", "flops": 1e24, "experts": 64, "currency": "decode"}, "Leave it out"),
        ({"algo": "sparse_attention", "flops": 1e24, "seq_len": 1}, "below 512 tokens"),
    ],
)
def test_what_cannot_be_is_refused(words: dict[str, object], rule: str) -> None:
    with pytest.raises(QuestionError, match=rule):
        estimate(**words)  # type: ignore[arg-type]


def test_a_pattern_is_less_known_far_from_the_lengths_that_were_measured() -> None:
    answers = [estimate("sparse_attention", 1e19, seq_len=t) for t in (12288, 49152, 196608)]
    decades = [answer.decades for answer in answers]
    assert decades == sorted(decades)  # type: ignore[type-var]
    shortfalls = [math.log(a.cap / a.predictive[0]) for a in answers if a.predictive and a.cap]
    assert shortfalls == sorted(shortfalls)


def test_proposers_alone_are_named() -> None:
    answer = estimate("sparse_attention", 1e21)
    assert answer.proposers_alone
    assert "without its proposers   no evidence" in str(answer)
    assert not estimate("moe", 1e21).proposers_alone


def test_bounds_alone_are_never_ok(tmp_path: Path) -> None:
    path = tmp_path / "bound.csv"
    path.write_text(f"{HEADER}\nmoe,x,dense,s,1e23,useful,3,3,,,flop,,measured,s,")
    answer = estimate("moe", 1e23, evidence=path, only_evidence=True)
    assert answer.status == "far_extrapolation"
    assert "bounds" in answer.reason


def test_what_an_answer_depends_on_stands_in_it() -> None:
    assert "64 experts for each active one" in str(estimate("moe", 1e24, experts=64)).splitlines()[0]
    assert "8,192 tokens" in str(estimate("sparse_attention", 1e21, seq_len=8192)).splitlines()[0]
    assert estimate("moe", 1e24).where == {"experts": 16.0}


def test_influence_in_time_is_that_of_the_rows_behind_it() -> None:
    """Moving rows by 5% moves the answer by their influence."""
    from cegain.gain import question

    (answer,) = question.estimate_all("moe", [1e24], currency="time")
    assert sum(answer.influence.values()) == pytest.approx(0.95, abs=0.1)
    in_flop = sum(value for kind, value in answer.influence.items() if kind.endswith("in flop"))
    assert 0.4 < in_flop < 0.9
    (decode,) = question.estimate_all("muon", [1e21], currency="decode")
    assert decode.influence == {}
    assert decode.predictive == (1.0, 1.0)


def test_toy_runs_are_counted_only_where_they_steer() -> None:
    near, far = estimate("moe", 1e17), estimate("moe", 1e24)
    assert "of our own toy runs" in str(near)
    assert "which do not set this level" not in str(near)
    assert "of our own toy runs" not in str(far)
    assert "which do not set this level" in str(far)
