"""Queries, keys and values that tests of attention share."""

import torch
from torch import Tensor


def attention_inputs(
    seq_q: int, seq_kv: int, width: int = 16, heads: int = 2, shared: int = 1, batch: int = 1,
    dtype: torch.dtype = torch.float32, device: str = "cpu",
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """q [B, H, T, D] laid out [B, T, H, D] in memory, as projections give it; k and v [B, HK, S, D], contiguous."""
    generator = torch.Generator().manual_seed(seq_q + width)
    q = torch.randn(batch, seq_q, heads, width, generator=generator).transpose(1, 2)
    k = torch.randn(batch, shared, seq_kv, width, generator=generator)
    v = torch.randn(batch, shared, seq_kv, width, generator=generator)
    return q.to(device, dtype), k.to(device, dtype), v.to(device, dtype)
