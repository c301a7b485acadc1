"""Runs of one size and budget: seeds are averaged, of a sweep the best counts; where nothing tells, both are shown."""

import itertools
import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from cegain.ladders import fit_report, ladder
from cegain.run_tables import repeats
from cegain.run_tables.run_import import ReadOptions
from tests.estimator.calls import Calls
from tests.estimator.run_tables.made_runs import Row, arm, write

GAIN = 1.5


def rates(n: int) -> list[Mapping[str, object]]:
    """Learning rates half a decade apart, the best among them."""
    return [{"lr": f"{1e-3 * 10 ** (0.5 * (i - n // 2)):.3g}"} for i in range(n)]


def too_fast(setting: Mapping[str, object]) -> float:
    return 0.08 * math.log10(float(str(setting["lr"])) / 1e-3) ** 2


def swept(few: int = 5, many: int = 5, seeds: int = 1, seed_column: str | None = None) -> list[Row]:
    """Two arms, each with its sweep of rates."""
    return [
        row
        for name, gain, n in (("base", 1.0, few), ("new", GAIN, many))
        for row in arm(name, gain, settings=rates(n), penalty=too_fast, seeds=seeds, seed_column=seed_column)
    ]


def bare(rows: list[Row]) -> list[Row]:
    return [{name: cell for name, cell in row.items() if name not in ("lr", "seed")} for row in rows]


def stdout(*words: object) -> str:
    """What a call that answers prints."""
    result = Calls().call(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def gain(path: Path, **options: object) -> fit_report.TwoArms:
    table = ladder.read_runs(path, ReadOptions(**options))  # type: ignore[arg-type]
    return fit_report.two_arms(table, "base", "new", [1e20], None)


def test_a_sweep_told_by_its_column_is_reduced_to_its_best(tmp_path: Path) -> None:
    found = gain(write(tmp_path / "sweep.csv", swept()))
    (at,) = found.forecast.at
    assert found.forecast.status == "ok"
    assert at.interval_90[0] < GAIN < at.interval_90[1]
    assert at.median == pytest.approx(GAIN, rel=0.1)
    assert any("the best of 5 settings (by lr)" in note for note in found.forecast.notes)


def test_seeds_within_a_sweep_are_averaged_before_the_best_is_taken(tmp_path: Path) -> None:
    table = ladder.read_runs(write(tmp_path / "both.csv", swept(seeds=3, seed_column="seed")))
    rungs = ladder.ladder(table, "new")
    assert (rungs.repeats == 3).all()
    expected = [
        min(
            np.mean([float(str(r["loss"])) for r in group])
            for _, group in itertools.groupby(list(of_budget), key=lambda r: r["lr"])
        )
        for _, of_budget in itertools.groupby(swept(seeds=3, seed_column="seed")[105:], key=lambda r: r["C"])
    ]
    assert np.exp(rungs.y) == pytest.approx(expected, rel=1e-3)


def test_seeds_are_averaged_with_and_without_a_column(tmp_path: Path) -> None:
    rows = [row for name, g in (("base", 1.0), ("new", GAIN)) for row in arm(name, g, seeds=4, seed_column="seed")]
    for number, table in enumerate((rows, bare(rows))):
        found = gain(write(tmp_path / f"{number}.csv", table))
        assert found.forecast.status == "ok"
        assert found.if_sweep is None
        assert found.forecast.at[0].median == pytest.approx(GAIN, rel=0.1)


def test_where_nothing_tells_both_answers_are_given_and_none_is_ok(tmp_path: Path) -> None:
    path = write(tmp_path / "unclear.csv", bare(swept(3, 7)))
    found = gain(path)
    assert found.forecast.status == "ambiguous_repeats"
    assert found.if_sweep is not None
    assert found.if_sweep.forecast.status == "ok"
    assert found.if_sweep.forecast.at[0].median == pytest.approx(GAIN, rel=0.15)
    assert found.forecast.at[0].median < 0.8  # averaged, the wider sweep loses
    said = stdout("fit", path, "--baseline", "base", "--variant", "new", "--at", "1e20")
    assert "status: ambiguous_repeats" in said
    assert "If they are a sweep" in said
    for choice in repeats.CHOICES:
        again = stdout("fit", path, "--baseline", "base", "--variant", "new", "--at", "1e20", "--repeats", choice)
        assert "ambiguous" not in again
        assert f"status: {'ok' if choice == repeats.SWEEP else 'few_rungs'}" in again  # as seeds they spread by 4%


def test_arms_tuned_unlike_are_said_and_widened(tmp_path: Path) -> None:
    even, uneven = (gain(write(tmp_path / f"{few}.csv", swept(few, 7))) for few in (7, 3))
    widths = [math.log(g.forecast.at[0].interval_90[1] / g.forecast.at[0].interval_90[0]) for g in (even, uneven)]
    assert widths[1] > 2 * widths[0]
    assert any("the best of 3 against the best of 7" in note for note in uneven.forecast.notes)
    assert not any("tuned unlike" in note for note in even.forecast.notes)


def test_the_owner_names_the_columns(tmp_path: Path) -> None:
    rows = [{("knob" if k == "lr" else k): v for k, v in row.items()} for row in swept(3, 3)]
    path = write(tmp_path / "knob.csv", rows)
    assert gain(path).forecast.status == "ambiguous_repeats"
    assert gain(path, sweep_columns=("knob",)).forecast.status == "ok"
    averaged = gain(path, seed_columns=("knob",)).forecast
    assert averaged.status == "ok"
    assert not any("settings" in note for note in averaged.notes)


def test_shapes_of_one_size_are_no_seeds(tmp_path: Path) -> None:
    shapes: list[Mapping[str, object]] = [{"depth": depth} for depth in (8, 16, 32)]
    rows = [
        row
        for name, g in (("base", 1.0), ("new", GAIN))
        for row in arm(name, g, settings=shapes, penalty=lambda s: 0.0 if s["depth"] == 16 else 0.03)
    ]
    found = gain(write(tmp_path / "shapes.csv", rows))
    assert found.forecast.at[0].median == pytest.approx(GAIN, rel=0.1)
    assert any("the best of 3 settings (by depth)" in note for note in found.forecast.notes)


def test_import_settles_it_for_evidence(tmp_path: Path) -> None:
    renamed = {"base": "dense", "new": "moe"}
    rows = [row | {"variant": renamed[str(row["variant"])]} for row in bare(swept(3, 7))]
    path = write(tmp_path / "runs.csv", rows)
    question = ("estimate", "--algo", "moe", "--flops", "1e20", "--only-evidence", "--evidence")
    assert "ambiguous_repeats" in Calls().refused(*question, path)
    settled = tmp_path / "best.csv"
    stdout("import", path, "--repeats", "sweep", "-o", settled)
    assert len(settled.read_text().splitlines()) == 1 + 2 * 7
    assert "CEG of Mixture of experts" in stdout(*question, settled)
    seeds = tmp_path / "seeds.csv"
    stdout("import", path, "--repeats", "seeds", "-o", seeds)
    assert len(seeds.read_text().splitlines()) == len(path.read_text().splitlines())
    assert "seed" in seeds.read_text().splitlines()[0]


def test_best_of_few_is_the_mean_over_all_choices() -> None:
    losses = np.sort(np.random.default_rng(3).normal(size=7))
    for k in range(1, 8):
        brute = np.mean([min(chosen) for chosen in itertools.combinations(losses.tolist(), k)])
        _, error, _ = repeats.uneven([losses], [losses[:k]])
        first, second, _ = repeats.uneven([losses], [losses[:k]])
        assert first == 0.0
        assert second == error
        assert error == pytest.approx(0.0 if k == 7 else brute - losses[0])


@pytest.mark.parametrize("sd", [0.0005, 0.02])
def test_seeds_state_the_noise_of_a_forecast(tmp_path: Path, sd: float) -> None:
    rng = np.random.default_rng(0)
    lines = ["variant,N,D,C,loss,seed"]
    for name, gain_of in (("base", 1.0), ("new", 2.0)):
        for flops in 10.0 ** np.arange(17, 21, 0.5):
            n = math.sqrt(flops / 120)
            truth = 1.7 + 2.3 * (gain_of * flops / 1e17) ** -0.12
            errors = rng.standard_normal(3)
            for seed, error in enumerate(errors - errors.mean()):  # the means are the same whatever the noise
                loss = truth * math.exp(sd * error)
                lines.append(f"{name},{n:.6g},{20 * n:.6g},{flops:.6g},{loss:.8g},{seed}")
    path = tmp_path / f"{sd}.csv"
    path.write_text("\n".join(lines) + "\n")
    table = ladder.read_runs(path)
    scatter = fit_report.seed_scatter(table, ("base", "new"))
    assert scatter == pytest.approx(sd, rel=0.4)
    found = fit_report.two_arms(table, "base", "new", [1e20], None).forecast.at[0]
    width = math.log(found.interval_90[1] / found.interval_90[0])
    assert (found.status == "ok") == (sd < 0.01)
    assert (width > 0.2) == (sd > 0.01)
