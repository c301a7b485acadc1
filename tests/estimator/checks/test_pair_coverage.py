"""Whether the intervals of one pair of losses hold: on the shipped frontiers of public ladders, and on made-up ones."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cegain.checks import pair_coverage
from cegain.ladders import ladder
from cegain.ladders.pair import frontiers, slope_prior
from cegain.ladders.pair.slope_prior import Rungs


def arm(name: str, slope: float, trend: float = -0.25, rungs: int = 7, seed: int = 0, grows: bool = True) -> Rungs:
    """A made-up frontier whose ln slope falls by `trend` per decade from `slope` at 1e19 FLOP."""
    decades = np.linspace(18, 21, rungs)
    x = decades * math.log(10)
    slopes = slope * 10 ** (trend / math.log(10) * (decades[:-1] + 0.25 - 19))
    fall = np.concatenate([[0.0], np.cumsum(slopes * np.diff(x))])
    noise = 0.0005 * np.random.default_rng(seed).standard_normal(rungs)
    return Rungs(name, f"{name}{seed}", x, math.log(3.6) - fall + noise, grows)


@pytest.fixture(scope="module")
def points() -> list[pair_coverage.Point]:
    return pair_coverage.score(slope_prior.read_rungs(), most=pair_coverage.HELD)


def test_intervals_hold_on_every_public_frontier_that_their_prior_has_not_seen(
    points: list[pair_coverage.Point],
) -> None:
    lines = {line.set: line for line in pair_coverage.summarise(points)}
    frontiers_only = [line for line in lines.values() if line.frontier and line.set != pair_coverage.POOLED]
    assert len(frontiers_only) == 5
    assert {line.set: line.coverage_90 for line in frontiers_only if line.coverage_90 < 0.80} == {}
    pooled = lines[pair_coverage.POOLED]
    assert 0.85 <= pooled.coverage_90 <= 0.97
    assert pooled.coverage_90 == pytest.approx(np.mean([line.coverage_90 for line in frontiers_only]))
    assert pooled.median_errors[0] <= 0.15
    assert pooled.median_width < 5


def test_the_stored_prior_is_learnt_from_the_stored_rungs() -> None:
    arms = [arm for arm in slope_prior.read_rungs() if arm.grows]
    stored = json.loads(slope_prior.PRIOR.read_text(encoding="utf-8"))
    assert set(stored["without"]) == {arm.set for arm in arms}
    for left in (None, *stored["without"]):
        loaded, learnt = slope_prior.load(without=left), slope_prior.learn([a for a in arms if a.set != left])
        assert left not in loaded.sets
        assert loaded[:7] == pytest.approx(learnt[:7], rel=1e-5)
    with pytest.raises(ValueError, match="no prior without"):
        slope_prior.load(without="nothing")


def test_the_prior_finds_the_slopes_it_was_made_of() -> None:
    slopes = {"a": 0.04, "b": 0.06, "c": 0.09}
    prior = slope_prior.learn([arm(name, slope, seed=i) for i in range(3) for name, slope in slopes.items()])
    assert math.exp(prior.level) == pytest.approx(0.06, rel=0.05)
    assert prior.level_sd == pytest.approx(math.log(1.5), rel=0.1)
    assert prior.trend == pytest.approx(-0.25, abs=0.03)
    assert prior.of_set("c", 1e20) == pytest.approx(0.09 * math.exp(-0.25), rel=0.05)
    with pytest.raises(ValueError, match="two sets"):
        slope_prior.learn([arm("a", 0.05)])


def test_a_set_is_scored_without_itself_and_alone_makes_no_vote_of_many_arms() -> None:
    usual = [arm(name, 0.055, seed=i) for name in "abc" for i in range(2)]
    odd = [arm("odd", 0.2, seed=i) for i in range(12)]
    lines = {line.set: line for line in pair_coverage.summarise(pair_coverage.score([*usual, *odd]))}
    assert lines["odd"].coverage_90 < 0.2
    assert lines["pooled"].coverage_90 == pytest.approx(np.mean([lines[s].coverage_90 for s in ("a", "b", "c", "odd")]))
    apart = [a._replace(grows=False) for a in odd]
    lines = {line.set: line for line in pair_coverage.summarise(pair_coverage.score([*usual, *apart]))}
    assert not lines["odd"].frontier
    assert lines["pooled"].pairs == sum(lines[s].pairs for s in "abc")
    with pytest.raises(ValueError, match="three sets"):
        pair_coverage.score(usual[:4])


def test_the_report_and_its_json(points: list[pair_coverage.Point]) -> None:
    console = Console(width=120, record=True)
    pair_coverage.print_report(console, points)
    text = console.export_text()
    assert all(word in text for word in ("olmo_ladder", "routing_final *", "pooled"))
    document = pair_coverage.document(points)
    json.dumps(document, allow_nan=False)
    assert document["sets"][-1]["set"] == "pooled"  # type: ignore[index]


def test_a_grid_of_sizes_and_ratios_is_one_ladder_per_ratio(tmp_path: Path) -> None:
    rows = ["variant,N,D,C,loss"]
    for n in (1e8, 3e8, 1e9, 3e9):
        for ratio in (10, 40, 160):
            rows.append(f"x,{n},{ratio * n},{6 * ratio * n * n},{1.7 + 400 * n**-0.33 + 400 * (ratio * n) ** -0.28}")
    path = tmp_path / "grid.csv"
    path.write_text("\n".join(rows))
    arms = frontiers.arms_of(ladder.read_runs(path))
    assert [(len(a.x), a.grows) for a in arms] == [(4, True)] * 3
    assert "40 tokens per parameter" in arms[1].arm
    assert all((np.diff(a.y) < 0).all() for a in arms)
    fixed = tmp_path / "fixed.csv"
    rows = [f"x,{n},1e11,{6e11 * n},{1.7 + 400 * n**-0.33}" for n in (1e8, 3e8, 1e9)]
    fixed.write_text("\n".join(["variant,N,D,C,loss", *rows]))
    assert not frontiers.arms_of(ladder.read_runs(fixed))[0].grows


def test_stored_rungs_come_back(tmp_path: Path) -> None:
    arms = [arm("a", 0.05), arm("b", 0.06, grows=False)]
    path = tmp_path / "rungs.csv"
    path.write_bytes(frontiers.table_of(arms))
    back = slope_prior.read_rungs(path)
    assert [(a.set, a.arm, a.grows) for a in back] == [(a.set, a.arm, a.grows) for a in arms]
    assert back[0].y == pytest.approx(frontiers.stored(arms[0].y))
