"""What runs on a machine with a GPU, without one: order, restarts, refusals, the table; a slow test rehearses it."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cegain.benchmarks import collect, gpu, gpu_kernels, gpu_processes, table
from cegain.benchmarks.gpu_processes import LADDERS, Place
from cegain.benchmarks.record import Record
from cegain.commands.ceg import ceg
from cegain.tables import kernel_times, provenance
from cegain.tables.problems import EvidenceError
from tests.benchmarks.made_rows import DEVICE, decode, mixture, session

ROOT = Path(__file__).parents[2]


def place(folder: Path, **changes: Any) -> Place:
    given: dict[str, Any] = {
        "out": folder / "out", "work": folder / "work" / "rehearsal", "corpus": folder / "corpus", "jobs": 2,
        "commit": "abc1234", "rehearsal": True, "mps": False, "force": False, **changes,
    }  # fmt: skip
    return Place(**given)


def running(state: Path) -> bool:
    """Whether a process is there, by its file in /proc."""
    try:
        return state.read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class TestRecord:
    def test_what_was_done_stays_and_is_copied(self, tmp_path: Path) -> None:
        copy = tmp_path / "out" / "r.json"
        record = Record(tmp_path / "r.json", False, [copy])
        record.begin("a")
        record.end("a", "measured", [{"name": "a"}])
        assert json.loads(copy.read_text()) == json.loads((tmp_path / "r.json").read_text())
        again = Record(tmp_path / "r.json", False)
        assert again.open(["a", "b"]) == ["b"]
        assert again.document["benchmarks"] == [{"name": "a"}]

    def test_a_case_in_which_the_process_ended_comes_last_once_and_then_never(self, tmp_path: Path) -> None:
        for expected in (["a", "b"], ["b", "a"]):
            record = Record(tmp_path / "r.json", False)
            assert record.open(["a", "b"]) == expected
            record.begin("a")
        assert Record(tmp_path / "r.json", False).open(["a", "b"]) == ["b"]

    def test_a_case_that_was_left_is_as_before(self, tmp_path: Path) -> None:
        record = Record(tmp_path / "r.json", False)
        record.begin("a")
        record.leave("a")
        assert record.open(["a", "b"]) == ["a", "b"]

    def test_rehearsals_and_measurements_do_not_mix(self, tmp_path: Path) -> None:
        Record(tmp_path / "r.json", True).write()
        with pytest.raises(ValueError, match="all rehearsed or all measured"):
            Record(tmp_path / "r.json", False)


class TestSlices:
    def test_all_lengths_widths_and_rivals_of_the_table_are_there(self) -> None:
        found = gpu_kernels.slices("cuda")
        attention = found["attention"]
        assert {(c.seq_q, c.head_dim, c.pattern) for c in attention.cases} == {
            (t, d, p) for t in (512, 1024, 2048, 4096, 8192, 16384) for d in (64, 128) for p in ("causal", "full")
        }
        assert {"sdpa_cudnn", "sdpa_flash", "flex"} <= set(attention.rivals)
        assert (found["sparse"].cases[0].pattern, found["sparse"].cases[0].seq_q) == ("blocks", 8192)
        first = next(case for case in found["moe"].cases if case.op == "moe")
        assert (first.seq_q, first.d_model, first.d_ff, first.experts, first.top_k) == (32768, 2048, 768, 128, 8)
        assert "grouped_mm" in found["moe"].rivals
        assert {c.seq_kv for c in found["decode"].cases} >= {16384}

    def test_every_name_has_its_slice(self) -> None:
        assert set(gpu.KERNEL_SLICES) == {gpu_kernels.CEILINGS, *gpu_kernels.slices("cuda")}
        assert set(gpu.SLICES) == {*gpu.KERNEL_SLICES, "tune", "tests", "steps", *LADDERS}

    def test_ladders_are_those_that_were_asked_for(self) -> None:
        counts = {name: len(one.arms.split(",")) for name, one in LADDERS.items()}
        assert counts == {"ladder-1e14": 12, "ladder-1e15": 4, "ladder-3e15": 2}
        for name, one in LADDERS.items():
            assert float(one.rungs.split(",")[-1]) == float(name.removeprefix("ladder-"))
            assert one.rungs.split(",")[0] == "1e13"  # learning rates are found there, the same for all
            assert one.seeds.split(",")[-1] == "3"

    def test_full_attention_is_what_it_says(self) -> None:
        import torch

        from cegain.benchmarks import suite
        from cegain.benchmarks.check import Truth
        from cegain.benchmarks.lab import Lab

        (case,) = gpu_kernels.slices("cpu")["attention"].cases[1:]
        assert (case.pattern, gpu_kernels.slices("cpu")["attention"].cases[0].pattern) == ("full", "causal")
        operation = suite.OPERATIONS["attention"](case, torch.device("cpu"))
        assert operation.density == 1.0
        truth = Truth(operation, operation.leaves(0))
        checked = [one for one in operation.implementations() if "fwd" not in one.skips and not one.only_full]
        assert {"flash", "materialised", "sdpa_flash", "sdpa_math"} <= {one.name for one in checked}
        for one in checked:
            truth.check(one)
        half = dataclasses.replace(case, dtype="float16")
        assert str(half) != str(case)
        assert suite.OPERATIONS["attention"](half, torch.device("cpu")).dtype == torch.float16
        assert Lab(torch.device("cpu"), gpu_kernels.ROUNDS["cpu"], False, ceilings=None).found == {}


class TestRefusals:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(gpu.main, list(arguments))

    def test_all_at_once_before_any_work(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(provenance, "commit", lambda: "")
        monkeypatch.delenv(provenance.COMMIT, raising=False)
        found = self.run("--slice", "all-of-it,tests:x", "--jobs", "0", "--seconds", "0", "--work", str(tmp_path / "w"))
        assert found.exit_code == 2
        for option in ("--out", "--slice", "--slice tests:N", "--jobs", "--seconds", "--commit"):
            assert f"{option}: " in found.output
        assert not (tmp_path / "w").exists()

    def test_a_ladder_without_its_corpus(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert gpu_processes.ladder("ladder-1e14", place(tmp_path, rehearsal=False), time.monotonic() + 60) == 2
        assert "`ceg data pack library --tokens 4e7 --dir" in capsys.readouterr().out

    @pytest.mark.parametrize(("force", "code"), [(False, 2), (True, 0)])
    def test_a_ladder_that_does_not_fit(
        self,
        force: bool,
        code: int,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (tmp_path / "corpus").mkdir()
        (tmp_path / "corpus" / "corpus.json").write_text("{}")
        began: list[list[str]] = []

        def run(self: Place, command: list[str], deadline: float, **_: Any) -> int:
            began.append(command)
            return 0

        monkeypatch.setattr(gpu_processes, "predicted", lambda *_: (61.0, "said"))
        monkeypatch.setattr(Place, "run", run)
        given = place(tmp_path, rehearsal=False, force=force)
        assert gpu_processes.ladder("ladder-3e15", given, time.monotonic() + 60) == code
        said = capsys.readouterr().out
        assert ("it fits its time" in said) is not force
        assert len(began) == force
        if force:
            assert began[0][began[0].index("--arms") + 1] == "baseline,moe"
            assert began[0][began[0].index("--device") + 1] == "cuda"

    def test_collecting_a_rehearsal(self, tmp_path: Path) -> None:
        record = Record(tmp_path / "r.json", True)
        record.write()
        with pytest.raises(EvidenceError, match="those of a rehearsal"):
            collect.rows([tmp_path / "r.json"], "abc")
        document = {"benchmarks": [{"extra_info": {"op": "copy", "rehearsal": True}, "stats": {"median": 1.0}}]}
        (tmp_path / "s.json").write_text(json.dumps(document))
        with pytest.raises(EvidenceError, match="that of a rehearsal"):
            collect.rows([tmp_path / "s.json"], "abc")


class TestTimeOfLadders:
    def test_by_the_model_and_by_steps_that_were_timed(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        document = {"groups": [{"seconds": 10.0, "runs": 3}, {"seconds": 30.0, "runs": 2}]}
        done = subprocess.CompletedProcess([], 0, json.dumps(document), "")
        monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
        given, asked = place(tmp_path), LADDERS["ladder-1e15"]
        alone, said = gpu_processes.predicted(given, [], asked)
        assert alone == 40
        assert said.startswith("5 runs, 40 s one after another by the step-time model (cpu)")
        record = given.record()
        line = {"rung_flops": 1e15, "compile": False, "mps": False, "processes": 2, "seconds_per_step_of_all": 3.0}
        record.put("steps", [{**line, "predicted_s": 1.0}, {**line, "predicted_s": 1.0, "processes": 1}])
        assert gpu_processes.predicted(given, [], asked)[0] == 120


class TestProcesses:
    def test_one_that_does_not_end_is_ended_with_what_it_began(self, tmp_path: Path) -> None:
        program = (
            "import signal, subprocess, sys, time; signal.signal(signal.SIGINT, signal.SIG_IGN);"
            "print('here', flush=True);"
            "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
            "print(child.pid, flush=True); time.sleep(60)"
        )
        given = place(tmp_path)
        before = gpu_processes.ENDING
        gpu_processes.ENDING = 0.2
        try:
            assert given.run([sys.executable, "-c", program], time.monotonic() + 3) == -1
        finally:
            gpu_processes.ENDING = before
        said = (given.out / gpu_processes.LOG).read_text().split()
        assert said[0] == "here"
        if Path("/proc").is_dir():
            state = Path(f"/proc/{said[1]}/stat")
            until = time.monotonic() + 20
            while running(state) and time.monotonic() < until:
                time.sleep(0.1)  # what was killed takes a moment on a busy machine
            assert not running(state)

    def test_what_it_gives_and_what_it_sees(self, tmp_path: Path) -> None:
        given = place(tmp_path)
        given.write_table({"Made-up GPU": []})
        program = "import os, sys; print(os.environ['CEG_COMMIT'], os.environ['CEG_TUNED']); sys.exit(3)"
        assert given.run([sys.executable, "-c", program], time.monotonic() + 30) == 3
        said = (given.out / gpu_processes.LOG).read_text().split()
        assert said == ["abc1234", str((given.work / "tuned.json").absolute())]
        assert json.loads((given.out / "tuned.json").read_text()) == {"Made-up GPU": []}

    def test_a_crash_goes_on_with_the_next_case(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        given = place(tmp_path)
        codes = iter([-11, -11, 0])
        seen = []

        def run(self: Place, command: list[str], deadline: float, **_: Any) -> int:
            record = self.record()
            seen.append(record.open(["a", "b"]))
            code = next(codes)
            if code:
                record.begin("a")
            return code

        monkeypatch.setattr(Place, "run", run)
        assert gpu._kernels("attention", given, time.monotonic() + 60) == 0
        assert seen == [["a", "b"], ["b", "a"], ["b"]]

    def test_a_crash_before_any_case_is_not_repeated(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Place, "run", lambda *_, **__: -11)
        assert gpu._kernels("attention", place(tmp_path), time.monotonic() + 60) == 1


class TestTable:
    def table(self, tmp_path: Path, rows: list[kernel_times.KernelTime], *arguments: str) -> Any:
        path = tmp_path / "t.csv"
        kernel_times.append(path, rows)
        return CliRunner().invoke(ceg, ["bench", "table", "--times", str(path), *arguments])

    def test_ratios_and_shares(self, tmp_path: Path) -> None:
        found = json.loads(self.table(tmp_path, session(), "--json").output)
        assert (found["device"], found["flops_per_s"], found["bytes_per_s"]) == (DEVICE, 100e12, 1e12)
        lines = [x for x in found["lines"] if x["implementation"] == "flash" and x["sizes"]["seq_q"] == 4096]
        assert {line["pass"] for line in lines} == {"fwd", "bwd", "fwd_bwd"}
        for line in lines:
            assert line["faster"]["sdpa_cudnn"] == pytest.approx(0.78 / 0.8)
            assert line["faster"]["flex"] == pytest.approx(0.78 / 0.5)
            assert line["of_ceiling"] == pytest.approx(0.78 * 4096 / 4696)
        (line,) = [x for x in found["lines"] if x["op"] == "decode" and x["sizes"]["seq_kv"] == 4096]
        assert line["of_ceiling"] == pytest.approx(0.7 * 4096 / 4696)

    def test_experts_stand_against_grouped_mm(self, tmp_path: Path) -> None:
        theirs = mixture("moe_dispatch", 4096, 0.3)._replace(implementation="grouped_mm")
        ceilings = [row for row in session() if row.op in ("gemm", "copy")]
        rows = [*ceilings, theirs, mixture("moe_dispatch", 4096, 0.6)]
        (line,) = json.loads(self.table(tmp_path, rows, "--json").output)["lines"]
        assert line["faster"] == {"grouped_mm": pytest.approx(2.0)}

    def test_rows_of_other_sessions_do_not_mix(self, tmp_path: Path) -> None:
        later = [row._replace(commit="new", date="2026-03-01") for row in session() if row.op in ("gemm", "copy")]
        rows = [*session(), *later, decode("mqa", 512, 1, 0.5)._replace(commit="new", date="2026-03-01")]
        found = json.loads(self.table(tmp_path, rows, "--json").output)
        assert [line["op"] for line in found["lines"]] == ["decode"]
        assert found["lines"][0]["faster"] == {}

    def test_in_words(self, tmp_path: Path) -> None:
        said = self.table(tmp_path, session()).output
        assert "Made-up GPU: 100 TFLOP/s (best matrix product), 1,000 GB/s (copy)" in said
        assert "x cuDNN" in said

    def test_no_gpu_yet_is_one_sentence(self, tmp_path: Path) -> None:
        rows = [row._replace(driver="", device="Some CPU, 2 threads") for row in session()]
        found = self.table(tmp_path, rows)
        assert found.exit_code == 2
        assert "kernel times of a GPU are there (the table has Some CPU, 2 threads). Measure on one" in found.output
        assert self.table(tmp_path, rows, "--device", "some cpu").exit_code == 0
        other = self.table(tmp_path, rows, "--device", "h200")
        assert (other.exit_code, "Name one of these" in other.output) == (2, True)

    def test_no_ceilings(self) -> None:
        rows = [row for row in session() if row.op != "copy"]
        with pytest.raises(table.NoTimesError, match="a session has ceilings"):
            table.compare(rows)


def test_commits_of_a_tree_without_its_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "_ROOT", tmp_path)
    monkeypatch.setenv(provenance.COMMIT, "abc1234")
    assert provenance.commit() == "abc1234"


@pytest.mark.slow
def test_rehearsal_of_everything(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cegain.benchmarks.gpu", "--rehearse", "--out", str(tmp_path / "out"), "--work",
               str(tmp_path / "work"), "--commit", "abc1234"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(files) <= 8
    assert all(path.stat().st_size < 2**24 and path.parent == tmp_path / "out" for path in files)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    kernels = {one["extra_info"]["implementation"] for one in found["benchmarks"]}
    assert {"torch", "flash", "block_sparse", "mqa", "moe_dispatch", "grouped_mm", "dense_ffn"} <= kernels
    assert found["ended_in"] == {}
    assert not [how for how in found["done"].values() if "WRONG" in how]
    assert found["steps"][0]["seconds"] > 0
    tuned = json.loads((tmp_path / "out" / "tuned.json").read_text())
    assert {entry["kernel"] for (entries,) in [tuned.values()] for entry in entries} >= {"flash_triton.forward_kernel"}
    assert "rehearsal@" in (tmp_path / "out" / "training_runs.csv").read_text()
    with pytest.raises(EvidenceError):
        collect.rows([tmp_path / "out" / "results.json"])
