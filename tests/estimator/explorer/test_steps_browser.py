"""The step-time model of the page in a browser, against the one that it mirrors."""

import math
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from cegain.explorer import steps
from cegain.speed import measured_device, two_models
from tests.estimator.explorer.browser import page_of
from tests.estimator.explorer.settings import ReportSetting, settings, timed

pytestmark = pytest.mark.slow

PAGE = Path(steps.__file__).with_name("scripts")
SCRIPTS = ("architecture.js", "step_time.js")
TIMED = ("time", "usd", "decode")
CLOSE = 1e-9
ODD_LENGTHS = (1, 2, 100, 383, 1000, 12288, 50000)
REFUSALS = (
    "cannot be timed: it is no change of a model's shape",
    "cannot be timed: no model's shape is known for",
    "cannot be timed together: they set",
    "no model of more than 1e+30 FLOP is timed, got",
    "no model can be timed there: a compute-optimal model must have room for its vocabulary",
    "no model can be timed there: ModelShape has 1 problem(s):\n- gqa_group must divide n_heads",
    "no token can be timed there: weights and caches must fit into 16384 x 24 GB",
)
"""Everything that `two_models.speeds` can refuse, for a sound setting."""
ASK = """
([steps, questions]) => {
  const model = ceg.stepTime.make(steps);
  return questions.map(([names, baselines, currency, flops, inFlop, device, baselineDevice, seqLen]) => {
    try {
      return model.speeds(names, baselines, currency, flops, inFlop, { device, baselineDevice, seqLen });
    } catch (error) {
      if (!(error instanceof ceg.stepTime.NoShapeError)) throw error;
      return { refused: error.message };
    }
  });
}
"""


def _expected(asked: ReportSetting) -> dict[str, Any]:
    devices = measured_device.find(asked.device), measured_device.find(asked.baseline_device)
    setting = two_models.Setting(*devices, asked.seq_len)
    try:
        found = two_models.speeds(
            asked.algorithms, asked.baselines, asked.currency, asked.flops, asked.in_flop, setting
        )
    except two_models.NoShapeError as error:
        return {"refused": str(error)}
    return {
        "lnFactor": found.ln_factor,
        "variance": found.variance,
        "price": found.price,
        "treatment": two_models.side_document(found.treatment),
        "baseline": two_models.side_document(found.baseline),
    }


def _asked() -> Iterator[ReportSetting]:
    yield from settings(300, 11, currencies=TIMED, any_baseline=True)
    yield from settings(600, 12, currencies=TIMED, names=timed())
    yield from settings(150, 13, currencies=TIMED, names=timed(), seq_lens=ODD_LENGTHS)
    # What random ones seldom or never come to: hardly a head, and caches that fit nowhere.
    yield from (
        ReportSetting(("gqa",), ("mha",), "time", 10 ** (15 + i / 8), 1.0, "h100", "h100", 512) for i in range(32)
    )
    yield ReportSetting(("moe",), ("dense",), "decode", 1e28, 1.0, "cpu", "cpu", 131072)


@cache
def _answers() -> list[tuple[ReportSetting, dict[str, Any], dict[str, Any]]]:
    """Each question, what the page says, and what Python says."""
    asked = list(_asked())
    scripts = "".join(f"<script>{(PAGE / name).read_text(encoding='utf-8')}</script>" for name in SCRIPTS)
    with page_of(f"<!doctype html><meta charset='utf-8'><title>step times</title>{scripts}") as page:
        found = page.evaluate(ASK, [steps.document(), [list(question) for question in asked]])
        assert page.errors == []
    return [(question, answer, _expected(question)) for question, answer in zip(asked, found, strict=True)]


def test_factors_and_variances_are_those_of_the_command_line() -> None:
    both = [(q, said, want) for q, said, want in _answers() if "refused" not in want]
    assert len(both) > 500
    for question, said, want in both:
        assert "refused" not in said, question
        assert math.exp(said["lnFactor"]) == pytest.approx(math.exp(want["lnFactor"]), rel=CLOSE), question
        assert said["variance"] == pytest.approx(want["variance"], rel=CLOSE, abs=0), question
        assert said["price"] == pytest.approx(want["price"], rel=CLOSE), question


@pytest.mark.parametrize("side", ["treatment", "baseline"])
def test_models_are_described_alike(side: str) -> None:
    for question, said, want in _answers():
        if "refused" in want:
            continue
        one, other = said[side], want[side]
        assert list(one) == list(other), question
        for name, value in other.items():
            near = isinstance(value, float | dict)
            assert one[name] == (pytest.approx(value, rel=CLOSE, abs=0) if near else value), (question, name)


def test_refusals_are_the_same_sentences() -> None:
    refused = [(q, said, want["refused"]) for q, said, want in _answers() if "refused" in want]
    for question, said, sentence in refused:
        assert said == {"refused": sentence}, question
    for words in REFUSALS:
        assert any(words in sentence for _, _, sentence in refused), words


def test_settings_meet_models_that_fit_nowhere_and_all_but_a_few_devices() -> None:
    sides = [want[side] for _, _, want in _answers() if "refused" not in want for side in ("treatment", "baseline")]
    assert {side["fits"] for side in sides} == {True, False}
    assert {side.get("recompute") for side in sides} == {True, False, None}
    assert {1, 2, 8, 64, 1024, 8192} <= {side["devices"] for side in sides}
