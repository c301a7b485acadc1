"""Validation on a fixed set of held-out text, whatever the batch size and however often."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from cegain.training.run.processes import Processes
from cegain.training.text.data import Corpus, validation_rows
from cegain.training.text.tokenizers import BpeTokenizer

SEQUENCES_AT_ONCE = 16
"""Of this process; rounding depends on it, so it is one number for all runs."""
COUNTED = 2**26
"""Training tokens behind the unigram frequencies: the first 64M."""


class HeldOutText(NamedTuple):
    """What a validation loss is of: nats per token of a model that ignores its context, and bytes per token."""

    unigram_entropy: float
    bytes_per_token: float


def held_out_text(corpus: Corpus, seq_len: int, tokens: int) -> HeldOutText:
    """About the targets of `validation_loss` with the same arguments."""
    rows = validation_rows(corpus, seq_len, tokens)
    counts = np.ones(corpus.vocab_size, dtype=np.int64)
    train = corpus.tokens("train")
    for start in range(0, min(len(train), COUNTED), 2**20):
        counts += np.bincount(train[start : min(start + 2**20, COUNTED)], minlength=corpus.vocab_size)
    targets = rows[0 : len(rows)][1].numpy().ravel()
    wanted = np.bincount(targets, minlength=corpus.vocab_size)
    entropy = -float((wanted / wanted.sum()) @ np.log(counts / counts.sum()))
    if corpus.tokenizer == "byte":
        return HeldOutText(entropy, 1.0)
    text = BpeTokenizer.load(corpus.folder / "tokenizer.json").decode(targets.tolist())
    return HeldOutText(entropy, len(text.encode()) / len(targets))


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
