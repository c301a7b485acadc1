"""`ceg fit`, `speedup`, `synthetic`, `backtest` and `plot --runs` as a user calls them."""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path

import numpy as np
import pytest

from cegain.checks import backtest_scores
from cegain.ladders import synthetic
from tests.estimator.calls import Calls

RUN = Calls()
call, answer, refused = RUN.call, RUN.answer, RUN.refused


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    path = tmp_path / "runs.csv"
    path.write_text(synthetic.table("constant", rungs=8, noise=0.0005, seed=1))
    return path


def chinchilla(path: Path, n: int = 60) -> Path:
    rng = np.random.default_rng(0)
    sizes, tokens = 10 ** rng.uniform(7, 10, n), 10 ** rng.uniform(8, 11, n)
    losses = 1.8 + 480 / sizes**0.35 + 2100 / tokens**0.37
    rows = [f"a,{s:.9g},{d:.9g},{6 * s * d:.9g},{x:.12g}" for s, d, x in zip(sizes, tokens, losses, strict=True)]
    path.write_text("variant,N,D,C,loss\n" + "\n".join(rows) + "\n")
    return path


def test_one_arm_is_its_law(tmp_path: Path) -> None:
    path = chinchilla(tmp_path / "a.csv")
    document = answer("fit", path, "--bootstrap", 20)
    truth = {"A": 480, "B": 2100, "E": 1.8, "alpha": 0.35, "beta": 0.37}
    assert document["parameters"] == pytest.approx(truth, rel=1e-3)
    assert document["objective"] == pytest.approx(0.0, abs=1e-9)
    text = call("fit", path, "--bootstrap", 20, "--at", "1e21").stdout
    assert "L = E + A / N^alpha + B / D^beta" in text
    assert "at 1e21 FLOP" in text


def test_two_arms_are_a_gain(runs: Path) -> None:
    document = answer("fit", runs, "--baseline", "baseline", "--variant", "treatment", "--at", "1e19,1e21")
    assert document["status"] == "ok"
    for estimate in document["estimates"]:
        low, high = estimate["ceg_interval_90"]
        assert low < 2.0 < high
        assert estimate["last_ceg"] == pytest.approx(2.0, rel=0.1)
    inside = document["estimates"][0]
    assert inside["ceg_median"] == pytest.approx(2.0, rel=0.05)
    assert inside["frontier_ceg_by_floor"]["shared"] == pytest.approx(2.0, rel=0.1)
    assert inside["extrapolation_decades"] == 0.0
    assert math.fsum(document["class_probabilities"].values()) == pytest.approx(1.0)


def test_an_arm_against_itself_is_one(runs: Path) -> None:
    document = answer("fit", runs, "--baseline", "baseline", "--variant", "baseline", "--at", "1e24")
    assert document["estimates"][0]["ceg_interval_90"] == [1.0, 1.0]


def test_arms_that_share_no_loss_are_refused_in_words(tmp_path: Path) -> None:
    path = tmp_path / "apart.csv"
    rows = [
        f"{v},1e8,1e9,{c},{x}"
        for v, at in (("a", 5.0), ("b", 3.0))
        for c, x in ((1e18, at), (1e19, at - 0.2), (1e20, at - 0.3))
    ]
    path.write_text("variant,N,D,C,loss\n" + "\n".join(rows) + "\n")
    document = answer("fit", path, "--baseline", "a", "--variant", "b")
    assert document["status"] == "no_overlap"
    assert document["estimates"] == []
    assert "no loss is reached by both" in call("fit", path, "--baseline", "a", "--variant", "b").stdout


def test_bad_calls_of_fit_name_everything(runs: Path, tmp_path: Path) -> None:
    said = refused("fit", runs, "--at", "x", "--max-flops", "-1", "--bootstrap", "many")
    for option in ("--at", "--max-flops", "--bootstrap", "--variant"):
        assert option in said
    assert "Did you mean treatment?" in refused("fit", runs, "--variant", "treatmen")
    assert "can be read" in refused("fit", tmp_path / "none.csv")
    assert "--drop-highest" in refused("fit", runs, "--variant", "baseline", "--drop-highest", 99)
    assert "--max-flops" in refused("fit", runs, "--variant", "baseline", "--max-flops", 10)
    broken = tmp_path / "broken.csv"
    broken.write_text("variant,N,D,C,loss\na,1e8,1e9,1e18,nan\na,1e8,1e9,1e19,-2\n")
    said = refused("fit", broken, "--variant", "a")
    assert "line 2" in said
    assert "line 3" in said


def test_dropping_and_limiting_leave_runs_out(tmp_path: Path) -> None:
    path = chinchilla(tmp_path / "a.csv")
    assert answer("fit", path, "--bootstrap", 0)["n_runs"] == 60
    assert answer("fit", path, "--bootstrap", 0, "--drop-highest", 5)["n_runs"] == 55
    assert answer("fit", path, "--bootstrap", 0, "--max-flops", 1e19)["n_runs"] < 60


def test_speedup_answers_and_refuses() -> None:
    document = answer("speedup", "--baseline-loss", 2.31, "--loss", 2.29, "--flops", 1e19)
    assert document["ceg_interval_90"][0] > 1.0
    assert "CEG" in call("speedup", "--baseline-loss", 2.31, "--loss", 2.29, "--flops", 1e19).stdout
    said = refused("speedup", "--baseline-loss", "a", "--loss", 2.29, "--flops", 1e19, "--seed", "b")
    assert "--baseline-loss" in said
    assert "--seed" in said
    assert "flops" in refused("speedup", "--baseline-loss", 2.31, "--loss", 2.29, "--flops", 0)


PAIR = ("speedup", "--baseline-loss", 2.31, "--loss", 2.29, "--flops", 1e19)


def test_speedup_takes_what_is_known_of_the_baseline(tmp_path: Path) -> None:
    alone, two = answer(*PAIR), answer(*PAIR, "--baseline-at", 1e18, 2.56)
    assert alone["schema_version"] == 2
    assert two["ceg_interval_90"][1] / two["ceg_interval_90"][0] < alone["ceg_interval_90"][1]
    assert (
        answer("speedup", "--baseline-loss", 0.748, "--loss", 0.745, "--flops", 1e19, "--unit", "bpb")["unit"] == "bpb"
    )
    law = tmp_path / "law.json"
    law.write_text('{"E": 1.7, "gamma": 0.15, "covariance": [[0.01, 0.001], [0.001, 0.0004]]}')
    assert answer(*PAIR, "--law", law)["floor"]["mean"] == pytest.approx(1.7, abs=0.01)
    fitted = call("fit", chinchilla(tmp_path / "a.csv"), "--bootstrap", 20, "--json").stdout
    law.write_text(fitted)
    assert answer("speedup", "--baseline-loss", 3.5, "--loss", 3.4, "--flops", 1e19, "--law", law)["ceg_median"] > 1
    law.write_text('{"E": 1.7, "gamma": 0.15, "covariance": [[0.01, 0.9], [0.9, 0.0004]]}')
    assert "symmetric and positive" in refused(*PAIR, "--law", law)
    law.write_text("[]")
    assert "--law" in refused(*PAIR, "--law", law)
    assert "--law: the file can be read" in refused(*PAIR, "--law", tmp_path / "none.json")
    assert "--loss: it is needed" in refused("speedup", "--baseline-loss", 2.31, "--flops", 1e19)


def test_speedup_shows_its_coverage() -> None:
    document = answer("speedup", "--coverage")
    assert document["sets"][-1]["set"] == "pooled"
    assert 0.85 <= document["sets"][-1]["coverage_90"] <= 0.97
    said = refused("speedup", "--coverage", "--freeze", "--loss", 2.3)
    assert "--loss: it goes without --coverage" in said
    assert "--freeze: it stores" in said


@pytest.mark.parametrize("truth", sorted(synthetic.TRUTHS))
def test_made_up_runs_can_be_fitted(truth: str, tmp_path: Path) -> None:
    path = tmp_path / "made.csv"
    assert call("synthetic", "-o", path, "--truth", truth).exit_code == 0
    assert answer("fit", path, "--baseline", "baseline", "--variant", "treatment")["reads"] > 5


def test_bad_calls_of_synthetic(tmp_path: Path) -> None:
    said = refused("synthetic", "-o", tmp_path / "x.txt", "--truth", "wild", "--noise", 2)
    for option in ("--output", "--truth", "--noise"):
        assert option in said
    assert not list(tmp_path.iterdir())


def test_backtest_scores_made_up_runs(tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_text(synthetic.table("constant", rungs=11, noise=0.001))
    document = answer("backtest", path, "--cut", 10, "--cut", 100, "--jobs", 1)
    methods = {row["method"] for row in document["summary"]}
    assert {"forecast", "last"} <= methods
    assert document["points"]
    assert "forecast" in call("backtest", path, "--cut", 100, "--jobs", 1).stdout


def test_bad_calls_of_backtest(runs: Path, tmp_path: Path) -> None:
    said = refused("backtest", runs, "--cut", 0.5, "--jobs", "x", "--pairs", tmp_path / "none.csv")
    for part in ("--cut", "--jobs", "none.csv"):
        assert part in said
    empty = tmp_path / "empty.csv"
    empty.write_text("variant,N,D,C,loss\n")
    assert "at least one finished run" in refused("backtest", empty)


def test_a_picture_of_two_arms(runs: Path, tmp_path: Path) -> None:
    target = tmp_path / "gain.svg"
    assert call("plot", "--runs", runs, "--baseline", "baseline", "--variant", "treatment", "-o", target).exit_code == 0
    assert b"<svg" in target.read_bytes()
    said = refused("plot", "--runs", runs, "-o", tmp_path / "gain.txt", "--flops", "1e18")
    for part in ("--output", "--flops", "two arms"):
        assert part in said


def test_a_fixed_ratio_of_tokens_is_a_degenerate_design(tmp_path: Path) -> None:
    """N and D that move together cannot be told apart: no law in both, and the frontier answers instead."""
    rng = np.random.default_rng(1)
    sizes = np.geomspace(1e7, 1e9, 12)
    tokens = sizes * rng.uniform(17, 20, 12)
    losses = 1.8 + 480 / sizes**0.35 + 2100 / tokens**0.37
    rows = [f"a,{s:.9g},{d:.9g},{6 * s * d:.9g},{x:.12g}" for s, d, x in zip(sizes, tokens, losses, strict=True)]
    path = tmp_path / "line.csv"
    path.write_text("variant,N,D,C,loss\n" + "\n".join(rows) + "\n")
    assert answer("fit", path, "--bootstrap", 20)["status"] == "degenerate_design"
    text = call("fit", path, "--bootstrap", 20, "--at", "1e21,1e26").stdout
    assert "at 1e21 FLOP: loss 2." in text
    assert "(frontier law)" in text
    assert "far_extrapolation" in text.splitlines()[-1]


def test_one_arm_says_how_sure_it_is(tmp_path: Path) -> None:
    text = call("fit", chinchilla(tmp_path / "a.csv"), "--bootstrap", 50, "--at", "1e21").stdout.splitlines()[-1]
    assert re.search(r"parameters, .* tokens, loss [\d.]+ \([\d.]+ - [\d.]+\); status converged \(chinchilla law", text)


def test_misspelled_pairs_are_refused_and_foreign_ones_said(runs: Path, tmp_path: Path) -> None:
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("set,baseline,treatment\nruns,baseline,tretment\n")
    assert "none of 1" in refused("backtest", runs, "--pairs", pairs)
    pairs.write_text("set,baseline,treatment\nruns,baseline,treatment\nother,x,y\n")
    result = call("backtest", runs, "--pairs", pairs)
    assert result.exit_code == 0
    assert "1 of 2 pair(s) left out" in result.stderr


def test_short_ladders_say_what_a_backtest_needs(tmp_path: Path) -> None:
    path = tmp_path / "short.csv"
    path.write_text(synthetic.table("constant", rungs=3, noise=0.0005, seed=1))
    result = call("backtest", path)
    assert result.exit_code == 0
    assert "smaller --cut" in " ".join(result.stdout.split())


def test_the_loss_of_given_models(runs: Path) -> None:
    found = answer(
        "fit", runs, "--variant", "baseline", "--at-size", "1e9,2e9", "--at-tokens", "1e11", "--bootstrap", 50
    )
    assert [(m["n_params"], m["tokens"]) for m in found["models"]] == [(1e9, 1e11), (2e9, 1e11)]
    assert set(found["compute_optimal"]) == {"six_nd", "by_law", "by_parabolas"}
    unpaired = call("fit", runs, "--variant", "baseline", "--at-size", "1e9,2e9", "--at-tokens", "1e9,2e9,3e9")
    assert unpaired.exit_code == 2
    assert "as many of one as of the other are needed (found 2 and 3)" in unpaired.output
    both = call("fit", runs, "--variant", "treatment", "--baseline", "baseline", "--at-size", "x", "--at-tokens", "1e9")
    assert both.exit_code == 2
    assert "--at-size" in both.output


def test_a_backtest_of_one_arm_is_of_its_laws(runs: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.csv"
    lines = runs.read_text().splitlines()
    alone.write_text("\n".join(line for line in lines if not line.startswith("treatment")) + "\n")
    found = answer("backtest", alone, "--cut", 10)
    assert found["schema"] == "ceg.backtest_laws"
    assert {point["arm"] for point in found["points"]} == {"baseline"}
    both = answer("backtest", runs, "--laws", "--cut", 10)
    assert {point["arm"] for point in both["points"]} == {"baseline", "treatment"}
    assert "median error" in call("backtest", runs, "--laws").stdout
    refusal = call("backtest", runs, "--laws", "--pairs", "pairs.csv")
    assert refusal.exit_code == 2
    assert "--pairs: it is about gains" in refusal.output


def test_made_up_ladders_stand_in_for_tables() -> None:
    cells = answer("backtest", "--made-up", 1, "--jobs", 1)["cells"]
    assert {cell["rungs"] for cell in cells} == {3, 4, 5, 6, 8}
    assert all(cell["ok"] == 0 for cell in cells if cell["rungs"] == 3)
    refusal = call("backtest", "--made-up", 1, "runs.csv")
    assert refusal.exit_code == 2
    assert "RUNS.csv: tables of runs, or --made-up N in their place" in refusal.output


def test_scores_are_stored_beside_those_of_other_tables(runs: Path, tmp_path: Path) -> None:
    other, target = tmp_path / "other.csv", tmp_path / "scores.json"
    other.write_text(synthetic.table("fading", rungs=8, noise=0.0005, seed=2))
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("set,baseline,treatment\nother,baseline,treatment\n")
    first = answer("backtest", runs, "--jobs", 1, "--scores", target)
    answer("backtest", other, "--jobs", 1, "--pairs", pairs, "--scores", target)
    one, two = backtest_scores.load(target)
    target.write_bytes(backtest_scores.content([one, two], one | {"version": "next"}))
    assert backtest_scores.load(target) == [one | {"version": "next"}, two]
    assert one["command"] == "ceg backtest runs.csv"
    assert two["command"] == "ceg backtest other.csv --pairs pairs.csv"
    assert one["tables"] == [{"name": "runs.csv", "sha256": hashlib.sha256(runs.read_bytes()).hexdigest()}]
    assert (one["pairs"], two["pairs"]["name"]) == (None, "pairs.csv")
    assert str(tmp_path) not in target.read_text()
    for stored, said in zip(one["summary"], first["summary"], strict=True):
        assert [stored[key] for key in ("set", "cut", "method", "points")] == [
            said[key] for key in ("set", "cut", "method", "points")
        ]
        assert stored["median_factor"] == pytest.approx(said["median_factor"], rel=1e-5)
    assert sum(one["skipped"].values()) == len(first["skipped"])


def test_scores_are_of_usual_calls_and_spare_other_files(runs: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.json"
    strange.write_text('{"schema": "ceg.estimate"}')
    said = refused("backtest", runs, "--scores", strange, "--cut", 3, "--freeze", tmp_path / "f.json")
    for part in ("--cut: it goes without --scores", "--freeze: it goes", "ceg.backtest_scores", "another document"):
        assert part in said
    assert strange.read_text() == '{"schema": "ceg.estimate"}'
    strange.write_text("{")
    assert "strange.json" in refused("backtest", runs, "--scores", strange)
    assert ".json" in refused("backtest", runs, "--scores", tmp_path / "x.csv")
