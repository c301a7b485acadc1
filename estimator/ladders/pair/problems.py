"""What may be wrong with one pair of losses and what is given beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

FLOPS_RANGE = (1e6, 1e40)
LEAST_EXPONENT = 0.005
LEAST_LOSS = 1.35
"""Below this a loss is taken for one in another unit, unless that or the floor is given. Assumed: floors fitted to
English text with large tokenizers are 1.69 (Hoffmann et al. 2022, arXiv 2203.15556) and 1.82 (Besiroglu et al. 2024,
arXiv 2404.10102)."""
UNITS = ("nats", "bpb")
APART = 1.2
"""A further run of the baseline is at least this many times off in compute: nearer ones say nothing of the slope."""


class Law(NamedTuple):
    """A fitted frontier of the baseline: floor (the losses' unit) and exponent, with their covariance [2, 2]."""

    floor: float
    exponent: float
    covariance: tuple[tuple[float, float], tuple[float, float]]


def problems_of(
    baseline_loss: float,
    loss: float,
    flops: float,
    floor: float | None,
    floor_sd: float | None,
    exponent: float | None,
    exponent_sd: float | None,
    baseline_at: Sequence[tuple[float, float]],
    law: Law | None,
    unit: str | None,
    seed_noise: float,
) -> list[str]:
    """Every rule that the arguments of `one_pair.speedup` break, one line each."""
    problems = []
    positive = {"baseline loss": baseline_loss, "loss": loss, "flops": flops, "exponent": exponent}
    for c, other in baseline_at:
        positive |= {f"baseline at {c:g}, flops": c, f"baseline at {c:g}, loss": other}
    if law is not None:
        positive |= {"law's exponent": law.exponent}
    for name, value in positive.items():
        if value is not None and not (math.isfinite(value) and value > 0):
            problems.append(f"{name}: a finite number above 0 is needed (found {value}). Correct it.")
    for c in [flops, *(c for c, _ in baseline_at)]:
        if math.isfinite(c) and c > 0 and not FLOPS_RANGE[0] <= c <= FLOPS_RANGE[1]:
            low, high = FLOPS_RANGE
            problems.append(
                f"flops: {low:g} to {high:g} FLOP are what training runs may spend (found {c:g}). Correct it."
            )
    if exponent is not None and 0 < exponent < LEAST_EXPONENT:
        problems.append(f"exponent: at least {LEAST_EXPONENT:g} is needed (found {exponent:g}). Try 0.12.")
    least = {"floor": floor, "floor sd": floor_sd, "exponent sd": exponent_sd, "noise": seed_noise}
    if law is not None:
        least["law's floor"] = law.floor
    for name, value in least.items():
        if value is not None and not (math.isfinite(value) and value >= 0):
            problems.append(f"{name}: a finite number of at least 0 is needed (found {value}). Correct it.")
    if unit is not None and unit not in UNITS:
        problems.append(f"unit: one of {', '.join(UNITS)} (found {unit!r}). Try bpb.")
    if floor is None and floor_sd is not None:
        problems.append(f"floor sd: it goes with a floor (found none). Give one: --floor 1.7 --floor-sd {floor_sd:g}.")
    if exponent is None and exponent_sd is not None:
        problems.append(f"exponent sd: it goes with an exponent (found none). Try --exponent 0.12 {exponent_sd:g}.")
    if law is not None and (floor is not None or exponent is not None or baseline_at):
        problems.append("law: it goes without floor, exponent and further runs (found both). Leave one out.")
    if baseline_at and floor is not None and exponent is not None:
        problems.append("baseline at: floor and exponent leave nothing to learn (found all). Leave one out.")
    if not problems:
        problems += _of_losses(min(baseline_loss, loss), floor, floor_sd or 0.0, exponent, exponent_sd, law, unit)
        problems += [p for c, other in baseline_at for p in _of_run(c, other, flops, baseline_loss)]
    return problems


def _of_run(flops: float, loss: float, at: float, baseline_loss: float) -> list[str]:
    if max(flops / at, at / flops) < APART:
        return [f"baseline at {flops:g}: it differs from the pair's compute by {APART:g} times or more (found {at:g})."]
    if (loss - baseline_loss) * (at - flops) <= 0:
        return [f"baseline at {flops:g}: more compute has the lower loss (found {loss:g} beside {baseline_loss:g})."]
    return []


def _of_losses(
    lower: float, floor: float | None, floor_sd: float, exponent: float | None, exponent_sd: float | None,
    law: Law | None, unit: str | None,
) -> list[str]:  # fmt: skip
    problems = []
    if law is not None and law.floor >= lower:
        problems.append(f"law: its floor lies below both losses (found {law.floor:g} against {lower:g}).")
    if floor is not None and floor >= lower and floor_sd == 0:
        problems.append(f"floor: it lies below both losses (found {floor} against {lower}). Lower it, or widen its sd.")
    elif floor is not None and floor - 6 * floor_sd > lower:
        problems.append(f"floor: losses far below it are not possible (found {floor} +- {floor_sd} against {lower}).")
    elif floor is None and law is None and unit is None and lower < LEAST_LOSS:
        problems.append(
            f"unit: losses below {LEAST_LOSS:g} can be no nats per token of usual text (found {lower}). Say it: "
            "--unit bpb; or give their floor, of bits per byte: --floor 0.4 --floor-sd 0.06."
        )
    if exponent is not None and exponent_sd is not None and exponent_sd > 2 * exponent:
        problems.append(f"exponent sd: at most twice the exponent (found {exponent_sd}). Give a smaller one.")
    return problems
