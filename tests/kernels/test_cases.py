"""The table of `cases` on every backend, cases by chance, derivatives of every kind, and routing of any scores."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd import forward_ad

from cegain.kernels import moe_dispatch, reference
from cegain.kernels.flash import flash_attention
from cegain.kernels.mqa import mqa_decode
from tests.kernels import interpreter
from tests.kernels.cases import BACKENDS, LAYOUTS, OPS, Case, check, draw, problem, table
from tests.kernels.interpreter import DEVICE

interpreter.mend()
TABLE = table()
ALONE = "one of three"
USUAL, SLOW, AT_ONCE = 60, 300, 15
"""Seeds of cases by chance in `make test`, those after them in `make test-all` besides, and how many are one test."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small cases take a hundred times as long on threads that wait for a core."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of operations that are not deterministic, by `_poisoned_memory`
        yield
    torch.set_num_threads(threads)


def check_all(cases: dict[str, Case], backend: str) -> None:
    """All failures at once, by name."""
    failed = []
    for name, case in cases.items():
        try:
            check(case, backend)
        except Exception as error:
            failed.append(f"{name}: {type(error).__name__}: {error}")
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
class TestTable:
    @pytest.mark.parametrize("part", range(2))
    def test_any_layout_scale_and_mask(self, op: str, backend: str, part: int) -> None:
        mine = {name: case for name, case in TABLE.items() if case.op == op and not name.endswith(ALONE)}
        assert len(mine) > 20
        check_all(dict(list(mine.items())[part::2]), backend)

    @pytest.mark.slow
    def test_one_tensor_in_a_layout_of_its_own(self, op: str, backend: str) -> None:
        mine = {name: case for name, case in TABLE.items() if case.op == op and name.endswith(ALONE)}
        assert len(mine) == len(LAYOUTS)
        check_all(mine, backend)


@pytest.mark.parametrize("backend", BACKENDS)
class TestByChance:
    @pytest.mark.parametrize("first", range(0, USUAL, AT_ONCE))
    def test_some(self, first: int, backend: str) -> None:
        check_all({f"seed {seed}: {draw(seed)}": draw(seed) for seed in range(first, first + AT_ONCE)}, backend)

    @pytest.mark.slow
    @pytest.mark.parametrize("first", range(USUAL, USUAL + SLOW, AT_ONCE))
    def test_more(self, first: int, backend: str) -> None:
        check_all({f"seed {seed}: {draw(seed)}": draw(seed) for seed in range(first, first + AT_ONCE)}, backend)


@pytest.mark.parametrize("backend", BACKENDS)
class TestEmpty:
    @pytest.mark.parametrize("op", OPS[:4])
    @pytest.mark.parametrize("size", ["batch", "queries", "keys", "width"])
    def test_a_size_of_0_is_refused_by_name(self, size: str, op: str, backend: str) -> None:
        if op == "mqa_decode" and size == "queries":
            pytest.skip("a step has one query")
        _, tensors, on = problem(Case(op, **{"batch": 1, size: 0}, options={}))
        with pytest.raises(ValueError, match=f"{op}: .* must "):
            on(backend)(*tensors)

    def test_rows_without_keys_are_0_and_so_are_their_gradients(self, backend: str) -> None:
        q, k, v = (torch.randn(1, 2, n, 4, device=DEVICE).requires_grad_() for n in (9, 5, 5))
        for options in ({}, {"window": 2}, {"scale": 0.0}, {"scale": -1.0}):
            out, lse = flash_attention(q, k, v, return_lse=True, backend=backend, **options)  # type: ignore[call-overload]
            (dq,) = torch.autograd.grad(out.sum(), q)
            assert not out[:, :, :4].any()
            assert not dq[:, :, :4].any()
            assert (lse[:, :, :4] == -torch.inf).all()
            assert torch.isfinite(lse[:, :, 4:]).all()


SMALL: dict[str, Case] = {
    op: Case(op, batch=1, heads=2, shared=1, queries=3, keys=4, width=3, experts=3, inner=2, lengths=(3,)) for op in OPS
}


def scalar(op: str, backend: str) -> tuple[Tensor, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The first tensor of a small case, in float64 where the backend takes it; the op; and a number made of it."""
    _, (x, *rest), on = problem(SMALL[op])
    if backend != "triton":
        x, *rest = (tensor.double() for tensor in (x, *rest))
    function = on(backend)
    return x, lambda x: function(x, *rest), lambda x: function(x, *rest).sin().sum()


def differentiable(op: str, backend: str) -> bool:
    return op != "mqa_decode" or backend == "reference"


def whole(op: str, backend: str) -> Callable[[Tensor], Tensor]:
    """As `scalar`'s last, but a decoding step's gradient passes through the operation."""
    x, _, number = scalar(op, backend)
    if op != "mqa_decode":
        return number
    cache = torch.randn(1, 1, 4, 3, dtype=x.dtype, generator=torch.Generator().manual_seed(5)).to(DEVICE)
    lengths = torch.tensor([3], device=DEVICE)
    return lambda q: mqa_decode(q, cache, cache, lengths, backend=backend).sin().sum()  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("op", OPS)
class TestDerivatives:
    """Of every kind: right, or refused by name."""

    def test_forward_mode(self, op: str, backend: str) -> None:
        x, number = scalar(op, backend)[0], whole(op, backend)
        along = torch.randn(x.shape, generator=torch.Generator().manual_seed(9)).to(x)

        def dual(x: Tensor) -> Any:
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(number(forward_ad.make_dual(x, along))).tangent

        ways: list[Callable[[], Any]] = [
            lambda: torch.func.jvp(number, (x,), (along,))[1],
            lambda: dual(x),
            lambda: dual(x.clone().requires_grad_()),
            lambda: (torch.func.jacfwd(number)(x) * along).sum(),
        ]
        for way in ways:
            if backend == "reference":
                true = (number(x + 1e-6 * along) - number(x - 1e-6 * along)) / 2e-6
                torch.testing.assert_close(way(), true, rtol=1e-6, atol=1e-7)
            else:
                with pytest.raises(NotImplementedError, match=f"{op} has no forward-mode .* use backend='reference'"):
                    way()

    def test_tangents_that_reach_only_a_backward_pass(self, op: str, backend: str) -> None:
        if backend == "reference" or not differentiable(op, backend):
            pytest.skip("its backward pass is torch's, or it has none")
        x, function, _ = scalar(op, backend)
        x = x.clone().requires_grad_()
        out = function(x)
        with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op} has no forward-mode"):
            torch.autograd.grad(out, x, forward_ad.make_dual(torch.ones_like(out), torch.ones_like(out)))

    def test_functional_gradients(self, op: str, backend: str) -> None:
        x, number = scalar(op, backend)[0], whole(op, backend)
        ways: list[Callable[[], Tensor]] = [
            lambda: torch.func.grad(number)(x),
            lambda: torch.func.vjp(number, x)[1](torch.ones((), dtype=x.dtype, device=x.device))[0],
            lambda: torch.func.jacrev(number)(x),
        ]
        if not differentiable(op, backend):
            for way in ways:
                with pytest.raises(NotImplementedError, match=f"{op} has no backward pass; use backend='reference'"):
                    way()
            return
        leaf = x.clone().requires_grad_()
        (want,) = torch.autograd.grad(number(leaf), leaf)
        assert want.any()
        for way in ways:
            torch.testing.assert_close(way(), want)

    def test_batches(self, op: str, backend: str) -> None:
        x, _, _ = scalar(op, backend)
        number = whole(op, backend)
        function = scalar(op, backend)[1]
        several = torch.stack([x, -2 * x], 1)
        want = torch.stack([function(y) for y in several.unbind(1)])
        torch.testing.assert_close(torch.func.vmap(function, in_dims=1)(several), want)
        if differentiable(op, backend):
            gradients = torch.stack([torch.func.grad(number)(y) for y in several.unbind(1)])
            torch.testing.assert_close(torch.func.vmap(torch.func.grad(number), in_dims=1)(several), gradients)
            total = torch.func.grad(lambda z: torch.func.vmap(number, in_dims=1)(z).sum())(several)
            torch.testing.assert_close(total, gradients.movedim(0, 1))

    def test_second_derivatives(self, op: str, backend: str) -> None:
        if not differentiable(op, backend):
            pytest.skip("it has no first one")
        x, number = scalar(op, backend)[0], whole(op, backend)
        gradient = torch.func.grad(number)

        def twice() -> Tensor:
            leaf = x.clone().requires_grad_()
            (first,) = torch.autograd.grad(number(leaf), leaf, create_graph=True)
            return torch.autograd.grad(first.sum(), leaf)[0]

        for way in (twice, lambda: torch.func.grad(lambda y: gradient(y).sum())(x)):
            if backend == "reference":
                ones = torch.ones_like(x)
                true = (gradient(x + 1e-6 * ones) - gradient(x - 1e-6 * ones)) / 2e-6
                torch.testing.assert_close(way(), true, rtol=1e-5, atol=1e-6)
            else:
                with pytest.raises(NotImplementedError, match=r"(?s)(once|second derivative).*use backend='reference'"):
                    way()


def rows_of_logits() -> dict[str, Tensor]:
    """Logits [N, 7] of every kind."""
    normal = torch.randn(40, 7, generator=torch.Generator().manual_seed(2))
    masked = normal.masked_fill(torch.rand(40, 7, generator=torch.Generator().manual_seed(3)) < 0.5, -torch.inf)
    masked[:, 3] = normal[:, 3]  # one is open
    return {
        "usual": normal,
        "ties": normal.round(),
        "all the same": torch.zeros(3, 7),
        "large": normal * 100,
        "huge": normal * 1e37,
        "far below 0": normal - 120,
        "further": 20 * normal - 1e4,
        "far above 0": normal + 120,
        "masked": masked,
        "masked, far below 0": masked - 200,
        "largest": torch.full((2, 7), torch.finfo(torch.float32).max),
        "least": torch.full((2, 7), torch.finfo(torch.float32).min),
    }


@pytest.mark.parametrize("backend", BACKENDS)
class TestRouting:
    @pytest.mark.parametrize("normalise", [True, False])
    @pytest.mark.parametrize("router", ["softmax", "sigmoid"])
    @pytest.mark.parametrize("top_k", [1, 3, 7])
    def test_any_scores(self, top_k: int, router: str, normalise: bool, backend: str) -> None:
        """Experts differ, and weights and gradients in float32 are those of float64."""
        for name, logits in rows_of_logits().items():
            found = []
            for dtype in (torch.float32, torch.float64):
                leaf = logits.to(DEVICE, dtype).requires_grad_()
                if dtype == torch.float64 or backend == "reference":
                    routing = reference.route(leaf, top_k, router=router, normalise=normalise)
                else:
                    routing = moe_dispatch.route(leaf, top_k, router=router, normalise=normalise, backend=backend)
                weighted = routing.weights * torch.arange(1, top_k + 1, device=DEVICE)
                loss = 1e3 * weighted.sum() + 1e3 * reference.balance_loss(routing)
                found.append((routing.experts, routing.weights, loss, torch.autograd.grad(loss, leaf)[0]))
            (experts, *ours), (want_experts, *theirs) = found
            assert torch.equal(experts, want_experts), name
            assert all(len(set(row)) == top_k for row in experts.tolist()), name
            for got, want in zip(ours, theirs, strict=True):
                assert torch.isfinite(got).all(), name
                torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=1e-3, msg=name)

    def test_experts_beside_minus_infinity_and_what_is_not_a_number(self, backend: str) -> None:
        generator = torch.Generator().manual_seed(4)
        scores = torch.randint(-2, 3, (60, 9), generator=generator).float()
        for special in (-torch.inf, torch.inf, torch.nan, -0.0, torch.finfo(torch.float32).min):
            scores[torch.rand(60, 9, generator=generator) < 0.15] = special
        scores[0], scores[1] = -torch.inf, torch.nan
        scores = scores.to(DEVICE)
        want = torch.tensor(
            [sorted(range(9), key=lambda e: (-rank(row[e]), e)) for row in scores.tolist()], device=DEVICE
        )
        for k in (1, 4, 9):
            best = moe_dispatch.best_experts if backend == "triton" else reference.best_experts
            assert torch.equal(best(scores, k), want[:, :k])

    def test_a_row_in_which_everything_is_masked(self, backend: str) -> None:
        logits = torch.full((2, 5), -torch.inf, device=DEVICE).requires_grad_()
        route = reference.route if backend == "reference" else moe_dispatch.route
        options = {} if backend == "reference" else {"backend": backend}
        routing = route(logits, 2, router="sigmoid", **options)  # type: ignore[operator]
        loss = routing.weights.square().sum() + reference.balance_loss(routing)
        assert routing.experts.tolist() == [[0, 1], [0, 1]]
        assert torch.isfinite(torch.autograd.grad(loss, logits)[0]).all()


def rank(x: float) -> float:
    """Order of scores in which what is not a number is above infinity."""
    return 1e300 if x != x else 1e200 if x == float("inf") else x
