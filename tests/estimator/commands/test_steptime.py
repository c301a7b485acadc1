"""`ceg steptime` as a user calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cegain.shapes.sizes import shape_of
from cegain.speed import step_time
from cegain.speed.hardware import find
from cegain.speed.step_work import Plan
from tests.estimator.calls import Calls
from tests.estimator.speed import test_calibration

SIZE = ("--layers", 24, "--width", 2048, "--heads", 16)


RUN = Calls("steptime")
call, answer, refused = RUN.call, RUN.answer, RUN.refused


def test_json_is_the_library_s_answer() -> None:
    document = answer(
        *SIZE, "--vocab", 50257, "--seq-len", 4096, "--device", "a100-40", "--gpus", 64, "--micro-batch", 3,
        "--accumulate", 2, "--recompute", "--sharding", "SHARD_GRAD_OP", "--attention", "flash2", "--reduce-bits", 32,
        "--network-gbps", 800,
    )  # fmt: skip
    plan = Plan(find("a100-40"), 64, 3, 2, "gradients", True, kernel="flash2", gradient_bytes=4, network=1e11)
    step = step_time.training_step(shape_of(24, 2048, 16, 50257, 4096), plan)
    assert document["tokens_per_second_per_gpu"] == step.tokens_per_second_per_device
    assert document["seconds_by_part"] == step.parts
    assert document["log_variance"] == step.log_variance
    assert (document["sharding"], document["recompute"], document["gpus"]) == ("gradients", True, 64)
    assert document["price"]["date"]


def test_plain_answer_names_throughput_utilisation_parts_and_what_binds() -> None:
    text = call("--params", "7e9", "--seq-len", 2048, "--device", "h100", "--gpus", 128).stdout
    for words in ("128 x H100", "tokens/s per device", "TFLOP/s", "binds       matrix products", "collectives", "90%"):
        assert words in text
    assert "fused" in call("--params", "1e7", "--vocab", 4096, "--device", "cpu").stdout


def test_experts_grouped_heads_and_blocks() -> None:
    document = answer(
        *SIZE, "--block", "llama", "--kv-heads", 4, "--experts", 16, "--top-k", 4, "--ff", 1024, "--device", "h100",
        "--gpus", 64, "--expert-parallel", 8,
    )  # fmt: skip
    shape = document["shape"]
    assert (shape["kv_heads"], shape["feed_forward"]) == (4, "moe")
    assert shape["params_active"] < shape["params_total"] / 2
    assert document["seconds_by_part"]["experts"] > 0


def test_decoding() -> None:
    short, long = (answer(*SIZE, "--device", "h100", "--decode", "--context", c, "--batch", 4) for c in (1000, 30000))
    assert short["kind"] == "decoded_token"
    assert long["seconds_per_step"] > 2 * short["seconds_per_step"]
    assert "binds       cache" in call(*SIZE, "--device", "h100", "--decode", "--context", 30000).stdout


def test_published_runs() -> None:
    assert answer("--published")["inside"] == 3
    text = call("--published").stdout
    assert text.count("inside") == 3
    for words in ("OUTSIDE", "Sensitivity", "goodput 0.85 to 0.97", "Shoeybi"):
        assert words in text


def test_calibration_of_a_table_is_stored_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = test_calibration.table(tmp_path / "runs.csv", test_calibration.lines()[::2])
    stored = tmp_path / "step_time.json"
    monkeypatch.setattr(step_time, "CONSTANTS_FILE", stored)
    text = call("--calibrate", path, "--write").stdout
    assert "one size left out" in text
    document = json.loads(stored.read_text())
    assert document["command"] == "ceg steptime --calibrate runs.csv --write"
    assert f"{document['constants']['matmul']['value']:.3g}" in text


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ((*SIZE,), ["--device: one of v100, a100-40, a100-80, h100, h800, h200, b200, cpu is needed"]),
        ((*SIZE, "--device", "h1"), ["--device: must be one of v100, a100-40", "got 'h1'"]),
        ((*SIZE, "--device", "h100", "--seq-len", 0), ["--seq-len: must be an integer of at least 1, got 0"]),
        (
            ("--layers", 12, "--width", 770, "--heads", 12, "--device", "h100"),
            ["--heads: must divide width, got heads=12, width=770; use 11 heads"],
        ),
        (("--params", "7e10", "--device", "a100-40", "--gpus", 8), ["the model must fit into 42 GB", "what would: "]),
        ((*SIZE, "--device", "a100", "--precision", "fp8"), ["--precision: must be one that a100-80 has"]),
        ((*SIZE, "--device", "h100", "--kv-heads", 5), ["--kv-heads: a divisor of the 16 heads"]),
        ((*SIZE, "--device", "h100", "--top-k", 5), ["--top-k: it goes with --experts"]),
        ((*SIZE, "--device", "h100", "--params", "7e9"), ["--params: it goes without --layers, --width, --heads"]),
        (("--params", "1e6", "--device", "h100"), ["--params: must leave room for 50368 vocabulary entries"]),
        (("--device", "h100"), ["--params: a size is needed (found none)"]),
        ((*SIZE, "--device", "h100", "--network-gbps", "nan"), ["--network-gbps: a number above 0"]),
        ((*SIZE, "--device", "h100", "--block", "bert"), ["--block: gpt or llama is needed (found 'bert')"]),
        ((*SIZE, "--device", "h100", "--batch", 3), ["--batch: it goes with --decode"]),
        ((*SIZE, "--device", "h100", "--decode", "--context", 0), ["--context: must be at least 1, got 0"]),
        (("--published", "--params", "7e9"), ["--params: it goes without --published"]),
        (("--write", *SIZE, "--device", "h100"), ["--write: it goes with --calibrate"]),
        (("--calibrate", "none.csv"), ["--calibrate: none.csv: the file can be read"]),
    ],
)
def test_bad_input_is_refused_with_a_remedy(words: tuple[object, ...], found: list[str]) -> None:
    error = refused(*words)
    assert all(part in error for part in found), error


def test_all_problems_at_once() -> None:
    error = refused(
        "--layers", "x", "--width", 770, "--device", "h101", "--seq-len", "", "--sharding", "foo", "--gpus", 1.5,
        "--context", 3, "--reduce-bits", 8,
    )  # fmt: skip
    for option in ("layers", "device", "seq-len", "sharding", "gpus", "context", "reduce-bits"):
        assert f"--{option}: " in error


def test_an_answer_needs_neither_torch_nor_an_optimizer() -> None:
    code = (
        "import sys\nfrom cegain.commands.ceg import ceg\n"
        "ceg(['steptime', '--params', '7e9', '--device', 'h100'], standalone_mode=False)\n"
        "print([m for m in ('torch', 'scipy.optimize', 'pandas', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
