"""Block-sparse attention in Triton: forward, dQ and dK/dV, each over lists of the tiles that a pattern visits.

`reference.attention` with the pattern's mask says what is computed. The lists (`sparse_lists`) are made
once per pattern and shape. A program takes one row of a table of tiles and walks its list, full tiles without a mask,
then partial ones with it. Column heads are causal sequences of every `stride`-th token, read where they lie. No
floating-point number is added atomically: dQ has a program per tile of queries, dK and dV one per tile of keys with the
query heads of its group inside, so that equal inputs give equal bits.

Glossary:
    B, H, HK        sequences, query heads, key heads; query head h uses key head h // GROUP, GROUP = H / HK
    T, S            queries, keys
    D, BLOCK_D      head width, and the power of two that holds it
    BLOCK_M         queries of a tile
    BLOCK_N         keys of a tile
    sequence        a row of `Lists.sequences`: (step, base of queries, base of keys, queries, keys, shift); row i of it
                    is token base + i x step, and its query i stands at position i + shift among its keys
    rule            a row of `Lists.heads`: (causal, window, stride, summary, summary_start, n_global)
    blocks, s_blocks  int8 [1 or H, rows, columns] of a `BlockMask` whose blocks do not hold whole tiles, else None; its
                    (elements of a head or 0, columns, queries of a block, keys of a block)
    scale, scale_2  of the scores; the same over ln 2, for exp2
    p_ b_ o_ m_ i_  pointers, a block of values, offsets, a mask, an index
Strides come as tuples (batch, head, row, column).
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels import sparse_lists
from cegain.kernels.aot_case import SHIPPED, STRIDES, TYPES, AotCase, Expected, Type, aot_cases_of
from cegain.kernels.backend import too_far_apart
from cegain.kernels.flash_triton import INTERPRETED, SINGLE, Meta
from cegain.kernels.launch import LN_2, LOWEST, Tuning, launch, padded
from cegain.kernels.patterns import BlockMask, HeadPattern
from cegain.kernels.sparse_lists import Pattern

LOG2_E = tl.constexpr(1 / math.log(2))


@triton.jit
def _six(p_row):
    """A row of a table."""
    return (
        tl.load(p_row), tl.load(p_row + 1), tl.load(p_row + 2), tl.load(p_row + 3), tl.load(p_row + 4),
        tl.load(p_row + 5),
    )  # fmt: skip


@triton.jit
def _tokens(base, step, row):
    """Token numbers of rows of a sequence, in 64 bits."""
    return tl.cast(base, tl.int64) + row.to(tl.int64) * step


@triton.jit
def _load(x, strides, i_b, i_h, token, m_row, D: tl.constexpr, BLOCK_D: tl.constexpr, RAGGED: tl.constexpr):
    """A head's rows at tokens, [BLOCK, BLOCK_D]; 0 past the width and, where tiles may be RAGGED, outside m_row."""
    o_d = tl.arange(0, BLOCK_D)
    p_x = x + i_b * strides[0] + tl.cast(i_h, tl.int64) * strides[1]
    p_x = p_x + token[:, None] * strides[2] + o_d[None, :] * strides[3]
    if RAGGED:
        return tl.load(p_x, mask=m_row[:, None] & (o_d < D)[None, :], other=0.0)
    elif BLOCK_D > D:
        return tl.load(p_x, mask=(o_d < D)[None, :], other=0.0)
    else:
        return tl.load(p_x)


@triton.jit
def _store(x, head, tokens, token, m_row, b_x, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows of a contiguous [B x heads, tokens, D]."""
    o_d = tl.arange(0, BLOCK_D)
    p_x = x + (head * tokens + token)[:, None] * D + o_d[None, :]
    tl.store(p_x, b_x.to(x.dtype.element_ty), mask=m_row[:, None] & (o_d < D)[None, :])


@triton.jit
def _visible(query, key, i_h, sequence, rule, blocks, s_blocks):
    """Whether queries see keys, rows of a sequence both; one is [x, 1], the other [1, y].

    `sparse_lists.mask_numbers` has the rule, of which little is left to do for each pair. Rows past the last query or
    key may be anything: their results are not stored, and add nothing to others.
    """
    _, _, _, queries, keys, shift = sequence
    causal, window, stride, summary, summary_start, n_global = rule
    position = tl.where(causal == 0, keys - 1, query + shift)
    oldest = tl.minimum(position - window + 1, position // stride * stride)
    column = key % stride - summary_start
    shown = (key < n_global) | ((column >= 0) & (column < summary))
    m = (key <= position) & ((key >= oldest) | shown)
    if blocks is not None:
        s_head, columns, block_q, block_kv = s_blocks
        p_head = blocks + tl.cast(i_h, tl.int64) * s_head
        m_block = (query < queries) & (key < keys)
        m = m & (tl.load(p_head + (query // block_q * columns + key // block_kv), mask=m_block, other=0) != 0)
    return m


@triton.jit
def _attend(b_acc, b_max, b_sum, b_q, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, p_list, count, sequence, p_rule, blocks,
            s_blocks, scale_2, MASKED: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
            BLOCK_D: tl.constexpr):  # fmt: skip
    """The next `count` tiles of keys on a list: output so far, not yet divided by the sum; maximum; sum."""
    if MASKED:
        rule = _six(p_rule)
    for i in range(count):
        # [BLOCK_N]
        o_n = tl.load(p_list + i) * BLOCK_N + tl.arange(0, BLOCK_N)
        token, m_n = _tokens(sequence[2], sequence[0], o_n), o_n < sequence[4]
        # [BLOCK_N, BLOCK_D]
        b_k = _load(k, s_k, i_b, i_h // GROUP, token, m_n, D, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_N]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_2
        if MASKED:
            m_s = _visible(o_m[:, None], o_n[None, :], i_h, sequence, rule, blocks, s_blocks)
            b_s = tl.where(m_s, b_s, float("-inf"))
        # [BLOCK_M]
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_shrink = tl.exp2(b_max - b_new)
        # [BLOCK_M, BLOCK_N]
        b_p = tl.exp2(b_s - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        # [BLOCK_N, BLOCK_D]
        b_v = _load(v, s_v, i_b, i_h // GROUP, token, m_n, D, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_D]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
        b_max = b_new
    return b_acc, b_max, b_sum


@triton.jit
def forward_kernel(q, s_q, k, s_k, v, s_v, out, lse, sequences, rules, tiles, lists, blocks, s_blocks, H, GROUP, T,
                   scale_2, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of queries, B).

    q: [B, H, T, D]. k, v: [B, HK, S, D]. out: [B, H, T, D] and lse: natural log-sum-exp [B, H, T], float32, contiguous.
    sequences, rules, tiles, lists: `sequences`, `heads`, `query_tiles` and `key_lists` of `sparse_lists.Lists`.
    """
    i_b = tl.cast(tl.program_id(1), tl.int64)
    i_h, i_sequence, i_m, start, full, partial = _six(tiles + tl.program_id(0) * 6)
    sequence, p_rule = _six(sequences + i_sequence * 6), rules + i_h * 6
    # [BLOCK_M]
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    token, m_m = _tokens(sequence[1], sequence[0], o_m), o_m < sequence[3]
    # [BLOCK_M, BLOCK_D]
    b_q = _load(q, s_q, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
    b_acc = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    # [BLOCK_M]
    b_max = tl.full([BLOCK_M], LOWEST, tl.float32)
    b_sum = tl.zeros([BLOCK_M], tl.float32)
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_q, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, lists + start, full, sequence, p_rule, blocks,
        s_blocks, scale_2, False, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    b_acc, b_max, b_sum = _attend(
        b_acc, b_max, b_sum, b_q, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, lists + start + full, partial, sequence, p_rule,
        blocks, s_blocks, scale_2, True, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    # A query that sees a key has a sum of at least 1, from its largest score.
    m_any = b_sum > 0
    b_sum = tl.where(m_any, b_sum, 1.0)
    head = i_b * H + i_h
    _store(out, head, T, token, m_m, b_acc / b_sum[:, None], D, BLOCK_D)
    b_lse = tl.where(m_any, (b_max + tl.log2(b_sum)) * LN_2, float("-inf"))
    tl.store(lse + head * T + token, b_lse, mask=m_m)


@triton.jit
def _gather_dq(b_dq, b_q, b_do, b_lse, b_delta, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, p_list, count, sequence, p_rule,
               blocks, s_blocks, scale_2, MASKED: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
               BLOCK_D: tl.constexpr):  # fmt: skip
    """What the next `count` tiles of keys on a list add to a tile of dQ, not yet scaled."""
    if MASKED:
        rule = _six(p_rule)
    for i in range(count):
        # [BLOCK_N]
        o_n = tl.load(p_list + i) * BLOCK_N + tl.arange(0, BLOCK_N)
        token, m_n = _tokens(sequence[2], sequence[0], o_n), o_n < sequence[4]
        # [BLOCK_N, BLOCK_D]
        b_k = _load(k, s_k, i_b, i_h // GROUP, token, m_n, D, BLOCK_D, RAGGED=MASKED)
        b_v = _load(v, s_v, i_b, i_h // GROUP, token, m_n, D, BLOCK_D, RAGGED=MASKED)
        # [BLOCK_M, BLOCK_N]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee")
        b_p = tl.exp2(b_s * scale_2 - b_lse[:, None])
        if MASKED:
            m_s = _visible(o_m[:, None], o_n[None, :], i_h, sequence, rule, blocks, s_blocks)
            b_p = tl.where(m_s, b_p, 0.0)
        b_dp = tl.dot(b_do, tl.trans(b_v), input_precision="ieee")
        b_ds = b_p * (b_dp - b_delta[:, None])
        # [BLOCK_M, BLOCK_D]
        b_dq = tl.dot(b_ds.to(b_k.dtype), b_k, b_dq, input_precision="ieee")
    return b_dq


@triton.jit
def dq_kernel(q, s_q, k, s_k, v, s_v, grad, s_grad, out, s_out, lse, delta, dq, sequences, rules, tiles, lists, blocks,
              s_blocks, H, GROUP, T, scale, scale_2, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_M: tl.constexpr,
              BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of queries, B). Arguments as in `forward_kernel`, and

    grad, out, dq: [B, H, T, D], dq contiguous. lse, delta: [B, H, T]; delta, the row sums of grad x out, is written.
    """
    i_b = tl.cast(tl.program_id(1), tl.int64)
    i_h, i_sequence, i_m, start, full, partial = _six(tiles + tl.program_id(0) * 6)
    sequence, p_rule = _six(sequences + i_sequence * 6), rules + i_h * 6
    head = i_b * H + i_h
    # [BLOCK_M]
    o_m = i_m * BLOCK_M + tl.arange(0, BLOCK_M)
    token, m_m = _tokens(sequence[1], sequence[0], o_m), o_m < sequence[3]
    # [BLOCK_M, BLOCK_D]
    b_q = _load(q, s_q, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
    b_do = _load(grad, s_grad, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
    b_out = _load(out, s_out, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
    # [BLOCK_M]; rows past the end have no probability
    b_delta = tl.sum(b_do.to(tl.float32) * b_out.to(tl.float32), 1)
    tl.store(delta + head * T + token, b_delta, mask=m_m)
    b_lse = tl.load(lse + head * T + token, mask=m_m, other=float("inf")) * LOG2_E
    # [BLOCK_M, BLOCK_D]
    b_dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    b_dq = _gather_dq(
        b_dq, b_q, b_do, b_lse, b_delta, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, lists + start, full, sequence, p_rule,
        blocks, s_blocks, scale_2, False, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    b_dq = _gather_dq(
        b_dq, b_q, b_do, b_lse, b_delta, o_m, k, s_k, v, s_v, i_b, i_h, GROUP, lists + start + full, partial, sequence,
        p_rule, blocks, s_blocks, scale_2, True, D, BLOCK_N, BLOCK_D,
    )  # fmt: skip
    _store(dq, head, T, token, m_m, b_dq * scale, D, BLOCK_D)


@triton.jit
def _gather_dkv(b_dk, b_dv, b_k, b_v, o_n, q, s_q, grad, s_grad, lse, delta, i_b, i_h, o_head, p_list, count, sequence,
                p_rule, blocks, s_blocks, scale_2, MASKED: tl.constexpr, D: tl.constexpr, BLOCK_M: tl.constexpr,
                BLOCK_D: tl.constexpr):  # fmt: skip
    """What the next `count` tiles of one head's queries on a list add to a tile of dK (not yet scaled) and dV."""
    if MASKED:
        rule = _six(p_rule)
    for i in range(count):
        # [BLOCK_M]; a full tile may reach past the last query: such rows have no probability
        o_m = tl.load(p_list + i) * BLOCK_M + tl.arange(0, BLOCK_M)
        token, m_m = _tokens(sequence[1], sequence[0], o_m), o_m < sequence[3]
        b_lse = tl.load(lse + o_head + token, mask=m_m, other=float("inf")) * LOG2_E
        b_delta = tl.load(delta + o_head + token, mask=m_m, other=0.0)
        # [BLOCK_M, BLOCK_D]
        b_q = _load(q, s_q, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
        # [BLOCK_N, BLOCK_M]: scores stand transposed, so that they are the left factor of both products below
        b_s = tl.dot(b_k, tl.trans(b_q), input_precision="ieee")
        b_p = tl.exp2(b_s * scale_2 - b_lse[None, :])
        if MASKED:
            m_s = _visible(o_m[None, :], o_n[:, None], i_h, sequence, rule, blocks, s_blocks)
            b_p = tl.where(m_s, b_p, 0.0)
        # [BLOCK_M, BLOCK_D]
        b_do = _load(grad, s_grad, i_b, i_h, token, m_m, D, BLOCK_D, RAGGED=True)
        # [BLOCK_N, BLOCK_D]
        b_dv = tl.dot(b_p.to(b_do.dtype), b_do, b_dv, input_precision="ieee")
        # [BLOCK_N, BLOCK_M]
        b_dp = tl.dot(b_v, tl.trans(b_do), input_precision="ieee")
        b_ds = b_p * (b_dp - b_delta[None, :])
        # [BLOCK_N, BLOCK_D]
        b_dk = tl.dot(b_ds.to(b_q.dtype), b_q, b_dk, input_precision="ieee")
    return b_dk, b_dv


@triton.jit
def dkv_kernel(q, s_q, k, s_k, v, s_v, grad, s_grad, lse, delta, dk, dv, sequences, rules, tiles, segments, lists,
               blocks, s_blocks, H, HK, GROUP, T, S, scale, scale_2, D: tl.constexpr, BLOCK_D: tl.constexpr,
               BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of keys, B). Arguments as in `dq_kernel`, and

    dk, dv: [B, HK, S, D], contiguous. tiles, segments: one entry of `key_tiles`; lists: `query_lists`.
    """
    i_b = tl.cast(tl.program_id(1), tl.int64)
    p_tile = tiles + tl.program_id(0) * 3
    i_hk, i_sequence, i_n = tl.load(p_tile), tl.load(p_tile + 1), tl.load(p_tile + 2)
    sequence = _six(sequences + i_sequence * 6)
    # [BLOCK_N]
    o_n = i_n * BLOCK_N + tl.arange(0, BLOCK_N)
    token, m_n = _tokens(sequence[2], sequence[0], o_n), o_n < sequence[4]
    # [BLOCK_N, BLOCK_D]
    b_k = _load(k, s_k, i_b, i_hk, token, m_n, D, BLOCK_D, RAGGED=True)
    b_v = _load(v, s_v, i_b, i_hk, token, m_n, D, BLOCK_D, RAGGED=True)
    b_dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    b_dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for i_g in range(GROUP):
        i_h = i_hk * GROUP + i_g
        p_segment = segments + (tl.program_id(0) * GROUP + i_g) * 3
        p_list, full, partial = lists + tl.load(p_segment), tl.load(p_segment + 1), tl.load(p_segment + 2)
        p_rule, o_head = rules + i_h * 6, (i_b * H + i_h) * T
        b_dk, b_dv = _gather_dkv(
            b_dk, b_dv, b_k, b_v, o_n, q, s_q, grad, s_grad, lse, delta, i_b, i_h, o_head, p_list, full, sequence,
            p_rule, blocks, s_blocks, scale_2, False, D, BLOCK_M, BLOCK_D,
        )  # fmt: skip
        b_dk, b_dv = _gather_dkv(
            b_dk, b_dv, b_k, b_v, o_n, q, s_q, grad, s_grad, lse, delta, i_b, i_h, o_head, p_list + full, partial,
            sequence, p_rule, blocks, s_blocks, scale_2, True, D, BLOCK_M, BLOCK_D,
        )  # fmt: skip
    # Read again, so that tokens of keys need no registers inside the loops, where there are too few.
    o_n = tl.load(p_tile + 2, volatile=True) * BLOCK_N + tl.arange(0, BLOCK_N)
    token, m_n = _tokens(sequence[2], sequence[0], o_n), o_n < sequence[4]
    _store(dk, i_b * HK + i_hk, S, token, m_n, b_dk * scale, D, BLOCK_D)
    _store(dv, i_b * HK + i_hk, S, token, m_n, b_dv, D, BLOCK_D)


# Lists are made for one size of tile, so that candidates of one width differ in warps and stages only.
FORWARD = Tuning(
    {
        80: {
            64: (Meta(128, 64, 8, 2), Meta(128, 64, 8, 3)),
            128: (Meta(128, 32, 8, 3), Meta(128, 32, 8, 2)),
            256: (Meta(64, 32, 8, 2),),
        },
        90: {
            64: (Meta(128, 64, 4, 3), Meta(128, 64, 8, 3)),
            128: (Meta(128, 64, 8, 3), Meta(128, 64, 8, 2)),
            256: (Meta(128, 32, 8, 1),),
        },
    },
    SINGLE,
    INTERPRETED,
    unaligned={128: (Meta(128, 64, 8, 3),), 256: (Meta(64, 32, 8, 2),)},
)
DQ = Tuning(
    {
        80: {64: (Meta(128, 64, 8, 2),), 128: (Meta(128, 32, 8, 2),), 256: (Meta(64, 32, 8, 1),)},
        90: {
            64: (Meta(128, 64, 8, 3), Meta(128, 64, 8, 2)),
            128: (Meta(128, 64, 8, 2), Meta(128, 64, 8, 3)),
            256: (Meta(64, 32, 8, 2),),
        },
    },
    SINGLE,
    INTERPRETED,
    unaligned={64: (Meta(128, 64, 8, 2),), 128: (Meta(128, 32, 8, 2),), 256: (Meta(64, 32, 8, 1),)},
)
# As in `flash_triton.DKV`, the widest heads and those whose rows start anywhere take tiles of 32 keys.
DKV = Tuning(
    {
        80: {64: (Meta(32, 128, 8, 2),), 128: (Meta(64, 64, 8, 2),), 256: (Meta(32, 64, 8, 1),)},
        90: {64: (Meta(64, 128, 8, 2),), 128: (Meta(32, 128, 8, 2), Meta(32, 128, 8, 3)), 256: (Meta(32, 32, 8, 1),)},
    },
    SINGLE,
    INTERPRETED,
    unaligned={64: (Meta(32, 128, 8, 2),), 256: (Meta(32, 32, 8, 1),)},
)
GRADIENT_WARPS = 8
"""Of dQ, dK and dV at the least, however small a tile is: fewer have too few registers at D = 128."""
RAGGED_TILE = 32
"""Queries and keys of a tile where blocks of a mask have sides that no power of two from 16 on divides."""


def metas(tuning: Tuning[Meta], pattern: Pattern, q: Tensor, k: Tensor, fewest: int = 4) -> tuple[Meta, ...]:
    """What may be tried for a call; the first is the default. All have tiles of one size. `fewest` is for `fitted`."""
    first, *others = tuning.on(q, q.shape[3])
    alike = [first, *(meta for meta in others if meta.blocks() == first.blocks())]
    return tuple(dict.fromkeys(fitted(meta, pattern, k.shape[2], fewest) for meta in alike))


def fitted(meta: Meta, pattern: Pattern, seq_kv: int, fewest: int = 4) -> Meta:
    """Tiles that lie inside blocks of a mask, where blocks allow it, and are no longer than a column's sequence.

    Those with fewer queries than in `meta` have `fewest` warps, where it has more; fewer keys save few registers.
    """
    if isinstance(pattern, BlockMask):
        block_m, block_n = pattern.block_q & -pattern.block_q, pattern.block_kv & -pattern.block_kv
        if min(block_m, block_n) < 16:  # no tile can lie inside: a small one visits little else, and holds its mask
            block_m = block_n = RAGGED_TILE
    else:
        rows = [-(-seq_kv // head.stride) for head in pattern if head.kind == "column"]
        block_m = block_n = max(16, triton.next_power_of_2(min(rows, default=seq_kv)))
    if block_m >= meta.block_m and block_n >= meta.block_n:
        return meta
    smaller = min(meta.block_m, block_m), min(meta.block_n, block_n)
    warps = meta.num_warps if smaller[0] == meta.block_m else min(meta.num_warps, fewest)
    return Meta(*smaller, num_warps=warps, num_stages=meta.num_stages)


class _Tables(NamedTuple):
    """`Lists` on a device, and what is needed of a mask of blocks inside tiles."""

    sequences: Tensor
    rules: Tensor
    query_tiles: Tensor
    key_lists: Tensor
    key_tiles: list[tuple[Tensor, Tensor]]
    query_lists: Tensor
    blocks: Tensor | None
    s_blocks: tuple[int, int, int, int]


def _tables(pattern: Pattern, q: Tensor, k: Tensor, meta: Meta) -> _Tables:
    """Those of one of the last patterns and shapes, or new ones: the host then waits for them to be copied.

    A table is freed when 64 others have come after it, so that a captured CUDA graph, which keeps its address, may read
    what is no longer there: sparse attention is not for CUDA graphs.
    """
    shape = (q.shape[1], k.shape[1], q.shape[2], k.shape[2])
    if isinstance(pattern, BlockMask):
        blocks = pattern.blocks
        key = (blocks.tobytes(), blocks.shape, pattern.block_q, pattern.block_kv, pattern.causal)
        return _tables_of_blocks(key, shape, meta.block_m, meta.block_n, q.device)
    return _tables_of_heads(pattern, shape, meta.block_m, meta.block_n, q.device)


@functools.lru_cache(maxsize=64)
def _tables_of_heads(
    pattern: tuple[HeadPattern, ...], shape: tuple[int, int, int, int], block_q: int, block_kv: int,
    device: torch.device,
) -> _Tables:  # fmt: skip
    return _upload(sparse_lists.build(pattern, *shape, block_q, block_kv), None, (0, 0, 0, 0), device)


@functools.lru_cache(maxsize=64)
def _tables_of_blocks(
    mask: tuple[bytes, tuple[int, ...], int, int, bool], shape: tuple[int, int, int, int], block_q: int, block_kv: int,
    device: torch.device,
) -> _Tables:  # fmt: skip
    content, extent, mask_q, mask_kv, causal = mask
    pattern = BlockMask(np.frombuffer(content, np.bool_).reshape(extent), mask_q, mask_kv, causal)
    blocks, s_blocks = None, (0, 0, 0, 0)
    if pattern.block_q % block_q or pattern.block_kv % block_kv:
        blocks = torch.from_numpy(pattern.blocks.astype(np.int8)).to(device)
        elements = extent[-2] * extent[-1] if len(extent) == 3 else 0
        s_blocks = (elements, extent[-1], pattern.block_q, pattern.block_kv)
    return _upload(sparse_lists.build(pattern, *shape, block_q, block_kv), blocks, s_blocks, device)


def _upload(
    lists: sparse_lists.Lists, blocks: Tensor | None, s_blocks: tuple[int, int, int, int], device: torch.device
) -> _Tables:
    def to(table: sparse_lists.Ints) -> Tensor:
        return torch.from_numpy(table).to(device)

    return _Tables(
        to(lists.sequences), to(lists.heads), to(lists.query_tiles), to(lists.key_lists),
        [(to(tiles), to(segments)) for tiles, segments in lists.key_tiles], to(lists.query_lists), blocks, s_blocks,
    )  # fmt: skip


def forward(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D], log-sum-exp of the scaled scores [B, H, T] in float32), both contiguous.

    Args:
        q: [B, H, T, D], float16, bfloat16 or float32.
        k: [B, HK, S, D].
        v: [B, HK, S, D].
        pattern: one for each of H heads, or a mask of blocks.
        scale: of the scores.
    """
    tried = metas(FORWARD, pattern, q, k)
    tables = _tables(pattern, q, k, tried[0])
    out, lse = q.new_empty(q.shape), q.new_empty(q.shape[:3], dtype=torch.float32)
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    _launch(
        forward_kernel, tables.query_tiles, tried, q, q, q.stride(), k, k.stride(), v, v.stride(), out, lse,
        tables.sequences, tables.rules, tables.query_tiles, tables.key_lists, tables.blocks, tables.s_blocks, heads,
        group, q.shape[2], scale / math.log(2),
    )  # fmt: skip
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, contiguous; arguments and results of `forward`, and the output's gradient."""
    grad = grad.contiguous() if too_far_apart(grad) else grad
    inputs = (q, q.stride(), k, k.stride(), v, v.stride(), grad, grad.stride())
    scales = (scale, scale / math.log(2))
    heads, heads_kv = q.shape[1], k.shape[1]
    dq, delta, lse = q.new_empty(q.shape), lse.new_empty(lse.shape), lse.contiguous()
    tried = metas(DQ, pattern, q, k, GRADIENT_WARPS)
    tables = _tables(pattern, q, k, tried[0])
    _launch(
        dq_kernel, tables.query_tiles, tried, q, *inputs, out, out.stride(), lse, delta, dq, tables.sequences,
        tables.rules, tables.query_tiles, tables.key_lists, tables.blocks, tables.s_blocks, heads, heads // heads_kv,
        q.shape[2], *scales,
    )  # fmt: skip
    tried = metas(DKV, pattern, q, k, GRADIENT_WARPS)
    tables = _tables(pattern, q, k, tried[0])
    # A key that no query sees is in no tile. Orders of the tokens that meet in one key head are summed in float32.
    dtype = k.dtype if len(tables.key_tiles) < 2 else torch.float32
    dk, dv = k.new_zeros(k.shape, dtype=dtype), v.new_zeros(v.shape, dtype=dtype)
    for i, (tiles, segments) in enumerate(tables.key_tiles):
        parts = (dk, dv) if i == 0 else (torch.zeros_like(dk), torch.zeros_like(dv))
        _launch(
            dkv_kernel, tiles, tried, q, *inputs, lse, delta, *parts, tables.sequences, tables.rules, tiles, segments,
            tables.query_lists, tables.blocks, tables.s_blocks, heads, heads_kv, heads // heads_kv, q.shape[2],
            k.shape[2], *scales,
        )  # fmt: skip
        if i:
            dk += parts[0]
            dv += parts[1]
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def _launch(kernel: Any, tiles: Tensor, tried: tuple[Meta, ...], q: Tensor, *arguments: Any) -> None:
    """Run a kernel over a table of tiles and the batch. What is fastest hangs on a tile's work, not on their number."""
    constants = {"D": q.shape[3], "BLOCK_D": padded(q.shape[3])}
    launch(kernel, (len(tiles), q.shape[0]), tried, arguments, constants)


def aot_cases() -> list[AotCase]:
    """All three kernels: every candidate in float16, and elsewhere the default one."""
    cases = []
    for capability, shipped_on in SHIPPED.items():
        for dtype in (torch.float16, torch.bfloat16):
            for width in (64, 128):
                cases += _aot_cases(dtype, width, capability, shipped_on)
    for width in (60, 100):
        cases += _aot_cases(torch.float16, width, 90, (90,))
    cases += _aot_cases(torch.float16, 256, 90, SHIPPED[90])
    for blocks in ((64, 64), (32, 32), (16, 16), (128, 16), (128, 32), (24, 24)):
        cases += _aot_cases(torch.float16, 128, 90, (90,), BlockMask(np.ones((1, 1), np.bool_), *blocks))
    cases += _aot_cases(torch.float32, 128, 90, (90,))
    return cases


def _aot_cases(
    dtype: torch.dtype, width: int, capability: int, shipped_on: tuple[int, ...], mask: BlockMask | None = None
) -> list[AotCase]:
    """One case of each kernel, and of each candidate where that is wanted; `mask`: rather than patterns of heads."""
    name = TYPES[dtype]
    types: dict[str, Type] = {
        **dict.fromkeys(("q", "k", "v", "out", "grad", "dq", "dk", "dv"), f"*{name}"),
        **dict.fromkeys(("s_q", "s_k", "s_v", "s_out", "s_grad"), STRIDES),
        **dict.fromkeys(("lse", "delta"), "*fp32"),
        **dict.fromkeys(("sequences", "rules", "tiles", "segments", "lists"), "*i32"),
        **dict.fromkeys(("H", "HK", "GROUP", "T", "S"), "i32"),
        **dict.fromkeys(("scale", "scale_2"), "fp32"),
        "blocks": "*i8",
        "s_blocks": ("i32",) * 4,
    }
    kind = f"blocks{mask.block_q}x{mask.block_kv}" if mask else "heads"
    cases: list[AotCase] = []
    for label, kernel, tuning in (
        ("forward", forward_kernel, FORWARD), ("dq", dq_kernel, DQ), ("dkv", dkv_kernel, DKV)
    ):  # fmt: skip
        metas = tuning.candidates(dtype, width, capability)
        if mask:
            metas = (fitted(metas[0], mask, mask.block_kv, 4 if tuning is FORWARD else GRADIENT_WARPS),)
        elif dtype != torch.float16:  # bfloat16 has the same code but for conversions
            metas = metas[:1]
        held = not mask or mask.block_q % metas[0].block_m == mask.block_kv % metas[0].block_n == 0
        constants = {"D": width, "BLOCK_D": padded(width), **({"blocks": None} if held else {})}
        rows = metas[0].block_n if tuning is DKV else metas[0].block_m
        expects: Expected = "" if dtype == torch.float32 else "wgmma" if rows >= 64 else "mma"
        case = f"sparse_{label}.{name}.d{width}.{kind}.sm{capability}"
        cases += aot_cases_of(case, kernel, types, constants, metas, expects, shipped_on, width % 16 == 0)
    return cases
