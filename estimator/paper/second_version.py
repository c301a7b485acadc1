"""The curves of the source paper's second version: what its large model's gains are gains at.

results.ipynb of github.com/jcksanderson/llm-algorithmic-progress (commit d5c9881) holds printed losses and gains, and a
figure; the curves themselves are not published. An evaluation stands every 500 iterations, the first before training.
The target of a gain is the baseline's last loss, and each arm, the baseline too, is clocked at the first evaluation
that is not above it. Every curve is a trailing mean of 8 evaluations (cell 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

EVALUATIONS, EVERY, WINDOW = 101, 500, 8
TOKENS_PER_ITERATION = 524_288
SHIFTED = ("rope", "mqa")
"""Arms of the large model to whose curves cell 4 adds |LayerNorm - baseline| before they are compared."""


class Curves(NamedTuple):
    """One size: layers and width; the baseline's last and lowest loss (nats per token; cells 13 and 14); evaluations,
    from 1, at which baseline and arms first pass its last loss; gains as printed; where the lowest stands (iteration).
    """

    layers: int
    d_model: int
    last: float
    lowest: float
    baseline: int
    arms: Mapping[str, int]
    printed: Mapping[str, float]
    lowest_at: int

    @property
    def params(self) -> int:
        """Non-embedding parameters of an arm with ordinary attention."""
        return 12 * self.layers * self.d_model**2


FULL = Curves(
    10, 768, last=3.6527, lowest=3.5428, baseline=27,
    arms={"layernorm": 19, "rope": 20, "stack": 15, "sparse_attention": 28, "mqa": 29, "flash_attention": 27},
    printed={"layernorm": 1.421, "rope": 1.350, "stack": 1.800, "sparse_attention": 0.964, "mqa": 0.931,
             "flash_attention": 1.000},
    lowest_at=21_000,
)  # fmt: skip
"""The lowest point is read off the figure of cell 6; crossings follow from the printed gains, and agree with it."""
COMPACT = Curves(
    6, 384, last=3.7996, lowest=3.7996, baseline=101,
    arms={"layernorm": 55, "rope": 54, "stack": 29, "flash_attention": 95},
    printed={"layernorm": 1.836, "rope": 1.870, "stack": 3.483, "flash_attention": 1.063},
    lowest_at=50_000,
)  # fmt: skip


def first_crossing(losses: Iterable[float], target: float) -> int | None:
    """Number, from 1, of the first evaluation whose loss is not above the target; None where all are above it."""
    return next((i for i, loss in enumerate(losses, start=1) if loss <= target), None)


def iterations(evaluation: int) -> int:
    """Iterations done at an evaluation, numbered from 1."""
    return EVERY * (evaluation - 1)


def flops(curves: Curves, evaluation: int, params: int | None = None) -> float:
    """Non-embedding 6 N D spent up to an evaluation; `params` where the arm's differ."""
    return 6.0 * (params or curves.params) * TOKENS_PER_ITERATION * iterations(evaluation)


def gain(baseline: int, arm: int) -> float:
    """Iterations of the baseline / of the arm at the evaluations where each first passes the target, where the printed
    gains divide the numbers of the evaluations, the one before training included."""
    return iterations(baseline) / iterations(arm)


def without_lag(baseline: int, arm: int) -> float:
    """The gain with the lag of the trailing mean taken off both arms, as if their curves were straight inside it."""
    first, lag = 1, (WINDOW - 1) / 2
    return (baseline - first - lag) / (arm - first - lag)
