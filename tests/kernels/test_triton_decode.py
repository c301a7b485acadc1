"""Decoding in Triton, in the interpreter without a GPU: against the definition, with splits empty, short and many.

Blocks are 16 positions there (`mqa_triton.TUNING`), so that lengths of 15, 16, 17 lie around the end of one.
"""

import pytest
import torch
from torch import Tensor
from torch.library import opcheck

from cegain.kernels import mqa_triton
from cegain.kernels.launch import Tuning
from cegain.kernels.mqa import mqa_decode
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE
from tests.kernels.test_mqa import cache

interpreter.mend()
Arguments = tuple[Tensor, Tensor, Tensor, Tensor]


def placed(arguments: Arguments) -> Arguments:
    q, k_cache, v_cache, lengths = (x.to(DEVICE) for x in arguments)
    return q, k_cache, v_cache, lengths


def assert_decodes(arguments: Arguments, splits: int | None = None) -> None:
    """Errs at most twice as much as the definition in the same dtype, plus a few ulps; zeros for empty caches alone."""
    *tensors, lengths = arguments = placed(arguments)
    scale = tensors[0].shape[-1] ** -0.5
    got = mqa_triton.decode(*arguments, scale, splits)
    assert got.dtype == tensors[0].dtype
    q, k_cache, v_cache = (x.double() for x in tensors)
    exact = mqa_decode(q, k_cache, v_cache, lengths, backend="reference")
    plain = mqa_decode(*arguments, backend="reference")
    ulps = 8 * torch.finfo(got.dtype).eps * float(exact.abs().max())
    assert float((got - exact).abs().max()) <= 2 * float((plain - exact).abs().max()) + ulps
    assert torch.equal(got.any(-1).any(-1), lengths > 0)


class TestCloseness:
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("splits", [1, 2, 5])
    def test_whatever_lies_past_a_length(self, splits: int, dtype: torch.dtype) -> None:
        assert_decodes(cache([0, 1, 15, 16, 17, 50], dtype=dtype), splits)

    @pytest.mark.parametrize("splits", [1, 40])
    def test_empty_caches_and_more_splits_than_blocks(self, splits: int) -> None:
        """More splits than `combine_kernel` reads at once, most of them empty."""
        assert_decodes(cache([0, 0]), splits)
        assert_decodes(cache([0, 50]), splits)

    def test_a_late_split_holds_the_largest_score(self) -> None:
        """Scores that grow along the cache make every earlier split's share vanish, without 0 x inf."""
        q, k_cache, v_cache, lengths = cache([48], heads=2, shared=1)
        k_cache = q[:, :1, None] * torch.arange(50.0)[:, None]
        assert_decodes((q, k_cache, v_cache, lengths), 3)
        assert_decodes((q, k_cache.flip(2), v_cache.nan_to_num(), lengths), 20)

    @pytest.mark.parametrize(("heads", "shared"), [(8, 8), (6, 2), (17, 1)])
    def test_groups(self, heads: int, shared: int) -> None:
        assert_decodes(cache([20, 33], heads=heads, shared=shared), 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("heads", [64, 65, 130])
    def test_groups_of_several_tiles(self, heads: int, dtype: torch.dtype) -> None:
        assert_decodes(cache([20, 33], heads=heads, shared=1, width=20, dtype=dtype), 2)

    @pytest.mark.parametrize("width", [8, 60, 100])
    def test_odd_widths(self, width: int) -> None:
        assert_decodes(cache([20, 0, 33], width=width, dtype=torch.float16), 2)

    @pytest.mark.slow
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
    @pytest.mark.parametrize("width", [16, 32, 63, 64, 128, 200, 256])
    @pytest.mark.parametrize("splits", [1, 3, 16, 17])
    def test_all_widths(self, splits: int, width: int, dtype: torch.dtype) -> None:
        assert_decodes(cache([300, 0, 33], tokens=300, width=width, dtype=dtype), splits)

    def test_any_strides(self) -> None:
        """Heads after positions, and columns two apart: memory of layouts that caches have."""
        q, k_cache, v_cache, lengths = cache([7, 50, 0])
        k_cache = k_cache.transpose(1, 2).contiguous().transpose(1, 2)
        v_cache = torch.stack([v_cache, v_cache], -1)[..., 0]
        q = q.transpose(1, 2).contiguous().transpose(1, 2)
        assert_decodes((q, k_cache, v_cache, lengths.int()), 2)
        assert_decodes((q, k_cache, v_cache, torch.stack([lengths, lengths + 9], 1).flatten()[::2]), 2)
        q, k_cache, v_cache, lengths = cache([33, 33, 33])
        assert_decodes((q, k_cache, v_cache, lengths[:1].expand(3)), 2)


class TestCalls:
    def test_through_the_operation(self) -> None:
        arguments = placed(cache([7, 50, 0]))
        want = mqa_decode(*arguments, scale=-0.3, backend="reference")
        torch.testing.assert_close(mqa_decode(*arguments, scale=-0.3, backend="triton"), want)

    @pytest.mark.parametrize("splits", [1, 3])
    def test_repeats_are_bitwise_equal(self, splits: int) -> None:
        arguments = placed(cache([7, 50, 0, 33], dtype=torch.float16))
        first = mqa_triton.decode(*arguments, 0.2, splits)
        assert torch.equal(first, mqa_triton.decode(*arguments, 0.2, splits))

    def test_splits_fill_the_device(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """One sequence is cut into as many parts as fill it, a full batch into none; never more than blocks."""
        asked = []
        kernel = mqa_triton.split_kernel

        class Recorder:
            def __getitem__(self, grid: tuple[int, int]) -> object:
                asked.append(grid[1])
                return kernel[grid]

        monkeypatch.setattr(mqa_triton, "split_kernel", Recorder())
        monkeypatch.setattr(Tuning, "on", lambda tuning, q, width: (tuning.interpreted,))
        monkeypatch.setattr(mqa_triton, "_multiprocessors", lambda q: 4)
        for lengths, shared in (([160], 1), ([160], 2), ([160] * 8, 1), ([20], 1)):
            mqa_triton.decode(*placed(cache(lengths, tokens=max(lengths), heads=2, shared=shared)), 0.2)
        assert asked == [8, 4, 1, 2]

    def test_opcheck_and_one_graph(self) -> None:
        arguments = placed(cache([7, 50, 0]))
        opcheck(torch.ops.ceg.mqa_decode, (*arguments, 0.2, "triton"))
        compiled = torch.compile(mqa_decode, fullgraph=True, backend="aot_eager")
        want = mqa_decode(*arguments, backend="triton")
        torch.testing.assert_close(compiled(*arguments, backend="triton"), want)

    def test_lengths_outside_the_cache(self) -> None:
        """Refused where they can be read without waiting; the kernel itself reads nothing outside the cache."""
        q, k_cache, v_cache, _ = placed(cache([50, 50]))
        wrong, right = torch.tensor([-3, 70]).to(DEVICE), torch.tensor([0, 50]).to(DEVICE)
        if DEVICE == "cpu":
            with pytest.raises(ValueError, match="lengths must lie between 0 and the cache's S = 50, got -3 to 70"):
                mqa_decode(q, k_cache, v_cache, wrong, backend="triton")
        got, want = (mqa_triton.decode(q, k_cache, v_cache, lengths, 0.2, 2) for lengths in (wrong, right))
        assert torch.equal(got, want)

    def test_what_the_kernel_does_not_take(self) -> None:
        q, k_cache, v_cache, lengths = placed(cache([7], width=300))
        with pytest.raises(ValueError, match="mqa_decode takes, got a head width D = 300 above 256"):
            mqa_decode(q, k_cache, v_cache, lengths, backend="triton")
        with pytest.raises(ValueError, match="mqa_decode takes, got float64"):
            mqa_decode(q.double(), k_cache.double(), v_cache.double(), lengths, backend="triton")
