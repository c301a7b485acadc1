"""Decoding in Triton: one new token per sequence against a cache, its positions shared out over splits.

`reference.decode` says in three lines what is computed here. A step reads the cache once and does little with
it, so what counts is that the whole device reads: one sequence's positions are cut into splits that run at the same
time, each with its own softmax, and a second kernel joins them through their log-sum-exp (Dao et al. 2023,
"Flash-Decoding for long-context inference"). All query heads that share a key head are rows of one tile, so that keys
and values are read once for all of them. No floating-point number is added atomically:
equal inputs give equal bits.

Glossary:
    B, H, HK        sequences, query heads, key heads; query head h uses key head h // GROUP, GROUP = H / HK
    S               positions that the cache has room for; of sequence b, the first lengths[b] are filled
    SPLITS          parts that a sequence is cut into, whole blocks of positions each; some may be empty
    D, BLOCK_D      head width, and the power of two that holds it
    BLOCK_G         query heads of a tile; a group takes cdiv(GROUP, BLOCK_G) tiles
    BLOCK_N         positions of a block
    scale_2         scale of the scores over ln 2, for exp2
    p_ b_ o_ m_ i_  pointers, a block of values, offsets, a mask, an index
Strides come as tuples, of q (batch, head, column) and of the caches (batch, head, position, column).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from cegain.kernels.aot_case import SHIPPED, STRIDES, TYPES, AotCase, Expected, Type, aot_case
from cegain.kernels.launch import MetaParameters, Tuning, launch, padded


@triton.jit
def split_kernel(q, s_q, k, s_k, v, s_v, lengths, out, lse_2, scale_2, HK, GROUP, S, SPLITS, D: tl.constexpr,
                 BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """Grid: (tiles of a group x B x HK, SPLITS).

    q: [B, H, D]. k, v: [B, HK, S, D]. lengths: [B]. out: of each split alone [B, H, SPLITS, D]. lse_2: base-2
    log-sum-exp of each split [B, H, SPLITS], -inf for an empty one.
    """
    tiles = tl.cdiv(GROUP, BLOCK_G)
    i_bk, i_split = tl.program_id(0) // tiles, tl.program_id(1)
    i_b, i_hk = tl.cast(i_bk // HK, tl.int64), tl.cast(i_bk % HK, tl.int64)
    # [BLOCK_G]
    o_g = tl.program_id(0) % tiles * BLOCK_G + tl.arange(0, BLOCK_G)
    m_g = o_g < GROUP
    o_h = i_hk * GROUP + o_g
    # [BLOCK_D]
    o_d = tl.arange(0, BLOCK_D)
    m_d = o_d < D
    # A length past the cache is an error that only the host could report, after waiting for it: nothing is read there.
    length = tl.minimum(tl.maximum(tl.load(lengths + i_b), 0), S).to(tl.int32)
    part = tl.cdiv(tl.cdiv(length, BLOCK_N), SPLITS) * BLOCK_N
    first = tl.minimum(i_split * part, length)
    end = tl.minimum(first + part, length)

    # [BLOCK_G, BLOCK_D]
    p_q = q + i_b * s_q[0] + o_h[:, None] * s_q[1] + o_d[None, :] * s_q[2]
    b_q = tl.load(p_q, mask=m_g[:, None] & m_d[None, :], other=0.0)
    b_acc = tl.zeros([BLOCK_G, BLOCK_D], tl.float32)
    # [BLOCK_G]
    b_max = tl.full([BLOCK_G], float("-inf"), tl.float32)
    b_sum = tl.zeros([BLOCK_G], tl.float32)
    k += i_b * s_k[0] + i_hk * s_k[1]
    v += i_b * s_v[0] + i_hk * s_v[1]
    for i_n in range(first, end, BLOCK_N):
        # [BLOCK_N]; a block that is walked has a filled position, so that the maximum is finite after it
        o_n = (i_n + tl.arange(0, BLOCK_N)).to(tl.int64)
        m_n = o_n < end
        # [BLOCK_N, BLOCK_D]; what lies past a length is never loaded, as it may be NaN
        m_kv = m_n[:, None] & m_d[None, :]
        b_k = tl.load(k + o_n[:, None] * s_k[2] + o_d[None, :] * s_k[3], mask=m_kv, other=0.0)
        # [BLOCK_G, BLOCK_N]
        b_s = tl.dot(b_q, tl.trans(b_k), input_precision="ieee") * scale_2
        b_s = tl.where(m_n[None, :], b_s, float("-inf"))
        # [BLOCK_G]
        b_new = tl.maximum(b_max, tl.max(b_s, 1))
        b_shrink = tl.exp2(b_max - b_new)
        # [BLOCK_G, BLOCK_N]
        b_p = tl.exp2(b_s - b_new[:, None])
        b_sum = b_sum * b_shrink + tl.sum(b_p, 1)
        # [BLOCK_N, BLOCK_D]
        b_v = tl.load(v + o_n[:, None] * s_v[2] + o_d[None, :] * s_v[3], mask=m_kv, other=0.0)
        # [BLOCK_G, BLOCK_D]
        b_acc = tl.dot(b_p.to(b_v.dtype), b_v, b_acc * b_shrink[:, None], input_precision="ieee")
        b_max = b_new
    # An empty split gives 0 with a log-sum-exp of -inf; any other has a sum of at least 1, from its largest score.
    b_sum = tl.where(first < end, b_sum, 1.0)
    o_out = (i_b * HK * GROUP + o_h) * SPLITS + i_split
    p_out = out + o_out[:, None] * D + o_d[None, :]
    tl.store(p_out, (b_acc / b_sum[:, None]).to(out.dtype.element_ty), mask=m_g[:, None] & m_d[None, :])
    tl.store(lse_2 + o_out, b_max + tl.log2(b_sum), mask=m_g)


@triton.jit
def combine_kernel(parts, lse_2, out, SPLITS, D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_SPLITS: tl.constexpr):
    """Grid: (B x H,). The splits of one head, each weighted by its share of the softmax's sum.

    parts: [B, H, SPLITS, D], float32. lse_2: [B, H, SPLITS]. out: [B, H, D], 0 where all splits are empty.
    """
    i_bh = tl.program_id(0).to(tl.int64)
    # [BLOCK_D]
    o_d = tl.arange(0, BLOCK_D)
    b_acc = tl.zeros([BLOCK_D], tl.float32)
    b_max = float("-inf")
    b_sum = 0.0
    for i_s in range(0, SPLITS, BLOCK_SPLITS):
        # [BLOCK_SPLITS]
        o_s = i_s + tl.arange(0, BLOCK_SPLITS)
        m_s = o_s < SPLITS
        b_lse = tl.load(lse_2 + i_bh * SPLITS + o_s, mask=m_s, other=float("-inf"))
        b_new = tl.maximum(b_max, tl.max(b_lse, 0))
        # Where no split so far has a position, all weights are exp2(-inf - 0) = 0 rather than exp2(-inf + inf).
        b_top = tl.where(b_new == float("-inf"), 0.0, b_new)
        b_shrink = tl.exp2(b_max - b_top)
        b_weight = tl.exp2(b_lse - b_top)
        # [BLOCK_SPLITS, BLOCK_D]
        p_part = parts + (i_bh * SPLITS + o_s[:, None]) * D + o_d[None, :]
        b_part = tl.load(p_part, mask=m_s[:, None] & (o_d < D)[None, :], other=0.0)
        b_acc = b_acc * b_shrink + tl.sum(b_weight[:, None] * b_part, 0)
        b_sum = b_sum * b_shrink + tl.sum(b_weight, 0)
        b_max = b_new
    b_out = b_acc / tl.where(b_sum > 0, b_sum, 1.0)
    tl.store(out + i_bh * D + o_d, b_out.to(out.dtype.element_ty), mask=o_d < D)


@dataclass(frozen=True)
class Meta(MetaParameters):
    """BLOCK_N, and what a program runs with."""

    block_n: int
    num_warps: int
    num_stages: int


@dataclass(frozen=True)
class Splits(MetaParameters):
    """The same for `combine_kernel`, which reads BLOCK_SPLITS splits at once."""

    block_splits: int
    num_warps: int
    num_stages: int


TUNING = Tuning(
    {
        80: {
            64: (Meta(64, 4, 4), Meta(128, 4, 3)),
            128: (Meta(64, 4, 3), Meta(32, 4, 4), Meta(128, 8, 2)),
            256: (Meta(32, 4, 2), Meta(32, 8, 3)),
        },
        90: {
            64: (Meta(128, 4, 4), Meta(64, 4, 4), Meta(128, 8, 4)),
            128: (Meta(64, 4, 4), Meta(128, 8, 3), Meta(32, 4, 4)),
            256: (Meta(32, 4, 4), Meta(64, 8, 3)),
        },
    },
    {64: (Meta(64, 4, 2),), 256: (Meta(16, 4, 2),)},
    interpreted=Meta(16, 4, 1),
    unaligned={64: (Meta(64, 4, 4),), 128: (Meta(32, 4, 4),), 256: (Meta(16, 4, 4),)},
)
COMBINE = Splits(16, 4, 1)
LARGEST_GROUP = {True: 64, False: 16}
"""BLOCK_G at most, in half precision or not: larger tiles do not fit the registers."""
WAVES = 2
"""Programs per multiprocessor: a second one hides the first one's start and end."""


def decode(
    q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, splits: int | None = None
) -> Tensor:
    """One token per sequence, q [B, H, D], against the first `lengths` [B] tokens of caches [B, HK, S, D]: [B, H, D].

    Args:
        q: float16, bfloat16 or float32, D at most 256, any strides; the caches likewise.
        k_cache: keys.
        v_cache: values.
        lengths: int32 or int64, any stride; taken as 0 or S where they lie outside. Nothing waits for them.
        scale: of the scores.
        splits: parts of a sequence; as many as fill the device by default. A whole cache in one needs no second kernel.
    """
    batch, heads, width = q.shape
    shared, tokens = k_cache.shape[1:3]
    group = heads // shared
    metas = TUNING.on(q, width)
    block_g = block_of_group(q.dtype, group)
    programs = triton.cdiv(group, block_g) * batch * shared
    if splits is None:
        splits = max(1, min(WAVES * _multiprocessors(q) // programs, triton.cdiv(tokens, metas[0].block_n)))
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    parts = out if splits == 1 else q.new_empty((batch, heads, splits, width), dtype=torch.float32)
    lse_2 = q.new_empty((batch, heads, splits), dtype=torch.float32)
    arguments = (
        q, q.stride(), k_cache, k_cache.stride(), v_cache, v_cache.stride(), lengths.contiguous(), parts, lse_2,
        scale / math.log(2), shared, group, tokens, splits,
    )  # fmt: skip
    constants = {"D": width, "BLOCK_D": padded(width)}
    # Lengths and batches within a factor of two share what was found.
    key = (group, tokens.bit_length(), (batch * shared).bit_length())
    launch(split_kernel, (programs, splits), metas, arguments, {**constants, "BLOCK_G": block_g}, key)
    if splits > 1:
        launch(combine_kernel, (batch * heads,), (COMBINE,), (parts, lse_2, out, splits), constants)
    return out


def block_of_group(dtype: torch.dtype, group: int) -> int:
    """BLOCK_G: at least 16, the smallest side of a matrix instruction."""
    return int(min(max(16, triton.next_power_of_2(group)), LARGEST_GROUP[dtype.itemsize == 2]))


def _multiprocessors(q: Tensor) -> int:
    """Those of q's device; interpreted programs run one after another, as on a device with one."""
    return torch.cuda.get_device_properties(q.device).multi_processor_count if q.is_cuda else 1


def aot_cases() -> list[AotCase]:
    """`split_kernel`: each candidate for groups of 16 heads, the default also for larger ones; `combine_kernel`."""
    return [*_split_cases(), *_combine_cases()]


def _split_cases() -> Iterator[AotCase]:
    types: dict[str, Type] = {
        "s_q": ("i32", "i32", "constexpr"), "s_k": STRIDES, "s_v": STRIDES, "lengths": "*i64", "out": "*fp32",
        "lse_2": "*fp32", "scale_2": "fp32", "HK": "i32", "GROUP": "i32", "S": "i32", "SPLITS": "i32",
    }  # fmt: skip
    for oldest, capabilities in SHIPPED.items():
        for dtype, element in TYPES.items():
            types.update(dict.fromkeys(("q", "k", "v"), f"*{element}"))
            half = dtype.itemsize == 2
            widths = (64, 100, 128, 256) if dtype == torch.float16 and oldest == 90 else (64, 128, 256)
            for width in widths:
                metas = TUNING.candidates(dtype, width, oldest)
                # What may be tuned is compiled in float16, whose code is that of bfloat16.
                tiles = [(meta, 16) for meta in (metas if dtype == torch.float16 else metas[:1])]
                if dtype == torch.float16 and width % 16 == 0:
                    tiles.append((metas[0], block_of_group(dtype, 128)))
                for meta, block_g in tiles:
                    constants = {"D": width, "BLOCK_D": padded(width), "BLOCK_G": block_g}
                    name = f"decode.{element}.d{width}.g{block_g}.n{meta.block_n}.w{meta.num_warps}.sm{oldest}"
                    expects: Expected = "" if not half else "wgmma" if block_g == 64 else "mma"
                    yield aot_case(
                        name, split_kernel, types, constants, meta, expects, capabilities, ("S",), width % 16 == 0
                    )  # fmt: skip


def _combine_cases() -> Iterator[AotCase]:
    types: dict[str, Type] = {"parts": "*fp32", "lse_2": "*fp32", "out": "*bf16", "SPLITS": "i32"}
    for width in (64, 128, 256):
        constants = {"D": width, "BLOCK_D": width}
        yield aot_case(f"decode_combine.d{width}", combine_kernel, types, constants, COMBINE, "")
