"""Sparse attention on a CPU against dense causal attention, forward and backward, float32.

    pytest benchmarks -k cpu_sparse --benchmark-only --full -s

Rivals are timed in turns in one process, so that a busy machine slows both; the ratio of each turn counts. A pattern
whose output or gradients differ from the plain definition at a small size reports no time. Strided attention aims at
0.8 of dense time at 4096 tokens and 0.25 at 16384; these are aims, so they are printed and not asserted. Set
OMP_NUM_THREADS to choose the number of threads.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from cegain.kernels import patterns, sparse_torch
from cegain.kernels.block_sparse import sparse_attention
from cegain.kernels.patterns import BlockMask, HeadPattern, head_patterns

HEADS, WIDTH, BLOCK, REPEATS, SMALL = 4, 64, 64, 5, 320
LONGEST = 4096
"""Tokens, unless `--full`."""
AIMS = {("strided", 4096): 0.8, ("strided", 16384): 0.25}
Attention = Callable[[Tensor, Tensor, Tensor], Tensor]
Pattern = BlockMask | tuple[HeadPattern, ...]


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Torch's fused causal attention."""
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def pattern_of(name: str, tokens: int) -> Pattern:
    """A named pattern; or one block in ten below the diagonal, and the diagonal."""
    if name != "blocks":
        window = max(1, tokens // 8)
        return head_patterns(name, HEADS, tokens, window=window)  # type: ignore[arg-type]
    n = -(-tokens // BLOCK)
    return BlockMask((np.random.default_rng(0).random((n, n)) < 0.1) | np.eye(n, dtype=bool), BLOCK, BLOCK)


def scores(pattern: Pattern, tokens: int) -> dict[str, int]:
    """Query-key pairs: unmasked, in blocks of 64 a kernel visits, and computed by the torch backend."""
    if isinstance(pattern, BlockMask):
        useful, visited = (f(HEADS, tokens, tokens) for f in (pattern.useful_scores, pattern.visited_scores))
    else:
        useful = patterns.useful_scores(pattern, tokens, tokens)
        visited = patterns.visited_scores(pattern, tokens, tokens, block_q=BLOCK, block_kv=BLOCK)
    computed = sparse_torch.computed_scores(pattern, HEADS, tokens, tokens)
    return {"useful": useful, "visited": visited, "computed": computed}


def problem(tokens: int) -> tuple[list[Tensor], Tensor]:
    """q, k and v [1, H, tokens, D], and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (torch.randn(1, HEADS, tokens, WIDTH, generator=generator) for _ in range(4))
    return [x.requires_grad_() for x in (q, k, v)], grad


def both_passes(attention: Attention, leaves: list[Tensor], grad: Tensor) -> list[Tensor]:
    """Output and gradients."""
    out = attention(*leaves)
    return [out, *torch.autograd.grad(out, leaves, grad)]


def check(name: str) -> None:
    """Fail where the fast path is not what the plain definition says."""
    pattern = pattern_of(name, SMALL)
    leaves, grad = problem(SMALL)
    fast = both_passes(lambda q, k, v: sparse_attention(q, k, v, pattern, backend="torch"), leaves, grad)
    plain = both_passes(lambda q, k, v: sparse_attention(q, k, v, pattern, backend="reference"), leaves, grad)
    for got, want in zip(fast, plain, strict=True):
        torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.benchmark(group="sparse attention, CPU, forward and backward")
@pytest.mark.parametrize("tokens", [4096, 16384])
@pytest.mark.parametrize("name", ["strided", "fixed", "window", "blocks"])
def test_cpu_sparse(benchmark: Any, name: str, tokens: int, full: bool) -> None:
    """Time of both passes against dense causal attention, in turns."""
    if tokens > LONGEST and not full:
        pytest.skip("half a minute; --full measures it")
    check(name)
    pattern = pattern_of(name, tokens)
    leaves, grad = problem(tokens)

    def sparse(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_attention(q, k, v, pattern, backend="torch")

    def seconds(attention: Attention) -> float:
        begin = time.perf_counter()
        both_passes(attention, leaves, grad)
        return time.perf_counter() - begin

    rival = []

    def before() -> tuple[tuple[Any, ...], dict[str, Any]]:
        rival.append(seconds(dense))
        return (sparse, leaves, grad), {}

    seconds(sparse)
    benchmark.pedantic(both_passes, setup=before, rounds=REPEATS)
    own = benchmark.stats.stats.data
    ratios = [mine / other for mine, other in zip(own, rival, strict=True)]
    counts = scores(pattern, tokens)
    per_pair = 4 * WIDTH * 3  # QK^T and PV, 2 FLOP per multiply-add; backward twice the forward
    benchmark.extra_info |= {
        "threads": torch.get_num_threads(),
        "dense_median_s": statistics.median(rival),
        "dense_p90_s": float(np.quantile(rival, 0.9)),
        "p90_s": float(np.quantile(own, 0.9)),
        "ratio_median": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "useful_flops": counts["useful"] * per_pair,
        "visited_over_useful": counts["visited"] / counts["useful"],
        "computed_over_useful": counts["computed"] / counts["useful"],
    }
    aim = AIMS.get((name, tokens))
    print(
        f"\n{name}, {tokens} tokens, {torch.get_num_threads()} threads: {statistics.median(own):.3f} s (p90 "
        f"{np.quantile(own, 0.9):.3f}), dense {statistics.median(rival):.3f} s (p90 {np.quantile(rival, 0.9):.3f}); "
        f"ratio {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})"
        f"{'' if aim is None else f', aim {aim}'}; pairs over useful: visited in blocks of {BLOCK} "
        f"{counts['visited'] / counts['useful']:.2f}, computed {counts['computed'] / counts['useful']:.2f}"
    )
