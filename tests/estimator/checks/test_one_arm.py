import math
from pathlib import Path

import numpy as np
import pytest

from cegain.checks import one_arm
from cegain.ladders import ladder, synthetic


def table(tmp_path: Path, rungs: int = 10, noise: float = 0.0005, seed: int = 0) -> ladder.RunTable:
    path = tmp_path / f"{rungs}{seed}.csv"
    path.write_text(synthetic.table("constant", rungs, noise, seed))
    return ladder.read_runs(path)


def test_hidden_losses_are_predicted_and_not_seen(tmp_path: Path) -> None:
    runs = table(tmp_path)
    points = one_arm.hold_out(runs, ["baseline"], [10.0], resamples=50)
    top = runs.C[np.array(runs.variant) == "baseline"].max()
    assert {p.law for p in points} >= {"frontier", "line"}
    assert all(p.flops > top / 10 for p in points)
    frontier = [p for p in points if p.law == "frontier"]
    assert all(abs(p.predicted - p.actual) < 0.02 for p in frontier)
    changed = np.where(runs.C.max() == runs.C, runs.loss * 0.9, runs.loss)
    again = one_arm.hold_out(runs._replace(loss=changed), ["baseline"], [10.0], resamples=50)
    assert [p.predicted for p in again] == [p.predicted for p in points]


def test_intervals_hold_and_the_line_has_none(tmp_path: Path) -> None:
    points = [
        point
        for seed in range(12)
        for point in one_arm.hold_out(table(tmp_path, seed=seed), ["baseline", "treatment"], [10.0], resamples=60)
    ]
    rows = {row.law: row for row in one_arm.summarise(points)}
    assert rows["line"].coverage_90 is None
    assert rows["frontier"].coverage_90 is not None
    assert rows["frontier"].coverage_90 > 0.6
    assert rows["frontier"].median_error < rows["line"].median_error
    assert one_arm.document(points)["schema"] == "ceg.backtest_laws"


def test_short_arms_give_no_points(tmp_path: Path) -> None:
    assert one_arm.hold_out(table(tmp_path, rungs=5), ["baseline"], [10.0]) == []
    summary = one_arm.Point("a", 10.0, "line", 1e20, 1.0, math.log(3.0), math.log(3.03), math.nan, math.nan)
    (row,) = one_arm.summarise([summary])
    assert row.median_error == pytest.approx(1.0)
