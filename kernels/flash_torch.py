"""Attention on torch's own fused operations, forward and backward: what `flash` and `mqa` run without Triton.

Torch's CPU flash kernel knows two shapes of work: every query sees every key, and a causal square. Causal attention of
unequal lengths and sliding windows are put together from such tiles, so that no masked score is computed between tiles
and memory grows with T + S. Tiles that share queries are joined through their log-sum-exp (Dao et al. 2022, arXiv
2205.14135, section 3.1); the backward of each tile takes the joined output and log-sum-exp, which makes its
probabilities and row sums those of the whole row. No key or value is repeated for the query heads that share it.

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

BLOCK = 128
"""Queries whose scores are held at once where torch's CPU kernel does not run."""

LEAST_SCALE = 2.0**-100
"""Smaller ones may be 0 in float32."""


class Tile(NamedTuple):
    """`pieces` equal parts of the score matrix, `step` tokens apart along queries and keys.

    full: all queries see all keys. causal: query i sees keys 0 to i of a square. mirrored: query i sees keys i to the
    end of a square, which is causal after both are reversed. Exactly one tile with `first` covers each query.
    """

    shape: Literal["full", "causal", "mirrored"]
    first: bool
    query: int
    queries: int
    key: int
    keys: int
    pieces: int = 1
    step: int = 0


def tiles(seq_q: int, seq_kv: int, *, causal: bool, window: int | None) -> list[Tile]:
    """Tiles that cover each unmasked score of [T, S] once and no masked one; first ones before the others.

    Query i stands at position i + S - T. A window of w is cut into chunks of w queries: each sees its own chunk as a
    causal square and the chunk before as a mirrored one, so work grows with T x w.
    """
    if not causal:
        return [Tile("full", True, 0, seq_q, 0, seq_kv)]
    skipped = max(0, seq_q - seq_kv)  # queries at negative positions, which see no key
    shift = seq_q - seq_kv  # a position's query
    start = skipped - shift
    window = seq_kv if window is None else min(window, seq_kv)
    # Positions below the window see everything up to themselves, those from it on see a whole window.
    whole = max(start, window)
    growing = whole - start
    chunks, rest = divmod(seq_kv - whole, window)
    last = whole + chunks * window
    found = [
        Tile("causal", True, start + shift, growing, start, growing),
        Tile("causal", True, whole + shift, window, whole, window, chunks, window),
        Tile("causal", True, last + shift, rest, last, rest),
        Tile("full", False, start + shift, growing, 0, start),
        Tile("mirrored", False, whole + shift, window - 1, whole - window + 1, window - 1, chunks, window),
        Tile("mirrored", False, last + shift, rest - 1, last - window + 1, rest - 1),
        Tile("full", False, last + shift, rest, last - window + rest, window - rest),
    ]
    return [tile for tile in found if min(tile.queries, tile.keys, tile.pieces) > 0]


def forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] laid out like q, log-sum-exp of the scaled scores [B, H, T], at least float32)."""
    work = tiles(q.shape[2], k.shape[2], causal=causal, window=window)
    out = torch.empty_like(q)
    lse = torch.empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32), device=q.device)
    if len(work) == 1 and (work[0].queries, work[0].keys) == (q.shape[2], k.shape[2]):
        part, part_lse = _attend(q, k, v, causal, scale)
        return part if part.stride() == out.stride() else out.copy_(part), lse.copy_(part_lse)
    unseeing = q.shape[2] - k.shape[2] if causal else 0
    out[:, :, : max(0, unseeing)] = 0
    lse[:, :, : max(0, unseeing)] = -math.inf
    for tile in work:
        part, part_lse = _attend(_queries(q, tile), _keys(k, tile), _keys(v, tile), tile.shape != "full", scale)
        out_view, lse_view = _query_view(out, tile), _query_view(lse, tile)
        part, part_lse = _unfold(part, tile, len(q)), _unfold(part_lse, tile, len(q))
        if tile.first:
            out_view.copy_(part)
            lse_view.copy_(part_lse)
        else:
            joined = torch.logaddexp(lse_view, part_lse)
            out_view.mul_((lse_view - joined).exp_()[..., None])
            out_view.add_(part * (part_lse - joined).exp_()[..., None])
            lse_view.copy_(joined)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    causal: bool, window: int | None, scale: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, laid out like them, from the gradient of the output and what `forward` returned."""
    work = tiles(q.shape[2], k.shape[2], causal=causal, window=window)
    found = [torch.empty_like(x) for x in (q, k, v)]
    if len(work) == 1 and (work[0].queries, work[0].keys) == (q.shape[2], k.shape[2]):
        parts = _attend_backward(grad, q, k, v, out, lse, causal, scale)
        return _laid_out(parts, found)
    sums = [torch.zeros(x.shape, dtype=lse.dtype, device=x.device) for x in (q, k, v)]
    for tile in work:
        parts = _attend_backward(
            _queries(grad, tile), _queries(q, tile), _keys(k, tile), _keys(v, tile), _queries(out, tile),
            _queries(lse, tile), tile.shape != "full", scale,
        )  # fmt: skip
        for total, part, view in zip(sums, parts, (_query_view, _key_view, _key_view), strict=True):
            view(total, tile).add_(_unfold(part, tile, len(q)))
    return _laid_out(sums, found)


def _laid_out(parts: tuple[Tensor, ...] | list[Tensor], like: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Tensors with the dtype and strides of others, copied only where these differ."""
    dq, dk, dv = (
        part if (part.dtype, part.stride()) == (want.dtype, want.stride()) else want.copy_(part)
        for part, want in zip(parts, like, strict=True)
    )
    return dq, dk, dv


def _view(x: Tensor, start: int, length: int, tile: Tile) -> Tensor:
    """The tile's tokens of x [B, H, T, ...], as a view [B, H, pieces, length, ...]."""
    if tile.pieces == 1:
        return x[:, :, None, start : start + length]
    return torch.unflatten(x[:, :, start : start + tile.pieces * tile.step], 2, (tile.pieces, tile.step))[
        :, :, :, :length
    ]


def _query_view(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile.query, tile.queries, tile)


def _key_view(x: Tensor, tile: Tile) -> Tensor:
    return _view(x, tile.key, tile.keys, tile)


def _fold(view: Tensor, tile: Tile) -> Tensor:
    """[B, H, pieces, length, ...] as a batch [B x pieces, H, length, ...], reversed if the tile is mirrored."""
    folded = view.transpose(1, 2).flatten(0, 1)
    return folded.flip(2) if tile.shape == "mirrored" else folded


def _unfold(part: Tensor, tile: Tile, batch: int) -> Tensor:
    """The inverse of `_fold`."""
    part = part.flip(2) if tile.shape == "mirrored" else part
    return torch.unflatten(part, 0, (batch, tile.pieces)).transpose(1, 2)


def _queries(x: Tensor, tile: Tile) -> Tensor:
    return _fold(_query_view(x, tile), tile)


def _keys(x: Tensor, tile: Tile) -> Tensor:
    return _fold(_key_view(x, tile), tile)


def _native(q: Tensor) -> bool:
    """Whether torch's CPU kernel serves these tensors."""
    return q.device.type == "cpu"


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D], log-sum-exp [B, H, T]) where all sees all, or of a causal square."""
    if not _native(q):
        return _blocks(q, k, v, causal, scale)
    if q.shape[1] == k.shape[1]:
        return _cpu_forward(q, k, v, causal, scale)
    q_groups, keys, values = _grouped(q, k), _one_head(k), _one_head(v)
    out, lse = (
        torch.empty_like(q_groups),
        torch.empty(q_groups.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32)),
    )
    for heads in _head_slices(q_groups):
        part = q_groups[:, heads]
        shared_k, shared_v = (x.expand(-1, part.shape[1], -1, -1) for x in (keys, values))
        out[:, heads], lse[:, heads] = _cpu_forward(part, shared_k, shared_v, causal, scale)
    return out.reshape(q.shape), lse.reshape(q.shape[:3])


def _attend_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v of `_attend`, given the output and log-sum-exp of whole rows."""
    if not _native(q):
        return _blocks_backward(grad, q, k, v, out, lse, causal, scale)
    if q.shape[1] == k.shape[1]:
        return _cpu_backward(grad, q, k, v, out, lse, causal, scale)
    grads, queries, outs, sums = (_grouped(x, k) for x in (grad, q, out, lse))
    keys, values = _one_head(k), _one_head(v)
    dq = torch.empty_like(queries)
    dk, dv = (torch.zeros(keys.shape, dtype=lse.dtype) for _ in range(2))
    for heads in _head_slices(queries):
        part = queries[:, heads]
        shared_k, shared_v = (x.expand(-1, part.shape[1], -1, -1) for x in (keys, values))
        dq[:, heads], dk_part, dv_part = _cpu_backward(
            grads[:, heads], part, shared_k, shared_v, outs[:, heads], sums[:, heads], causal, scale
        )
        dk += dk_part.sum(1, keepdim=True, dtype=lse.dtype)
        dv += dv_part.sum(1, keepdim=True, dtype=lse.dtype)
    return dq.reshape(q.shape), dk.reshape(k.shape), dv.reshape(v.shape)


def _cpu_forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """Torch's CPU kernel on what it takes: as many key heads as query heads, any strides, any scale."""
    factor, scale = _positive(scale) if causal else (1.0, scale)
    q = q if factor == 1 else q * factor
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default
    # The output is laid out like q: another stride of 1 would leave open which columns are neighbours there.
    q = q.contiguous() if 1 in q.stride()[:3] else _readable(q)
    out, lse = flash(q, _readable(k), _readable(v), 0.0, causal, scale=scale)
    return out, lse


def _cpu_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients, given the output and log-sum-exp of whole rows."""
    factor, scale = _positive(scale) if causal else (1.0, scale)
    q = q if factor == 1 else q * factor
    flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default
    q, k, v, out = _readable(q), _readable(k), _readable(v), _readable(out)
    dq, dk, dv = flash(grad, q, k, v, out, lse, 0.0, causal, scale=scale)
    return dq if factor == 1 else dq * factor, dk, dv


def _readable(x: Tensor) -> Tensor:
    """x [B, H, T, D], or a copy where neighbouring columns are not neighbours in memory: torch's kernel believes so."""
    return x if x.stride(3) == 1 or x.shape[3] == 1 else x.contiguous()


def _positive(scale: float) -> tuple[float, float]:
    """A factor of q, and a scale above 0: torch's kernel scales masked scores too, and -inf x 0 is NaN."""
    if scale >= LEAST_SCALE:
        return 1.0, scale
    return (-1.0, -scale) if -scale >= LEAST_SCALE else (scale, 1.0)


def _grouped(x: Tensor, k: Tensor) -> Tensor:
    """Query heads [B, H, T, ...] by the key head they share, [B x Hk, H / Hk, T, ...]."""
    return torch.unflatten(x, 1, (k.shape[1], -1)).flatten(0, 1)


def _one_head(x: Tensor) -> Tensor:
    """[B, Hk, S, D] as [B x Hk, 1, S, D]: expanding the 1 gives each head of a group the same memory."""
    return x.flatten(0, 1)[:, None]


def _head_slices(grouped: Tensor) -> list[slice]:
    """Heads of a group to compute together: enough for two rounds of all threads, so that they wait less.

    Torch's kernel works in parallel over batch x heads, and returns (in half precision also packs) one copy of the
    keys per head: so few at a time.
    """
    at_once = math.ceil(2 * torch.get_num_threads() / len(grouped))
    return [slice(i, i + at_once) for i in range(0, grouped.shape[1], at_once)]


def _block_scores(q: Tensor, k: Tensor, first: int, causal: bool, scale: float) -> tuple[Tensor, int]:
    """(scores [B, Hk, H / Hk x block, keys] of the queries from `first` on, number of keys they see)."""
    block = min(BLOCK, q.shape[2] - first)
    keys = min(first + block, k.shape[2]) if causal else k.shape[2]
    scores = _rows(q, k, first) @ k[:, :, :keys].transpose(-2, -1) * scale
    if causal:
        query = torch.arange(first, first + block, device=q.device).repeat(q.shape[1] // k.shape[1])
        scores = scores.masked_fill(query[:, None] < torch.arange(keys, device=q.device), -math.inf)
    return scores, keys


def _rows(x: Tensor, k: Tensor, first: int) -> Tensor:
    """A block of queries in k's dtype, heads that share keys stacked: [B, H, T, D] to [B, Hk, H / Hk x block, D]."""
    block = x[:, :, first : first + BLOCK].to(k.dtype)
    return torch.unflatten(block, 1, (k.shape[1], -1)).flatten(2, 3)


def _heads(rows: Tensor, q: Tensor) -> Tensor:
    """Blocks of stacked heads next to one another, [B, Hk, H / Hk x block, ...] to [B, H, block, ...]."""
    return torch.unflatten(rows, 2, (q.shape[1] // rows.shape[1], -1)).flatten(1, 2)


def _wide(x: Tensor) -> Tensor:
    """At least float32, as the CPU kernel's sums are."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _blocks(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    """`_attend` in plain operations, for any device: the scores of `BLOCK` queries at a time."""
    keys, values = _wide(k), _wide(v)
    outs, sums = [], []
    for first in range(0, q.shape[2], BLOCK):
        scores, seen = _block_scores(q, keys, first, causal, scale)
        lse = scores.logsumexp(-1)
        outs.append(_heads((scores - lse[..., None]).exp() @ values[:, :, :seen], q).to(q.dtype))
        sums.append(_heads(lse, q))
    return torch.cat(outs, 2), torch.cat(sums, 2)


def _blocks_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`_attend_backward` in plain operations, for any device: the scores of `BLOCK` queries at a time."""
    keys, values = _wide(k), _wide(v)
    dq, dk, dv = [], torch.zeros_like(keys), torch.zeros_like(values)
    for first in range(0, q.shape[2], BLOCK):
        scores, seen = _block_scores(q, keys, first, causal, scale)
        rows, d_out, outs = (_rows(x, keys, first) for x in (q, grad, out))
        probabilities = (scores - _rows(lse[..., None], keys, first)).exp()
        delta = (d_out * outs).sum(-1, keepdim=True)
        d_scores = probabilities * (d_out @ values[:, :, :seen].transpose(-2, -1) - delta) * scale
        dv[:, :, :seen] += probabilities.transpose(-2, -1) @ d_out
        dk[:, :, :seen] += d_scores.transpose(-2, -1) @ rows
        dq.append(_heads(d_scores @ keys[:, :, :seen], q).to(q.dtype))
    return torch.cat(dq, 2), dk, dv


def decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float) -> Tensor:
    """One token per sequence, q [B, H, D], against the first `lengths` [B] tokens of caches [B, Hk, S, D]: [B, H, D].

    The heads of a group become the queries of one head, which all see the same keys.

    Raises:
        ValueError: a length outside 0 to S.
    """
    filled = filled_positions(lengths, k_cache.shape[2])
    queries = torch.unflatten(q, 1, (k_cache.shape[1], -1))
    out = torch.zeros(queries.shape, dtype=q.dtype, device=q.device)
    # One call where all sequences are equally long, else one for each.
    size = len(filled) if len(set(filled)) == 1 else 1
    for i in range(0, len(filled), size):
        if filled[i]:
            batch, keys = slice(i, i + size), slice(filled[i])
            out[batch] = _attend_split(queries[batch], k_cache[batch, :, keys], v_cache[batch, :, keys], scale)
    return out.flatten(1, 2)


def filled_positions(lengths: Tensor, tokens: int) -> list[int]:
    """Lengths [B] as numbers, which waits for their device.

    Raises:
        ValueError: a length outside 0 to `tokens`, the cache's S.
    """
    filled: list[int] = lengths.tolist()
    if not 0 <= min(filled) <= max(filled) <= tokens:
        raise ValueError(
            f"lengths must lie between 0 and the cache's S = {tokens}, got {min(filled)} to {max(filled)}; "
            "count filled positions, the new token's among them"
        )
    return filled


def _attend_split(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """Output [B, Hk, G, D] of few queries, where all see all; one sequence's keys are shared out over the threads.

    Torch's kernel works in parallel over batch, heads and blocks of queries, of which a decoding step may have one
    (Dao et al. 2023, "Flash-Decoding for long-context inference"). What does not divide evenly is one more piece.
    """
    pieces = math.ceil(torch.get_num_threads() / k.shape[1])
    each = k.shape[2] // pieces
    if len(q) > 1 or pieces == 1 or each == 0:
        return _attend(q, k, v, False, scale)[0]
    tile = Tile("full", True, 0, q.shape[2], 0, each, pieces, each)
    parts = [_attend(q.expand(pieces, -1, -1, -1), _keys(k, tile), _keys(v, tile), False, scale)]
    if pieces * each < k.shape[2]:
        parts.append(_attend(q, k[:, :, pieces * each :], v[:, :, pieces * each :], False, scale))
    out, lse = (torch.cat(part) for part in zip(*parts, strict=True))
    return (out * lse.softmax(0)[..., None]).sum(0, keepdim=True).to(q.dtype)
