"""Validation on a fixed set of held-out text, whatever the batch size and however often."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from training.data import Corpus, validation_rows
from training.processes import Processes

SEQUENCES_AT_ONCE = 16
"""Of this process; rounding depends on it, so it is one number for all runs."""


def validation_loss(objective: nn.Module, corpus: Corpus, seq_len: int, tokens: int, processes: Processes) -> float:
    """Mean nats per token over the first held-out `tokens` (or all there are), in windows of `seq_len`.

    `objective` takes tokens and targets [B, T] and returns mean nats per token first.
    """
    rows = validation_rows(corpus, seq_len, tokens)
    sums = torch.zeros(2, dtype=torch.float64)
    was_training = objective.training
    objective.eval()
    with torch.no_grad():
        for start in range(SEQUENCES_AT_ONCE * processes.rank, len(rows), SEQUENCES_AT_ONCE * processes.world):
            inputs, targets = (t.to(processes.device) for t in rows[start : start + SEQUENCES_AT_ONCE])
            nats: Tensor = objective(inputs, targets)[0]
            sums += torch.tensor([nats.double().item() * targets.numel(), targets.numel()], dtype=torch.float64)
    objective.train(was_training)
    total, count = processes.sum(sums.to(processes.device)).tolist()
    return float(total / count)
