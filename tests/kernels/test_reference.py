"""The plain definitions against torch's own operations in float64 and against cases worked out by hand."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from cegain.kernels import reference


def double(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


class TestAttention:
    @pytest.mark.parametrize("shared", [1, 2, 4])
    @pytest.mark.parametrize("causal", [True, False])
    @pytest.mark.parametrize("scale", [None, 0.3])
    def test_against_torch(self, shared: int, causal: bool, scale: float | None) -> None:
        q, k, v, grad = (
            double(2, 4, 19, 8),
            double(2, shared, 19, 8),
            double(2, shared, 19, 9)[..., :8],
            double(2, 4, 19, 8),
        )
        leaves = [x.requires_grad_() for x in (q, k, v)]
        mask = reference.positional_mask(19, 19, causal=causal)
        out, _ = reference.attention(*leaves, mask, scale=scale)
        want = scaled_dot_product_attention(*leaves, is_causal=causal, scale=scale, enable_gqa=True)
        torch.testing.assert_close(out, want)
        for got, expected in zip(
            torch.autograd.grad(out, leaves, grad), torch.autograd.grad(want, leaves, grad), strict=True
        ):
            torch.testing.assert_close(got, expected)

    @pytest.mark.parametrize("options", [{"causal": True}, {"window": 3}, {"window": 100}])
    @pytest.mark.parametrize("lengths", [(5, 11), (1, 11), (11, 11)])
    def test_positions_against_torch(self, lengths: tuple[int, int], options: dict[str, Any]) -> None:
        q, k, v = double(1, 2, lengths[0], 8), double(1, 2, lengths[1], 8), double(1, 2, lengths[1], 7 + 1)
        mask = reference.positional_mask(*lengths, **options)
        assert mask is not None
        want = scaled_dot_product_attention(q, k, v, attn_mask=mask)
        torch.testing.assert_close(reference.attention(q, k, v, mask)[0], want)

    def test_by_hand(self) -> None:
        """Scores ln 1 and ln 3 weigh values 4 and 8 as 1/4 and 3/4; the first query sees the first key alone."""
        q = torch.ones(1, 1, 2, 1, dtype=torch.float64)
        k = torch.tensor([1.0, 3.0], dtype=torch.float64).log().reshape(1, 1, 2, 1)
        v = torch.tensor([4.0, 8.0], dtype=torch.float64).reshape(1, 1, 2, 1)
        out, lse = reference.attention(q, k, v, reference.positional_mask(2, 2))
        torch.testing.assert_close(out.flatten(), torch.tensor([4.0, 7.0], dtype=torch.float64))
        torch.testing.assert_close(lse.flatten(), torch.tensor([0.0, math.log(4)], dtype=torch.float64))
        doubled, _ = reference.attention(q, k, v, scale=2.0)  # scores ln 1 and ln 9
        torch.testing.assert_close(doubled.flatten(), torch.tensor([7.6, 7.6], dtype=torch.float64))

    def test_query_heads_take_turns_in_order(self) -> None:
        """Of four query heads, the first two use key head 0 and the others key head 1."""
        q, k = torch.zeros(1, 4, 1, 2), torch.zeros(1, 2, 1, 2)
        v = torch.tensor([5.0, 6.0]).reshape(1, 2, 1, 1).expand(1, 2, 1, 2)
        assert reference.attention(q, k, v)[0][0, :, 0, 0].tolist() == [5, 5, 6, 6]

    def test_rows_without_a_key(self) -> None:
        q, k, v = (x.requires_grad_() for x in (double(1, 1, 3, 4), double(1, 1, 2, 4), double(1, 1, 2, 4)))
        out, lse = reference.attention(q, k, v, reference.positional_mask(3, 2))
        assert not out[0, 0, 0].any()
        assert lse[0, 0].isinf().tolist() == [True, False, False]
        gradients = torch.autograd.grad(out.sum(), (q, k, v))
        assert all(torch.isfinite(g).all() for g in gradients)
        assert not gradients[0][0, 0, 0].any()
        # what sees nothing changes nothing else
        alone, _ = reference.attention(q[:, :, 1:], k, v, reference.positional_mask(2, 2))
        torch.testing.assert_close(out[:, :, 1:], alone)

    def test_gradients_by_finite_differences(self) -> None:
        mask = reference.positional_mask(4, 3, window=2)
        leaves = [x.requires_grad_() for x in (double(1, 2, 4, 3), double(1, 1, 3, 3), double(1, 1, 3, 3))]
        assert torch.autograd.gradcheck(lambda q, k, v: reference.attention(q, k, v, mask)[0], leaves)


class TestMasks:
    def test_positions_by_hand(self) -> None:
        """Two queries against four keys are the positions 2 and 3."""
        assert reference.positional_mask(2, 4, causal=False) is None
        causal, window = reference.positional_mask(2, 4), reference.positional_mask(2, 4, window=2)
        assert causal is not None
        assert window is not None
        assert causal.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 1]]
        assert window.int().tolist() == [[0, 1, 1, 0], [0, 0, 1, 1]]
        early = reference.positional_mask(3, 1)
        assert early is not None
        assert early.int().tolist() == [[0], [0], [1]]

    def test_blocks_by_hand(self) -> None:
        blocks = torch.tensor([[True, False], [False, True]])
        full = reference.block_mask(blocks, 3, 4, block_q=2, block_kv=3, causal=False)
        assert full.int().tolist() == [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 1]]
        causal = reference.block_mask(blocks, 3, 4, block_q=2, block_kv=3)
        assert causal.int().tolist() == [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 0, 1]]


class TestDecode:
    def test_is_attention_over_the_filled_part(self) -> None:
        q, k, v = double(3, 4, 8), double(3, 2, 10, 8), double(3, 2, 10, 8).flip(0)
        lengths = [10, 1, 6]
        out = reference.decode(q, k, v, torch.tensor(lengths), scale=0.5)
        for i, length in enumerate(lengths):
            want = scaled_dot_product_attention(
                q[i : i + 1, :, None], k[i : i + 1, :, :length], v[i : i + 1, :, :length], scale=0.5, enable_gqa=True
            )
            torch.testing.assert_close(out[i], want[0, :, 0])

    def test_what_lies_past_a_length_does_not_matter(self) -> None:
        q, k, v = double(2, 2, 8), double(2, 1, 5, 8), double(2, 1, 5, 8).clone()
        k[0, :, 3:], v[0, :, 3:], k[1], v[1] = torch.nan, torch.inf, torch.nan, torch.nan
        out = reference.decode(q, k, v, torch.tensor([3, 0]))
        assert torch.isfinite(out).all()
        assert not out[1].any()
