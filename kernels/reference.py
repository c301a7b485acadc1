"""Every operation in plain torch, written to be read: this file defines what the fast paths must compute.

Any float dtype (float64 included), any device, gradients by autograd. Memory and time do not matter here: scores are
materialised, keys and values are repeated for every query head, and every expert sees every token.

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T queries, S keys, D head width, N tokens,
M model width, F expert width, E experts, K experts per token.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from cegain.kernels.costs import Activation


def attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, *, scale: float | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention under any mask: (output [B, H, T, D], log-sum-exp of the scaled scores [B, H, T]).

    A query that sees no key gives zeros, and -inf as its log-sum-exp. Query head h uses key head h // (H / Hk)
    (Ainslie et al. 2023, arXiv 2305.13245).

    Args:
        q: [B, H, T, D].
        k: [B, Hk, S, D].
        v: [B, Hk, S, D].
        mask: bool, broadcastable to [B, H, T, S], True where the query sees the key; None: everything.
        scale: of the scores; 1 / sqrt(D) by default.
    """
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    scores = q @ k.transpose(-2, -1) * scale
    if mask is None:
        return scores.softmax(-1) @ v, scores.logsumexp(-1)
    sees_any = mask.any(-1, keepdim=True).expand(*scores.shape[:-1], 1)
    # Rows without a key are left unmasked for the softmax and zeroed afterwards: their gradients are 0, not NaN.
    scores = scores.masked_fill(~mask & sees_any, -math.inf)
    out = (scores.softmax(-1) @ v).masked_fill(~sees_any, 0.0)
    return out, scores.logsumexp(-1).masked_fill(~sees_any[..., 0], -math.inf)


def positional_mask(
    seq_q: int, seq_kv: int, *, causal: bool = True, window: int | None = None, device: torch.device | None = None
) -> Tensor | None:
    """Mask [T, S] of causal, sliding-window or full attention; None where everything is seen (without `causal`).

    Query i stands at position i + S - T, so that the last query sees the last key. A window counts the query's own
    position: with `window` w it sees the w last positions up to its own.
    """
    if not causal:
        return None
    query = torch.arange(seq_kv - seq_q, seq_kv, device=device)[:, None]
    key = torch.arange(seq_kv, device=device)[None, :]
    visible = key <= query
    return visible if window is None else visible & (key > query - window)


def block_mask(blocks: Tensor, seq_q: int, seq_kv: int, *, block_q: int, block_kv: int, causal: bool = True) -> Tensor:
    """Token-level mask [..., T, S] of a boolean mask of blocks [..., ceil(T / block_q), ceil(S / block_kv)]."""
    visible = blocks.repeat_interleave(block_q, dim=-2).repeat_interleave(block_kv, dim=-1)[..., :seq_q, :seq_kv]
    positions = positional_mask(seq_q, seq_kv, causal=causal, device=blocks.device)
    return visible if positions is None else visible & positions


def decode(q: Tensor, k_cache: Tensor, v_cache: Tensor, lengths: Tensor, *, scale: float | None = None) -> Tensor:
    """One new token per sequence against a cache: output [B, H, D].

    Args:
        q: [B, H, D].
        k_cache: [B, Hk, S, D], of which the first `lengths` positions are filled, the new token's among them.
        v_cache: the same for values.
        lengths: [B] integers from 0 to S; 0 gives zeros.
        scale: of the scores; 1 / sqrt(D) by default.
    """
    filled = torch.arange(k_cache.shape[2], device=q.device) < lengths[:, None]
    # What lies past a length may be anything, NaN included: 0 x NaN would reach the output.
    k_cache, v_cache = (part.masked_fill(~filled[:, None, :, None], 0.0) for part in (k_cache, v_cache))
    return attention(q[:, :, None], k_cache, v_cache, filled[:, None, None], scale=scale)[0][:, :, 0]


LEAST_TOTAL = 1e-19
"""Of a token's scores: float32 can still hold its inverse times a gradient, and that times a score."""


class Routing(NamedTuple):
    """Where tokens go: weights and experts [N, K], and the scores [N, E] that the balance loss averages."""

    weights: Tensor
    experts: Tensor
    scores: Tensor


def best_experts(scores: Tensor, top_k: int) -> Tensor:
    """Experts with the `top_k` largest of scores [N, E], largest first: [N, K]; of equal ones the lower index wins.

    What is not a number counts as the largest.
    """
    # topk leaves the order of ties open; a stable sort does not, so that every backend takes the same experts.
    return scores.sort(dim=-1, descending=True, stable=True).indices[:, :top_k]


def route(
    logits: Tensor,
    top_k: int,
    *,
    router: str = "softmax",
    normalise: bool = True,
    best: Callable[[Tensor, int], Tensor] = best_experts,
) -> Routing:
    """Choose `top_k` experts per token from router logits [N, E], at least in float32.

    Args:
        logits: one per token and expert.
        top_k: K.
        router: "softmax" (Shazeer et al. 2017, arXiv 1701.06538) or "sigmoid" (DeepSeek-V3, arXiv 2412.19437, eq. 15).
        normalise: divide the chosen scores by their sum (Mixtral, arXiv 2401.04088; DeepSeek-V3, eq. 13).
        best: what computes `best_experts`.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    scores = logits.softmax(-1) if router == "softmax" else logits.sigmoid()
    # Scores grow with logits, but large ones may be 1 and small ones 0 alike.
    experts = best(logits, top_k)
    if not normalise:
        return Routing(scores.gather(-1, experts), experts, scores)
    # Scores over their sum, from logarithms: scores that vanish would give 0 / 0, and infinity times 0 as a gradient.
    chosen = logits.gather(-1, experts).clamp_min(torch.finfo(logits.dtype).min)
    weights = (chosen if router == "softmax" else functional.logsigmoid(chosen)).softmax(-1)
    return Routing(weights, experts, scores)


def balance_loss(routing: Routing) -> Tensor:
    """Auxiliary loss, 1 when experts are used evenly: E sum_e f_e P_e (Fedus et al. 2021, arXiv 2101.03961, eq. 4).

    f_e is the share of the N K assignments that expert e gets (no gradient), P_e its mean score, after scores are
    made to sum to 1 per token; a sum below `LEAST_TOTAL` counts as that. 0 for no tokens.
    """
    tokens, experts = routing.scores.shape
    if tokens == 0:
        return routing.scores.sum()
    share = torch.zeros(experts, dtype=routing.scores.dtype, device=routing.scores.device)
    flat = routing.experts.flatten()
    share = share.index_add(0, flat, torch.full_like(flat, 1 / flat.numel(), dtype=share.dtype))
    probability = routing.scores / routing.scores.sum(-1, keepdim=True).clamp_min(LEAST_TOTAL)
    return experts * (share * probability.mean(0)).sum()


def expert(x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor | None, activation: Activation) -> Tensor:
    """One feed-forward layer: [N, M] -> [N, M], weights [M, F] and [F, M]; `w_gate` with "swiglu" only."""
    hidden = x @ w_up
    if activation == "swiglu":
        assert w_gate is not None
        return (functional.silu(x @ w_gate) * hidden) @ w_down
    return (functional.gelu(hidden) if activation == "gelu" else functional.relu(hidden).square()) @ w_down


def mixture(
    x: Tensor,
    weights: Tensor,
    experts: Tensor,
    w_up: Tensor,
    w_down: Tensor,
    w_gate: Tensor | None = None,
    *,
    activation: Activation = "swiglu",
) -> Tensor:
    """Weighted sum of the chosen experts' outputs: [N, M]. No token is dropped.

    Args:
        x: [N, M].
        weights: [N, K], see `route`.
        experts: [N, K] indices, each expert at most once per token.
        w_up: [E, M, F].
        w_down: [E, F, M].
        w_gate: [E, M, F] for "swiglu", else None.
        activation: between the two matrix products.
    """
    out = torch.zeros_like(x)
    for e in range(len(w_up)):
        weight = (weights * (experts == e)).sum(-1, keepdim=True).to(x.dtype)
        out = out + weight * expert(x, w_up[e], w_down[e], None if w_gate is None else w_gate[e], activation)
    return out


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
) -> tuple[Tensor, Tensor]:
    """Mixture-of-experts feed-forward: (output [N, M], balance loss).

    Args:
        x: [N, M].
        w_router: [E, M].
        w_up: [E, M, F].
        w_down: [E, F, M].
        w_gate: [E, M, F] for "swiglu", else None.
        top_k: K.
        router: see `route`.
        normalise: see `route`.
        activation: see `expert`.
        shared: (w_up, w_down, w_gate) of an expert that every token uses with weight 1 (DeepSeekMoE, arXiv
            2401.06066), shapes [M, F'], [F', M], [M, F'].
    """
    routing = route(x @ w_router.T, top_k, router=router, normalise=normalise)
    out = mixture(x, routing.weights, routing.experts, w_up, w_down, w_gate, activation=activation)
    if shared is not None:
        out = out + expert(x, shared[0], shared[1], shared[2], activation)
    return out, balance_loss(routing)
