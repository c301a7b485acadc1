"""torch.compile makes the model's code where it pays: the same losses, to rounding."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

from cegain.training.text.data import Corpus
from tests.training.small_runs import run, small

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
]


@pytest.mark.parametrize("arm", ["layernorm+rope+flash_attention", "moe"])
def test_a_compiled_run_has_the_losses_of_an_eager_one(tiny_corpus: Corpus, tmp_path: Path, arm: str) -> None:
    made = small(tiny_corpus, arm=arm, steps=10)
    eager = run(made, tiny_corpus, tmp_path)
    torch.compiler.reset()
    compiled = run(dataclasses.replace(made, compile=True), tiny_corpus, tmp_path)
    losses = [[line["loss"] for line in found.metrics()] for found in (eager, compiled)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert losses[0][-1] < losses[0][0]
