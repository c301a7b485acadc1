"""`ceg compare` as a user or a script calls it: answers, exit codes, refusals."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import numpy as np
import pytest

from cegain.comparison import trials
from tests.estimator.calls import Calls

RUN = Calls("compare")
call, answer, refused = RUN.call, RUN.answer, RUN.refused


def runs(path: Path, shift: float, seeds: int = 4, budgets: tuple[float, ...] = (1e19,)) -> Path:
    """flops, params, loss, seed: losses 2.31 less `shift` of it, with noise of 0.02%."""
    random = np.random.default_rng([seeds, len(budgets), round(1e6 + 1e6 * shift)])
    lines = [
        f"{c:g},1e8,{2.31 * (c / 1e19) ** -0.04 * (1 - shift + 2e-4 * random.normal()):.9f},{s}"
        for c in budgets for s in range(seeds)
    ]  # fmt: skip
    path.write_text("\n".join(["flops,params,loss,seed", *lines, ""]))
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return runs(tmp_path / "old.csv", 0.0)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    return runs(tmp_path / "new.csv", 0.01)


def test_exit_codes(old: Path, new: Path, tmp_path: Path) -> None:
    same = runs(tmp_path / "same.csv", 1e-6)
    verdicts = [(old, new, "better", 0), (new, old, "worse", 4), (old, same, "not shown", 3)]
    for first, second, verdict, code in verdicts:
        assert answer(first, second)["verdict"] == verdict
        for more in ((), ("--json",)):
            assert call(first, second, *more).exit_code == 0
            checked = call(first, second, "--check", *more)
            assert checked.exit_code == code
            assert checked.stdout == call(first, second, *more).stdout
    assert call(old, tmp_path / "none.csv", "--check").exit_code == 2
    assert call("--check").exit_code == 2


def test_at_least_and_level_move_the_claim(old: Path, new: Path, tmp_path: Path) -> None:
    found = answer(old, new)
    low, high = found["ceg_interval_90"]
    assert answer(old, new, "--at-least", high * 1.5)["verdict"] == "worse"
    assert answer(old, new, "--at-least", (low * high) ** 0.5)["verdict"] == "not shown"
    assert call(old, new, "--at-least", (low * high) ** 0.5, "--check").exit_code == 3
    assert answer(old, new, "--level", 1e-9)["verdict"] == "not shown"
    same = runs(tmp_path / "same.csv", 1e-6)
    assert answer(old, same, "--at-least", 0.8)["verdict"] == "better"


def test_two_files_are_one_table_of_two_arms(old: Path, new: Path, tmp_path: Path) -> None:
    lines = [f"{path.stem},{line}" for path in (old, new) for line in path.read_text().splitlines()[1:]]
    both = tmp_path / "both.csv"
    both.write_text("\n".join(["variant,flops,params,loss,seed", *lines, ""]))
    apart = answer(old, new)
    assert answer(both, "--baseline", "old", "--variant", "new") == apart
    assert answer(both, "--baseline", "old") == apart
    assert answer(both, both, "--baseline", "old", "--variant", "new") == apart
    packed = tmp_path / "old.csv.gz"
    packed.write_bytes(gzip.compress(old.read_bytes()))
    assert answer(packed, new)["p_value"] == apart["p_value"]


def test_files_of_one_name_are_told_apart(old: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    found = answer(old, runs(tmp_path / "other" / "old.csv", 0.01))
    assert found["baseline"] != found["treatment"]
    assert found["verdict"] == "better"


def test_the_answer_is_one_screen(tmp_path: Path) -> None:
    budgets = tuple(1e18 * 10 ** (k / 4) for k in range(20))
    first, second = (runs(tmp_path / f"{name}.csv", s, 3, budgets) for name, s in (("old", 0.0), ("new", 0.01)))
    lines = call(first, second).stdout.splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= 110
    assert "new against old: better" in lines[0]
    assert "8 smaller budgets" in " ".join(lines)
    assert len(answer(first, second)["budgets"]) == 20


def test_the_document(old: Path, new: Path) -> None:
    found = answer(old, new)
    assert (found["schema"], found["schema_version"], found["status"]) == ("ceg.compare", 1, "ok")
    (at,) = found["budgets"]
    assert at["difference"] == pytest.approx(at["loss_baseline"] - at["loss"])
    assert at["equal_loss_flops"] == pytest.approx(1e19 * at["ceg_median"])
    assert at["equal_loss_tokens"] == pytest.approx(1e19 / 6e8 * at["ceg_median"])
    low, first, median, third, high = (
        found["ceg_interval_90"][0], *found["ceg_interval_50"][:1], found["ceg_median"], found["ceg_interval_50"][1],
        found["ceg_interval_90"][1],
    )  # fmt: skip
    assert 1 < low < first < median < third < high


def test_more_seeds_are_named_where_nothing_is_shown(tmp_path: Path, old: Path) -> None:
    near = runs(tmp_path / "near.csv", 1e-4, seeds=2)
    found = answer(old, near)
    assert found["verdict"] == "not shown"
    assert found["further_seeds_per_arm"] > 0
    assert "more per arm and budget" in call(old, near).stdout


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path / "a.csv", tmp_path / "b.csv", "--at-least", "-1", "--level", "2", "--loss-noise", "x")
    for part in ("a.csv", "b.csv", "--at-least", "--level", "--loss-noise"):
        assert part in said


def test_arms_are_named_where_there_are_several(tmp_path: Path, old: Path) -> None:
    path = tmp_path / "three.csv"
    path.write_text("variant,N,C,loss\n" + "".join(f"{v},1e8,1e19,2.3{i}\n" for i, v in enumerate("abc")))
    said = refused(path)
    assert "--baseline" in said
    assert "--variant: one arm is needed" in refused(path, "--baseline", "a")
    assert "--variant names the one" in refused(old, path)
    assert "at least one run" in refused(path, "--baseline", "a", "--variant", "x")
    assert "share no run" in refused(path, "--baseline", "a", "--variant", "a")
    assert "share no run" in refused(path, "--baseline", "*", "--variant", "a")


@pytest.mark.parametrize(
    "content", ["", "x\n", "flops,params,loss\n", "flops,params,loss\n1e19,1e8,abc\n", "loss,seed\n2.3,1\n", "\x00\xff"]
)
def test_damaged_tables_are_refused(content: str, old: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text(content, encoding="latin-1")
    for words in ((bad, old), (old, bad), (bad, bad), (bad,)):
        assert "bad" in refused(*words)


def test_a_budget_that_no_column_holds(tmp_path: Path) -> None:
    for name, losses in (("old", (2.31, 2.311, 2.309)), ("new", (2.29, 2.291, 2.289))):
        (tmp_path / f"{name}.csv").write_text("loss,seed\n" + "".join(f"{x},{i}\n" for i, x in enumerate(losses)))
    found = answer(tmp_path / "old.csv", tmp_path / "new.csv", "--columns", "C=1e19,N=1e8")
    assert found["verdict"] == "better"


def test_our_own_arms_have_a_verdict() -> None:
    from cegain.tables.files import DATA

    for stack in trials.own_ladders()[:1]:
        for algorithm, treatment, baseline in stack.pairs[:3]:
            arms = [f"stack={stack.stack}&arm={arm}" for arm in (baseline, treatment)]
            found = answer(DATA / "training_runs.csv", "--baseline", arms[0], "--variant", arms[1])
            assert found["verdict"] in ("better", "worse", "not shown"), algorithm
            assert re.match(r"[\w.]+", found["status"])


def test_the_pipeline_of_the_page_stops_what_is_worse(old: Path, new: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "compare.md").read_text("utf-8")
    (block,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (checked,) = re.findall(r"ceg compare (.*--check.*?) >", block)
    monkeypatch.chdir(old.parent)
    assert call(*checked.split()).exit_code == 0
    kept = old.read_text()
    old.write_text(new.read_text())
    new.write_text(kept)
    assert call(*checked.split()).exit_code == 4
