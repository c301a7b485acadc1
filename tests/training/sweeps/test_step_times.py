"""Timed steps are those of a run, and stand beside the model's."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cegain.training.sweeps import step_times

ROOT = Path(__file__).parents[3]


def test_configurations_are_those_of_a_ladder() -> None:
    made = step_times.configuration("rope", 1e15, on_gpu=True, compiled=False)
    assert (made.arm, made.stack, made.precision, made.compile) == ("rope", "bare", "bfloat16", False)
    assert made.shape.vocab_size == 256
    assert step_times.configuration("rope", 1e15, on_gpu=True, compiled=True).compile


def test_steps_are_counted_and_timed() -> None:
    made = step_times.configuration("baseline", 1e9, on_gpu=False, compiled=False)
    found = step_times.measure(made, "cpu", 0.05)
    assert found["steps"] % made.log_every == 0
    assert 0 < found["p20_s"] <= found["median_s"] <= found["p80_s"]
    assert found["seconds"] == pytest.approx(found["median_s"], rel=3)
    assert step_times.predicted(made, "cpu") > 0


@pytest.mark.slow
def test_two_at_once_and_one_that_fails() -> None:
    command = [
        sys.executable,
        "-m",
        "cegain.training.sweeps.step_times",
        "--rungs",
        "1e9",
        "--together",
        "2",
        "--seconds",
        "0.1",
    ]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    line = json.loads(said)
    assert line["processes"] == 2
    assert line["seconds_per_step_of_all"] == pytest.approx(line["seconds"] / 2)
    said = subprocess.run([*command, "--device", "cuda:9"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert json.loads(said)["error"]
