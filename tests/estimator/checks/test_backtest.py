import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from cegain.checks import backtest
from cegain.checks.backtest import Pair
from cegain.ladders import forecast, ladder, synthetic
from cegain.tables.problems import EvidenceError

SETTINGS = forecast.Settings(0.15, 0.6, 0.003, 0.5, (0.2, 0.8), (0.0, 0.5), 0.5, 0.2)
PAIR = Pair("made", "baseline", "treatment")


def runs(tmp_path: Path, truth: str = "fading", rungs: int = 9, seed: int = 0) -> ladder.RunTable:
    path = tmp_path / f"{truth}{seed}.csv"
    path.write_text(synthetic.table(truth, rungs, 0.002, seed))
    return ladder.read_runs(path)


def held(
    table: ladder.RunTable, pair: Pair = PAIR, workers: int = 1, resamples: int = 0
) -> tuple[list[backtest.Cell], list[backtest.Skipped]]:
    ((_, cells, skipped),) = backtest.hold_out([table], [pair], settings=SETTINGS, workers=workers, resamples=resamples)
    return cells, skipped


def test_scores_every_readable_hidden_budget_in_both_directions(tmp_path: Path) -> None:
    table = runs(tmp_path)
    cells, _ = held(table)
    whole = {arm: ladder.ladder(table, arm) for arm in ("baseline", "treatment")}
    assert {c.cut for c in cells} == {3, 10, 30, 100}
    for cell in cells:
        treat, base = whole[cell.pair.treatment], whole[cell.pair.baseline]
        limit = treat.x[-1] - math.log(cell.cut)
        wanted = [x for x, y in zip(treat.x, treat.y, strict=True) if x > limit + 0.1 and base.y[-1] <= y <= base.y[0]]
        assert cell.log10_flops * forecast.LN10 == pytest.approx(wanted)


def test_the_forecast_does_not_see_hidden_runs(tmp_path: Path) -> None:
    table = runs(tmp_path)
    changed = table.loss.copy()
    top = table.C.max() == table.C
    changed[top] *= np.where(np.array(table.variant)[top] == "baseline", 0.985, 1.004)
    before, after = held(table)[0], held(table._replace(loss=changed))[0]
    found = {(c.pair, c.cut, round(float(x), 6)): (c, i) for c in after for i, x in enumerate(c.log10_flops)}
    moved = 0
    for a in before:
        for i, x in enumerate(a.log10_flops):
            b, j = found.get((a.pair, a.cut, round(float(x), 6)), (None, 0))
            if b is None:  # the changed run is no longer within the other arm's range
                continue
            assert (a.last, a.reads) == (b.last, b.reads)
            assert a.means[:, i].tolist() == b.means[:, j].tolist()
            assert a.variances[:, i].tolist() == b.variances[:, j].tolist()
            moved += a.actual[i] != b.actual[j]
    assert moved  # what is scored against did change


def test_error_of_reading_the_actual_gain_is_in_the_interval(tmp_path: Path) -> None:
    (cell, *_), nodes = held(runs(tmp_path))[0], forecast.grid(SETTINGS)
    wide = cell._replace(known=cell.known + 0.04)
    for narrow_quantiles, wide_quantiles in zip(
        backtest.predict(cell, SETTINGS, nodes), backtest.predict(wide, SETTINGS, nodes), strict=True
    ):
        assert (np.ptp(wide_quantiles, axis=0) > np.ptp(narrow_quantiles, axis=0) + 0.05).all()


def test_short_ladders_are_too_few(tmp_path: Path) -> None:
    cells, skipped = held(runs(tmp_path, rungs=3))
    assert cells == []
    assert {s.why for s in skipped} == {"too_few"}


def test_arms_without_common_loss_are_not_scored(tmp_path: Path) -> None:
    table = runs(tmp_path)
    apart = table._replace(loss=np.where(np.array(table.variant) == "baseline", table.loss + 9, table.loss))
    cells, skipped = held(apart)
    assert cells == []
    assert {s.why for s in skipped} <= {"too_few", "not_bracketed", "no_overlap"}


def test_two_workers_find_the_same(tmp_path: Path) -> None:
    one, two = held(runs(tmp_path))[0], held(runs(tmp_path), workers=2)[0]
    assert [c.means.tolist() for c in one] == [c.means.tolist() for c in two]


def test_cuts_must_exceed_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="above 1"):
        list(backtest.hold_out([runs(tmp_path)], [PAIR], [1.0], SETTINGS))


def test_settings_do_not_look_at_the_set_left_out(tmp_path: Path) -> None:
    cells = []
    for i, truth in enumerate(("fading", "power-law", "constant")):
        cells += held(runs(tmp_path, truth, seed=i), Pair(truth, "baseline", "treatment"))[0]
    spoiled = [c._replace(actual=c.actual + 3) if c.pair.set == "fading" else c for c in cells]
    clean, bad = backtest.freeze(cells, SETTINGS), backtest.freeze(spoiled, SETTINGS)
    assert isinstance(clean["without"], dict)
    assert isinstance(bad["without"], dict)
    assert clean["without"]["fading"] == bad["without"]["fading"]
    assert clean["default"] != bad["default"]


def test_report_and_document(tmp_path: Path) -> None:
    cells, skipped = held(runs(tmp_path), resamples=20)
    points = backtest.score(cells, lambda name: SETTINGS)
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    backtest.print_report(console, points, skipped)
    said = console.export_text()
    assert "forecast" in said
    assert "frontier" in said
    found = json.loads(json.dumps(backtest.document(points, skipped, {"made": SETTINGS}), allow_nan=False))
    assert len(found["points"]) == len(points)
    whole = [s for s in backtest.summarise(points) if s.cut == "all" and s.method == "forecast"]
    assert 1 <= whole[0].median_factor < 1.5


def test_small_cells_say_too_few(tmp_path: Path) -> None:
    cells, skipped = held(runs(tmp_path))
    points = backtest.score(cells, lambda name: SETTINGS)[: backtest.ENOUGH_POINTS - 1]
    console = Console(width=140, record=True, file=(tmp_path / "out").open("w"))
    backtest.print_report(console, points, skipped)
    assert "too few" in console.export_text()


def test_points_that_two_cuts_share_count_once_over_all_cuts(tmp_path: Path) -> None:
    points = backtest.score(held(runs(tmp_path))[0], lambda name: SETTINGS)
    twice = [*points, *(p._replace(cut=999.0) for p in points)]
    for once, again in zip(backtest.summarise(points), backtest.summarise(points), strict=True):
        assert once == again
    whole = {s.method: s.points for s in backtest.summarise(twice) if s.cut == "all"}
    assert whole["forecast"] == len(points)


def test_pooling_weighs_sets_alike() -> None:
    quantiles = (-1.0, -0.5, 0.0, 0.5, 1.0)

    def point(name: str, i: int, actual: float) -> backtest.Point:
        return backtest.Point(
            name, "b", f"t{i}", "b", 3, 1e20, 9, 1.0, "ok", actual, quantiles, quantiles, quantiles, quantiles
        )

    points = [point("many", i, 2.0) for i in range(80)] + [point("few", i, 0.0) for i in range(8)]
    pooled = [s for s in backtest.summarise(points) if s.set == "pooled"]
    assert pooled[0].coverage_90 == pytest.approx(0.5)


def test_paired_scores_have_a_range_over_reference_arms() -> None:
    ours, last = (-1.0, -0.5, 0.0, 0.5, 1.0), (-2.0, -1.0, 0.0, 1.0, 2.0)

    def point(reference: str, i: int, name: str = "one") -> backtest.Point:
        status = "ok" if i else "few_rungs"
        return backtest.Point(name, reference, f"t{i}", reference, 3, 1e20, 9, 1.0, status, 0.0, ours, last, last, last)

    (row,) = backtest.differences([point(reference, i) for reference in "ab" for i in range(4)])
    assert (row.references, row.difference, row.ok) == (2, -2.0, 0.75)  # every point has a width of 2 against 4
    assert row.range == (-2.0, -2.0)
    (alone,) = backtest.differences([point("a", i) for i in range(8)])
    assert alone.range == (-math.inf, math.inf)
    assert backtest.differences([point("a", i) for i in range(7)]) == []  # too few points
    values = np.array([1.0, 2.0, 4.0, 7.0])
    from scipy import stats

    expected = stats.t.interval(0.95, 3, values.mean(), stats.sem(values))
    assert backtest._range_of(values.mean(), values - values.mean()) == pytest.approx(expected)


def test_pairs_file(tmp_path: Path) -> None:
    path = tmp_path / "pairs.csv"
    path.write_text("set,baseline,treatment\nmade,a,b\n")
    assert backtest.read_pairs(path) == [Pair("made", "a", "b")]
    for bad, said in (
        ("set,baseline\nx,y\n", "columns"),
        ("set,baseline,treatment\n,a,b\n", "empty"),
        ("set,baseline,treatment\nx,a,b\nx,a\n", "line 3: a row has 3 cells"),
        ("set,baseline,treatment\n", "at least one pair"),
    ):
        path.write_text(bad)
        with pytest.raises(EvidenceError, match=said):
            backtest.read_pairs(path)
    with pytest.raises(EvidenceError, match="read"):
        backtest.read_pairs(tmp_path / "none.csv")


def test_all_pairs_takes_the_earlier_variant_as_reference(tmp_path: Path) -> None:
    assert backtest.all_pairs(runs(tmp_path)) == [PAIR._replace(set="fading0")]


def test_each_set_is_scored_on_its_own_table(tmp_path: Path) -> None:
    """Two tables with the same names of arms: swapping the files must not swap the numbers."""
    tables = [runs(tmp_path, "fading"), runs(tmp_path, "constant")]
    pairs = [Pair("fading0", "baseline", "treatment"), Pair("const", "baseline", "treatment")]
    found: dict[str, list[list[list[float]]]] = {}
    for order in (tables, tables[::-1]):
        for pair, cells, _ in backtest.hold_out(order, pairs, settings=SETTINGS, resamples=0):
            found.setdefault(pair.set, []).append([cell.actual.tolist() for cell in cells])
    assert found["fading0"][0] == found["fading0"][1]
    assert found["const"][0] == found["const"][1]
    assert found["fading0"][0] != found["const"][0]


def test_pairs_without_a_table_are_named(tmp_path: Path) -> None:
    missing = Pair("made", "baseline", "tretment")
    assert backtest.unmatched([runs(tmp_path)], [PAIR, missing]) == [missing]
