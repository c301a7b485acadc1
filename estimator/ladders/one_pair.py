"""The gain behind one pair of losses: how much compute is a lower loss at the same budget worth?

The baseline's frontier is L(C) = E + K C^-gamma. If the baseline reaches loss L_b with C, it reaches the lower loss L
with C_b, and K drops out:

    CEG = C_b / C = ((L_b - E) / (L - E))^(1 / gamma)

One pair of runs fixes neither the floor E nor the exponent gamma, and each run has seed noise. All three are drawn, and
the answer says how much of its uncertainty each contributes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from cegain.common.arrays import Array
from cegain.common.verdict import FAR_WIDTH

DRAWS = 40_000
FLOOR, FLOOR_SD = 1.6, 0.25
"""Floor in nats per token. Assumed: fits to English text with large tokenizers give 1.69 (Hoffmann et al. 2022, arXiv
2203.15556) and 1.82 (Besiroglu et al. 2024, arXiv 2404.10102), and forms without a floor fit as well (Kaplan et al.
2020, arXiv 2001.08361)."""
LEAST_LOSS = FLOOR - FLOOR_SD
"""Below this a loss is taken for one in another unit, unless the floor is given with it. Assumed."""
EXPONENT, EXPONENT_SD = 0.165, 0.025
"""Exponent of the compute frontier, alpha beta / (alpha + beta): 0.154 from Hoffmann's fit, 0.178 from Besiroglu's."""
SEED_NOISE = 0.0013
"""sd of a run's loss over seeds, in nats per token: GPT-2 small."""
HEADROOM = 0.01
"""The floor lies below the lower loss by at least this share of it: a model does not stand on the floor."""


@dataclass(frozen=True)
class Speedup:
    """CEG of a treatment from one pair of runs: factors; `interval` (low, high) holds 90%.

    contributions: share of the variance of ln CEG when only the floor, the exponent or the seed noise varies, over the
    sum of the three. sensitivity: CEG with the floor at its 5%, 50% and 95% point and the rest at its median.
    """

    flops: float
    baseline_loss: float
    loss: float
    median: float
    interval: tuple[float, float]
    contributions: dict[str, float]
    sensitivity: tuple[tuple[float, float], ...]
    floor: tuple[float, float]
    exponent: tuple[float, float]
    seed_noise: float
    seed: int
    draws: int

    @property
    def equivalent_flops(self) -> float:
        """Compute (FLOP) at which the baseline would reach the treatment's loss."""
        return self.flops * self.median

    def as_dict(self) -> dict[str, object]:
        """JSON form: losses in the unit given, flops in FLOP, gains as factors."""
        return {
            "schema": "ceg.speedup",
            "schema_version": 1,
            "flops": self.flops,
            "baseline_loss": self.baseline_loss,
            "loss": self.loss,
            "ceg_median": self.median,
            "ceg_interval_90": self.interval,
            "equivalent_flops_median": self.equivalent_flops,
            "variance_shares": self.contributions,
            "ceg_by_floor": [{"floor": floor, "ceg": gain} for floor, gain in self.sensitivity],
            "floor": {"mean": self.floor[0], "sd": self.floor[1]},
            "exponent": {"mean": self.exponent[0], "sd": self.exponent[1]},
            "seed_noise_sd": self.seed_noise,
            "seed": self.seed,
            "draws": self.draws,
        }

    def __str__(self) -> str:
        from cegain.common.text import number, share, span

        parts = ", ".join(f"{name} {share(part)}" for name, part in self.contributions.items())
        wide = self.interval[1] / self.interval[0] > FAR_WIDTH
        headline = f"  CEG  {number(self.median)}x    90%: {span(self.interval)}"
        if wide:
            headline = (
                f"  CEG  90%: {span(self.interval)}    (median {number(self.median)}x)\n"
                f"  far_extrapolation: the interval spans a factor of more than {FAR_WIDTH:g}; read it, not the median."
            )
        floors = ", ".join(f"{gain:.3g}x at {floor:.3g}" for floor, gain in self.sensitivity)
        return "\n".join(
            [
                f"Loss {self.loss:g} instead of {self.baseline_loss:g} at {number(self.flops)} FLOP",
                "",
                headline,
                f"  The baseline would need {number(self.equivalent_flops)} FLOP to reach it.",
                f"  Uncertainty from: {parts}.",
                f"  By the floor: {floors}.",
                f"  Assumed: floor {self.floor[0]:g} +- {self.floor[1]:g}, exponent {self.exponent[0]:g} +- "
                f"{self.exponent[1]:g}, seed noise {self.seed_noise:g} (each can be given; the floor "
                "stays below both losses).",
            ]
        )


def speedup(
    baseline_loss: float,
    loss: float,
    flops: float,
    *,
    floor: float = FLOOR,
    floor_sd: float = FLOOR_SD,
    exponent: float = EXPONENT,
    exponent_sd: float = EXPONENT_SD,
    seed_noise: float = SEED_NOISE,
    seed: int = 0,
) -> Speedup:
    """CEG with a 90% interval from one pair of losses at the same compute.

    Args:
        baseline_loss, loss: without and with the algorithm; nats per token for the default floor.
        flops: what each run spent (FLOP).
        floor, floor_sd: irreducible loss, normal, kept below the lower loss; sd 0 pins it.
        exponent, exponent_sd: of the compute frontier, log-normal with about this mean and sd; sd 0 pins it.
        seed_noise: sd of one run's loss, in the unit of the losses.
        seed: of the draws.

    Raises:
        ValueError: with every rule that the arguments break, one line each.
    """
    problems = _problems(baseline_loss, loss, flops, floor, floor_sd, exponent, exponent_sd, seed_noise)
    if problems:
        raise ValueError("\n".join(problems))
    random = np.random.default_rng(seed)
    floor_z, exponent_z, first, second = random.standard_normal((4, DRAWS))
    ceiling = min(baseline_loss, loss) * (1 - HEADROOM)
    floors = _below(floor, floor_sd, ceiling, floor_z)
    log_sd = math.sqrt(math.log1p((exponent_sd / exponent) ** 2))
    exponents = exponent * np.exp(log_sd * exponent_z)
    noise = seed_noise * np.stack([first, second])
    middle = np.median(floors)

    def gains(floors: Array, exponents: Array, noise: Array) -> Array:
        # Noise never takes a loss below the floor: the draw would say that the run is better than possible.
        above = np.maximum(
            np.array([[baseline_loss], [loss]]) + noise - floors, 1e-3 * (ceiling / (1 - HEADROOM)) * HEADROOM
        )
        return np.asarray(np.log(above[0] / above[1]) / exponents)

    fixed_floor, fixed_exponent, silent = np.full(1, middle), np.full(1, exponent), np.zeros((2, 1))
    variances = {
        "floor": float(gains(floors, fixed_exponent, silent).var()),
        "exponent": float(gains(fixed_floor, exponents, silent).var()),
        "seed noise": float(gains(fixed_floor, fixed_exponent, noise).var()),
    }
    total = sum(variances.values())
    low, median, high = np.exp(np.quantile(gains(floors, exponents, noise), (0.05, 0.5, 0.95)))
    points = np.quantile(floors, (0.05, 0.5, 0.95))
    by_floor = np.exp(gains(points, fixed_exponent, silent))
    return Speedup(
        flops=flops,
        baseline_loss=baseline_loss,
        loss=loss,
        median=float(median),
        interval=(float(low), float(high)),
        contributions={name: v / total if total > 0 else 0.0 for name, v in variances.items()},
        sensitivity=tuple(zip(points.tolist(), by_floor.tolist(), strict=True)),
        floor=(floor, floor_sd),
        exponent=(exponent, exponent_sd),
        seed_noise=seed_noise,
        seed=seed,
        draws=DRAWS,
    )


def _below(mean: float, sd: float, ceiling: float, z: Array) -> Array:
    """A normal cut off at 0 and at the ceiling, by its inverse CDF (so that common draws stay common)."""
    from scipy.special import ndtr, ndtri

    if sd == 0:
        return np.full(len(z), min(mean, ceiling))
    low, high = ndtr(-mean / sd), ndtr((ceiling - mean) / sd)
    return np.asarray(mean + sd * ndtri(low + (high - low) * ndtr(z)))


def _problems(
    baseline_loss: float,
    loss: float,
    flops: float,
    floor: float,
    floor_sd: float,
    exponent: float,
    exponent_sd: float,
    seed_noise: float,
) -> list[str]:
    found = []
    positive = {"baseline loss": baseline_loss, "loss": loss, "flops": flops, "exponent": exponent}
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            found.append(f"{name}: a finite number above 0 is needed (found {value}). Correct it.")
    for name, value in {"floor": floor, "floor sd": floor_sd, "exponent sd": exponent_sd, "noise": seed_noise}.items():
        if not (math.isfinite(value) and value >= 0):
            found.append(f"{name}: a finite number of at least 0 is needed (found {value}). Correct it.")
    if not found:
        lower = min(baseline_loss, loss)
        if floor >= lower and floor_sd == 0:
            found.append(
                f"floor: it lies below both losses (found {floor} against {lower}). Lower it, or widen its sd."
            )
        elif floor - 6 * floor_sd > lower:
            found.append(f"floor: losses far below it are not possible (found {floor} +- {floor_sd} against {lower}).")
        elif (floor, floor_sd) == (FLOOR, FLOOR_SD) and lower < LEAST_LOSS:
            found.append(
                f"floor: losses below {LEAST_LOSS:g} can be no nats per token of usual text, whose floor is assumed "
                f"(found {lower}). Give it in their unit; of bits per byte: --floor 0.4 --floor-sd 0.06."
            )
        if exponent_sd > 2 * exponent:
            found.append(f"exponent sd: at most twice the exponent (found {exponent_sd}). Give a smaller one.")
    return found
