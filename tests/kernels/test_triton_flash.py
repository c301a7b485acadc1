"""Flash attention in Triton, in the interpreter without a GPU: outputs, gradients, what is visited, repeats, refusals.

Blocks are 32 x 32 there (`flash_triton.INTERPRETED`), so that lengths of 31, 32, 33 lie around the end of one.
"""

import dataclasses
import functools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from cegain.kernels import flash_triton
from cegain.kernels.flash import flash_attention
from cegain.kernels.launch import Tuning
from cegain.kernels.mqa import mqa_attention
from tests.kernels import interpreter
from tests.kernels.closeness import assert_close, results
from tests.kernels.inputs import attention_inputs
from tests.kernels.interpreter import DEVICE

interpreter.mend()
NAMES = ["q", "k", "v"]
# As for the CPU path: a probability computed again from the log-sum-exp carries that number's rounding.
ULPS = 8
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
OPTIONS: list[dict[str, Any]] = [{}, {"causal": False}, {"window": 1}, {"window": 20}, {"window": 1000, "scale": 0.1}]
inputs = functools.partial(attention_inputs, device=DEVICE)


def compare(tensors: tuple[Tensor, ...], **options: Any) -> None:
    def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v, backend="triton", **options)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return flash_attention(q, k, v, backend="reference", **options)

    # One ulp was missed by 2% once (bf16, gradient of q, one query of many keys): dS is rounded before its product too.
    assert_close(fast, plain, tensors, NAMES, ulps=ULPS if tensors[0].dtype == torch.float32 else 2)


class TestCloseness:
    @pytest.mark.parametrize("options", OPTIONS[:4])
    def test_around_a_block(self, options: dict[str, Any]) -> None:
        for tokens in (1, 33):
            compare(inputs(tokens, tokens), **options)

    @pytest.mark.parametrize("lengths", [(20, 70), (70, 20)])
    def test_unequal_lengths(self, lengths: tuple[int, int]) -> None:
        for options in ({}, {"window": 20}):
            compare(inputs(*lengths, heads=1), **options)

    @pytest.mark.parametrize("window", [2**31 - 1, 2**63 - 1])
    @pytest.mark.parametrize("lengths", [(40, 40), (20, 40), (40, 20)])
    def test_windows_that_32_bits_cannot_add_to(self, lengths: tuple[int, int], window: int) -> None:
        compare(inputs(*lengths, heads=1), window=window)

    @pytest.mark.parametrize("shared", [2, 4])
    def test_grouped_heads(self, shared: int) -> None:
        compare(inputs(33, 33, heads=8, shared=shared), window=20)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        compare(inputs(40, 40, dtype=dtype))

    @pytest.mark.parametrize("width", [8, 17])
    def test_odd_widths(self, width: int) -> None:
        compare(inputs(33, 40, width, heads=2, shared=2))

    def test_any_strides(self) -> None:
        wide = torch.randn(1, 33, 2, 3, 16, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        q, k, v = wide.permute(3, 0, 2, 1, 4)
        compare((q, k[:, :1].expand(-1, 2, -1, -1), v.transpose(2, 3).contiguous().transpose(2, 3)))

    @pytest.mark.parametrize("scale", [0.0, -0.5])
    def test_any_scale(self, scale: float) -> None:
        compare(inputs(33, 20), scale=scale)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("lengths", [(31, 31), (32, 32), (33, 33), (65, 65), (1, 65), (65, 1), (70, 33), (33, 111)])
    def test_every_length(self, lengths: tuple[int, int], options: dict[str, Any], dtype: torch.dtype) -> None:
        compare(inputs(*lengths, heads=4, shared=2, dtype=dtype), **options)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.parametrize("shared", [1, 2, 4])
    @pytest.mark.parametrize("width", [16, 32, 60, 63, 64, 100, 128, 256])
    def test_every_width_and_group(self, width: int, shared: int, dtype: torch.dtype) -> None:
        """Groups of 4, 2 and 1 heads."""
        for options in ({}, {"window": 20}):
            compare(inputs(63, 63, width, heads=4, shared=shared, dtype=dtype), **options)

    @pytest.mark.slow
    @pytest.mark.parametrize("options", OPTIONS)
    @pytest.mark.parametrize("blocks", [(16, 64), (64, 16), (32, 16), (16, 32)])
    def test_oblong_blocks(
        self, blocks: tuple[int, int], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        meta = dataclasses.replace(flash_triton.INTERPRETED, block_m=blocks[0], block_n=blocks[1])
        for name in ("FORWARD", "DQ", "DKV"):
            tuning = dataclasses.replace(getattr(flash_triton, name), interpreted=meta)
            monkeypatch.setattr(flash_triton, name, tuning)
        for lengths in ((100, 100), (33, 80), (80, 33)):
            compare(inputs(*lengths), **options)

    @pytest.mark.parametrize("together", [1, 2])
    def test_heads_in_sections(self, together: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Three heads in sections of one or two: every tile is computed, whatever runs next to it."""
        monkeypatch.setattr(flash_triton, "_heads_together", lambda q, k, by_queries: together)
        compare(inputs(40, 40, heads=3, shared=3))


class TestResults:
    def test_log_sum_exp_and_layout(self) -> None:
        q, k, v = (x.requires_grad_() for x in inputs(33, 40))
        out, lse = flash_attention(q, k, v, return_lse=True, backend="triton")
        _, want = flash_attention(q, k, v, return_lse=True, backend="reference")
        assert lse.dtype == torch.float32
        torch.testing.assert_close(lse, want, rtol=1e-6, atol=1e-6)
        assert out.stride() == q.stride()
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        assert [g.stride() for g in gradients] == [x.stride() for x in (q, k, v)]

    def test_queries_without_a_key(self) -> None:
        for options in ({}, {"window": 4}):
            q, k, v = (x.requires_grad_() for x in inputs(40, 7))
            out, lse = flash_attention(q, k, v, return_lse=True, backend="triton", **options)
            gradients = torch.autograd.grad(out.sum(), (q, k, v))
            assert all(torch.isfinite(g).all() for g in gradients)
            assert not out[:, :, :33].any()
            assert (lse[:, :, :33] == -torch.inf).all()
            assert torch.isfinite(lse[:, :, 33:]).all()
            assert not gradients[0][:, :, :33].any()

    def test_large_scores_do_not_overflow(self) -> None:
        q, k, v = inputs(40, 63)
        out, lse = flash_attention(q * 100, k * 100, v, return_lse=True, backend="triton")
        want = flash_attention(*(x.double() for x in (q * 100, k * 100, v)), backend="reference")
        assert torch.isfinite(lse).all()
        assert float((out - want).abs().max()) < 1e-2  # scores of 1e5 know their last digit to 0.01

    def test_repeats_are_bitwise_equal(self) -> None:
        tensors = inputs(40, 70)

        def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flash_attention(q, k, v, backend="triton")

        grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        first, second = results(op, tensors, grad), results(op, tensors, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def test_blocks_outside_the_window_are_not_visited(self) -> None:
        """NaN in keys and queries that no block needs would spread: 0 x NaN is NaN."""
        q, k, v = inputs(96, 96, heads=1)
        grad = torch.ones_like(q)
        # Keys of the first block are seen by queries up to 31 + 9; those from 64 on see keys from 55 on.
        out, lse = flash_triton.forward(q, k, v, True, 10, 0.25)
        poisoned = [x.clone() for x in (q, k, v, grad, out)]
        for x in (poisoned[1], poisoned[2]):
            x[:, :, :32] = torch.nan
        assert torch.equal(
            flash_triton.forward(q, poisoned[1], poisoned[2], True, 10, 0.25)[0][:, :, 64:], out[:, :, 64:]
        )
        want = flash_triton.backward(grad, q, k, v, out, lse, True, 10, 0.25)
        got = flash_triton.backward(grad, q, poisoned[1], poisoned[2], out, lse, True, 10, 0.25)
        assert torch.equal(got[0][:, :, 64:], want[0][:, :, 64:])
        for x in (poisoned[0], poisoned[3], poisoned[4]):
            x[:, :, 64:] = torch.nan
        got = flash_triton.backward(poisoned[3], poisoned[0], k, v, poisoned[4], lse, True, 10, 0.25)
        assert torch.equal(got[1][:, :, :32], want[1][:, :, :32])
        assert torch.equal(got[2][:, :, :32], want[2][:, :, :32])

    def test_mqa_runs_the_same_kernels(self) -> None:
        tensors = inputs(20, 33, heads=4, batch=2)

        def fast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return mqa_attention(q, k, v, causal=False, backend="triton")

        def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return mqa_attention(q, k, v, causal=False, backend="reference")

        assert_close(fast, plain, tensors, NAMES, ulps=ULPS)


class TestRegistration:
    def test_opcheck(self) -> None:
        tensors = tuple(x.requires_grad_() for x in inputs(5, 7, heads=1))
        # Its compiled check is `test_full_graph_compilation`.
        checks = ("test_schema", "test_autograd_registration", "test_faketensor")
        opcheck(torch.ops.ceg.flash_attention.default, (*tensors, True, 9, 0.2, "triton"), test_utils=checks)

    def test_full_graph_compilation(self) -> None:
        tensors = inputs(33, 33)

        def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return flash_attention(q, k, v, backend="triton")

        grad = torch.randn(tensors[0].shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        compiled = torch.compile(op, fullgraph=True, backend="aot_eager")
        for got, want in zip(results(compiled, tensors, grad), results(op, tensors, grad), strict=True):
            assert torch.equal(got, want)

    def test_what_the_kernels_do_not_take(self) -> None:
        q, k, v = inputs(5, 5)
        with pytest.raises(ValueError, match="its kernel for flash_attention takes, got float64; use auto or torch"):
            flash_attention(q.double(), k.double(), v.double(), backend="triton")
        far = torch.empty(16, device=DEVICE).as_strided((1, 1, 1, 16), (1, 1, 2**23, 1))
        with pytest.raises(ValueError, match="got strides of millions of entries"):
            flash_attention(far, far, far, backend="triton")
        wide = torch.ones(1, 1, 2, 257, device=DEVICE)
        with pytest.raises(ValueError, match="got a head width D = 257 above 256"):
            mqa_attention(wide, wide, wide, backend="triton")


class TestTuning:
    @pytest.mark.parametrize("tuning", [flash_triton.FORWARD, flash_triton.DQ, flash_triton.DKV])
    @pytest.mark.parametrize("capability", [80, 86, 90, 100, 120])
    def test_every_width_has_candidates(self, capability: int, tuning: Tuning[flash_triton.Meta]) -> None:
        for width in range(1, 257):
            for dtype in DTYPES:
                metas = tuning.candidates(dtype, width, capability)
                assert len(set(metas)) == len(metas) >= 1

    def test_each_case_is_named_once(self) -> None:
        names = [case.name for case in flash_triton.aot_cases()]
        assert len(set(names)) == len(names)
