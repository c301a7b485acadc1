"""FLOPs and bytes of every operation, in pure Python.

Conventions, used by every function here:

* `flops` is useful work: 2 FLOP per multiply-add, backward = 2 x forward (Kaplan et al. 2020, arXiv
  2001.08361, section 2.1), attention scores that a mask removes not counted, element-wise work not counted.
* `executed_flops` is what the hardware does: masked scores inside visited blocks, scores computed again in
  the backward pass, rows added as padding.
* `bytes` is the traffic of operands and results, each moved once per matrix multiplication, or once per
  fused kernel where the function says so. Caches can lower it, spills and re-reads can raise it.

All counts are exact Python integers, so they never overflow. `pass_` is "fwd", "bwd" or "fwd_bwd".
Every function raises ValueError for a size below its minimum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Pass = Literal["fwd", "bwd", "fwd_bwd"]
Activation = Literal["gelu", "relu2", "swiglu"]

ATTENTION_BACKWARD_MATMULS = 4
"""dV, dP, dQ, dK: the backward of materialised attention, 2 x its forward."""

FLASH_BACKWARD_MATMULS = 5
"""One pass that computes the scores again: 2.5 x the forward (Dao 2023, arXiv 2307.08691, section 4.1)."""

TWO_PASS_BACKWARD_MATMULS = 7
"""dQ, and dK with dV, in separate grids that add nothing atomically: both compute scores and dP again."""

LOG_SUM_EXP_BYTES = 4
"""Fused attention keeps one fp32 log-sum-exp per query and head for its backward pass."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Work of one operation: useful FLOP, FLOP done by the hardware, bytes moved."""

    flops: int = 0
    executed_flops: int = 0
    bytes: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.flops + other.flops, self.executed_flops + other.executed_flops, self.bytes + other.bytes)

    def __rmul__(self, times: int) -> Cost:
        return Cost(times * self.flops, times * self.executed_flops, times * self.bytes)


def linear(tokens: int, d_in: int, d_out: int, *, pass_: Pass = "fwd", bytes_per_element: int = 2) -> Cost:
    """Cost of `y [tokens, d_out] = x [tokens, d_in] @ W`; a bias is element-wise, so not counted."""
    return grouped_linear(tokens, 1, d_in, d_out, pass_=pass_, bytes_per_element=bytes_per_element)


def grouped_linear(
    rows: int,
    groups: int,
    d_in: int,
    d_out: int,
    *,
    executed_rows: int | None = None,
    pass_: Pass = "fwd",
    bytes_per_element: int = 2,
) -> Cost:
    """Cost of `rows` rows shared out over `groups` weight matrices of [d_in, d_out], each row meeting one.

    `executed_rows` counts the rows with the padding that a tile per group adds; default: none. The forward
    pass reads x and W and writes y; the backward reads dy, x and W and writes dx and dW.
    """
    executed_rows = rows if executed_rows is None else executed_rows
    _at_least(0, rows=rows, groups=groups)
    _at_least(rows, executed_rows=executed_rows)
    _at_least(1, d_in=d_in, d_out=d_out, bytes_per_element=bytes_per_element)
    x, y, weights = rows * d_in, rows * d_out, groups * d_in * d_out
    per_row = 2 * d_in * d_out
    forward = Cost(rows * per_row, executed_rows * per_row, bytes_per_element * (x + weights + y))
    backward = Cost(2 * forward.flops, 2 * forward.executed_flops, bytes_per_element * (y + 2 * x + 2 * weights))
    return _select(forward, backward, pass_)


def attention(
    *,
    batch: int,
    heads_q: int,
    heads_kv: int,
    seq_q: int,
    seq_kv: int,
    head_dim: int,
    useful_scores: int,
    visited_scores: int | None = None,
    backward_matmuls: int = FLASH_BACKWARD_MATMULS,
    materialised: bool = False,
    pass_: Pass = "fwd",
    bytes_per_element: int = 2,
) -> Cost:
    """Cost of scores and weighted sum, Q K^T and P V, without the projections.

    `q: [batch, heads_q, seq_q, head_dim]`, `k, v: [batch, heads_kv, seq_kv, head_dim]`; sharing keys among
    query heads (GQA, Ainslie et al. 2023, arXiv 2305.13245; MQA, Shazeer 2019, arXiv 1911.02150) changes the
    bytes and not the FLOP.

    Args:
        batch: sequences.
        heads_q: query heads, a multiple of heads_kv.
        heads_kv: key and value heads.
        seq_q: queries per sequence.
        seq_kv: keys per sequence.
        head_dim: width of one head.
        useful_scores: unmasked query-key pairs of one sequence, summed over its query heads
            (`patterns.useful_scores`). Give `heads_q * seq_q * seq_kv` to count the scores in full,
            as torch's FlopCounterMode sees materialised attention.
        visited_scores: pairs that the kernel computes, same unit; default: all of them if materialised,
            otherwise the useful ones. Blocks are computed whole, so it may exceed seq_q * seq_kv.
        backward_matmuls: matrix products of the backward pass over the visited scores, 4 of them useful;
            not used when materialised, which keeps its probabilities.
        materialised: scores and probabilities go through memory: forward writes and reads both (4 passes
            over [seq_q, seq_kv]), backward moves P, dP and dS (7 passes). Otherwise one fused kernel reads
            and writes the tensors of its interface once, with one log-sum-exp per query.
        pass_: which pass.
        bytes_per_element: of every tensor but the log-sum-exp.

    Raises:
        ValueError: a size below 1, heads_kv not dividing heads_q, more useful scores than pairs or than
            visited ones.
    """
    _at_least(1, batch=batch, heads_q=heads_q, heads_kv=heads_kv, seq_q=seq_q, seq_kv=seq_kv)
    _at_least(1, head_dim=head_dim, bytes_per_element=bytes_per_element)
    _at_least(0, useful_scores=useful_scores)
    if heads_q % heads_kv:
        raise ValueError(
            f"heads_kv must divide heads_q, got heads_q={heads_q}, heads_kv={heads_kv}; "
            "use heads_kv = heads_q (MHA), a divisor (GQA) or 1 (MQA)"
        )
    pairs = heads_q * seq_q * seq_kv
    if useful_scores > pairs:
        raise ValueError(
            f"useful_scores must be at most heads_q * seq_q * seq_kv = {pairs}, got {useful_scores}; "
            "count one sequence, summed over its query heads"
        )
    if visited_scores is None:
        visited_scores = pairs if materialised else useful_scores
    if materialised:
        backward_matmuls = ATTENTION_BACKWARD_MATMULS
    _at_least(useful_scores, visited_scores=visited_scores)
    _at_least(ATTENTION_BACKWARD_MATMULS, backward_matmuls=backward_matmuls)

    q = batch * heads_q * seq_q * head_dim
    kv = 2 * batch * heads_kv * seq_kv * head_dim
    lse_bytes = 0 if materialised else LOG_SUM_EXP_BYTES * batch * heads_q * seq_q
    moved_scores = batch * pairs if materialised else 0
    per_matmul, per_executed = 2 * batch * head_dim * useful_scores, 2 * batch * head_dim * visited_scores
    forward = Cost(2 * per_matmul, 2 * per_executed, bytes_per_element * (2 * q + kv + 4 * moved_scores) + lse_bytes)
    # backward reads q, k, v, o, do and writes dq, dk, dv
    backward = Cost(
        ATTENTION_BACKWARD_MATMULS * per_matmul,
        backward_matmuls * per_executed,
        bytes_per_element * (4 * q + 2 * kv + 7 * moved_scores) + lse_bytes,
    )
    return _select(forward, backward, pass_)


def decode_attention(
    *, batch: int, heads_q: int, heads_kv: int, kv_tokens: int, head_dim: int, bytes_per_element: int = 2
) -> Cost:
    """Cost of one new token per sequence against a KV cache of `kv_tokens` tokens, all of them attended to.

    `q: [batch, heads_q, 1, head_dim]`. Reading the cache dominates the bytes, which is why MQA speeds
    decoding up (Shazeer 2019, arXiv 1911.02150, section 3).
    """
    cost = attention(
        batch=batch,
        heads_q=heads_q,
        heads_kv=heads_kv,
        seq_q=1,
        seq_kv=kv_tokens,
        head_dim=head_dim,
        useful_scores=heads_q * kv_tokens,
        bytes_per_element=bytes_per_element,
    )
    # no backward pass follows, so no log-sum-exp is kept
    return cost + Cost(bytes=-LOG_SUM_EXP_BYTES * batch * heads_q)


def feed_forward_matmuls(activation: Activation) -> int:
    """Weight matrices of one feed-forward layer: up and down, and a gate (Shazeer 2020, arXiv 2002.05202)."""
    return 3 if activation == "swiglu" else 2


def feed_forward(
    tokens: int, d_model: int, d_ff: int, activation: Activation, *, pass_: Pass = "fwd", bytes_per_element: int = 2
) -> Cost:
    """Cost of a dense feed-forward layer on `x [tokens, d_model]`: 2 matmuls, 3 with a gate."""
    return _experts(tokens, 1, d_model, d_ff, activation, None, pass_, bytes_per_element)


def moe_feed_forward(
    tokens: int,
    d_model: int,
    d_expert: int,
    activation: Activation,
    *,
    n_experts: int,
    top_k: int,
    n_shared_experts: int = 0,
    executed_rows: int | None = None,
    pass_: Pass = "fwd",
    bytes_per_element: int = 2,
) -> Cost:
    """Cost of a mixture of experts on `x [tokens, d_model]`: router, top_k routed and all shared experts.

    Routing drops no token (Gale et al. 2022, arXiv 2211.15841); shared experts as in DeepSeekMoE (Dai et al.
    2024, arXiv 2401.06066). The weights of `min(n_experts, tokens * top_k)` routed experts move.
    `executed_rows` counts the routed rows with tile padding; default: tokens * top_k.
    """
    _at_least(1, n_experts=n_experts, top_k=top_k)
    _at_least(0, tokens=tokens, n_shared_experts=n_shared_experts)
    _at_least(top_k, n_experts=n_experts)
    rows = tokens * top_k
    router = linear(tokens, d_model, n_experts, pass_=pass_, bytes_per_element=bytes_per_element)
    routed = _experts(
        rows, min(n_experts, rows), d_model, d_expert, activation, executed_rows, pass_, bytes_per_element
    )
    shared = _experts(tokens, 1, d_model, d_expert, activation, None, pass_, bytes_per_element)
    return router + routed + n_shared_experts * shared


def lstm_layer(
    batch: int, seq_len: int, d_in: int, d_hidden: int, *, pass_: Pass = "fwd", bytes_per_element: int = 2
) -> Cost:
    """Cost of one LSTM layer on `x [batch, seq_len, d_in]`, as an unfused loop over time steps.

    Four gates, each with an input and a recurrent matrix (Hochreiter & Schmidhuber 1997, with the forget
    gate of Gers et al. 2000): 8 d_hidden (d_in + d_hidden) FLOP per token. Unfused, every step moves both
    matrices again; fused kernels move fewer bytes and do the same FLOP.
    """
    _at_least(0, seq_len=seq_len)
    from_input = linear(batch, d_in, 4 * d_hidden, pass_=pass_, bytes_per_element=bytes_per_element)
    from_state = linear(batch, d_hidden, 4 * d_hidden, pass_=pass_, bytes_per_element=bytes_per_element)
    return seq_len * (from_input + from_state)


def kv_cache_bytes(
    *, n_layers: int, heads_kv: int, head_dim: int, tokens: int, batch: int = 1, bytes_per_element: int = 2
) -> int:
    """Bytes of the keys and values of `tokens` tokens per sequence: 2 n_layers heads_kv head_dim each."""
    _at_least(1, n_layers=n_layers, heads_kv=heads_kv, head_dim=head_dim, batch=batch)
    _at_least(0, tokens=tokens)
    _at_least(1, bytes_per_element=bytes_per_element)
    return 2 * n_layers * heads_kv * head_dim * tokens * batch * bytes_per_element


def muon_step(matrices: Iterable[tuple[int, int]], *, newton_schulz_steps: int = 5, bytes_per_element: int = 2) -> Cost:
    """Cost of the matrix products of one Muon `optimizer.step()`, for weights of the given [rows, columns].

    Per iteration, with n = min(rows, columns) and m = max: X X^T (2 n^2 m), A A (2 n^3), B X (2 n^2 m).
    Source: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks", which transposes
    tall matrices first and uses five steps. Momentum and update are element-wise.
    """
    _at_least(0, newton_schulz_steps=newton_schulz_steps)
    total = Cost()
    for rows, columns in matrices:
        _at_least(1, rows=rows, columns=columns)
        n, m = min(rows, columns), max(rows, columns)
        flops = 4 * n * n * m + 2 * n**3
        moved = bytes_per_element * (3 * n * m + 4 * n * n)
        total += newton_schulz_steps * Cost(flops, flops, moved)
    return total


def _experts(
    rows: int,
    groups: int,
    d_model: int,
    d_ff: int,
    activation: Activation,
    executed_rows: int | None,
    pass_: Pass,
    bytes_per_element: int,
) -> Cost:
    """Feed-forward layers of `groups` experts; the activation is taken as fused into the first matmuls."""
    up = grouped_linear(
        rows, groups, d_model, d_ff, executed_rows=executed_rows, pass_=pass_, bytes_per_element=bytes_per_element
    )
    down = grouped_linear(
        rows, groups, d_ff, d_model, executed_rows=executed_rows, pass_=pass_, bytes_per_element=bytes_per_element
    )
    return (feed_forward_matmuls(activation) - 1) * up + down


def _select(forward: Cost, backward: Cost, pass_: Pass) -> Cost:
    if pass_ == "fwd":
        return forward
    if pass_ == "bwd":
        return backward
    if pass_ == "fwd_bwd":
        return forward + backward
    raise ValueError(f"pass_ must be one of fwd, bwd, fwd_bwd, got {pass_!r}; use one of these three")


def _at_least(minimum: int, **sizes: int) -> None:
    for name, value in sizes.items():
        if value < minimum:
            raise ValueError(f"{name} must be at least {minimum}, got {value}; give a larger {name}")
