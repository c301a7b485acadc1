"""`ceg ladder` as a user calls it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cegain.tables import training_runs
from tests.estimator.calls import Calls
from tests.estimator.ladders import made_ladder
from tests.estimator.ladders.made_ladder import GAINS, RUNGS, runs, write

RUN = Calls("ladder")
call, answer, refused = RUN.call, RUN.answer, RUN.refused


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return write(tmp_path / "runs.csv", runs())


@pytest.mark.parametrize("algo", ["rope", "rotary", "layernorm+rope", "rope,layernorm", "swiglu"])
def test_gains_by_rung_forecast_and_literature(table: Path, algo: str) -> None:
    document = answer("--algo", algo, "--runs", table)
    arm = document["treatment"]
    assert document["baseline"] == "baseline"
    assert [rung["rung_flops"] for rung in document["rungs"]] == list(RUNGS)
    for rung in document["rungs"]:
        low, high = rung["ceg_interval_90"]
        assert low < rung["ceg"] < high
        assert rung["ceg"] == pytest.approx(GAINS[arm], rel=5 * rung["ln_ceg_se"])
    assert document["rungs"][0]["seeds"] == 5
    first = document["arms"][arm][0]
    assert list(first["losses_by_seed"]) == ["0", "1", "2", "3", "4"]
    assert first["learning_rates"] == [0.008]
    assert document["run_noise_ln_loss"] == pytest.approx(made_ladder.NOISE, rel=0.5)
    assert document["forecast"]["estimates"][0]["status"] == "few_rungs"  # four, of 0.27% noise each
    assert document["forecast"]["estimates"][-1]["status"] == "far_extrapolation"
    assert all(published["study"] != "own bare ladder" for published in document["literature"])


def test_the_words_say_the_same(table: Path) -> None:
    said = call("--algo", "rope", "--runs", table, "--at", "1e13,1e14").stdout
    document = answer("--algo", "rope", "--runs", table, "--at", "1e13,1e14")
    for rung in document["rungs"]:
        assert f"{rung['ceg']:.2f}x" in said
        assert f"{rung['ln_ceg_se']:.3f}" in said
    assert "at 1e14 FLOP: CEG" in said
    assert "measured, gundlach_2025, 7.8e14 - 9.8e14 FLOP, 3 rows" in said
    assert "baseline alone: 1.5" in said
    assert "12 run(s) with the role 'learning_rate' left out" in said


def test_the_transformer_stands_against_the_lstm(table: Path) -> None:
    document = answer("--algo", "transformer", "--runs", table)
    assert (document["treatment"], document["baseline"]) == ("baseline", "lstm")
    assert document["rungs"][0]["ceg"] == pytest.approx(2.0, rel=0.15)
    assert document["rungs"][-1]["ceg"] is None
    assert document["rungs"][-1]["why"] == "its loss lies below those of lstm"


def test_short_and_lonely_ladders(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", runs({"rope": 1.5}, rungs={"rope": RUNGS[:2]}, seeds={1e12: 1}))
    document = answer("--algo", "rope", "--runs", path)
    assert document["forecast"]["status"] == "too_few"
    assert [rung["ln_ceg_se"] for rung in document["rungs"]] == [None, None]
    assert "rope has one seed there" in document["rungs"][1]["why"]
    assert "has one seed" in call("--algo", "rope", "--runs", path).stdout
    picture = tmp_path / "t.svg"
    assert call("--algo", "rope", "--runs", path, "-o", picture).exit_code == 0
    assert "error not known" in picture.read_text()


@pytest.mark.parametrize(("algo", "published"), [("transformer", True), ("layernorm+rope", False)])
def test_pictures_show_runs_gains_forecast_and_literature(
    table: Path, tmp_path: Path, algo: str, published: bool
) -> None:
    result = call("--algo", algo, "--runs", table, "-o", tmp_path / "a.svg")
    assert result.exit_code == 0, result.output
    picture = (tmp_path / "a.svg").read_text()
    for word in ("own run", "forecast, inside the runs", "forecast, extrapolated", "baseline"):
        assert word in picture
    assert ("published, measured" in picture) == published


def test_a_picture_is_the_same_every_time(table: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        assert call("--algo", "rope", "--runs", table, "-o", tmp_path / name).exit_code == 0
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_bad_calls_name_everything(table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--at: it goes with an algorithm" in refused("--runs", table, "--at", "1e14")
    assert "Did you mean rope?" in refused("--algo", "rop", "--runs", table)
    said = refused("--algo", "moe", "--runs", table)
    assert "there are: rope, layernorm, layernorm+rope, swiglu, transformer" in said
    assert "ceg ablate" in said
    assert "one of the table's, bare" in refused("--algo", "rope", "--stack", "modern", "--runs", table)
    said = refused("--algo", "rop", "--runs", tmp_path / "none.csv", "-o", tmp_path / "x.txt", "--at", "much")
    for option in ("--algo", "none.csv", "--output", "--at"):
        assert option in said
    monkeypatch.setattr(training_runs, "TRAINING_RUNS", tmp_path / "training_runs.csv")
    assert "no runs of its own yet" in refused("--algo", "rope")
    said = refused("--write", "--algo", "rope")
    assert "--algo: it goes without --write" in said
    assert "can be read" in said
