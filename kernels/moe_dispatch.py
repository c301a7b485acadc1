"""Mixture-of-experts feed-forward without dropped tokens: rows sorted by expert, one matrix product per expert.

Every assignment of a token to an expert is a row. Rows are sorted by expert, so that each expert's rows are
consecutive and meet its weights in plain matrix products (MegaBlocks, Gale et al. 2022, arXiv 2211.15841, without
its padding); a token's output is the weighted sum over its K rows, read in a fixed order, so that results repeat
bit for bit. The gradient of a routing weight is <dout W_down^T, activations> of its row (SonicMoE, Guo et al. 2025,
arXiv 2512.14080), so the experts' outputs need not be kept. On a CUDA device Triton kernels do the same without a
sorted copy of x (`moe_triton`).

Symbols: N tokens, M model width, F expert width, E experts, K experts per token, R = N K rows, G first matrix
products per expert (2 with a gate, else 1).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.flop_counter import register_flop_formula

from cegain.kernels import costs, reference, transforms
from cegain.kernels.backend import Backend, Checks, choose
from cegain.kernels.costs import Activation

ACTIVATIONS: tuple[str, ...] = get_args(Activation)
ROUTERS = ("softmax", "sigmoid")
TRITON_EXPERTS = 4096
"""E at most in Triton, where one program has a number of each expert in its registers."""


class DispatchPlan(NamedTuple):
    """Rows in the order of their experts; within an expert in the order of tokens.

    tokens [R]: the token of each sorted row. positions [N, K]: the sorted row of each assignment. offsets [E + 1]:
    expert e has the rows from offsets[e] up to, not including, offsets[e + 1].
    """

    tokens: Tensor
    positions: Tensor
    offsets: Tensor


def dispatch_plan(experts: Tensor, n_experts: int) -> DispatchPlan:
    """Sort the assignments `experts` [N, K], indices below `n_experts`, by expert; stable, so always the same."""
    by_expert, order = experts.flatten().sort(stable=True)
    positions = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
    offsets = torch.searchsorted(by_expert, torch.arange(n_experts + 1, device=order.device))
    return DispatchPlan(order // experts.shape[1], positions.view(experts.shape), offsets)


def moe_feed_forward(
    x: Tensor,
    w_router: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None = None,
    *,
    top_k: int,
    router: str = "softmax",
    normalise: bool = True,
    activation: Activation = "swiglu",
    shared: tuple[Tensor, Tensor, Tensor | None] | None = None,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Mixture-of-experts feed-forward: (output, shaped like x; balance loss, a scalar of at least float32).

    Differentiable once in x and all weights, not twice and not in forward mode; `torch.func` works, its batches one by
    one. Routing is that of `reference.route` on every backend: ties go
    to the expert with the lower index. Every token reaches all its experts, however uneven the load. The Triton backend
    does not make the host wait for the device after a first call with as many rows, which tunes it, or with
    CEG_AUTOTUNE=0, and gives the same bits in every run with the latter.

    Args:
        x: [..., M], any number of tokens, 0 included.
        w_router: [E, M].
        w_up: [E, M, F].
        w_down: [E, F, M].
        w_gate: [E, M, F] for "swiglu", else None.
        top_k: K, from 1 to E.
        router: "softmax" or "sigmoid", see `reference.route`.
        normalise: divide the chosen scores by their sum.
        activation: "swiglu", "gelu" or "relu2" (ReLU squared).
        shared: (w_up [M, F'], w_down [F', M], w_gate [M, F'] or None) of an expert that every token uses.
        backend: see `backend`.

    Raises:
        ValueError: the backend cannot run here, or arguments that do not fit together, all named at once.
    """
    _check(x, w_router, w_up, w_down, w_gate, top_k, router, activation, shared)
    chosen, _ = choose("moe_feed_forward", backend, x.device, triton_unfit(x, w_up, top_k))
    tokens = x.reshape(-1, x.shape[-1])
    if chosen == "reference":
        out, loss = reference.moe_feed_forward(
            tokens,
            w_router,
            w_up,
            w_down,
            w_gate,
            top_k=top_k,
            router=router,
            normalise=normalise,
            activation=activation,
            shared=shared,
        )
        return out.view(x.shape), loss
    routing = route(tokens @ w_router.T, top_k, router=router, normalise=normalise, backend=chosen)
    differentiated = [tokens, routing.weights, w_up, w_down, *([] if w_gate is None else [w_gate])]
    wanted = transforms.transformed() or any(tensor.requires_grad for tensor in differentiated)
    keep = torch.is_grad_enabled() and wanted
    out, _ = transforms.call(
        moe_experts, tokens, routing.weights, routing.experts, w_up, w_down, w_gate, activation, chosen, keep
    )
    if shared is not None:
        out = out + reference.expert(tokens, shared[0], shared[1], shared[2], activation)
    return out.view(x.shape), reference.balance_loss(routing)


def triton_unfit(x: Tensor, w_up: Tensor, top_k: int) -> str | None:
    """What the Triton kernels cannot take of x [.., M] and w_up [E, M, F], in words; None where they can."""
    if x.dtype == torch.float64:
        return "float64"
    if len(w_up) > TRITON_EXPERTS:
        return f"E = {len(w_up)} experts, more than {TRITON_EXPERTS}"
    rows = x.numel() // x.shape[-1] * top_k
    return f"N K = {rows} assignments, more than 2^30" if rows > 2**30 else None


def route(
    logits: Tensor, top_k: int, *, router: str = "softmax", normalise: bool = True, backend: str = "torch"
) -> reference.Routing:
    """`reference.route`, differentiable in logits [N, E]; "triton" finds the same experts without a sort."""
    best = _best_experts if backend == "triton" else reference.best_experts
    return reference.route(logits, top_k, router=router, normalise=normalise, best=best)


def _best_experts(scores: Tensor, top_k: int) -> Tensor:
    experts: Tensor = best_experts(scores.detach(), top_k)
    return experts


@torch.library.custom_op("ceg::best_experts", mutates_args=())
def best_experts(scores: Tensor, top_k: int) -> Tensor:
    """The registered op: `reference.best_experts` of float32 scores in Triton. Has no gradient."""
    found: Tensor = import_module("cegain.kernels.moe_routing_triton").top_k(scores, top_k)
    return found


@best_experts.register_fake
def _(scores: Tensor, top_k: int) -> Tensor:
    return scores.new_empty((scores.shape[0], top_k), dtype=torch.int64)


@torch.library.custom_op("ceg::moe_experts", mutates_args=())
def moe_experts(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None,
    activation: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    """The registered op: weighted sum of the chosen experts' outputs [N, M], as `reference.mixture`.

    The second output is what the backward pass needs, [G, R, F]: sorted rows of x W_gate (if there is one) and x W_up;
    unless `keep` it is empty, [G, 0, F], and there is no backward pass. `backend` is "torch" or "triton". Arguments
    are checked in `moe_feed_forward`, not here. Under torch's FLOP counter it counts useful FLOP.
    """
    if backend == "triton":
        made: tuple[Tensor, Tensor] = _triton().forward(x, weights, experts, w_up, w_down, w_gate, activation, keep)
        return made
    plan = dispatch_plan(experts, len(w_up))
    firsts = _first_weights(w_up, w_gate)
    hidden = x.new_empty(len(firsts), experts.numel() if keep else 0, w_up.shape[2])
    out_rows = x.new_empty(experts.numel(), x.shape[1])
    for e, begin, end in _groups(plan):
        x_rows = x.index_select(0, plan.tokens[begin:end])
        parts = hidden[:, begin:end] if keep else x.new_empty(len(firsts), end - begin, w_up.shape[2])
        for part, first in zip(parts, firsts, strict=True):
            torch.mm(x_rows, first[e], out=part)
        torch.mm(_activate(parts, activation), w_down[e], out=out_rows[begin:end])
    return _combine(out_rows, weights, plan), hidden


@torch.library.custom_op("ceg::moe_experts_backward", mutates_args=())
def moe_experts_backward(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None,
    hidden: Tensor,
    activation: str,
    backend: str,
) -> list[Tensor]:
    """Gradients of x, weights, w_down, then w_gate (if there is one) and w_up, from the output's, `grad` [N, M].

    `hidden` [G, R, F] is the second output of `moe_experts`. Under torch's FLOP counter: twice the forward pass.
    """
    if backend == "triton":
        gradients: list[Tensor] = _triton().backward(
            grad, x, weights, experts, w_up, w_down, w_gate, hidden, activation
        )
        return gradients
    plan = dispatch_plan(experts, len(w_up))
    firsts = _first_weights(w_up, w_gate)
    sorted_weights = weights.new_empty(weights.numel()).scatter_(0, plan.positions.flatten(), weights.flatten())
    d_sorted_weights = torch.empty_like(sorted_weights)
    d_x_rows = x.new_empty(experts.numel(), x.shape[1])
    d_down = w_down.new_empty(w_down.shape)
    d_firsts = [first.new_empty(first.shape) for first in firsts]
    for e, begin, end in _groups(plan):
        if begin == end:
            for d_weight in (d_down, *d_firsts):
                d_weight[e].zero_()
            continue
        tokens = plan.tokens[begin:end]
        x_rows, grad_rows = x.index_select(0, tokens), grad.index_select(0, tokens)
        # Gradients of an unweighted row; its weight enters on the narrow side of every product, M instead of F wide.
        d_active = grad_rows @ w_down[e].T
        active, d_parts = _activate_backward(d_active, hidden[:, begin:end], activation)
        weight = sorted_weights[begin:end, None].to(x.dtype)
        d_sorted_weights[begin:end] = d_active.mul_(active).sum(-1, dtype=weights.dtype)
        torch.mm(active.T, grad_rows.mul_(weight), out=d_down[e])
        x_rows.mul_(weight)
        d_mine = d_x_rows[begin:end]
        for i, (d_part, first) in enumerate(zip(d_parts, firsts, strict=True)):
            torch.mm(x_rows.T, d_part, out=d_firsts[i][e])
            torch.mm(d_part, first[e].T, out=d_mine) if i == 0 else d_mine.addmm_(d_part, first[e].T)
    return [_combine(d_x_rows, weights, plan), d_sorted_weights[plan.positions], d_down, *d_firsts]


def _triton() -> Any:
    # Only when chosen: triton need not be installed.
    return import_module("cegain.kernels.moe_triton")


def _first_weights(w_up: Tensor, w_gate: Tensor | None) -> list[Tensor]:
    return [w_up] if w_gate is None else [w_gate, w_up]


def _groups(plan: DispatchPlan) -> Iterator[tuple[int, int, int]]:
    """(expert, first row, past the last row) of every expert, idle ones included; on a GPU it waits for the device."""
    offsets = plan.offsets.tolist()
    return zip(range(len(offsets) - 1), offsets[:-1], offsets[1:], strict=True)


def _activate(parts: Tensor, activation: str) -> Tensor:
    """[G, rows, F] -> [rows, F]."""
    if activation == "swiglu":
        return functional.silu(parts[0]).mul_(parts[1])
    return functional.gelu(parts[0]) if activation == "gelu" else functional.relu(parts[0]).square_()


def _activate_backward(d_active: Tensor, parts: Tensor, activation: str) -> tuple[Tensor, tuple[Tensor, ...]]:
    """`_activate` again, and the gradients of its G inputs, [rows, F] each."""
    if activation == "swiglu":
        gate, up = parts
        silu = functional.silu(gate)
        return silu * up, (torch.ops.aten.silu_backward(d_active * up, gate), silu.mul_(d_active))
    if activation == "gelu":
        return functional.gelu(parts[0]), (torch.ops.aten.gelu_backward(d_active, parts[0]),)
    positive = functional.relu(parts[0])
    return positive.square(), (positive.mul_(d_active).mul_(2),)


def _combine(rows: Tensor, weights: Tensor, plan: DispatchPlan) -> Tensor:
    """Weighted sum of every token's K sorted rows, [N, M], in at least float32 and always in the same order."""
    dtype = torch.promote_types(rows.dtype, torch.float32)
    # An embedding bag sums rows as it gathers them: a third of the time of index_select, product and sum on a CPU.
    out = functional.embedding_bag(plan.positions, rows.to(dtype), per_sample_weights=weights.to(dtype), mode="sum")
    return out.to(rows.dtype)


@moe_experts.register_fake
def _(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None,
    activation: str,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor]:
    rows = experts.numel() if keep else 0
    return x.new_empty(x.shape), x.new_empty(1 if w_gate is None else 2, rows, w_up.shape[2])


@moe_experts_backward.register_fake
def _(
    grad: Tensor,
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None,
    hidden: Tensor,
    activation: str,
    backend: str,
) -> list[Tensor]:
    return [like.new_empty(like.shape) for like in (x, weights, w_down, *_first_weights(w_up, w_gate))]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.activation, ctx.backend, ctx.keep = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # else a zero gradient as large as `hidden` is written on every backward pass
    ctx.save_for_backward(*tensors, output[1])


def _backward(ctx: Any, grad: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 9
    if not ctx.keep:
        raise ValueError(
            "keep must be True where gradients are wanted, got False; call moe_feed_forward, which sets it"
        )
    arguments = (grad, *ctx.saved_tensors, ctx.activation, ctx.backend)
    d_x, d_weights, d_down, *d_firsts = transforms.call(moe_experts_backward, *arguments)
    d_gate = d_firsts[0] if len(d_firsts) == 2 else None
    return d_x, d_weights, None, d_firsts[-1], d_down, d_gate, None, None, None


def _no_second_derivative(ctx: Any, *grads: Any) -> None:
    raise NotImplementedError("moe_feed_forward has no second derivative; use backend='reference' for one")


transforms.register(moe_experts, "moe_feed_forward", _backward, _setup_context)
transforms.register(moe_experts_backward, "moe_feed_forward", _no_second_derivative)


def useful_flops(experts: Sequence[int], w_up: Sequence[int], activation: Activation, pass_: costs.Pass) -> int:
    """FLOP of `moe_experts` for experts [N, K] and w_up [E, M, F]: a feed-forward layer over the N K rows."""
    return costs.feed_forward(experts[0] * experts[1], w_up[1], w_up[2], activation, pass_=pass_).flops


@register_flop_formula(torch.ops.ceg.moe_experts)
def _(
    x: Sequence[int], weights: Sequence[int], experts: Sequence[int], w_up: Sequence[int], w_down: Sequence[int],
    w_gate: Sequence[int] | None, activation: Activation, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return useful_flops(experts, w_up, activation, "fwd")


@register_flop_formula(torch.ops.ceg.moe_experts_backward)
def _(
    grad: Sequence[int], x: Sequence[int], weights: Sequence[int], experts: Sequence[int], w_up: Sequence[int],
    w_down: Sequence[int], w_gate: Sequence[int] | None, hidden: Sequence[int], activation: Activation,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    return useful_flops(experts, w_up, activation, "bwd")


def _check(
    x: Tensor,
    w_router: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None,
    top_k: int,
    router: str,
    activation: str,
    shared: tuple[Tensor, Tensor, Tensor | None] | None,
) -> None:
    """Raise ValueError with everything that does not fit."""
    checks = Checks("moe_feed_forward")
    checks.that(router in ROUTERS, "router", f"be one of {', '.join(ROUTERS)}", repr(router), "use softmax if in doubt")
    known = activation in ACTIVATIONS
    checks.that(known, "activation", f"be one of {', '.join(ACTIVATIONS)}", repr(activation), "use swiglu if in doubt")
    named = {"x": x, "w_router": w_router, "w_up": w_up, "w_down": w_down}
    gates = {"w_gate": w_gate}
    if shared is not None:
        named |= {"shared[0]": shared[0], "shared[1]": shared[1]}
        gates["shared[2]"] = shared[2]
    for name, gate in gates.items():
        if gate is not None:
            named[name] = gate
        if known:
            gated = activation == "swiglu"
            rule = f"be {'a tensor' if gated else 'None'} with activation {activation!r}"
            found = "None" if gate is None else f"a tensor of shape {list(gate.shape)}"
            checks.that((gate is not None) == gated, name, rule, found, "use swiglu with a gate, gelu or relu2 without")
    checks.tensors(**named)

    if not x.dim():
        checks.shape("x", x, "[..., M]", [None, None])
    elif checks.shape("w_up", w_up, "[E, M, F]", [None, x.shape[-1], None]):
        experts, width, hidden = w_up.shape
        for letter, size in (("M", width), ("F", hidden), ("E", experts)):
            checks.that(size > 0, "w_up", f"have {letter} of at least 1", size, "give it a size")
        checks.shape("w_down", w_down, "[E, F, M]", [experts, hidden, width])
        checks.shape("w_router", w_router, "[E, M]", [experts, width])
        if w_gate is not None:
            checks.shape("w_gate", w_gate, "[E, M, F]", [experts, width, hidden])
        checks.that(
            1 <= top_k <= experts, "top_k", f"be from 1 to the {experts} experts", top_k, "use fewer or add experts"
        )
        if shared is not None and checks.shape("shared[0]", shared[0], "[M, F']", [width, None]):
            checks.shape("shared[1]", shared[1], "[F', M]", [shared[0].shape[1], width])
            if shared[2] is not None:
                checks.shape("shared[2]", shared[2], "[M, F']", list(shared[0].shape))
    checks.done()
