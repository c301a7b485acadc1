"""Flash attention against the plain definition in float64: outputs, gradients, counts, compilation, refusals."""

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from cegain.kernels import flash_torch, reference
from cegain.kernels.flash import flash_attention
from cegain.kernels.patterns import HeadPattern, useful_scores
from tests.kernels.closeness import assert_close, results
from tests.kernels.inputs import attention_inputs

NAMES = ["q", "k", "v"]
# A probability computed again from the log-sum-exp carries that number's rounding: up to |lse| / 2 ulps, with lse < 8
# here; and the terms that it weighs are larger than their sum.
ULPS = 8
OPTIONS: list[dict[str, Any]] = [
    {},
    {"causal": False},
    {"window": 1},
    {"window": 16},
    {"window": 50},
    {"window": 1000, "scale": 0.1},
]
inputs = functools.partial(attention_inputs, width=32, heads=4, shared=2, batch=2)


def compare(tensors: tuple[Tensor, ...], **options: Any) -> None:
    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v, **options)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v, backend="reference", **options)

    if tensors[0].dtype == torch.float64:
        grad = torch.randn(tensors[0].shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        for name, got, want in zip(
            ["output", *NAMES], results(fast, tensors, grad), results(plain, tensors, grad), strict=True
        ):
            assert float((got - want).abs().max()) <= 1e-13, name
    else:
        assert_close(fast, plain, tensors, NAMES, ulps=ULPS if tensors[0].dtype == torch.float32 else 1)


@pytest.fixture(params=["cpu kernel", "any device"])
def _path(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both ways of computing a tile, the second with blocks of an odd size."""
    if request.param == "any device":
        monkeypatch.setattr(flash_torch, "_native", lambda q: False)
        monkeypatch.setattr(flash_torch, "BLOCK", 48)
    return


class TestCloseness:
    @pytest.mark.parametrize("width", [32, 60, 64, 100, 128])
    @pytest.mark.parametrize("tokens", [1, 63, 111, 257])
    def test_odd_shapes(self, tokens: int, width: int) -> None:
        compare(inputs(tokens, tokens, width=width))
        compare(inputs(tokens, tokens, width=width), window=40)

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("lengths", [(63, 63), (40, 111), (111, 40), (1, 65), (65, 1)])
    @pytest.mark.usefixtures("_path")
    def test_lengths_and_windows(self, lengths: tuple[int, int], options: dict[str, Any]) -> None:
        compare(inputs(*lengths, width=20), **options)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    @pytest.mark.parametrize("options", OPTIONS[:4])
    @pytest.mark.parametrize("lengths", [(63, 63), (30, 45), (1, 1)])
    @pytest.mark.usefixtures("_path")
    def test_dtypes(self, lengths: tuple[int, int], options: dict[str, Any], dtype: torch.dtype) -> None:
        compare(inputs(*lengths, width=20, batch=1, dtype=dtype), **options)

    @pytest.mark.parametrize("shared", [1, 2, 4, 8])
    @pytest.mark.parametrize("options", OPTIONS[:4])
    @pytest.mark.usefixtures("_path")
    def test_grouped_heads(self, shared: int, options: dict[str, Any]) -> None:
        compare(inputs(63, 70, width=16, heads=8, shared=shared), **options)

    @pytest.mark.parametrize("threads", [1, 3, 64])
    def test_heads_of_a_group_computed_together(self, threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        compare(inputs(33, 33, width=16, heads=10, shared=2, batch=1))

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("shared", [1, 2, 4, 8])
    @pytest.mark.parametrize("width", [32, 60, 64, 100, 128])
    @pytest.mark.parametrize("tokens", [1, 63, 111, 257])
    def test_every_shape(self, tokens: int, width: int, shared: int, dtype: torch.dtype) -> None:
        for options in ({}, {"window": 50}):
            compare(inputs(tokens, tokens, width=width, heads=8, shared=shared, batch=1, dtype=dtype), **options)

    def test_any_strides(self) -> None:
        q, k, v = inputs(63, 63, heads=4, shared=4)
        compare((q, k.transpose(1, 2).contiguous().transpose(1, 2), v.flip(1)))
        wide = torch.randn(2, 4, 63, 3, 32)
        compare((wide[..., 0, :], wide[..., 1, :], wide[..., 2, :]), window=20)
        compare((q, k[:, :1].expand(-1, 4, -1, -1), v[:1].expand(2, -1, -1, -1)))

    def test_results_are_laid_out_like_the_arguments(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(63, 70))
        for options in OPTIONS:
            out = flash_attention(q, k, v, **options)
            assert out.stride() == q.stride()
            gradients = torch.autograd.grad(out.sum(), (q, k, v))
            assert [g.stride() for g in gradients] == [x.stride() for x in (q, k, v)]

    @pytest.mark.usefixtures("_path")
    def test_large_scores_do_not_overflow(self) -> None:
        q, k, v = inputs(40, 63)
        out, lse = flash_attention(q * 100, k * 100, v, return_lse=True)
        want = flash_attention(*(x.double() for x in (q * 100, k * 100, v)), backend="reference")
        assert torch.isfinite(lse).all()
        assert float((out - want).abs().max()) < 1e-2  # scores of 1e5 know their last digit to 0.01

    @pytest.mark.usefixtures("_path")
    @pytest.mark.parametrize("options", OPTIONS)
    def test_queries_without_a_key(self, options: dict[str, Any]) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(20, 7))
        out, lse = flash_attention(q, k, v, return_lse=True, **options)
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in gradients)
        if options.get("causal", True):
            assert not out[:, :, :13].any()
            assert (lse[:, :, :13] == -torch.inf).all()
            assert not gradients[0][:, :, :13].any()
        assert torch.isfinite(lse[:, :, 13:]).all()

    @pytest.mark.usefixtures("_path")
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
    def test_log_sum_exp(self, dtype: torch.dtype, options: dict[str, Any]) -> None:
        q, k, v = inputs(50, 63, dtype=dtype)
        _, lse = flash_attention(q.requires_grad_(), k, v, return_lse=True, **options)
        exact = (x.double() for x in (q, k, v))
        _, want = flash_attention(*exact, return_lse=True, backend="reference", **options)
        assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert not lse.requires_grad
        allowed = {torch.float16: 2e-4, torch.float32: 1e-5, torch.float64: 1e-12}[dtype]
        torch.testing.assert_close(lse.double(), want, rtol=0, atol=allowed)

    def test_the_log_sum_exp_is_the_same_from_the_reference(self) -> None:
        q, k, v = inputs(20, 20, dtype=torch.bfloat16)
        lse = flash_attention(q.requires_grad_(), k, v, return_lse=True, backend="reference")[1]
        assert lse.dtype == torch.float32
        assert not lse.requires_grad

    @pytest.mark.usefixtures("_path")
    @pytest.mark.parametrize("options", OPTIONS)
    def test_repeats_are_bitwise_equal(self, options: dict[str, Any]) -> None:
        tensors, grad = inputs(63, 90), torch.randn(2, 4, 63, 32)
        first, second = (results(lambda *a: flash_attention(*a, **options), tensors, grad) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


class Storages(TorchDispatchMode):
    """Notes the largest storage, in elements, of any tensor that an operation returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        returned = func(*args, **(kwargs or {}))
        for x in returned if isinstance(returned, (tuple, list)) else [returned]:
            if isinstance(x, Tensor):
                self.largest = max(self.largest, x.untyped_storage().nbytes() // x.element_size())
        return returned


class TestTiles:
    @settings(max_examples=200, deadline=None)
    @given(
        seq_q=st.integers(1, 40), seq_kv=st.integers(1, 40), causal=st.booleans(), window=st.none() | st.integers(1, 50)
    )
    def test_tiles_cover_every_unmasked_score_once_and_no_other(
        self, seq_q: int, seq_kv: int, causal: bool, window: int | None
    ) -> None:
        window = window if causal else None
        covered, first = torch.zeros(seq_q, seq_kv, dtype=torch.int), torch.zeros(seq_q, dtype=torch.int)
        seen_other: set[int] = set()
        for tile in flash_torch.tiles(seq_q, seq_kv, causal=causal, window=window):
            for piece in range(tile.pieces):
                query, key = tile.query + piece * tile.step, tile.key + piece * tile.step
                block = covered[query : query + tile.queries, key : key + tile.keys]
                assert block.shape == (tile.queries, tile.keys)
                whole = torch.ones_like(block)
                block += {"full": whole, "causal": whole.tril(), "mirrored": whole.triu()}[tile.shape]
                rows = range(query, query + tile.queries)
                if tile.first:
                    assert seen_other.isdisjoint(rows)
                    first[query : query + tile.queries] += 1
                else:
                    seen_other.update(rows)
        mask = reference.positional_mask(seq_q, seq_kv, causal=causal, window=window)
        want = torch.ones(seq_q, seq_kv, dtype=torch.bool) if mask is None else mask
        assert torch.equal(covered, want.int())
        assert torch.equal(first, want.any(1).int())

    @pytest.mark.usefixtures("_path")
    @pytest.mark.parametrize("options", [{}, {"window": 64}, {"window": 700}, {"causal": False}])
    @pytest.mark.parametrize("lengths", [(1024, 1024), (512, 1024)])
    def test_no_tensor_of_all_scores(self, lengths: tuple[int, int], options: dict[str, Any]) -> None:
        q, k, v = inputs(*lengths, width=8, heads=1, shared=1, batch=1)
        causal, window = options.get("causal", True), options.get("window")
        with Storages() as seen:
            out, lse = flash_torch.forward(q, k, v, causal, window, 0.3)
            flash_torch.backward(out, q, k, v, out, lse, causal, window, 0.3)
        assert 0 < seen.largest <= lengths[0] * lengths[1] / 8


class TestRegistration:
    @pytest.mark.parametrize("options", [(True, None), (True, 10), (False, None)])
    def test_opcheck(self, options: tuple[bool, int | None]) -> None:
        q, k, v = inputs(30, 37)
        arguments = (*options, 0.2, "torch")
        opcheck(torch.ops.ceg.flash_attention, (*(x.requires_grad_() for x in (q, k, v)), *arguments))
        q, k, v = (x.detach() for x in (q, k, v))
        out, lse = torch.ops.ceg.flash_attention(q, k, v, *arguments)
        opcheck(torch.ops.ceg.flash_attention_backward, (torch.randn_like(out), q, k, v, out, lse, *arguments))

    @pytest.mark.parametrize("options", OPTIONS[:4])
    def test_compiles_into_one_graph(self, options: dict[str, Any]) -> None:
        def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            out, lse = flash_attention(q, k, v, return_lse=True, **options)
            return out * lse[..., None].sigmoid()

        tensors, grad = inputs(30, 37), torch.randn(2, 4, 30, 32)
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        for got, want in zip(results(compiled, tensors, grad), results(op, tensors, grad), strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("lengths", [(30, 37), (37, 30)])
    def test_torch_counts_useful_flops(self, lengths: tuple[int, int], options: dict[str, Any]) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(*lengths))
        mask = reference.positional_mask(*lengths, causal=options.get("causal", True), window=options.get("window"))
        pairs = lengths[0] * lengths[1] if mask is None else int(mask.sum())
        with FlopCounterMode(display=False) as forward:
            out = flash_attention(q, k, v, **options)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert forward.get_total_flops() == 4 * 2 * 4 * 32 * pairs
        assert backward.get_total_flops() == 2 * forward.get_total_flops()

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("options", OPTIONS[:4])
    def test_fvcore_counts_multiply_adds(self, options: dict[str, Any]) -> None:
        nn = pytest.importorskip("fvcore.nn")
        from cegain.kernels.fvcore_handles import handles

        class Layer(torch.nn.Module):
            def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
                return flash_attention(q, k, v, **options)

        counted = nn.FlopCountAnalysis(Layer(), inputs(30, 37)).set_op_handle(**handles())
        head = (
            HeadPattern("full") if options.get("causal") is False else HeadPattern("window", options.get("window", 37))
        )
        assert counted.total() == 2 * 2 * 32 * useful_scores([head] * 4, 30, 37)
        assert not counted.unsupported_ops()

    def test_a_second_derivative_is_refused(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(5, 5))
        (dq,) = torch.autograd.grad(flash_attention(q, k, v).square().sum(), q, create_graph=True)
        with pytest.raises(NotImplementedError, match=r"differentiated once.*use backend='reference'"):
            dq.sum().backward()


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"q": torch.zeros(2, 4, 5)}, r"q must be \[B, H, T, D\] = \[any, any, any, any\], got \[2, 4, 5\]"),
            ({"k": torch.zeros(2, 2, 5, 9)}, r"k must be .* = \[2, any, any, 8\], got \[2, 2, 5, 9\]"),
            ({"k": torch.zeros(3, 2, 5, 8)}, r"k must be .* got \[3, 2, 5, 8\]"),
            ({"v": torch.zeros(2, 2, 6, 8)}, r"v must be .* = \[2, 2, 5, 8\], got \[2, 2, 6, 8\]"),
            ({"k": torch.zeros(2, 3, 5, 8), "v": torch.zeros(2, 3, 5, 8)}, "k must have .* divides q's H = 4, got 3"),
            ({"k": torch.zeros(2, 0, 5, 8), "v": torch.zeros(2, 0, 5, 8)}, "k must have .* divides q's H = 4, got 0"),
            ({"q": torch.zeros(2, 4, 0, 8)}, r"q must have no size of 0, got \[2, 4, 0, 8\]"),
            ({"q": torch.zeros(2, 4, 5, 8).int()}, "q must be float16, bfloat16, .* got torch.int32; convert"),
            ({"v": torch.zeros(2, 2, 5, 8).half()}, "v must have q's dtype torch.float32, got torch.float16"),
            ({"v": torch.zeros(2, 2, 5, 8, device="meta")}, "v must be on q's device cpu, got meta; move it"),
            ({"window": 0}, "window must be at least 1, got 0; 1 is the query itself"),
            ({"window": 3, "causal": False}, "window must come with causal=True, got 3; leave"),
            ({"scale": float("nan")}, "scale must be finite, got nan"),
            ({"backend": "fast"}, "backend must be one of auto, triton, torch, reference, got 'fast'"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], message: str) -> None:
        good = {"q": torch.zeros(2, 4, 5, 8), "k": torch.zeros(2, 2, 5, 8), "v": torch.zeros(2, 2, 5, 8)}
        with pytest.raises(ValueError, match=message):
            flash_attention(**{**good, **change})

    def test_all_problems_are_said_at_once(self) -> None:
        q, k, v = inputs(5, 5)
        with pytest.raises(ValueError, match="v must have q's dtype") as error:
            flash_attention(q, k, v.double()[..., :3], window=0, causal=False)
        assert all(
            name in str(error.value) for name in ("flash_attention:", "v must be k's", "window must be at least")
        )
