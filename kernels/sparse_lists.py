"""Which tiles a block-sparse kernel visits, as tables of integers: one list of key tiles for each query tile, and back.

A kernel computes tiles of block_q queries and block_kv keys. Tiles without an unmasked pair are on no list; `full` ones
without a masked pair come first on each list and take no mask. Tokens are cut into tiles along a sequence: the natural
one, or, for `column` heads, one for each residue of positions modulo the stride, in which a column head is plain causal
attention (`patterns.residue_classes`). Numpy only, so that it can be tested and counted without a GPU.

Symbols: H query heads, Hk key and value heads, G = H / Hk, T queries, S keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cegain.kernels.patterns import BlockMask, Cover, HeadPattern, residue_classes

Pattern = BlockMask | tuple[HeadPattern, ...]
Ints = NDArray[np.int32]

EVERYTHING = 1 << 30
"""Longer than any sequence, and fit to be added to a position in 32 bits."""


class KeyTiles(NamedTuple):
    """Key tiles of one order of the tokens; a token of a key head is in at most one of them.

    tiles: int [N, 3], key head, sequence, which tile of it. segments: int [N, G, 3], for each query head of the group
    where its list of query tiles starts, and how many full and partial ones it holds.
    """

    tiles: Ints
    segments: Ints


class Lists(NamedTuple):
    """The tables that a kernel reads. Query tiles and key tiles with the longest lists come first.

    sequences: int [n, 6], a token's number is base + row x step: (step, base of queries, base of keys, queries, keys,
    position of the first query among the keys). heads: int [H, 6], see `mask_numbers`. query_tiles: int [N, 6], (query
    head, sequence, which tile of it, where the list starts, full tiles, partial tiles); each query is in one tile.
    key_lists: key tiles for `query_tiles`. key_tiles: one entry for each order of the tokens. query_lists: query tiles
    for `key_tiles`.
    """

    sequences: Ints
    heads: Ints
    query_tiles: Ints
    key_lists: Ints
    key_tiles: tuple[KeyTiles, ...]
    query_lists: Ints

    @property
    def visited(self) -> int:
        """Tiles that a forward pass computes for one element of the batch."""
        return int(self.query_tiles[:, 4:].sum())


def mask_numbers(head: HeadPattern) -> list[int]:
    """(causal, window, stride, summary, summary_start, n_global), of which one rule covers all kinds of head.

    A query at position p sees key j where not causal, or j <= p and (p - j < window, or j < n_global, or p and j are in
    one block of `stride`, or summary_start <= j mod stride < summary_start + summary). Column heads are causal in their
    own sequences.
    """
    if head.kind == "fixed":
        lengths = (head.stride, head.summary, head.summary_start)
        return [1, 0, *(min(length, EVERYTHING) for length in lengths), 0]
    window = min(head.window, EVERYTHING) if head.kind == "window" else EVERYTHING
    return [int(head.kind != "full"), window, 1, 0, 0, min(head.n_global, EVERYTHING)]


def build(pattern: Pattern, n_heads: int, heads_kv: int, seq_q: int, seq_kv: int, block_q: int, block_kv: int) -> Lists:
    """Tables for one shape and tile size, in time and memory that follow the number of tiles, not of tokens."""
    shift = seq_kv - seq_q
    sequences = [[1, 0, 0, seq_q, seq_kv, shift]]
    blind = 0
    if isinstance(pattern, BlockMask):
        covers = block_mask_cover(pattern, seq_q, seq_kv, block_q, block_kv)
        shared = pattern.blocks.ndim == 2
        parts = [
            _Part(0, range(n_heads) if shared else [h], [0], Cover(*(x[h] for x in covers)))
            for h in range(1 if shared else n_heads)
        ]
        numbers = [mask_numbers(HeadPattern("causal" if pattern.causal else "full"))] * n_heads
    else:
        numbers = [mask_numbers(head) for head in pattern]
        parts = []
        for head in dict.fromkeys(pattern):
            alike = [h for h in range(n_heads) if pattern[h] == head]
            if head.kind != "column":
                parts.append(_Part(0, alike, [0], cover(head, seq_q, seq_kv, shift, block_q, block_kv)))
                continue
            for residues in residue_classes(head.stride, seq_q, seq_kv):
                rows = residues.keys - residues.first_query
                found = cover(HeadPattern("causal"), rows, residues.keys, residues.first_query, block_q, block_kv)
                names = range(len(sequences), len(sequences) + residues.residues)
                for r in range(residues.first, residues.first + residues.residues):
                    first = r + residues.first_query * head.stride - shift
                    sequences.append(
                        [min(head.stride, EVERYTHING), first, r, rows, residues.keys, residues.first_query]
                    )
                parts.append(_Part(head.stride, alike, names, found))
            if shift < 0:  # queries before the first position are in no residue class
                blind = blind or len(sequences)
                if blind == len(sequences):
                    sequences.append([1, 0, 0, -shift, 0, 0])
                nothing = np.zeros((-(shift // block_q), 1), bool)
                parts.append(_Part(0, alike, [blind], Cover(nothing, nothing)))
    query_tiles, key_lists = _query_tiles(parts)
    # Blind queries give keys nothing; their part would be taken for another list of the same key tiles.
    seeing = [part for part in parts if not blind or part.sequences[0] != blind]
    key_tiles, query_lists = _key_tiles(seeing, n_heads, heads_kv)
    return Lists(_ints(sequences), _ints(numbers), query_tiles, key_lists, key_tiles, query_lists)


def cover(head: HeadPattern, queries: int, keys: int, shift: int, block_q: int, block_kv: int) -> Cover:
    """Tiles of a head of any kind but column; the first query stands at position `shift`.

    Visited ones are exact; a tile of a `fixed` head that mixes its own block with summary columns is never called full.
    """
    row, column = np.arange(0, queries, block_q)[:, None], np.arange(0, keys, block_kv)[None, :]
    p0, j0 = row + shift, column  # first and last position of each tile
    p1, j1 = np.minimum(row + block_q, queries) - 1 + shift, column + block_kv - 1
    inside = j1 < keys  # a tile that sticks out over the last key needs a mask
    j1 = np.minimum(j1, keys - 1)
    if head.kind == "full":
        return Cover(np.ones((len(row), column.size), bool), np.broadcast_to(inside, (len(row), column.size)))
    some, every = j0 <= p1, (j1 <= p0) & inside
    if head.kind == "causal":
        return Cover(some, every)
    if head.kind == "window":
        recent = np.maximum(j0, head.n_global)  # the first key that only the window shows
        return Cover(
            some & ((p0 - j1 < head.window) | (j0 < head.n_global)),
            every & ((p1 - recent < head.window) | (recent > j1)),
        )
    stride = head.stride
    one_block = p1 // stride == j0 // stride  # p0 and j1 lie between them
    share_block = (j0 // stride <= p1 // stride) & (np.maximum(p0, 0) // stride <= j1 // stride)
    seen_columns = _columns_before(head, np.minimum(j1, p1) + 1) - _columns_before(head, j0)
    only_columns = _columns_before(head, j1 + 1) - _columns_before(head, j0) == j1 + 1 - j0
    return Cover(some & (share_block | (seen_columns > 0)), every & (one_block | only_columns))


def block_mask_cover(pattern: BlockMask, seq_q: int, seq_kv: int, block_q: int, block_kv: int) -> Cover:
    """Tiles [1 or H, nq, nk] of a mask of blocks of any size, exact where each tile lies inside one block."""
    kind = HeadPattern("causal" if pattern.causal else "full")
    some, every = cover(kind, seq_q, seq_kv, seq_kv - seq_q, block_q, block_kv)
    blocks = pattern.blocks if pattern.blocks.ndim == 3 else pattern.blocks[None]
    count = np.zeros((len(blocks), blocks.shape[1] + 1, blocks.shape[2] + 1), np.int64)
    count[:, 1:, 1:] = blocks.cumsum(1).cumsum(2)
    row, column = np.arange(0, seq_q, block_q)[:, None], np.arange(0, seq_kv, block_kv)[None, :]
    top, bottom = row // pattern.block_q, (np.minimum(row + block_q, seq_q) - 1) // pattern.block_q + 1
    left, right = column // pattern.block_kv, (np.minimum(column + block_kv, seq_kv) - 1) // pattern.block_kv + 1
    found = count[:, bottom, right] - count[:, top, right] - count[:, bottom, left] + count[:, top, left]
    return Cover(some & (found > 0), every & (found == (bottom - top) * (right - left)))


class _Part(NamedTuple):
    """Heads with the same tiles in some sequences; `order` is 0, or the stride that the sequences step by."""

    order: int
    heads: Sequence[int]
    sequences: Sequence[int]
    cover: Cover


def _ints(rows: object) -> Ints:
    return np.ascontiguousarray(rows, dtype=np.int32)


def _columns_before(head: HeadPattern, key: NDArray[np.int64]) -> NDArray[np.int64]:
    """Summary columns of a fixed head among the keys 0 to key - 1."""
    rest = np.clip(key % head.stride - head.summary_start, 0, head.summary)
    columns: NDArray[np.int64] = key // head.stride * head.summary + rest
    return columns


def _compressed(tiles: Cover) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(the listed columns of each row, full ones first; [rows, 3] of (start, full, partial))."""
    rank = np.where(tiles.full, 0, np.where(tiles.visited, 1, 2))
    columns = rank.argsort(axis=1, kind="stable")
    full, listed = (rank == 0).sum(1), (rank < 2).sum(1)
    start = np.concatenate([[0], listed.cumsum()[:-1]])
    kept = columns[np.arange(rank.shape[1]) < listed[:, None]]
    return kept, np.stack([start, full, listed - full], axis=1)


def _query_tiles(parts: Sequence[_Part]) -> tuple[Ints, Ints]:
    tiles, lists, length = [], [], 0
    for part in parts:
        columns, row = _compressed(part.cover)
        row[:, 0] += length
        length += len(columns)
        lists.append(columns)
        head, sequence, tile = np.ix_(np.array(part.heads), np.array(part.sequences), np.arange(len(row)))
        names = np.stack(np.broadcast_arrays(head, sequence, tile), axis=-1)
        tiles.append(np.concatenate([names, np.broadcast_to(row, names.shape)], axis=-1).reshape(-1, 6))
    table = np.concatenate(tiles)
    longest_first = np.argsort(-table[:, 4:].sum(1), kind="stable")
    return _ints(table[longest_first]), _ints(np.concatenate(lists))


def _key_tiles(parts: Sequence[_Part], n_heads: int, heads_kv: int) -> tuple[tuple[KeyTiles, ...], Ints]:
    group = n_heads // heads_kv
    orders: list[KeyTiles] = []
    lists, length = [np.zeros(0, np.int64)], 0
    for order in dict.fromkeys(part.order for part in parts):
        # Parts of one order share sequences, or (residue classes) have none in common.
        segments: dict[tuple[int, ...], NDArray[np.int64]] = {}
        for part in parts:
            if part.order != order:
                continue
            rows, column = _compressed(Cover(part.cover.visited.T, part.cover.full.T))
            column[:, 0] += length
            length += len(rows)
            lists.append(rows)
            entry = segments.setdefault(tuple(part.sequences), np.zeros((heads_kv, len(column), group, 3), np.int64))
            for h in part.heads:
                entry[h // group, :, h % group] = column
        tiles, found = [], []
        for sequences, entry in segments.items():
            used = np.flatnonzero(entry[..., 1:].sum((1, 2, 3)))
            head, sequence, tile = np.ix_(used, np.array(sequences), np.arange(entry.shape[1]))
            tiles.append(np.stack(np.broadcast_arrays(head, sequence, tile), axis=-1).reshape(-1, 3))
            copies = np.broadcast_to(entry[used][:, None], (len(used), len(sequences), *entry.shape[1:]))
            found.append(copies.reshape(-1, group, 3))
        table, lengths = np.concatenate(tiles), np.concatenate(found)
        longest_first = np.argsort(-lengths[..., 1:].sum((1, 2)), kind="stable")
        if len(table):
            orders.append(KeyTiles(_ints(table[longest_first]), _ints(lengths[longest_first])))
    return tuple(orders), _ints(np.concatenate(lists))
