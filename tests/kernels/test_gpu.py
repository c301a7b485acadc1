"""Sizes whose offsets do not fit in 32 bits, on a GPU; the same comparisons at small sizes anywhere.

A part of the output is computed again from the inputs that it depends on, by themselves, so that nothing of it is far
from anything: results agree as far as sums in another order do. The output's gradient is 0 outside that part, so that
gradients there are 0 too, or are those of the part alone.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from cegain.kernels.flash import flash_attention
from cegain.kernels.moe_dispatch import moe_feed_forward

FAR = 2**31
HALVES = [torch.float16, torch.bfloat16]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
CLOSE = {torch.float16: 4e-3, torch.bfloat16: 3e-2}
"""Of the largest entry: four roundings and more, as sums are in another order and rounded between products."""
PART = 64

large = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_properties(0).total_memory < 100e9,
    reason="takes a GPU with 100 GB",
)


class Mixture(NamedTuple):
    """Sizes of a mixture of experts: tokens, width, an expert's width, experts, experts per token."""

    tokens: int
    width: int
    inner: int
    experts: int
    top_k: int


SMALL = [Mixture(200, 16, 24, 5, 2), Mixture(70, 32, 16, 40, 1)]
# Rows times an expert's width; tokens times the width; experts times both.
LARGE = [Mixture(2**19 + 3, 64, 768, 16, 8), Mixture(2**21 + 3, 1088, 64, 8, 1), Mixture(4096, 1024, 1088, 2048, 2)]


def agree(name: str, got: Tensor, wanted: Tensor) -> None:
    """Equal but for rounding, in relation to the largest entry; and there is something to compare."""
    largest = float(wanted.abs().max())
    error = float((got.float() - wanted.float()).abs().max())
    assert largest > 0, name
    assert error <= CLOSE[wanted.dtype] * largest, f"{name}: error {error:.3g}, largest entry {largest:.3g}"


def mixture_agrees(sizes: Mixture, dtype: torch.dtype) -> None:
    """Some tokens, the last ones among them, in a large batch and by themselves."""
    n, m, f, e, k = sizes
    generator = torch.Generator(DEVICE).manual_seed(0)

    def normal(*shape: int, fan: int) -> Tensor:
        made = torch.randn(shape, generator=generator, device=DEVICE, dtype=dtype)
        return made.mul_(fan**-0.5).requires_grad_()

    x, router = normal(n, m, fan=1), normal(e, m, fan=m)
    weights = [normal(e, m, f, fan=m), normal(e, f, m, fan=f), normal(e, m, f, fan=m)]
    chosen = torch.linspace(0, n - 1, PART, device=DEVICE, dtype=torch.float64).round().long()
    grad_of_part = torch.randn((PART, m), generator=generator, device=DEVICE, dtype=dtype)

    out = moe_feed_forward(x, router, *weights, top_k=k)[0]
    grad = torch.zeros_like(out)
    grad[chosen] = grad_of_part
    found = torch.autograd.grad(out, [x, *weights], grad)
    got = [out.detach()[chosen], found[0][chosen], *found[1:]]
    outside = found[0].clone()
    outside[chosen] = 0
    assert not outside.any(), "gradients of tokens that have none"
    del out, grad, found, outside

    part = x.detach()[chosen].requires_grad_()
    alone = moe_feed_forward(part, router, *weights, top_k=k)[0]
    wanted = [alone.detach(), *torch.autograd.grad(alone, [part, *weights], grad_of_part)]
    names = ["output", "gradient of x", "gradient of w_up", "gradient of w_down", "gradient of w_gate"]
    for name, one, other in zip(names, got, wanted, strict=True):
        agree(name, one, other)


def attention_agrees(batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype) -> None:
    """The last sequence of a batch, and the same by itself."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    made = [torch.randn((batch, heads, tokens, width), generator=generator, device=DEVICE, dtype=dtype) for _ in "qkv"]
    q, k, v = (x.requires_grad_() for x in made)
    out = flash_attention(q, k, v)
    grad = torch.zeros_like(out)
    grad[-1] = torch.randn((heads, tokens, width), generator=generator, device=DEVICE, dtype=dtype)
    found = torch.autograd.grad(out, [q, k, v], grad)
    last = [x.detach()[-1:].requires_grad_() for x in (q, k, v)]
    alone = flash_attention(*last)
    wanted = torch.autograd.grad(alone, last, grad[-1:])
    agree("output", out.detach()[-1:], alone.detach())
    for name, one, other in zip("qkv", found, wanted, strict=True):
        agree(f"gradient of {name}", one[-1:], other)
        assert not one[:-1].any(), f"gradient of {name} in a sequence that has none"


@pytest.mark.parametrize("dtype", HALVES, ids=str)
class TestSmall:
    @pytest.mark.parametrize("sizes", SMALL, ids=str)
    def test_mixture(self, sizes: Mixture, dtype: torch.dtype) -> None:
        mixture_agrees(sizes, dtype)

    def test_attention(self, dtype: torch.dtype) -> None:
        attention_agrees(2, 2, 70, 16, dtype)


@large
@pytest.mark.parametrize("dtype", HALVES, ids=str)
class TestLarge:
    @pytest.mark.parametrize("sizes", LARGE, ids=str)
    def test_mixture(self, sizes: Mixture, dtype: torch.dtype) -> None:
        n, m, f, e, k = sizes
        assert max(n * k * f, n * m, e * m * f) > FAR
        mixture_agrees(sizes, dtype)

    def test_attention(self, dtype: torch.dtype) -> None:
        assert FAR < 300 * 8 * 8192 * 128
        attention_agrees(300, 8, 8192, 128, dtype)


def test_another_result_is_seen() -> None:
    with pytest.raises(AssertionError, match=r"output: error 0\.1"):
        agree("output", torch.tensor([1.0, 2.1]), torch.tensor([1.0, 2.0]).half())
    with pytest.raises(AssertionError):
        agree("output", torch.zeros(2), torch.zeros(2).half())
