"""Answers of the page in a browser, against those of `cegain.gain.question`, which they mirror."""

import functools
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import ndtr, ndtri

from cegain import algorithms, estimate
from cegain.common import mixture
from cegain.common.mixture import Mixture
from cegain.explorer import posterior, steps
from cegain.gain import prior
from cegain.gain.answer import document as answer_document
from cegain.gain.evidence import load
from tests.estimator.explorer.browser import page_of
from tests.estimator.explorer.settings import CURRENCIES, ReportSetting, settings
from tests.estimator.gain.test_contrasts import published
from tests.estimator.gain.test_method import write

pytestmark = pytest.mark.slow

PAGE = Path(posterior.__file__).with_name("scripts")
SCRIPTS = ("architecture.js", "step_time.js", "mixture.js", "chain.js", "posterior.js")
HTML = "<!doctype html><meta charset='utf-8'><title>answers</title>" + "".join(
    f"<script>{(PAGE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS
)
INTERVALS = (0.9, 0.5, 0.999)
UNKNOWN = ("evidence", "conversions")
"""Keys of an answer in JSON that a page leaves to its tables."""
ANSWER = """
([posterior, steps, questions]) => {
  const page = ceg.posterior.make(posterior, ceg.stepTime.make(steps));
  return questions.map((question) => page.answer(question));
}
"""
DRAW = """
([posterior, steps, questions]) => {
  const page = ceg.posterior.make(posterior, ceg.stepTime.make(steps));
  return questions.map((question) => {
    const points = page.curve(question).filter((_, i) => i % 13 === 0);
    return points.map((point) => [point, page.answer({ ...question, flops: point.flops, interval: 0.9 })]);
  });
}
"""
MIXTURES = """
([mixtures, probabilities, z]) => {
  const { Mixture, joined, ndtr, ndtri, total } = ceg.mixture;
  const made = mixtures.map((mixture) => new Mixture(...mixture));
  const told = (mixture) => [...probabilities.map((p) => mixture.quantile(p)), mixture.cdf(0.1)];
  return {
    alone: made.map(told),
    joined: made.slice(1).map((mixture, i) => told(joined(made[i], mixture))),
    total: told(total(made, 25)),
    ndtr: z.map((value) => ndtr(value)),
    ndtri: probabilities.map(ndtri),
  };
}
"""


def in_browser(script: str, argument: object) -> Any:
    with page_of(HTML) as page:
        found = page.evaluate(script, argument)
        assert page.errors == []
    return found


def asked(setting: ReportSetting, interval: float) -> dict[str, Any]:
    """A question as the page puts it."""
    return {
        "algorithms": list(setting.algorithms)[::-1],
        "flops": setting.flops,
        "currency": setting.currency,
        "device": setting.device,
        "baselineDevice": setting.baseline_device,
        "seqLen": setting.seq_len,
        "interval": interval,
    }


def expected(question: dict[str, Any], paths: Sequence[Path] = (), only_evidence: bool = False) -> dict[str, Any]:
    """What `ceg-estimate --json` says."""
    where = {} if question["currency"] == "flop" else {
        "device": question["device"], "baseline_device": question["baselineDevice"], "seq_len": question["seqLen"],
    }  # fmt: skip
    answer = estimate(
        question["algorithms"],
        question["flops"],
        currency=question["currency"],
        interval=question["interval"],
        evidence=paths,
        only_evidence=only_evidence,
        **where,
    )
    found: dict[str, Any] = json.loads(json.dumps(answer_document([answer])))["estimates"][0]
    return {key: value for key, value in found.items() if key not in UNKNOWN}


def differences(said: object, want: object, path: str = "") -> Iterator[str]:
    """Every value that differs: probabilities by more than 0.001, other numbers by more than 1e-9 of them."""
    if isinstance(want, dict) and isinstance(said, dict) and said.keys() == want.keys():
        for key in want:
            yield from differences(said[key], want[key], f"{path}.{key}")
    elif isinstance(want, list) and isinstance(said, list) and len(said) == len(want):
        for i, pair in enumerate(zip(said, want, strict=True)):
            yield from differences(*pair, f"{path}[{i}]")
    elif isinstance(want, int | float) and isinstance(said, int | float):
        # Components of equal width are merged in an order that hangs on a last digit, which moves sums of slopes.
        slopes = "class_probabilities" in path or "growth" in path
        if not math.isclose(said, want, rel_tol=1e-3 if slopes else 1e-9, abs_tol=1e-3 if slopes else 1e-9):
            yield f"{path}: {said} for {want}"
    elif said != want:
        yield f"{path}: {said!r} for {want!r}"


@functools.cache
def answers() -> list[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]]:
    """Questions, what the page says, and what the command line says."""
    drawn = [*settings(120, 21, currencies=("flop",)), *settings(120, 22, currencies=("time", "usd", "decode"))]
    questions = [asked(setting, INTERVALS[i % 3]) for i, setting in enumerate(drawn)]
    document = posterior.document(load(), None, prior.frozen())
    said = in_browser(ANSWER, [document, steps.document(), questions])
    return [(question, answer, expected(question)) for question, answer in zip(questions, said, strict=True)]


@pytest.mark.parametrize("currency", CURRENCIES)
def test_answers_are_those_of_the_command_line(currency: str) -> None:
    both = [triple for triple in answers() if triple[0]["currency"] == currency]
    assert len(both) > 30
    wrong = [(question, line) for question, said, want in both for line in differences(said, want)]
    assert wrong == []


def test_questions_meet_every_kind_of_answer() -> None:
    found = [want for _, _, want in answers()]
    assert {want["status"] for want in found} == {"ok", "far_extrapolation", "no_evidence"}
    assert any("decades past" in want["reason"] for want in found)
    assert any("speeds are not modelled" in want["reason"] for want in found)
    assert any("timed as if it did" in note for want in found for note in want["notes"])
    assert any(want["interaction"] and want["interaction"]["measured"] for want in found)
    assert any(want["interaction"] and want["interaction"]["pairs_never_measured_together"] for want in found)
    assert any(want["setting"] and want["extrapolation_decades"] is None for want in found)


def test_a_picture_shows_the_answers() -> None:
    questions = [
        {"algorithms": ["moe", "rope", "rmsnorm"], "currency": "flop"},
        {"algorithms": ["transformer"], "currency": "flop"},
        {"algorithms": ["mla"], "currency": "flop"},
        *(
            {"algorithms": ["moe", "mqa"], "currency": currency, "device": "h100", "seqLen": 2048}
            for currency in ("time", "usd", "decode")
        ),
    ]
    document = posterior.document(load(), None, prior.frozen())
    drawn = in_browser(DRAW, [document, steps.document(), questions])
    for question, points in zip(questions, drawn, strict=True):
        assert len(points) == 11
        for point, answer in points:
            low50, high50 = answer["ceg_predictive_interval_50"] or (None, None)
            low90, high90 = answer["ceg_predictive_interval_90"] or (None, None)
            assert point == {
                "flops": answer["flops"], "status": answer["status"], "median": answer["ceg_median"],
                "low50": low50, "high50": high50, "low90": low90, "high90": high90,
                "decades": answer["extrapolation_decades"],
                "modelled": question["currency"] == "decode" and answer["setting"] is not None,
            }  # fmt: skip


@pytest.mark.parametrize("only_evidence", [False, True])
def test_answers_from_a_users_table_are_those_of_the_command_line(tmp_path: Path, only_evidence: bool) -> None:
    swiglu = algorithms.get("swiglu").replaces[0]
    parts: tuple[dict[str, Any], ...] = (
        {},
        {"algorithm": "layernorm", "treatment": "LayerNorm", "baseline": "no_norm"},
        {"algorithm": "layernorm+rope", "treatment": "both", "baseline": "no_norm+learned_positions"},
    )
    rows = [
        published(**part, study=f"study {i}", flops=1e15 * 10 ** (i / 3), ceg=2 + k + 0.3 * math.sin(9 * i + k))
        for i in range(12)
        for k, part in enumerate(parts)
    ]
    rows += [  # which contradict each other
        published(
            algorithm="swiglu", baseline=swiglu, study=f"study {i}", flops=1e15 * 100**i, ceg=40.0 if i % 2 else 0.02
        )
        for i in range(6)
    ]
    rows += [published(study="fast", currency="time", flops=math.nan, ceg=1.3), published(study="dear", currency="usd")]
    table = write(tmp_path / "mine.csv", rows)
    tables = load([table], shipped=not only_evidence)
    ours = frozenset(load().rows) if only_evidence else None
    document = posterior.document(tables, ours, prior.frozen())
    names = ("layernorm", "rope", "swiglu", "flash_attention", "zero")
    drawn = list(settings(60, 23, names=names))
    questions = [asked(setting, 0.9) for setting in drawn]
    said = in_browser(ANSWER, [document, steps.document(), questions])
    assert any("spans a factor" in answer["reason"] for answer in said)
    wrong = [
        (question, line)
        for question, answer in zip(questions, said, strict=True)
        for line in differences(answer, expected(question, [table], only_evidence))
    ]
    assert wrong == []


def test_reasons_round_halves_as_python_does(tmp_path: Path) -> None:
    table = write(tmp_path / "mine.csv", [published(study="mine", flops=1e15)])
    document = posterior.document(load([table], shipped=False), frozenset(load().rows), prior.frozen())
    budgets = [10 ** (18 + i / 20) for i in range(1, 100)]
    halves = [flops for flops in budgets if (math.log10(flops) - 15) % 0.5 == 0.25]
    assert len(halves) > 5
    drawn = next(settings(1, 1, names=("rope",)))
    questions = [asked(drawn._replace(flops=flops), 0.9) for flops in budgets]
    said = in_browser(ANSWER, [document, steps.document(), questions])
    reasons = [answer["reason"] for answer in said]
    assert reasons == [expected(question, [table], only_evidence=True)["reason"] for question in questions]


def test_mixtures_are_those_of_python() -> None:
    rng = np.random.default_rng(5)
    made = [
        Mixture(rng.dirichlet(np.ones(k)), rng.normal(0, 1, k), rng.lognormal(-1, 1, k)) for k in (1, 4, 21, 35, 21)
    ]
    made += [Mixture(np.array([0.3, 0.7]), np.array([-1.0, 2.0]), np.array([0.0, 0.5])), mixture.point(0.4)]
    probabilities = [0.00005, 0.05, 0.25, 0.5, 0.9, 0.99995]
    z = np.linspace(-37, 10, 2001)
    found = in_browser(MIXTURES, [[[part.tolist() for part in m] for m in made], probabilities, z.tolist()])

    def told(m: Mixture) -> list[float]:
        return [*(m.quantile(p) for p in probabilities), m.cdf(0.1)]

    np.testing.assert_allclose(found["ndtr"], ndtr(z), rtol=1e-12)
    np.testing.assert_allclose(found["ndtri"], ndtri(probabilities), rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["alone"], [told(m) for m in made], rtol=1e-9, atol=1e-11)
    pairs = itertools.pairwise(made)
    np.testing.assert_allclose(found["joined"], [told(mixture.joined(*pair)) for pair in pairs], rtol=1e-9, atol=1e-11)
    np.testing.assert_allclose(found["total"], told(mixture.total(made)), rtol=1e-9, atol=1e-11)
