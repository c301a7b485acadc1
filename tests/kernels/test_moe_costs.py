"""Counted work of a mixture of experts against `cegain.kernels.costs`, both passes, to the last FLOP."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cegain.kernels import costs, fvcore_handles, reference
from cegain.kernels.costs import Activation
from cegain.kernels.moe_dispatch import moe_feed_forward

TOKENS, WIDTH, HIDDEN, EXPERTS, TOP_K = 37, 12, 20, 7, 3
ACTIVATIONS = ["gelu", "relu2", "swiglu"]


def arguments(activation: Activation) -> list[Tensor]:
    """x, w_router, w_up, w_down and the gate, all trained."""
    shapes = [(TOKENS, WIDTH), (EXPERTS, WIDTH), (EXPERTS, WIDTH, HIDDEN), (EXPERTS, HIDDEN, WIDTH)]
    if activation == "swiglu":
        shapes.append((EXPERTS, WIDTH, HIDDEN))
    random = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=random).requires_grad_() for shape in shapes]


def counted(function: Any) -> dict[str, int]:
    """FLOP of a function's forward and backward pass as torch counts them."""
    with FlopCounterMode(display=False) as forward:
        out = function()
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return {"fwd": forward.get_total_flops(), "bwd": backward.get_total_flops()}


def gathered(tensors: list[Tensor], activation: Activation) -> Tensor:
    """The mixture as a loop over experts, each on its own tokens only, in plain torch."""
    x, w_router, w_up, w_down, *gate = tensors
    weights, experts, _ = reference.route(x @ w_router.T, TOP_K)
    out = torch.zeros_like(x)
    for e in range(EXPERTS):
        tokens, slots = (experts == e).nonzero(as_tuple=True)
        one = reference.expert(x[tokens], w_up[e], w_down[e], gate[0][e] if gate else None, activation)
        out = out.index_add(0, tokens, one * weights[tokens, slots, None])
    return out


@pytest.mark.parametrize("activation", ACTIVATIONS)
class TestTorchCounter:
    def test_reference_computes_every_expert_on_every_token(self, activation: Activation) -> None:
        found = counted(
            lambda: reference.moe_feed_forward(*arguments(activation), top_k=TOP_K, activation=activation)[0]
        )  # type: ignore[misc,arg-type]
        for pass_ in ("fwd", "bwd"):
            router = costs.linear(TOKENS, WIDTH, EXPERTS, pass_=pass_)  # type: ignore[arg-type]
            dense = costs.feed_forward(TOKENS, WIDTH, HIDDEN, activation, pass_=pass_)  # type: ignore[arg-type]
            assert found[pass_] == (router + EXPERTS * dense).flops

    def test_gathered_rows_and_the_registered_op_cost_what_is_predicted(self, activation: Activation) -> None:
        loop = counted(lambda: gathered(arguments(activation), activation))
        ours = counted(lambda: moe_feed_forward(*arguments(activation), top_k=TOP_K, activation=activation)[0])  # type: ignore[misc,arg-type]
        for pass_ in ("fwd", "bwd"):
            predicted = costs.moe_feed_forward(
                TOKENS,
                WIDTH,
                HIDDEN,
                activation,
                n_experts=EXPERTS,
                top_k=TOP_K,
                pass_=pass_,  # type: ignore[arg-type]
            )
            assert loop[pass_] == ours[pass_] == predicted.flops == predicted.executed_flops

    def test_a_shared_expert_is_one_more_per_token(self, activation: Activation) -> None:
        tensors = arguments(activation)
        first = [tensor[0].detach().requires_grad_() for tensor in tensors[2:]]
        shared = (first[0], first[1], first[2] if activation == "swiglu" else None)
        found = counted(lambda: moe_feed_forward(*tensors, top_k=TOP_K, activation=activation, shared=shared)[0])  # type: ignore[misc,arg-type]
        for pass_ in ("fwd", "bwd"):
            predicted = costs.moe_feed_forward(
                TOKENS,
                WIDTH,
                HIDDEN,
                activation,
                n_experts=EXPERTS,
                top_k=TOP_K,
                n_shared_experts=1,
                pass_=pass_,  # type: ignore[arg-type]
            )
            assert found[pass_] == predicted.flops

    @pytest.mark.filterwarnings("ignore")
    def test_fvcore_sees_the_multiply_adds(self, activation: Activation) -> None:
        from fvcore.nn import FlopCountAnalysis

        class Layer(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.tensors = torch.nn.ParameterList(arguments(activation)[1:])

            def forward(self, x: Tensor) -> Tensor:
                return moe_feed_forward(x, *self.tensors, top_k=TOP_K, activation=activation)[0]  # type: ignore[misc,arg-type]

        analysis = FlopCountAnalysis(Layer(), (torch.zeros(TOKENS, WIDTH),)).set_op_handle(**fvcore_handles.handles())
        predicted = costs.moe_feed_forward(TOKENS, WIDTH, HIDDEN, activation, n_experts=EXPERTS, top_k=TOP_K)
        assert analysis.unsupported_ops_warnings(False).total() == predicted.flops // 2
