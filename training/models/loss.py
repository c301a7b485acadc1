"""Next-token cross-entropy from hidden states, without ever holding all logits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from cegain.kernels.transforms import transformed

LOGITS_AT_ONCE = 2**20
"""Logits of one chunk: 4 MB in float32, which stay in a core's cache between the passes over them. With 4096 entries
and 4096 tokens this takes about half the time of one large product and `cross_entropy` (`benchmarks/test_training.py`).
"""


def cross_entropy(hidden: Tensor, unembedding: Tensor, targets: Tensor) -> Tensor:
    """Mean nats per token: hidden [B, T, d], unembedding [V, d], targets [B, T] -> scalar.

    In chunks on a CPU; elsewhere the plain form, which a compiler fuses, in float32. So it is in forward mode and under
    transforms of `torch.func`, of which the operation of chunks knows nothing.
    """
    rows, wanted = hidden.flatten(0, 1), targets.flatten()
    if hidden.device.type == "cpu" and not torch.is_autocast_enabled("cpu") and not transformed():
        loss: Tensor = linear_cross_entropy(rows, unembedding, wanted, torch.is_grad_enabled())[0]
        return loss
    return functional.cross_entropy(functional.linear(rows, unembedding).float(), wanted)


@torch.library.custom_op("ceg::linear_cross_entropy", mutates_args=())
def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, trained: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of -log softmax(h W^T)[target] over rows, chunk by chunk; where `trained`, gradients on the way.

    An operation of its own, since a compiler would trace the loop over chunks.

    Args:
        hidden: h [N, d].
        weight: W [V, d].
        targets: [N], int64.
        trained: whether gradients are wanted, once. The products are those of the plain form, three of 2 N d V FLOP.

    Returns:
        The loss, and its gradients with respect to h and W (empty unless `trained`).
    """
    rows = len(hidden)
    d_hidden = torch.empty_like(hidden) if trained else hidden.new_empty(0)
    d_weight = torch.zeros_like(weight) if trained else weight.new_empty(0)
    total = hidden.new_zeros((), dtype=torch.float64)
    size = max(1, LOGITS_AT_ONCE // len(weight))
    for start in range(0, rows, size):
        x, target = hidden[start : start + size], targets[start : start + size, None]
        log_p = torch.log_softmax(x @ weight.T, dim=1)
        total -= log_p.gather(1, target).sum(dtype=torch.float64)
        if trained:
            # d loss / d logits = softmax - one-hot
            d_logits = log_p.exp_().scatter_add_(1, target, torch.full_like(target, -1, dtype=log_p.dtype))
            torch.mm(d_logits, weight, out=d_hidden[start : start + size])
            d_weight.addmm_(d_logits.T, x)
    return (total / rows).to(hidden.dtype), d_hidden.div_(rows), d_weight.div_(rows)


@linear_cross_entropy.register_fake
def _(hidden: Tensor, weight: Tensor, targets: Tensor, trained: bool) -> tuple[Tensor, Tensor, Tensor]:
    gradients = (torch.empty_like(hidden), torch.empty_like(weight)) if trained else (hidden.new_empty(0),) * 2
    return hidden.new_empty(()), gradients[0], gradients[1].clone()


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, scale: Tensor | None, *_: Any) -> tuple[Tensor | None, Tensor | None, None, None]:
    if scale is None:
        return None, None, None, None
    d_hidden, d_weight = ctx.saved_tensors
    return d_hidden * scale, d_weight * scale, None, None


linear_cross_entropy.register_autograd(_differentiate, setup_context=_save)


@register_flop_formula(torch.ops.ceg.linear_cross_entropy, get_raw=True)
def _flops(hidden: Tensor, weight: Tensor, targets: Tensor, trained: bool, *_: Any, **__: Any) -> int:
    """Backward products included, since they are made here."""
    return (3 if trained else 1) * 2 * hidden.shape[0] * hidden.shape[1] * weight.shape[0]
