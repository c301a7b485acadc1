"""Attention patterns: which keys a query may see, as masks and as exact counts.

A layer's pattern is a name; `head_patterns` turns it into one `HeadPattern` per head, since the factorised
patterns of Sparse Transformers (Child et al. 2019, arXiv 1904.10509, section 4) give heads different parts:

* `strided`: the first half of the heads (rounded up) see the last `stride` positions, the other half see
  every `stride`-th position before them. This is the paper's third way to combine the parts, separate
  heads, so that each head computes one part.
* `fixed`: every head sees its own block of `stride` positions and `summary` columns of each earlier block
  (the second way, merged), since a head with summary columns alone would leave the first queries without any
  key. Heads take turns in which columns, counted from the end of the block: the paper found distinct ones
  better. The authors' code (openai/sparse_attention, `get_blocksparse_obj`) merges and takes turns likewise.
* `window`: every head sees the last `window` positions and, where asked for, the first `n_global` tokens of the
  sequence (Longformer, Beltagy et al. 2020, arXiv 2004.05150, section 3.1, made causal).

Any other pattern is a `BlockMask`. Each pattern has a token-level truth (`mask`), the unmasked pairs in closed form
(`useful_scores`), and what a kernel that computes whole blocks visits (`block_cover`, `visited_scores`).

Positions align queries with the end of the keys: query i stands at position `i + seq_kv - seq_q`, so that
seq_q = 1 is one decoding step. Queries at negative positions see nothing. A window counts the query's own
position, as the authors' code does; the text of the paper has one key more.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

PatternName = Literal["full", "causal", "window", "strided", "fixed"]
HeadKind = Literal["full", "causal", "window", "column", "fixed"]
Order = Literal["residue", "natural"]


@dataclass(frozen=True, slots=True)
class HeadPattern:
    """What one head's queries see: a kind and the lengths, in tokens, that this kind uses.

    A query at position p sees key j
        full: always
        causal: j <= p
        window: j <= p and (p - window < j or j < n_global)
        column: j <= p and (p - j) mod stride == 0
        fixed: j <= p and (same block of `stride`, or summary_start <= j mod stride < summary_start + summary)
    """

    kind: HeadKind
    window: int = 0
    stride: int = 0
    summary: int = 0
    summary_start: int = 0
    n_global: int = 0

    def __post_init__(self) -> None:
        if self.kind == "window" and self.window < 1:
            raise ValueError(f"window must be at least 1, got {self.window}; 1 is the query itself")
        if self.n_global < 0 or (self.n_global and self.kind != "window"):
            raise ValueError(
                f"n_global must be at least 0, and 0 unless kind is window, got {self.n_global} for {self.kind}; "
                "use 0, or a window"
            )
        if self.kind in ("column", "fixed") and self.stride < 1:
            raise ValueError(f"stride must be at least 1, got {self.stride}; try default_stride(seq_kv)")
        if self.kind == "fixed" and not (self.summary >= 1 and 0 <= self.summary_start <= self.stride - self.summary):
            raise ValueError(
                f"summary columns must lie inside a block of {self.stride}, got {self.summary} from "
                f"{self.summary_start}; need summary >= 1 and 0 <= summary_start <= stride - summary"
            )


def default_stride(seq_kv: int) -> int:
    """Smallest power of two that is at least sqrt(seq_kv): 32 for 1024.

    Child et al. 2019 ask for a stride close to sqrt(n), and use 128 for their 12,160 and 12,288 tokens.
    """
    return 1 << max(0, math.ceil(math.log2(max(1, seq_kv)) / 2))


def head_patterns(
    name: PatternName,
    n_heads: int,
    seq_kv: int,
    *,
    window: int | None = None,
    stride: int | None = None,
    summary: int | None = None,
    n_global: int = 0,
) -> tuple[HeadPattern, ...]:
    """One pattern per query head of a layer.

    Defaults: window = seq_kv / 2, rounded up (Mistral 7B: 4096 of 8192, Jiang et al. 2023, arXiv
    2310.06825, table 1); stride = `default_stride(seq_kv)`; summary = stride / 4, at least 1 and at most
    32 (Child et al. 2019: 8, 16 or 32 for strides of 128 and 256, 32 of 128 on text); no global tokens.

    Raises:
        ValueError: unknown name, lengths that HeadPattern refuses, or global tokens without a window.
    """
    if n_global and name != "window":
        raise ValueError(f"n_global must be 0 unless pattern is window, got {n_global} for {name}; use 0, or window")
    window = (seq_kv + 1) // 2 if window is None else window
    stride = default_stride(seq_kv) if stride is None else stride
    summary = min(32, max(1, stride // 4)) if summary is None else summary
    if name == "full" or name == "causal":
        return (HeadPattern(name),) * n_heads
    if name == "window":
        return (HeadPattern("window", window=window, n_global=n_global),) * n_heads
    if name == "strided":
        n_local = (n_heads + 1) // 2
        column = HeadPattern("column", stride=stride)
        local = HeadPattern("window", window=stride)
        return (local,) * n_local + (column,) * (n_heads - n_local)
    if name == "fixed":
        turns = max(1, stride // summary) if summary > 0 else 1
        return tuple(
            HeadPattern("fixed", stride=stride, summary=summary, summary_start=stride - (head % turns + 1) * summary)
            for head in range(n_heads)
        )
    raise ValueError(f"pattern must be one of full, causal, window, strided, fixed, got {name!r}")


def mask(head: HeadPattern, seq_q: int, seq_kv: int) -> NDArray[np.bool_]:
    """Token-level mask [seq_q, seq_kv] of one head; True where the query sees the key."""
    return visible(head, np.arange(seq_kv - seq_q, seq_kv)[:, None], np.arange(seq_kv)[None, :])


def visible(head: HeadPattern, query: NDArray[np.int64], key: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether queries at given positions see keys at given positions, broadcast against each other."""
    if head.kind == "full":
        return np.ones(np.broadcast_shapes(query.shape, key.shape), dtype=np.bool_)
    seen: NDArray[np.bool_] = key <= query
    if head.kind == "window":
        seen &= (key > query - head.window) | (key < head.n_global)
    elif head.kind == "column":
        seen &= (query - key) % head.stride == 0
    elif head.kind == "fixed":
        column = key % head.stride - head.summary_start
        in_summary = (column >= 0) & (column < head.summary)
        seen &= (key // head.stride == query // head.stride) | in_summary
    return seen


class Cover(NamedTuple):
    """Blocks of queries and keys, bool [..., ceil(seq_q / block_q), ceil(seq_kv / block_kv)].

    `visited` ones hold an unmasked pair and must be computed; `full` ones hold no masked pair, so that no mask is
    needed inside.
    """

    visited: NDArray[np.bool_]
    full: NDArray[np.bool_]


def block_cover(head: HeadPattern, seq_q: int, seq_kv: int, block_q: int, block_kv: int) -> Cover:
    """Blocks of one head, tokens in their natural order; time grows with seq_q x seq_kv, memory does not.

    A `column` head visits nearly every block here and is computed in residue order instead: `residue_classes`.
    """
    _check_lengths(seq_q=seq_q, seq_kv=seq_kv, block_q=block_q, block_kv=block_kv)
    key = np.arange(seq_kv)
    starts = np.arange(0, seq_kv, block_kv)
    visited, full = [], []
    for first in range(0, seq_q, block_q):
        query = np.arange(first, min(first + block_q, seq_q)) + seq_kv - seq_q
        seen = visible(head, query[:, None], key)
        visited.append(np.logical_or.reduceat(seen.any(0), starts))
        full.append(np.logical_and.reduceat(seen.all(0), starts))
    return Cover(np.array(visited), np.array(full))


class ResidueClass(NamedTuple):
    """Residues [first, first + residues) of positions modulo a stride that have equally many queries and keys.

    Row m of residue r is position r + m stride. Queries are the rows from `first_query` on and keys all `keys` rows;
    a `column` head is plain causal attention within each residue.
    """

    first: int
    residues: int
    first_query: int
    keys: int


def residue_classes(stride: int, seq_q: int, seq_kv: int) -> list[ResidueClass]:
    """The sequence reshaped to (seq_kv / stride, stride), residues without a query left out; at most 3 classes.

    Lengths need not be multiples of the stride. Queries at negative positions, which see nothing, are left out.
    """
    start = max(0, seq_kv - seq_q)
    # ceil((start - r) / stride) and ceil((seq_kv - r) / stride) change only here
    edges = sorted({0, start % stride, seq_kv % stride, min(stride, seq_kv)})
    classes = []
    for first, end in itertools.pairwise(edges):
        first_query, keys = -((first - start) // stride), -((first - seq_kv) // stride)
        if first_query < keys:
            classes.append(ResidueClass(first, end - first, first_query, keys))
    return classes


@dataclass(frozen=True, slots=True, eq=False)
class BlockMask:
    """Any pattern of blocks: bool [nq, nk], shared by all heads, or [H, nq, nk], one per query head.

    Query i sees key j where `blocks[i // block_q, j // block_kv]` and, if causal, j is at most the query's position.
    A sequence needs nq = ceil(seq_q / block_q) and nk = ceil(seq_kv / block_kv).
    """

    blocks: NDArray[np.bool_]
    block_q: int
    block_kv: int
    causal: bool = True

    def __post_init__(self) -> None:
        _check_lengths(block_q=self.block_q, block_kv=self.block_kv)
        if self.blocks.dtype != np.bool_ or self.blocks.ndim not in (2, 3):
            raise ValueError(
                f"blocks must be bool of shape [nq, nk] or [H, nq, nk], got {self.blocks.dtype} "
                f"{list(self.blocks.shape)}; convert with .astype(bool), reshape"
            )

    def mask(self, seq_q: int, seq_kv: int) -> NDArray[np.bool_]:
        """Token-level mask [seq_q, seq_kv], or [H, seq_q, seq_kv]; True where the query sees the key."""
        self._check_fits(seq_q, seq_kv)
        seen = self.blocks.repeat(self.block_q, axis=-2).repeat(self.block_kv, axis=-1)[..., :seq_q, :seq_kv]
        return seen & mask(HeadPattern("causal"), seq_q, seq_kv) if self.causal else seen

    def cover(self, seq_q: int, seq_kv: int) -> Cover:
        """Visited and full blocks, shaped as `blocks`: those above the diagonal are not visited."""
        self._check_fits(seq_q, seq_kv)
        pairs, area = self._pairs(seq_q, seq_kv)
        return Cover(self.blocks & (pairs > 0), self.blocks & (pairs == area))

    def useful_scores(self, n_heads: int, seq_q: int, seq_kv: int) -> int:
        """Unmasked query-key pairs of one sequence, summed over `n_heads` query heads."""
        self._check_fits(seq_q, seq_kv)
        copies = n_heads if self.blocks.ndim == 2 else 1
        return copies * int((self.blocks * self._pairs(seq_q, seq_kv)[0]).sum())

    def visited_scores(self, n_heads: int, seq_q: int, seq_kv: int) -> int:
        """Query-key pairs in visited blocks, counted whole as in `patterns.visited_scores`."""
        copies = n_heads if self.blocks.ndim == 2 else 1
        return copies * self.block_q * self.block_kv * int(self.cover(seq_q, seq_kv).visited.sum())

    def _pairs(self, seq_q: int, seq_kv: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Pairs of each block [nq, nk] that causality leaves, and all its pairs inside the sequence."""
        row = np.arange(0, seq_q, self.block_q, dtype=np.int64)[:, None]
        column = np.arange(0, seq_kv, self.block_kv, dtype=np.int64)[None, :]
        rows, columns = np.minimum(row + self.block_q, seq_q) - row, np.minimum(column + self.block_kv, seq_kv) - column
        if not self.causal:
            return rows * columns, rows * columns
        # A query `ahead` of the block's first key sees clip(ahead + 1, 0, columns) of its keys: sum these over rows.
        ahead = row + seq_kv - seq_q - column
        return _ramp(ahead + rows, columns) - _ramp(ahead, columns), rows * columns

    def _check_fits(self, seq_q: int, seq_kv: int) -> None:
        _check_lengths(seq_q=seq_q, seq_kv=seq_kv)
        needed = (-(-seq_q // self.block_q), -(-seq_kv // self.block_kv))
        if self.blocks.shape[-2:] != needed:
            raise ValueError(
                f"blocks must be [{needed[0]}, {needed[1]}] for seq_q={seq_q}, seq_kv={seq_kv} in blocks of "
                f"{self.block_q} x {self.block_kv}, got {list(self.blocks.shape[-2:])}; give one entry per block"
            )


def useful_scores(heads: Iterable[HeadPattern], seq_q: int, seq_kv: int) -> int:
    """Unmasked query-key pairs of one sequence, summed over the given heads, in closed form."""
    _check_lengths(seq_q=seq_q, seq_kv=seq_kv)
    total = 0
    for head, copies in Counter(heads).items():
        if head.kind == "full":
            pairs = seq_q * seq_kv
        else:
            pairs = _pairs_before(head, seq_kv) - _pairs_before(head, max(0, seq_kv - seq_q))
        total += copies * pairs
    return total


def visited_scores(
    heads: Iterable[HeadPattern],
    seq_q: int,
    seq_kv: int,
    *,
    block_q: int = 64,
    block_kv: int = 64,
    order: Order = "residue",
) -> int:
    """Query-key pairs in all blocks of [block_q, block_kv] that hold an unmasked pair, summed over heads.

    Blocks count whole, also where they stick out over the end of a sequence, since a kernel computes whole
    tiles. Order "residue" is what is run: `column` heads are cut into blocks within each residue class (Child et
    al. 2019 transpose the sequence likewise). "natural" keeps the tokens in place, where such a head visits nearly
    everything. Other kinds are the same in both.
    """
    _check_lengths(seq_q=seq_q, seq_kv=seq_kv, block_q=block_q, block_kv=block_kv)
    if order not in ("residue", "natural"):
        raise ValueError(f"order must be residue or natural, got {order!r}; use residue for what is run")
    causal = HeadPattern("causal")
    total = 0
    for head, copies in Counter(heads).items():
        if head.kind == "column" and order == "residue":
            blocks = sum(
                part.residues
                * int(_visited_blocks(causal, part.keys - part.first_query, part.keys, block_q, block_kv).sum())
                for part in residue_classes(head.stride, seq_q, seq_kv)
            )
        else:
            blocks = int(_visited_blocks(head, seq_q, seq_kv, block_q, block_kv).sum())
        total += copies * block_q * block_kv * blocks
    return total


def _ramp(x: NDArray[np.int64], top: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sum of clip(t, 0, top) over integers t up to x."""
    rising = np.clip(x, 0, top)
    total: NDArray[np.int64] = rising * (rising + 1) // 2 + np.maximum(x - top, 0) * top
    return total


def _pairs_before(head: HeadPattern, n: int) -> int:
    """Unmasked pairs of the queries at positions 0 to n - 1, for every kind but full."""
    if head.kind == "causal":
        return n * (n + 1) // 2
    if head.kind == "window":
        growing = min(n, head.window)
        behind = n - growing  # queries with keys behind their window: 1, 2, ... of them, of which n_global are seen
        few = min(behind, head.n_global)
        seen_behind = few * (few + 1) // 2 + (behind - few) * head.n_global
        return growing * (growing + 1) // 2 + behind * head.window + seen_behind
    # a query at position p has p // stride whole strides behind it
    whole, rest = divmod(n, head.stride)
    if head.kind == "column":
        return head.stride * whole * (whole + 1) // 2 + rest * (whole + 1)
    local = whole * head.stride * (head.stride + 1) // 2 + rest * (rest + 1) // 2
    strides_behind = head.stride * whole * (whole - 1) // 2 + rest * whole
    return local + head.summary * strides_behind


def _visited_blocks(head: HeadPattern, seq_q: int, seq_kv: int, block_q: int, block_kv: int) -> NDArray[np.int64]:
    """Key blocks with an unmasked pair, for each block of queries: [ceil(seq_q / block_q)]."""
    row = np.arange(0, seq_q, block_q, dtype=np.int64)
    first = row + seq_kv - seq_q  # positions of the first and last query of each block
    last = np.minimum(row + block_q, seq_q) - 1 + seq_kv - seq_q
    if head.kind == "full":
        return np.full(len(row), -(-seq_kv // block_kv), dtype=np.int64)
    first = np.maximum(first, 0)
    causal = np.where(last >= 0, last // block_kv + 1, 0)
    if head.kind == "causal":
        return causal
    if head.kind == "window":
        oldest = np.maximum(first - head.window + 1, 0) // block_kv
        # A global block is visited by its own right where it lies before the window and holds a key before the last
        # query's position; every key there is, since it lies before the window.
        return np.where(last >= 0, causal - oldest + np.minimum(oldest, -(-head.n_global // block_kv)), 0)
    if head.kind == "column":
        return _visited_column_blocks(head.stride, first, last, causal, block_kv)
    # the keys from the start of the first query's own block on are dense; before it, summary columns only
    dense_from = first // head.stride * head.stride // block_kv
    edge = np.minimum(np.arange(-(-seq_kv // block_kv) + 1, dtype=np.int64) * block_kv, seq_kv)
    columns_before = edge // head.stride * head.summary + np.clip(
        edge % head.stride - head.summary_start, 0, head.summary
    )
    blocks_with_summary = np.concatenate([[0], np.cumsum(np.diff(columns_before) > 0)])
    return np.where(last >= 0, causal - dense_from + blocks_with_summary[dense_from], 0)


def _visited_column_blocks(
    stride: int, first: NDArray[np.int64], last: NDArray[np.int64], causal: NDArray[np.int64], block_kv: int
) -> NDArray[np.int64]:
    """Visited key blocks of a `column` head for queries at positions [first, last], block by block."""
    blocks = np.zeros_like(causal)
    lowest_counted = causal.copy()
    for back in range(0, int(last.max()) + 1, stride):
        # the keys `back` positions behind these queries fill a run, and runs come from high to low
        reached = last >= back
        low = np.maximum(first - back, 0) // block_kv
        high = np.minimum((last - back) // block_kv, lowest_counted - 1)
        blocks += np.where(reached, np.maximum(high - low + 1, 0), 0)
        lowest_counted = np.where(reached, low, lowest_counted)
    return blocks


def _check_lengths(**lengths: int) -> None:
    for name, value in lengths.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; give a larger {name}")
