"""What materialised attention moves per score: the operations that run, against the step-time model's count."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cegain.shapes.architecture import ModelShape
from cegain.speed.step_work import SCORE_BYTES
from cegain.training.models.attention import Scores, score_mask


class Traffic(TorchDispatchMode):
    """Bytes of tensors as large as all scores that operations read or write, views left out."""

    def __init__(self, scores: int) -> None:
        super().__init__()
        self.scores, self.bytes = scores, 0

    def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = op(*args, **(kwargs or {}))
        if not op.is_view and op is not torch.ops.aten._unsafe_view.default:
            tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors if t.numel() == self.scores)
        return out


@pytest.mark.parametrize(("value_bytes", "dtype"), [(2, torch.bfloat16), (4, torch.float32)])
def test_bytes_per_score_are_counted_from_the_operations(value_bytes: int, dtype: torch.dtype) -> None:
    shape = ModelShape(n_layers=1, d_model=64, n_heads=2, seq_len=96)
    attention, mask = Scores(shape, "torch"), score_mask(shape)
    scores = 2 * 96 * 96
    q, k, v = (torch.randn(1, 2, 96, 32, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", torch.bfloat16, enabled=value_bytes == 2), Traffic(scores) as traffic:
        out = attention(q.to(dtype), k.to(dtype), v.to(dtype), mask)
        forward = traffic.bytes
        out.sum().backward()
    assert forward == scores * SCORE_BYTES["forward"][value_bytes]
    assert traffic.bytes - forward == scores * SCORE_BYTES["backward"][value_bytes]
