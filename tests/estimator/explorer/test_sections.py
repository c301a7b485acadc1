"""What the page shows beside the curve is what the commands print, for our evidence and for a user's."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cegain import algorithms, estimate
from cegain.checks import backtest, backtest_scores, coverage
from cegain.checks.coverage import Score
from cegain.explorer import sections
from cegain.gain.answer import document
from cegain.gain.evidence import load
from cegain.gain.question import CURRENCIES
from cegain.ladders import forecast, seed_ladder
from cegain.tables import kernel_times, training_runs
from cegain.tables.published_gains import COLUMNS, Evidence, published
from cegain.views import kernel_families, listing
from tests.benchmarks.made_rows import BYTES_PER_S, DEVICE, FLOPS_PER_S, session
from tests.estimator.calls import Calls
from tests.estimator.commands.test_ceg import table
from tests.estimator.ladders.made_ladder import runs, write

CEG = Calls()
ROOT = Path(__file__).parents[3]
SCRIPT = "<script>alert(1)</script>"
in_checkout = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="installed without the repository")


def plain(value: object) -> Any:
    """As the page reads it; NaN is refused."""
    return json.loads(json.dumps(value, allow_nan=False))


@pytest.fixture(scope="module")
def tables() -> Evidence:
    return load()


@pytest.fixture(scope="module")
def shown(tables: Evidence) -> dict[str, Any]:
    found: dict[str, Any] = plain(sections.document(tables))
    return found


def question(shown: dict[str, Any], name: str, currency: str) -> dict[str, Any]:
    (found,) = [q for q in shown["evidence"]["questions"] if (q["algorithm"], q["currency"]) == (name, currency)]
    return dict(found)


def test_sections_are_small(shown: dict[str, Any]) -> None:
    assert set(shown) == {"evidence", "classes", "coverage", "backtest", "ladders", "kernels"}
    assert len(json.dumps(shown)) < 1e6


def test_nothing_that_draws_is_imported() -> None:
    heavy = "{'matplotlib', 'pandas', 'torch'} & set(sys.modules)"
    code = f"import sys; from cegain.explorer import sections; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_every_row_is_there_as_it_was_given(tables: Evidence, shown: dict[str, Any]) -> None:
    rows = shown["evidence"]["rows"]
    assert len(rows) == len(tables.rows)
    for cells, row in zip(rows, tables.rows, strict=True):
        for name, value in row._asdict().items():
            assert cells[name] == (None if value != value else value)
    assert {row["kind"] for row in rows} >= {"own", "measured", "claimed"}
    assert all((row["kind"] == "own") == (row["ln_ceg_se"] is not None) for row in rows)


@pytest.mark.parametrize("currency", CURRENCIES)
def test_weights_and_conversions_are_those_of_ceg_show(tables: Evidence, shown: dict[str, Any], currency: str) -> None:
    at = {tuple(cells[c] for c in COLUMNS): i for i, cells in enumerate(shown["evidence"]["rows"])}
    for name in algorithms.names():
        expected = plain(listing.rows_document(tables, name, currency))["rows"]
        found = {line["row"]: line for line in question(shown, name, currency)["rows"]}
        assert len(found) == len(expected)
        for theirs in expected:
            mine = found[at[tuple(theirs[c] for c in COLUMNS)]]
            assert mine["weight"] == theirs["weight"]
            assert (mine["ceg"], mine["conversion"]) == (theirs[f"ceg_{currency}"], theirs["conversion"])
            if theirs["not_used"]:
                assert (mine["use"], mine["why"]) == ("unused", theirs["not_used"])


def test_what_rows_are_used_for_is_what_an_answer_counts(shown: dict[str, Any]) -> None:
    for name in algorithms.names():
        answer = estimate(name, flops=1e22)
        (said,) = plain(document([answer]))["estimates"]
        uses = Counter(row["use"] for row in question(shown, name, "flop")["rows"])
        if answer.status != "no_evidence":
            assert uses["level"] == said["evidence"]["rows_level"], name
            assert uses["growth"] == said["evidence"]["rows_growth_only"], name
    exact = question(shown, "flash_attention", "flop")
    assert exact["exact"]
    assert {row["use"] for row in exact["rows"]} == {"check", "unused"}
    assert exact["points"] == []


@pytest.mark.parametrize("name", ["moe", "rope", "mqa"])
def test_points_are_the_rows_that_a_picture_draws(shown: dict[str, Any], name: str) -> None:
    (asked,) = estimate(name, flops=1e22).questions
    used = [u for u in asked.used if u.fixes_level]
    drawn = {
        (u.row.flops, *(None if v != v else v * u.conversion.factor for v in (u.row.ceg, u.row.low, u.row.high)))
        for u in used
        if u.row.flops == u.row.flops
    }
    found = question(shown, name, "flop")
    assert {(p["flops"], p["ceg"], p["low"], p["high"]) for p in found["points"]} == drawn
    assert len(found["points"]) + found["points_without_flops"] == len(used)
    assert all(p["kind"] == shown["evidence"]["rows"][p["row"]]["kind"] for p in found["points"])


def test_combinations_are_those_of_an_answer(shown: dict[str, Any]) -> None:
    interaction = estimate("layernorm,rope", flops=1e18).interaction
    assert interaction is not None
    learnt = [o.flops for o in interaction.observations if o.label == "layernorm + rope"]
    found = [
        c["flops"]
        for c in shown["evidence"]["combinations"]
        if c["currency"] == "flop" and c["parts"] == ["layernorm", "rope"] and c["used"]
    ]
    assert learnt
    assert sorted(found) == pytest.approx(sorted(learnt))


@pytest.mark.parametrize("only", [False, True])
def test_a_users_rows_stand_like_ours_and_unchanged(tmp_path: Path, only: bool) -> None:
    mine = table(tmp_path / "mine.csv", {"source": SCRIPT, "note": '</script>"&', "flops": "3e19"}, {"flops": ""})
    given = plain(sections.document(load([mine], shipped=not only)))
    words = ("--evidence", mine, *(["--only-evidence"] * only))
    (at,) = [i for i, row in enumerate(given["evidence"]["rows"]) if row["source"] == SCRIPT]
    assert given["evidence"]["rows"][at]["note"] == '</script>"&'
    asked = question(given, "moe", "flop")
    (point,) = [p for p in asked["points"] if p["row"] == at]
    assert (point["flops"], point["ceg"], point["kind"]) == (3e19, 4.0, "measured")
    assert given["classes"] == CEG.answer("classify", *words)
    if only:
        assert len(given["evidence"]["rows"]) == 2
        assert asked["points_without_flops"] == 1
    assert given["evidence"]["sha256"] == given["classes"]["evidence_sha256"]


def test_stored_coverage_is_of_the_shipped_rows_and_adds_up(tables: Evidence, shown: dict[str, Any]) -> None:
    stored = shown["coverage"]
    assert stored["evidence_sha256"] == published(tables).sha256, "run `ceg coverage --write`"
    factors = ("value", "low", "high", "rival_low", "rival_high")
    scores = [Score(**(row | {key: math.log(row[key]) for key in factors})) for row in stored["rows"]]
    again = plain(coverage.document(coverage.Report(tuple(scores), (), stored["interval_probability"])))
    for name, summary in again["summary"].items():
        for key, value in summary.items():
            assert stored["summary"][name][key] == pytest.approx(value, rel=1e-4, abs=1e-4), key
    for line, expected in zip(stored["studies"], again["studies"], strict=True):
        for key in ("study", "algorithms", "rows", "inside"):
            assert line[key] == expected[key]
        for key in ("published", "predicted"):
            assert line[key] == pytest.approx(expected[key], rel=1e-4)
    studies = {line["study"] for line in stored["studies"]} | set(stored["unscored_studies"])
    assert studies == set(coverage.studies(published(tables).rows))


@in_checkout
def test_the_readme_of_the_data_prints_the_stored_coverage(shown: dict[str, Any]) -> None:
    said = (ROOT / "estimator" / "data" / "README.md").read_text().partition("$ ceg coverage\n")[2]
    for line in shown["coverage"]["studies"]:
        (printed,) = re.findall(rf"^ *{line['study']} .* (\d+) +(\d+)  [\d.]+x", said, re.MULTILINE)
        assert [int(cell) for cell in printed] == [line["rows"], line["inside"]]
    for name, summary in shown["coverage"]["summary"].items():
        label = "upward, everything above a compute hidden in turn" if name == "upward" else name
        assert f"{label}: 90% predictive intervals cover {summary['votes']:.1f} of {summary['studies']} studies" in said


def test_stored_scores_are_of_the_tables_that_are_shipped(shown: dict[str, Any]) -> None:
    own, (public,) = shown["backtest"]["own"], shown["backtest"]["public"]
    command = "run `ceg backtest estimator/data/training_runs.csv --scores estimator/data/backtest.json`"
    assert own["tables"] == [
        {"name": "training_runs.csv", "sha256": backtest_scores.sha256(training_runs.TRAINING_RUNS)}
    ], command
    for entry in (own, public):
        assert entry["settings_sha256"] == backtest_scores.sha256(forecast.SETTINGS), command
        assert not re.search(r"[/\\]", json.dumps([entry["command"], entry["tables"], entry["pairs"]]))
    assert len(public["tables"]) == 6


@in_checkout
def test_documents_print_the_stored_scores(shown: dict[str, Any]) -> None:
    own, (public,) = shown["backtest"]["own"], shown["backtest"]["public"]
    assert public["pairs"]["sha256"] == backtest_scores.sha256(ROOT / "benchmarks" / "backtest_pairs.csv")
    by_method = {(s["set"], s["method"]): s for s in public["summary"] if s["cut"] == "all"}
    rows = re.findall(r"^\| (\w+)(?:, .*?)? \| (\d+) \| (.+?) \| (.+?) \| (.+?) \|$", _read("ladders.md"), re.MULTILINE)
    assert {row[0] for row in rows} >= {name for name, _ in by_method}
    for name, points, *cells in (row for row in rows if (row[0], "forecast") in by_method):
        for method, cell in zip(("forecast", "last", "frontier"), cells, strict=True):
            assert ((name, method) in by_method) == (cell != "none")
            if cell == "none":
                continue
            s = by_method[name, method]
            median, p90, inside, score = re.findall(r"[\d.]+(?=/|,|%|$)|(?<=/)[\d.]+", re.sub(r" \(.*?\)", "", cell))
            fewer = re.search(r"\((\d+)(?: points)?\)", cell)
            assert int(fewer[1] if fewer else points) == s["points"]
            assert (median, inside, score) == (
                f"{s['median_factor']:.2f}",
                f"{100 * s['coverage_90']:.0f}",
                f"{s['interval_score']:.{len(score.partition('.')[2])}f}",
            )
            assert float(p90) == pytest.approx(s["p90_factor"], abs=0.5 if float(p90) > 10 else 0.005)
    printed = _read("results.md")
    for s in own["summary"]:
        median = f"{s['median_factor']:.2f}x" if s["points"] >= backtest.ENOUGH_POINTS else "too few"
        line = rf"^ *training_runs +{s['cut']} +{s['method']} +{s['points']} +{median}"
        assert re.search(line, printed, re.MULTILINE), line


def _read(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


@pytest.mark.slow
def test_stored_scores_of_our_own_runs_are_todays(shown: dict[str, Any]) -> None:
    today = CEG.answer("backtest", training_runs.TRAINING_RUNS, "--jobs", 1)["summary"]
    for old, new in zip(shown["backtest"]["own"]["summary"], today, strict=True):
        assert [*old] == [*new]
        for key, value in new.items():
            assert old[key] == (value if isinstance(value, str) else pytest.approx(value, rel=1e-4)), key


def test_ladders_are_those_of_ceg_ladder(shown: dict[str, Any]) -> None:
    (bare,) = [ladder for ladder in shown["ladders"] if ladder["stack"] == "bare"]
    assert {key: value for key, value in bare.items() if key != "arms"} == CEG.answer("ladder")
    arms = {arm["arm"]: arm["rungs"] for arm in bare["arms"]}
    assert set(arms) == set(seed_ladder.load(training_runs.TRAINING_RUNS)["bare"].arms)
    for algorithm in ("rope", "layernorm+rope"):
        full = CEG.answer("ladder", "--algo", algorithm)
        for arm, rungs in full["arms"].items():
            for short, rung in zip(arms[arm], rungs, strict=True):
                assert short["losses_by_seed"] == rung["losses_by_seed"]
                assert short["seeds"] == len(rung["losses_by_seed"])
        for at in full["rungs"]:
            (rung,) = [r for r in arms[full["treatment"]] if r["rung_flops"] == at["rung_flops"]]
            assert rung["loss_nats_per_token"] == at["loss"]
        (gains,) = [g for g in bare["gains"] if g["algorithm"] == algorithm]
        for short, rung in zip(gains["rungs"], full["rungs"], strict=True):
            assert short["ceg_interval_90"] == rung["ceg_interval_90"]
    overs = [r["over_parts"] for g in bare["gains"] for r in g["rungs"] if r["over_parts"]]
    assert overs
    for over in overs:
        low, high = map(math.log, over["ratio_interval_90"])
        assert (low + high) / 2 == pytest.approx(math.log(over["ratio"]))
        assert high - low == pytest.approx(2 * 1.644854 * over["ln_ratio_se"], rel=1e-5)


def test_error_of_a_mean_loss_is_its_arms_noise_drawn_to_the_rungs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_runs, "TRAINING_RUNS", write(tmp_path / "runs.csv", runs()))
    (ladder,) = plain(sections.ladders())
    noise = {at["rung_flops"]: at for at in ladder["noise_ln_loss"]}
    for arm in ladder["arms"]:
        for rung in arm["rungs"]:
            logs = [math.log(loss) for loss in rung["losses_by_seed"].values()]
            n, middle = len(logs), sum(logs) / len(logs)
            assert rung["loss_nats_per_token"] == pytest.approx(math.exp(middle))
            pooled = noise[rung["rung_flops"]]
            added = min(4.0, pooled["degrees_of_freedom"])
            own = sum((x - middle) ** 2 for x in logs)
            variance = (own + pooled["sd"] ** 2 * added) / (n - 1 + added)
            assert rung["ln_loss_se"] == pytest.approx(math.sqrt(variance / n))
            width = rung["loss_nats_per_token"] * 1.644854 * math.sqrt(variance / n)
            assert rung["loss_half_width_90"] == pytest.approx(width, rel=1e-5)


def test_one_seed_everywhere_has_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lone = [row for row in runs() if row.seed == 0]
    monkeypatch.setattr(training_runs, "TRAINING_RUNS", write(tmp_path / "runs.csv", lone))
    (ladder,) = plain(sections.ladders())
    assert {rung["ln_loss_se"] for arm in ladder["arms"] for rung in arm["rungs"]} == {None}


def test_without_tables_there_are_no_ladders_scores_and_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_runs, "TRAINING_RUNS", tmp_path / "training_runs.csv")
    monkeypatch.setattr(kernel_times, "KERNEL_TIMES", tmp_path / "kernel_times.csv")
    monkeypatch.setattr(backtest_scores.load, "__defaults__", (tmp_path / "backtest.json",))
    assert sections.ladders() == sections.kernels() == []
    assert (sections.scores()["own"], sections.scores()["public"]) == (None, [])


def test_kernels_are_the_table_by_session_under_its_own_ceilings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kernel_times.csv"
    later = [row._replace(commit="def5678", date="2026-02-01") for row in session() if row.op == "attention"]
    kernel_times.append(path, [*session(), *later])
    monkeypatch.setattr(kernel_times, "KERNEL_TIMES", path)
    new, old = plain(sections.kernels())
    assert (new["device"], new["commit"], new["ceilings"]) == (DEVICE, "def5678", None)
    assert {row["roofline_s"] for row in new["rows"]} == {None}
    assert old["ceilings"] == pytest.approx({"flops_per_s": FLOPS_PER_S, "bytes_per_s": BYTES_PER_S})
    assert set(old["families"]) == set(kernel_families.FAMILIES)
    for row, given in zip(old["rows"], session(), strict=True):
        assert (row["op"], row["implementation"], row["pass"], row["pattern"]) == (
            given.op, given.implementation, given.pass_, given.pattern,
        )  # fmt: skip
        assert (row["median_s"], row["p20_s"], row["p80_s"]) == (given.median_s, given.p20_s, given.p80_s)
        assert row["flops_per_s"] == pytest.approx(given.flops / given.median_s)
        assert row["flop_per_byte"] == pytest.approx(given.flops / given.bytes)
        assert row["roofline_s"] == pytest.approx(max(given.flops / FLOPS_PER_S, given.bytes / BYTES_PER_S))
        for size in kernel_times.ALL_SIZES:
            assert row.get(size, 0) == getattr(given, size)
        belongs = [name for name, family in kernel_families.FAMILIES.items() if family.belongs(given)]
        assert [row["family"]] == (belongs or [None])


def test_shipped_kernel_times_are_all_there(shown: dict[str, Any]) -> None:
    table = kernel_times.load(kernel_times.KERNEL_TIMES)
    assert sum(len(session["rows"]) for session in shown["kernels"]) == len(table)
    assert {session["device"] for session in shown["kernels"]} == {row.device for row in table}
