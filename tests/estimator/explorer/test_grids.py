"""The grids of answers that a page looks up: complete, those of the command, and kept."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from scipy.interpolate import CubicSpline

from cegain import algorithms
from cegain.common import verdict
from cegain.explorer import explorer, grids, stored
from cegain.gain import prior, question
from cegain.gain.evidence import load
from cegain.gain.question import estimate_all
from tests.estimator.explorer.conftest import keep_few

AT_GRID, BETWEEN = 0.01, 0.03


@pytest.fixture(scope="module")
def found() -> grids.Document:
    asked = grids.Asked(load(), None, prior.frozen())
    with pytest.MonkeyPatch.context() as patch:
        keep_few(patch)
        document = grids.answers(asked, grids.stacks(asked), processes=1)
    told: grids.Document = json.loads(json.dumps(document, allow_nan=False))
    return told


def summed(steps: Sequence[int | None], per_unit: int) -> list[float]:
    """Values of differences; NaN where there is none."""
    values, last = [], 0
    for step in steps:
        last += step or 0
        values.append(math.nan if step is None else last / per_unit)
    return values


def curve_of(found: grids.Document, stack: str, currency: str) -> grids.Document:
    held = found["stacks"][stack]
    curve: grids.Document = held["flop"] if currency == "flop" else held[currency]["h100 2048"]
    return held[curve["same"]]["h100 2048"] | curve if "same" in curve else curve


def test_every_algorithm_and_named_stack_is_there(found: grids.Document) -> None:
    assert {*algorithms.names(), "moe+rope", "rmsnorm+rope+swiglu"} == set(found["stacks"])
    assert found["statuses"] == list(verdict.STATUSES)


def test_pairs_are_those_that_can_stand_together() -> None:
    stacks = grids.stacks(grids.Asked(load(), None, prior.frozen()))
    pairs = {stack for stack in stacks if len(stack) == 2}
    assert ("moe", "rope") in pairs
    assert ("layernorm", "rmsnorm") not in pairs  # a block has one kind of norm
    assert not any("transformer" in pair for pair in pairs)
    assert len(pairs) > 25
    assert [name for name in algorithms.names() if (name,) not in stacks] == []
    assert set(grids.NAMED.values()) <= set(stacks)


@pytest.mark.parametrize("currency", question.CURRENCIES)
def test_answers_are_those_of_the_command(found: grids.Document, currency: str) -> None:
    draw = np.random.default_rng(3)
    compared = 0
    for stack in found["stacks"]:
        curve = curve_of(found, stack, currency)
        x = summed(curve["x"], found["steps"]["x"])
        places = [*draw.choice(x, 1), *draw.uniform(x[0], x[-1], 1)]
        for at in places:
            where = {} if currency == "flop" else {"device": "h100", "seq_len": 2048}
            (e,) = estimate_all(stack.split("+"), [10 ** float(at)], currency=currency, **where)
            nearest = int(np.argmin(np.abs(np.array(x) - at)))
            assert found["statuses"][int(curve["status"][nearest])] == e.status, (stack, at)
            assert found["texts"][curve["reasons"][nearest]].split(" ")[1:3] == e.reason.split(" ")[1:3]
            if e.median is None:
                continue
            alike = [i for i in range(len(x)) if curve["timed"][i] == curve["timed"][nearest]]
            alike = [i for i in alike if found["statuses"][int(curve["status"][i])] != "no_evidence"]
            exact = min(abs(x[i] - at) for i in alike) < 1e-9
            told = {"median": e.median, "mean": e.mean_median, "low90": e.predictive[0], "high90": e.predictive[1],
                    "low50": e.predictive_50[0], "high50": e.predictive_50[1], "low_mean": e.mean_interval[0],
                    "high_mean": e.mean_interval[1]}  # fmt: skip
            for name, value in told.items():
                y = np.array(summed(curve["gains"][name], found["steps"]["ln"]))
                spline = CubicSpline([x[i] for i in alike], y[alike], bc_type="natural")
                assert math.exp(spline(at)) == pytest.approx(value, rel=AT_GRID if exact else BETWEEN), (
                    stack,
                    at,
                    name,
                )
                compared += 1
    assert compared > 50


def test_what_does_not_change_with_the_budget_is_the_answers(found: grids.Document) -> None:
    (e,) = estimate_all("moe+rope", [1e21])
    curve = curve_of(found, "moe+rope", "flop")
    assert curve["class"] == e.label
    assert curve["classes"] == pytest.approx(e.classes)
    assert curve["growth"] == pytest.approx([e.growth_per_decade, *e.growth_interval])
    assert len(curve["measured"]) == len(e.interaction.observations)
    at = summed(curve["x"], found["steps"]["x"]).index(21.0)
    shares = [summed(steps, found["steps"]["share"])[at] for steps in curve["above"]]
    assert shares == pytest.approx([e.above[t] for t in found["thresholds"]], abs=1e-4)
    assert [found["texts"][place] for place in curve["notes"][at]] == list(e.notes)


def test_the_two_models_are_those_of_the_answer(found: grids.Document) -> None:
    (e,) = estimate_all("moe", [1e24], currency="time", device="h100", seq_len=2048)
    curve = curve_of(found, "moe", "time")
    at = summed(curve["x"], found["steps"]["x"]).index(24.0)
    gain, factor, sd, treatment, baseline = curve["models"][at]
    assert [gain, factor, sd] == pytest.approx(
        [e.gain_in_flop, math.exp(e.speeds.ln_factor), math.sqrt(e.speeds.variance)], rel=0.01
    )
    for told, side in ((treatment, e.speeds.treatment), (baseline, e.speeds.baseline)):
        assert told[:2] == [side.shape.n_layers, side.shape.d_model]
        assert told[4] == side.time.plan.devices
        assert told[5] == pytest.approx(side.time.seconds, rel=0.1)


def test_models_are_timed_in_dollars_as_in_time(found: grids.Document) -> None:
    assert found["stacks"]["moe"]["usd"]["h100 2048"]["same"] == "time"
    for flops in (1e19, 1e24):
        (time,), (usd,) = (
            estimate_all("moe", [flops], currency=c, device="h100", seq_len=2048) for c in ("time", "usd")
        )
        assert usd.predictive == time.predictive


def test_statuses_change_between_budgets_that_lie_close(found: grids.Document) -> None:
    for stack, currency in itertools.product(found["stacks"], question.CURRENCIES):
        curve = curve_of(found, stack, currency)
        x = summed(curve["x"], found["steps"]["x"])
        gaps = [b - a for a, b, s, t in zip(x, x[1:], curve["status"], curve["status"][1:], strict=False) if s != t]
        assert max(gaps, default=0.0) <= grids.STATUS_CLOSE + 1e-4


def test_many_processes_give_what_one_does(found: grids.Document, monkeypatch: pytest.MonkeyPatch) -> None:
    keep_few(monkeypatch)
    asked = grids.Asked(load(), None, prior.frozen())
    done: list[tuple[int, int]] = []
    some = [("moe",), ("rope",), ("gqa",)]
    told = grids.answers(asked, some, processes=2, done=lambda i, n: done.append((i, n)))
    assert done == [(1, 3), (2, 3), (3, 3)]
    for (stack,) in some:
        for currency in ("flop", "decode"):
            assert curve_of(told, stack, currency)["x"] == curve_of(found, stack, currency)["x"]
            assert curve_of(told, stack, currency).get("gains") == curve_of(found, stack, currency).get("gains")


@pytest.mark.usefixtures("few")
def test_answers_are_kept_until_something_they_follow_from_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CEG_CACHE", str(tmp_path / "new"))
    calls: list[int] = []
    real = grids.answers
    monkeypatch.setattr(grids, "answers", lambda *a, **k: calls.append(1) or real(*a, processes=1))
    tables = load()
    first = explorer.answers(tables, False, [])
    assert explorer.answers(tables, False, []) == first
    assert len(calls) == 1
    (kept,) = (tmp_path / "new").iterdir()
    kept.write_bytes(kept.read_bytes()[:1000])  # as a full disk leaves it
    explorer.answers(tables, False, [])
    assert len(calls) == 2
    assert stored.key("a") != stored.key("b")
    monkeypatch.setattr(stored, "PACKAGE", tmp_path)
    before = stored.key("a")
    (tmp_path / "method.py").write_text("LEVEL = 1")
    assert stored.key("a") != before


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CEG_CACHE", str(tmp_path / "file" / "cache"))
    stored.keep("0" * 64, {"a": 1})
    assert stored.load("0" * 64) is None


def test_the_latest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEG_CACHE", str(tmp_path))
    for i in range(stored.MOST + 3):
        stored.keep(f"{i:064d}"[::-1], {"i": i})
    assert len(list(tmp_path.iterdir())) == stored.MOST
