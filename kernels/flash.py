"""Exact attention that never holds all scores at once: causal, sliding-window or full, with grouped heads.

FlashAttention (Dao et al. 2022, arXiv 2205.14135; Dao 2023, arXiv 2307.08691). The operations `ceg::flash_attention`
and `ceg::flash_attention_backward` are registered with torch, so that full-graph compilation and torch's FLOP counter
see them. What they report as FLOP is useful work: unmasked scores only, backward twice the forward (`costs`).

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from cegain.kernels import costs, flash_torch, reference, transforms
from cegain.kernels.backend import Backend, Checks, choose, too_far_apart
from cegain.kernels.patterns import HeadPattern, useful_scores

TRITON_WIDTH = 256
"""The widest head that the Triton kernels for attention take."""


@overload
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = ..., window: int | None = ..., scale: float | None = ...,
    return_lse: Literal[False] = ..., backend: Backend = ...,
) -> Tensor: ...  # fmt: skip
@overload
def flash_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = ..., window: int | None = ..., scale: float | None = ...,
    return_lse: Literal[True], backend: Backend = ...,
) -> tuple[Tensor, Tensor]: ...  # fmt: skip
def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    window: int | None = None,
    scale: float | None = None,
    return_lse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention: output [B, H, T, D].

    Query i stands at position i + S - T, so that the last query sees the last key; queries at negative positions see
    nothing and give zeros. Query head h uses key head h // (H / Hk) (Ainslie et al. 2023, arXiv 2305.13245).
    Differentiable once in q, k and v, not twice and not in forward mode; `torch.func` works, its batches one by one.

    Args:
        q: [B, H, T, D], float16, bfloat16, float32 or float64, any strides.
        k: [B, Hk, S, D].
        v: [B, Hk, S, D].
        causal: a query sees no key after its own position.
        window: with `causal`, only this many last positions up to the query's own; work then grows with T x window.
        scale: of the scores; 1 / sqrt(D) by default.
        return_lse: also return the natural log-sum-exp of the scaled scores [B, H, T], float32 (float64 for float64),
            -inf for a query that sees nothing. No gradient passes through it.
        backend: see `backend`.

    Raises:
        ValueError: arguments that do not fit together, all named; see `backend.choose` for the backend.
    """
    checks = Checks("flash_attention")
    check_attention(checks, q, k, v, scale)
    checks.that(window is None or window >= 1, "window", "be at least 1", window, "1 is the query itself")
    checks.that(window is None or causal, "window", "come with causal=True", window, "leave one of them out")
    checks.done()
    chosen, _ = choose("flash_attention", backend, q.device, triton_unfit(q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if chosen == "reference":
        mask = reference.positional_mask(q.shape[2], k.shape[2], causal=causal, window=window, device=q.device)
        out, lse = reference.attention(q, k, v, mask, scale=scale)
        lse = lse.to(torch.promote_types(lse.dtype, torch.float32))
    else:
        out, lse = transforms.call(_forward, q, k, v, causal, window, scale, chosen)
    return (out, lse.detach()) if return_lse else out


def check_attention(checks: Checks, q: Tensor, k: Tensor, v: Tensor, scale: float | None) -> None:
    """Note what is wrong with q [B, H, T, D], k and v [B, Hk, S, D] and the scale."""
    checks.tensors(q=q, k=k, v=v)
    if checks.shape("q", q, "[B, H, T, D]", [None] * 4):
        batch, heads, _, width = q.shape
        if checks.shape("k", k, "[B, Hk, S, D]", [batch, None, None, width]):
            checks.shape("v", v, "k's [B, Hk, S, D]", list(k.shape))
            checks.that(
                k.shape[1] > 0 and heads % k.shape[1] == 0,
                "k",
                f"have a number of heads Hk that divides q's H = {heads}",
                k.shape[1],
                "use Hk = H, a divisor or 1",
            )
        for name, tensor in (("q", q), ("k", k)):
            checks.that(
                tensor.numel() > 0,
                name,
                "have no size of 0",
                list(tensor.shape),
                "leave out the call for an empty batch",
            )
    checks.that(scale is None or math.isfinite(scale), "scale", "be finite", scale, "leave it out for 1 / sqrt(D)")


def triton_unfit(*tensors: Tensor) -> str | None:
    """What the Triton kernels for attention cannot take of q, k and v, in words; None where they can."""
    width = tensors[0].shape[-1]
    if tensors[0].dtype == torch.float64:
        return "float64"
    if width > TRITON_WIDTH:
        return f"a head width D = {width} above {TRITON_WIDTH}"
    return "strides of millions of entries" if any(map(too_far_apart, tensors)) else None


def implementation(backend: str) -> Any:
    """The module that has `forward` and `backward` for a backend that `choose` gave."""
    # Only when chosen: triton need not be installed.
    return import_module("cegain.kernels.flash_triton") if backend == "triton" else flash_torch


@torch.library.custom_op(
    "ceg::flash_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, bool causal, int? window, float scale, str backend) -> (Tensor, Tensor)",
)
def _forward(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] laid out like q, log-sum-exp [B, H, T])."""
    out, lse = implementation(backend).forward(q, k, v, causal, window, scale)
    return out, lse


@_forward.register_fake
def _(
    q: Tensor, k: Tensor, v: Tensor, causal: bool, window: int | None, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return fake_forward(q)


def fake_forward(q: Tensor) -> tuple[Tensor, Tensor]:
    """Shapes, dtypes and strides of what an attention forward returns."""
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=torch.promote_types(q.dtype, torch.float32))


@torch.library.custom_op(
    "ceg::flash_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal, int? window, float scale,"
    " str backend) -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, window: int | None,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Gradients of q, k and v, laid out like them."""
    dq, dk, dv = implementation(backend).backward(grad, q, k, v, out, lse, causal, window, scale)
    return dq, dk, dv


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, window: int | None,
    scale: float, backend: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = transforms.call(_backward, grad, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None, None)


transforms.register(_forward, "flash_attention", _differentiate, _save)


def once_differentiable(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
    """The derivative of a backward operation, which no kernel has.

    Raises:
        NotImplementedError: always.
    """
    raise NotImplementedError(
        "attention can be differentiated once, got a second derivative; use backend='reference' for higher ones"
    )


transforms.register(_backward, "flash_attention", once_differentiable)


def useful_flops(q: Sequence[int], k: Sequence[int], causal: bool, window: int | None, pass_: costs.Pass) -> int:
    """Useful FLOP of attention over shapes [B, H, T, D] and [B, Hk, S, D], unmasked scores only."""
    head = HeadPattern("window", window=window) if window else HeadPattern("causal" if causal else "full")
    return costs.attention(
        batch=q[0],
        heads_q=q[1],
        heads_kv=k[1],
        seq_q=q[2],
        seq_kv=k[2],
        head_dim=q[3],
        useful_scores=useful_scores([head] * q[1], q[2], k[2]),
        pass_=pass_,
    ).flops


@register_flop_formula(torch.ops.ceg.flash_attention)
def _(
    q: Sequence[int], k: Sequence[int], v: Sequence[int], causal: bool, window: int | None, *_: Any, **__: Any
) -> int:
    return useful_flops(q, k, causal, window, "fwd")


@register_flop_formula(torch.ops.ceg.flash_attention_backward)
def _(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], out: Sequence[int], lse: Sequence[int],
    causal: bool, window: int | None, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return useful_flops(q, k, causal, window, "bwd")
