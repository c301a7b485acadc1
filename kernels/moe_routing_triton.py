"""Where rows of a mixture of experts go, worked out on the device: the K best experts, and tables that sort rows.

`reference.route` says which experts are best and `moe_dispatch.dispatch_plan` what the order of rows
is; both are met to the last index. Assignments are cut into chunks. Each chunk counts its experts, one program adds up
the counts, and each chunk then knows where its rows go. Atomic additions are of integers only, inside a chunk's count,
and the host waits for nothing: grids follow from shapes alone, so a CUDA graph may hold them.

Glossary:
    N, E, K         tokens, experts, experts per token
    R               assignments of a token to an expert, N x K, at most 2^30; as many sorted rows
    CHUNKS          cdiv(R, BLOCK_A)
    BLOCK_A         assignments of a chunk
    BLOCK_S         assignments that a chunk compares at once with all of its own
    BLOCK_R         rows of a tile; every tile has rows of one expert only
    BLOCK_E         the power of two that holds E + 1
    p_ b_ o_ m_ i_  pointers, a block of values, offsets, a mask, an index
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels.aot_case import AotCase, Type, aot_case
from cegain.kernels.backend import interpreting
from cegain.kernels.launch import MetaParameters, launch, padded


@triton.jit
def top_k_kernel(scores, experts, N, E, K, BLOCK_N: tl.constexpr, BLOCK_E: tl.constexpr):
    """Grid: (cdiv(N, BLOCK_N),).

    scores: [N, E], float32. experts: [N, K], int64; best first, of equal scores the lower index.
    """
    # [BLOCK_N]
    o_n = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N).to(tl.int64)
    # [1, BLOCK_E]
    o_e = tl.arange(0, BLOCK_E)[None, :]
    # [BLOCK_N, BLOCK_E]
    m_e = o_e < E
    b_s = tl.load(scores + o_n[:, None] * E + o_e, mask=(o_n < N)[:, None] & m_e, other=0.0)
    # Integers in the order of the numbers: what is not a number is larger than any, as where torch sorts; 0 and -0 are
    # equal; and there is room below minus infinity, for what has been taken and for padding.
    b_i = (b_s + 0.0).to(tl.int32, bitcast=True)
    b_i = tl.where(b_i < 0, b_i ^ 0x7FFFFFFF, b_i)
    b_i = tl.where(b_s != b_s, 0x7FFFFFFF, b_i)
    b_i = tl.where(m_e, b_i, -0x80000000)
    for i_k in range(K):
        # [BLOCK_N]
        b_best = tl.max(b_i, 1)
        b_e = tl.min(tl.where(b_i == b_best[:, None], o_e, BLOCK_E), 1)
        tl.store(experts + o_n * K + i_k, b_e.to(tl.int64), mask=o_n < N)
        # [BLOCK_N, BLOCK_E]
        b_i = tl.where(o_e == b_e[:, None], -0x80000000, b_i)


@triton.jit
def count_kernel(experts, counts, R, E, BLOCK_A: tl.constexpr, BLOCK_E: tl.constexpr):
    """Grid: (CHUNKS,). experts: [R], int64. counts: of a chunk's assignments to each expert [CHUNKS, E], int32."""
    # [BLOCK_A]; what lies past the end counts for the expert after the last
    o_a = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    b_e = tl.load(experts + o_a, mask=o_a < R, other=E).to(tl.int32)
    # [BLOCK_E]
    o_e = tl.arange(0, BLOCK_E)
    p_c = counts + tl.cast(tl.program_id(0), tl.int64) * E + o_e
    tl.store(p_c, tl.histogram(b_e, BLOCK_E), mask=o_e < E)


@triton.jit
def scan_kernel(counts, offsets, first_tiles, CHUNKS, E, BLOCK_R: tl.constexpr, BLOCK_CHUNKS: tl.constexpr,
                BLOCK_E: tl.constexpr):  # fmt: skip
    """Grid: (1,).

    counts: [CHUNKS, E], replaced by the sums over all earlier chunks. offsets: [E + 1], expert e has the rows from
    offsets[e] up to, not including, offsets[e + 1]. first_tiles: [E + 1], the same for tiles. All int32.
    """
    # [BLOCK_E]
    o_e = tl.arange(0, BLOCK_E)
    b_total = tl.zeros([BLOCK_E], tl.int32)
    for i in range(0, CHUNKS, BLOCK_CHUNKS):
        # [BLOCK_CHUNKS, BLOCK_E]
        o_c = i + tl.arange(0, BLOCK_CHUNKS)
        p_c = counts + o_c.to(tl.int64)[:, None] * E + o_e[None, :]
        m_c = (o_c < CHUNKS)[:, None] & (o_e < E)[None, :]
        b_c = tl.load(p_c, mask=m_c, other=0)
        tl.store(p_c, b_total[None, :] + tl.cumsum(b_c, 0) - b_c, mask=m_c)
        b_total += tl.sum(b_c, 0)
    # Sums up to an expert are where the next one begins; the last column, past all experts, holds nothing.
    b_tiles = tl.cdiv(b_total, BLOCK_R)
    tl.store(offsets + o_e, tl.cumsum(b_total, 0) - b_total, mask=o_e <= E)
    tl.store(first_tiles + o_e, tl.cumsum(b_tiles, 0) - b_tiles, mask=o_e <= E)


@triton.jit
def sort_kernel(experts, counts, offsets, first_tiles, order, positions, tiles, R, E, BLOCK_R: tl.constexpr,
                BLOCK_A: tl.constexpr, BLOCK_S: tl.constexpr):  # fmt: skip
    """Grid: (CHUNKS,). experts: [R], int64; the rest int32, the first three as `scan_kernel` leaves them.

    order: [R], the assignment of each sorted row. positions: [R], the sorted row of each assignment. tiles: [.., 2],
    first row and expert of each tile.
    """
    i_first = tl.program_id(0) * BLOCK_A
    # [BLOCK_A]
    o_a = i_first + tl.arange(0, BLOCK_A)
    m_a = o_a < R
    b_e = tl.load(experts + o_a, mask=m_a, other=0).to(tl.int32)
    # [BLOCK_A]; earlier assignments to the same expert, from other chunks and from this one
    b_rank = tl.load(counts + tl.cast(tl.program_id(0), tl.int64) * E + b_e, mask=m_a, other=0)
    for i in range(0, BLOCK_A, BLOCK_S):
        # [1, BLOCK_S]
        o_s = (i_first + i + tl.arange(0, BLOCK_S))[None, :]
        b_s = tl.load(experts + o_s, mask=o_s < R, other=-1).to(tl.int32)
        # [BLOCK_A, BLOCK_S]
        b_rank += tl.sum(((b_s == b_e[:, None]) & (o_s < o_a[:, None])).to(tl.int32), 1)
    # [BLOCK_A]
    b_row = tl.load(offsets + b_e, mask=m_a, other=0) + b_rank
    tl.store(order + b_row, o_a, mask=m_a)
    tl.store(positions + o_a, b_row, mask=m_a)
    # A tile's first row writes its line of the table.
    m_t = m_a & (b_rank % BLOCK_R == 0)
    p_t = tiles + 2 * (tl.load(first_tiles + b_e, mask=m_t, other=0) + b_rank // BLOCK_R)
    tl.store(p_t, b_row, mask=m_t)
    tl.store(p_t + 1, b_e, mask=m_t)


@dataclass(frozen=True)
class Meta(MetaParameters):
    """No kernel here takes long enough to tune its blocks."""

    num_warps: int
    num_stages: int


FOUR, EIGHT = Meta(4, 1), Meta(8, 1)
"""Eight warps for a sort, which spills with four, and for `scan_kernel`, which has one program."""
CHUNK = {"BLOCK_A": 512, "BLOCK_S": 16}
INTERPRETED_CHUNK = {"BLOCK_A": 32, "BLOCK_S": 16}
"""In the interpreter, so that few tokens make several chunks."""
AT_ONCE = {"scores": 1024, "counts": 4096}
"""Scores of a program of `top_k_kernel` and counts that `scan_kernel` reads at once; at least a line of them."""


def top_k(scores: Tensor, k: int) -> Tensor:
    """Experts with the `k` largest of scores [N, E]: int64 [N, k], of equal scores the lower index first."""
    n, n_experts = scores.shape
    experts = torch.empty(n, k, dtype=torch.int64, device=scores.device)
    if n:
        constants = _blocks_of_scores(n_experts)
        grid = (triton.cdiv(n, constants["BLOCK_N"]),)
        launch(top_k_kernel, grid, (FOUR,), (scores.contiguous(), experts, n, n_experts, k), constants)
    return experts


def _blocks_of_scores(n_experts: int) -> dict[str, int]:
    block_e = padded(n_experts)
    return {"BLOCK_N": max(1, AT_ONCE["scores"] // block_e), "BLOCK_E": block_e}


class Tables(NamedTuple):
    """Which rows go where, int32. How much of `tiles` is filled, only the device knows: first_tiles[E] of it.

    order: [R], the assignment of each sorted row. positions: [R], the sorted row of each assignment. offsets: [E + 1],
    expert e has the rows from offsets[e] up to, not including, offsets[e + 1]. first_tiles: [E + 1], the same for
    tiles. tiles: [at most, 2], first row and expert of each.
    """

    order: Tensor
    positions: Tensor
    offsets: Tensor
    first_tiles: Tensor
    tiles: Tensor


def tables(experts: Tensor, n_experts: int, block_r: int) -> Tables:
    """Sort assignments `experts` [N, K], at least one, into tiles of at most `block_r` rows of one expert each.

    Takes 4 (2 R + 2 (most_tiles + E + 1) + CHUNKS E) bytes, the last term only until it returns.
    """
    rows, device = experts.numel(), experts.device
    constants = _blocks(n_experts, block_r, INTERPRETED_CHUNK if interpreting() else CHUNK)
    chunks = triton.cdiv(rows, constants["count"]["BLOCK_A"])
    experts = experts.contiguous()

    def numbers(*shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.int32, device=device)

    counts = numbers(chunks, n_experts)
    order, positions, offsets, first_tiles = (numbers(size) for size in (rows, rows, n_experts + 1, n_experts + 1))
    tiles = numbers(most_tiles(rows, n_experts, block_r), 2)
    launch(count_kernel, (chunks,), (FOUR,), (experts, counts, rows, n_experts), constants["count"])
    launch(scan_kernel, (1,), (EIGHT,), (counts, offsets, first_tiles, chunks, n_experts), constants["scan"])
    sorting = (experts, counts, offsets, first_tiles, order, positions, tiles, rows, n_experts)
    launch(sort_kernel, (chunks,), (EIGHT,), sorting, constants["sort"])
    return Tables(order, positions, offsets, first_tiles, tiles)


def _blocks(n_experts: int, block_r: int, chunk: dict[str, int]) -> dict[str, dict[str, int]]:
    """Constants of each kernel."""
    block_e = padded(n_experts + 1)
    block_chunks = max(1, AT_ONCE["counts"] // block_e)
    return {
        "count": {"BLOCK_A": chunk["BLOCK_A"], "BLOCK_E": block_e},
        "scan": {"BLOCK_R": block_r, "BLOCK_CHUNKS": block_chunks, "BLOCK_E": block_e},
        "sort": {"BLOCK_R": block_r, **chunk},
    }


def most_tiles(rows: int, n_experts: int, block_r: int) -> int:
    """How many tiles there may be: all that are full, and for each expert with rows one that is not."""
    return rows // block_r + min(n_experts, rows)


def aot_cases() -> list[AotCase]:
    """All four kernels, for 64 and 128 experts and tiles of 128 rows."""
    names = ("counts", "offsets", "first_tiles", "order", "positions", "tiles")
    types: dict[str, Type] = {"scores": "*fp32", "experts": "*i64", **dict.fromkeys(names, "*i32")}
    types |= dict.fromkeys(("N", "E", "K", "R", "CHUNKS"), "i32")
    cases = []
    for n_experts in (64, 128):
        constants = _blocks(n_experts, 128, CHUNK) | {"top_k": _blocks_of_scores(n_experts)}
        for label, kernel, meta in (
            ("top_k", top_k_kernel, FOUR), ("count", count_kernel, FOUR), ("scan", scan_kernel, EIGHT),
            ("sort", sort_kernel, EIGHT),
        ):  # fmt: skip
            name = f"moe_{label}.e{n_experts}"
            cases.append(aot_case(name, kernel, types, constants[label], meta, "", multiples=("N", "E", "R")))
    return cases
