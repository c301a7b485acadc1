"""The gain behind one pair of losses: how much compute is a lower loss at the same budget worth?

The baseline's frontier is L(C) = E + K C^-gamma. If the baseline reaches loss L_b with C, it reaches the lower loss L
with C_b, and K drops out:

    CEG = C_b / C = ((L_b - E) / (L - E))^(1 / gamma)

One pair of runs fixes neither the floor E nor the exponent gamma. They are drawn jointly from what public ladders show
(`slope_prior`), and narrowed by what is given: a second run of the baseline, a floor, an exponent, a fitted law. Each
run has seed noise. The answer says how much of its uncertainty each contributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.common.verdict import FAR_WIDTH
from cegain.ladders.pair import slope_prior
from cegain.ladders.pair.problems import LEAST_LOSS, Law, problems_of
from cegain.ladders.pair.slope_prior import Prior

DRAWS = 40_000
SEED_NOISE = {"nats": 0.0013, "bpb": 0.0004}
"""sd of a run's loss over seeds: GPT-2 small in nats per token, and that at 4.5 bytes per token."""
EXPONENT_SD, FLOOR_SD = 0.15, 0.15
"""Relative sd of an exponent or a floor that is given without one."""
HEADROOM = 0.01
"""The floor lies below the lower loss by at least this share of it: a model does not stand on the floor."""
ROUGHNESS = 0.2
"""By this share the slope from a further run of the baseline to the pair may miss the one that goes on from there. Of
0.02, 0.065, 0.1, 0.15 and 0.2, this had 92% of known gains of other sets inside 90% intervals, the first 33%."""
CONTRADICTION = 4.5
"""-ln likelihood per further run, at best, above which these and the pair are said to contradict each other."""
MOST_LN = 690.0
"""Of ln CEG: what a float can hold."""
WIDER = (1.0, 3.0, 10.0)
"""The prior is widened by these where a second baseline run lies outside it."""
ENOUGH_SHARE = 0.01
"""Share of the draws that must be left for that."""


@dataclass(frozen=True)
class Speedup:
    """CEG of a treatment from one pair of runs: factors; `interval` (low, high) holds 90%.

    contributions: share of the variance of ln CEG when only one part varies, over the sum of all: slope, curvature and
    seed noise, or floor, exponent and seed noise where these are given. sensitivity: CEG with the floor at its 5%, 50%
    and 95% point and the rest at its median. by_set: CEG by the mean slope of each set of public ladders, where
    these are the prior. floor, exponent: mean and sd of the draws, or as given. slope: median and 90% interval of
    -d ln L / d ln C at the baseline's loss. rests_on: where floor and exponent come from, in words.
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
    unit: str = "nats"
    slope: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    by_set: tuple[tuple[str, float], ...] = ()
    rests_on: tuple[str, ...] = ()

    @property
    def equivalent_flops(self) -> float:
        """Compute (FLOP) at which the baseline would reach the treatment's loss."""
        return self.flops * self.median

    def as_dict(self) -> dict[str, object]:
        """JSON form: losses in the unit given, flops in FLOP, gains as factors."""
        return {
            "schema": "ceg.speedup",
            "schema_version": 2,
            "flops": self.flops,
            "baseline_loss": self.baseline_loss,
            "loss": self.loss,
            "unit": self.unit,
            "ceg_median": self.median,
            "ceg_interval_90": self.interval,
            "equivalent_flops_median": self.equivalent_flops,
            "variance_shares": self.contributions,
            "ceg_by_floor": [{"floor": floor, "ceg": gain} for floor, gain in self.sensitivity],
            "ceg_by_set": dict(self.by_set),
            "slope": {"median": self.slope[0], "interval_90": self.slope[1:]},
            "floor": {"mean": self.floor[0], "sd": self.floor[1]},
            "exponent": {"mean": self.exponent[0], "sd": self.exponent[1]},
            "rests_on": list(self.rests_on),
            "seed_noise_sd": self.seed_noise,
            "seed": self.seed,
            "draws": self.draws,
        }

    def __str__(self) -> str:
        from cegain.common.text import number, share, span

        parts = ", ".join(f"{name} {share(part)}" for name, part in self.contributions.items())
        headline = f"  CEG  {number(self.median)}x    90%: {span(self.interval)}"
        if self.interval[1] / self.interval[0] > FAR_WIDTH:
            headline = (
                f"  CEG  90%: {span(self.interval)}    (median {number(self.median)}x)\n"
                f"  far_extrapolation: the interval spans a factor of more than {FAR_WIDTH:g}; read it, not the median."
            )
        floors = ", ".join(f"{gain:.3g}x at {floor:.3g}" for floor, gain in self.sensitivity)
        sets = ", ".join(f"{gain:.3g}x {name}" for name, gain in self.by_set)
        return "\n".join(
            [
                f"Loss {self.loss:g} instead of {self.baseline_loss:g} at {number(self.flops)} FLOP",
                "",
                headline,
                f"  The baseline would need {number(self.equivalent_flops)} FLOP to reach it.",
                f"  Uncertainty from: {parts}.",
                *(f"  {line}" for line in self.rests_on),
                f"  There -d ln L / d ln C is {self.slope[0]:.2g} ({self.slope[1]:.2g} - {self.slope[2]:.2g}), the "
                f"floor {self.floor[0]:.3g} +- {self.floor[1]:.2g}, the exponent {self.exponent[0]:.2g} +- "
                f"{self.exponent[1]:.2g}; seed noise {self.seed_noise:g}.",
                f"  By the floor: {floors}.",
                *([f"  By the slope of each set of ladders: {sets}."] if sets else []),
            ]
        )


def speedup(
    baseline_loss: float,
    loss: float,
    flops: float,
    *,
    floor: float | None = None,
    floor_sd: float | None = None,
    exponent: float | None = None,
    exponent_sd: float | None = None,
    baseline_at: Sequence[tuple[float, float]] = (),
    law: Law | None = None,
    evaluation: str = "",
    unit: str | None = None,
    seed_noise: float | None = None,
    seed: int = 0,
    prior: Prior | None = None,
    draws: int = DRAWS,
) -> Speedup:
    """CEG with a 90% interval from one pair of losses at the same compute.

    Args:
        baseline_loss, loss: without and with the algorithm, in nats per token or bits per byte.
        flops: what each run spent (FLOP).
        floor, floor_sd: irreducible loss, normal, kept below the lower loss; sd 0 pins it, none is 15%. The exponent
            follows from the slope where it is not given too.
        exponent, exponent_sd: of the compute frontier, log-normal with about this mean and sd; 0 pins it, none is 15%.
        baseline_at: further runs of the baseline, (FLOP, loss) each: they fix the slope.
        law: a fitted frontier of the baseline, in place of the prior, floor and exponent.
        evaluation: what the floor or law was measured on; said in the answer.
        unit: `nats` per token or `bpb`, bits per byte; sets the seed noise, as slopes of ln loss have no unit. Losses
            below 1.35 need it, or their floor, and are then bits per byte.
        seed_noise: sd of one run's loss, in the unit of the losses.
        seed: of the draws.
        prior: of slopes; the shipped one by default.
        draws: behind the interval.

    Raises:
        ValueError: with every rule that the arguments break, one line each.
    """
    if unit is None and (floor is not None or law is not None) and min(baseline_loss, loss) < LEAST_LOSS:
        unit = "bpb"
    noise = SEED_NOISE.get(unit or "nats", 0.0) if seed_noise is None else seed_noise
    if floor_sd is None and floor is not None:
        floor_sd = FLOOR_SD * floor
    if exponent_sd is None and exponent is not None:
        exponent_sd = EXPONENT_SD * exponent
    problems = problems_of(
        baseline_loss, loss, flops, floor, floor_sd, exponent, exponent_sd, baseline_at, law, unit, noise
    )
    if problems:
        raise ValueError("\n".join(problems))
    shipped = prior if prior is not None else slope_prior.load()
    pair = _Pair(baseline_loss, loss, flops, min(baseline_loss, loss) * (1 - HEADROOM))
    random = np.random.default_rng(seed)
    normals = random.standard_normal((8, draws))
    noises = noise * normals[:2]
    of = f" of {evaluation}" if evaluation else ""
    if law is not None:
        floors, exponents = _of_law(law, pair, normals[2:4])
        rests = [f"Floor and exponent: a fitted law{of}."]
    elif floor is not None and exponent is not None:
        floors = _below(floor, floor_sd or 0.0, pair.ceiling, normals[2])
        exponents = _log_normal(exponent, exponent_sd or 0.0, normals[3])
        rests = [f"Floor{of} and exponent as given, independent of each other."]
    else:
        rests = [
            f"Slope of the frontier: prior of {len(shipped.sets)} sets of public ladders, {', '.join(shipped.sets)}."
        ]
        for widen in WIDER:
            slopes, shares = shipped.draw(flops, normals[2:6], widen)
            floors, exponents = _jointly(pair, slopes, shares, floor, floor_sd, exponent, exponent_sd, normals[6])
            weights, misfit = _weights(pair, floors, exponents, noises, baseline_at, noise)
            if weights.sum() ** 2 / max(float(weights @ weights), 1e-300) >= ENOUGH_SHARE * draws:
                break
        if baseline_at:
            kept = np.searchsorted(np.cumsum(weights) / weights.sum(), (np.arange(draws) + 0.5) / draws)
            kept = random.permutation(np.minimum(kept, draws - 1))
            floors, exponents, noises = floors[kept], exponents[kept], noises[:, kept]
            wide = f", widened {widen:g} times, as it does not expect that" if widen > 1 else ""
            rests = [f"Slope of the frontier: {len(baseline_at) + 1} runs of the baseline; the prior{wide}."]
            if misfit > CONTRADICTION:
                rests.append(
                    "No frontier goes through these runs: they contradict each other. Do not rely on the interval."
                )
        if not slope_prior.RANGE[0] <= flops <= slope_prior.RANGE[1]:
            rests.append("That compute is outside the ladders: their trend is carried on, and its error grows.")
        if floor is not None or exponent is not None:
            rests.append(f"{'Floor' + of if floor is not None else 'Exponent'} as given.")
    joint = law is None and (floor is None or exponent is None)
    gains = pair.gains(floors, exponents, noises)
    low, median, high = np.exp(np.quantile(gains, (0.05, 0.5, 0.95)))
    slopes = exponents * (1 - floors / baseline_loss)
    points = np.quantile(floors, (0.05, 0.5, 0.95))
    kept_slope = float(np.median(slopes)) if joint and exponent is None else None
    by_floor = np.exp(pair.gains(points, _exponents(pair, points, kept_slope, exponents), np.zeros((2, 1))))
    variances = _variances(pair, floors, exponents, noises, joint)
    total = sum(variances.values())
    of_sets = () if not joint or baseline_at or exponent is not None else tuple(
        (name, _gain_at(pair, shipped.of_set(name, flops), float(points[1]))) for name in shipped.sets
    )  # fmt: skip
    return Speedup(
        flops=flops,
        baseline_loss=baseline_loss,
        loss=loss,
        median=float(median),
        interval=(float(low), float(high)),
        contributions={name: v / total if total > 0 else 0.0 for name, v in variances.items()},
        sensitivity=tuple(zip(points.tolist(), by_floor.tolist(), strict=True)),
        floor=(float(floors.mean()), float(floors.std())) if joint or floor is None else (floor, floor_sd or 0.0),
        exponent=(
            (float(exponents.mean()), float(exponents.std()))
            if joint or exponent is None
            else (exponent, exponent_sd or 0.0)
        ),
        seed_noise=noise,
        seed=seed,
        draws=draws,
        unit=unit or "nats",
        slope=tuple(float(q) for q in np.quantile(slopes, (0.5, 0.05, 0.95))),  # type: ignore[arg-type]
        by_set=of_sets,
        rests_on=tuple(rests),
    )


class _Pair(NamedTuple):
    """The two losses, their compute, and what the floor lies below."""

    baseline_loss: float
    loss: float
    flops: float
    ceiling: float

    def gains(self, floors: Array, exponents: Array, noise: Array) -> Array:
        """ln CEG [n] of floors and exponents [n], with noise [2, n] of either loss."""
        losses = np.array([[self.baseline_loss], [self.loss]])
        # Noise never takes a loss below the floor: the draw would say that the run is better than possible.
        above = np.maximum(losses + noise - floors, 1e-3 * (self.ceiling / (1 - HEADROOM)) * HEADROOM)
        return np.asarray(np.clip(np.log(above[0] / above[1]) / exponents, -MOST_LN, MOST_LN))


def _jointly(
    pair: _Pair, slopes: Array, shares: Array, floor: float | None, floor_sd: float | None, exponent: float | None,
    exponent_sd: float | None, normals: Array,
) -> tuple[Array, Array]:  # fmt: skip
    """Floors and exponents [n] of slopes and shares [n], and of the one that is given."""
    if exponent is not None:
        exponents = _log_normal(exponent, exponent_sd or 0.0, normals)
        return np.clip(pair.baseline_loss * (1 - slopes / exponents), 0.0, pair.ceiling), exponents
    if floor is not None:
        floors = _below(floor, floor_sd or 0.0, pair.ceiling, normals)
    else:
        floors = np.minimum(shares * pair.baseline_loss, pair.ceiling)
    return floors, slopes / (1 - floors / pair.baseline_loss)


def _weights(
    pair: _Pair, floors: Array, exponents: Array, noises: Array, runs: Sequence[tuple[float, float]], noise: float
) -> tuple[Array, float]:
    """How likely [n] draws make the baseline's further runs, ln loss normal about each draw's frontier, over the best
    of them; and by how much that one's ln likelihood falls short of a perfect fit's.
    """
    log_weights = np.zeros(len(floors))
    start = np.maximum(pair.baseline_loss + noises[0] - floors, 1e-6 * pair.baseline_loss)
    for flops, loss in runs:
        expected = floors + start * np.exp(np.clip(exponents * math.log(pair.flops / flops), -50, 50))
        sd = math.hypot(noise / loss, ROUGHNESS * abs(math.log(loss / pair.baseline_loss)))
        log_weights -= 0.5 * ((math.log(loss) - np.log(expected)) / max(sd, 1e-6)) ** 2
    best = float(log_weights.max())
    return np.asarray(np.exp(log_weights - best)), -best


def _of_law(law: Law, pair: _Pair, normals: Array) -> tuple[Array, Array]:
    """Floors and exponents [n] of a fitted law, from standard normals [2, n]."""
    values, vectors = np.linalg.eigh(np.array(law.covariance))
    away = (vectors * np.sqrt(np.maximum(values, 0.0))) @ normals
    return np.clip(law.floor + away[0], 0.0, pair.ceiling), np.maximum(law.exponent + away[1], 0.1 * law.exponent)


def _variances(pair: _Pair, floors: Array, exponents: Array, noises: Array, joint: bool) -> dict[str, float]:
    """Variance of ln CEG when only one part varies."""
    floor, exponent, silent = np.full(1, np.median(floors)), np.full(1, np.median(exponents)), np.zeros((2, 1))
    noisy = float(pair.gains(floor, exponent, noises).var())
    if not joint:
        return {
            "floor": float(pair.gains(floors, exponent, silent).var()),
            "exponent": float(pair.gains(floor, exponents, silent).var()),
            "seed noise": noisy,
        }
    slopes = exponents * (1 - floors / pair.baseline_loss)
    bent = _exponents(pair, floors, float(np.median(slopes)), exponents)
    return {
        "slope": float(pair.gains(floor, slopes / (1 - floor / pair.baseline_loss), silent).var()),
        "curvature": float(pair.gains(floors, bent, silent).var()),
        "seed noise": noisy,
    }


def _exponents(pair: _Pair, floors: Array, slope: float | None, exponents: Array) -> Array:
    """Exponents [n] that keep a slope at floors [n]; their median where none is kept."""
    if slope is None:
        return np.full(len(floors), np.median(exponents))
    return np.asarray(slope / (1 - floors / pair.baseline_loss))


def _gain_at(pair: _Pair, slope: float, floor: float) -> float:
    """CEG of one slope and floor."""
    floors = np.array([floor])
    return float(np.exp(pair.gains(floors, _exponents(pair, floors, slope, floors), np.zeros((2, 1))))[0])


def _log_normal(mean: float, sd: float, z: Array) -> Array:
    return np.asarray(mean * np.exp(math.sqrt(math.log1p((sd / mean) ** 2)) * z))


def _below(mean: float, sd: float, ceiling: float, z: Array) -> Array:
    """A normal cut off at 0 and at the ceiling, by its inverse CDF (so that common draws stay common)."""
    if sd == 0:
        return np.full(len(z), min(mean, ceiling))
    from scipy.special import ndtr, ndtri

    low, high = ndtr(-mean / sd), ndtr((ceiling - mean) / sd)
    return np.asarray(mean + sd * ndtri(low + (high - low) * ndtr(z)))
