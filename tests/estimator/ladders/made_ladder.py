"""A made-up `training_runs.csv`: arms of known gains, with seed noise of which arms with one seed share a part."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cegain import algorithms
from cegain.tables.training_runs import COLUMNS, TrainingRun

RUNGS = (3e11, 1e12, 3e12)
TALL = (*RUNGS, 1e13, 3e13)
"""Rungs of the baseline."""
NOISE, SHARED = 0.004, 0.6
"""sd of ln loss of one run, and the share of its variance that arms with one seed have in common."""
GAINS = {"rope": 1.5, "layernorm": 2.0, "layernorm+rope": 3.3, "swiglu": 1.2, "lstm": 0.5}


def log_loss(log_flops: float) -> float:
    """Of the baseline: L = 1.2 + 0.8 (C / 3e11)^-0.2."""
    return math.log(1.2 + 0.8 * math.exp(-0.2 * (log_flops - math.log(RUNGS[0]))))


def runs(
    gains: Mapping[str, float] = GAINS,
    *,
    rungs: Mapping[str, Sequence[float]] | None = None,
    seeds: Mapping[float, int] | None = None,
    noise: float = NOISE,
    seed: int = 0,
    stack: str = "bare",
) -> list[TrainingRun]:
    """One row per run, and two of the search for a learning rate.

    Args:
        gains: factor on the compute of an arm at every rung; `baseline` is added.
        rungs: budgets of an arm where they are not `RUNGS` (`TALL` for the baseline).
        seeds: at a budget, where they are not 5 at the lowest and 3 elsewhere.
        noise: sd of ln loss of one run.
        seed: of the noise.
        stack: written into the rows.
    """
    rng = np.random.default_rng(seed)
    counts = dict.fromkeys(TALL, 3) | {RUNGS[0]: 5} | dict(seeds or {})
    common = {(c, s): rng.standard_normal() for c, n in counts.items() for s in range(n)}
    rows = []
    for arm, gain in {"baseline": 1.0, **gains}.items():
        budgets = (rungs or {}).get(arm, TALL if arm == "baseline" else RUNGS)
        rows += [
            _row(stack, arm, c, s, log_loss(math.log(c * gain)) + noise * (
                math.sqrt(SHARED) * common[c, s] + math.sqrt(1 - SHARED) * rng.standard_normal()
            ))
            for c in budgets
            for s in range(counts[c])
        ]  # fmt: skip
        rows += [_row(stack, arm, RUNGS[0], 0, 1.0 + i, "learning_rate") for i in (1, 2)]
    return rows


def _row(stack: str, arm: str, budget: float, seed: int, ln_loss: float, role: str = "ladder") -> TrainingRun:
    loss, n = float(f"{math.exp(ln_loss):.9g}"), round(math.sqrt(budget / 120))
    algorithm = {"baseline": "baseline", "lstm": "transformer"}.get(arm) or "+".join(
        map(algorithms.resolve, arm.split("+"))
    )
    return TrainingRun(
        run_id=f"{stack}-{arm}-{budget:g}-{seed}-{role}-{ln_loss:.6f}", stack=stack, algorithm=algorithm, arm=arm,
        seed=seed, rung_flops=budget, n_params_active=n, n_params_total=n, tokens=20 * n, seq_len=128, vocab=256,
        flops=budget, status="finished", loss_nats_per_token=loss, loss_bits_per_byte=loss / math.log(2),
        learning_rate=0.008, wall_s=60.0, device="cpu", tokens_per_s=1e4, corpus="mini@0", tokenizer="byte",
        torch="2.13.0", commit="0", date="2026-11-22", role=role, command="ceg train",
    )  # fmt: skip


def write(path: Path, rows: Sequence[TrainingRun]) -> Path:
    """The rows as a table of runs."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerows(rows)
    path.write_text(buffer.getvalue())
    return path
