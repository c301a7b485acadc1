"""Causal self-attention: every pattern, shared heads, rotary positions, and both ways to compute it.

Symbols: B sequences, H query heads, Hk key and value heads (dividing H), T tokens, D head width, M model width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cegain.kernels.backend import Backend
from cegain.kernels.block_sparse import sparse_attention, token_mask
from cegain.kernels.flash import flash_attention
from cegain.kernels.mqa import mqa_attention
from cegain.kernels.patterns import HeadPattern, head_patterns
from cegain.shapes.architecture import ModelShape

ROPE_BASE = 10_000.0
"""Longest wavelength of rotary positions over 2 pi, in tokens (Su et al. 2021, arXiv 2104.09864, section 3.3)."""
QK_NORM_EPS = 1e-6


def patterns_of(shape: ModelShape) -> tuple[HeadPattern, ...]:
    """What each query head of the shape sees."""
    return head_patterns(
        shape.pattern, shape.n_heads, shape.seq_len, window=shape.window, stride=shape.stride, summary=shape.summary
    )


def is_materialised(shape: ModelShape, backend: Backend) -> bool:
    """Whether all scores are held at once: by the shape's choice, or since the plain definition is asked for."""
    return shape.attention == "materialised" or backend == "reference"


def score_mask(shape: ModelShape) -> Tensor:
    """What is added to the scores of full sequences [1 or H, T, T]: 0 where the query sees the key, -inf where it does
    not; no values on meta. Adding it takes half the time of filling in, and passes gradients on as they are."""
    scores = torch.zeros(1, shape.seq_len, shape.seq_len)
    if scores.is_meta:
        return scores
    heads = patterns_of(shape)
    seen = token_mask(heads[:1] if len(set(heads)) == 1 else heads, shape.seq_len, shape.seq_len)
    return scores.masked_fill(~seen, -math.inf)


def rotation(shape: ModelShape) -> Tensor:
    """Cosines and sines [2, T, D / 2] of rotary positions."""
    half = shape.width_per_head // 2
    rates = ROPE_BASE ** (-torch.arange(half, dtype=torch.float64) / half)
    angles = torch.arange(shape.seq_len, dtype=torch.float64)[:, None] * rates
    return torch.stack([angles.cos(), angles.sin()]).to(torch.get_default_dtype())


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turn pairs (i, i + D / 2) of x [B, H, T, D] by their position's angles, `turn` [2, T, D / 2], in its dtype."""
    cos, sin = turn[:, : x.shape[2]]
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


class Scores(nn.Module):
    """Softmax(Q K^T / sqrt(D)) V under the shape's pattern; no parameters.

    Materialised, every score is computed, those that the pattern hides included, as in
    `cegain.kernels.reference.attention` but without the log-sum-exp, which training has no use for.
    """

    def __init__(self, shape: ModelShape, backend: Backend) -> None:
        super().__init__()
        self.pattern, self.window, self.backend = shape.pattern, patterns_of(shape)[0].window, backend
        self.heads = patterns_of(shape)
        self.materialised = is_materialised(shape, backend)

    def forward(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Output [B, H, T, D] of q [B, H, T, D], k and v [B, Hk, T, D]; `mask` as `score_mask`, if materialised."""
        if self.materialised:
            assert mask is not None
            group, tokens = q.shape[1] // k.shape[1], q.shape[2]
            if group > 1:
                k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
            scores = (q / math.sqrt(q.shape[-1])) @ k.transpose(-2, -1)
            return (scores + mask[:, :tokens, :tokens]).softmax(-1) @ v
        if self.pattern == "window":
            return flash_attention(q, k, v, window=self.window, backend=self.backend)
        if self.pattern != "causal":
            return sparse_attention(q, k, v, self.heads, backend=self.backend)
        if k.shape[1] < q.shape[1]:
            return mqa_attention(q, k, v, backend=self.backend)
        return flash_attention(q, k, v, backend=self.backend)


class Attention(nn.Module):
    """Self-attention [B, T, M] -> [B, T, M]."""

    def __init__(self, shape: ModelShape, backend: Backend) -> None:
        super().__init__()
        q, kv = shape.n_heads * shape.width_per_head, shape.n_kv_heads * shape.width_per_head
        self.width = shape.width_per_head
        self.query = nn.Linear(shape.d_model, q, bias=shape.biases)
        self.key = nn.Linear(shape.d_model, kv, bias=shape.biases)
        self.value = nn.Linear(shape.d_model, kv, bias=shape.biases)
        self.query_norm = nn.RMSNorm(self.width, eps=QK_NORM_EPS) if shape.qk_norm else nn.Identity()
        self.key_norm = nn.RMSNorm(self.width, eps=QK_NORM_EPS) if shape.qk_norm else nn.Identity()
        self.scores = Scores(shape, backend)
        self.out = nn.Linear(q, shape.d_model, bias=shape.biases)

    def forward(self, x: Tensor, turn: Tensor | None, mask: Tensor | None) -> Tensor:
        """`turn` as `rotation`, None without rotary positions; `mask` as `score_mask`, None if fused."""
        batch, tokens, _ = x.shape
        q, k, v = (
            linear(x).view(batch, tokens, -1, self.width).transpose(1, 2)
            for linear in (self.query, self.key, self.value)
        )
        q, k = self.query_norm(q), self.key_norm(k)
        if turn is not None:
            q, k = rotate(q, turn), rotate(k, turn)
        # norms give float32 under autocast
        out = self.scores(q.to(v.dtype), k.to(v.dtype), v, mask)
        return self.out(out.transpose(1, 2).reshape(batch, tokens, -1))  # type: ignore[no-any-return]
