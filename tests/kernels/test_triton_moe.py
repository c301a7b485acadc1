"""Mixture of experts in Triton, in the interpreter without a GPU: routing tables, outputs, gradients, repeats, memory.

Tiles have 16 rows there and blocks 32 columns (`moe_triton.INTERPRETED_TILE`), a chunk of the sort 32 assignments.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.library import opcheck
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cegain.kernels import moe_dispatch, moe_routing_triton, moe_triton, reference
from cegain.kernels.backend import interpreting
from cegain.kernels.moe_dispatch import dispatch_plan, moe_experts, moe_experts_backward, moe_feed_forward
from cegain.kernels.moe_routing_triton import Tables, most_tiles, tables, top_k
from tests.kernels import interpreter
from tests.kernels.closeness import assert_close
from tests.kernels.interpreter import DEVICE
from tests.kernels.test_moe_dispatch import ACTIVATIONS, NAMES, Case, draw, make_case

interpreter.mend()
ROUTED = ["x", "w_router", "w_up", "w_down", "w_gate"]


def placed(case: Case, dtype: torch.dtype = torch.float32) -> Case:
    """On the device; routing weights stay in float32, as the router gives them."""
    x, weights, experts, *matrices = case
    moved = [None if tensor is None else tensor.to(DEVICE, dtype) for tensor in (x, *matrices)]
    return Case(moved[0], weights.to(DEVICE), experts.to(DEVICE), *moved[1:])  # type: ignore[arg-type]


def check(case: Case, activation: Any = "swiglu") -> None:
    """Output and all gradients against the plain mixture."""

    def fast(x: Tensor, weights: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None = None) -> Tensor:
        out: Tensor = moe_experts(x, weights, case.experts, w_up, w_down, w_gate, activation, "triton", True)[0]
        return out

    def plain(x: Tensor, weights: Tensor, *matrices: Tensor) -> Tensor:
        return reference.mixture(x, weights, case.experts, *matrices, activation=activation)

    tensors = case.differentiable()
    assert_close(fast, plain, tensors, NAMES[: len(tensors)], ulps=ulps(case.x.dtype))


def ulps(dtype: torch.dtype) -> int:
    """A routing weight's gradient sums over F what is summed over M, the plain one the other way round.

    In float32 these round differently, and of a few numbers the plain way may happen to get all almost exactly.
    """
    return 8 if dtype == torch.float32 else 2


def layer(
    tokens: int, n_experts: int = 5, top_k: int = 2, dtype: torch.dtype = torch.float32, seed: int = 0
) -> dict[str, Any]:
    """Arguments of `moe_feed_forward` with M = 20, F = 24."""
    x = torch.randn(tokens, 20, generator=torch.Generator().manual_seed(seed))
    shapes = [(n_experts, 20), (n_experts, 20, 24), (n_experts, 24, 20), (n_experts, 20, 24)]
    tensors = [x, *(draw(*shape, seed=seed + i) for i, shape in enumerate(shapes, 1))]
    named = {name: tensor.to(DEVICE, dtype) for name, tensor in zip(ROUTED, tensors, strict=True)}
    return {**named, "top_k": top_k}


def with_gradients(arguments: dict[str, Any], backend: str = "triton") -> list[Tensor]:
    """Output, balance loss, and the gradients of all tensors."""
    leaves = {name: arguments[name].detach().requires_grad_() for name in ROUTED}
    out, loss = moe_feed_forward(**{**arguments, **leaves}, backend=backend)
    return [out, loss, *torch.autograd.grad(out.square().sum() + loss, list(leaves.values()))]


class TestRouting:
    @settings(max_examples=20, deadline=None)
    @given(data=st.data())
    def test_tables(self, data: st.DataObject) -> None:
        """The same order as that of the plan, and tiles that hold every row once."""
        n_experts, k = data.draw(st.integers(1, 17)), data.draw(st.integers(1, 4))
        indices = st.lists(st.integers(0, n_experts - 1), min_size=k, max_size=k)
        lines = data.draw(st.lists(indices, min_size=1, max_size=30))
        experts = torch.tensor(lines, dtype=torch.long, device=DEVICE)
        plan, table = dispatch_plan(experts, n_experts), tables(experts, n_experts, 16)
        assert torch.equal(table.order // k, plan.tokens.int())
        assert torch.equal(table.positions.view(experts.shape), plan.positions.int())
        assert torch.equal(table.offsets, plan.offsets.int())
        rows: list[tuple[int, int]] = []
        offsets, filled = table.offsets.tolist(), int(table.first_tiles[-1])
        assert filled <= len(table.tiles) == most_tiles(experts.numel(), n_experts, 16)
        for begin, e in table.tiles[:filled].tolist():
            rows += [(row, e) for row in range(begin, min(begin + 16, offsets[e + 1]))]
        assert [row for row, _ in rows] == list(range(experts.numel()))
        assert [e for _, e in rows] == sorted(experts.flatten().tolist())

    @pytest.mark.parametrize("tokens", [31, 32, 33, 65])
    def test_around_a_chunk(self, tokens: int) -> None:
        for experts in (torch.full((tokens, 1), 2), torch.arange(tokens)[:, None] % 3):
            plan, table = dispatch_plan(experts, 4), tables(experts.to(DEVICE), 4, 16)
            assert torch.equal(table.positions.cpu(), plan.positions.flatten().int())

    @pytest.mark.parametrize(("n_experts", "k"), [(1, 1), (7, 3), (16, 16), (37, 5)])
    def test_best_experts(self, n_experts: int, k: int) -> None:
        """Ties, zeros and what is not a number go where a stable sort takes them."""
        scores = torch.randint(4, (50, n_experts), generator=torch.Generator().manual_seed(0)).float() / 4
        scores[3, n_experts // 2] = torch.nan
        found = top_k(scores.to(DEVICE), k)
        assert torch.equal(found.cpu(), reference.best_experts(scores, k))

    def test_no_tokens(self) -> None:
        assert top_k(torch.zeros(0, 4, device=DEVICE), 2).shape == (0, 2)

    @pytest.mark.parametrize("router", ["softmax", "sigmoid"])
    def test_routing_is_that_of_the_reference(self, router: str) -> None:
        """Also its gradient, in float32 from logits in half precision; large ones tie at a sigmoid of 1."""
        logits = (torch.randn(40, 9, generator=torch.Generator().manual_seed(1)) * 20).to(DEVICE, torch.bfloat16)
        found = []
        for backend in ("triton", "torch"):
            leaf = logits.detach().float().requires_grad_()
            routing = moe_dispatch.route(leaf, 3, router=router, backend=backend)
            scaled = routing.weights * torch.arange(3, device=DEVICE)
            found.append((*routing, *torch.autograd.grad(scaled.sum() + routing.scores.square().sum(), leaf)))
        for ours, theirs in zip(*found, strict=True):
            assert torch.equal(ours, theirs)
        assert found[0][-1].dtype == torch.float32


class TestCloseness:
    @pytest.mark.parametrize("tokens", [15, 16, 17])
    def test_around_a_tile(self, tokens: int) -> None:
        """All rows of one expert, the other has none."""
        case = make_case(tokens, 20, 24, 2, 1)
        check(placed(case._replace(experts=torch.ones_like(case.experts))))

    @pytest.mark.parametrize(
        ("tokens", "width", "hidden", "n_experts", "k"),
        [
            (1, 20, 24, 3, 2),
            (3, 20, 24, 7, 2),  # fewer tokens than experts, a prime number of them
            (20, 20, 24, 3, 1),
            (9, 20, 24, 3, 3),  # K = E
            (12, 40, 70, 3, 2),  # several blocks along every dimension, the last not full
            (7, 1, 1, 2, 2),
        ],
    )
    def test_shapes(self, tokens: int, width: int, hidden: int, n_experts: int, k: int) -> None:
        check(placed(make_case(tokens, width, hidden, n_experts, k)))

    @pytest.mark.parametrize("activation", ["gelu", "relu2"])
    def test_without_a_gate(self, activation: str) -> None:
        check(placed(make_case(20, 20, 24, 3, 2, activation)), activation)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision(self, dtype: torch.dtype) -> None:
        check(placed(make_case(24, 36, 24, 3, 2), dtype))

    def test_slices_of_columns(self) -> None:
        """M of 140 comes back in slices of 128 and of 12 columns."""
        assert moe_triton.slices(140, 16) == [(0, 128), (128, 140)]
        check(placed(make_case(8, 140, 16, 2, 1)))

    def test_skewed_routing(self) -> None:
        """Most tokens go to one expert, some to another, none to the rest."""
        case = make_case(40, 20, 24, 5, 1)
        check(placed(case._replace(experts=(torch.arange(40)[:, None] % 8 == 0) * 3)))

    def test_an_expert_without_tokens_gets_zero_gradients(self) -> None:
        case = placed(make_case(10, 20, 24, 4, 2))
        experts = torch.where(case.experts == 2, 0, case.experts)
        out, hidden = moe_experts(*case._replace(experts=experts), "swiglu", "triton", True)
        gradients = moe_experts_backward(out, *case._replace(experts=experts), hidden, "swiglu", "triton")
        for gradient in gradients[2:]:
            assert not gradient[2].any()
            assert gradient[0].any()

    def test_strided_arguments(self) -> None:
        """Every second column of x, transposed weights and routing, the expanded gradient of a sum."""
        case = make_case(20, 20, 24, 3, 2)
        turned = [tensor.transpose(-2, -1).contiguous().transpose(-2, -1) for tensor in case[1:] if tensor is not None]
        strided = placed(Case(torch.randn(20, 40)[:, ::2], *turned))
        leaves = [tensor.requires_grad_() for tensor in strided.differentiable()]
        outs = [moe_experts(*strided, "swiglu", "triton", True)[0], reference.mixture(*strided)]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)
        for got, want in zip(*(torch.autograd.grad(out.sum(), leaves) for out in outs), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)

    @pytest.mark.slow
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
    @pytest.mark.parametrize(
        ("tokens", "width", "hidden", "n_experts", "k"),
        [(63, 60, 100, 7, 2), (111, 64, 32, 8, 1), (33, 32, 64, 5, 5), (3, 32, 32, 13, 4), (100, 48, 33, 11, 3)],
    )
    def test_many_shapes(
        self, activation: str, dtype: torch.dtype, tokens: int, width: int, hidden: int, n_experts: int, k: int
    ) -> None:
        check(placed(make_case(tokens, width, hidden, n_experts, k, activation), dtype), activation)


class TestFeedForward:
    def test_router_gradients(self) -> None:
        arguments = layer(24)

        def op(backend: str) -> Any:
            def run(*tensors: Tensor) -> Tensor:
                out, loss = moe_feed_forward(*tensors, top_k=2, backend=backend)
                return torch.cat([out.flatten(), loss[None].to(out.dtype)])

            return run

        assert_close(op("triton"), op("reference"), [arguments[name] for name in ROUTED], ROUTED, ulps=8)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_router_gradients_in_half_precision(self, dtype: torch.dtype) -> None:
        """K = E, so that rounded logits choose what exact ones do."""
        arguments = layer(20, n_experts=2, dtype=dtype)

        def op(backend: str) -> Any:
            return lambda *tensors: moe_feed_forward(*tensors, top_k=2, normalise=False, backend=backend)[0]

        assert_close(op("triton"), op("reference"), [arguments[name] for name in ROUTED], ROUTED, ulps=2)

    def test_no_tokens(self) -> None:
        arguments = layer(0)
        out, loss, *gradients = with_gradients(arguments)
        assert out.shape == (0, 20)
        assert loss == 0
        for name, gradient in zip(ROUTED, gradients, strict=True):
            assert gradient.shape == arguments[name].shape
            assert not gradient.any()

    def test_repeats_bit_for_bit(self) -> None:
        arguments = layer(30)
        for first, second in zip(with_gradients(arguments), with_gradients(arguments), strict=True):
            assert torch.equal(first, second)

    def test_leading_dimensions_and_a_shared_expert(self) -> None:
        arguments = layer(12)
        arguments["x"] = arguments["x"].view(2, 6, 20)
        shared = [draw(*shape, seed=9).to(DEVICE) for shape in ((20, 8), (8, 20), (20, 8))]
        outs = [moe_feed_forward(**arguments, shared=shared, backend=name)[0] for name in ("triton", "reference")]
        torch.testing.assert_close(*outs, rtol=1e-4, atol=1e-5)

    @settings(max_examples=4, deadline=None)
    @given(tokens=st.integers(1, 20), n_experts=st.integers(2, 6), seed=st.integers(0, 99), data=st.data())
    def test_permuted_tokens_permute_outputs(self, tokens: int, n_experts: int, seed: int, data: st.DataObject) -> None:
        order = torch.tensor(data.draw(st.permutations(range(tokens))), device=DEVICE)
        arguments = layer(tokens, n_experts, seed=seed)
        out, loss = moe_feed_forward(**arguments, backend="triton")
        permuted, same = moe_feed_forward(**{**arguments, "x": arguments["x"][order]}, backend="triton")
        torch.testing.assert_close(permuted, out[order])
        torch.testing.assert_close(same, loss)

    @settings(max_examples=4, deadline=None)
    @given(tokens=st.integers(1, 20), seed=st.integers(0, 99), order=st.permutations(range(5)))
    def test_permuted_experts_change_nothing(self, tokens: int, seed: int, order: list[int]) -> None:
        arguments = layer(tokens, seed=seed)
        moved = {name: arguments[name][torch.tensor(order, device=DEVICE)] for name in ROUTED[1:]}
        out, loss = moe_feed_forward(**arguments, backend="triton")
        permuted, same = moe_feed_forward(**{**arguments, **moved}, backend="triton")
        torch.testing.assert_close(permuted, out)
        torch.testing.assert_close(same, loss)

    @pytest.mark.slow
    @settings(max_examples=8, deadline=None)
    @given(tokens=st.integers(1, 40), seed=st.integers(0, 99), order=st.permutations(range(5)), data=st.data())
    def test_permutations_carry_over_to_gradients(
        self, tokens: int, seed: int, order: list[int], data: st.DataObject
    ) -> None:
        experts = torch.tensor(order, device=DEVICE)
        places = torch.tensor(data.draw(st.permutations(range(tokens))), device=DEVICE)
        arguments = layer(tokens, seed=seed)
        moved = {"x": arguments["x"][places]} | {name: arguments[name][experts] for name in ROUTED[1:]}
        out, loss, d_x, *d_weights = with_gradients(arguments)
        expected = (out[places], loss, d_x[places], *(gradient[experts] for gradient in d_weights))
        for got, want in zip(with_gradients({**arguments, **moved}), expected, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


class TestRegistration:
    @pytest.mark.slow
    def test_opcheck(self) -> None:
        case = placed(make_case(6, 8, 12, 3, 2))
        hidden = moe_experts(*case, "swiglu", "triton", True)[1]
        opcheck(moe_dispatch.best_experts, (torch.rand(5, 4, device=DEVICE), 2))
        opcheck(moe_experts_backward, (torch.randn(6, 8, device=DEVICE), *case, hidden, "swiglu", "triton"))
        for tensor in case.differentiable():
            tensor.requires_grad_()
        opcheck(moe_experts, (*case, "swiglu", "triton", True))

    @pytest.mark.slow
    def test_compiles_as_one_graph(self) -> None:
        arguments = layer(10, n_experts=3)
        compiled = torch.compile(with_gradients_of_leaves, fullgraph=True, backend="aot_eager")
        leaves = {name: arguments[name].requires_grad_() for name in ROUTED}
        found = []
        for function in (with_gradients_of_leaves, compiled):
            out, loss = function(leaves)
            found.append((out, loss, *torch.autograd.grad(out.square().sum() + loss, list(leaves.values()))))
        for eager, graph in zip(*found, strict=True):
            torch.testing.assert_close(eager, graph)

    def test_what_the_kernels_do_not_take(self) -> None:
        x, w_up = torch.empty(2**20, 4, device="meta"), torch.empty(8, 4, 4, device="meta")
        assert moe_dispatch.triton_unfit(x, w_up, 2) is None
        assert moe_dispatch.triton_unfit(x.double(), w_up, 2) == "float64"
        assert "4097 experts" in str(moe_dispatch.triton_unfit(x, torch.empty(4097, 4, 4, device="meta"), 2))
        assert "more than 2^30" in str(moe_dispatch.triton_unfit(x, w_up, 2**11))
        with pytest.raises(ValueError, match="backend 'triton' must get what its kernel for moe_feed_forward takes"):
            moe_feed_forward(**{name: layer(3)[name].double() for name in ROUTED}, top_k=2, backend="triton")


def with_gradients_of_leaves(leaves: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return moe_feed_forward(**leaves, top_k=2, backend="triton")


class Watch(TorchDispatchMode):
    """Notes the most bytes held at once in tensors made under it, and refuses what makes the host wait."""

    WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "_unique2", "masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.peak, self.held = 0, dict[int, tuple[StorageWeakRef, int]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func.__name__.split(".")[0] not in self.WAITS, f"the host must not wait, {func} does"
        made = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        given |= {x.data_ptr() for x in args if isinstance(x, torch.UntypedStorage)}
        if isinstance(made, Tensor) and made.numel() and made.untyped_storage().data_ptr() not in given:
            storage = made.untyped_storage()
            self.held.setdefault(storage.data_ptr(), (StorageWeakRef(storage), storage.nbytes()))
        self.held = {at: kept for at, kept in self.held.items() if not kept[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.held.values()))
        return made


class TestMemory:
    @pytest.mark.parametrize("width", [150, 20])
    @pytest.mark.parametrize("keep", [True, False])
    def test_forward(self, width: int, keep: bool) -> None:
        """The formula of `moe_triton.forward` to the last byte."""
        tokens, inner, n_experts, k = 40, 24, 3, 2
        case = placed(make_case(tokens, width, inner, n_experts, k), torch.float16)
        with Watch() as watch:
            out, hidden = moe_triton.forward(*case, "swiglu", keep)
        assert hidden.numel() == (2 * tokens * k * inner if keep else 0)
        expected = self.of_tables(tokens * k, n_experts) + 2 * tokens * k * (inner + min(width, 128))
        assert watch.peak == 2 * (out.numel() + hidden.numel()) + expected
        gathered = 2 * tokens * k * width
        assert width < 128 or expected < gathered + 2 * tokens * k * inner

    @pytest.mark.parametrize("activation", ["swiglu", "relu2"])
    def test_backward(self, activation: str) -> None:
        tokens, width, inner, n_experts, k = 40, 20, 24, 3, 2
        case = placed(make_case(tokens, width, inner, n_experts, k, activation), torch.float16)
        out, hidden = moe_triton.forward(*case, activation, True)
        with Watch() as watch:
            gradients = moe_triton.backward(out, *case, hidden, activation)
        rows, results = tokens * k, [gradient.numel() * gradient.element_size() for gradient in gradients]
        # While activations are there, with gradients of `weights` and w_down only, or without them, at the end.
        held = self.of_tables(rows, n_experts) + 2 * rows * len(hidden) * inner
        assert watch.peak == held + max(sum(results[1:3]) + 2 * rows * inner, sum(results) + 2 * rows * width)

    @staticmethod
    def of_tables(rows: int, n_experts: int) -> int:
        return 4 * (2 * rows + 2 * (most_tiles(rows, n_experts, 16) + n_experts + 1))

    def test_grids_do_not_depend_on_routing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        grids: list[list[tuple[int, ...]]] = []
        plain = moe_triton.launch

        def launch(kernel: Any, grid: Any, metas: Any, arguments: Any, constants: Any, key: Any = ()) -> None:
            chosen = {**constants, **metas[0].blocks()}
            grids[-1].append(grid(chosen) if callable(grid) else grid)
            plain(kernel, grid, metas, arguments, constants, key)

        monkeypatch.setattr(moe_triton, "launch", launch)
        monkeypatch.setattr(moe_routing_triton, "launch", launch)
        case = placed(make_case(20, 20, 24, 4, 1))
        for experts in (torch.arange(20)[:, None] % 4, torch.full((20, 1), 2)):
            grids.append([])
            run = case._replace(experts=experts.to(DEVICE))
            out, hidden = moe_triton.forward(*run, "swiglu", True)
            moe_triton.backward(out, *run, hidden, "swiglu")
        assert grids[0] == grids[1]
        assert len(grids[0]) == 3 + 3 + 3 + 1 + 1 + 3 + 2  # tables, forward; tables, d_active, activation, weights, dx

    @pytest.mark.skipif(interpreting(), reason="graphs are captured on a GPU only")
    def test_a_graph_replays_other_routings(self) -> None:
        cases = [placed(make_case(200, 64, 64, 8, 2, seed=seed), torch.float16) for seed in (0, 1)]
        held = Case(*(None if tensor is None else tensor.clone() for tensor in cases[0]))
        moe_triton.forward(*held, "swiglu", True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out, _ = moe_triton.forward(*held, "swiglu", True)
        for kept, new in zip(held, cases[1], strict=True):
            if kept is not None and new is not None:
                kept.copy_(new)
        graph.replay()
        assert torch.equal(out, moe_triton.forward(*cases[1], "swiglu", True)[0])


FAR = 2**31 + 64
"""Elements from one row, or expert, to the next: an offset of 32 bits would wrap around."""


@contextmanager
def no_copies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The interpreter copies results back where they already are; here that would touch every page."""
    from triton.runtime.interpreter import GridExecutor

    with monkeypatch.context() as patched:
        patched.setattr(GridExecutor, "_restore_args_dev", lambda *_: None)
        yield


class TestLaunch:
    @pytest.mark.parametrize(
        ("dtype", "rows", "n_experts", "size"),
        [
            (torch.bfloat16, 2**18, 128, 128),
            (torch.float16, 64 * 8 + 1, 8, 128),
            (torch.float16, 64 * 8, 8, 64),
            (torch.float16, 16 * 8, 8, 16),
            (torch.bfloat16, 1, 8, 16),
            (torch.float32, 2**18, 128, 64),
        ],
    )
    def test_tiles_follow_the_mean_load(
        self, dtype: torch.dtype, rows: int, n_experts: int, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        assert moe_triton.rows_of_tile(dtype, rows, n_experts) == size

    @pytest.mark.parametrize("width", [1, 127, 128, 129, 300])
    def test_slices_cut_all_columns(self, width: int) -> None:
        for inner in (1, 128, 129, 400):
            cuts = moe_triton.slices(width, inner)
            assert [column for begin, end in cuts for column in range(begin, end)] == list(range(width))
            assert all(end - begin < inner + 128 for begin, end in cuts)

    def test_what_is_too_far_apart_inside_a_tile_is_copied(self) -> None:
        near = torch.empty_strided((2, 3), (2**40, 2**22), device="meta")
        assert moe_triton._near(near) is near
        assert moe_triton._near(torch.empty_strided((2, 3), (1, 2**23), device="meta")).stride() == (3, 1)
        assert moe_triton._near(torch.empty_strided((2, 3, 4), (1, 2**23, 2), device="meta")).is_contiguous()


@pytest.mark.skipif(not interpreting(), reason="lays tensors out in files that are nearly all holes")
class TestFarApart:
    def test_inputs(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Tokens and experts that lie 2^31 elements apart give what near ones do."""
        case = placed(make_case(2, 8, 8, 2, 2), torch.float16)
        holes = torch.from_file(str(tmp_path / "holes"), shared=True, size=FAR + 2**13, dtype=torch.float16)
        grad = torch.randn(2, 8).half()

        def far(tensor: Tensor, place: int) -> Tensor:
            spread = holes.as_strided(tensor.shape, (FAR, *tensor.stride()[1:]), place * 2**10)
            return spread.copy_(tensor)

        x, w_up, w_down, w_gate, far_grad = (
            far(tensor, i) for i, tensor in enumerate((case.x, case.w_up, case.w_down, case.w_gate, grad))
        )
        spread = Case(x, case.weights, case.experts, w_up, w_down, w_gate)
        found = []
        with no_copies(monkeypatch):
            for arguments, gradient in ((case, grad), (spread, far_grad)):
                out, hidden = moe_triton.forward(*arguments, "swiglu", True)
                found.append([out, hidden, *moe_triton.backward(gradient, *arguments, hidden, "swiglu")])
        for near, other in zip(*found, strict=True):
            assert torch.equal(near, other)

    def test_rows(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Sorted rows whose numbers times F or M are above 2^31, written and read again."""
        case = placed(make_case(5, 64, 64, 1, 1), torch.float16)
        x, weights, _, w_up, w_down, w_gate = case
        assert w_gate is not None
        first = 2**31 // 64 + 3
        rows, mine = first + 16, slice(first, first + 5)

        def holes(name: str, *shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
            return torch.from_file(str(tmp_path / name), True, torch.Size(shape).numel(), dtype=dtype).view(shape)

        order = holes("order", rows, dtype=torch.int32)
        active, hidden, products = holes("active", rows, 64), holes("hidden", 2, rows, 64), holes("products", rows, 64)
        five = torch.arange(5, dtype=torch.int32)
        order[mine] = five
        offsets, first_tiles, tiles = (torch.tensor(n, dtype=torch.int32) for n in ([first] * 2, [0, 1], [[first, 0]]))
        offsets[1] += 5
        table = Tables(order, first + five, offsets, first_tiles, tiles)
        up = (x, x.stride(), w_gate, w_gate.stride(), w_up, w_up.stride(), active, hidden, order)
        constants = {"K": 1, "M": 64, "F": 64, "ACTIVATION": "swiglu", "BLOCK_R": 16}
        out = torch.empty(5, 64, dtype=torch.float16)
        combine = (products, weights, table.positions, out, out.stride(), 5, 1)
        with no_copies(monkeypatch):
            moe_triton._launch_tiles(moe_triton.up_kernel, moe_triton.UP, table, 64, up, constants)
            moe_triton._multiply_rows(active, [w_down], False, table, 16, products)
            moe_triton.launch(
                moe_triton.combine_kernel, moe_triton._grid(5, 64), moe_triton.COMBINE.on(out, 16), combine, {"C": 64}
            )
            d_down = moe_triton._weight_gradient(active, x, "b", w_down, table, 1)
            moe_triton._multiply_rows(hidden, [w_gate, w_up], True, table, 16, products)
        near, kept = moe_triton.forward(*case, "swiglu", True)
        assert torch.equal(out, near)
        assert torch.equal(hidden[:, mine], kept)
        torch.testing.assert_close(d_down[0], active[mine].T @ x, rtol=1e-3, atol=1e-3)
        expected = hidden[0, mine].float() @ w_gate[0].T.float() + hidden[1, mine].float() @ w_up[0].T.float()
        torch.testing.assert_close(products[mine].float(), expected, rtol=1e-3, atol=1e-3)
