"""Full graphs through inductor, which needs a C++ compiler: what surrounds the operations is fused, they are not."""

import shutil
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from cegain.kernels.block_sparse import sparse_attention
from cegain.kernels.flash import flash_attention
from cegain.kernels.moe_dispatch import moe_feed_forward
from cegain.kernels.mqa import mqa_attention
from cegain.kernels.patterns import head_patterns

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
]
STRIDED = head_patterns("strided", 4, 70)
ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "flash": lambda q, k, v: flash_attention(q, k, v, backend="torch"),
    "window": lambda q, k, v: flash_attention(q, k, v, window=9, backend="torch"),
    "mqa": lambda q, k, v: mqa_attention(q, k, v, backend="torch"),
    "strided": lambda q, k, v: sparse_attention(q, k, v, STRIDED, backend="torch"),
}


def agree(function: Callable[..., Tensor], tensors: list[Tensor]) -> None:
    """Value and gradients, compiled and not."""
    torch.compiler.reset()
    compiled = torch.compile(function, fullgraph=True)
    for found, want in zip(differentiated(compiled, tensors), differentiated(function, tensors), strict=True):
        torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-5)


def differentiated(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    value = function(*leaves)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("name", ATTENTION)
def test_attention_inside_a_compiled_graph(name: str) -> None:
    random = torch.Generator().manual_seed(0)
    heads_kv = 1 if name == "mqa" else 2
    tensors = [torch.randn(2, heads, 70, 32, generator=random) for heads in (4, heads_kv, heads_kv)]
    agree(lambda q, k, v: ATTENTION[name](q * 0.5, k, v).tanh().square().sum(), tensors)


def test_mixture_inside_a_compiled_graph() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = ((40, 16), (4, 16), (4, 16, 24), (4, 24, 16), (4, 16, 24))
    tensors = [torch.randn(shape, generator=random) for shape in shapes]

    def loss(x: Tensor, *weights: Tensor) -> Tensor:
        out, balance = moe_feed_forward(x.tanh(), *weights, top_k=2, backend="torch")
        return out.square().mean() + balance

    agree(loss, tensors)
