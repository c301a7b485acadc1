"""From a FLOP budget to a shape and a number of steps: the compute-optimal rule, for models of any size.

A rung of a ladder holds the shape of its stack's baseline; where an arm changes FLOP per token, its tokens change, so
that every arm of a rung spends the same useful FLOP.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from cegain.shapes import architecture
from cegain.shapes.architecture import ModelShape, Stack

SMALL_WIDTHS = range(32, 256, 16)
"""d_model of small models, where `architecture.compute_optimal_shape` has too coarse a grid (heads of 64, width 100
times the layers). All have four heads, so that queries can share keys and patterns can differ by head."""
SMALL_HEADS = 4
SMALL_ASPECT_RATIO = 32
"""d_model / n_layers of small models: 64 wide with 2 layers, 128 with 4. Assumed, not studied; loss hardly depends on
it (Kaplan et al. 2020, arXiv 2001.08361, figure 5)."""
BATCH_TOKENS = 0.5
"""Tokens per step over the square root of a run's tokens: 512 at 1e6 tokens, 16,384 at 1e9. The critical batch grows
about so (Zhang et al. 2024, arXiv 2410.21676: D^0.47). The factor was tried at 3e11 FLOP (docs/log.md)."""


class Plan(NamedTuple):
    """What a budget buys: the arm's shape, sequences per step, steps, tokens, and useful FLOP (at most half a step
    away from the budget)."""

    shape: ModelShape
    batch: int
    steps: int
    tokens: int
    flops: float


def baseline_shape(flops: float, stack: Stack, **sizes: Any) -> ModelShape:
    """The compute-optimal shape of a stack at a budget (useful FLOP of training).

    Args:
        flops: the budget.
        stack: its name.
        sizes: fields of ModelShape that are given; n_layers and d_model together replace the rule.

    Raises:
        ValueError: an unknown field or a bad shape.
    """
    if "n_layers" in sizes or "d_model" in sizes:
        width = sizes.get("d_model", 0)
        heads = SMALL_HEADS if width < SMALL_WIDTHS.stop else width // 64
        return architecture.stack(stack, **{"n_heads": heads, **sizes})
    n, _ = architecture.compute_optimal(flops)
    small = _nearest_small(n, stack, **sizes)
    return small or architecture.compute_optimal_shape(flops, stack, **sizes)


def shape_of_other_size(flops: float, stack: Stack, times: float, **sizes: Any) -> ModelShape:
    """The shape nearest to `times` the parameters of `baseline_shape`: at the same FLOP it sees that many times fewer
    tokens. The grid of small shapes is coarse: twice is 1.5 to 2.2 times there.

    Raises:
        ValueError: as `baseline_shape`, or no such shape: it would be the rule's own.
    """
    rule = baseline_shape(flops, stack, **sizes)
    small = _nearest_small(times * _multiplied(rule), stack, **sizes)
    found = small or architecture.compute_optimal_shape(flops * times**2, stack, **sizes)  # N grows with the root of C
    if found == rule:
        raise ValueError(
            f"model_size must lead to another shape, got {times:g}: the nearest at {flops:g} FLOP is the rule's "
            f"({rule.n_layers} layers, {rule.d_model} wide); give one farther from 1, or another budget"
        )
    return found


def plan(flops: float, stack: Stack, arm_fields: dict[str, Any], *, batch: int | None = None, **sizes: Any) -> Plan:
    """A rung's run: the baseline's shape with the arm's fields, trained until the budget is spent.

    Args:
        flops: the budget, useful FLOP.
        stack: what all arms share.
        arm_fields: fields of ModelShape that the arm changes.
        batch: sequences per step; None: by BATCH_TOKENS, a power of two.
        sizes: fields of ModelShape that are given, such as vocab_size and seq_len.

    Raises:
        ValueError: a bad shape, or a budget below one step (with the least that would do).
    """
    base = baseline_shape(flops, stack, **sizes)
    size = {"n_layers": base.n_layers, "d_model": base.d_model, "n_heads": base.n_heads, "head_dim": base.head_dim}
    shape = architecture.stack(stack, **{**size, **sizes, **arm_fields})
    if batch is None:  # by the baseline's tokens, so that all arms of a rung have one batch size
        tokens = flops / architecture.flops_per_token(base)
        batch = max(1, 2 ** round(math.log2(BATCH_TOKENS * math.sqrt(tokens) / shape.seq_len)))
    step_tokens = batch * shape.seq_len
    per_token = architecture.flops_per_token(shape, batch_tokens=step_tokens)
    steps = round(flops / (per_token * step_tokens))
    if steps < 1:
        raise ValueError(
            f"flops must buy one step, got {flops:g}; one step of {batch} x {shape.seq_len} tokens at "
            f"{per_token:.3g} FLOP per token takes {per_token * step_tokens:.3g}: raise it, or lower the batch"
        )
    return Plan(shape, batch, steps, steps * step_tokens, steps * step_tokens * per_token)


def _nearest_small(parameters: float, stack: Stack, **sizes: Any) -> ModelShape | None:
    """The small shape nearest to a number of parameters; None where a larger one would be nearer."""
    candidates = [_small(width, stack, **sizes) for width in SMALL_WIDTHS]
    nearest = min(candidates, key=lambda shape: abs(math.log(_multiplied(shape) / parameters)))
    return nearest if nearest is not candidates[-1] else None


def _small(width: int, stack: Stack, **sizes: Any) -> ModelShape:
    layers = max(2, round(width / SMALL_ASPECT_RATIO))
    size = {"n_layers": layers, "d_model": width, "n_heads": SMALL_HEADS}
    return architecture.stack(stack, **{**size, **sizes})


def _multiplied(shape: ModelShape) -> int:
    """Parameters that every token is multiplied by: without tables that are only looked up."""
    count = architecture.parameters(shape)
    return count.active_non_embedding + shape.vocab_size * shape.d_model
