"""Shapes to time: from layers, width and heads, or from a number of parameters alone."""

from __future__ import annotations

import math
from typing import Any, Literal

from cegain.shapes import architecture
from cegain.shapes.architecture import ASPECT_RATIO, ModelShape

Block = Literal["gpt", "llama"]

GPT_VOCABULARY = 50368
"""GPT-2's 50257 entries, rounded up as MPT has them."""


def shape_of(
    layers: int, width: int, heads: int, vocabulary: int, seq_len: int, block: Block = "gpt", /, **fields: Any
) -> ModelShape:
    """A Transformer with fused attention, and any other field of ModelShape.

    `gpt`: layer norms, learned positions, GELU, one table for both ends, no biases, as MPT has it. `llama`: RMS norms,
    rotary positions, SwiGLU, two tables (Touvron et al. 2023, arXiv 2302.13971).

    Raises:
        ValueError: a bad shape, with all problems.
    """
    sizes = {"n_layers": layers, "d_model": width, "n_heads": heads, "vocab_size": vocabulary, "seq_len": seq_len}
    gpt = {"norm": "layer", "positions": "learned", "feed_forward": "gelu"}
    block_fields: dict[str, Any] = gpt if block == "gpt" else {"tied_head": False}
    return architecture.stack("modern", **(block_fields | sizes | fields))


def shape_with(parameters: float, vocabulary: int, seq_len: int, block: Block = "gpt", **fields: Any) -> ModelShape:
    """A shape with about so many parameters: ASPECT_RATIO wide per layer, heads of 128, or 64 below a width of 2048.

    Raises:
        ValueError: too few parameters for the vocabulary, or a bad shape.
    """

    def candidate(width: int) -> ModelShape:
        head = 128 if width >= 2048 else 64
        one, two = (shape_of(n, width, width // head, vocabulary, seq_len, block, **fields) for n in (1, 2))
        first = architecture.parameters(one).total
        depth = 1 + round((parameters - first) / (architecture.parameters(two).total - first))
        return shape_of(max(1, depth), width, width // head, vocabulary, seq_len, block, **fields)

    def off(shape: ModelShape) -> float:
        size = abs(architecture.parameters(shape).total / parameters - 1)
        return abs(math.log(shape.d_model / shape.n_layers / ASPECT_RATIO)) + 4 * size

    best = min(map(candidate, (*range(128, 1024, 128), *range(1024, 2**15, 256))), key=off)
    nearest = architecture.parameters(best).total
    if not 0.8 < nearest / parameters < 1.25:
        raise ValueError(
            f"params must leave room for {vocabulary} vocabulary entries, got {parameters:.3g} (the nearest shape has "
            f"{nearest:.3g}); use more parameters, a smaller vocabulary, or give layers, width and heads"
        )
    return best
