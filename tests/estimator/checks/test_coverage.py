"""Leaving studies out: the scores, and whether a literature drawn from the model is covered as promised."""

import json
import math
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from cegain.checks import coverage
from cegain.checks.coverage import Score, leave_one_study_out, summarise
from cegain.common import scores
from cegain.common.scores import binomial_range, interval_score
from cegain.gain import prior
from cegain.gain.evidence import load
from cegain.gain.study import X0, Spread
from cegain.tables.published_gains import PublishedGain
from cegain.tables.published_gains import published as only_published
from tests.estimator.calls import Calls
from tests.estimator.gain.test_contrasts import published

KNOWN = Spread(study_level=0.35, study_slope=0.06, contrast_level=0.2, slope_sd=0.08)
ALGORITHMS = (
    ("moe", "dense"),
    ("rope", "learned_positions"),
    ("muon", "adamw"),
    ("layernorm", "no_norm"),
    ("swiglu", "gelu"),
)


def score(study: str, value: float, low: float = -1.0, high: float = 1.0) -> Score:
    return Score(study, "rope", "flop", value, low, high, low - 1, high + 1)


def literature(seed: int, n_studies: int = 25) -> list[PublishedGain]:
    """Gains drawn from the model: every study measures one to three algorithms at one to three budgets."""
    rng = np.random.default_rng(seed)
    lines = {name: (rng.normal(0.5, 0.7), rng.normal(0, KNOWN.slope_sd)) for name, _ in ALGORITHMS}
    rows = []
    for i in range(n_studies):
        for k in rng.choice(len(ALGORITHMS), rng.integers(1, 4), replace=False):
            name, baseline = ALGORITHMS[k]
            level, slope = lines[name]
            x = rng.uniform(-2, 2) + np.arange(rng.integers(1, 4)) * 0.5
            shift = rng.normal(0, KNOWN.study_level) + rng.normal(0, KNOWN.contrast_level)
            tilt = rng.normal(0, KNOWN.study_slope)
            y = level + slope * x + shift + tilt * (x - x.mean()) + rng.normal(0, 0.05, len(x))
            rows += [
                published(algorithm=name, baseline=baseline, study=f"s{i:02}", flops=10 ** (a + X0), ceg=math.exp(b))
                for a, b in zip(x, y, strict=True)
            ]
    return rows


@pytest.mark.parametrize(("inside", "n"), [(0, 1), (1, 1), (0, 10), (5, 10), (9, 10), (10, 10), (17, 19), (90, 100)])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_range_is_clopper_and_pearsons(inside: int, n: int, confidence: float) -> None:
    expected = binomtest(inside, n).proportion_ci(confidence, method="exact")
    assert binomial_range(inside, n, confidence) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_part_votes_can_only_widen_the_range() -> None:
    low, high = binomial_range(8.4, 10)
    assert low == binomial_range(8, 10)[0] < binomial_range(9, 10)[0]
    assert high == binomial_range(9, 10)[1] > binomial_range(8, 10)[1]
    assert binomial_range(9 - 1e-12, 10) == binomial_range(9, 10)


def test_interval_score_is_width_and_penalty() -> None:
    assert interval_score(-1.0, 1.0, 0.3, 20.0) == 2.0
    assert interval_score(-1.0, 1.0, 1.5, 20.0) == pytest.approx(2.0 + 20 * 0.5)
    assert interval_score(-1.0, 1.0, -1.5, 4.0) == pytest.approx(2.0 + 4 * 0.5)


def test_interval_score_is_least_for_the_true_quantiles() -> None:
    """A proper score: honest ends beat bolder and more timid ones on average."""
    draws = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
    half = float(norm.ppf(0.95))

    def average(low: float, high: float) -> float:
        return float(np.mean([interval_score(low, high, v, 20.0) for v in draws.tolist()]))

    honest = average(-half, half)
    for low, high in ((-1.3, 1.3), (-2.1, 2.1), (-half + 0.3, half + 0.3)):
        assert average(low, high) > honest + 0.01


def test_a_study_has_one_vote_however_many_rows_it_has() -> None:
    many = [score("a", 0.0)] * 9 + [score("b", 3.0)]
    summary = summarise(many)
    assert (summary.studies, summary.rows) == (2, 10)
    assert (summary.votes, summary.coverage) == (1.0, 0.5)
    halves = summarise([score("a", 0.0), score("a", 3.0), score("b", 0.0)])
    assert (halves.votes, halves.coverage) == (1.5, 0.75)
    assert halves.coverage_range == binomial_range(1.5, 2)
    assert halves.interval_score == pytest.approx(((2 + (2 + 20 * 2)) / 2 + 2) / 2)
    assert halves.rival_coverage == 0.75
    assert halves.median_width_factor == pytest.approx(math.exp(2.0))


def test_the_edge_of_an_interval_is_inside() -> None:
    assert summarise([score("a", 1.0), score("b", -1.0)]).coverage == 1.0


def test_a_held_out_study_never_sees_its_own_rows() -> None:
    """However absurd its gain, the interval that predicts it is the same; the gain itself is then outside."""
    rows = literature(1, 12)
    (victim, *_) = sorted({row.study for row in rows})
    absurd = [row._replace(ceg=row.ceg * 1e6) if row.study == victim else row for row in rows]
    before, after = (leave_one_study_out(r, [victim]).scores for r in (rows, absurd))
    assert before
    for one, other in zip(before, after, strict=True):  # the search begins from a fit to all rows: its last digits
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=1e-3)
        assert (one.rival_low, one.rival_high) == (other.rival_low, other.rival_high)
    assert not any(s.low <= s.value <= s.high for s in after)


def test_a_study_that_nobody_else_can_predict_is_named() -> None:
    rows = [*literature(2, 6), published(algorithm="sparse_attention", baseline="dense_attention", study="alone")]
    report = leave_one_study_out(rows, ["alone"])
    assert report.scores == ()
    assert report.unscored == ("alone",)


@pytest.mark.parametrize("factor", [1, 3])
def test_scatter_that_was_put_in_is_found_again(factor: int) -> None:
    """Shared setting times each algorithm's own multiplier, within the doubt that 40 studies leave."""
    rows = [row._replace(ceg=row.ceg**factor) for row in literature(3, 40)]
    spread = prior.fit_spread(rows)
    scatter = np.square([s.scatter for s in prior.SCENARIOS])
    asked = [q.rows for _, _, q in prior.questions(rows) if q.rows is not None]
    said = (prior.updated(prior.prior_weights(), prior.log_likelihoods(arrays, spread)) for arrays in asked)
    squares = [float(weights @ scatter) for weights in said]
    found = math.sqrt(np.mean(squares)) * math.hypot(spread.study_level, spread.contrast_level)
    put_in = factor * math.hypot(KNOWN.study_level, KNOWN.contrast_level)
    assert found == pytest.approx(put_in, rel=0.35)


@pytest.mark.slow
def test_a_literature_drawn_from_the_model_is_covered_as_promised() -> None:
    """Four literatures of 25 studies. Votes of one literature hang together, so the bounds are generous."""
    summaries = [summarise(leave_one_study_out(literature(seed)).scores) for seed in range(4)]
    assert all(s.studies >= 20 for s in summaries)
    pooled = sum(s.votes for s in summaries) / sum(s.studies for s in summaries)
    assert 0.8 <= pooled <= 0.98
    # Knowing the algorithm beats one interval for all of them.
    assert np.mean([s.interval_score for s in summaries]) < np.mean([s.rival_interval_score for s in summaries])


def test_the_report_says_what_it_scored() -> None:
    rows = literature(4, 6)
    report = leave_one_study_out(rows, sorted({r.study for r in rows})[:2], 0.5)
    document = coverage.document(report)
    assert document["interval_probability"] == 0.5
    written = document["rows"]
    assert isinstance(written, list)
    assert [r["study"] for r in written] == [s.study for s in report.scores]
    assert all(r["low"] < r["high"] for r in written)


def test_write_stores_settings_and_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prior.frozen()  # read before the file is another
    monkeypatch.setattr(prior, "PRIOR_FILE", tmp_path / "prior.json")
    monkeypatch.setattr(coverage, "COVERAGE_FILE", tmp_path / "coverage.json")
    shipped = only_published(load())
    monkeypatch.setattr(coverage, "studies", lambda _: ["gundlach_2025", "zhang_2019"])
    printed = Calls("coverage").answer("--write")
    stored = json.loads((tmp_path / "coverage.json").read_text())
    assert stored["evidence_sha256"] == shipped.sha256
    assert json.loads((tmp_path / "prior.json").read_text())["evidence_sha256"] == shipped.sha256
    assert (stored["command"], stored["version"]) == ("ceg coverage", metadata.version("cegain"))
    assert [line["study"] for line in stored["studies"]] == ["gundlach_2025"]
    assert stored["unscored_studies"] == printed["unscored_studies"] == ["zhang_2019"]
    assert set(stored) > set(printed)
    for new, old in zip(stored["rows"], printed["rows"], strict=True):
        assert new["study"] == old["study"]
        assert new["low"] == pytest.approx(old["low"], rel=1e-5)


def test_what_is_stored_is_rounded_and_never_nan() -> None:
    assert scores.rounded({"a": [1 / 3, 2], "b": "0.123456789"}) == {"a": [0.333333, 2], "b": "0.123456789"}
    with pytest.raises(ValueError, match="JSON"):
        scores.rounded({"a": math.nan})
