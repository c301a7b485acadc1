"""How numbers and answers are put in words."""

import json
import math

import pytest

from cegain import estimate
from cegain.common import text
from cegain.gain import answer as answers
from cegain.gain.question import estimate_all


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (1.0, "1.00"), (1.234, "1.23"), (0.934, "0.93"), (0.01, "0.01"), (0.0034, "0.0034"), (2.0, "2.0"),
        (5.84, "5.8"), (9.949, "9.9"), (9.96, "10"), (12.4, "12"), (1234, "1200"), (1.4e24, "1.4e24"),
        (1e-9, "1e-9"), (1e10, "1e10"), (0.0, "0"), (math.inf, "inf"), (math.nan, "nan"),
    ],
)  # fmt: skip
def test_number(value: float, words: str) -> None:
    assert text.number(value) == words


@pytest.mark.parametrize("exponent", range(-12, 30))
@pytest.mark.parametrize("digits", [1.0, 1.96, 3.14159, 9.4, 9.96])
def test_a_printed_number_is_the_number_to_two_digits(exponent: int, digits: float) -> None:
    value = digits * 10.0**exponent
    assert float(text.number(value)) == pytest.approx(value, rel=0.051)


@pytest.mark.parametrize(
    ("probability", "words"),
    [
        (0, "0%"), (-1e-16, "0%"), (1e-9, "<1%"), (0.0099, "<1%"), (0.01, "1%"), (0.5, "50%"), (0.99, "99%"),
        (0.995, ">99%"), (1.0, "100%"),
    ],
)  # fmt: skip
def test_share_is_certain_only_where_it_is(probability: float, words: str) -> None:
    assert text.share(probability) == words


def test_budget_and_span() -> None:
    assert (text.budget(1e25), text.budget(2.5e24)) == ("1e25", "2.5e24")
    assert text.span((1.4, 24.0)) == "1.40x - 24x"


@pytest.mark.parametrize("width", [30, 80, 110])
def test_wrap_keeps_words_and_indentation(width: int) -> None:
    line = "    " + "https://arxiv.org/abs/2505.04075 well-known " * 9
    lines = text.wrap(line.rstrip(), width).splitlines()
    assert " ".join(lines).split() == line.split()
    assert all(part.startswith(("    h", "    w")) for part in lines)
    assert max(map(len, lines)) <= max(width, 36)
    assert text.wrap("  short", width) == "  short"


@pytest.mark.parametrize("currency", ["flop", "time", "usd", "decode"])
@pytest.mark.parametrize("name", ["moe", "layernorm,rope,fa", "flash_attention", "gqa", "zero", "transformer"])
def test_an_answer_fits_one_screen(name: str, currency: str) -> None:
    answer = estimate(name, 1e24, currency=currency)
    lines = answers.plain(answer).splitlines()
    assert str(answer) == answers.plain(answer)
    assert len(lines) <= 28  # with the line of what the evidence weighs
    assert max(map(len, lines)) <= text.WIDTH
    assert not any(word in answers.plain(answer) for word in ("nan", "None", "-0%"))
    assert any(line.startswith(f"status: {answer.status}") for line in lines)


def test_far_answers_put_the_interval_first() -> None:
    far = estimate("moe", 1e40)
    assert far.status == "far_extrapolation"
    (headline,) = [line for line in answers.plain(far).splitlines() if line.startswith("  one new study")]
    assert headline.index("90%") < headline.index("median")
    assert "17.4 decades from the nearest run" in answers.plain(far)
    assert "Probability" not in answers.plain(far)
    assert far.classes is far.above is None


def test_what_is_exact_claims_no_rows() -> None:
    words = answers.plain(estimate("flash_attention", 1e24))
    assert "by construction" in " ".join(words.split())
    assert "Evidence:" not in words


def test_conversions_are_named_with_the_algorithm_that_has_them() -> None:
    answer = estimate("flash_attention,moe", 1e20)
    (line,) = [
        line
        for line in answers.plain(answer, explain=True).replace("\n  ", " ").splitlines()
        if "Converted to flop" in line
    ]
    for q in answer.questions:
        converted = any(u.fixes_level and u.conversion.how for u in q.used)
        name = next(u.row.algorithm for u in q.used)
        assert (f"`ceg show {name}`" in line) == converted


def test_document_is_the_answer() -> None:
    both = estimate_all("moe", [1e20, 1e24], thresholds=[1e25, 1.0000001e25])
    document = json.loads(json.dumps(answers.document(both), allow_nan=False))
    for answer, entry in zip(both, document["estimates"], strict=True):
        assert entry["ceg_median"] == answer.median
        assert entry["ceg_predictive_interval"] == list(answer.predictive or ())
        assert entry["flops"] == answer.flops
        assert len(entry["share_above_threshold_flops"]) == 2
        assert all(0 <= p <= 1 for p in entry["share_above_threshold_flops"].values())
    assert document["status"] == "ok"


def test_the_status_of_several_is_the_worst() -> None:
    assert answers.document(estimate_all("moe", [1e22, 1e40]))["status"] == "far_extrapolation"


def test_small_gains_keep_two_digits() -> None:
    assert [text.number(x) for x in (0.0432, 0.0067, 0.0951, 0.35)] == ["0.043", "0.0067", "0.10", "0.35"]
