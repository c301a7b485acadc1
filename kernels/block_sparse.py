"""Attention under any pattern of `patterns`, at a cost that follows the pattern.

Strided and fixed heads of Sparse Transformers (Child et al. 2019, arXiv 1904.10509), windows with global tokens
(Beltagy et al. 2020, arXiv 2004.05150), and arbitrary masks of blocks, per head or shared. The operations
`ceg::sparse_attention` and `ceg::sparse_attention_backward` are registered with torch, so that full-graph compilation
and torch's FLOP counter see them. What they report as FLOP is useful work: unmasked scores only, backward twice the
forward (`costs`).

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cegain.kernels import costs, flash, reference, sparse_torch, transforms
from cegain.kernels.backend import Backend, Checks, choose
from cegain.kernels.flash import check_attention, once_differentiable
from cegain.kernels.patterns import BlockMask, HeadKind, HeadPattern, mask, useful_scores

_KINDS: tuple[HeadKind, ...] = get_args(HeadKind)
_FIELDS = len(dataclasses.fields(HeadPattern))
TRITON_BATCH = 65_535
"""The most sequences that the Triton kernels take: CUDA's limit on blocks along the second axis of a grid."""


def sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: BlockMask | Sequence[HeadPattern],
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Softmax attention over the keys that a pattern leaves: output [B, H, T, D].

    Query i stands at position i + S - T, so that the last query sees the last key. A query that sees no key gives
    zeros. Query head h uses key head h // (H / Hk) (Ainslie et al. 2023, arXiv 2305.13245). Differentiable once in q, k
    and v, not twice and not in forward mode; `torch.func` works, its batches one by one. Gradients are the same in
    every run, but for the torch backend on a CUDA device, which sums in any order where keys are gathered (fixed heads,
    global tokens, masks of blocks).

    Args:
        q: [B, H, T, D], float16, bfloat16, float32 or float64, any strides.
        k: [B, Hk, S, D].
        v: [B, Hk, S, D].
        pattern: one `HeadPattern` per query head (see `patterns.head_patterns`), or one for all heads; or a
            `BlockMask` with ceil(T / block_q) x ceil(S / block_kv) blocks.
        scale: of the scores; 1 / sqrt(D) by default.
        backend: see `backend`.

    Raises:
        ValueError: arguments that do not fit together, all named; see `backend.choose` for the backend.
    """
    checks = Checks("sparse_attention")
    check_attention(checks, q, k, v, scale)
    if q.dim() == k.dim() == 4:
        _check_pattern(checks, pattern, q.shape[1], q.shape[2], k.shape[2])
    checks.done()
    chosen, _ = choose("sparse_attention", backend, q.device, triton_unfit(q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if chosen == "reference":
        return reference.attention(q, k, v, token_mask(pattern, q.shape[2], k.shape[2]).to(q.device), scale=scale)[0]
    numbers, blocks = _encode(pattern, q.shape[1])
    out: Tensor = transforms.call(_forward, q, k, v, numbers, blocks, scale, chosen)[0]
    return out


def triton_unfit(q: Tensor, k: Tensor, v: Tensor) -> str | None:
    """What the Triton kernels cannot take of q, k and v, in words; None where they can."""
    if len(q) > TRITON_BATCH:
        return f"B = {len(q)} sequences, more than {TRITON_BATCH}"
    return flash.triton_unfit(q, k, v)


def token_mask(pattern: BlockMask | Sequence[HeadPattern], seq_q: int, seq_kv: int) -> Tensor:
    """The pattern's token-level mask [1 or H, T, S], bool, on the CPU."""
    if isinstance(pattern, BlockMask):
        seen = torch.from_numpy(pattern.mask(seq_q, seq_kv))
        return seen if seen.dim() == 3 else seen[None]
    return torch.from_numpy(np.stack([mask(head, seq_q, seq_kv) for head in pattern]))


def _check_pattern(
    checks: Checks, pattern: BlockMask | Sequence[HeadPattern], n_heads: int, seq_q: int, seq_kv: int
) -> None:
    if not isinstance(pattern, BlockMask):
        checks.that(
            len(pattern) == 1 or len(pattern) == n_heads,
            "pattern",
            f"hold 1 head pattern or one for each of q's H = {n_heads} heads",
            len(pattern),
            "see cegain.kernels.patterns.head_patterns",
        )
        return
    shape = list(pattern.blocks.shape)
    needed = [-(-seq_q // pattern.block_q), -(-seq_kv // pattern.block_kv)]
    checks.that(
        shape[-2:] == needed,
        "pattern",
        f"hold {needed[0]} x {needed[1]} blocks of {pattern.block_q} x {pattern.block_kv} for T, S = {seq_q}, {seq_kv}",
        shape,
        "give one entry per block",
    )
    checks.that(
        len(shape) == 2 or shape[0] == n_heads,
        "pattern",
        f"be shared by all heads or hold blocks for each of q's H = {n_heads} heads",
        shape,
        "give blocks [nq, nk] or [H, nq, nk]",
    )


def _encode(pattern: BlockMask | Sequence[HeadPattern], n_heads: int) -> tuple[list[int], Tensor | None]:
    """The pattern as an operation takes it: numbers, and a mask of blocks or None.

    Numbers are the fields of each of H head patterns, kinds by their place in `_KINDS`; or block_q, block_kv, causal.
    """
    if isinstance(pattern, BlockMask):
        return [pattern.block_q, pattern.block_kv, int(pattern.causal)], torch.from_numpy(pattern.blocks)
    numbers = []
    for head in pattern if len(pattern) > 1 else [pattern[0]] * n_heads:
        numbers += [_KINDS.index(head.kind), head.window, head.stride, head.summary, head.summary_start, head.n_global]
    return numbers, None


def _decode(numbers: Sequence[int], blocks: Tensor | None) -> BlockMask | tuple[HeadPattern, ...]:
    """The inverse of `_encode`."""
    if blocks is not None:
        return BlockMask(blocks.numpy(force=True), numbers[0], numbers[1], bool(numbers[2]))
    heads = (numbers[i : i + _FIELDS] for i in range(0, len(numbers), _FIELDS))
    return tuple(HeadPattern(_KINDS[kind], *lengths) for kind, *lengths in heads)


def _implementation(backend: str) -> Any:
    """The module that has `forward` and `backward` for a backend that `choose` gave."""
    # Only when chosen: triton need not be installed.
    return import_module("cegain.kernels.block_sparse_triton") if backend == "triton" else sparse_torch


@torch.library.custom_op(
    "ceg::sparse_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, int[] pattern, Tensor? blocks, float scale, str backend)"
    " -> (Tensor, Tensor)",
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, pattern: list[int], blocks: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D], log-sum-exp [B, H, T]), both contiguous; the pattern as `_encode` makes it."""
    out, lse = _implementation(backend).forward(q, k, v, _decode(pattern, blocks), scale)
    return out, lse


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, pattern: list[int], blocks: Tensor | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op(
    "ceg::sparse_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, int[] pattern, Tensor? blocks,"
    " float scale, str backend) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: list[int], blocks: Tensor | None,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, contiguous."""
    dq, dk, dv = _implementation(backend).backward(grad, q, k, v, out, lse, _decode(pattern, blocks), scale)
    return dq, dk, dv


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: list[int], blocks: Tensor | None,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.pattern, blocks, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output, blocks)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *saved, blocks = ctx.saved_tensors
    gradients = transforms.call(_backward, grad, *saved, ctx.pattern, blocks, *ctx.options)
    return (*gradients, None, None, None, None)


transforms.register(_forward, "sparse_attention", _differentiate, _save)
transforms.register(_backward, "sparse_attention", once_differentiable)


def useful_flops(
    q: Sequence[int], k: Sequence[int], numbers: Sequence[int], blocks: Tensor | None, pass_: costs.Pass
) -> int:
    """Useful FLOP over shapes [B, H, T, D] and [B, Hk, S, D], unmasked scores only; the pattern as operations take it.

    A mask of blocks is read for it, so a fake one cannot be counted.
    """
    pattern = _decode(numbers, blocks)
    if isinstance(pattern, BlockMask):
        useful = pattern.useful_scores(q[1], q[2], k[2])
    else:
        useful = useful_scores(pattern, q[2], k[2])
    return costs.attention(
        batch=q[0],
        heads_q=q[1],
        heads_kv=k[1],
        seq_q=q[2],
        seq_kv=k[2],
        head_dim=q[3],
        useful_scores=useful,
        pass_=pass_,
    ).flops


@register_flop_formula(torch.ops.ceg.sparse_attention, get_raw=True)
def _(q: Tensor, k: Tensor, v: Tensor, pattern: list[int], blocks: Tensor | None, *_: Any, **__: Any) -> int:
    return useful_flops(q.shape, k.shape, pattern, blocks, "fwd")


@register_flop_formula(torch.ops.ceg.sparse_attention_backward, get_raw=True)
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: list[int], blocks: Tensor | None,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return useful_flops(q.shape, k.shape, pattern, blocks, "bwd")
