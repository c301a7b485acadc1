"""Our own runs as shipped evidence: derived, cited as own, and never mixed up with anybody else's."""

from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from cegain import estimate
from cegain.commands.ceg import ceg
from cegain.gain import evidence
from cegain.gain.evidence import load
from cegain.ladders import own_gains, seed_ladder
from cegain.tables import published_gains, training_runs
from cegain.tables.problems import EvidenceError
from cegain.tables.published_gains import OWN_ROW_COLUMNS, is_own, read_published_gains
from tests.estimator.gain.test_contrasts import published
from tests.estimator.gain.test_method import write
from tests.estimator.ladders import made_ladder


def call(*words: object) -> Result:
    return CliRunner().invoke(ceg, [str(word) for word in words])


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up data folder with a table of runs, and no derived table yet."""
    made_ladder.write(tmp_path / "training_runs.csv", made_ladder.runs())
    monkeypatch.setattr(evidence, "DATA", tmp_path)
    for module in (evidence, published_gains):
        monkeypatch.setattr(module, "OWN_GAINS", tmp_path / "own_gains.csv")
    monkeypatch.setattr(training_runs, "TRAINING_RUNS", tmp_path / "training_runs.csv")
    return tmp_path


def test_the_shipped_table_is_what_the_command_makes() -> None:
    """With no runs there is no table, and nothing of ours in an answer."""
    if training_runs.TRAINING_RUNS.exists():
        try:
            made = own_gains.content(training_runs.TRAINING_RUNS)
        except EvidenceError:  # too few runs for any gain yet
            made = b""
        there = published_gains.OWN_GAINS.read_bytes() if published_gains.OWN_GAINS.exists() else b""
        assert there == made, "run `ceg ladder --write`"
    else:
        assert not published_gains.OWN_GAINS.exists()
        assert not any(map(is_own, load().rows))


def test_write_makes_the_same_file_every_time(project: Path) -> None:
    result = call("ladder", "--write")
    assert result.exit_code == 0, result.output
    first = (project / "own_gains.csv").read_bytes()
    assert first == own_gains.content(project / "training_runs.csv")
    assert call("ladder", "--write").exit_code == 0
    assert (project / "own_gains.csv").read_bytes() == first
    assert sorted(p.name for p in project.iterdir()) == ["own_gains.csv", "training_runs.csv"]
    assert read_published_gains(project / "own_gains.csv") == own_gains.rows(project / "training_runs.csv")


def test_a_row_per_arm_and_rung_inside_the_baseline(project: Path) -> None:
    rows = own_gains.rows(project / "training_runs.csv")
    of_rope = [row for row in rows if row.algorithm == "rope"]
    assert [row.flops for row in of_rope] == list(made_ladder.RUNGS)
    for row in of_rope:
        assert (row.study, row.baseline, row.basis) == ("own bare ladder", "learned_positions", "measured")
        assert (row.source, row.interval, row.currency) == ("training_runs.csv", 0.9, "flop")
        assert row.low < row.ceg < row.high
        # Student's interval is a little wider than the normal one of the same standard error.
        assert 1.645 < math.log(row.high / row.ceg) / row.ln_ceg_se < 2.2
    assert of_rope[0].note.startswith("5 seeds (5 of baseline); rung 3e11 FLOP, read off 5 rungs of baseline; se")
    (both,) = {(row.algorithm, row.baseline) for row in rows if "+" in row.algorithm}
    assert both == ("layernorm+rope", "no_norm+learned_positions")
    assert [row.flops for row in rows if row.algorithm == "transformer"] == [3e11, 1e12]


def test_a_combination_states_the_error_of_its_excess(project: Path) -> None:
    """Not that of independent readings: the three share seeds and a baseline, which may cancel or add up."""
    rows = {(row.algorithm, row.flops): row for row in own_gains.rows(project / "training_runs.csv")}
    for flops in made_ladder.RUNGS:
        both = rows["layernorm+rope", flops]
        independent = math.hypot(*(rows[name, flops].ln_ceg_se for name in ("layernorm", "rope", "layernorm+rope")))
        assert 0.3 < both.ln_excess_se / independent < 1.5
        assert both.ln_excess_se != pytest.approx(independent, rel=0.01)
        assert math.isnan(rows["rope", flops].ln_excess_se)


def test_excesses_over_parts_and_pairs_are_what_was_put_in(tmp_path: Path) -> None:
    """Their stated errors are the scatter over made-up ladders."""
    parts, pairs = {"layernorm": 2.0, "rope": 1.5, "swiglu": 1.2}, {"rope": 1.1, "swiglu": 0.8}
    gains = parts | {f"layernorm+{name}": 2.0 * parts[name] * factor for name, factor in pairs.items()}
    gains |= {"rope+swiglu": 1.8, "layernorm+rope+swiglu": 3.6 * 1.1 * 0.8 * 1.3}
    z: dict[str, list[float]] = {"parts": [], "pairs": []}
    for seed in range(30):
        table = made_ladder.write(tmp_path / "training_runs.csv", made_ladder.runs(gains, seed=seed))
        runs = seed_ladder.load(table)["bare"]
        read = own_gains.read_all(runs)
        (triple,) = (pair for pair in read if pair[0].count("+") == 2)
        (couple,) = (pair for pair in read if pair[1] == "layernorm+swiglu")
        over_parts = own_gains.excess(runs, read, couple, 1e12)
        over_pairs = own_gains.excess_over_pairs(runs, read, triple, 1e12)
        assert over_parts is not None
        assert over_pairs is not None
        assert own_gains.excess_over_pairs(runs, read, couple, 1e12) is None
        assert own_gains.excess(runs, read, ("rope", "rope", "baseline"), 1e12) is None
        z["parts"].append((over_parts.log - math.log(0.8)) / over_parts.error)
        z["pairs"].append((over_pairs.log - math.log(1.3)) / over_pairs.error)
    for values in z.values():
        assert abs(np.mean(values)) < 0.6
        assert 0.65 < np.std(values) < 1.4


def test_no_row_rests_on_one_seed(tmp_path: Path) -> None:
    lonely = made_ladder.runs({"rope": 3.3}, seeds={1e12: 1, 3e12: 2})  # at 3e12 it is read at 1e13
    rows = own_gains.rows(made_ladder.write(tmp_path / "training_runs.csv", lonely))
    assert [row.flops for row in rows] == [3e12]
    alone = made_ladder.runs({"rope": 1.5}, seeds=dict.fromkeys(made_ladder.TALL, 1))
    with pytest.raises(EvidenceError, match="two seeds"):
        own_gains.rows(made_ladder.write(tmp_path / "training_runs.csv", alone))


def test_answers_cite_our_rows_as_ours(project: Path) -> None:
    before = estimate("rope", 1e12)
    assert call("ladder", "--write").exit_code == 0
    after = estimate("rope", 1e12)
    assert after.mean_interval is not None
    assert before.mean_interval is not None
    assert after.mean_interval[1] / after.mean_interval[0] < before.mean_interval[1] / before.mean_interval[0]
    said = call("estimate", "--algo", "rope", "--flops", "1e12", "--explain").output
    assert "6 measured, 3 own" in said
    assert "Own runs (own bare ladder; FLOP, se of ln CEG): 1.5" in said
    rows = own_gains.rows(project / "training_runs.csv")
    assert f"(se {rows[0].ln_ceg_se:.2g}) at 3e11" in said
    document: dict[str, Any] = json.loads(call("estimate", "--algo", "rope", "--flops", "1e12", "--json").output)
    found = document["estimates"][0]["evidence"]
    assert [row["ceg"] for row in found["own_rows"]] == [row.ceg for row in rows if row.algorithm == "rope"]
    assert found["own_rows"][0]["ln_ceg_se"] == rows[0].ln_ceg_se
    influence = found["influence"]
    assert math.fsum(influence.values()) == pytest.approx(1.0, abs=0.1)
    assert influence["own runs"] > 0.3
    assert f"own runs +{influence['own runs']:.2f}" in " ".join(said.split())


def test_show_and_list_mark_them(project: Path) -> None:
    assert call("ladder", "--write").exit_code == 0
    assert "measured in our own runs, study own bare ladder" in call("show", "rope").output
    shown = json.loads(call("show", "rope", "--json").output)["rows"]
    assert [row["own"] for row in shown].count(True) == 3
    assert {row["study"] for row in shown if row["own"]} == {"own bare ladder"}
    listed = {line["name"]: line for line in json.loads(call("list", "--json").output)["algorithms"]}
    assert (listed["rope"]["own"], listed["moe"]["own"]) == (3, 0)


def test_nobody_elses_rows_pass_for_ours(project: Path, tmp_path: Path) -> None:
    assert call("ladder", "--write").exit_code == 0
    copy = Path(shutil.copy(project / "own_gains.csv", tmp_path / "copy.csv"))
    assert load([copy]).rows == load().rows
    with copy.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    table[0]["ceg"] = table[0]["high"]
    with copy.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(table[0]))
        writer.writeheader()
        writer.writerows(table)
    with pytest.raises(EvidenceError, match="Give the study another name"):
        load([copy])
    mine = tmp_path / "mine.csv"
    for cells in table:
        cells["study"] = "mine"
    with mine.open("w", newline="") as stream:
        writer = csv.DictWriter(
            stream, [name for name in table[0] if name not in OWN_ROW_COLUMNS], extrasaction="ignore"
        )
        writer.writeheader()
        writer.writerows(table)
    assert {row.study for row in load([mine], shipped=False).rows} == {"mine"}


@pytest.mark.parametrize("column", OWN_ROW_COLUMNS)
@pytest.mark.parametrize("with_ours", [True, False])
def test_only_our_rows_fill_the_columns_of_our_runs(
    project: Path, tmp_path: Path, column: str, with_ours: bool
) -> None:
    if with_ours:
        assert call("ladder", "--write").exit_code == 0
    row = published(study="mine", **{column: "bare" if column == "stack" else 0.2})
    with pytest.raises(EvidenceError) as caught:
        load([write(tmp_path / "mine.csv", [row])])
    (problem,) = caught.value.problems
    assert problem.where.endswith("mine.csv")
    assert f"only this project's own runs fill {', '.join(OWN_ROW_COLUMNS)}" in problem.rule
    assert problem.value == f"{column} {getattr(row, column)} in study 'mine'"
    assert problem.remedy == "Empty these columns."


def test_the_name_of_our_study_is_taken_once_we_have_it(project: Path, tmp_path: Path) -> None:
    mine = write(tmp_path / "mine.csv", [published(study="own bare ladder")])
    assert [row.study for row in load([mine], shipped=False).rows] == ["own bare ladder"]
    assert call("ladder", "--write").exit_code == 0
    with pytest.raises(EvidenceError, match=r"own bare ladder'\). Give the study another name"):
        load([mine])


def test_the_runs_behind_our_rows_count_once(project: Path) -> None:
    runs = project / "training_runs.csv"
    assert {row.study for row in load([runs]).rows if row.source == runs.name} == {"training_runs"}
    assert call("ladder", "--write").exit_code == 0
    found = load([runs])
    assert {row.study for row in found.rows if row.source == runs.name} == {"own bare ladder"}
    assert found.remarks == (f"{runs} counts already: own_gains.csv is made from it",)
