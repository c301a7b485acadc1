"""Sparse attention on torch's own operations, forward and backward: what `block_sparse` runs without Triton.

Heads of one kind go together. Causal, full and plain window heads are `flash_torch`'s business; so are column heads,
once each residue class of positions has been brought together. What is left (fixed heads, windows with global tokens,
masks of blocks) is cut into tiles: a run of queries with a list of keys that are gathered. Work and memory follow the
keys on those lists; scores of T x S never exist.

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width; N tiles of
m queries and n keys.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cegain.kernels import flash_torch
from cegain.kernels.patterns import BlockMask, HeadPattern, residue_classes, useful_scores, visible

Pattern = BlockMask | tuple[HeadPattern, ...]
Gradients = tuple[Tensor, Tensor, Tensor]

QUERIES = 128
"""Most queries in one tile of a window or fixed head: products stay large, and a window visits few masked scores."""

SCORES_AT_ONCE = {"cpu": 1 << 19, "cuda": 1 << 24}
"""Scores held at once: 2 MiB in float32 stay in a CPU's cache, where the next pass over them finds them."""


class Tiles(NamedTuple):
    """N tiles of one shape. A query is in one tile only; those in none see nothing.

    heads: int [N], the query head. queries: int [N], the first of m queries in a row. keys: int [N, n]. seen: bool
    [1 or N, m, up to n], which of the last keys the queries see; they see all keys before those.
    """

    heads: NDArray[np.int64]
    queries: NDArray[np.int64]
    keys: NDArray[np.int64]
    seen: NDArray[np.bool_]


def forward(q: Tensor, k: Tensor, v: Tensor, pattern: Pattern, scale: float) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D], log-sum-exp of the scaled scores [B, H, T], at least float32), both contiguous."""
    if isinstance(pattern, BlockMask):
        return _gathered(q, k, v, block_tiles(pattern, q.shape[1], q.shape[2], k.shape[2]), scale)
    out = q.new_empty(q.shape)
    lse = q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))
    for heads, kv_heads in _groups(pattern, k.shape[1]):
        kind = tuple(pattern[h] for h in heads)
        out[:, heads], lse[:, heads] = _forward_alike(q[:, heads], k[:, kv_heads], v[:, kv_heads], kind, scale)
    return out, lse


def backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, pattern: Pattern, scale: float
) -> Gradients:
    """Gradients of q, k and v, contiguous, from the gradient of the output and what `forward` returned."""
    if isinstance(pattern, BlockMask):
        tiles = block_tiles(pattern, q.shape[1], q.shape[2], k.shape[2])
        return _gathered_backward(grad, q, k, v, out, lse, tiles, scale)
    dq = q.new_empty(q.shape)
    dk, dv = (torch.zeros(k.shape, dtype=lse.dtype, device=k.device) for _ in range(2))
    for heads, kv_heads in _groups(pattern, k.shape[1]):
        kind = tuple(pattern[h] for h in heads)
        saved = (q[:, heads], k[:, kv_heads], v[:, kv_heads], out[:, heads], lse[:, heads])
        dq[:, heads], dk_part, dv_part = _backward_alike(grad[:, heads], *saved, kind, scale)
        index = torch.tensor(kv_heads, device=k.device)
        dk.index_add_(1, index, dk_part.to(dk.dtype))
        dv.index_add_(1, index, dv_part.to(dv.dtype))
    return dq, dk.to(k.dtype), dv.to(v.dtype)


def computed_scores(pattern: Pattern, n_heads: int, seq_q: int, seq_kv: int) -> int:
    """Query-key pairs of one sequence that `forward` computes, summed over query heads, masked ones included.

    Torch's causal kernel is taken to compute the unmasked half only.
    """
    if isinstance(pattern, BlockMask):
        return _tile_scores(block_tiles(pattern, n_heads, seq_q, seq_kv))
    total = 0
    for heads, _ in _groups(pattern, n_heads):
        kind = tuple(pattern[h] for h in heads)
        if _is_gathered(kind[0]):
            total += _tile_scores(head_tiles(kind, seq_q, seq_kv))
        else:
            total += useful_scores(kind, seq_q, seq_kv)
    return total


def _tile_scores(work: Iterator[Tiles]) -> int:
    return sum(tiles.keys.size * tiles.seen.shape[1] for tiles in work)


def _groups(pattern: Sequence[HeadPattern], heads_kv: int) -> Iterator[tuple[list[int], list[int]]]:
    """Query heads that run together, which differ in `summary_start` at most, and the key heads they use.

    Each key head stands once where it serves equally many of these query heads, in order; else once per query head.
    """
    alike: dict[HeadPattern, list[int]] = {}
    for h, head in enumerate(pattern):
        alike.setdefault(dataclasses.replace(head, summary_start=0), []).append(h)
    for heads in alike.values():
        used = [h * heads_kv // len(pattern) for h in heads]
        once = sorted(set(used))
        share = len(used) // len(once)
        yield heads, once if used == [h for h in once for _ in range(share)] else used


def _is_gathered(head: HeadPattern) -> bool:
    return head.kind == "fixed" or head.n_global > 0


def _causal_and_window(head: HeadPattern) -> tuple[bool, int | None]:
    return head.kind != "full", head.window if head.kind == "window" else None


def _forward_alike(
    q: Tensor, k: Tensor, v: Tensor, heads: tuple[HeadPattern, ...], scale: float
) -> tuple[Tensor, Tensor]:
    """`forward` for heads of one group."""
    head = heads[0]
    if _is_gathered(head):
        return _gathered(q, k, v, head_tiles(heads, q.shape[2], k.shape[2]), scale)
    if head.kind != "column":
        return flash_torch.forward(q, k, v, *_causal_and_window(head), scale)
    out = q.new_zeros(q.shape)
    lse = q.new_full(q.shape[:3], -math.inf, dtype=torch.promote_types(q.dtype, torch.float32))
    for view_q, view_k in _classes(head.stride, q.shape[2], k.shape[2]):
        part, part_lse = flash_torch.forward(view_q.take(q), view_k.take(k), view_k.take(v), True, None, scale)
        view_q.put(out, part)
        view_q.put(lse, part_lse)
    return out, lse


def _backward_alike(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    heads: tuple[HeadPattern, ...], scale: float,
) -> Gradients:  # fmt: skip
    """`backward` for heads of one group."""
    head = heads[0]
    if _is_gathered(head):
        return _gathered_backward(grad, q, k, v, out, lse, head_tiles(heads, q.shape[2], k.shape[2]), scale)
    if head.kind != "column":
        return flash_torch.backward(grad, q, k, v, out, lse, *_causal_and_window(head), scale)
    dq, dk, dv = q.new_zeros(q.shape), k.new_zeros(k.shape), v.new_zeros(v.shape)
    for view_q, view_k in _classes(head.stride, q.shape[2], k.shape[2]):
        saved = (view_q.take(q), view_k.take(k), view_k.take(v), view_q.take(out), view_q.take(lse))
        parts = flash_torch.backward(view_q.take(grad), *saved, True, None, scale)
        for total, view, part in zip((dq, dk, dv), (view_q, view_k, view_k), parts, strict=True):
            view.put(total, part)
    return dq, dk, dv


class _Residues(NamedTuple):
    """As many neighbouring tokens as there are residues, from `first` on, and all tokens whole strides later."""

    first: int
    residues: int
    stride: int

    def _view(self, x: Tensor) -> Tensor:
        """[B, residues, heads, rows, ...] of x [B, heads, tokens, ...], each of these a sequence of its own."""
        return x[:, :, self.first :].unfold(2, self.residues, self.stride).movedim(-1, 1)

    def take(self, x: Tensor) -> Tensor:
        return self._view(x).flatten(0, 1)

    def put(self, x: Tensor, part: Tensor) -> None:
        view = self._view(x)
        view.copy_(part.view(view.shape))


def _classes(stride: int, seq_q: int, seq_kv: int) -> Iterator[tuple[_Residues, _Residues]]:
    """Where each residue class lies among queries and among keys."""
    for part in residue_classes(stride, seq_q, seq_kv):
        first_query = part.first + part.first_query * stride - (seq_kv - seq_q)
        yield _Residues(first_query, part.residues, stride), _Residues(part.first, part.residues, stride)


def head_tiles(heads: Sequence[HeadPattern], seq_q: int, seq_kv: int) -> Iterator[Tiles]:
    """Tiles of `fixed` heads that differ in `summary_start` at most, or of equal `window` heads."""
    if heads[0].kind == "fixed":
        yield from _fixed_tiles(heads, seq_q, seq_kv)
    else:
        yield from _window_tiles(heads[0], len(heads), seq_q, seq_kv)


def _fixed_tiles(heads: Sequence[HeadPattern], seq_q: int, seq_kv: int) -> Iterator[Tiles]:
    """Queries of some blocks see the summary columns of the blocks before these, and what the pattern says of these."""
    stride, summary, shift = heads[0].stride, heads[0].summary, seq_kv - seq_q
    starts = np.array([head.summary_start for head in heads])[:, None]
    # [heads, all summary columns], block after block
    columns = starts + (np.arange(0, seq_kv, stride)[:, None] + np.arange(summary)).reshape(1, -1)
    begin = max(0, shift)
    while begin < seq_kv:
        first_block = begin // stride
        whole_blocks = max(1, QUERIES // stride) * stride
        end = min(first_block * stride + whole_blocks, begin + QUERIES, seq_kv)
        near = np.arange(first_block * stride, end)
        keys = [columns[:, : first_block * summary], np.broadcast_to(near, (len(heads), len(near)))]
        seen = np.stack([visible(head, np.arange(begin, end)[:, None], near) for head in heads])
        queries = np.full(len(heads), begin - shift)
        yield Tiles(np.arange(len(heads)), queries, np.concatenate(keys, axis=1), seen)
        begin = end


def _window_tiles(head: HeadPattern, n_heads: int, seq_q: int, seq_kv: int) -> Iterator[Tiles]:
    """Queries see the global tokens before the first window among them, all of them, and their windows."""
    # A short window is better served by more queries than it has keys: small products cost more than masked scores.
    length, shift = min(QUERIES, max(32, head.window)), seq_kv - seq_q
    begins = np.arange(max(0, shift), seq_kv, length)
    alike = (begins - head.window + 1 >= head.n_global) & (begins + length <= seq_kv)
    for begin in ([begins[alike]] if alike.any() else []) + [begins[i : i + 1] for i in np.flatnonzero(~alike)]:
        end = min(int(begin[0]) + length, seq_kv)
        oldest = np.maximum(begin - head.window + 1, 0)
        before = np.arange(min(head.n_global, int(oldest[0])))
        recent = oldest[:, None] + np.arange(end - oldest[0])
        keys = np.concatenate([np.broadcast_to(before, (len(begin), len(before))), recent], axis=1)
        seen = visible(head, np.arange(begin[0], end)[:, None], recent[:1])
        tiles = np.repeat(np.arange(n_heads), len(begin))
        yield Tiles(tiles, np.tile(begin - shift, n_heads), np.tile(keys, (n_heads, 1)), seen[None])


def block_tiles(pattern: BlockMask, n_heads: int, seq_q: int, seq_kv: int) -> Iterator[Tiles]:
    """A row of blocks is a tile, full blocks before those that need a mask; rows of equally many keys go together."""
    cover = pattern.cover(seq_q, seq_kv)
    rows = cover.visited.shape[-2]
    visited, full = (np.broadcast_to(part, (n_heads, *part.shape[-2:])) for part in cover)
    block = np.arange(seq_kv) // pattern.block_kv
    alike: dict[tuple[int, int, int], list[tuple[int, int, NDArray[np.int64]]]] = {}
    for h, row in np.ndindex(n_heads, rows):
        open_keys = np.flatnonzero(full[h, row][block])
        masked_keys = np.flatnonzero((visited[h, row] & ~full[h, row])[block])
        if open_keys.size + masked_keys.size:
            first = row * pattern.block_q
            shape = (min(pattern.block_q, seq_q - first), open_keys.size, masked_keys.size)
            alike.setdefault(shape, []).append((h, first, np.concatenate([open_keys, masked_keys])))
    for (length, n_open, _), found in alike.items():
        queries, keys = np.array([first for _, first, _ in found]), np.stack([keys for _, _, keys in found])
        position = queries[:, None] + np.arange(length) + seq_kv - seq_q
        seen = keys[:, None, n_open:] <= position[:, :, None]
        yield Tiles(np.array([h for h, _, _ in found]), queries, keys, seen)


class _Part(NamedTuple):
    """Tiles of every sequence, few enough to hold their scores: rows of q and k as [B x H x T, D], a score's bias."""

    queries: Tensor
    keys: Tensor
    bias: Tensor


def _parts(work: Iterator[Tiles], q: Tensor, k: Tensor) -> Iterator[_Part]:
    (batch, n_heads, seq_q, _), (heads_kv, seq_kv) = q.shape, k.shape[1:3]
    limit = SCORES_AT_ONCE.get(q.device.type, SCORES_AT_ONCE["cuda"])
    sequence = torch.arange(batch, device=q.device)[:, None, None]
    for tiles in work:
        length = tiles.seen.shape[1]
        step = max(1, limit // (batch * length * tiles.keys.shape[1]))
        for i in range(0, len(tiles.heads), step):
            heads, queries, keys = (torch.from_numpy(x[i : i + step]).to(q.device)[..., None] for x in tiles[:3])
            seen = torch.from_numpy(tiles.seen if len(tiles.seen) == 1 else tiles.seen[i : i + step]).to(q.device)
            q_rows = (sequence * n_heads + heads) * seq_q + queries + torch.arange(length, device=q.device)
            k_rows = (sequence * heads_kv + heads * heads_kv // n_heads) * seq_kv + keys[..., 0]
            bias = torch.zeros(seen.shape, dtype=q.dtype, device=q.device).masked_fill_(~seen, -math.inf)
            if len(bias) > 1:
                bias = bias.repeat(batch, 1, 1)
            yield _Part(q_rows.flatten(0, 1), k_rows.flatten(0, 1), bias)


def _rows(x: Tensor, index: Tensor) -> Tensor:
    """Rows [..., D] of x [rows, D] for an index of any shape."""
    return x.index_select(0, index.flatten()).view(*index.shape, x.shape[-1])


def _scores(part: _Part, q: Tensor, k: Tensor) -> Tensor:
    """Scores [tiles, m, n] of scaled queries, -inf where masked."""
    scores = q @ k.transpose(-2, -1)
    if part.bias.shape[-1]:
        scores[..., scores.shape[-1] - part.bias.shape[-1] :] += part.bias
    return scores


def _wide(*tensors: Tensor) -> list[Tensor]:
    """Rows [B x heads x tokens, D], in float32 at least: a CPU multiplies half precision slowly and sums it badly."""
    dtype = torch.promote_types(tensors[0].dtype, torch.float32)
    return [x.to(dtype).reshape(-1, x.shape[-1]) for x in tensors]


def _gathered(q: Tensor, k: Tensor, v: Tensor, work: Iterator[Tiles], scale: float) -> tuple[Tensor, Tensor]:
    """`forward` by tiles."""
    rows_q, rows_k, rows_v = _wide(q, k, v)
    out = torch.zeros_like(rows_q)
    lse = torch.full_like(rows_q[:, 0], -math.inf, memory_format=torch.contiguous_format)
    for part in _parts(work, q.to(out.dtype), k):
        scores = _scores(part, _rows(rows_q, part.queries) * scale, _rows(rows_k, part.keys))
        # The floor keeps a query that sees nothing at exp(-inf) = 0, its output at 0 / tiny, its log-sum-exp at -inf.
        largest = scores.amax(-1, keepdim=True).clamp_min_(torch.finfo(scores.dtype).min)
        total = scores.sub_(largest).exp_().sum(-1, keepdim=True)
        found = (scores @ _rows(rows_v, part.keys)).div_(total.clamp_min(torch.finfo(total.dtype).tiny))
        index = part.queries.flatten()
        out.index_copy_(0, index, found.flatten(0, 1))
        lse.index_copy_(0, index, (largest + total.log()).flatten())
    return out.view(q.shape).to(q.dtype), lse.view(q.shape[:3])


def _gathered_backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, work: Iterator[Tiles], scale: float
) -> Gradients:
    """`backward` by tiles, each score computed once again: P = exp(S - lse), dS = P (dP - rowsum(dO O))."""
    rows_q, rows_k, rows_v, rows_grad, rows_out = _wide(q, k, v, grad, out)
    dq, dk, dv = (torch.zeros_like(x) for x in (rows_q, rows_k, rows_v))
    delta = (rows_grad * rows_out).sum(-1, keepdim=True)
    # -inf - -inf is NaN: a query that sees nothing takes 0, and its scores give exp(-inf).
    safe_lse = lse.masked_fill(lse == -math.inf, 0.0).reshape(-1, 1)
    for part in _parts(work, q.to(dq.dtype), k):
        q_tile, grad_tile = _rows(rows_q, part.queries) * scale, _rows(rows_grad, part.queries)
        k_tile, v_tile = _rows(rows_k, part.keys), _rows(rows_v, part.keys)
        p = _scores(part, q_tile, k_tile).sub_(_rows(safe_lse, part.queries)).exp_()
        dv.index_add_(0, part.keys.flatten(), (p.transpose(-2, -1) @ grad_tile).flatten(0, 1))
        ds = (grad_tile @ v_tile.transpose(-2, -1)).sub_(_rows(delta, part.queries)).mul_(p)
        dq.index_copy_(0, part.queries.flatten(), (ds @ k_tile).mul_(scale).flatten(0, 1))
        dk.index_add_(0, part.keys.flatten(), (ds.transpose(-2, -1) @ q_tile).flatten(0, 1))
    return dq.view(q.shape).to(q.dtype), dk.view(k.shape).to(k.dtype), dv.view(v.shape).to(v.dtype)
