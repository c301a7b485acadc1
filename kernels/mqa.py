"""Attention in which query heads share keys and values: training, and decoding one token against a cache.

Multi-query attention (Shazeer 2019, arXiv 1911.02150) shares one key head, grouped-query attention (Ainslie et al.
2023, arXiv 2305.13245) one per group. Neither operation repeats keys or values for the heads that share them.
Registered with torch as `ceg::mqa_attention`, `ceg::mqa_attention_backward` and `ceg::mqa_decode`; the FLOP that they
report are useful ones (`costs`).

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.flop_counter import register_flop_formula

from cegain.kernels import flash_torch, reference, transforms
from cegain.kernels.backend import Backend, Checks, choose
from cegain.kernels.flash import (
    check_attention,
    fake_forward,
    implementation,
    once_differentiable,
    triton_unfit,
    useful_flops,
)


def mqa_attention(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = True, scale: float | None = None, backend: Backend = "auto"
) -> Tensor:
    """Softmax attention with shared keys and values: output [B, H, T, D].

    What `flash.flash_attention` computes without a window, for kernels made for few key heads. Query head h
    uses key head h // (H / Hk); query i stands at position i + S - T, and gives zeros where it sees no key.
    Differentiable once in q, k and v, not twice and not in forward mode; `torch.func` works, its batches one by one.

    Args:
        q: [B, H, T, D], float16, bfloat16, float32 or float64, any strides.
        k: [B, Hk, S, D].
        v: [B, Hk, S, D].
        causal: a query sees no key after its own position.
        scale: of the scores; 1 / sqrt(D) by default.
        backend: see `backend`.

    Raises:
        ValueError: arguments that do not fit together, all named; see `backend.choose` for the backend.
    """
    checks = Checks("mqa_attention")
    check_attention(checks, q, k, v, scale)
    checks.done()
    chosen, _ = choose("mqa_attention", backend, q.device, triton_unfit(q, k, v))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if chosen == "reference":
        mask = reference.positional_mask(q.shape[2], k.shape[2], causal=causal, device=q.device)
        return reference.attention(q, k, v, mask, scale=scale)[0]
    out: Tensor = transforms.call(_forward, q, k, v, causal, scale, chosen)[0]
    return out


def mqa_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    lengths: Tensor,
    *,
    scale: float | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """One new token per sequence against a cache of keys and values: output [B, H, D], for inference.

    The query heads of a group meet their shared keys in one matrix product. Nothing past a length is read, so the rest
    of the cache may hold anything. There is no backward pass, but for backend="reference".

    Args:
        q: [B, H, D], float16, bfloat16, float32 or float64, any strides.
        k_cache: [B, Hk, S, D], of which the first `lengths` positions are filled, the new token's among them.
        v_cache: the same for values.
        lengths: [B], int32 or int64, each from 0 to S; a sequence of length 0 gives zeros. The values are checked
            where they can be read without waiting for a device: on the CPU, when the operation runs. Triton on a GPU
            takes those outside as 0 or S.
        scale: of the scores; 1 / sqrt(D) by default.
        backend: see `backend`.

    Raises:
        ValueError: arguments that do not fit together, all named; see `backend.choose` for the backend.
    """
    checks = Checks("mqa_decode")
    checks.tensors(q=q, k_cache=k_cache, v_cache=v_cache)
    integers = lengths.dtype in (torch.int32, torch.int64)
    checks.that(integers, "lengths", "be int32 or int64", lengths.dtype, "convert it with .to(...)")
    checks.that(lengths.device == q.device, "lengths", f"be on q's device {q.device}", lengths.device, "move it")
    if checks.shape("q", q, "[B, H, D]", [None] * 3):
        batch, heads, width = q.shape
        checks.shape("lengths", lengths, "[B]", [batch])
        if checks.shape("k_cache", k_cache, "[B, Hk, S, D]", [batch, None, None, width]):
            checks.shape("v_cache", v_cache, "k_cache's [B, Hk, S, D]", list(k_cache.shape))
            shared = k_cache.shape[1]
            checks.that(
                shared > 0 and heads % shared == 0,
                "k_cache",
                f"have a number of heads Hk that divides q's H = {heads}",
                shared,
                "use Hk = H, a divisor or 1",
            )
        for name, tensor in (("q", q), ("k_cache", k_cache)):
            checks.that(tensor.numel() > 0, name, "have no size of 0", list(tensor.shape), "give it at least one entry")
    checks.that(scale is None or math.isfinite(scale), "scale", "be finite", scale, "leave it out for 1 / sqrt(D)")
    checks.done()
    chosen, _ = choose("mqa_decode", backend, q.device, triton_unfit(q[:, :, None], k_cache, v_cache))
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    if chosen == "reference":
        return reference.decode(q, k_cache, v_cache, lengths, scale=scale)
    out: Tensor = transforms.call(_decode, q, k_cache, v_cache, lengths, scale, chosen)
    return out


@torch.library.custom_op(
    "ceg::mqa_attention",
    mutates_args=(),
    schema="(Tensor q, Tensor k, Tensor v, bool causal, float scale, str backend) -> (Tensor, Tensor)",
)
def _forward(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """(output [B, H, T, D] laid out like q, log-sum-exp [B, H, T])."""
    out, lse = implementation(backend).forward(q, k, v, causal, None, scale)
    return out, lse


@_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, causal: bool, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    return fake_forward(q)


@torch.library.custom_op(
    "ceg::mqa_attention_backward",
    mutates_args=(),
    schema="(Tensor grad, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, bool causal, float scale, str backend)"
    " -> (Tensor, Tensor, Tensor)",
)
def _backward(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v, laid out like them."""
    dq, dk, dv = implementation(backend).backward(grad, q, k, v, out, lse, causal, None, scale)
    return dq, dk, dv


@_backward.register_fake
def _(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, causal: bool, scale: float, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, *ctx.options = inputs
    ctx.save_for_backward(q, k, v, *output)
    ctx.mark_non_differentiable(output[1])


def _differentiate(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    gradients = transforms.call(_backward, grad, *ctx.saved_tensors, *ctx.options)
    return (*gradients, None, None, None)


transforms.register(_forward, "mqa_attention", _differentiate, _save)
transforms.register(_backward, "mqa_attention", once_differentiable)


@torch.library.custom_op(
    "ceg::mqa_decode",
    mutates_args=(),
    schema="(Tensor q, Tensor k_cache, Tensor v_cache, Tensor lengths, float scale, str backend) -> Tensor",
)
def _decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, backend: str) -> Tensor:
    """Output [B, H, D], contiguous."""
    if backend == "torch":
        return flash_torch.decode(q, k_cache, v_cache, lengths, scale)
    if lengths.device.type == "cpu":
        flash_torch.filled_positions(lengths, k_cache.shape[2])
    # Only when chosen: triton need not be installed.
    from cegain.kernels import mqa_triton

    return mqa_triton.decode(q, k_cache, v_cache, lengths, scale)


@_decode.register_fake
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, scale: float, backend: str) -> Tensor:
    return q.new_empty(q.shape)


def _no_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
    raise NotImplementedError("mqa_decode has no backward pass; use backend='reference', or mqa_attention")


transforms.register(_decode, "mqa_decode", _no_backward)


@register_flop_formula(torch.ops.ceg.mqa_attention)
def _(q: Sequence[int], k: Sequence[int], v: Sequence[int], causal: bool, *_: Any, **__: Any) -> int:
    return useful_flops(q, k, causal, None, "fwd")


@register_flop_formula(torch.ops.ceg.mqa_attention_backward)
def _(
    grad: Sequence[int], q: Sequence[int], k: Sequence[int], v: Sequence[int], out: Sequence[int], lse: Sequence[int],
    causal: bool, *_: Any, **__: Any,
) -> int:  # fmt: skip
    return useful_flops(q, k, causal, None, "bwd")


@register_flop_formula(torch.ops.ceg.mqa_decode, get_raw=True)
def _(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *_: Any, **__: Any) -> int:
    # Lengths are data: fake ones have no values, and count as a full cache.
    batch, _heads, tokens, width = k_cache.shape
    filled = batch * tokens if isinstance(lengths, FakeTensor) else int(lengths.sum())
    return 4 * q.shape[1] * width * filled
