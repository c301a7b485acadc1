"""Feed-forward layers: mixtures of experts, and a dense layer of as many active FLOP.

`every_expert` is the definition, every expert on every token; `expert_loop` one matrix product after the other, as
models commonly have it; `grouped_mm` is composed of torch's grouped product; ours is `moe_dispatch`. All have SwiGLU
and start with the router. `dense_ffn` has the width of the experts that a token uses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import functional

from cegain.benchmarks.cases import TRAINING, Implementation, OnDevice, PassName
from cegain.kernels import costs, reference
from cegain.kernels.costs import Cost
from cegain.kernels.moe_dispatch import dispatch_plan, moe_feed_forward

_CHECKED = 64
"""Tokens whose output is compared with the definition."""
_GPU_TILE = 64
"""Rows of a tile: every expert's last one may be filled in part."""


class Mixture(OnDevice):
    """A mixture of experts, in training."""

    passes = TRAINING

    def leaves(self, seed: int) -> list[Tensor]:
        """x [N, M], w_router [E, M], w_up [E, M, F], w_down [E, F, M] and w_gate [E, M, F]."""
        c = self.case
        up = (c.experts, c.d_model, c.d_ff)
        shapes = [(c.seq_q, c.d_model), (c.experts, c.d_model), up, (c.experts, c.d_ff, c.d_model), up]
        fans = (1, c.d_model, c.d_model, c.d_ff, c.d_model)
        return random_leaves(shapes, fans, seed, self.device, self.dtype)

    @cached_property
    def rows(self) -> Tensor:
        """Tokens that are compared."""
        last = self.case.seq_q - 1
        return torch.tensor(sorted({round(i * last / _CHECKED) for i in range(_CHECKED + 1)}), device=self.device)

    def selected(self, output: Tensor) -> Tensor:
        """The outputs of some tokens."""
        return output[self.rows]

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """Those by the definition. The experts are those that the timed dtype chooses: rounding may swap equal ones."""
        x, w_router, w_up, w_down, w_gate = leaves
        timed = [leaf.detach().to(self.dtype) for leaf in (x, w_router)]
        experts = reference.route(timed[0] @ timed[1].T, self.case.top_k).experts[self.rows]
        logits = (x @ w_router.T)[self.rows]
        routing = reference.route(logits, self.case.top_k, best=lambda scores, k: experts)
        return reference.mixture(x[self.rows], routing.weights, experts, w_up, w_down, w_gate)

    def implementations(self) -> list[Implementation]:
        """Ours last."""
        top_k = self.case.top_k
        grouped = _grouped_mm()
        missing = {} if grouped else cast(dict[PassName, str], dict.fromkeys(TRAINING, "this torch has no grouped_mm"))
        return [
            Implementation("every_expert", lambda *leaves: _definition(top_k, *leaves), self._every_expert_cost),
            Implementation("expert_loop", lambda *leaves: _loop(top_k, *leaves), self._cost),
            Implementation("grouped_mm", lambda *leaves: _grouped(grouped, top_k, *leaves), self._cost, skips=missing),
            Implementation(
                "moe_dispatch", lambda *leaves: moe_feed_forward(*leaves, top_k=top_k)[0], self._own_cost, ours=True
            ),
        ]

    def _cost(self, pass_: PassName, executed_rows: int | None = None) -> Cost:
        c = self.case
        return costs.moe_feed_forward(
            c.seq_q,
            c.d_model,
            c.d_ff,
            "swiglu",
            n_experts=c.experts,
            top_k=c.top_k,
            executed_rows=executed_rows,
            pass_=cast(costs.Pass, pass_),
            bytes_per_element=self.dtype.itemsize,
        )

    def _own_cost(self, pass_: PassName) -> Cost:
        if self.device.type == "cpu":
            return self._cost(pass_)
        # a tile in part for every expert, half of it on average
        rows = self.case.seq_q * self.case.top_k
        return self._cost(pass_, rows + min(self.case.experts, rows) * (_GPU_TILE - 1) // 2)

    def _every_expert_cost(self, pass_: PassName) -> Cost:
        c, one_pass, size = self.case, cast(costs.Pass, pass_), self.dtype.itemsize
        one = costs.feed_forward(c.seq_q, c.d_model, c.d_ff, "swiglu", pass_=one_pass, bytes_per_element=size)
        router = costs.linear(c.seq_q, c.d_model, c.experts, pass_=one_pass, bytes_per_element=size)
        done = router + c.experts * one
        return Cost(self._cost(pass_).flops, done.executed_flops, done.bytes)


class FeedForward(OnDevice):
    """A dense layer, in training: the definition itself, so there is nothing to compare it with."""

    passes = TRAINING

    def leaves(self, seed: int) -> list[Tensor]:
        """x [N, M], w_up [M, F], w_down [F, M] and w_gate [M, F]."""
        c = self.case
        shapes = [(c.seq_q, c.d_model), (c.d_model, c.d_ff), (c.d_ff, c.d_model), (c.d_model, c.d_ff)]
        return random_leaves(shapes, (1, c.d_model, c.d_ff, c.d_model), seed, self.device, self.dtype)

    def selected(self, output: Tensor) -> Tensor:
        """The outputs of some tokens."""
        return output[:_CHECKED]

    def plain(self, leaves: list[Tensor]) -> Tensor:
        """Those by the definition."""
        return reference.expert(leaves[0][:_CHECKED], leaves[1], leaves[2], leaves[3], "swiglu")

    def implementations(self) -> list[Implementation]:
        """One."""

        def run(x: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor) -> Tensor:
            return reference.expert(x, w_up, w_down, w_gate, "swiglu")

        return [Implementation("dense_ffn", run, self._cost)]

    def _cost(self, pass_: PassName) -> Cost:
        c = self.case
        return costs.feed_forward(
            c.seq_q, c.d_model, c.d_ff, "swiglu", pass_=cast(costs.Pass, pass_), bytes_per_element=self.dtype.itemsize
        )


def _definition(top_k: int, *leaves: Tensor) -> Tensor:
    return reference.moe_feed_forward(*leaves, top_k=top_k)[0]


def _loop(top_k: int, x: Tensor, w_router: Tensor, w_up: Tensor, w_down: Tensor, w_gate: Tensor) -> Tensor:
    routing = reference.route(x @ w_router.T, top_k)
    out = torch.zeros_like(x)
    for e in range(len(w_up)):
        token, place = torch.where(routing.experts == e)
        y = reference.expert(x[token], w_up[e], w_down[e], w_gate[e], "swiglu")
        out = out.index_add(0, token, y * routing.weights[token, place, None].to(x.dtype))
    return out


def _grouped_mm() -> Callable[..., Tensor] | None:
    """Torch's product of consecutive rows with a matrix each: public from 2.10 on, before that only for GPUs."""
    found: Any = getattr(functional, "grouped_mm", None) or getattr(torch, "_grouped_mm", None)
    return cast("Callable[..., Tensor] | None", found)


def _grouped(
    grouped: Callable[..., Tensor] | None, top_k: int, x: Tensor, w_router: Tensor, w_up: Tensor, w_down: Tensor,
    w_gate: Tensor,
) -> Tensor:  # fmt: skip
    assert grouped is not None
    routing = reference.route(x @ w_router.T, top_k)
    plan = dispatch_plan(routing.experts, len(w_up))
    rows, ends = x[plan.tokens], plan.offsets[1:].int()
    hidden = functional.silu(grouped(rows, w_gate, offs=ends)) * grouped(rows, w_up, offs=ends)
    y = grouped(hidden, w_down, offs=ends)
    return (y[plan.positions] * routing.weights[..., None].to(x.dtype)).sum(1)


def random_leaves(
    shapes: Sequence[tuple[int, ...]], fans: tuple[int, ...], seed: int, device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """Normal entries over the square root of `fans`."""
    generator = torch.Generator(device).manual_seed(seed)
    made = []
    for shape, fan in zip(shapes, fans, strict=True):
        x = torch.randn(shape, generator=generator, device=device, dtype=dtype)
        made.append(x.mul_(fan**-0.5).requires_grad_())
    return made
