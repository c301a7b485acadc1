"""Sorted, grouped experts against the plain mixture: outputs, gradients, registration, refusals."""

import re
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from cegain.kernels import reference
from cegain.kernels.moe_dispatch import dispatch_plan, moe_experts, moe_experts_backward, moe_feed_forward
from tests.kernels.closeness import assert_close

ACTIVATIONS = ["gelu", "relu2", "swiglu"]
NAMES = ["x", "weights", "w_up", "w_down", "w_gate"]


class Case(NamedTuple):
    """What `mixture` takes; gate is last and may be missing."""

    x: Tensor
    weights: Tensor
    experts: Tensor
    w_up: Tensor
    w_down: Tensor
    w_gate: Tensor | None

    def differentiable(self) -> list[Tensor]:
        return [self.x, self.weights, self.w_up, self.w_down, *([] if self.w_gate is None else [self.w_gate])]


def draw(*shape: int, seed: int = 0) -> Tensor:
    """Normal entries over the square root of the next to last size."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / max(shape[-2], 1) ** 0.5


def make_case(
    tokens: int, width: int, hidden: int, n_experts: int, top_k: int, activation: str = "swiglu", seed: int = 0
) -> Case:
    """Random tokens, weights and routing."""
    routing = reference.route(draw(tokens, n_experts, seed=seed + 1) * tokens**0.5, top_k)
    gate = draw(n_experts, width, hidden, seed=seed + 4) if activation == "swiglu" else None
    w_up, w_down = draw(n_experts, width, hidden, seed=seed + 2), draw(n_experts, hidden, width, seed=seed + 3)
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed))
    return Case(x, routing.weights, routing.experts, w_up, w_down, gate)


def check(cases: list[Case], activation: Any = "swiglu") -> None:
    """Outputs and all gradients against the plain mixture, in the cases' dtype, errors taken over all cases.

    Several draws of one shape: of few numbers, plain torch may happen to round every one almost exactly.
    """

    def fast(*stacked: Tensor) -> Tensor:
        outs = []
        for case, (x, weights, w_up, w_down, *gate) in zip(cases, zip(*stacked, strict=True), strict=True):
            gate = gate[0] if gate else None
            outs.append(moe_experts(x, weights, case.experts, w_up, w_down, gate, activation, "torch", True)[0])
        return torch.stack(outs)

    def plain(*stacked: Tensor) -> Tensor:
        outs = []
        for case, (x, weights, *matrices) in zip(cases, zip(*stacked, strict=True), strict=True):
            outs.append(reference.mixture(x, weights, case.experts, *matrices, activation=activation))
        return torch.stack(outs)

    stacked = [torch.stack(parts) for parts in zip(*(case.differentiable() for case in cases), strict=True)]
    assert_close(fast, plain, stacked, NAMES[: len(stacked)])


class TestPlan:
    @settings(max_examples=100, deadline=None)
    @given(data=st.data())
    def test_sorts_every_assignment_once(self, data: st.DataObject) -> None:
        n_experts, top_k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
        indices = st.lists(st.integers(0, n_experts - 1), min_size=top_k, max_size=top_k)
        experts = torch.tensor(data.draw(st.lists(indices, max_size=30)), dtype=torch.long).view(-1, top_k)
        plan = dispatch_plan(experts, n_experts)
        rows = experts.numel()
        assert sorted(plan.positions.flatten().tolist()) == list(range(rows))  # a permutation
        assert torch.equal(plan.offsets.diff(), torch.bincount(experts.flatten(), minlength=n_experts))
        assert (plan.offsets[0], plan.offsets[-1]) == (0, rows)
        for n, chosen in enumerate(experts.tolist()):
            for k, e in enumerate(chosen):
                row = int(plan.positions[n, k])
                assert plan.tokens[row] == n
                assert plan.offsets[e] <= row < plan.offsets[e + 1]
        for begin, end in zip(plan.offsets[:-1].tolist(), plan.offsets[1:].tolist(), strict=True):
            assert (plan.tokens[begin:end].diff() >= 0).all()  # stable: tokens in order

    def test_by_hand(self) -> None:
        plan = dispatch_plan(torch.tensor([[2, 0], [0, 3], [2, 3]]), 5)
        assert plan.tokens.tolist() == [0, 1, 0, 2, 1, 2]
        assert plan.positions.tolist() == [[2, 0], [1, 4], [3, 5]]
        assert plan.offsets.tolist() == [0, 2, 2, 4, 6, 6]


class TestAgainstTheReference:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize(
        ("tokens", "width", "hidden", "n_experts", "top_k"),
        [
            (1, 32, 64, 4, 2),
            (63, 60, 100, 7, 2),
            (111, 64, 32, 8, 1),
            (257, 128, 60, 5, 5),  # K = E
            (3, 32, 32, 13, 4),  # fewer tokens than experts
            (64, 1, 1, 3, 2),
            (40, 48, 20, 1, 1),
        ],
    )
    def test_shapes(self, activation: str, tokens: int, width: int, hidden: int, n_experts: int, top_k: int) -> None:
        draws = [
            make_case(tokens, width, hidden, n_experts, top_k, activation, seed=10 * draw)
            for draw in range(16 if tokens < 100 else 3)
        ]
        check(draws, activation)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, activation: str, dtype: torch.dtype) -> None:
        """Half-precision tokens with float32 routing weights, as the router gives them."""
        case = make_case(63, 32, 48, 5, 2, activation)
        halves = [None if tensor is None else tensor.to(dtype) for tensor in (case.w_up, case.w_down, case.w_gate)]
        check([Case(case.x.to(dtype), case.weights, case.experts, *halves)], activation)  # type: ignore[arg-type]

    @pytest.mark.parametrize("experts", [[4, 4], [0, 6], [6, 0]])
    def test_all_tokens_to_the_same_experts(self, experts: list[int]) -> None:
        case = make_case(65, 32, 48, 7, 2)
        check([case._replace(experts=torch.tensor([experts]).expand(65, 2))])

    def test_an_expert_without_tokens_gets_zero_gradients(self) -> None:
        case = make_case(65, 32, 48, 7, 2)
        leaves = [tensor.requires_grad_() for tensor in case.differentiable()]
        experts = torch.where(case.experts == 3, 5, case.experts)
        check([case._replace(experts=experts)])
        out, _ = moe_experts(
            case.x, case.weights, experts, case.w_up, case.w_down, case.w_gate, "swiglu", "torch", True
        )
        for gradient in torch.autograd.grad(out.sum(), leaves)[2:]:
            assert not gradient[3].any()
            assert gradient[5].any()

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_numerical_gradients(self, activation: str) -> None:
        case = make_case(5, 3, 4, 4, 2, activation)
        leaves = [tensor.double().requires_grad_() for tensor in case.differentiable()]

        def op(x: Tensor, weights: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None = None) -> Tensor:
            out: Tensor = moe_experts(x, weights, case.experts, w_up, w_down, w_gate, activation, "torch", True)[0]
            return out

        assert torch.autograd.gradcheck(op, leaves)

    @settings(max_examples=50, deadline=None)
    @given(data=st.data())
    def test_any_routing(self, data: st.DataObject) -> None:
        """Assignments drawn freely, loads as uneven as they come; float64, to the last few bits."""
        tokens, n_experts = data.draw(st.integers(0, 40)), data.draw(st.integers(1, 9))
        top_k = data.draw(st.integers(1, n_experts))
        activation: Any = data.draw(st.sampled_from(ACTIVATIONS))
        order = st.permutations(range(n_experts))
        chosen = [data.draw(order)[:top_k] for _ in range(tokens)]
        case = make_case(tokens, 5, 7, n_experts, top_k, activation)
        case = Case(*(None if t is None else t.double() for t in case))._replace(  # type: ignore[arg-type]
            experts=torch.tensor(chosen, dtype=torch.long).view(tokens, top_k)
        )
        leaves = [tensor.requires_grad_() for tensor in case.differentiable()]
        out, _ = moe_experts(*case, activation, "torch", True)
        expected = reference.mixture(*case, activation=activation)
        torch.testing.assert_close(out, expected)
        grad = torch.randn(out.shape, dtype=torch.float64)
        ours = torch.autograd.grad(out, leaves, grad)
        for name, got, want in zip(NAMES, ours, torch.autograd.grad(expected, leaves, grad), strict=False):
            torch.testing.assert_close(got, want, msg=lambda text, name=name: f"{name}: {text}")

    def test_strided_arguments(self) -> None:
        """Every second column of x, transposed weights and routing, and the expanded gradient of a sum."""
        case = make_case(64, 32, 48, 5, 2)
        turned = [tensor.transpose(-2, -1).contiguous().transpose(-2, -1) for tensor in case[1:] if tensor is not None]
        strided = Case(torch.randn(64, 64)[:, ::2], *turned)
        assert not any(tensor.is_contiguous() for tensor in strided if tensor is not None)
        leaves = [tensor.requires_grad_() for tensor in strided.differentiable()]
        outs = (moe_experts(*strided, "swiglu", "torch", True)[0], reference.mixture(*strided))
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
        for got, want in zip(*(torch.autograd.grad(out.sum(), leaves) for out in outs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def layer(tokens: int, *, seed: int = 0, activation: str = "swiglu", n_experts: int = 6) -> dict[str, Any]:
    """Arguments of `moe_feed_forward` with M = 16, F = 24."""
    tensors = {
        "x": torch.randn(tokens, 16, generator=torch.Generator().manual_seed(seed)),
        "w_router": draw(n_experts, 16, seed=seed + 1),
        "w_up": draw(n_experts, 16, 24, seed=seed + 2),
        "w_down": draw(n_experts, 24, 16, seed=seed + 3),
    }
    if activation == "swiglu":
        tensors["w_gate"] = draw(n_experts, 16, 24, seed=seed + 4)
    return {**tensors, "activation": activation, "top_k": 2}


class TestFeedForward:
    @pytest.mark.parametrize("router", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("normalise", [True, False])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("shared", [False, True])
    def test_backends_agree(self, router: str, normalise: bool, activation: str, shared: bool) -> None:
        arguments = layer(63, activation=activation)
        tensors = {name: value.double().requires_grad_() for name, value in arguments.items() if torch.is_tensor(value)}
        options = {**arguments, **tensors, "router": router, "normalise": normalise}
        if shared:
            gate = draw(16, 20, seed=8).double() if activation == "swiglu" else None
            options["shared"] = (draw(16, 20, seed=6).double(), draw(20, 16, seed=7).double(), gate)
        found = []
        for backend in ("auto", "torch", "reference"):
            out, loss = moe_feed_forward(**options, backend=backend)
            gradients = torch.autograd.grad(out.square().sum() + loss, list(tensors.values()))
            found.append((out, loss, *gradients))
        for auto, ours, plain in zip(*found, strict=True):
            assert torch.equal(auto, ours)
            torch.testing.assert_close(ours, plain)

    def test_float32_is_as_close_as_plain_float32(self) -> None:
        arguments = layer(257)
        names = ["x", "w_router", "w_up", "w_down", "w_gate"]

        def with_loss(out: Tensor, loss: Tensor) -> Tensor:
            return torch.cat([out.flatten(), loss[None]])

        assert_close(
            lambda *tensors: with_loss(*moe_feed_forward(*tensors, top_k=2)),
            lambda *tensors: with_loss(*reference.moe_feed_forward(*tensors, top_k=2)),
            [arguments[name] for name in names],
            names,
        )

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_keeps_its_dtype(self, dtype: torch.dtype) -> None:
        arguments = {name: v.to(dtype) if torch.is_tensor(v) else v for name, v in layer(30).items()}
        (out, loss), (plain, same) = (moe_feed_forward(**arguments, backend=b) for b in ("torch", "reference"))
        assert out.dtype == dtype
        assert loss.dtype == torch.float32
        torch.testing.assert_close(out, plain, rtol=2e-2, atol=2e-2)
        assert loss == same

    def test_leading_dimensions(self) -> None:
        arguments = layer(24)
        flat, loss = moe_feed_forward(**arguments)
        arguments["x"] = arguments["x"].view(2, 3, 4, 16)
        for backend in ("torch", "reference"):
            out, same = moe_feed_forward(**arguments, backend=backend)  # type: ignore[arg-type]
            torch.testing.assert_close(out, flat.view(2, 3, 4, 16))
            torch.testing.assert_close(loss, same)
        arguments["x"] = arguments["x"][0, 0, 0]
        torch.testing.assert_close(moe_feed_forward(**arguments)[0], flat[0])

    @pytest.mark.parametrize("backend", ["torch", "reference"])
    def test_no_tokens(self, backend: Any) -> None:
        arguments = layer(0)
        tensors = [value.requires_grad_() for value in arguments.values() if torch.is_tensor(value)]
        out, loss = moe_feed_forward(**arguments, backend=backend)
        assert out.shape == (0, 16)
        assert loss == 0
        for tensor, gradient in zip(tensors, torch.autograd.grad(out.sum() + loss, tensors), strict=True):
            assert gradient.shape == tensor.shape
            assert not gradient.any()

    def test_permuted_tokens_give_permuted_outputs(self) -> None:
        arguments = layer(100)
        order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
        out, loss = moe_feed_forward(**arguments)
        permuted, same = moe_feed_forward(**{**arguments, "x": arguments["x"][order]})
        torch.testing.assert_close(permuted, out[order])
        torch.testing.assert_close(same, loss)

    def test_permuted_experts_change_nothing(self) -> None:
        arguments = layer(100)
        order = torch.tensor([3, 1, 5, 0, 2, 4])
        names = ("w_router", "w_up", "w_down", "w_gate")
        out, loss = moe_feed_forward(**arguments)
        permuted, same = moe_feed_forward(**{**arguments, **{name: arguments[name][order] for name in names}})
        torch.testing.assert_close(permuted, out)
        torch.testing.assert_close(same, loss)

    def test_repeats_bit_for_bit(self) -> None:
        arguments = layer(200)
        tensors = [value.requires_grad_() for value in arguments.values() if torch.is_tensor(value)]
        runs = []
        for _ in range(3):
            out, loss = moe_feed_forward(**arguments)
            runs.append((out, *torch.autograd.grad(out.square().sum() + loss, tensors)))
        for first, *others in zip(*runs, strict=True):
            assert all(torch.equal(first, other) for other in others)

    @pytest.mark.parametrize("trained", ["x", "w_router", "w_up", "w_down", "w_gate"])
    def test_only_one_tensor_is_trained(self, trained: str) -> None:
        arguments = layer(30)
        arguments[trained].requires_grad_()
        ours, plain = (
            torch.autograd.grad(moe_feed_forward(**arguments, backend=backend)[0].square().sum(), arguments[trained])[0]
            for backend in ("torch", "reference")
        )
        torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)

    def test_nothing_is_kept_without_gradients(self) -> None:
        case = make_case(30, 16, 24, 5, 2)
        kept, dropped = (moe_experts(*case, "swiglu", "torch", keep) for keep in (True, False))
        assert torch.equal(kept[0], dropped[0])
        assert (kept[1].shape, dropped[1].shape) == ((2, 60, 24), (2, 0, 24))
        case.x.requires_grad_()
        with pytest.raises(ValueError, match="keep must be True where gradients are wanted, got False"):
            moe_experts(*case, "swiglu", "torch", False)[0].sum().backward()

    def test_checkpointing(self) -> None:
        arguments = layer(30)
        x = arguments.pop("x").requires_grad_()

        def run(x: Tensor) -> Tensor:
            return moe_feed_forward(x, **arguments)[0].square().sum()

        direct, later = (
            torch.autograd.grad(run_it, x)[0] for run_it in (run(x), checkpoint(run, x, use_reentrant=False))
        )
        assert torch.equal(direct, later)

    def test_a_second_derivative_is_refused(self) -> None:
        arguments = layer(10)
        x = arguments["x"].requires_grad_()
        (gradient,) = torch.autograd.grad(moe_feed_forward(**arguments)[0].square().sum(), x, create_graph=True)
        with pytest.raises(NotImplementedError, match="no second derivative; use backend='reference'"):
            gradient.sum().backward()


class TestRegistration:
    def test_opcheck(self) -> None:
        case = make_case(20, 8, 12, 5, 2)
        hidden = moe_experts(*case, "swiglu", "torch", True)[1]
        torch.library.opcheck(moe_experts, (*case, "swiglu", "torch", False))
        torch.library.opcheck(moe_experts_backward, (torch.randn(20, 8), *case, hidden, "swiglu", "torch"))
        for tensor in case.differentiable():
            tensor.requires_grad_()
        torch.library.opcheck(moe_experts, (*case, "swiglu", "torch", True))

    def test_opcheck_without_gate(self) -> None:
        case = make_case(20, 8, 12, 5, 2, "gelu")
        for tensor in case.differentiable():
            tensor.requires_grad_()
        torch.library.opcheck(moe_experts, (*case, "gelu", "torch", True))

    @pytest.mark.parametrize("activation", ["swiglu", pytest.param("relu2", marks=pytest.mark.slow)])
    def test_compiles_as_one_graph(self, activation: str) -> None:
        arguments = layer(40, activation=activation)
        tensors = {name: value.requires_grad_() for name, value in arguments.items() if torch.is_tensor(value)}

        def run(tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return moe_feed_forward(**tensors, activation=activation, top_k=2)  # type: ignore[arg-type]

        compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
        for tokens in (40, 33):  # the second makes a graph of any length
            part = {**tensors, "x": tensors["x"][:tokens]}
            found = []
            for function in (run, compiled):
                out, loss = function(part)
                gradients = torch.autograd.grad(out.square().sum() + loss, list(tensors.values()))
                found.append((out, loss, *gradients))
            for eager, graph in zip(*found, strict=True):
                torch.testing.assert_close(eager, graph)


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"backend": "cuda"}, "backend must be one of auto, triton, torch, reference, got 'cuda'"),
            ({"top_k": 7}, "top_k must be from 1 to the 6 experts, got 7; use fewer or add experts"),
            ({"top_k": 0}, "top_k must be from 1 to the 6 experts, got 0"),
            ({"router": "hash"}, "router must be one of softmax, sigmoid, got 'hash'"),
            ({"activation": "tanh"}, "activation must be one of gelu, relu2, swiglu, got 'tanh'"),
            ({"w_gate": None}, "w_gate must be a tensor with activation 'swiglu', got None"),
            ({"activation": "gelu"}, "w_gate must be None with activation 'gelu', got a tensor of shape [6, 16, 24]"),
            ({"x": torch.zeros(5, 15)}, "w_up must be [E, M, F] = [any, 15, any], got [6, 16, 24]"),
            ({"x": torch.tensor(1.0)}, "x must be [..., M] = [any, any], got []"),
            ({"x": torch.zeros(5, 16).long()}, "x must be float16, bfloat16, float32 or float64, got torch.int64"),
            ({"w_up": torch.zeros(6, 16, 24).double()}, "w_up must have x's dtype torch.float32, got torch.float64"),
            ({"w_up": torch.zeros(6, 16, 24, device="meta")}, "w_up must be on x's device cpu, got meta"),
            ({"w_up": torch.zeros(6, 16, 0)}, "w_up must have F of at least 1, got 0"),
            ({"w_router": torch.zeros(5, 16)}, "w_router must be [E, M] = [6, 16], got [5, 16]"),
            ({"w_down": torch.zeros(6, 16, 24)}, "w_down must be [E, F, M] = [6, 24, 16], got [6, 16, 24]"),
            ({"w_gate": torch.zeros(6, 16, 23)}, "w_gate must be [E, M, F] = [6, 16, 24], got [6, 16, 23]"),
            (
                {"shared": (torch.zeros(9, 8), torch.zeros(8, 16), torch.zeros(16, 8))},
                "shared[0] must be [M, F'] = [16,",
            ),
            (
                {"shared": (torch.zeros(16, 8), torch.zeros(7, 16), torch.zeros(16, 8))},
                "shared[1] must be [F', M] = [8,",
            ),
            ({"shared": (torch.zeros(16, 8), torch.zeros(8, 16), None)}, "shared[2] must be a tensor with activation"),
        ],
    )
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")
    def test_bad_arguments(self, change: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=re.escape(message)):
            moe_feed_forward(**{**layer(5), **change})

    def test_triton_without_a_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        with pytest.raises(ValueError, match="backend 'triton' must get CUDA tensors, got cpu; use auto or torch"):
            moe_feed_forward(**layer(5), backend="triton")

    def test_all_problems_at_once(self) -> None:
        with pytest.raises(ValueError, match=r"(?s)^moe_feed_forward: router must.*\nw_gate must.*\ntop_k must"):
            moe_feed_forward(**{**layer(5), "router": "hash", "w_gate": None, "top_k": 9})
