"""Mixture of experts on a CPU against a dense layer of equal active width, and against every expert on every token.

    OMP_NUM_THREADS=2 pytest benchmarks/test_cpu_moe.py --benchmark-only -s

One training step each (forward and backward, fp32): d 512, 8 experts of d_ff 1024, top-2, SwiGLU, 4096 tokens, so that
the dense layer has d_ff 2048. The three take turns in every round; medians, 90th percentiles and the ratios' range are
printed and stored. Aims, not asserted: at most 1.4x the dense layer's time, at least 2.7x faster than every expert on
every token. No time is taken before output and gradients agree with `cegain.kernels.reference` at a small size.
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

from cegain.kernels import costs, reference
from cegain.kernels.moe_dispatch import dispatch_plan, moe_feed_forward

TOKENS, D_MODEL, D_FF, EXPERTS, TOP_K = 4096, 512, 1024, 8, 2
ROUNDS = 5


def layer(tokens: int, d_model: int, d_ff: int, skew: float) -> list[Tensor]:
    """x, w_router, w_up, w_down, w_gate; `skew` is how much less every expert is liked than the one before it."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(tokens, d_model, generator=random)
    # The first feature of every token is 1, so that its router weights act as a bias: falling from expert to expert.
    x[:, 0] = 1
    w_router = torch.randn(EXPERTS, d_model, generator=random) / d_model**0.5
    w_router[:, 0] = -skew * torch.arange(EXPERTS)
    shapes = ((EXPERTS, d_model, d_ff), (EXPERTS, d_ff, d_model), (EXPERTS, d_model, d_ff))
    weights = [torch.randn(shape, generator=random) / shape[1] ** 0.5 for shape in shapes]
    return [tensor.requires_grad_() for tensor in (x, w_router, *weights)]


def step(function: Callable[..., Tensor | tuple[Tensor, Tensor]], tensors: list[Tensor]) -> list[Tensor]:
    """Output and the gradients of all tensors."""
    result = function(*tensors)
    out, loss = result if isinstance(result, tuple) else (result, None)
    outs = [out] if loss is None else [out, loss]
    return [out.detach(), *torch.autograd.grad(outs, tensors, [torch.ones_like(one) for one in outs])]


def dispatched(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """The mixture under test."""
    return moe_feed_forward(*tensors, top_k=TOP_K, backend="torch")


def every_expert(*tensors: Tensor) -> tuple[Tensor, Tensor]:
    """Every expert on every token."""
    return reference.moe_feed_forward(*tensors, top_k=TOP_K)


def dense(x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor) -> Tensor:
    """One feed-forward layer."""
    return reference.expert(x, w_up, w_down, w_gate, "swiglu")


@pytest.mark.benchmark(group=f"moe: d {D_MODEL}, {EXPERTS} experts of {D_FF}, top-{TOP_K}, {TOKENS} tokens, fwd_bwd")
@pytest.mark.parametrize(("routing", "skew"), [("balanced", 0.0), ("skewed", 0.5)])
def test_cpu_moe(benchmark: Any, capsys: Any, routing: str, skew: float, full: bool) -> None:
    """A step of the mixture, a dense layer and all experts on all tokens, in turns."""
    if skew and not full:
        pytest.skip("half a minute; --full measures it")
    small = [tensor.detach().double().requires_grad_() for tensor in layer(64, 32, 48, skew)]
    for found, plain in zip(step(dispatched, small), step(every_expert, small), strict=True):
        torch.testing.assert_close(found, plain)

    tensors = layer(TOKENS, D_MODEL, D_FF, skew)
    random = torch.Generator().manual_seed(1)
    shapes = ((D_MODEL, TOP_K * D_FF), (TOP_K * D_FF, D_MODEL), (D_MODEL, TOP_K * D_FF))
    wide = [(torch.randn(shape, generator=random) / shape[0] ** 0.5).requires_grad_() for shape in shapes]
    rivals: dict[str, Callable[[], list[Tensor]]] = {
        "dense": lambda: step(dense, [tensors[0], *wide]),
        "every_expert": lambda: step(every_expert, tensors),
    }
    times: dict[str, list[float]] = {name: [] for name in ("moe", *rivals)}

    def run_rivals() -> None:
        """Before every round of ours, one of each rival."""
        for name, rival in rivals.items():
            begin = time.perf_counter()
            rival()
            times[name].append(time.perf_counter() - begin)

    def ours() -> None:
        begin = time.perf_counter()
        step(dispatched, tensors)
        times["moe"].append(time.perf_counter() - begin)

    benchmark.pedantic(ours, setup=run_rivals, rounds=ROUNDS, warmup_rounds=1)
    times = {name: spent[1:] for name, spent in times.items()}  # the warm-up

    experts = reference.route(tensors[0] @ tensors[1].T, TOP_K).experts
    shares = dispatch_plan(experts, EXPERTS).offsets.diff() / experts.numel()
    cost = costs.moe_feed_forward(
        TOKENS, D_MODEL, D_FF, "swiglu", n_experts=EXPERTS, top_k=TOP_K, pass_="fwd_bwd", bytes_per_element=4
    )
    dense_ratios = [own / theirs for own, theirs in zip(times["moe"], times["dense"], strict=True)]
    every_ratios = [theirs / own for own, theirs in zip(times["moe"], times["every_expert"], strict=True)]
    benchmark.extra_info |= {
        "routing": routing,
        "expert_shares": [round(share, 3) for share in shares.tolist()],
        "threads": torch.get_num_threads(),
        "flops": cost.flops,
        "executed_flops": cost.executed_flops,
        "median_s": {name: statistics.median(spent) for name, spent in times.items()},
        "p90_s": {name: float(np.quantile(spent, 0.9)) for name, spent in times.items()},
        "time_over_dense": [min(dense_ratios), statistics.median(dense_ratios), max(dense_ratios)],
        "times_faster_than_every_expert": [min(every_ratios), statistics.median(every_ratios), max(every_ratios)],
    }
    with capsys.disabled():
        print(f"\nmoe {routing}, {torch.get_num_threads()} threads, largest share {float(shares.max()):.2f}")
        for name, spent in times.items():
            rate = f", {cost.flops / statistics.median(spent) / 1e9:.0f} useful GFLOP/s" if name == "moe" else ""
            p90 = 1e3 * float(np.quantile(spent, 0.9))
            print(f"  {name:12} median {1e3 * statistics.median(spent):7.1f} ms, p90 {p90:7.1f} ms{rate}")
        for label, ratios, aim in (
            ("time over dense", dense_ratios, "at most 1.4"),
            ("faster than every expert", every_ratios, "at least 2.7"),
        ):
            middle = statistics.median(ratios)
            print(f"  {label}: {middle:.2f}x ({min(ratios):.2f} to {max(ratios):.2f}), aim {aim}")
