"""`ceg fit` on tables as people have them: the same answer as from our own columns, or one clear refusal."""

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from cegain.ladders import ladder
from cegain.tables.problems import EvidenceError
from tests.estimator.calls import Calls

FIT = Calls("fit")
ARMS = ("dense", "moe")


def runs() -> list[dict[str, object]]:
    """Two arms on one law, the second worth twice the compute, three sizes at four budgets."""
    rows: list[dict[str, object]] = []
    for arm, gain in zip(ARMS, (1.0, 2.0), strict=True):
        for c in (1e18, 3e18, 1e19, 3e19):
            best = np.sqrt(c * gain / 120)
            for size in (0.6, 1.0, 1.7):
                n = round(best * size)
                d = round(c / (6 * n))
                loss = 1.8 + 400 / (n * gain**0.5) ** 0.34 + 410 / (d * gain**0.5) ** 0.28
                rows.append({"variant": arm, "N": n, "D": d, "C": 6 * n * d, "loss": round(loss, 6)})
    return rows


def ours(path: Path) -> Path:
    return comma(path, runs())


def comma(path: Path, rows: list[dict[str, object]], separator: str = ",") -> Path:
    lines = [separator.join(rows[0])] + [separator.join(map(str, row.values())) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def renamed(names: dict[str, str]) -> list[dict[str, object]]:
    return [{names.get(key, key): value for key, value in row.items()} for row in runs()]


def german(path: Path) -> Path:
    rows = [{key: str(value).replace(".", ",") for key, value in row.items()} for row in runs()]
    return comma(path, rows, ";")  # type: ignore[arg-type]


def json_lines(path: Path) -> Path:
    names = {"variant": "arch", "N": "num_params", "D": "total_tokens", "C": "total_flops", "loss": "val_loss"}
    path.write_text("\n".join(json.dumps(row) for row in renamed(names)))
    return path


def export(path: Path) -> Path:
    """As a W&B export: other names, a state, a run that crashed, and columns that nobody asked about."""
    names = {"variant": "arch", "N": "n_params", "D": "tokens", "C": "total_flops", "loss": "eval/loss"}
    rows = [{"Name": f"run-{i}", "State": "finished", **row} for i, row in enumerate(renamed(names))]
    rows.append(rows[0] | {"Name": "run-x", "State": "crashed", "eval/loss": ""})
    return comma(path, rows)


def thousands(path: Path) -> Path:
    rows = [row | {"N": f'"{row["N"]:,}"', "D": f'"{row["D"]:,}"'} for row in runs()]
    return comma(path, rows)


def zipped(path: Path) -> Path:
    path.write_bytes(gzip.compress(json_lines(path.with_suffix(".jsonl")).read_bytes()))
    return path


KINDS = {
    "german.csv": german, "runs.jsonl": json_lines, "export.csv": export, "thousands.csv": thousands,
    "runs.jsonl.gz": zipped,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_answer_is_that_of_our_own_columns(tmp_path: Path, kind: str) -> None:
    table = KINDS[kind](tmp_path / kind)
    words = ("--variant", "moe", "--baseline", "dense", "--at", "3e19")
    expected = FIT.answer(str(ours(tmp_path / "ours.csv")), *words)
    given = FIT.answer(str(table), *words)
    for key in ("status", "reads", "forecasts"):
        if key in expected:
            assert given[key] == expected[key], key


@pytest.mark.parametrize("kind", KINDS)
def test_the_runs_are_the_same_and_what_was_understood_is_said(tmp_path: Path, kind: str) -> None:
    found, expected = ladder.read_runs(KINDS[kind](tmp_path / kind)), ladder.read_runs(ours(tmp_path / "ours.csv"))
    assert found.variant == expected.variant
    for name in ("N", "D", "C", "loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name))
    assert found.remarks[0].startswith("read as ")
    assert all(len(cells) == len(found.variant) for cells in found.cells.values())


@pytest.mark.parametrize(
    ("factor", "remedy"), [({"C": 1e-9}, "C=NAME*1e9"), ({"D": 1e-9}, "D=NAME*1e9"), ({"N": 1e-6}, "N=NAME*1e6")]
)
def test_units_that_contradict_each_other_are_refused(tmp_path: Path, factor: dict[str, float], remedy: str) -> None:
    rows = [{k: v * factor.get(k, 1) if isinstance(v, int | float) else v for k, v in row.items()} for row in runs()]
    with pytest.raises(EvidenceError, match="C is near 6 N D") as refused:
        ladder.read_runs(comma(tmp_path / "runs.csv", rows))
    assert remedy in str(refused.value)
    assert "Try --columns" in str(refused.value)


def test_duplicates_are_found_in_a_long_table(tmp_path: Path) -> None:
    """They were looked for in all rows before each: minutes for a table like this one."""
    rng = np.random.default_rng(0)
    n = np.exp(rng.uniform(np.log(1e7), np.log(1e9), 60_000)).round()
    d = 20 * n
    rows: list[dict[str, object]] = [
        {"variant": "a", "N": a, "D": b, "C": 6 * a * b, "loss": 3.0 + i % 7 * 1e-3}
        for i, (a, b) in enumerate(zip(n.tolist(), d.tolist(), strict=True))
    ]
    found = ladder.read_runs(comma(tmp_path / "runs.csv", [*rows, rows[0]]))
    assert len(found.C) == len({tuple(row.values()) for row in rows})
    assert any("duplicated row(s) count once" in remark for remark in found.remarks)


def test_two_seeds_of_one_loss_are_two_runs(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.csv", tmp_path / "theirs.csv"
    ours.write_text(
        "variant,N,D,C,loss,seed\na,3e7,6e8,1.08e17,3.5,0\na,3e7,6e8,1.08e17,3.5,1\na,3e7,6e8,1.08e17,3.5,1\n"
    )
    theirs.write_text("arm,params,tokens,val_loss,seed\na,3e7,6e8,3.5,0\na,3e7,6e8,3.5,1\na,3e7,6e8,3.5,1\n")
    for path in (ours, theirs):
        found = ladder.read_runs(path)
        assert len(found.loss) == 2
        assert ladder.ladder(found, "a").repeats.tolist() == [2.0]


def test_no_tokens_are_no_reason_to_keep_duplicates(tmp_path: Path) -> None:
    rows = [{k: v for k, v in row.items() if k != "D"} for row in runs()]
    assert len(ladder.read_runs(comma(tmp_path / "runs.csv", [*rows, rows[0]])).C) == len(rows)
