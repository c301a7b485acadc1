"""Counts of our operations for fvcore, which does not know them: `FlopCountAnalysis(...).set_op_handle(**handles())`.

fvcore counts multiply-adds of the forward pass, so a handle gives half the useful `flops` of `costs`. It finds
an operation under its registered name because tracing keeps custom operations as single nodes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from cegain.kernels import block_sparse, costs, flash, moe_dispatch

Handle = Callable[[Sequence[Any], Sequence[Any]], int]


def handles() -> dict[str, Handle]:
    """Operation name to handle; a handle takes traced inputs and outputs and returns multiply-adds."""
    return {
        "ceg::flash_attention": _flash_attention,
        "ceg::sparse_attention": _sparse_attention,
        "ceg::mqa_attention": _mqa_attention,
        "ceg::mqa_decode": _mqa_decode,
        "ceg::moe_experts": _moe_experts,
    }


def _shape(value: Any) -> list[int]:
    """Sizes of a traced tensor."""
    sizes: list[int] = value.type().sizes()
    return sizes


def _flash_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    q, k, _, causal, window, *_ = inputs
    return flash.useful_flops(_shape(q), _shape(k), causal.toIValue(), window.toIValue(), "fwd") // 2


def _sparse_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A trace holds the pattern's numbers one by one, and a mask of blocks as a constant that is lifted."""
    q, k, _, pattern, blocks, *_ = inputs
    numbers = [number.toIValue() for number in pattern.node().inputs()]
    mask = next(blocks.node().inputs()).toIValue() if blocks.node().kind() == "aten::lift_fresh" else None
    return block_sparse.useful_flops(_shape(q), _shape(k), numbers, mask, "fwd") // 2


def _mqa_attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    q, k, _, causal, *_ = inputs
    return flash.useful_flops(_shape(q), _shape(k), causal.toIValue(), None, "fwd") // 2


def _mqa_decode(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    """A trace knows no lengths, so the cache counts as full."""
    (batch, heads_q, width), (_, heads_kv, tokens, _) = _shape(inputs[0]), _shape(inputs[1])
    cost = costs.decode_attention(batch=batch, heads_q=heads_q, heads_kv=heads_kv, kv_tokens=tokens, head_dim=width)
    return cost.flops // 2


def _moe_experts(inputs: Sequence[Any], outputs: Sequence[Any]) -> int:
    _, _, experts, w_up, _, _, activation, *_ = inputs
    return moe_dispatch.useful_flops(_shape(experts), _shape(w_up), activation.toIValue(), "fwd") // 2
