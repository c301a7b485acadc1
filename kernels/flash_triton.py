"""Attention in Triton, forward and backward: what `flash` and `mqa` run on a GPU.

`reference.attention` says in ten lines what is computed here. FlashAttention-2 (Dao 2023, arXiv 2307.08691):
one program holds a tile of queries and walks over the keys with a running maximum and sum; the backward pass computes
probabilities again from the log-sum-exp. Gradients come from two grids, one over tiles of queries (dQ) and one over
tiles of keys with the heads that share them inside (dK, dV), so that no floating-point number is added atomically and
equal inputs give equal bits.

Glossary:
    B, H, HK        sequences, query heads, key heads; query head h uses key head h // GROUP, GROUP = H / HK
    T, S            queries, keys; query i stands at position i + S - T
    D, BLOCK_D      head width, and the power of two that holds it
    BLOCK_M         queries of a tile
    BLOCK_N         keys of a tile
    window          keys that a query sees at most, counted back from its own position
    scale, scale_2  of the scores; the same over ln 2, for exp2
    together        heads whose tiles run next to one another, so that what they share stays in the L2 cache
    p_ b_ o_ m_ i_  pointers, a block of values, offsets, a mask, an index
Strides come as tuples (batch, head, row, column).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels.aot_case import SHIPPED, STRIDES, TYPES, AotCase, Expected, Type, aot_case, aot_cases_of
from cegain.kernels.backend import too_far_apart
from cegain.kernels.launch import LN_2, LOWEST, MetaParameters, Tuning, launch, padded

L2_BYTES = 2**25
"""How much of the L2 cache the heads that run together may fill; an H100 has 50 MB."""


@triton.jit
def _place(tiles, heads, together):
    """(tile, batch x head) of this program: all heads of a section at the first tile, then at the next."""
    i = tl.program_id(0)
    first = i // (tiles * together) * together
    i = i - first * tiles
    present = tl.minimum(together, heads - first)
    return i // present, first + i % present


@triton.jit
def _rows(x, strides, i_b, i_h, row, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Pointers [BLOCK, BLOCK_D] to a head's rows from `row` on: where they start in 64 bits, from there in 32."""
    start = (
        tl.cast(i_b, tl.int64) * strides[0] + tl.cast(i_h, tl.int64) * strides[1] + tl.cast(row, tl.int64) * strides[2]
    )
    return x + start + (tl.arange(0, BLOCK)[:, None] * strides[2] + tl.arange(0, BLOCK_D)[None, :] * strides[3])


@triton.jit
def _inside(row, rows, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    """Mask [BLOCK, BLOCK_D] of what belongs to the tensor."""
    return (row + tl.arange(0, BLOCK) < rows)[:, None] & (tl.arange(0, BLOCK_D) < D)[None, :]


@triton.jit
def _load(x, strides, i_b, i_h, row, rows, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr,
          RAGGED: tl.constexpr):  # fmt: skip
    """A head's rows from `row` on, [BLOCK, BLOCK_D], 0 outside the tensor; only RAGGED tiles can reach past its end."""
    p_x = _rows(x, strides, i_b, i_h, row, BLOCK, BLOCK_D)
    if RAGGED:
        return tl.load(p_x, mask=_inside(row, rows, D, BLOCK, BLOCK_D), other=0.0)
    elif BLOCK_D > D:
        return tl.load(p_x, mask=(tl.arange(0, BLOCK_D) < D)[None, :], other=0.0)
    else:
        return tl.load(p_x)


@triton.jit
def _store(x, strides, i_b, i_h, row, rows, b_x, D: tl.constexpr, BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):
    p_x = _rows(x, strides, i_b, i_h, row, BLOCK, BLOCK_D)
    tl.store(p_x, b_x.to(x.dtype.element_ty), mask=_inside(row, rows, D, BLOCK, BLOCK_D))


@triton.jit
def _visible(position, key, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr):
    """Whether queries at positions see keys; the two broadcast against each other."""
    m = key < S
    if CAUSAL:
        m = m & (position >= key)
    if WINDOWED:
        m = m & (position - key < window)
    return m


@triton.jit
def _key_range(row, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr,
               BLOCK_N: tl.constexpr):  # fmt: skip
    """Where the keys of a tile of queries start, where no score is masked (from, to), and where they end.

    Starts and borders are multiples of BLOCK_N.
    """
    first, end, full, full_end = 0, S, 0, S // BLOCK_N * BLOCK_N
    if CAUSAL:
        # Positions of the first query and past the last.
        low, high = row + S - T, tl.minimum(row + BLOCK_M, T) + S - T
        end = tl.maximum(tl.minimum(S, high), 0)
        full_end = tl.maximum(tl.minimum(S, low + 1), 0) // BLOCK_N * BLOCK_N
        if WINDOWED:
            first = tl.maximum(low - window + 1, 0) // BLOCK_N * BLOCK_N
            full = tl.cdiv(tl.maximum(high - window, 0), BLOCK_N) * BLOCK_N
    full = tl.minimum(tl.maximum(full, first), tl.cdiv(end, BLOCK_N) * BLOCK_N)
    return first, full, tl.maximum(full_end, full), end


@triton.jit
def _query_range(key, T, S, window, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_M: tl.constexpr,
                 BLOCK_N: tl.constexpr):  # fmt: skip
    """The same for the queries that see a tile of keys, in multiples of BLOCK_M."""
    first, end, full, full_end = 0, T, 0, T // BLOCK_M * BLOCK_M
    if CAUSAL:
        # The queries that stand at the first key and past the last.
        low, high = key - (S - T), key - (S - T) + BLOCK_N
        first = tl.maximum(low, 0) // BLOCK_M * BLOCK_M
        full = tl.cdiv(tl.maximum(high - 1, 0), BLOCK_M) * BLOCK_M
        if WINDOWED:
            end = tl.maximum(tl.minimum(T, high + window - 1), 0)
            full_end = tl.maximum(tl.minimum(T, low + window), 0) // BLOCK_M * BLOCK_M
    full = tl.minimum(tl.maximum(full, first), tl.cdiv(end, BLOCK_M) * BLOCK_M)
    return first, full, tl.maximum(full_end, full), end


@triton.jit
def _attend(b_acc, b_max, b_sum, b_q, k, s_k, v, s_v, i_b, i_h, position, first, end, S, window, scale_2,
            MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr,
            BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Keys from `first` to `end` for a tile of queries: output so far, not yet divided by the sum; maximum; sum."""
    for i_n in range(first, end, BLOCK_N):
        # [BLOCK_N, BLOCK_D]
        b_k = _load(k, s_k, i_b, i_h, i_n, S, D, BLOCK_N, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_N]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        if MASKED:
            m_s = _visible(position[:, None], (i_n + tl.arange(0, BLOCK_N))[None, :], S, window, CAUSAL, WINDOWED)
            b_s = tl.where(m_s, b_s, float("-inf"))
        # [BLOCK_M]; scale_2 is positive, so that the largest score is the scaled largest product
        b_new = tl.maximum(b_max, tl.max(b_s, 1) * scale_2)
        b_shrink = tl.exp2(b_max - b_new)
        # [BLOCK_M, BLOCK_N]
        b_p = tl.exp2(b_s * scale_2 - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        # [BLOCK_N, BLOCK_D]
        b_v = _load(v, s_v, i_b, i_h, i_n, S, D, BLOCK_N, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_D]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit
def forward_kernel(q, s_q, k, s_k, v, s_v, out, s_out, lse, B, H, GROUP, T, S, window, scale_2, together,
                   CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
                   BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of queries x B x H,).

    q, out: [B, H, T, D]. k, v: [B, HK, S, D]. lse: natural log-sum-exp [B, H, T], float32.
    """
    tiles = tl.cdiv(T, BLOCK_M)
    i_m, i_bh = _place(tiles, B * H, together)
    # The last tile of a causal head sees most keys: it starts first, so that no long tile is left over at the end.
    row = (tiles - 1 - i_m) * BLOCK_M
    i_b, i_h = i_bh // H, i_bh % H
    i_hk = i_h // GROUP
    # [BLOCK_M]
    o_m = row + tl.arange(0, BLOCK_M)
    position = o_m + (S - T)
    # [BLOCK_M, BLOCK_D]
    b_q = _load(q, s_q, i_b, i_h, row, T, D, BLOCK_M, BLOCK_D, RAGGED=True)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M]
    b_max = tl.full([BLOCK_M], LOWEST, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    first, full, full_end, end = _key_range(row, T, S, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if WINDOWED:
        b_acc, b_max, b_sum = _attend(
            b_acc, b_max, b_sum, b_q, k, s_k, v, s_v, i_b, i_hk, position, first, full, S, window, scale_2,
            True, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_q, k, s_k, v, s_v, i_b, i_hk, position, full, full_end, S, window, scale_2,
        False, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_q, k, s_k, v, s_v, i_b, i_hk, position, full_end, end, S, window, scale_2,
        True, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    # A query that sees a key has a sum of at least 1, from its largest score.
    m_any = b_sum > 0
    b_sum = tl.where(m_any, b_sum, 1.0)
    _store(out, s_out, i_b, i_h, row, T, b_acc / b_sum[:, None], D, BLOCK_M, BLOCK_D)
    b_lse = tl.where(m_any, (b_max + tl.log2(b_sum)) * LN_2, float("-inf"))
    tl.store(lse + tl.cast(i_bh, tl.int64) * T + o_m, b_lse, mask=o_m < T)


@triton.jit
def delta_kernel(out, s_out, grad, s_grad, lse, lse_2, delta, H, T, D: tl.constexpr, BLOCK_D: tl.constexpr,
                 BLOCK_M: tl.constexpr):  # fmt: skip
    """Grid: (tiles of queries x B x H,). What both gradients need of a row, so that they need not compute it again.

    out, grad: [B, H, T, D]. delta: row sums of out x grad [B, H, T]. lse_2: lse over ln 2 for exp2, +inf where a query
    sees no key, which makes its probabilities 0.
    """
    tiles = tl.cdiv(T, BLOCK_M)
    i_bh, row = tl.program_id(0) // tiles, tl.program_id(0) % tiles * BLOCK_M
    i_b, i_h = i_bh // H, i_bh % H
    # [BLOCK_M]
    o_m = row + tl.arange(0, BLOCK_M)
    o_row = tl.cast(i_bh, tl.int64) * T + o_m
    # [BLOCK_M, BLOCK_D]
    b_out = _load(out, s_out, i_b, i_h, row, T, D, BLOCK_M, BLOCK_D, RAGGED=True)
    b_grad = _load(grad, s_grad, i_b, i_h, row, T, D, BLOCK_M, BLOCK_D, RAGGED=True)
    tl.store(delta + o_row, tl.sum(b_out.to(tl.float32) * b_grad.to(tl.float32), 1), mask=o_m < T)
    b_lse = tl.load(lse + o_row, mask=o_m < T, other=0.0)
    tl.store(lse_2 + o_row, tl.where(b_lse == float("-inf"), float("inf"), b_lse / LN_2), mask=o_m < T)


@triton.jit
def _gather_dq(b_dq, b_q, b_do, b_lse, b_delta, k, s_k, v, s_v, i_b, i_h, position, first, end, S, window, scale_2,
               MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr,
               BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """What keys from `first` to `end` add to a tile of dQ, not yet scaled."""
    for i_n in range(first, end, BLOCK_N):
        # [BLOCK_N, BLOCK_D]
        b_k = _load(k, s_k, i_b, i_h, i_n, S, D, BLOCK_N, BLOCK_D, RAGGED=MASKED)
        b_v = _load(v, s_v, i_b, i_h, i_n, S, D, BLOCK_N, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_N]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_p = tl.exp2(b_s * scale_2 - b_lse[:, None])
        if MASKED:
            m_s = _visible(position[:, None], (i_n + tl.arange(0, BLOCK_N))[None, :], S, window, CAUSAL, WINDOWED)
            b_p = tl.where(m_s, b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
        b_ds = b_p * (b_dp - b_delta[:, None])
        # [BLOCK_M, BLOCK_D]
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit
def dq_kernel(q, s_q, k, s_k, v, s_v, grad, s_grad, lse_2, delta, dq, s_dq, B, H, GROUP, T, S, window, scale, scale_2,
              together, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr, BLOCK_D: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of queries x B x H,).

    q, grad, dq: [B, H, T, D]. k, v: [B, HK, S, D]. lse_2, delta: [B, H, T] of `delta_kernel`.
    """
    tiles = tl.cdiv(T, BLOCK_M)
    i_m, i_bh = _place(tiles, B * H, together)
    row = (tiles - 1 - i_m) * BLOCK_M
    i_b, i_h = i_bh // H, i_bh % H
    i_hk = i_h // GROUP
    # [BLOCK_M]; rows past the end have no probability
    o_m = row + tl.arange(0, BLOCK_M)
    o_row = tl.cast(i_bh, tl.int64) * T + o_m
    position = o_m + (S - T)
    b_lse = tl.load(lse_2 + o_row, mask=o_m < T, other=float("inf"))
    b_delta = tl.load(delta + o_row, mask=o_m < T, other=0.0)
    # [BLOCK_M, BLOCK_D]
    b_q = _load(q, s_q, i_b, i_h, row, T, D, BLOCK_M, BLOCK_D, RAGGED=True)
    b_do = _load(grad, s_grad, i_b, i_h, row, T, D, BLOCK_M, BLOCK_D, RAGGED=True)
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    first, full, full_end, end = _key_range(row, T, S, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if WINDOWED:
        b_dq = _gather_dq(
            b_dq, b_q, b_do, b_lse, b_delta, k, s_k, v, s_v, i_b, i_hk, position, first, full, S, window, scale_2,
            True, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    b_dq = _gather_dq(
        b_dq, b_q, b_do, b_lse, b_delta, k, s_k, v, s_v, i_b, i_hk, position, full, full_end, S, window, scale_2,
        False, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    b_dq = _gather_dq(
        b_dq, b_q, b_do, b_lse, b_delta, k, s_k, v, s_v, i_b, i_hk, position, full_end, end, S, window, scale_2,
        True, CAUSAL, WINDOWED, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _store(dq, s_dq, i_b, i_h, row, T, b_dq * scale, D, BLOCK_M, BLOCK_D)


@triton.jit
def _gather_dkv(b_dk, b_dv, b_k, b_v, q, s_q, grad, s_grad, lse_2, delta, i_bh, HK, GROUP, row, first, end, T, S,
                window, scale_2, MASKED: tl.constexpr, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr,
                BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """What queries from `first` to `end` of all heads of a group add to a tile of dK (not yet scaled) and dV.

    Keys past the end are not masked: they meet only their own rows of dK and dV, which are not stored.
    """
    # Heads and tiles in one loop: nested ones would keep what they share in registers, and drain the pipeline per head.
    tiles = tl.cdiv(tl.maximum(end - first, 0), BLOCK_M)
    for i in range(GROUP * tiles):
        i_g, i_m = i // tiles, first + i % tiles * BLOCK_M
        i_b, i_h = i_bh // HK, i_bh % HK * GROUP + i_g
        # [BLOCK_M]
        o_m = i_m + tl.arange(0, BLOCK_M)
        o_row = (tl.cast(i_bh, tl.int64) * GROUP + i_g) * T + o_m
        if MASKED:
            b_lse = tl.load(lse_2 + o_row, mask=o_m < T, other=float("inf"))
            b_delta = tl.load(delta + o_row, mask=o_m < T, other=0.0)
        else:
            b_lse, b_delta = tl.load(lse_2 + o_row), tl.load(delta + o_row)
        # [BLOCK_M, BLOCK_D]
        b_q = _load(q, s_q, i_b, i_h, i_m, T, D, BLOCK_M, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_N, BLOCK_M]: scores stand transposed, so that they are the left factor of both products below
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
        b_p = tl.exp2(b_s * scale_2 - b_lse[None, :])
        if MASKED:
            key = row + tl.arange(0, BLOCK_N)
            m_s = _visible((o_m + (S - T))[None, :], key[:, None], S, window, CAUSAL, WINDOWED)
            b_p = tl.where(m_s, b_p, 0.0)
        # [BLOCK_M, BLOCK_D]
        b_do = _load(grad, s_grad, i_b, i_h, i_m, T, D, BLOCK_M, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_N, BLOCK_D]
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision="ieee")
        # [BLOCK_N, BLOCK_M]
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision="ieee")
        b_ds = b_p * (b_dp - b_delta[None, :])
        # [BLOCK_N, BLOCK_D]
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def dkv_kernel(q, s_q, k, s_k, v, s_v, grad, s_grad, lse_2, delta, dk, s_dk, dv, s_dv, B, HK, GROUP, T, S, window,
               scale, scale_2, together, CAUSAL: tl.constexpr, WINDOWED: tl.constexpr, D: tl.constexpr,
               BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of keys x B x HK,), the tile that most queries see first.

    q, grad: [B, H, T, D]. k, v, dk, dv: [B, HK, S, D]. lse_2, delta: [B, H, T] of `delta_kernel`.
    """
    i_n, i_bh = _place(tl.cdiv(S, BLOCK_N), B * HK, together)
    row = i_n * BLOCK_N
    i_b, i_hk = i_bh // HK, i_bh % HK
    # [BLOCK_N, BLOCK_D]
    b_k = _load(k, s_k, i_b, i_hk, row, S, D, BLOCK_N, BLOCK_D, RAGGED=True)
    b_v = _load(v, s_v, i_b, i_hk, row, S, D, BLOCK_N, BLOCK_D, RAGGED=True)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    first, full, full_end, end = _query_range(row, T, S, window, CAUSAL, WINDOWED, BLOCK_M, BLOCK_N)
    if CAUSAL:
        b_dk, b_dv = _gather_dkv(
            b_dk, b_dv, b_k, b_v, q, s_q, grad, s_grad, lse_2, delta, i_bh, HK, GROUP, row, first, full, T, S,
            window, scale_2, True, CAUSAL, WINDOWED, D, BLOCK_M, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    b_dk, b_dv = _gather_dkv(
        b_dk, b_dv, b_k, b_v, q, s_q, grad, s_grad, lse_2, delta, i_bh, HK, GROUP, row, full, full_end, T, S,
        window, scale_2, False, CAUSAL, WINDOWED, D, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    b_dk, b_dv = _gather_dkv(
        b_dk, b_dv, b_k, b_v, q, s_q, grad, s_grad, lse_2, delta, i_bh, HK, GROUP, row, full_end, end, T, S,
        window, scale_2, True, CAUSAL, WINDOWED, D, BLOCK_M, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _store(dk, s_dk, i_b, i_hk, row, S, b_dk * scale, D, BLOCK_N, BLOCK_D)
    _store(dv, s_dv, i_b, i_hk, row, S, b_dv, D, BLOCK_N, BLOCK_D)


@dataclass(frozen=True)
class Meta(MetaParameters):
    """BLOCK_M, BLOCK_N, and what a program runs with."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Rows(MetaParameters):
    """The same for `delta_kernel`, which reads no keys."""

    block_m: int
    num_warps: int
    num_stages: int


# Blocks of queries are no smaller than those of keys where a tile's own keys are masked, which wastes least.
SINGLE = {64: (Meta(64, 32, 4, 1),), 128: (Meta(32, 32, 4, 1),), 256: (Meta(16, 16, 4, 1),)}
INTERPRETED = Meta(32, 32, 4, 1)
FORWARD = Tuning(
    {
        80: {
            64: (Meta(128, 64, 8, 3), Meta(64, 64, 4, 3)),
            128: (Meta(64, 64, 4, 3), Meta(128, 32, 8, 3)),
            256: (Meta(64, 32, 8, 2),),
        },
        90: {
            64: (Meta(128, 128, 8, 3), Meta(128, 64, 4, 3), Meta(128, 64, 8, 3)),
            128: (Meta(128, 64, 8, 3), Meta(128, 64, 8, 2)),
            256: (Meta(128, 32, 8, 1), Meta(64, 32, 8, 2)),
        },
    },
    SINGLE,
    INTERPRETED,
    unaligned={64: (Meta(128, 64, 8, 3),), 128: (Meta(128, 32, 8, 2),), 256: (Meta(64, 32, 8, 2),)},
)
DQ = Tuning(
    {
        80: {
            64: (Meta(128, 64, 8, 2), Meta(64, 64, 4, 2)),
            128: (Meta(128, 32, 8, 2), Meta(64, 32, 4, 2)),
            256: (Meta(64, 32, 8, 1),),
        },
        90: {
            64: (Meta(128, 64, 8, 3), Meta(64, 64, 4, 3)),
            128: (Meta(128, 32, 8, 2), Meta(128, 64, 8, 2)),
            256: (Meta(64, 32, 8, 2),),
        },
    },
    SINGLE,
    INTERPRETED,
    unaligned={64: (Meta(128, 64, 8, 3),), 256: (Meta(64, 32, 8, 1),)},
)
# Past a width of 128, or of 64 where rows start anywhere, only tiles of 32 keys leave registers for both results: those
# are multiplied by mma, as wgmma takes 64 rows.
DKV = Tuning(
    {
        80: {
            64: (Meta(64, 128, 8, 2), Meta(32, 128, 8, 2)),
            128: (Meta(64, 64, 8, 2), Meta(32, 64, 8, 2)),
            256: (Meta(32, 64, 8, 1),),
        },
        90: {
            64: (Meta(64, 128, 8, 3), Meta(64, 128, 8, 2)),
            128: (Meta(32, 128, 8, 2), Meta(32, 128, 8, 3)),
            256: (Meta(32, 32, 8, 2),),
        },
    },
    SINGLE,
    INTERPRETED,
    unaligned={64: (Meta(32, 128, 8, 2),), 256: (Meta(32, 32, 8, 1),)},
)
DELTA = Rows(64, 4, 1)


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] laid out like q, natural log-sum-exp [B, H, T] in float32).

    Args:
        q: [B, H, T, D], float16, bfloat16 or float32.
        k: [B, HK, S, D].
        v: [B, HK, S, D].
        causal: a query sees no key after its own position.
        window: with `causal`, how many positions up to its own a query sees.
        scale: of the scores.
    """
    q = -q if scale < 0 else q
    out = torch.empty_like(q)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    arguments = (
        q, q.stride(), k, k.stride(), v, v.stride(), out, out.stride(), lse, *_sizes(q, k, window), _positive(scale),
        _heads_together(q, k, by_queries=True),
    )  # fmt: skip
    _launch(forward_kernel, FORWARD, q, k, "BLOCK_M", arguments, causal, window)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, window: int | None,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, laid out like them; arguments and results of `forward`, and the output's gradient."""
    sign, scale = math.copysign(1, scale), abs(scale)
    q = -q if sign < 0 else q
    dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    lse_2, delta = torch.empty_like(lse), torch.empty_like(lse)
    grad = grad.contiguous() if too_far_apart(grad) else grad
    batch, heads, seq_q, width = q.shape
    delta_arguments = (out, out.stride(), grad, grad.stride(), lse, lse_2, delta, heads, seq_q)
    constants = {"D": width, "BLOCK_D": padded(width)}
    launch(delta_kernel, (triton.cdiv(seq_q, DELTA.block_m) * batch * heads,), (DELTA,), delta_arguments, constants)
    common = (q, q.stride(), k, k.stride(), v, v.stride(), grad, grad.stride(), lse_2, delta)
    sizes = (*_sizes(q, k, window), scale, _positive(scale))
    by_queries, by_keys = (_heads_together(q, k, by_queries=first) for first in (True, False))
    arguments = (*common, dq, dq.stride(), *sizes, by_queries)
    _launch(dq_kernel, DQ, q, k, "BLOCK_M", arguments, causal, window)
    arguments = (*common, dk, dk.stride(), dv, dv.stride(), batch, k.shape[1], *sizes[2:], by_keys)
    _launch(dkv_kernel, DKV, q, k, "BLOCK_N", arguments, causal, window)
    return (-dq if sign < 0 else dq), dk, dv


def _sizes(q: Tensor, k: Tensor, window: int | None) -> tuple[int, ...]:
    """B, H, GROUP, T, S, window; a window past all keys is cut, as kernels add positions to it in 32 bits."""
    seq_q, seq_kv = q.shape[2], k.shape[2]
    return q.shape[0], q.shape[1], q.shape[1] // k.shape[1], seq_q, seq_kv, min(window or 0, seq_q + seq_kv)


def _positive(scale: float) -> float:
    """|scale| over ln 2; a tiny number for 0, as masked scores of -inf x 0 would be NaN."""
    return max(abs(scale), 2.0**-100) / math.log(2)


def _heads_together(q: Tensor, k: Tensor, by_queries: bool) -> int:
    """How many heads run next to one another: as many as share L2 with what their tiles read again and again.

    That is keys and values for tiles of queries, and queries and gradients of a whole group for tiles of keys.
    """
    group = q.shape[1] // k.shape[1]
    read = 2 * q.shape[3] * q.element_size() * (k.shape[2] if by_queries else q.shape[2] * group)
    fitting = max(1, L2_BYTES // read)
    return min(fitting * group, q.shape[0] * q.shape[1]) if by_queries else min(fitting, k.shape[0] * k.shape[1])


def _launch(
    kernel: Any, tuning: Tuning[Meta], q: Tensor, k: Tensor, tiled: str, arguments: tuple[Any, ...], causal: bool,
    window: int | None,
) -> None:  # fmt: skip
    """Run a kernel over tiles of queries ("BLOCK_M") or keys ("BLOCK_N")."""
    batch, heads, rows, width = (q if tiled == "BLOCK_M" else k).shape

    def grid(constants: dict[str, Any]) -> tuple[int]:
        return (triton.cdiv(rows, constants[tiled]) * batch * heads,)

    # Lengths within a factor of two share what was found.
    key = (q.shape[2].bit_length(), k.shape[2].bit_length())
    constants = {"CAUSAL": causal, "WINDOWED": window is not None, "D": width, "BLOCK_D": padded(width)}
    launch(kernel, grid, tuning.on(q, width), arguments, constants, key)


def aot_cases() -> list[AotCase]:
    """All four kernels: every candidate in float16, causal, and elsewhere the default one."""
    cases = []
    for capability, shipped_on in SHIPPED.items():
        for dtype in (torch.float16, torch.bfloat16):
            for width in (64, 128):
                cases += _aot_cases(dtype, width, capability, shipped_on)
    cases += _aot_cases(torch.float16, 256, 90, SHIPPED[90])
    for width in (60, 100):
        cases += _aot_cases(torch.float16, width, 90, (90,))
    for mask in ("full", "window"):
        cases += _aot_cases(torch.float16, 128, 90, (90,), mask)
    cases += _aot_cases(torch.float32, 128, 90, (90,))
    return cases


def _aot_cases(
    dtype: torch.dtype, width: int, capability: int, shipped_on: tuple[int, ...], mask: str = "causal"
) -> list[AotCase]:
    name = TYPES[dtype]
    types: dict[str, Type] = {
        **dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), f"*{name}"),
        **dict.fromkeys(("s_q", "s_k", "s_v", "s_out", "s_grad", "s_dq", "s_dk", "s_dv"), STRIDES),
        **dict.fromkeys(("lse", "lse_2", "delta"), "*fp32"),
        **dict.fromkeys(("B", "H", "HK", "GROUP", "T", "S", "window", "together"), "i32"),
        **dict.fromkeys(("scale", "scale_2"), "fp32"),
    }
    constants = {"CAUSAL": mask != "full", "WINDOWED": mask == "window", "D": width, "BLOCK_D": padded(width)}
    ends = f"{name}.d{width}.{mask}.sm{capability}"
    cases = [
        aot_case(f"flash_delta.{ends}", delta_kernel, types, constants, DELTA, "", shipped_on, aligned=width % 16 == 0)
    ]
    for label, kernel, tuning in (
        ("forward", forward_kernel, FORWARD), ("dq", dq_kernel, DQ), ("dkv", dkv_kernel, DKV)
    ):  # fmt: skip
        metas = tuning.candidates(dtype, width, capability)
        if (dtype, mask) != (torch.float16, "causal"):  # bfloat16 has the same code but for conversions
            metas = metas[:1]
        rows = metas[0].block_n if label == "dkv" else metas[0].block_m
        expects: Expected = "" if dtype == torch.float32 else "wgmma" if rows >= 64 else "mma"
        cases += aot_cases_of(
            f"flash_{label}.{ends}", kernel, types, constants, metas, expects, shipped_on, width % 16 == 0
        )
    return cases
