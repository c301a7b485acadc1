"""Experts in Triton: gathered gate and up projection, down projection, weighted sums, and all their gradients.

`reference.mixture` says what is computed. Rows stand sorted by expert (`moe_routing_triton`), cut into
tiles of one expert each. A tile of the first products gathers its tokens while it loads them: x is never copied into
sorted order, nor is the gradient of the output. Results of the sorted rows come back to their tokens as a sum over
each token's K rows in a fixed order, a slice of columns at a time. No floating-point number is added atomically: equal
inputs give equal bits. Routing weights enter in float32.

Glossary:
    N, K, E, R      tokens, experts per token, experts, sorted rows: N x K
    M, F, G         model width, expert width, first products per expert: 2 with a gate, else 1
    order           the assignment n x K + k of each sorted row; offsets, tiles, first_tiles: see `Tables`
    BLOCK_R         rows of a tile
    BLOCK_C         columns of a tile of results
    BLOCK_I         entries of the dimension that a product sums over, taken at once
    BLOCK_A, BLOCK_B  rows and columns of a tile of a weight's gradient
    BLOCK_N         tokens of a tile
    p_ b_ o_ m_ i_  pointers, a block of values, offsets, a mask, an index
Strides come as tuples: of tokens (token, column), of weights (expert, row, column). Offsets have 64 bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels.aot_case import SHIPPED, TYPES, AotCase, Expected, Type, aot_cases_of
from cegain.kernels.backend import interpreting
from cegain.kernels.launch import Grid, MetaParameters, Tuning, launch
from cegain.kernels.moe_routing_triton import Tables, tables


@triton.jit
def _far(count, stride):
    """A distance in 64 bits. Those inside a tile have 32, which take half the registers."""
    return tl.cast(count, tl.int64) * stride


@triton.jit
def _load(p, m, RAGGED: tl.constexpr):
    """A block; 0 outside of m, which only a RAGGED one has to ask."""
    if RAGGED:
        return tl.load(p, mask=m, other=0.0)
    else:
        return tl.load(p)


@triton.jit
def _tile(tiles, offsets, i_tile, BLOCK_R: tl.constexpr):
    """First row of a tile, its expert, rows counted from the first, and which of them are the expert's.

    The others are counted as the first, whose address is a valid one.
    """
    i_r, i_e = tl.load(tiles + 2 * i_tile), tl.load(tiles + 2 * i_tile + 1)
    o_r = tl.arange(0, BLOCK_R)
    m_r = o_r < tl.load(offsets + i_e + 1) - i_r
    return i_r.to(tl.int64), i_e.to(tl.int64), tl.where(m_r, o_r, 0), m_r


@triton.jit
def _multiply(b_acc, p_a, s_a, p_w, s_w, m_c, SIZE: tl.constexpr, RAGGED_C: tl.constexpr, BLOCK_I: tl.constexpr):
    """Add [rows, SIZE] times [SIZE, columns]; p_a points at rows' first entries, p_w at columns' first entries."""
    o_i = tl.arange(0, BLOCK_I)
    for i in range(0, SIZE, BLOCK_I):
        m_i = o_i < SIZE - i
        # [BLOCK_R, BLOCK_I]
        b_a = _load(p_a + o_i[None, :] * s_a, m_i[None, :], SIZE % BLOCK_I != 0)
        # [BLOCK_I, BLOCK_C]
        m_w = m_i[:, None] & m_c[None, :]
        b_w = _load(p_w + o_i[:, None] * s_w, m_w, SIZE % BLOCK_I != 0 or RAGGED_C)
        b_acc = tl.dot(b_a, b_w, b_acc, input_precision="ieee")
        p_a += _far(BLOCK_I, s_a)
        p_w += _far(BLOCK_I, s_w)
    return b_acc


@triton.jit
def _activate(b_gate, b_up, ACTIVATION: tl.constexpr):
    if ACTIVATION == "swiglu":
        return b_gate * tl.sigmoid(b_gate) * b_up
    elif ACTIVATION == "gelu":
        return 0.5 * b_up * (1 + tl.erf(b_up * 0.7071067811865476))
    else:
        b_positive = tl.where(b_up < 0, 0.0, b_up)
        return b_positive * b_positive


@triton.jit
def _activate_backward(b_d, b_gate, b_up, ACTIVATION: tl.constexpr):
    """`_activate` again, and from its gradient those of gate and up."""
    if ACTIVATION == "swiglu":
        b_sigmoid = tl.sigmoid(b_gate)
        b_silu = b_gate * b_sigmoid
        return b_silu * b_up, b_d * b_up * (b_sigmoid + b_silu * (1 - b_sigmoid)), b_d * b_silu
    elif ACTIVATION == "gelu":
        b_share = 0.5 * (1 + tl.erf(b_up * 0.7071067811865476))
        b_density = 0.3989422804014327 * tl.exp(-0.5 * b_up * b_up)
        return b_up * b_share, b_d, b_d * (b_share + b_up * b_density)
    else:
        b_positive = tl.where(b_up < 0, 0.0, b_up)
        return b_positive * b_positive, b_d, b_d * 2 * b_positive


@triton.jit
def up_kernel(x, s_x, w_gate, s_gate, w_up, s_up, active, hidden, order, offsets, first_tiles, tiles, R, E,
              K: tl.constexpr, M: tl.constexpr, F: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_R: tl.constexpr,
              BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """Grid: (tiles x cdiv(F, BLOCK_C),).

    x: [N, M]. w_gate: [E, M, F] or None. w_up: [E, M, F]. active: activations of the sorted rows [R, F]. hidden: their
    x W_gate (if there is one) and x W_up [G, R, F], or None where nobody wants them.
    """
    i_tile = tl.program_id(0) // tl.cdiv(F, BLOCK_C)
    if i_tile >= tl.load(first_tiles + E):
        return
    i_r, i_e, o_r, m_r = _tile(tiles, offsets, i_tile, BLOCK_R)
    i_c = tl.program_id(0) % tl.cdiv(F, BLOCK_C) * BLOCK_C
    # [BLOCK_C]
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < F - i_c
    # [BLOCK_R, 1] and [1, BLOCK_C]
    p_x = x + _far(tl.load(order + i_r + o_r) // K, s_x[0])[:, None]
    p_up = w_up + _far(i_e, s_up[0]) + _far(i_c, s_up[2]) + o_c[None, :] * s_up[2]
    # [BLOCK_R, BLOCK_C]
    b_up = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    b_gate = b_up
    if w_gate is None:
        b_up = _multiply(b_up, p_x, s_x[1], p_up, s_up[1], m_c, M, F % BLOCK_C != 0, BLOCK_I)
    else:
        p_gate = w_gate + _far(i_e, s_gate[0]) + _far(i_c, s_gate[2]) + o_c[None, :] * s_gate[2]
        RAGGED: tl.constexpr = M % BLOCK_I != 0
        o_i = tl.arange(0, BLOCK_I)
        for i in range(0, M, BLOCK_I):
            m_i = o_i < M - i
            # [BLOCK_R, BLOCK_I]
            b_x = _load(p_x + o_i[None, :] * s_x[1], m_i[None, :], RAGGED)
            # [BLOCK_I, BLOCK_C]
            m_w = m_i[:, None] & m_c[None, :]
            b_w = _load(p_gate + o_i[:, None] * s_gate[1], m_w, RAGGED or F % BLOCK_C != 0)
            b_gate = tl.dot(b_x, b_w, b_gate, input_precision="ieee")
            b_w = _load(p_up + o_i[:, None] * s_up[1], m_w, RAGGED or F % BLOCK_C != 0)
            b_up = tl.dot(b_x, b_w, b_up, input_precision="ieee")
            p_x += _far(BLOCK_I, s_x[1])
            p_gate += _far(BLOCK_I, s_gate[1])
            p_up += _far(BLOCK_I, s_up[1])
    # [BLOCK_R, BLOCK_C]
    i_out, o_out = i_r * F + i_c, o_r[:, None] * F + o_c[None, :]
    m_out = m_r[:, None] & m_c[None, :]
    b_active = _activate(b_gate, b_up, ACTIVATION)
    tl.store(active + i_out + o_out, b_active.to(active.dtype.element_ty), mask=m_out)
    if hidden is not None:
        p_up = hidden + i_out
        if w_gate is not None:
            tl.store(p_up + o_out, b_gate.to(hidden.dtype.element_ty), mask=m_out)
            p_up += _far(R, F)
        tl.store(p_up + o_out, b_up.to(hidden.dtype.element_ty), mask=m_out)


@triton.jit
def rows_kernel(a, s_a, w, s_w, w_2, s_w_2, rows, order, offsets, first_tiles, tiles, R, E, K: tl.constexpr,
                SIZE: tl.constexpr, C: tl.constexpr, TRANSPOSED: tl.constexpr, BLOCK_R: tl.constexpr,
                BLOCK_C: tl.constexpr, BLOCK_I: tl.constexpr):  # fmt: skip
    """Grid: (tiles x cdiv(C, BLOCK_C),). Products of the sorted rows with their expert's weights.

    a: sorted rows [R, SIZE], or [2, R, SIZE] with w_2; where there is an order, tokens [N, SIZE], which are gathered.
    w: [E, SIZE, C], TRANSPOSED [E, C, SIZE]. w_2: the same, which the second part of a meets, or None. order: or None.
    rows: [R, C], the sum of both products.
    """
    i_tile = tl.program_id(0) // tl.cdiv(C, BLOCK_C)
    if i_tile >= tl.load(first_tiles + E):
        return
    i_r, i_e, o_r, m_r = _tile(tiles, offsets, i_tile, BLOCK_R)
    i_c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C
    # [BLOCK_C]
    o_c = tl.arange(0, BLOCK_C)
    m_c = o_c < C - i_c
    ROW: tl.constexpr = 2 if TRANSPOSED else 1
    # [BLOCK_R, 1] and [1, BLOCK_C]
    if order is None:
        p_a = a + _far(i_r, s_a[0]) + o_r[:, None] * s_a[0]
    else:
        p_a = a + _far(tl.load(order + i_r + o_r) // K, s_a[0])[:, None]
    p_w = w + _far(i_e, s_w[0]) + _far(i_c, s_w[3 - ROW]) + o_c[None, :] * s_w[3 - ROW]
    # [BLOCK_R, BLOCK_C]
    b_rows = tl.zeros([BLOCK_R, BLOCK_C], tl.float32)
    b_rows = _multiply(b_rows, p_a, s_a[1], p_w, s_w[ROW], m_c, SIZE, C % BLOCK_C != 0, BLOCK_I)
    if w_2 is not None:
        p_a += _far(R, s_a[0])
        p_w = w_2 + _far(i_e, s_w_2[0]) + _far(i_c, s_w_2[3 - ROW]) + o_c[None, :] * s_w_2[3 - ROW]
        b_rows = _multiply(b_rows, p_a, s_a[1], p_w, s_w_2[ROW], m_c, SIZE, C % BLOCK_C != 0, BLOCK_I)
    p_rows = rows + i_r * C + i_c + (o_r[:, None] * C + o_c[None, :])
    tl.store(p_rows, b_rows.to(rows.dtype.element_ty), mask=m_r[:, None] & m_c[None, :])


@triton.jit
def combine_kernel(rows, weights, positions, out, s_out, N, K, C: tl.constexpr, BLOCK_N: tl.constexpr,
                   BLOCK_C: tl.constexpr):  # fmt: skip
    """Grid: (cdiv(N, BLOCK_N) x cdiv(C, BLOCK_C),). Sums over each token's rows, in the order of its experts.

    rows: [R, C]. weights: [N, K], or None where the rows have theirs already. positions: [N, K]. out: [N, C].
    """
    # [BLOCK_N]
    o_n = tl.program_id(0) // tl.cdiv(C, BLOCK_C) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_n = o_n < N
    # [BLOCK_C]
    o_c = tl.program_id(0) % tl.cdiv(C, BLOCK_C) * BLOCK_C + tl.arange(0, BLOCK_C)
    m_out = m_n[:, None] & (o_c < C)[None, :]
    # [BLOCK_N, BLOCK_C]
    b_out = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for i_k in range(K):
        # [BLOCK_N]
        p_r = rows + _far(tl.load(positions + o_n * K + i_k, mask=m_n, other=0), C)
        # [BLOCK_N, BLOCK_C]
        b_rows = tl.load(p_r[:, None] + o_c[None, :], mask=m_out, other=0.0).to(tl.float32)
        if weights is not None:
            b_rows *= tl.load(weights + o_n * K + i_k, mask=m_n, other=0.0).to(tl.float32)[:, None]
        b_out += b_rows
    p_out = out + _far(o_n, s_out[0])[:, None] + o_c[None, :] * s_out[1]
    tl.store(p_out, b_out.to(out.dtype.element_ty), mask=m_out)


@triton.jit
def activation_gradient_kernel(active, hidden, weights, d_hidden, d_weights, order, R, F: tl.constexpr,
                               ACTIVATION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_C: tl.constexpr):  # fmt: skip
    """Grid: (cdiv(R, BLOCK_N),). Sorted rows, apart from weights and their gradient [N, K].

    active: the activations' gradient of an unweighted row [R, F], replaced by activations times weights. hidden: as
    from `up_kernel` [G, R, F]. d_hidden: its gradient. d_weights: float32.
    """
    # [BLOCK_N]
    o_r = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    m_r = o_r < R
    o_a = tl.load(order + o_r, mask=m_r, other=0)
    b_weight = tl.load(weights + o_a, mask=m_r, other=0.0).to(tl.float32)[:, None]
    b_d_weight = tl.zeros([BLOCK_N], tl.float32)
    for i_c in range(0, F, BLOCK_C):
        # [BLOCK_N, BLOCK_C]
        o_c = i_c + tl.arange(0, BLOCK_C)
        o_x = _far(o_r, F)[:, None] + o_c[None, :]
        m_x = m_r[:, None] & (o_c < F)[None, :]
        o_up = o_x + _far(R, F) if ACTIVATION == "swiglu" else o_x
        b_d = tl.load(active + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_gate = tl.load(hidden + o_x, mask=m_x, other=0.0).to(tl.float32)
        b_up = tl.load(hidden + o_up, mask=m_x, other=0.0).to(tl.float32) if ACTIVATION == "swiglu" else b_gate
        b_active, b_d_gate, b_d_up = _activate_backward(b_d, b_gate, b_up, ACTIVATION)
        # [BLOCK_N]: <grad, active W_down> = <grad W_down^T, active>
        b_d_weight += tl.sum(b_d * b_active, 1)
        # [BLOCK_N, BLOCK_C]
        tl.store(active + o_x, (b_active * b_weight).to(active.dtype.element_ty), mask=m_x)
        tl.store(d_hidden + o_up, (b_d_up * b_weight).to(d_hidden.dtype.element_ty), mask=m_x)
        if ACTIVATION == "swiglu":
            tl.store(d_hidden + o_x, (b_d_gate * b_weight).to(d_hidden.dtype.element_ty), mask=m_x)
    tl.store(d_weights + o_a, b_d_weight, mask=m_r)


@triton.jit
def weight_gradient_kernel(a, s_a, b, s_b, d_w, order, offsets, K: tl.constexpr, A: tl.constexpr, B: tl.constexpr,
                           GATHERED: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr,
                           BLOCK_I: tl.constexpr):  # fmt: skip
    """Grid: (E x cdiv(A, BLOCK_A) x cdiv(B, BLOCK_B),). For each expert a^T b over its rows, 0 where it has none.

    a: [R, A], b: [R, B] sorted rows; the one that GATHERED names, "a" or "b", has a row per token instead.
    d_w: [E, A, B].
    """
    i_ab = tl.program_id(0) % (tl.cdiv(A, BLOCK_A) * tl.cdiv(B, BLOCK_B))
    i_e = tl.program_id(0) // (tl.cdiv(A, BLOCK_A) * tl.cdiv(B, BLOCK_B))
    i_a = i_ab // tl.cdiv(B, BLOCK_B) * BLOCK_A
    i_b = i_ab % tl.cdiv(B, BLOCK_B) * BLOCK_B
    # [BLOCK_A] and [BLOCK_B]
    o_a, o_b = tl.arange(0, BLOCK_A), tl.arange(0, BLOCK_B)
    m_a, m_b = o_a < A - i_a, o_b < B - i_b
    # [1, BLOCK_A] and [1, BLOCK_B]
    p_a = a + _far(i_a, s_a[1]) + o_a[None, :] * s_a[1]
    p_b = b + _far(i_b, s_b[1]) + o_b[None, :] * s_b[1]
    # [BLOCK_A, BLOCK_B]
    b_d = tl.zeros([BLOCK_A, BLOCK_B], tl.float32)
    end = tl.load(offsets + i_e + 1)
    for i in range(tl.load(offsets + i_e), end, BLOCK_I):
        # [BLOCK_I]
        o_r = i + tl.arange(0, BLOCK_I)
        m_r = o_r < end
        o_t = tl.load(order + o_r, mask=m_r, other=0) // K
        o_ra, o_rb = (o_t, o_r) if GATHERED == "a" else (o_r, o_t)
        # [BLOCK_I, BLOCK_A]
        b_a = tl.load(p_a + _far(o_ra, s_a[0])[:, None], mask=m_r[:, None] & m_a[None, :], other=0.0)
        # [BLOCK_I, BLOCK_B]
        b_b = tl.load(p_b + _far(o_rb, s_b[0])[:, None], mask=m_r[:, None] & m_b[None, :], other=0.0)
        # [BLOCK_A, BLOCK_B]
        b_d = tl.dot(tl.trans(b_a), b_b, b_d, input_precision="ieee")
    p_d = d_w + _far(i_e, A * B) + _far(i_a, B) + i_b + (o_a[:, None] * B + o_b[None, :])
    tl.store(p_d, b_d.to(d_w.dtype.element_ty), mask=m_a[:, None] & m_b[None, :])


@dataclass(frozen=True)
class Meta(MetaParameters):
    """What can be tuned of a product of tiles of rows; the rows of a tile belong to the tables."""

    block_c: int
    block_i: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class WeightMeta(MetaParameters):
    """What can be tuned of a weight's gradient."""

    block_a: int
    block_b: int
    block_i: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class StreamMeta(MetaParameters):
    """Of a kernel that reads and writes and does little else."""

    block_n: int
    block_c: int
    num_warps: int
    num_stages: int


TILES = {True: (16, 64, 128), False: (16, 64)}
"""BLOCK_R, in half precision or not: the smallest that holds an expert's mean number of rows, else the last."""
INTERPRETED_TILE = 16
"""The same in the interpreter."""
# By capability, then BLOCK_R where others ask for a width.
UP = Tuning(
    half={
        80: {16: (Meta(64, 64, 4, 4),), 64: (Meta(64, 64, 4, 3),), 128: (Meta(64, 64, 8, 3), Meta(128, 32, 8, 3))},
        90: {
            16: (Meta(64, 64, 4, 4),),
            64: (Meta(64, 64, 4, 4), Meta(128, 64, 8, 3)),
            128: (Meta(128, 64, 8, 3), Meta(64, 64, 4, 4), Meta(128, 64, 8, 4)),
        },
    },
    single={64: (Meta(32, 32, 4, 2),)},
    interpreted=Meta(32, 32, 4, 1),
)
ROWS = Tuning(
    half={
        80: {16: (Meta(64, 64, 4, 4),), 64: (Meta(128, 64, 4, 3),), 128: (Meta(128, 64, 8, 3), Meta(128, 32, 4, 4))},
        90: {
            16: (Meta(64, 64, 4, 4),),
            64: (Meta(128, 64, 4, 4), Meta(256, 64, 8, 3)),
            128: (Meta(128, 64, 8, 4), Meta(256, 64, 8, 3)),
        },
    },
    single={64: (Meta(64, 32, 4, 2),)},
    interpreted=Meta(32, 32, 4, 1),
)
# By 16, as rows come one after another and no tile of them is needed. Numbers of tokens are loaded ahead of tokens: the
# compiler gives that half of the stages, so there are more than elsewhere.
WEIGHT_GRADIENT = Tuning(
    half={
        80: {16: (WeightMeta(128, 128, 32, 8, 5), WeightMeta(128, 64, 64, 4, 5))},
        90: {16: (WeightMeta(128, 128, 64, 8, 5), WeightMeta(128, 256, 64, 8, 5), WeightMeta(128, 128, 64, 8, 7))},
    },
    single={16: (WeightMeta(64, 64, 16, 4, 2),)},
    interpreted=WeightMeta(32, 32, 16, 4, 1),
)
COMBINE = Tuning(
    half={80: {16: (StreamMeta(2, 512, 4, 1), StreamMeta(1, 1024, 4, 1))}},
    single={16: (StreamMeta(2, 256, 4, 1),)},
    interpreted=StreamMeta(16, 32, 4, 1),
)
# One candidate each: it works in place, so that a second run, which tuning needs, would start from other numbers.
ONE = (StreamMeta(4, 256, 4, 1),)
ACTIVATION_GRADIENT = Tuning(half={80: {16: ONE}}, single={16: ONE}, interpreted=StreamMeta(16, 32, 4, 1))


def forward(
    x: Tensor, weights: Tensor, experts: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, activation: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(output [N, M], hidden [G, R, F], or [G, 0, F] unless `keep`), as `moe_dispatch.moe_experts` says.

    Peak memory beside inputs and outputs, for b bytes of x's type: b R (F + min(M, C)), C being F rounded up to a
    multiple of 128, for activations and for a slice of the rows' outputs; and the tables (`moe_routing_triton.tables`).
    Nothing of R x M is held where C < M, neither of the gathered inputs nor of the outputs before they are combined.
    """
    gated = w_gate is not None
    rows, (_, width, inner) = experts.numel(), w_up.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    hidden = x.new_empty(1 + gated, rows if keep else 0, inner)
    if not rows:
        return out, hidden
    x, w_up, w_down, w_gate = _near(x), _near(w_up), _near(w_down), None if w_gate is None else _near(w_gate)
    block_r = rows_of_tile(x.dtype, rows, len(w_up))
    table = tables(experts, len(w_up), block_r)
    active = x.new_empty(rows, inner)
    _launch_tiles(
        up_kernel, UP, table, inner,
        (x, x.stride(), w_gate, _strides(w_gate), w_up, w_up.stride(), active, hidden if keep else None, table.order),
        {"K": experts.shape[1], "M": width, "F": inner, "ACTIVATION": activation, "BLOCK_R": block_r},
    )  # fmt: skip
    _project(active, [w_down], False, weights.contiguous(), table, block_r, out)
    return out, hidden


def backward(
    grad: Tensor, x: Tensor, weights: Tensor, experts: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None,
    hidden: Tensor, activation: str,
) -> list[Tensor]:  # fmt: skip
    """Gradients of x, weights, w_down, then w_gate (if there is one) and w_up, from that of the output, [N, M].

    Activations are computed again from `hidden`, the tables from `experts`. Peak memory beside inputs and outputs, for
    b bytes of x's type: b R (G F + max(F, min(M, C))), C as in `forward`; 4 R for gradients of routing weights that
    are not in float32; and the tables.
    """
    firsts = [w_up] if w_gate is None else [w_gate, w_up]
    rows, n_experts, inner = experts.numel(), w_up.shape[0], w_up.shape[2]
    if not rows:
        return [like.new_zeros(like.shape) for like in (x, weights, w_down, *firsts)]
    grad, x, w_down, *firsts = map(_near, (grad, x, w_down, *firsts))
    block_r = rows_of_tile(x.dtype, rows, n_experts)
    table = tables(experts, n_experts, block_r)
    k = experts.shape[1]
    active = x.new_empty(rows, inner)
    _multiply_rows(grad, [w_down], True, table, block_r, active, k)
    d_hidden, d_weights = x.new_empty(hidden.shape), weights.new_empty(weights.shape, dtype=torch.float32)
    launch(
        activation_gradient_kernel, lambda chosen: (triton.cdiv(rows, chosen["BLOCK_N"]),),
        ACTIVATION_GRADIENT.on(x, 16),
        (active, hidden.contiguous(), weights.contiguous(), d_hidden, d_weights, table.order, rows),
        {"F": inner, "ACTIVATION": activation},
    )  # fmt: skip
    d_down = _weight_gradient(active, grad, "b", w_down, table, k)
    del active
    d_firsts = [_weight_gradient(x, part, "a", w, table, k) for part, w in zip(d_hidden, firsts, strict=True)]
    d_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _project(d_hidden, firsts, True, None, table, block_r, d_x)
    return [d_x, d_weights.to(weights.dtype), d_down, *d_firsts]


def rows_of_tile(dtype: torch.dtype, rows: int, n_experts: int) -> int:
    """BLOCK_R for that many sorted rows."""
    if interpreting():
        return INTERPRETED_TILE
    listed = TILES[dtype.itemsize == 2]
    return min((size for size in listed if size >= rows / n_experts), default=listed[-1])


def slices(width: int, inner: int) -> list[tuple[int, int]]:
    """Columns of M from, up to: as wide as F, rounded up to whole tiles, so that their rows fit where R x F did."""
    step = 128 * triton.cdiv(inner, 128)
    return [(begin, min(begin + step, width)) for begin in range(0, width, step)]


def _project(
    a: Tensor, matrices: Sequence[Tensor], transposed: bool, weights: Tensor | None, table: Tables, block_r: int,
    out: Tensor,
) -> None:  # fmt: skip
    """Write the weighted sums of products of sorted rows, out [N, M], a slice of its columns after the other.

    a: [G, R, F] or [R, F]. matrices: G of [E, F, M], transposed [E, M, F].
    """
    (tokens, width), rows = out.shape, len(table.order)
    cuts = slices(width, a.shape[-1])
    buffer = a.new_empty(rows * (cuts[0][1] - cuts[0][0]))
    for begin, end in cuts:
        products, part = buffer[: rows * (end - begin)].view(rows, end - begin), out[:, begin:end]
        parts = [w[:, begin:end] if transposed else w[:, :, begin:end] for w in matrices]
        _multiply_rows(a, parts, transposed, table, block_r, products)
        launch(
            combine_kernel, _grid(tokens, end - begin), COMBINE.on(out, 16),
            (products, weights, table.positions, part, part.stride(), tokens, rows // tokens), {"C": end - begin},
            (rows.bit_length(),),
        )  # fmt: skip


def _grid(tokens: int, columns: int) -> Grid:
    """Of `combine_kernel`."""
    return lambda chosen: (triton.cdiv(tokens, chosen["BLOCK_N"]) * triton.cdiv(columns, chosen["BLOCK_C"]),)


def _multiply_rows(
    a: Tensor, matrices: Sequence[Tensor], transposed: bool, table: Tables, block_r: int, rows: Tensor,
    k: int | None = None,
) -> None:  # fmt: skip
    """Write products of sorted rows, rows [R, C]; with `k` experts per token, of tokens [N, ..] that are gathered."""
    columns, size = rows.shape[1], a.shape[-1]
    first, second = matrices[0], matrices[1] if len(matrices) == 2 else None
    _launch_tiles(
        rows_kernel, ROWS, table, columns,
        (a, a.stride()[-2:], first, first.stride(), second, _strides(second), rows, table.order if k else None),
        {"K": k, "SIZE": size, "C": columns, "TRANSPOSED": transposed, "BLOCK_R": block_r},
    )  # fmt: skip


def _weight_gradient(a: Tensor, b: Tensor, gathered: str, like: Tensor, table: Tables, k: int) -> Tensor:
    """[E, A, B] in the type of `like`, from a [R or N, A] and b [R or N, B]."""
    n_experts, size_a, size_b = like.shape
    d_w = torch.empty(like.shape, dtype=like.dtype, device=like.device)

    def grid(constants: dict[str, Any]) -> tuple[int]:
        tiles_a, tiles_b = triton.cdiv(size_a, constants["BLOCK_A"]), triton.cdiv(size_b, constants["BLOCK_B"])
        return (n_experts * tiles_a * tiles_b,)

    launch(
        weight_gradient_kernel, grid, WEIGHT_GRADIENT.on(a, 16),
        (a, a.stride(), b, b.stride(), d_w, table.order, table.offsets),
        {"K": k, "A": size_a, "B": size_b, "GATHERED": gathered}, (len(table.order).bit_length(),),
    )  # fmt: skip
    return d_w


def _launch_tiles(
    kernel: Any, tuning: Tuning[Meta], table: Tables, columns: int, arguments: tuple[Any, ...],
    constants: dict[str, Any],
) -> None:  # fmt: skip
    """Run a kernel over all tiles of rows that there may be, and all tiles of so many columns."""
    rows = len(table.order)
    launch(
        kernel, lambda chosen: (len(table.tiles) * triton.cdiv(columns, chosen["BLOCK_C"]),),
        tuning.on(arguments[0], constants["BLOCK_R"]),
        (*arguments, table.offsets, table.first_tiles, table.tiles, rows, len(table.offsets) - 1), constants,
        (rows.bit_length(),),
    )  # fmt: skip


def _near(x: Tensor) -> Tensor:
    """x, or a copy where columns, or rows of weights, are too far apart for 32 bits inside a tile."""
    return x if 256 * max(x.stride()[1:]) < 2**31 else x.contiguous()


def _strides(w: Tensor | None) -> tuple[int, ...] | None:
    return None if w is None else w.stride()


SHAPES = ((2048, 768, 8), (4096, 1536, 4))
"""M, F and K that are compiled ahead of time."""


def aot_cases() -> list[AotCase]:
    """At each of `SHAPES` in half precision the defaults for large tiles; at the first all else that may be chosen."""
    return [case for shape in SHAPES for dtype in TYPES for case in _shape_cases(shape, dtype)]


def _shape_cases(shape: tuple[int, int, int], dtype: torch.dtype) -> Iterator[AotCase]:
    m, f, k = shape
    half = dtype.itemsize == 2
    if not half and shape != SHAPES[0]:
        return
    end = slices(m, f)[0][1]
    tokens, matrix, pointer = ("i32", "constexpr"), ("i32", "i32", "constexpr"), f"*{TYPES[dtype]}"
    types: dict[str, Type] = {
        **dict.fromkeys(("x", "w_gate", "w_up", "w", "w_2", "a", "b"), pointer),
        **dict.fromkeys(("active", "hidden", "d_hidden", "rows", "out", "d_w"), pointer),
        **dict.fromkeys(("s_x", "s_a", "s_b", "s_out"), tokens),
        **dict.fromkeys(("s_gate", "s_up", "s_w", "s_w_2"), matrix),
        **dict.fromkeys(("order", "offsets", "first_tiles", "tiles", "positions"), "*i32"),
        **dict.fromkeys(("weights", "d_weights"), "*fp32"),
        **dict.fromkeys(("R", "E", "N", "K"), "i32"),
    }
    of_token = {"K": k, "M": m, "F": f, "ACTIVATION": "swiglu"}
    one = {"w_2": None, "s_w_2": None}
    of_row = {"order": None, "K": None, "SIZE": f, "C": end}
    of_tiles: list[tuple[str, Any, Tuning[Meta], dict[str, Any]]] = [
        ("up", up_kernel, UP, of_token),
        ("down", rows_kernel, ROWS, {**of_row, **one, "TRANSPOSED": False}),
        ("dx", rows_kernel, ROWS, {**of_row, "TRANSPOSED": True}),
        ("dactive", rows_kernel, ROWS, {**one, "K": k, "SIZE": m, "C": f, "TRANSPOSED": True}),
    ]
    of_weights = [
        ("dup", {"K": k, "A": m, "B": f, "GATHERED": "a"}),
        ("ddown", {"K": k, "A": f, "B": m, "GATHERED": "b"}),
    ]
    for oldest, shipped_on in SHIPPED.items() if half else [(90, (80, 90, 100))]:
        ends = f"{TYPES[dtype]}.h{m}.i{f}.sm{oldest}"
        # What else may be chosen is compiled in float16, whose code is that of bfloat16 but for conversions.
        every = shape == SHAPES[0] and dtype == torch.float16
        metas: Sequence[MetaParameters]
        for label, kernel, tuning, constants in of_tiles:
            for block_r in TILES[half] if every else TILES[half][-1:]:
                metas = tuning.candidates(dtype, block_r, oldest)[: None if every else 1]
                expects: Expected = "" if not half else "mma" if block_r < 64 else "wgmma"
                name, constants = f"moe_{label}.r{block_r}.{ends}", {**constants, "BLOCK_R": block_r}
                yield from aot_cases_of(name, kernel, types, constants, metas, expects, shipped_on)
        for label, constants in of_weights:
            metas = WEIGHT_GRADIENT.candidates(dtype, 16, oldest)[: None if every else 1]
            expects = "wgmma" if half else ""
            yield from aot_cases_of(
                f"moe_{label}.{ends}", weight_gradient_kernel, types, constants, metas, expects, shipped_on
            )
        streams = (("combine", combine_kernel, COMBINE, {"C": end}),
                   ("dactivation", activation_gradient_kernel, ACTIVATION_GRADIENT, of_token))  # fmt: skip
        for label, kernel, stream, constants in streams:
            metas = stream.candidates(dtype, 16, oldest)[: None if every else 1]
            yield from aot_cases_of(f"moe_{label}.{ends}", kernel, types, constants, metas, "", shipped_on)
