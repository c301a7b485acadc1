import errno
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from cegain.training.run.run_dir import RunDir, RunError, digest


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "one")
    run.create()
    return run


def _save(run: RunDir, step: int) -> None:
    run.append_metrics({"step": step, "flops": 1.0, "loss": 1.0})
    run.save(step, _state(float(step)))


def _state(value: float) -> dict[str, Any]:
    return {"model": {"w": torch.full((3,), value)}, "seconds": 1.5}


def test_a_checkpoint_comes_back_and_two_are_kept(run: RunDir) -> None:
    assert run.load() is None
    for step in (10, 20, 30):
        _save(run, step)
    assert [path.name for path in run.checkpoints()] == ["step-00000030.pt", "step-00000020.pt"]
    found = run.load()
    assert found is not None
    assert found["step"] == 30
    assert found["model"]["w"].tolist() == [30.0] * 3


@pytest.mark.parametrize("harm", ["truncate", "flip", "empty"])
def test_a_harmed_checkpoint_is_passed_over_with_a_warning(run: RunDir, harm: str) -> None:
    _save(run, 10)
    _save(run, 20)
    newest = run.checkpoints()[0]
    content = bytearray(newest.read_bytes())
    if harm == "flip":
        content[len(content) // 2] ^= 1
    newest.write_bytes({"truncate": content[:-7], "flip": content, "empty": b""}[harm])
    with pytest.warns(UserWarning, match="truncated or changed"):
        found = run.load()
    assert found is not None
    assert found["step"] == 10


def test_with_all_checkpoints_harmed_a_run_starts_again(run: RunDir) -> None:
    _save(run, 10)
    run.checkpoints()[0].write_bytes(b"x" * 100)
    with pytest.warns(UserWarning, match="from the start"):
        assert run.load() is None


def test_a_full_disk_is_one_sentence_and_loses_nothing(run: RunDir) -> None:
    _save(run, 10)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[0][1]))
    try:
        with pytest.raises(RunError, match=f"a checkpoint must be written in .*: {os.strerror(errno.EFBIG)}"):
            run.save(20, {"model": {"w": torch.zeros(10_000)}})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old[0])
        signal.signal(signal.SIGXFSZ, old[1])
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_metrics_drop_what_is_made_again_and_a_line_that_was_cut(run: RunDir) -> None:
    for step in (1, 2, 3):
        run.append_metrics({"step": step, "flops": 1.0, "loss": 0.1 * step})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 4, "lo')
    assert [line["step"] for line in run.metrics()] == [1, 2, 3]
    run.keep_metrics(2)
    assert (
        run.metrics_path.read_text()
        == '{"step": 1, "flops": 1.0, "loss": 0.1}\n{"step": 2, "flops": 1.0, "loss": 0.2}\n'
    )


def test_a_run_is_held_by_one_process(run: RunDir) -> None:
    with run.locked(), pytest.raises(RunError, match="held by another"), RunDir(run.path).locked():
        pass
    with run.locked():
        pass


def test_what_a_killed_process_was_writing_is_cleared_away(run: RunDir) -> None:
    run.write("config", {"a": 1})
    _save(run, 10)
    for left in (run.path / ".config.json.abc123", run.path / "checkpoints" / ".step-00000020.pt.abc123"):
        left.write_bytes(b"half")
    with run.locked():
        names = sorted(path.name for path in run.path.rglob("*") if path.is_file())
    assert names == [".lock", "config.json", "metrics.jsonl", "step-00000010.pt"]


def test_a_broken_document_is_named(run: RunDir) -> None:
    assert run.read("summary") is None
    (run.path / "summary.json").write_text("{")
    with pytest.raises(RunError, match=r"summary.json must be JSON"):
        run.read("summary")


def test_digest_follows_content_not_order() -> None:
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})
