"""Block-sparse attention in Triton, in the interpreter without a GPU: outputs, gradients, what is visited, repeats.

Tiles are at most 32 x 32 there (`flash_triton.INTERPRETED`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck

from cegain.kernels import block_sparse_triton, flash_triton, sparse_lists
from cegain.kernels.block_sparse import _encode, sparse_attention, token_mask, triton_unfit
from cegain.kernels.patterns import BlockMask, HeadPattern, block_cover, head_patterns, visited_scores
from tests.kernels import interpreter
from tests.kernels.closeness import assert_close, results
from tests.kernels.inputs import attention_inputs
from tests.kernels.interpreter import DEVICE

interpreter.mend()
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# As for the CPU path: a probability computed again from the log-sum-exp carries that number's rounding.
ULPS = 8.0
Pattern = BlockMask | Sequence[HeadPattern]
NAMED: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "causal": {"name": "causal"},
    "window": {"name": "window", "window": 20},
    "few global": {"name": "window", "window": 9, "n_global": 7},
    "strided": {"name": "strided", "stride": 3},
    "fixed": {"name": "fixed", "stride": 12, "summary": 3},
}
inputs = functools.partial(attention_inputs, device=DEVICE)


def random_blocks(
    seed: int, seq_q: int, seq_kv: int, heads: int | None, block_q: int, block_kv: int, causal: bool = True,
    density: float = 0.5,
) -> BlockMask:  # fmt: skip
    shape = (-(-seq_q // block_q), -(-seq_kv // block_kv))
    blocks = np.random.default_rng(seed).random(shape if heads is None else (heads, *shape)) < density
    return BlockMask(blocks, block_q, block_kv, causal)


def compare(pattern: Pattern, tensors: tuple[Tensor, ...], **options: Any) -> None:
    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, pattern, backend="triton", **options)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, pattern, backend="reference", **options)

    assert_close(fast, plain, tensors, ["q", "k", "v"], ulps=ULPS if tensors[0].dtype == torch.float32 else 1)


class TestCloseness:
    @pytest.mark.parametrize("name", NAMED)
    def test_named_patterns(self, name: str) -> None:
        compare(head_patterns(n_heads=2, seq_kv=40, **NAMED[name]), inputs(40, 40))

    @pytest.mark.parametrize("name", ["few global", "strided", "fixed"])
    @pytest.mark.parametrize("lengths", [(1, 33), (20, 45), (40, 20)])
    def test_unequal_lengths(self, name: str, lengths: tuple[int, int]) -> None:
        compare(head_patterns(n_heads=2, seq_kv=lengths[1], **NAMED[name]), inputs(*lengths))

    @pytest.mark.parametrize(("block_q", "block_kv"), [(16, 32), (32, 16), (10, 24)])
    @pytest.mark.parametrize("heads", [None, 2])
    def test_masks_of_blocks(self, block_q: int, block_kv: int, heads: int | None) -> None:
        compare(random_blocks(3, 40, 45, heads, block_q, block_kv, causal=heads is None), inputs(40, 45))

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", ["strided", "fixed"])
    def test_half_precision(self, name: str, dtype: torch.dtype) -> None:
        compare(head_patterns(n_heads=2, seq_kv=33, **NAMED[name]), inputs(33, 33, dtype=dtype))

    @pytest.mark.parametrize(("width", "heads", "shared"), [(17, 4, 2), (8, 2, 2)])
    def test_odd_widths_and_groups(self, width: int, heads: int, shared: int) -> None:
        """Heads of one group in different orders of the tokens, and groups that have but one of them."""
        local, column = HeadPattern("window", window=5), HeadPattern("column", stride=4)
        pattern = [local, column, column, HeadPattern("column", stride=3)][:heads]
        compare(pattern, inputs(20, 20, width, heads, shared, batch=2 if heads == 2 else 1))

    @pytest.mark.parametrize("scale", [0.0, -0.5])
    def test_any_scale(self, scale: float) -> None:
        compare(head_patterns("fixed", 2, 33, stride=7), inputs(33, 33), scale=scale)

    @pytest.mark.parametrize(
        "head",
        [
            HeadPattern("window", window=2**31),
            HeadPattern("window", window=2, n_global=2**31),
            HeadPattern("fixed", stride=2**31, summary=1, summary_start=2**31 - 1),
            HeadPattern("column", stride=2**31),
        ],
    )
    def test_lengths_that_32_bits_cannot_hold(self, head: HeadPattern) -> None:
        compare([head], inputs(5, 9))

    def test_any_strides(self) -> None:
        wide = torch.randn(1, 33, 2, 3, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        q, k, v = wide.permute(3, 0, 2, 1, 4)
        pattern = head_patterns("strided", 2, 33, stride=2)
        compare(pattern, (q, k[:, :1].expand(-1, 2, -1, -1), v.transpose(2, 3).contiguous().transpose(2, 3)))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize("lengths", [(1, 1), (31, 31), (32, 32), (33, 33), (1, 111), (111, 63), (63, 111)])
    def test_every_length(self, lengths: tuple[int, int], name: str, dtype: torch.dtype) -> None:
        compare(head_patterns(n_heads=4, seq_kv=lengths[1], **NAMED[name]), inputs(*lengths, 16, 4, 2, dtype=dtype))

    @pytest.mark.slow
    @pytest.mark.parametrize("shared", [1, 2, 4])
    @pytest.mark.parametrize("width", [32, 63, 64, 100, 128, 256])
    @pytest.mark.parametrize("name", ["strided", "fixed", "few global"])
    def test_every_width_and_group(self, name: str, width: int, shared: int) -> None:
        compare(head_patterns(n_heads=4, seq_kv=63, **NAMED[name]), inputs(63, 63, width, 4, shared))

    @pytest.mark.slow
    @pytest.mark.parametrize("blocks", [(16, 64), (64, 16)])
    @pytest.mark.parametrize("name", NAMED)
    def test_oblong_tiles(self, name: str, blocks: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
        meta = dataclasses.replace(flash_triton.INTERPRETED, block_m=blocks[0], block_n=blocks[1])
        for kernel in ("FORWARD", "DQ", "DKV"):
            tuning = dataclasses.replace(getattr(block_sparse_triton, kernel), interpreted=meta)
            monkeypatch.setattr(block_sparse_triton, kernel, tuning)
        for lengths in ((100, 100), (33, 80), (80, 33)):
            compare(head_patterns(n_heads=2, seq_kv=lengths[1], **NAMED[name]), inputs(*lengths))

    @pytest.mark.slow
    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_any_mask_of_blocks(self, data: st.DataObject) -> None:
        lengths = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70))
        pattern = random_blocks(
            data.draw(st.integers(0, 999)), *lengths, data.draw(st.sampled_from([None, 2])),
            data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), data.draw(st.booleans()),
            data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0])),
        )  # fmt: skip
        compare(pattern, inputs(*lengths))


class TestResults:
    def test_log_sum_exp(self) -> None:
        q, k, v = inputs(33, 33)
        pattern = head_patterns("strided", 2, 33)
        numbers, blocks = _encode(pattern, 2)
        lse = torch.ops.ceg.sparse_attention(q, k, v, numbers, blocks, 0.25, "triton")[1]
        want = torch.ops.ceg.sparse_attention(q, k, v, numbers, blocks, 0.25, "torch")[1]
        assert lse.dtype == torch.float32
        torch.testing.assert_close(lse, want, rtol=1e-6, atol=1e-6)

    def test_queries_without_a_key_give_zeros(self) -> None:
        """Some see no block, some a block that lies wholly after them, and some stand before the first position."""
        blocks = np.zeros((5, 3), bool)
        blocks[1:3, 0] = blocks[2, 2] = True
        nothing = BlockMask(np.zeros((5, 3), bool), 8, 12)
        for pattern in (BlockMask(blocks, 8, 12), nothing, [HeadPattern("column", stride=4)] * 2):
            q, k, v = (x.requires_grad_() for x in inputs(40, 30))
            blind = ~token_mask(pattern, 40, 30)[0].any(-1).to(DEVICE)
            assert blind.any()
            out = sparse_attention(q, k, v, pattern, backend="triton")
            assert (out[:, :, blind] == 0).all()
            gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
            assert (gradients[0][:, :, blind] == 0).all()
            assert all(torch.isfinite(g).all() for g in gradients)

    @pytest.mark.parametrize("name", ["strided", "blocks"])
    def test_the_same_bits_again(self, name: str) -> None:
        pattern: Pattern = random_blocks(5, 33, 33, 2, 16, 32)
        if name != "blocks":
            pattern = head_patterns(n_heads=2, seq_kv=33, **NAMED[name])
        tensors = inputs(33, 33)
        grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)

        def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return sparse_attention(q, k, v, pattern, backend="triton")

        first, second = results(op, tensors, grad), results(op, tensors, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_blocks_off_the_lists_are_not_read(self) -> None:
        """NaN in keys and queries that no visited block needs would spread: 0 x NaN is NaN."""
        q, k, v = inputs(64, 64)
        pattern = BlockMask(np.array([[True, False], [False, True]]), 32, 32)
        out, lse = block_sparse_triton.forward(q, k, v, pattern, 0.25)
        want = block_sparse_triton.backward(torch.ones_like(q), q, k, v, out, lse, pattern, 0.25)
        poisoned = [x.clone() for x in (torch.ones_like(q), q, k, v, out, lse)]
        for x in poisoned:
            x[:, :, 32:] = torch.nan
        got = block_sparse_triton.forward(*poisoned[1:4], pattern, 0.25)[0]
        assert torch.equal(got[:, :, :32], out[:, :, :32])
        for g, w in zip(block_sparse_triton.backward(*poisoned, pattern, 0.25), want, strict=True):
            assert torch.equal(g[:, :, :32], w[:, :, :32])


class TestRegistration:
    def test_opcheck(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(5, 9, heads=1))
        rest = (*_encode(random_blocks(0, 5, 9, None, 4, 4), 1), 0.25, "triton")
        opcheck(torch.ops.ceg.sparse_attention.default, (q, k, v, *rest))

    def test_full_graph_compilation(self) -> None:
        tensors = inputs(20, 20)
        pattern = random_blocks(0, 20, 20, None, 16, 16)

        def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return sparse_attention(q, k, v, pattern, backend="triton")

        grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        for got, want in zip(results(compiled, tensors, grad), results(op, tensors, grad), strict=True):
            assert torch.equal(got, want)

    def test_what_the_kernels_do_not_take(self) -> None:
        q, k, v = (x.double() for x in inputs(5, 5))
        with pytest.raises(ValueError, match="its kernel for sparse_attention takes, got float64; use auto or torch"):
            sparse_attention(q, k, v, [HeadPattern("causal")], backend="triton")

    def test_what_the_kernels_cannot_count(self) -> None:
        """Columns far apart in any argument, and a grid's second axis."""
        near = torch.empty(16).expand(1, 1, 1, 16)
        far = torch.empty_strided((1, 1, 1, 16), (1, 1, 1, 2**23), device="meta")
        assert triton_unfit(near, near, near) is None
        for tensors in ((far, near, near), (near, far, near), (near, near, far)):
            assert triton_unfit(*tensors) == "strides of millions of entries"
        many = near.expand(65_536, -1, -1, -1)
        assert triton_unfit(many, many, many) == "B = 65536 sequences, more than 65535"
        assert triton_unfit(many[1:], many[1:], many[1:]) is None

    def test_gradients_that_lie_far_apart_are_copied(self, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[Tensor] = []
        launch = block_sparse_triton._launch

        def recorded(kernel: Any, tiles: Tensor, tried: Any, q: Tensor, *arguments: Any) -> None:
            seen.append(arguments[6])
            launch(kernel, tiles, tried, q, *arguments)

        monkeypatch.setattr(block_sparse_triton, "_launch", recorded)
        monkeypatch.setattr(block_sparse_triton, "too_far_apart", lambda grad: True)
        q, k, v = (x.requires_grad_() for x in inputs(5, 5))
        out = sparse_attention(q, k, v, [HeadPattern("causal")], backend="triton")
        out.backward(torch.ones(1, device=DEVICE).expand(out.shape))
        assert all(grad.is_contiguous() for grad in seen[1:])


class TestLists:
    @settings(max_examples=150, deadline=None)
    @given(st.data())
    def test_tiles_of_heads(self, data: st.DataObject) -> None:
        """Visited tiles are those with an unmasked pair; full ones have no masked one and end before the last key."""
        stride = data.draw(st.integers(1, 40))
        summary = data.draw(st.integers(1, stride))
        kind: Any = data.draw(st.sampled_from(["full", "causal", "window", "fixed"]))
        n_global = data.draw(st.integers(0, 30)) if kind == "window" else 0
        start = data.draw(st.integers(0, stride - summary))
        head = HeadPattern(kind, data.draw(st.integers(1, 60)), stride, summary, start, n_global)
        seq_q, seq_kv = data.draw(st.integers(1, 120)), data.draw(st.integers(1, 120))
        block_q, block_kv = data.draw(st.sampled_from([4, 16, 32])), data.draw(st.sampled_from([4, 16, 32]))
        found = sparse_lists.cover(head, seq_q, seq_kv, seq_kv - seq_q, block_q, block_kv)
        want = block_cover(head, seq_q, seq_kv, block_q, block_kv)
        assert (found.visited == want.visited).all()
        unmasked = want.full & (np.arange(0, seq_kv, block_kv) + block_kv <= seq_kv)
        assert not (found.full & ~unmasked).any()
        assert kind == "fixed" or (found.full == unmasked).all()

    @settings(max_examples=100, deadline=None)
    @given(st.data())
    def test_tiles_of_masks(self, data: st.DataObject) -> None:
        """Tiles of any size against blocks of any size: nothing is missed; exact where tiles lie inside blocks."""
        seq_q, seq_kv = data.draw(st.integers(1, 100)), data.draw(st.integers(1, 100))
        sides = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 40))
        pattern = random_blocks(data.draw(st.integers(0, 999)), seq_q, seq_kv, 2, *sides, data.draw(st.booleans()))
        tile_q, tile_kv = data.draw(st.sampled_from([4, 16, 32])), data.draw(st.sampled_from([4, 16, 32]))
        found = sparse_lists.block_mask_cover(pattern, seq_q, seq_kv, tile_q, tile_kv)
        seen = pattern.mask(seq_q, seq_kv)
        inside = sides[0] % tile_q == 0 and sides[1] % tile_kv == 0
        for h, i, j in np.ndindex(found.visited.shape):
            tile = seen[h, i * tile_q : (i + 1) * tile_q, j * tile_kv : (j + 1) * tile_kv]
            assert found.visited[h, i, j] >= tile.any()
            assert found.full[h, i, j] <= tile.all()
            assert not inside or found.visited[h, i, j] == tile.any()

    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize("lengths", [(100, 100), (30, 100), (100, 30)])
    def test_work_is_what_the_pattern_visits(self, name: str, lengths: tuple[int, int]) -> None:
        """Both ways, and each query is in one tile, each key of a head in at most one of an order."""
        heads = head_patterns(n_heads=4, seq_kv=lengths[1], **NAMED[name])
        lists = sparse_lists.build(heads, 4, 2, *lengths, 16, 8)
        assert lists.visited * 16 * 8 == visited_scores(heads, *lengths, block_q=16, block_kv=8)
        assert sum(int(order.segments[..., 1:].sum()) for order in lists.key_tiles) == lists.visited
        queries = np.zeros((4, lengths[0]), int)
        for head, sequence, tile, *_ in lists.query_tiles:
            step, base, _, rows, _, _ = lists.sequences[sequence]
            queries[head, base + step * np.arange(tile * 16, min(tile * 16 + 16, rows))] += 1
        assert (queries == 1).all()
        for order in lists.key_tiles:
            keys = np.zeros((2, lengths[1]), int)
            for head, sequence, tile in order.tiles:
                step, _, base, _, rows, _ = lists.sequences[sequence]
                keys[head, base + step * np.arange(tile * 8, min(tile * 8 + 8, rows))] += 1
            assert keys.max() == 1


class TestTiles:
    @pytest.mark.parametrize(
        ("block_q", "block_kv", "tile"),
        [(64, 64, (64, 64)), (128, 256, (128, 64)), (48, 96, (16, 32)), (100, 24, (32, 32)), (8, 1, (32, 32))],
    )
    def test_tiles_fit_blocks(self, block_q: int, block_kv: int, tile: tuple[int, int]) -> None:
        meta = block_sparse_triton.fitted(
            flash_triton.Meta(128, 64, 8, 3), random_blocks(0, 999, 999, None, block_q, block_kv), 999
        )
        assert (meta.block_m, meta.block_n) == tile

    def test_small_tiles_of_two_results_keep_their_warps(self) -> None:
        mask, meta = random_blocks(0, 999, 999, None, 64, 64), flash_triton.Meta(32, 128, 8, 2)
        fewest = block_sparse_triton.GRADIENT_WARPS
        assert block_sparse_triton.fitted(meta, random_blocks(0, 999, 999, None, 16, 64), 999) == flash_triton.Meta(
            16, 64, 4, 2
        )
        assert block_sparse_triton.fitted(meta, mask, 999, fewest) == flash_triton.Meta(32, 64, 8, 2)
        small = random_blocks(0, 999, 999, None, 16, 16)
        assert block_sparse_triton.fitted(meta, small, 999, fewest) == flash_triton.Meta(16, 16, 8, 2)

    def test_as_many_queries_keep_their_warps(self) -> None:
        mask, meta = random_blocks(0, 999, 999, None, 128, 16), flash_triton.Meta(128, 64, 8, 3)
        assert block_sparse_triton.fitted(meta, mask, 999) == flash_triton.Meta(128, 16, 8, 3)

    def test_tiles_fit_columns(self) -> None:
        meta = flash_triton.Meta(128, 64, 8, 3)
        heads = head_patterns("strided", 2, 4096)
        assert block_sparse_triton.fitted(meta, heads, 4096).block_m == 64
        assert block_sparse_triton.fitted(meta, head_patterns("fixed", 2, 4096), 4096) == meta

    def test_each_case_is_named_once(self) -> None:
        names = [case.name for case in block_sparse_triton.aot_cases()]
        assert len(set(names)) == len(names)
