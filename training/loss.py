"""Next-token cross-entropy from hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

LOGITS_AT_ONCE = 2**20
"""Logits of one chunk: 4 MB in float32, which stay in a core's cache between the passes over them. With 4096 entries
and 4096 tokens this takes about half the time of one large product and `cross_entropy` (`benchmarks/test_training.py`).
"""


class LinearCrossEntropy(torch.autograd.Function):
    """Mean of -log softmax(h W^T)[target] over rows; gradients are made on the way, chunk by chunk.

    h [N, d], W [V, d], targets [N]. Gradients with respect to h and W only, once. The products are those of the plain
    form, three of 2 N d V FLOP, all of them in the forward pass.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        """Loss, a scalar in the dtype of `hidden`."""
        rows = len(hidden)
        needed = hidden.requires_grad or weight.requires_grad
        d_hidden, d_weight = torch.empty_like(hidden), torch.zeros_like(weight)
        total = hidden.new_zeros((), dtype=torch.float64)
        size = max(1, LOGITS_AT_ONCE // len(weight))
        for start in range(0, rows, size):
            x, target = hidden[start : start + size], targets[start : start + size, None]
            log_p = torch.log_softmax(x @ weight.T, dim=1)
            total -= log_p.gather(1, target).sum(dtype=torch.float64)
            if needed:
                # d loss / d logits = softmax - one-hot
                d_logits = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=log_p.dtype))
                torch.mm(d_logits, weight, out=d_hidden[start : start + size])
                d_weight.addmm_(d_logits.T, x)
        if needed:
            ctx.save_for_backward(d_hidden.div_(rows), d_weight.div_(rows))
        return (total / rows).to(hidden.dtype)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, Tensor, None]:
        """Gradients, scaled by the one of the loss."""
        (scale,) = upstream
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * scale, d_weight * scale, None


def cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: hidden [B, T, d], unembedding [V, d], targets [B, T] -> scalar.

    In chunks on a CPU; elsewhere the plain form, which a compiler fuses, in float32.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    if hidden.device.type == "cpu":
        loss: Tensor = LinearCrossEntropy.apply(rows, unembedding, wanted)  # type: ignore[no-untyped-call]
        return loss
    return functional.cross_entropy(functional.linear(rows, unembedding).float(), wanted)
