"""Logs as text and JSON of any nesting become tables; several files become one."""

import gzip
import json
from pathlib import Path

import pytest

from cegain.run_tables import run_import
from cegain.run_tables.run_import import ReadOptions
from cegain.tables import table_files
from cegain.tables.problems import EvidenceError

NANOGPT = "".join(
    f"step {s}: train loss {4 - s / 1000:.4f}, val loss {4.1 - s / 1000:.4f}\niter {s}: loss 3.9, time 90.1ms, mfu 3%\n"
    for s in (0, 250, 500)
)
SPEEDRUN = (
    'import torch\nval_loss = 0.0 # total\nprint(f"step:{step} val_loss:{val_loss:.4f}")\n'
    + "=" * 100
    + "\nstep:0/6200 train_loss:10.9880 train_time:230ms step_avg:nanms\n"
    + "step:0/6200 val_loss:10.9881 train_time:231ms step_avg:nanms\n"
    + "step:125/6200 val_loss:6.3014 train_time:27345ms step_avg:220.53ms\n"
    + "step:6200/6200 val_loss:3.2785 train_time:1339067ms step_avg:216.33ms\n"
)
LLM_C = "s:0 tel:10.9689\ns:1 trl:10.9690\ns:250 tel:6.4012\ns:500 tel:5.1001\n"
NANOCHAT = (
    "Step 00000 | Validation bpb: 3.2101\nStep 00250 | Validation bpb: 0.9123\nstep 00251/21400 (1.2%) | loss: 3.1\n"
)
CONSOLE = "{'loss': 3.4, 'step': 50, 'epoch': 0.5}\n{'eval_loss': 3.21, 'step': 100, 'epoch': 1.0}\n"
KEYS = "epoch=1 step=10 val_loss=3.4\nepoch=2 step=20 val_loss=3.2\n"


@pytest.mark.parametrize(
    ("text", "steps", "column", "losses"),
    [
        (NANOGPT, ["0", "250", "500"], "val_loss", ["4.1000", "3.8500", "3.6000"]),
        (SPEEDRUN, ["0", "125", "6200"], "val_loss", ["10.9881", "6.3014", "3.2785"]),
        (LLM_C, ["0", "250", "500"], "test_loss", ["10.9689", "6.4012", "5.1001"]),
        (NANOCHAT, ["00000", "00250"], "validation_bpb", ["3.2101", "0.9123"]),
        (CONSOLE, ["100"], "eval_loss", ["3.21"]),
        (KEYS, ["10", "20"], "val_loss", ["3.4", "3.2"]),
    ],
)
def test_logs(text: str, steps: list[str], column: str, losses: list[str], tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(text)
    found = table_files.read(path)
    assert list(found.columns["step"]) == steps
    assert list(found.columns[column]) == losses
    assert found.kind == f"a log: {len(steps)} evaluations"


def test_a_log_is_one_run_at_its_last_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "gpt2.txt"
    path.write_text(SPEEDRUN)
    found = run_import.read(path, ReadOptions(columns={"N": "124e6", "D": "step*524288"}))
    assert found.loss.tolist() == [3.2785]
    assert found.D.tolist() == [6200 * 524288]
    assert any("1 before the first step" in remark for remark in found.remarks)
    smoothed = run_import.read(path, ReadOptions(columns={"N": "124e6", "D": "step*524288"}, smooth=2))
    assert smoothed.loss[0] == pytest.approx((6.3014 + 3.2785) / 2)


def test_a_log_without_evaluations_says_so(tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text("step 10: loss 3.5\nstep 20: loss 3.4\n")
    found = run_import.read(path, ReadOptions(columns={"N": "1e8", "D": "step*1e6"}))
    assert found.loss.tolist() == [3.4]
    assert "the losses are those of training: no evaluation in the table" in found.remarks


@pytest.mark.parametrize("text", ["", "no numbers here: loss\n", "\x00\x01"])
def test_what_is_no_log_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "run.log"
    path.write_text(text)
    with pytest.raises(EvidenceError):
        table_files.read(path)


EVALS = [{"step": s, "eval_loss": 4 - s / 100, "epoch": s / 50} for s in (50, 100)]
NESTED: list[tuple[object, dict[str, list[str]]]] = [
    ({"runs": [{"info": {"params": 1e8, "loss": 3.0}}, {"info": {"params": 2e8, "loss": 2.9}}]},
     {"info/loss": ["3.0", "2.9"]}),
    ({"config": {"width": 64}, "training": [{"step": 1, "loss": 3.0}]}, {"config/width": ["64"], "loss": ["3.0"]}),
    ({"short": [{"a": 1}], "long": [{"loss": 1.5}, {"loss": 1.4}]}, {"loss": ["1.5", "1.4"]}),
    ({"config": {"d": 8}, "train_loss": [[1, 9.0]], "eval_loss": [[100, 7.11], [200, 6.63]]},
     {"step": ["100", "200"], "eval_loss": ["7.11", "6.63"], "config/d": ["8", "8"]}),
    ({"val_loss": 3.1, "rates": [{"step": 1, "lr": 0.1}, {"step": 2, "lr": 0.2}]}, {"val_loss": ["3.1"]}),
    ({"log_history": [{"step": 10, "loss": 5.0}, *EVALS], "max_steps": 100},
     {"eval_loss": ["3.5", "3.0"], "max_steps": ["100", "100"]}),
    ({"log_history": [{"step": 5, "eval_a_loss": 2.0}, {"step": 5, "eval_b_loss": 3.0},
                      {"step": 9, "eval_a_loss": 1.9}]},
     {"step": ["5", "9"], "eval_a_loss": ["2.0", "1.9"], "eval_b_loss": ["3.0", ""]}),
    ({"log_history": [{"step": 10, "loss": 5.0}, {"step": 20, "loss": 4.0}]}, {"train_loss": ["5.0", "4.0"]}),
]  # fmt: skip


@pytest.mark.parametrize(("whole", "columns"), NESTED)
def test_json_of_any_nesting(whole: object, columns: dict[str, list[str]], tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps(whole, indent=1))
    found = table_files.read(path)
    assert {name: list(found.columns[name]) for name in columns} == columns


def test_the_list_that_is_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    path.write_text(json.dumps({"short": [{"a": 1}], "long": [{"loss": 1.5}, {"loss": 1.4}]}))
    assert table_files.read(path).kind == "JSON: the list long (not short)"


def test_several_evaluation_sets_are_not_chosen_from(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": [{"step": 5, "eval_a_loss": 2.0, "eval_b_loss": 3.0}]}))
    with pytest.raises(EvidenceError, match=r"found eval_a_loss, eval_b_loss.*loss=eval_a_loss"):
        run_import.read(path)


def test_files_and_folders_are_one_table(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    folder.mkdir()
    for size, last in ((100, 3.6), (200, 3.4), (400, 3.2)):
        (folder / f"{size}M.log").write_text(f"step 500: val loss {last + 0.5}\nstep 1000: val loss {last}\n")
    (folder / "README.txt").write_text("What this is.")
    options = ReadOptions(columns={"N": "1e8", "D": "step*1e6"}, last=True)
    found = run_import.read(folder, options)
    assert sorted(found.loss.tolist()) == [3.2, 3.4, 3.6]
    assert "3 files" in found.understood[0]
    assert "not README.txt" in found.understood[0]
    again = run_import.read(folder / "100M.log", options, [folder / "200M.log", folder / "400M.log"])
    assert sorted(again.loss.tolist()) == [3.2, 3.4, 3.6]
    with gzip.open(tmp_path / "a.csv.gz", "wt") as stream:
        stream.write("params,tokens,loss\n1e8,2e9,3.5\n")
    (tmp_path / "b.csv").write_text("loss,params,tokens\n3.4,2e8,4e9\n")
    mixed = run_import.read(tmp_path / "a.csv.gz", more=[tmp_path / "b.csv"])
    assert mixed.loss.tolist() == [3.5, 3.4]
    assert mixed.places[1] == "b.csv, line 2"


def test_all_bad_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(EvidenceError) as refused:
        run_import.read(tmp_path)
    assert len(refused.value.problems) == 2
