"""Arms on grids of sizes and tokens, most of whose runs are off the frontier: always an answer, mostly a true one."""

import math

import numpy as np
import pytest

from cegain.common.arrays import Array
from cegain.ladders import forecast, ladder


def law(n: Array, d: Array) -> Array:
    """Besiroglu et al. 2024 (arXiv 2404.10102), eq. 1."""
    return np.asarray(1.8172 + 482.01 / n**0.3478 + 2085.43 / d**0.3658)


def grid(gain: float, sizes: Array, tokens: Array, noise: float, rng: np.random.Generator) -> ladder.Ladder:
    """An arm that reaches every loss with `gain` times less compute, at any ratio of tokens to size."""
    n, d = np.repeat(sizes, len(tokens)), np.tile(tokens, len(sizes))
    losses = law(n * math.sqrt(gain), d * math.sqrt(gain)) * np.exp(noise * rng.standard_normal(len(n)))
    return ladder.build("arm", np.log(n), np.log(6 * n * d), np.log(losses))


def answers(grids: int, seed: int) -> list[tuple[str, bool]]:
    """Status of every answer, and whether its 90% interval holds, at a third of the largest budget and at the largest.

    Rows of one size or one number of tokens are no grid, and their own frontiers are further apart than the gain: they
    must be answered, but what is true of them is not known here.
    """
    rng, settings, kept = np.random.default_rng(seed), forecast.load_settings(), []
    for _ in range(grids):
        gain, noise = math.exp(rng.uniform(-0.7, 1.2)), float(rng.choice([0.0, 0.001, 0.003]))
        sizes = 10 ** rng.uniform(7, 8) * rng.uniform(1.5, 5) ** np.arange(rng.integers(1, 7))
        tokens = 10 ** rng.uniform(8.5, 9.7) * rng.uniform(1.5, 5) ** np.arange(rng.integers(1, 6))
        more = float(rng.choice([1.0, 1.1, rng.uniform(0.7, 1.4)]))  # the second arm may see more tokens
        base, treated = grid(1.0, sizes, tokens, noise, rng), grid(gain, sizes, tokens * more, noise, rng)
        top = math.exp(treated.x[-1])
        found = forecast.forecast(base, treated, [top / 3, top], settings)
        if len(sizes) > 2 and len(tokens) > 1:
            kept += [(at.status, at.interval_90[0] <= gain <= at.interval_90[1]) for at in found.at]
    return kept


def test_every_grid_is_answered_or_refused_by_name() -> None:
    found = answers(60, seed=1)
    held = [holds for status, holds in found if status == "ok"]
    assert len(held) > 30
    assert np.mean(held) >= 0.8


@pytest.mark.slow
def test_intervals_hold_on_five_hundred_grids() -> None:
    held = [holds for status, holds in answers(500, seed=2) if status == "ok"]
    assert np.mean(held) >= 0.83
