import math
from pathlib import Path
from typing import Any

import pytest

from cegain.tables import training_runs
from cegain.tables.problems import EvidenceError
from cegain.tables.training_runs import COLUMNS, TrainingRun

RUN = TrainingRun(
    run_id="a", stack="bare", algorithm="rope", arm="rope", seed=0, rung_flops=1e12, n_params_active=10,
    n_params_total=10, tokens=100, seq_len=128, vocab=256, flops=1.01e12, status="finished", loss_nats_per_token=2.0,
    loss_bits_per_byte=2.9, learning_rate=0.01, wall_s=1.5, device="cpu", tokens_per_s=70.0, corpus="mini@abc",
    tokenizer="byte", torch="2.13.0", commit="abc", date="2026-01-01", role="ladder", command="ceg train --arm rope",
)  # fmt: skip
DIVERGED = RUN._replace(run_id="b", status="diverged", loss_nats_per_token=math.nan, loss_bits_per_byte=math.nan)


def test_rows_come_back_and_a_run_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    assert training_runs.append(path, [RUN, DIVERGED]) == 2
    assert training_runs.append(path, [RUN._replace(loss_nats_per_token=9.0), RUN._replace(run_id="c")]) == 1
    first, second, third = training_runs.load(path)
    assert first == RUN
    assert str(second) == str(DIVERGED)  # NaN is not equal to itself
    assert third.run_id == "c"


@pytest.mark.parametrize(
    ("column", "value", "rule"),
    [
        ("seed", "-1", "a whole number of at least 0"),
        ("tokens", "1.5", "a whole number above 0"),
        ("flops", "nan", "a finite number above 0"),
        ("flops", "inf", "a finite number above 0"),
        ("loss_nats_per_token", "", "a finite number above 0"),
        ("status", "done", "one of finished, diverged"),
        ("device", " ", "the cell is filled"),
        ("role", "", "one of ladder, learning_rate"),
        ("command", "", "the cell is filled"),
    ],
)
def test_a_bad_cell_is_named(tmp_path: Path, column: str, value: str, rule: str) -> None:
    path = tmp_path / "runs.csv"
    training_runs.append(path, [RUN])
    cells: dict[str, Any] = dict(zip(COLUMNS, path.read_text().splitlines()[1].split(","), strict=True))
    path.write_text(",".join(COLUMNS) + "\n" + ",".join({**cells, column: value}.values()) + "\n")
    with pytest.raises(EvidenceError, match=rf"runs.csv, line 2, column {column}: {rule}"):
        training_runs.load(path)


def test_all_problems_come_at_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    training_runs.append(path, [RUN, DIVERGED])
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, lines[1], "a,b", lines[2].replace(",,", ",1.0,")]) + "\n")
    with pytest.raises(EvidenceError) as caught:
        training_runs.load(path)
    assert len(caught.value.problems) == 4
    before = path.read_bytes()
    with pytest.raises(EvidenceError):
        training_runs.append(path, [RUN._replace(run_id="new")])
    assert path.read_bytes() == before


def test_a_bad_new_row_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    with pytest.raises(EvidenceError, match="run a, column tokens"):
        training_runs.append(path, [RUN._replace(tokens=0)])
    assert not path.exists()


def test_a_run_for_a_learning_rate_may_come_to_stand_in_the_ladder(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    training_runs.append(path, [RUN._replace(role="learning_rate"), RUN._replace(run_id="b")])
    assert training_runs.append(path, [RUN, RUN._replace(run_id="b", role="learning_rate")]) == 0
    assert [row.role for row in training_runs.load(path)] == ["ladder", "ladder"]


@pytest.mark.parametrize(
    ("content", "text"),
    [("", "an empty file.. Start it with run_id,stack"), ("a,b\n", "line 1: the columns are run_id,stack")],
)
def test_other_columns_are_refused(tmp_path: Path, content: str, text: str) -> None:
    path = tmp_path / "runs.csv"
    path.write_text(content)
    with pytest.raises(EvidenceError, match=text):
        training_runs.load(path)
