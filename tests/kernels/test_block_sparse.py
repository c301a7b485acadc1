"""Sparse attention against its plain definition, under every pattern; what torch's tools see of it; what it refuses."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cegain.kernels import costs, sparse_torch
from cegain.kernels.block_sparse import _encode, sparse_attention, token_mask
from cegain.kernels.patterns import BlockMask, HeadPattern, head_patterns, useful_scores
from tests.kernels.closeness import assert_close, results

Pattern = BlockMask | Sequence[HeadPattern]
# A probability computed again from the log-sum-exp carries that number's rounding: up to |lse| / 2 ulps, with lse < 8
# here; and the terms that it weighs are larger than their sum.
ULPS = 8.0
# Torch's CPU kernel, which serves all heads that are not gathered, errs most: 18 ulps where the plain operation has 4.
KERNEL_ULPS = 16.0
NAMED: dict[str, dict[str, Any]] = {
    "full": {"name": "full"},
    "causal": {"name": "causal"},
    "window": {"name": "window", "window": 20},
    "few global": {"name": "window", "window": 20, "n_global": 7},
    "many global": {"name": "window", "window": 5, "n_global": 45},
    "strided": {"name": "strided"},
    "strided far": {"name": "strided", "stride": 100},
    "fixed": {"name": "fixed"},
    "fixed far": {"name": "fixed", "stride": 150, "summary": 3},
}


def inputs(
    batch: int, heads: int, heads_kv: int, seq_q: int, seq_kv: int, width: int, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seq_q + 7 * seq_kv + width)
    shapes = [(batch, heads, seq_q, width), *[(batch, heads_kv, seq_kv, width)] * 2]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def random_blocks(seed: int, seq_q: int, seq_kv: int, heads: int | None = None, **settings: Any) -> BlockMask:
    pattern = BlockMask(np.ones((1, 1), bool), settings["block_q"], settings["block_kv"], settings.get("causal", True))
    shape = (-(-seq_q // pattern.block_q), -(-seq_kv // pattern.block_kv))
    density = settings.get("density", 0.4)
    blocks = np.random.default_rng(seed).random(shape if heads is None else (heads, *shape)) < density
    return dataclasses.replace(pattern, blocks=blocks)


def check(pattern: Pattern, tensors: Sequence[Tensor]) -> None:
    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, pattern, backend="torch")

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, pattern, backend="reference")

    if tensors[0].dtype == torch.float64:
        grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        for got, want in zip(results(fast, tensors, grad), results(plain, tensors, grad), strict=True):
            assert float((got - want).abs().max()) <= 1e-13
    else:
        gathered = isinstance(pattern, BlockMask) or all(map(sparse_torch._is_gathered, pattern))
        ulps = 1.0 if tensors[0].dtype != torch.float32 else ULPS if gathered else KERNEL_ULPS
        assert_close(fast, plain, tensors, ["q", "k", "v"], ulps=ulps)


class TestAgainstTheDefinition:
    @pytest.mark.parametrize("name", NAMED)
    @pytest.mark.parametrize(
        ("seq_q", "seq_kv", "width", "heads_kv"),
        [(1, 1, 32, 4), (63, 63, 60, 2), (111, 111, 100, 1), (257, 257, 64, 4), (1, 257, 128, 2), (50, 111, 64, 1),
         (130, 65, 32, 2)],
    )  # fmt: skip
    def test_named_patterns(self, name: str, seq_q: int, seq_kv: int, width: int, heads_kv: int) -> None:
        pattern = head_patterns(n_heads=4, seq_kv=seq_kv, **NAMED[name])
        check(pattern, inputs(2, 4, heads_kv, seq_q, seq_kv, width))

    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("heads", [None, 4])
    @pytest.mark.parametrize(("seq_q", "seq_kv", "heads_kv"), [(1, 257, 1), (111, 63, 2), (257, 257, 4), (63, 111, 2)])
    def test_masks_of_blocks(self, causal: bool, heads: int | None, seq_q: int, seq_kv: int, heads_kv: int) -> None:
        pattern = random_blocks(3, seq_q, seq_kv, heads, block_q=16, block_kv=24, causal=causal)
        check(pattern, inputs(2, 4, heads_kv, seq_q, seq_kv, 60))

    @settings(max_examples=40, deadline=None)
    @given(st.data())
    def test_any_mask_of_blocks(self, data: st.DataObject) -> None:
        seq_q, seq_kv, block_q, block_kv, seed, heads_kv = (
            data.draw(st.integers(1, 70)), data.draw(st.integers(1, 70)), data.draw(st.integers(1, 40)),
            data.draw(st.integers(1, 40)), data.draw(st.integers(0, 999)), data.draw(st.sampled_from([1, 2, 4])),
        )  # fmt: skip
        heads, causal = data.draw(st.sampled_from([None, 4])), data.draw(st.booleans())
        density = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
        pattern = random_blocks(
            seed, seq_q, seq_kv, heads, block_q=block_q, block_kv=block_kv, causal=causal, density=density
        )
        check(pattern, inputs(2, 4, heads_kv, seq_q, seq_kv, 32, torch.float64))

    @settings(max_examples=25, deadline=None)
    @given(st.data())
    def test_any_heads_side_by_side(self, data: st.DataObject) -> None:
        def head() -> HeadPattern:
            kind: Any = data.draw(st.sampled_from(["full", "causal", "window", "column", "fixed"]))
            stride = data.draw(st.integers(1, 80))
            summary = data.draw(st.integers(1, stride))
            n_global = data.draw(st.integers(0, 50)) if kind == "window" else 0
            start = data.draw(st.integers(0, stride - summary))
            return HeadPattern(kind, data.draw(st.integers(1, 80)), stride, summary, start, n_global)

        kinds = [head(), head()]
        pattern = [kinds[i] for i in data.draw(st.lists(st.integers(0, 1), min_size=4, max_size=4))]
        seq_q, seq_kv = data.draw(st.integers(1, 90)), data.draw(st.integers(1, 90))
        check(pattern, inputs(1, 4, data.draw(st.sampled_from([1, 2, 4])), seq_q, seq_kv, 32, torch.float64))

    @pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize("name", ["strided", "fixed", "few global", "blocks"])
    def test_other_dtypes(self, dtype: torch.dtype, name: str) -> None:
        blocks = random_blocks(0, 65, 65, block_q=16, block_kv=16)
        pattern = blocks if name == "blocks" else head_patterns(n_heads=4, seq_kv=65, **NAMED[name])
        check(pattern, inputs(1, 4, 2, 65, 65, 32, dtype))

    def test_one_pattern_serves_all_heads_and_a_scale_is_used(self) -> None:
        q, k, v = inputs(2, 4, 2, 40, 40, 32)
        head = HeadPattern("column", stride=7)
        out = sparse_attention(q, k, v, [head], scale=0.5)
        assert torch.equal(out, sparse_attention(q, k, v, [head] * 4, scale=0.5))
        torch.testing.assert_close(out, sparse_attention(q, k, v, [head], scale=0.5, backend="reference"))

    def test_any_strides(self) -> None:
        """Inputs as a model has them, [B, T, H, D] with heads moved forward, and a gradient that is expanded."""
        pattern = [*head_patterns("strided", 2, 50), *head_patterns("fixed", 2, 50)]
        tensors = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in inputs(2, 4, 2, 50, 50, 32)]
        found, plain = (
            [x.clone(memory_format=torch.preserve_format).requires_grad_() for x in tensors] for _ in range(2)
        )
        out = sparse_attention(found[0], found[1], found[2], pattern)
        want = sparse_attention(plain[0], plain[1], plain[2], pattern, backend="reference")
        torch.testing.assert_close(out, want)
        for got, expected in zip(
            torch.autograd.grad(out.sum(), found), torch.autograd.grad(want.sum(), plain), strict=True
        ):
            torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)

    @pytest.mark.parametrize("name", ["strided", "fixed", "few global", "blocks"])
    def test_cut_into_parts_where_scores_are_many(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sparse_torch.SCORES_AT_ONCE, "cpu", 5000)
        blocks = random_blocks(5, 130, 130, 4, block_q=32, block_kv=16)
        pattern = blocks if name == "blocks" else head_patterns(n_heads=4, seq_kv=130, **NAMED[name])
        check(pattern, inputs(2, 4, 2, 130, 130, 32))

    def test_queries_without_a_key_give_zeros(self) -> None:
        """Some see no block, some a block that lies wholly after them, and some stand before the first position."""
        q, k, v = (x.requires_grad_() for x in inputs(1, 4, 4, 40, 30, 32))
        blocks = np.zeros((5, 3), bool)
        blocks[1:3, 0] = blocks[2, 2] = True
        pattern = BlockMask(blocks, 8, 12)
        blind = ~token_mask(pattern, 40, 30)[0].any(-1)
        assert 0 < int(blind.sum()) < 40
        out = sparse_attention(q, k, v, pattern)
        assert (out[:, :, blind] == 0).all()
        assert (out[:, :, ~blind] != 0).all()
        gradients = torch.autograd.grad(out.square().sum(), (q, k, v))
        assert (gradients[0][:, :, blind] == 0).all()
        assert all(torch.isfinite(g).all() for g in gradients)

    @pytest.mark.parametrize("name", ["strided", "fixed", "few global", "blocks"])
    def test_the_same_bits_again(self, name: str) -> None:
        blocks = random_blocks(5, 130, 130, block_q=32, block_kv=16)
        pattern = blocks if name == "blocks" else head_patterns(n_heads=4, seq_kv=130, **NAMED[name])
        runs = []
        for _ in range(2):
            leaves = [x.requires_grad_() for x in inputs(2, 4, 2, 130, 130, 32)]
            out = sparse_attention(leaves[0], leaves[1], leaves[2], pattern)
            runs.append([out, *torch.autograd.grad(out.square().sum(), leaves)])
        assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


class TestWork:
    @pytest.mark.parametrize("name", ["strided", "fixed", "few global"])
    def test_work_follows_the_pattern(self, name: str) -> None:
        """Computed scores stay near the useful ones, and the tiles hold each unmasked score once."""
        heads = head_patterns(n_heads=4, seq_kv=2048, **NAMED[name])
        useful = useful_scores(heads, 2048, 2048)
        computed = sparse_torch.computed_scores(heads, 4, 2048, 2048)
        assert useful <= computed <= (3 if name == "few global" else 1.5) * useful

    def test_work_on_blocks_is_what_is_visited(self) -> None:
        pattern = random_blocks(1, 1024, 1024, 4, block_q=64, block_kv=32, density=0.1)
        assert sparse_torch.computed_scores(pattern, 4, 1024, 1024) == pattern.visited_scores(4, 1024, 1024)

    @pytest.mark.parametrize("name", ["few global", "many global", "fixed", "fixed far", "blocks", "shared blocks"])
    def test_tiles_hold_each_unmasked_score_once_and_no_masked_one(self, name: str) -> None:
        for seq_q, seq_kv in ((130, 130), (1, 90), (40, 100), (100, 40)):
            pattern: Pattern
            if name in NAMED:
                pattern = head_patterns(n_heads=4, seq_kv=seq_kv, **NAMED[name])
                work = sparse_torch.head_tiles(pattern, seq_q, seq_kv)
            else:
                heads = 4 if name == "blocks" else None
                pattern = random_blocks(2, seq_q, seq_kv, heads, block_q=16, block_kv=24)
                work = sparse_torch.block_tiles(pattern, 4, seq_q, seq_kv)
            count = np.zeros((4, seq_q, seq_kv), int)
            for tiles in work:
                length, masked = tiles.seen.shape[1:]
                seen = np.ones((len(tiles.heads), length, tiles.keys.shape[1]), bool)
                seen[..., seen.shape[-1] - masked :] = tiles.seen
                for h, first, keys, part in zip(tiles.heads, tiles.queries, tiles.keys, seen, strict=True):
                    np.add.at(count[h], np.ix_(np.arange(first, first + length), keys), part)
            assert (count == token_mask(pattern, seq_q, seq_kv).expand(4, -1, -1).numpy()).all()


class TestTorchSeesIt:
    PATTERNS: dict[str, Pattern] = {  # noqa: RUF012
        "strided": head_patterns("strided", 4, 70),
        "fixed": head_patterns("fixed", 4, 70),
        "global": head_patterns("window", 4, 70, window=9, n_global=3),
        "blocks": random_blocks(0, 70, 70, block_q=16, block_kv=16),
    }

    @pytest.mark.parametrize("name", ["strided", "blocks"])
    def test_opcheck(self, name: str) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(2, 4, 2, 70, 70, 16))
        rest = (*_encode(self.PATTERNS[name], 4), 0.25, "torch")
        torch.library.opcheck(torch.ops.ceg.sparse_attention.default, (q, k, v, *rest))
        with torch.no_grad():
            out, lse = torch.ops.ceg.sparse_attention(q, k, v, *rest)
            saved = [x.detach() for x in (torch.randn_like(out), q, k, v, out, lse)]
        torch.library.opcheck(torch.ops.ceg.sparse_attention_backward.default, (*saved, *rest))

    @pytest.mark.parametrize("name", PATTERNS)
    def test_full_graph_compile(self, name: str) -> None:
        torch._dynamo.reset()
        leaves = [x.requires_grad_() for x in inputs(2, 4, 2, 70, 70, 16)]

        def loss(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return sparse_attention(q, k, v, self.PATTERNS[name]).square().sum()

        compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
        for batch in (2, 3):  # the second one is compiled for any batch
            leaves = [x[:1].detach().expand(batch, -1, -1, -1).clone().requires_grad_() for x in leaves]
            for got, want in zip(
                torch.autograd.grad(compiled(*leaves), leaves), torch.autograd.grad(loss(*leaves), leaves), strict=True
            ):
                assert torch.equal(got, want)

    @pytest.mark.parametrize("name", PATTERNS)
    def test_torch_counts_useful_flops(self, name: str) -> None:
        pattern = self.PATTERNS[name]
        q, k, v = (x.requires_grad_() for x in inputs(2, 4, 2, 70, 70, 16))
        shape: dict[str, int] = {"batch": 2, "heads_q": 4, "heads_kv": 2, "seq_q": 70, "seq_kv": 70, "head_dim": 16}
        useful = 4 * int(token_mask(pattern, 70, 70).sum()) // len(token_mask(pattern, 70, 70))
        for backend, scores in (("torch", useful), ("reference", 4 * 70 * 70)):
            with FlopCounterMode(display=False) as forward:
                out = sparse_attention(q, k, v, pattern, backend=backend)  # type: ignore[arg-type]
            with FlopCounterMode(display=False) as backward:
                out.sum().backward()
            for counter, pass_ in ((forward, "fwd"), (backward, "bwd")):
                cost = costs.attention(**shape, useful_scores=scores, pass_=pass_)  # type: ignore[arg-type]
                assert counter.get_total_flops() == cost.flops

    @pytest.mark.filterwarnings("ignore")  # fvcore's own, on import and while tracing
    @pytest.mark.parametrize("name", PATTERNS)
    def test_fvcore_counts_multiply_adds(self, name: str) -> None:
        nn = pytest.importorskip("fvcore.nn")
        from cegain.kernels.fvcore_handles import handles

        pattern = self.PATTERNS[name]

        class Layer(torch.nn.Module):
            def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return sparse_attention(q, k, v, pattern)

        q, k, v = inputs(2, 4, 2, 70, 70, 16)
        counted = nn.FlopCountAnalysis(Layer(), (q, k, v)).set_op_handle(**handles()).total()
        with FlopCounterMode(display=False) as counter:
            sparse_attention(q, k, v, pattern)
        assert counter.get_total_flops() == 2 * counted

    def test_a_second_derivative_is_refused(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(1, 4, 2, 20, 20, 16))
        out = sparse_attention(q, k, v, head_patterns("fixed", 4, 20))
        (gradient,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
        with pytest.raises(NotImplementedError, match="backend='reference'"):
            gradient.sum().backward()


class TestBadArguments:
    @pytest.mark.parametrize(
        ("pattern", "words"),
        [
            (head_patterns("strided", 3, 40), "hold 1 head pattern or one for each of q's H = 4 heads, got 3"),
            ([], "got 0; see cegain.kernels.patterns.head_patterns"),
            (BlockMask(np.ones((2, 3), bool), 16, 16), r"hold 3 x 3 blocks of 16 x 16 for T, S = 40, 40, got [2, 3]"),
            (BlockMask(np.ones((2, 3, 3), bool), 16, 16), "blocks for each of q's H = 4 heads, got [2, 3, 3]"),
        ],
    )  # fmt: skip
    def test_patterns_that_do_not_fit(self, pattern: Pattern, words: str) -> None:
        q, k, v = inputs(1, 4, 2, 40, 40, 16)
        with pytest.raises(ValueError, match="sparse_attention") as caught:
            sparse_attention(q, k, v, pattern)
        assert words in str(caught.value)

    def test_everything_wrong_is_said_at_once(self) -> None:
        q, k, v = inputs(1, 4, 3, 40, 40, 16)
        with pytest.raises(ValueError, match="sparse_attention") as caught:
            sparse_attention(q, k, v.double(), head_patterns("fixed", 2, 40), scale=float("inf"))
        for words in ("divides q's H = 4, got 3", "torch.float64", "got 2", "scale must be finite"):
            assert words in str(caught.value)

    def test_shapes_and_backends(self) -> None:
        q, k, v = inputs(1, 4, 2, 40, 40, 16)
        with pytest.raises(ValueError, match=r"q must be \[B, H, T, D\]"):
            sparse_attention(q[0], k, v, head_patterns("fixed", 4, 40))
        with pytest.raises(ValueError, match="backend must be one of"):
            sparse_attention(q, k, v, head_patterns("fixed", 4, 40), backend="cuda")  # type: ignore[arg-type]
