"""What counting forbids, against the FLOP of whole shapes; bounds read as bounds."""

import math

import numpy as np
import pytest

from cegain import estimate
from cegain.gain import bounds, capped, contrasts, prior
from cegain.gain.study import Rows
from cegain.shapes import architecture
from tests.estimator.gain.test_contrasts import FIRST, ask, published

ATTENTION = ("sparse_attention", "sliding_window")
ALL = (*ATTENTION, "mqa", "gqa")


@pytest.mark.parametrize("seq_len", [512, 2048, 12288, 131072])
@pytest.mark.parametrize("flops", [1e20, 1e22, 1e24, 1e26])
def test_a_cap_is_the_share_of_whole_shapes(flops: float, seq_len: int) -> None:
    """Widths are whole multiples of heads there, so shares differ a little."""
    shape = architecture.compute_optimal_shape(flops, "bare", seq_len=seq_len)
    parts = architecture.flop_parts(shape)
    parts.pop("optimizer")
    whole = math.fsum(parts.values())
    cap = float(np.exp(capped.ln_cap("sparse_attention", np.array([flops]), seq_len))[0])
    assert cap - 1 == pytest.approx(1 / (1 - parts["scores"] / whole) - 1, rel=0.2)
    shared = architecture.compute_optimal_shape(flops, "bare", seq_len=seq_len, heads="mqa")
    saved = 1 - math.fsum(v for k, v in architecture.flop_parts(shared).items() if k != "optimizer") / whole
    cap = float(np.exp(capped.ln_cap("mqa", np.array([flops]), seq_len))[0])
    assert cap - 1 == pytest.approx(1 / (1 - saved) - 1, rel=0.2)


@pytest.mark.parametrize("name", ALL)
def test_a_cap_changes_smoothly_and_grows_with_length_for_patterns(name: str) -> None:
    flops = 10.0 ** np.arange(17, 27, 0.05)
    assert np.abs(np.diff(capped.ln_cap(name, flops, 2048), 2)).max() < 1e-3
    longer = [capped.ln_cap(name, flops[:1], t)[0] for t in (512, 2048, 8192)]
    assert (sorted(longer) == longer) == (name in ATTENTION)


@pytest.mark.parametrize("seq_len", [2048, 12288, 131072])
@pytest.mark.parametrize("flops", [1e18, 1e21, 1e24, 1e26])
def test_no_answer_passes_its_cap(flops: float, seq_len: int) -> None:
    answer = estimate("sparse_attention", flops, seq_len=seq_len, interval=0.95)
    assert answer.cap == pytest.approx(math.exp(capped.ln_cap("sparse_attention", np.array([flops]), seq_len)[0]))
    for ends in (answer.predictive, answer.mean_interval, answer.predictive_50):
        assert ends is not None
        assert ends[1] < answer.cap
    assert answer.selected is None or answer.selected.interval[1] < answer.cap


def test_a_capped_gain_has_no_class() -> None:
    answer = estimate("mqa", 1e20)
    assert answer.status == "ok"
    assert answer.label == "undetermined"
    assert answer.classes is answer.prior_classes is None
    assert "counting caps the gain" in answer.label_lacks


def test_length_changes_an_answer_in_flop() -> None:
    medians = [estimate("sparse_attention", 1e22, seq_len=t).median or 0 for t in (2048, 12288, 131072)]
    assert medians == sorted(medians)
    assert medians[2] > 2 * medians[0]


# Bounds


def arrays(*rows: dict[str, object]) -> Rows:
    found = contrasts.question([published(**cells) for cells in rows], "rope", "learned_positions", "flop").rows
    assert found is not None
    return found


def test_what_is_a_bound() -> None:
    rows = arrays({"study": "a", "low": 1.5}, {"study": "b", "high": 1.5}, {"study": "c", "low": 1.0}, {"study": "d"})
    assert rows.bound.tolist() == [1, -1, 0, 0]


def test_a_bound_that_nobody_doubted_says_nothing() -> None:
    plain = ask(FIRST)
    bounded = ask([*FIRST, published(study="d", ceg=0.3, low=0.3)])
    assert bounded.median == pytest.approx(plain.median, rel=2e-3)
    above = ask([*FIRST, published(study="d", ceg=8.0, high=8.0)])
    assert above.median == pytest.approx(plain.median, rel=2e-3)


def test_a_bound_above_what_is_expected_draws_the_answer_up_but_no_further_than_a_reading() -> None:
    plain, read = ask(FIRST).median or 0, ask([*FIRST, published(study="d", ceg=3.0)]).median or 0
    bounded = ask([*FIRST, published(study="d", ceg=3.0, low=3.0)]).median or 0
    assert plain * 1.02 < bounded <= read * 1.05


def test_a_site_has_the_moments_of_the_truncated_normal() -> None:
    rng = np.random.default_rng(0)
    for limit, mean, variance, noise, side in ((1.0, 0.5, 0.4, 0.01, 1), (0.2, 0.9, 0.3, 0.05, -1)):
        value, site = bounds._site(limit, noise, side, mean, variance)
        truth = rng.normal(mean, math.sqrt(variance), 2_000_000)
        kept = truth[side * (truth + rng.normal(0, math.sqrt(noise), len(truth)) - limit) > 0]
        weight = 1 / variance + 1 / site
        assert (mean / variance + value / site) / weight == pytest.approx(kept.mean(), abs=2e-3)
        assert 1 / weight == pytest.approx(kept.var(), rel=1e-2)


def test_bounds_alone_are_answered_from_the_prior() -> None:
    alone = ask([published(low=1.5)], 1e21)
    assert alone.median is not None
    assert alone.median > 1.5
    rows = arrays({"low": 1.5})
    heard, kept = bounds.heard(rows, prior.frozen())
    assert kept.all()
    assert not heard.bound.any()
