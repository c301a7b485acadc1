"""Classes beside the paper's: joint moments, ellipses, reasons that follow the data, and refusals."""

import math
from pathlib import Path

import numpy as np
import pytest
from matplotlib.path import Path as Polygon

from cegain.gain import contrasts, evidence, method, prior
from cegain.gain.curve import Curve
from cegain.pictures.classes import ellipse
from cegain.tables import published_gains
from cegain.views import classify
from tests.estimator.calls import Calls
from tests.estimator.gain.test_contrasts import published

CLASSIFY = Calls("classify")


@pytest.fixture(scope="module")
def verdicts() -> dict[str, classify.Verdict]:
    return {v.name: v for v in classify.classify(evidence.load())}


def curve_of(name: str, baseline: str) -> Curve:
    asked = contrasts.question(evidence.load().rows, name, baseline, "flop")
    curve = method.fit_curve(asked, prior.frozen(), prior.scenario_weights(name, baseline, "flop"))
    assert curve is not None
    return curve


@pytest.mark.parametrize(
    ("name", "baseline"), [("moe", "dense"), ("transformer", "lstm"), ("rope", "learned_positions")]
)
def test_joint_moments_are_those_of_a_sample(name: str, baseline: str) -> None:
    """Scenario by scenario, with each scenario's correlation, and marginals as an answer has them."""
    curve, low, high = curve_of(name, baseline), 1e18, 1e24
    mean, covariance = curve.together(low, high)
    _, apart = curve._scenarios(np.array([low, high]))
    ends = curve.mean(low), curve.mean(high)
    rng = np.random.default_rng(0)
    drawn = []
    for k, weight in enumerate(curve.weights):
        r = apart[k, 0, 1] / math.sqrt(apart[k, 0, 0] * apart[k, 1, 1])
        a, b = (end.sds[k] for end in ends)
        shape = [[a * a, r * a * b], [r * a * b, b * b]]
        drawn.append(rng.multivariate_normal([end.means[k] for end in ends], shape, round(weight * 400_000)))
    sample = np.concatenate(drawn)
    sds = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(sample.mean(0) - mean) < 0.02 * sds)
    assert np.all(np.abs(np.cov(sample.T) - covariance) < 0.03 * np.outer(sds, sds))
    for content in (0.5, 0.9):  # the mixture has heavier tails than the ellipse's normal
        assert Polygon(ellipse(mean, covariance, content)).contains_points(sample).mean() == pytest.approx(
            content, abs=0.1
        )


def test_an_ellipse_holds_what_it_says_of_a_normal() -> None:
    mean, covariance = np.array([0.3, -1.0]), np.array([[0.5, 0.4], [0.4, 0.9]])
    sample = np.random.default_rng(1).multivariate_normal(mean, covariance, 40_000)
    for content in (0.5, 0.9):
        inside = Polygon(ellipse(mean, covariance, content)).contains_points(sample).mean()
        assert inside == pytest.approx(content, abs=0.01)


def test_marginals_are_those_of_the_answer(verdicts: dict[str, classify.Verdict]) -> None:
    v = verdicts["muon"]
    curve = curve_of("muon", "adamw")
    assert v.mean is not None
    assert v.covariance is not None
    for i, flops in enumerate((classify.LOW, classify.HIGH)):
        end = curve.mean(flops)
        assert v.mean[i] == pytest.approx(end.mean())
        second = end.weights @ (end.sds**2 + end.means**2)
        assert v.covariance[i, i] == pytest.approx(second - end.mean() ** 2)


def test_every_algorithm_has_a_verdict_and_disagreement_a_reason(verdicts: dict[str, classify.Verdict]) -> None:
    assert set(verdicts) == set(classify.algorithms.names())
    for v in verdicts.values():
        if v.verdict in (classify.OPEN, classify.DIFFERS, classify.NO_CLASS):
            assert v.why
        if v.classes is not None:
            assert sum(v.classes.values()) == pytest.approx(1)
    exact = verdicts["flash_attention"]
    assert exact.covariance is not None
    assert not exact.covariance.any()


def steep(study: str, slope: float) -> list[published_gains.PublishedGain]:
    return [published(study=study, flops=10.0**x, ceg=math.exp(0.5 + slope * (x - 18))) for x in (18, 20, 22, 24)]


def test_the_verdict_and_its_reason_follow_the_data() -> None:
    def of(*rows: published_gains.PublishedGain) -> classify.Verdict:
        tables = published_gains.Evidence(rows, "", ())
        return next(v for v in classify.classify(tables) if v.name == "rope")

    flat = of(*(r for i in range(5) for r in steep(f"s{i}", 0.0)))
    assert (flat.label, flat.verdict, flat.why) == ("independent", classify.AGREES, ())
    risen = of(*(r for i in range(5) for r in steep(f"s{i}", 0.4)))
    assert (risen.label, risen.verdict) == ("dependent", classify.DIFFERS)
    assert "20 rows of 5 independent groups, 1e18 to 1e24 FLOP" in risen.why[1]
    few = of(*steep("s", 0.2)[:2])
    assert few.verdict == classify.OPEN
    assert few.why[-1].startswith("would settle it:")


def test_the_ladders_that_would_settle_a_class_do() -> None:
    rows = steep("s", 0.05)[:2]
    curve = method.fit_curve(
        contrasts.question(rows, *ROPE, "flop"), prior.frozen(), prior.scenario_weights(*ROPE, "flop")
    )
    assert curve is not None
    found = classify.settles(contrasts.question(rows, *ROPE, "flop"), curve, "rope")
    assert found is not None
    for i in range(found.ladders):
        for half in range(2 * found.decades + 1):
            c = 1e18 * 10 ** (half / 2)
            rows.append(published(study=f"new {i}", flops=c, ceg=math.exp(curve.mean(c).quantile(0.5))))
    prepared = method.prepare(rows, ["rope"], ["learned_positions"], currency="flop", spread=prior.frozen())
    answer = method.evaluate(prepared, 1e20, interval=0.9, thresholds=())
    assert answer.label == found.label
    assert answer.classes is not None
    assert not answer.label_lacks
    assert answer.classes[found.label] == pytest.approx(found.probability, abs=1e-6)


ROPE = ("rope", "learned_positions")


def test_the_command_prints_draws_and_refuses(tmp_path: Path) -> None:
    picture = tmp_path / "class.png"
    result = CLASSIFY.call("-o", picture)
    assert result.exit_code == 0, result.output
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert max(map(len, result.stdout.splitlines())) <= 120
    assert "Of 11 that the paper classes" in result.stdout
    shown = CLASSIFY.answer("--low", "1e20", "--high", "1e22")
    assert {a["low"]["flops"] for a in shown["algorithms"]} == {1e20}
    wrong = CLASSIFY.refused("--low", "1e24", "--high", "x", "-o", "class.txt", "--only-evidence")
    for part in ("--high", "'x'", "--output", "--only-evidence"):
        assert part in wrong
    assert "above --low" in CLASSIFY.refused("--low", "1e24", "--high", "1e20")
