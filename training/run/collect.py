"""Run folders to rows of `training_runs.csv`."""

from __future__ import annotations

import math

from cegain.shapes import architecture, arms
from cegain.tables.training_runs import TrainingRun
from cegain.training.run import config, repeat
from cegain.training.run.run_dir import RunDir, RunError
from cegain.training.text import data


def row(run: RunDir, role: str = "ladder") -> TrainingRun | None:
    """The row of a run that has ended; None for one that has not.

    Args:
        run: its folder.
        role: one of `training_runs.ROLES`.

    Raises:
        RunError: files of the run are missing or broken.
    """
    summary = run.read("summary")
    if summary is None:
        return None
    asked, environment = run.read("config"), run.read("environment")
    if asked is None or environment is None:
        raise RunError(f"a finished run has config.json and environment.json, {run.path} lacks one; remove the run")
    try:
        made = config.from_document({k: v for k, v in asked.items() if k not in ("run_id", "corpus_sha256")})
        command = repeat.command(made, environment.get("threads"))
    except (TypeError, ValueError, KeyError) as error:
        raise RunError(f"{run.path / 'config.json'} must be what a run wrote ({error}); remove the run") from None
    parameters = architecture.parameters(made.shape)
    return TrainingRun(
        run_id=asked["run_id"],
        stack=made.stack,
        algorithm=arms.algorithm(made.arm),
        arm=made.arm,
        seed=made.seed,
        rung_flops=made.rung_flops,
        n_params_active=parameters.active,
        n_params_total=parameters.total,
        tokens=summary["tokens"],
        seq_len=made.shape.seq_len,
        vocab=made.shape.vocab_size,
        flops=summary["flops"],
        status=summary["status"],
        loss_nats_per_token=_number(summary["loss_nats_per_token"]),
        loss_bits_per_byte=_number(summary["loss_bits_per_byte"]),
        learning_rate=made.learning_rate,
        wall_s=round(summary["seconds"], 3),
        device=environment["device"],
        tokens_per_s=round(summary["tokens_per_s"], 1),
        corpus=data.label(made.corpus, asked["corpus_sha256"]),
        tokenizer=made.tokenizer,
        torch=environment["torch"],
        commit=environment["commit"],
        date=environment["date"],
        role=role,
        command=command,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value
