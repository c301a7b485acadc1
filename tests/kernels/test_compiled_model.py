"""A small model compiled into one graph, with attention by our operations: its loss and gradients."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cegain.kernels.block_sparse import sparse_attention
from cegain.kernels.flash import flash_attention
from cegain.kernels.mqa import mqa_attention
from cegain.kernels.patterns import head_patterns
from tests.kernels import interpreter
from tests.kernels.interpreter import DEVICE

interpreter.mend()
TOKENS, WIDTH, HEADS = 40, 32, 2
STRIDED = head_patterns("strided", HEADS, TOKENS, stride=6)
Attention = Callable[..., Tensor]
ATTENTION: dict[str, tuple[int, Attention]] = {
    "flash": (2, lambda q, k, v, backend: flash_attention(q, k, v, backend=backend)),
    "mqa": (1, lambda q, k, v, backend: mqa_attention(q, k, v, backend=backend)),
    "strided": (1, lambda q, k, v, backend: sparse_attention(q, k, v, STRIDED, backend=backend)),
}


class Layer(nn.Module):
    def __init__(self, shared: int, attention: Attention, backend: str) -> None:
        super().__init__()
        self.shared, self.attention, self.backend = shared, attention, backend
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Linear(WIDTH, (HEADS + 2 * shared) * WIDTH // HEADS)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.project(self.norm(x)).unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2)
        q, k, v = heads.split((HEADS, self.shared, self.shared), 1)
        attended = self.attention(q, k, v, self.backend).transpose(1, 2).flatten(2)
        return x + self.out(attended).tanh()


def differentiated(model: Callable[[Tensor], Tensor], parameters: list[Tensor], x: Tensor) -> list[Tensor]:
    loss = model(x).square().mean()
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("backend", ["torch", pytest.param("triton", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ATTENTION)
def test_gradients_of_two_layers(name: str, backend: str) -> None:
    torch.compiler.reset()
    torch.manual_seed(0)
    shared, attention = ATTENTION[name]
    device = "cpu" if backend == "torch" else DEVICE
    model = nn.Sequential(*(Layer(shared, attention, backend) for _ in range(2))).to(device)
    x = torch.randn(1, TOKENS, WIDTH).to(device)
    parameters = list(model.parameters())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found, want = (differentiated(f, parameters, x) for f in (compiled, model))
    plain = nn.Sequential(*(Layer(shared, attention, "reference") for _ in range(2))).to(device)
    plain.load_state_dict(model.state_dict())
    exact = differentiated(plain, list(plain.parameters()), x)
    for got, eager, definition in zip(found, want, exact, strict=True):
        assert got.abs().sum() > 0
        torch.testing.assert_close(got, eager)
        torch.testing.assert_close(got, definition, rtol=1e-4, atol=1e-6)
