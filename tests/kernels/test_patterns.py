"""Attention patterns: counts and covers against brute-force sums over the mask."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cegain.kernels import patterns
from cegain.kernels.patterns import (
    BlockMask,
    HeadPattern,
    block_cover,
    head_patterns,
    mask,
    residue_classes,
    useful_scores,
    visited_scores,
)

NAMES = ["full", "causal", "window", "strided", "fixed"]


def brute_visited(seen: NDArray[np.bool_], block_q: int, block_kv: int) -> int:
    """Pairs in blocks that hold a visible one, block by block."""
    rows, columns = seen.shape
    starts = [(q, k) for q in range(0, rows, block_q) for k in range(0, columns, block_kv)]
    return block_q * block_kv * sum(seen[q : q + block_q, k : k + block_kv].any() for q, k in starts)


def brute_residue_visited(head: HeadPattern, seq_q: int, seq_kv: int, block_q: int, block_kv: int) -> int:
    """The same with the tokens of each residue class brought together, queries without a position left out."""
    seen = mask(head, seq_q, seq_kv)[max(0, seq_q - seq_kv) :]
    position = np.arange(max(0, seq_kv - seq_q), seq_kv)
    residues = range(head.stride)
    return sum(
        brute_visited(seen[position % head.stride == r][:, r :: head.stride], block_q, block_kv) for r in residues
    )


@st.composite
def heads(draw: st.DrawFn) -> HeadPattern:
    kind: Any = draw(st.sampled_from(["full", "causal", "window", "column", "fixed"]))
    stride = draw(st.integers(1, 40))
    summary = draw(st.integers(1, stride))
    start = draw(st.integers(0, stride - summary))
    n_global = draw(st.integers(0, 40)) if kind == "window" else 0
    return HeadPattern(kind, draw(st.integers(1, 80)), stride, summary, start, n_global)


class TestPatterns:
    @pytest.mark.parametrize("name", NAMES)
    @pytest.mark.parametrize("tokens", [1, 2, 63, 64, 65, 257])
    def test_counts_are_exact(self, name: Any, tokens: int) -> None:
        heads = head_patterns(name, 5, tokens)
        masks = [mask(head, tokens, tokens) for head in heads]
        assert useful_scores(heads, tokens, tokens) == sum(int(seen.sum()) for seen in masks)
        for blocks in ((64, 64), (16, 32), (128, 64)):
            sizes: Any = {"block_q": blocks[0], "block_kv": blocks[1]}
            visited = visited_scores(heads, tokens, tokens, **sizes, order="natural")
            assert visited == sum(brute_visited(seen, *blocks) for seen in masks)

    @settings(max_examples=150, deadline=None)
    @given(heads(), *(st.integers(1, 70),) * 2, *(st.integers(1, 30),) * 2)
    def test_counts_are_exact_for_any_lengths(
        self, head: HeadPattern, seq_q: int, seq_kv: int, block_q: int, block_kv: int
    ) -> None:
        seen = mask(head, seq_q, seq_kv)
        sizes: Any = {"block_q": block_q, "block_kv": block_kv}
        assert useful_scores([head], seq_q, seq_kv) == seen.sum()
        natural = brute_visited(seen, block_q, block_kv)
        assert visited_scores([head], seq_q, seq_kv, **sizes, order="natural") == natural
        if head.kind == "column":
            natural = brute_residue_visited(head, seq_q, seq_kv, block_q, block_kv)
        assert visited_scores([head], seq_q, seq_kv, **sizes) == natural

    @settings(max_examples=80, deadline=None)
    @given(heads(), *(st.integers(1, 70),) * 2, *(st.integers(1, 30),) * 2)
    def test_a_cover_is_what_the_mask_says(
        self, head: HeadPattern, seq_q: int, seq_kv: int, block_q: int, block_kv: int
    ) -> None:
        cover = block_cover(head, seq_q, seq_kv, block_q, block_kv)
        seen = mask(head, seq_q, seq_kv)
        rows, columns = range(0, seq_q, block_q), range(0, seq_kv, block_kv)
        parts = [[seen[i : i + block_q, j : j + block_kv] for j in columns] for i in rows]
        assert cover.visited.tolist() == [[bool(part.any()) for part in row] for row in parts]
        assert cover.full.tolist() == [[bool(part.all()) for part in row] for row in parts]

    @settings(max_examples=100, deadline=None)
    @given(st.integers(1, 20), *(st.integers(1, 70),) * 2)
    def test_residue_classes_hold_every_query_that_has_a_position(self, stride: int, seq_q: int, seq_kv: int) -> None:
        classes = residue_classes(stride, seq_q, seq_kv)
        assert len(classes) <= 3
        found = [
            part.first + r + m * stride
            for part in classes
            for r in range(part.residues)
            for m in range(part.first_query, part.keys)
        ]
        assert sorted(found) == list(range(max(0, seq_kv - seq_q), seq_kv))
        assert all(part.first + r + part.keys * stride >= seq_kv for part in classes for r in range(part.residues))

    def test_residue_order_saves_what_natural_order_wastes(self) -> None:
        """4096 tokens as 64 columns of 64: one block each, where nearly half of all 64 x 64 blocks hold a pair."""
        column = [HeadPattern("column", stride=64)]
        assert visited_scores(column, 4096, 4096) == 64 * 64**2
        assert visited_scores(column, 4096, 4096, order="natural") == (64 * 65 // 2) * 64**2
        assert useful_scores(column, 4096, 4096) == 64 * (64 * 65 // 2)

    def test_global_tokens_by_hand(self) -> None:
        """Window 2, two global tokens: query 1 sees what is before it, query 5 the global tokens and its window."""
        (head,) = head_patterns("window", 1, 6, window=2, n_global=2)
        seen = mask(head, 6, 6)
        assert [np.flatnonzero(row).tolist() for row in seen[[0, 1, 2, 5]]] == [[0], [0, 1], [0, 1, 2], [0, 1, 4, 5]]

    @pytest.mark.parametrize("name", NAMES)
    def test_one_decoding_step_is_the_last_row(self, name: Any) -> None:
        for head in head_patterns(name, 4, 50):
            assert (mask(head, 1, 50) == mask(head, 50, 50)[-1:]).all()

    @pytest.mark.parametrize("name", NAMES[1:])
    def test_every_query_sees_itself_and_nothing_later(self, name: Any) -> None:
        for head in head_patterns(name, 4, 130):
            seen = mask(head, 130, 130)
            assert seen.diagonal().all()
            assert not np.triu(seen, 1).any()

    def test_masks_follow_the_paper(self) -> None:
        """Rows of Child et al. 2019, section 4.3, by hand: query 6, stride 4, one summary column."""
        local, column = head_patterns("strided", 2, 8, stride=4)
        assert np.flatnonzero(mask(local, 8, 8)[6]).tolist() == [3, 4, 5, 6]
        assert np.flatnonzero(mask(column, 8, 8)[6]).tolist() == [2, 6]
        first, second = head_patterns("fixed", 2, 8, stride=4, summary=1)
        assert np.flatnonzero(mask(first, 8, 8)[6]).tolist() == [3, 4, 5, 6]
        assert np.flatnonzero(mask(second, 8, 8)[6]).tolist() == [2, 4, 5, 6]

    def test_a_column_and_a_local_head_together_reach_every_position_in_two_steps(self) -> None:
        local, column = head_patterns("strided", 2, 64)
        reach = mask(local, 64, 64).astype(int) @ mask(column, 64, 64).astype(int)
        assert ((reach > 0) == np.tri(64, dtype=bool)).all()

    def test_half_of_the_strided_heads_are_local(self) -> None:
        kinds = [head.kind for head in head_patterns("strided", 5, 64)]
        assert kinds == ["window"] * 3 + ["column"] * 2

    @pytest.mark.parametrize(("tokens", "stride"), [(1, 1), (256, 16), (1024, 32), (12_160, 128), (12_288, 128)])
    def test_default_stride(self, tokens: int, stride: int) -> None:
        assert patterns.default_stride(tokens) == stride

    @pytest.mark.parametrize("name", NAMES)
    def test_a_million_tokens_need_no_mask(self, name: Any) -> None:
        tokens = 1_000_000
        heads = head_patterns(name, 8, tokens)
        useful = useful_scores(heads, tokens, tokens)
        visited = visited_scores(heads, tokens, tokens, block_q=128, block_kv=128)
        assert useful <= visited
        if name in ("strided", "fixed"):
            # of order n sqrt(n): more than local heads alone, less than 32 summary columns of every block
            assert 8 * tokens**1.5 / 2 < useful < 8 * tokens**1.5 * 33

    def test_bad_lengths_are_refused(self) -> None:
        with pytest.raises(ValueError, match="pattern must be one of"):
            head_patterns("sliding", 2, 8)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="window must be at least 1, got 0"):
            head_patterns("window", 2, 8, window=0)
        with pytest.raises(ValueError, match="stride must be at least 1, got 0"):
            head_patterns("strided", 2, 8, stride=0)
        with pytest.raises(ValueError, match="summary columns must lie inside a block of 4, got 5"):
            head_patterns("fixed", 2, 8, stride=4, summary=5)
        with pytest.raises(ValueError, match="n_global must be 0 unless pattern is window, got 3 for causal"):
            head_patterns("causal", 2, 8, n_global=3)
        with pytest.raises(ValueError, match=r"n_global must be at least 0, .* got -1"):
            HeadPattern("window", window=2, n_global=-1)
        with pytest.raises(ValueError, match="order must be residue or natural, got 'column'"):
            visited_scores(head_patterns("causal", 2, 8), 8, 8, order="column")  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="seq_q must be at least 1, got 0"):
            useful_scores(head_patterns("causal", 2, 8), 0, 8)


class TestBlockMask:
    @settings(max_examples=80, deadline=None)
    @given(st.data())
    def test_counts_and_cover_are_what_the_mask_says(self, data: st.DataObject) -> None:
        seq_q, seq_kv = data.draw(st.integers(1, 50)), data.draw(st.integers(1, 50))
        block_q, block_kv = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
        per_head, causal, seed = data.draw(st.booleans()), data.draw(st.booleans()), data.draw(st.integers(0, 99))
        shape = (*((3,) if per_head else ()), -(-seq_q // block_q), -(-seq_kv // block_kv))
        pattern = BlockMask(np.random.default_rng(seed).random(shape) < 0.5, block_q, block_kv, causal)
        seen = np.broadcast_to(pattern.mask(seq_q, seq_kv), (3, seq_q, seq_kv))
        query, key = np.arange(seq_kv - seq_q, seq_kv), np.arange(seq_kv)
        for h, i, j in np.ndindex(*seen.shape):
            block = pattern.blocks[(h, i // block_q, j // block_kv) if per_head else (i // block_q, j // block_kv)]
            assert seen[h, i, j] == (block and (not causal or key[j] <= query[i]))
        assert pattern.useful_scores(3, seq_q, seq_kv) == seen.sum()
        assert pattern.visited_scores(3, seq_q, seq_kv) == sum(brute_visited(s, block_q, block_kv) for s in seen)
        cover = pattern.cover(seq_q, seq_kv)
        for (h, i, j), _ in np.ndenumerate(np.broadcast_to(cover.full, (3, *cover.full.shape[-2:]))):
            at = (h, i, j) if per_head else (i, j)
            part = seen[h, i * block_q : (i + 1) * block_q, j * block_kv : (j + 1) * block_kv]
            assert (cover.visited[at], cover.full[at]) == (part.any(), part.all())

    def test_bad_ones_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"blocks must be bool of shape .* got int64 \[2\]"):
            BlockMask(np.array([1, 0]), 16, 16)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="block_q must be at least 1, got 0"):
            BlockMask(np.ones((2, 2), bool), 0, 16)
        with pytest.raises(ValueError, match=r"blocks must be \[2, 3\] for seq_q=32, seq_kv=33 .* got \[2, 2\]"):
            BlockMask(np.ones((2, 2), bool), 16, 16).mask(32, 33)
