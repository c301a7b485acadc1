"""Runs that take a second or two, and what must be equal between them."""

import json
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cegain.training.run import config, curves
from cegain.training.run.config import Config
from cegain.training.run.processes import Processes
from cegain.training.run.run_dir import CLOCK_FIELDS, RunDir
from cegain.training.run.train import train
from cegain.training.text.data import Corpus

ONE = Processes(0, 1, torch.device("cpu"))


def small(corpus: Corpus, **given: Any) -> Config:
    """30 steps of 4 x 32 tokens through 2 layers of 16; a line of metrics each step."""
    options: dict[str, Any] = {
        "stack": "bare", "arm": "baseline", "flops": None, "steps": 30, "batch": 4, "log_every": 1, "eval_tokens": 2048,
        "sizes": {"n_layers": 2, "d_model": 16, "n_heads": 2, "seq_len": 32},
    }  # fmt: skip
    return config.resolve(corpus, **{**options, **given})


def run(made: Config, corpus: Corpus, folder: Path, **options: Any) -> RunDir:
    """Train to the end, without the picture, which takes longer than the steps."""
    found = RunDir(folder / made.run_id)
    with mock.patch.object(curves, "draw", return_value=b""):
        train(made, corpus, found, ONE, **options)
    return found


def without_clock(run: RunDir) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Metrics and summary without what differs between two runs on one machine."""
    unequal = {*CLOCK_FIELDS, "peak_bytes"}
    metrics = [{k: v for k, v in line.items() if k not in unequal} for line in run.metrics()]
    summary = {k: v for k, v in (run.read("summary") or {}).items() if k not in unequal}
    assert metrics
    assert summary
    return metrics, json.loads(json.dumps(summary))
