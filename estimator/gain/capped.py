"""What counting forbids: an algorithm that only takes FLOP away cannot gain more than it takes, at equal loss.

    CEG <= 1 / (1 - s),  s = FLOP that it can save / all FLOP of the baseline

An attention pattern can save the scores; shared keys and values can save their projections. Both shares are taken at
the compute-optimal width of the budget, as if widths were no whole numbers, so they change smoothly with the budget:

    FLOP per token / (6 d L) = 12 d + T + V / L,   scores T,   keys and values 2 d (1 - kept heads)

for L layers of width d = 100 L, T tokens and a vocabulary V (`shapes.architecture`, which counts whole shapes).
"""

from __future__ import annotations

import numpy as np

from cegain import algorithms
from cegain.common.arrays import Array

SEQ_LEN = 2048
"""Tokens of a sequence where nobody says."""
LEAST_PATTERN = 512
"""Tokens below which a pattern leaves next to nothing out: it is dense there."""
HEAD_DIM = 128
GROUPS = 8
"""Query heads per key-value head of grouped queries: what open models of 2023-2025 have is 4 to 16."""


def applies(algorithm: str, currency: str) -> bool:
    """Whether a gain is capped."""
    return currency == "flop" and algorithms.get(algorithm).saves_only


def is_pattern(algorithm: str) -> bool:
    """Whether what can be saved is scores, whose share grows with the length of a sequence."""
    return algorithms.get(algorithm).arm.get("heads") not in ("mqa", "gqa")


def ln_cap(algorithm: str, flops: Array, seq_len: Array | float) -> Array:
    """ln of the largest possible gain [n] in FLOP at budgets [n] (FLOP) and lengths (tokens).

    At a small budget a vocabulary would fill the model; the width is then that of the tables alone, and the cap low.
    """
    from cegain.shapes import architecture  # only few questions need it

    vocabulary = architecture.stack("bare").vocab_size
    n = np.array([architecture.compute_optimal(float(c))[0] for c in np.atleast_1d(flops)])
    d = np.array([architecture.optimal_width(float(v), vocabulary) for v in n])
    layers = d / architecture.ASPECT_RATIO
    whole = 12 * d + np.asarray(seq_len) + vocabulary / layers
    if not is_pattern(algorithm):
        heads = d / HEAD_DIM
        kept = 1 / heads if algorithms.get(algorithm).arm["heads"] == "mqa" else 1 / GROUPS
        saved = 2 * d * np.maximum(0.0, 1 - kept)
    else:
        saved = np.broadcast_to(np.asarray(seq_len, dtype=float), d.shape)
    return np.asarray(-np.log1p(-saved / whole))
