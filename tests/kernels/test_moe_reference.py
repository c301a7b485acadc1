"""The plain mixture of experts against one token at a time, hand-made cases and published formulas."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cegain.kernels import reference
from tests.reference_modules import FeedForward

ACTIVATIONS = ["gelu", "relu2", "swiglu"]


def weights_for(width: int, hidden: int, experts: int, activation: str) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """(w_router, w_up, w_down, w_gate) in float64, seeded."""
    random = torch.Generator().manual_seed(experts)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=random) / shape[-2] ** 0.5

    gate = draw(experts, width, hidden) if activation == "swiglu" else None
    return draw(experts, width), draw(experts, width, hidden), draw(experts, hidden, width), gate


def inputs(tokens: int, width: int) -> Tensor:
    return torch.randn(tokens, width, dtype=torch.float64, generator=torch.Generator().manual_seed(tokens))


class TestRoute:
    def test_softmax_of_chosen_logits_when_normalised(self) -> None:
        """Mixtral's softmax over the chosen logits is softmax over all of them, then divided by the chosen sum."""
        logits = inputs(50, 7)
        weights, experts, scores = reference.route(logits, 3)
        torch.testing.assert_close(weights, logits.gather(-1, experts).softmax(-1))
        torch.testing.assert_close(scores, logits.softmax(-1))

    @pytest.mark.parametrize("router", ["softmax", "sigmoid"])
    def test_the_largest_scores_are_chosen_in_order(self, router: str) -> None:
        logits = inputs(50, 7)
        weights, experts, scores = reference.route(logits, 3, router=router, normalise=False)
        assert torch.equal(experts, scores.topk(3).indices)
        torch.testing.assert_close(weights, scores.topk(3).values)
        torch.testing.assert_close(scores, logits.softmax(-1) if router == "softmax" else 1 / (1 + (-logits).exp()))

    def test_of_equal_scores_the_lower_index_wins(self) -> None:
        logits = torch.tensor([[0.0] * 40, [1.0] * 20 + [2.0] * 20, [2.0, 1.0] * 20])
        experts = reference.route(logits, 3).experts
        assert experts.tolist() == [[0, 1, 2], [20, 21, 22], [0, 2, 4]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_scores_of_half_precision_logits_are_float32(self, dtype: torch.dtype) -> None:
        routing = reference.route(torch.zeros(2, 3, dtype=dtype), 1)
        assert routing.weights.dtype == routing.scores.dtype == torch.float32

    def test_vanishing_sigmoid_scores_do_not_give_nan(self) -> None:
        assert torch.isfinite(reference.route(torch.full((2, 3), -200.0), 2, router="sigmoid").weights).all()


class TestBalanceLoss:
    @staticmethod
    def loss(experts: list[list[int]], scores: Tensor) -> float:
        chosen = torch.tensor(experts)
        return float(reference.balance_loss(reference.Routing(torch.ones(chosen.shape), chosen, scores)))

    def test_one_when_even_and_the_number_of_experts_when_all_go_to_one(self) -> None:
        assert self.loss([[0], [1], [2], [3]], torch.full((4, 4), 0.25)) == pytest.approx(1)
        assert self.loss([[2]] * 4, torch.eye(4)[[2] * 4]) == pytest.approx(4)

    def test_shares_times_mean_probabilities(self) -> None:
        scores = torch.tensor([[0.5, 0.25, 0.25], [0.75, 0.25, 0.0]])
        # shares 2/4, 1/4, 1/4; probabilities 0.625, 0.25, 0.125
        assert self.loss([[0, 1], [0, 2]], scores) == pytest.approx(3 * (0.5 * 0.625 + 0.25 * 0.25 + 0.25 * 0.125))
        assert self.loss([[0, 1], [0, 2]], 0.1 * scores) == pytest.approx(1.21875)  # sigmoid scores need not sum to 1

    def test_no_gradient_through_the_shares(self) -> None:
        scores = torch.full((4, 2), 0.5, requires_grad=True)
        chosen = torch.tensor([[0], [0], [0], [1]])
        reference.balance_loss(reference.Routing(torch.ones(4, 1), chosen, scores)).backward()
        assert scores.grad is not None
        # d/ds_e of E sum f P with normalisation: pushed from the crowded expert to the idle one, equally
        assert (scores.grad[:, 0] > 0).all()
        torch.testing.assert_close(scores.grad[:, 0], -scores.grad[:, 1])


class TestMixture:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_an_expert_is_the_usual_feed_forward_layer(self, activation: Any) -> None:
        layer = FeedForward(6, 10, activation, bias=False).double()
        gate = layer.gate.weight.T if activation == "swiglu" else None
        x = inputs(9, 6)
        torch.testing.assert_close(
            reference.expert(x, layer.up.weight.T, layer.down.weight.T, gate, activation), layer(x)
        )

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_one_token_at_a_time(self, activation: Any) -> None:
        w_router, w_up, w_down, w_gate = weights_for(6, 10, 5, activation)
        x = inputs(12, 6)
        weights, experts, _ = reference.route(x @ w_router.T, 3)
        out = reference.mixture(x, weights, experts, w_up, w_down, w_gate, activation=activation)
        for n in range(len(x)):
            expected = torch.zeros(6, dtype=torch.float64)
            for weight, e in zip(weights[n], experts[n], strict=True):
                hidden = x[n] @ w_up[e]
                if w_gate is not None:
                    gate = x[n] @ w_gate[e]
                    hidden = gate * torch.sigmoid(gate) * hidden
                else:
                    hidden = functional.gelu(hidden) if activation == "gelu" else hidden.clamp_min(0) ** 2
                expected += weight * (hidden @ w_down[e])
            torch.testing.assert_close(out[n], expected)

    def test_equal_experts_make_a_dense_layer(self) -> None:
        """Normalised weights sum to 1, so that identical experts give what one of them gives."""
        w_router, w_up, w_down, w_gate = weights_for(6, 10, 4, "swiglu")
        assert w_gate is not None
        x, same = inputs(20, 6), [0] * 4
        out, _ = reference.moe_feed_forward(x, w_router, w_up[same], w_down[same], w_gate[same], top_k=3)
        torch.testing.assert_close(out, reference.expert(x, w_up[0], w_down[0], w_gate[0], "swiglu"))

    def test_a_shared_expert_is_added(self) -> None:
        w_router, w_up, w_down, w_gate = weights_for(6, 10, 4, "swiglu")
        assert w_gate is not None
        x = inputs(20, 6)
        shared = (w_up[1], w_down[1], w_gate[1])
        without, loss = reference.moe_feed_forward(x, w_router, w_up, w_down, w_gate, top_k=2)
        out, same_loss = reference.moe_feed_forward(x, w_router, w_up, w_down, w_gate, top_k=2, shared=shared)
        torch.testing.assert_close(out, without + reference.expert(x, *shared, "swiglu"))
        assert loss == same_loss

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_gradients(self, activation: Any) -> None:
        weights = weights_for(3, 4, 4, activation)
        x = inputs(5, 3)
        tensors = [tensor.requires_grad_() for tensor in (x, *weights) if tensor is not None]

        def both(*tensors: Tensor) -> tuple[Tensor, Tensor]:
            return reference.moe_feed_forward(*tensors, top_k=2, activation=activation)  # type: ignore[misc,arg-type]

        assert torch.autograd.gradcheck(both, tensors)

    def test_no_tokens(self) -> None:
        weights = weights_for(6, 10, 4, "swiglu")
        out, loss = reference.moe_feed_forward(torch.zeros(0, 6, dtype=torch.float64), *weights, top_k=2)
        assert out.shape == (0, 6)
        assert loss == 0
