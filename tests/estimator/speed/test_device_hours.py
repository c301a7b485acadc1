"""Published runs: counts as reported, one set of assumptions, actual hours inside ranges."""

from __future__ import annotations

import math

import pytest

from cegain.shapes import architecture
from cegain.speed import device_hours
from cegain.speed.device_hours import ASSUMPTIONS, RUNS, PublishedRun, predict

PREDICTIONS = {run.name: predict(run) for run in RUNS}


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_shapes_have_the_parameters_and_flop_that_are_reported(run: PublishedRun) -> None:
    total = {"Llama 3.1 405B": 405e9, "DeepSeek-V3": 671e9, "GPT-3 175B": 175e9, "Llama 2 70B": 69e9}[run.name]
    count = architecture.parameters(run.shape)
    assert count.total == pytest.approx(total, rel=0.06)
    assert 6 * count.active * run.tokens == pytest.approx(run.reported_flops, rel=0.05)
    assert count.active == pytest.approx({"DeepSeek-V3": 37e9}.get(run.name, total), rel=0.03)


def test_three_of_four_lie_inside_ranges_that_are_not_wide() -> None:
    inside = [p for p in PREDICTIONS.values() if p.inside and p.width <= 1.8]
    assert len(inside) >= 3


def test_the_fourth_is_explained_by_the_speed_of_its_time() -> None:
    (outside,) = [p for p in PREDICTIONS.values() if not p.inside]
    assert outside.run.name == "GPT-3 175B"
    assert outside.run.note
    assert outside.hours_then == pytest.approx(outside.run.actual_hours, rel=0.2)


def test_a_range_is_what_moves_it() -> None:
    for p in PREDICTIONS.values():
        assert set(p.sensitivity) == {*ASSUMPTIONS, "step-time model"}
        assert p.low < p.hours < p.high
        assert all(low / p.hours < 1 < high / p.hours for low, high in map(sorted, p.sensitivity.values()))
        widest = max(abs(math.log(high / low)) for low, high in p.sensitivity.values())
        assert widest < math.log(p.width) < sum(abs(math.log(h / low)) for low, h in p.sensitivity.values())


def test_hours_follow_the_formula() -> None:
    p = PREDICTIONS["Llama 2 70B"]
    goodput, exposed, again = (ASSUMPTIONS[name].middle for name in ("goodput", "exposed", "recompute"))
    flops = p.run.tokens * architecture.flops_per_token(p.run.shape)
    assert p.hours == pytest.approx(flops / p.alone * (1 + again / 3) / (goodput * (1 - exposed)) / 3600)
    # no run has a factor of its own: what differs between runs is their speed alone
    ratios = {name: (end / p.hours for end in p.sensitivity[name]) for name in ASSUMPTIONS}
    for other in PREDICTIONS.values():
        for name in ASSUMPTIONS:
            assert [end / other.hours for end in other.sensitivity[name]] == pytest.approx(
                [end / p.hours for end in p.sensitivity[name]]
            )
    assert len(ratios) == 3


def test_document_is_the_predictions() -> None:
    document = device_hours.document(list(PREDICTIONS.values()))
    assert document["inside"] == 3
    for entry, p in zip(document["runs"], PREDICTIONS.values(), strict=True):
        assert entry["device_hours"]["median"] == p.hours
        assert entry["source"]
