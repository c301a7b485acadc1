"""Attention with shared keys, in training and in decoding, against the plain definition."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck
from torch.utils.flop_counter import FlopCounterMode

from cegain.kernels import flash_torch
from cegain.kernels.mqa import mqa_attention, mqa_decode
from tests.kernels.closeness import assert_close, results
from tests.kernels.test_flash import ULPS, Storages, inputs


def cache(
    lengths: list[int], tokens: int = 50, heads: int = 8, shared: int = 2, width: int = 32,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    """(q, k_cache, v_cache, lengths) with NaN past each length."""
    generator = torch.Generator().manual_seed(tokens)
    q = torch.randn(len(lengths), heads, width, generator=generator)
    caches = torch.randn(2, len(lengths), shared, tokens, width, generator=generator)
    for i, length in enumerate(lengths):
        caches[:, i, :, length:] = torch.nan
    k_cache, v_cache = caches.to(dtype)
    return q.to(dtype), k_cache, v_cache, torch.tensor(lengths)


def assert_decodes(arguments: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    """Errs at most twice as much as the definition in the same dtype, plus a few ulps; zeros for empty caches alone."""
    *tensors, filled = arguments
    got = mqa_decode(*arguments)
    assert got.dtype == tensors[0].dtype
    q, k_cache, v_cache = (x.double() for x in tensors)
    exact = mqa_decode(q, k_cache, v_cache, filled, backend="reference")
    plain = mqa_decode(*arguments, backend="reference")
    ulps = 8 * torch.finfo(got.dtype).eps * float(exact.abs().max())
    assert float((got - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + ulps
    assert torch.equal(got.any(-1).any(-1), filled > 0)


class TestTraining:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("shared", [1, 2, 4, 8])
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("lengths", [(63, 63), (20, 45), (45, 20), (1, 1)])
    def test_close_to_the_reference(
        self, lengths: tuple[int, int], causal: bool, shared: int, dtype: torch.dtype
    ) -> None:
        assert_close(
            lambda q, k, v: mqa_attention(q, k, v, causal=causal),
            lambda q, k, v: mqa_attention(q, k, v, causal=causal, backend="reference"),
            inputs(*lengths, width=20, heads=8, shared=shared, batch=1, dtype=dtype),
            ["q", "k", "v"],
            ulps=ULPS if dtype == torch.float32 else 1,
        )

    @pytest.mark.parametrize("native", [True, False])
    def test_keys_and_values_are_not_repeated(self, native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """With one thread no tensor is near the size of keys repeated for all query heads."""
        monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
        monkeypatch.setattr(flash_torch, "_native", lambda q: native)
        monkeypatch.setattr(flash_torch, "BLOCK", 2)
        q, k, v = inputs(64, 4096, width=16, heads=16, shared=1, batch=1)
        with Storages() as seen:
            out, lse = flash_torch.forward(q, k, v, True, None, 0.25)
            flash_torch.backward(out, q, k, v, out, lse, True, None, 0.25)
        repeated = 16 * k.numel()
        assert 0 < seen.largest <= repeated / 4

    def test_opcheck(self) -> None:
        q, k, v = inputs(30, 37)
        opcheck(torch.ops.ceg.mqa_attention, (*(x.requires_grad_() for x in (q, k, v)), True, 0.2, "torch"))
        q, k, v = (x.detach() for x in (q, k, v))
        out, lse = torch.ops.ceg.mqa_attention(q, k, v, True, 0.2, "torch")
        opcheck(torch.ops.ceg.mqa_attention_backward, (torch.randn_like(out), q, k, v, out, lse, True, 0.2, "torch"))

    def test_compiles_into_one_graph(self) -> None:
        tensors, grad = inputs(30, 37), torch.randn(2, 4, 30, 32)
        compiled = torch.compile(mqa_attention, fullgraph=True, backend="aot_eager")
        for got, want in zip(results(compiled, tensors, grad), results(mqa_attention, tensors, grad), strict=True):
            torch.testing.assert_close(got, want)

    @pytest.mark.parametrize(("causal", "pairs"), [(True, 30 * 31 // 2 + 30 * 7), (False, 30 * 37)])
    def test_torch_counts_useful_flops(self, causal: bool, pairs: int) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(30, 37))
        with FlopCounterMode(display=False) as forward:
            out = mqa_attention(q, k, v, causal=causal)
        with FlopCounterMode(display=False) as backward:
            out.sum().backward()
        assert forward.get_total_flops() == 4 * 2 * 4 * 32 * pairs
        assert backward.get_total_flops() == 2 * forward.get_total_flops()

    def test_a_second_derivative_is_refused(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(5, 5))
        (dq,) = torch.autograd.grad(mqa_attention(q, k, v).square().sum(), q, create_graph=True)
        with pytest.raises(NotImplementedError, match="differentiated once"):
            dq.sum().backward()

    def test_bad_arguments(self) -> None:
        q, k, v = inputs(5, 5, shared=3)
        with pytest.raises(ValueError, match=r"mqa_attention: k must have .* divides q's H = 4, got 3"):
            mqa_attention(q, k, v)


class TestDecode:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    @pytest.mark.parametrize("shared", [1, 2, 8])
    @pytest.mark.parametrize("lengths", [[7, 50, 0, 1], [20, 20], [0, 0], [50]])
    def test_close_to_the_reference_whatever_lies_past_a_length(
        self, lengths: list[int], shared: int, dtype: torch.dtype
    ) -> None:
        assert_decodes(cache(lengths, shared=shared, dtype=dtype))

    @pytest.mark.parametrize("threads", [1, 3, 64])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_keys_shared_out_over_threads(
        self, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        arguments = cache([7, 50, 0, 1], shared=1, dtype=dtype)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        assert_decodes(arguments)

    def test_a_step_is_the_last_row_of_training(self) -> None:
        q, k, v = inputs(1, 33, heads=8)
        got = mqa_decode(q[:, :, 0], k, v, torch.full((2,), 33, dtype=torch.int32), scale=0.4)
        torch.testing.assert_close(got, mqa_attention(q, k, v, scale=0.4)[:, :, 0])

    def test_any_device_path(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(flash_torch, "_native", lambda q: False)
        assert_decodes(cache([7, 50, 0]))

    def test_opcheck_and_one_graph(self) -> None:
        arguments = cache([7, 50, 0])
        opcheck(torch.ops.ceg.mqa_decode, (*arguments, 0.2, "torch"))
        compiled = torch.compile(mqa_decode, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(*arguments), mqa_decode(*arguments))

    def test_torch_counts_filled_positions(self) -> None:
        arguments = cache([7, 50, 0])
        with FlopCounterMode(display=False) as counter:
            mqa_decode(*arguments)
        assert counter.get_total_flops() == 4 * 8 * 32 * 57
        from torch._subclasses.fake_tensor import FakeTensorMode

        with FakeTensorMode() as mode, FlopCounterMode(display=False) as counter:
            mqa_decode(*(mode.from_tensor(x) for x in arguments))
        assert counter.get_total_flops() == 4 * 8 * 32 * 3 * 50

    @pytest.mark.filterwarnings("ignore")
    def test_fvcore_counts_multiply_adds(self) -> None:
        nn = pytest.importorskip("fvcore.nn")
        from cegain.kernels.fvcore_handles import handles

        class Decode(torch.nn.Module):
            def forward(self, *arguments: Tensor) -> Tensor:
                return mqa_decode(*arguments)

        class Train(torch.nn.Module):
            def forward(self, *arguments: Tensor) -> Tensor:
                return mqa_attention(*arguments)

        decoding = nn.FlopCountAnalysis(Decode(), cache([7, 50, 0])).set_op_handle(**handles())
        training = nn.FlopCountAnalysis(Train(), inputs(30, 30)).set_op_handle(**handles())
        assert decoding.total() == 2 * 8 * 32 * 3 * 50
        assert training.total() == 2 * 2 * 4 * 32 * (30 * 31 // 2)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"q": torch.zeros(3, 8)}, r"q must be \[B, H, D\] = \[any, any, any\], got \[3, 8\]"),
            ({"k_cache": torch.zeros(3, 2, 50, 9)}, r"k_cache must be .* = \[3, any, any, 32\], got \[3, 2, 50, 9\]"),
            ({"v_cache": torch.zeros(3, 1, 50, 32)}, r"v_cache must be k_cache's .* got \[3, 1, 50, 32\]"),
            ({"q": torch.zeros(3, 7, 32)}, "k_cache must have .* divides q's H = 7, got 2"),
            ({"q": torch.zeros(3, 0, 32)}, "q must have no size of 0"),
            ({"lengths": torch.zeros(2, dtype=torch.int64)}, r"lengths must be \[B\] = \[3\], got \[2\]"),
            ({"lengths": torch.zeros(3)}, "lengths must be int32 or int64, got torch.float32"),
            ({"lengths": torch.zeros(3, dtype=torch.int64, device="meta")}, "lengths must be on q's device cpu"),
            ({"lengths": torch.tensor([1, 51, 0])}, "lengths must lie between 0 and the cache's S = 50, got 0 to 51"),
            ({"lengths": torch.tensor([1, 5, -1])}, "lengths must lie between 0 and the cache's S = 50, got -1 to 5"),
            ({"v_cache": torch.zeros(3, 2, 50, 32).half()}, "v_cache must have q's dtype"),
            ({"scale": float("inf")}, "scale must be finite, got inf"),
        ],
    )
    def test_bad_arguments(self, change: dict[str, Any], message: str) -> None:
        good = dict(zip(["q", "k_cache", "v_cache", "lengths"], cache([7, 50, 0]), strict=True))
        with pytest.raises(ValueError, match=message):
            mqa_decode(**{**good, **change})
