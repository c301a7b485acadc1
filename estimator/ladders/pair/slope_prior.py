"""How fast public ladders fall: the prior behind the gain of one pair of losses.

Along a compute frontier L = E + K C^-gamma the local slope is s = -d ln L / d ln C = gamma (1 - E / L). Of ln loss it
has no unit: it is the same in nats per token and in bits per byte. Public frontiers agree on it, by compute, better
than on E or gamma alone: ln s falls about as a straight line in ln C. The prior is that line with what sets of ladders
differ by in level and trend, what the slopes of one set scatter by, and the floor's share of the loss, u = E / L, which
says how the slope goes on from there. A draw of (s, u) is one of floor and exponent, jointly:

    E = u L    gamma = s / (1 - u)

Sets count alike, arms alike within a set, and pairs of rungs alike within an arm.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import LN10, Array
from cegain.tables.files import DATA

PRIOR = DATA / "slope_prior.json"
RUNGS = DATA / "frontiers.csv"
PIVOT = 19.0
"""log10 FLOP at which the level of the slope is stated: the middle of the public ladders."""
RANGE = (3e15, 1.3e22)
"""FLOP of the cheapest and the dearest rung."""
STEPS = (1.5, 10.0)
"""Slopes are read between rungs this many times apart in compute: nearer ones are noise, wider ones are bent."""
SHARE, SHARE_SD = 0.4, 0.15
"""E / L at the baseline's loss. Chosen by hand among five by leaving sets out (docs/log.md); laws fitted to the slopes
of single sets have 0.45 to 0.75 at 1e19 FLOP, but give too large gains on the sets that were left out."""
MOST_SHARE = 0.9


_Slopes = tuple[Array, Array]
"""Of one arm, see `slopes`."""


class Rungs(NamedTuple):
    """One arm on its frontier: ln C [n] ascending and ln loss [n] descending; `grows`: tokens grow with compute."""

    set: str
    arm: str
    x: Array
    y: Array
    grows: bool


class SetLaw(NamedTuple):
    """One set of ladders: ln slope at `PIVOT`, its trend per decade of compute, number of arms."""

    level: float
    trend: float
    arms: int


class Prior(NamedTuple):
    """ln slope at C: level + trend (log10 C - PIVOT); sds between sets, and within them; laws of its sets by name."""

    level: float
    level_sd: float
    trend: float
    trend_sd: float
    within_sd: float
    share: float
    share_sd: float
    sets: Mapping[str, SetLaw]

    def draw(self, flops: float, normals: Array, widen: float = 1.0) -> tuple[Array, Array]:
        """Local slope s [n] and the floor's share u [n] at a compute (FLOP), from standard normals [4, n]."""
        away = math.log10(flops) - PIVOT
        new_set = self.level_sd * math.sqrt(1 + 1 / max(1, len(self.sets)))
        log_slope = self.level + self.trend * away + widen * (
            new_set * normals[0] + self.within_sd * normals[1] + self.trend_sd * away * normals[2]
        )  # fmt: skip
        return np.exp(log_slope), np.clip(self.share + self.share_sd * normals[3], 0.0, MOST_SHARE)

    def of_set(self, name: str, flops: float) -> float:
        """The slope that one of its sets has at a compute (FLOP)."""
        return math.exp(self.sets[name].level + self.sets[name].trend * (math.log10(flops) - PIVOT))


def load(path: Path = PRIOR, without: str | None = None) -> Prior:
    """The shipped prior, or that learnt without one set.

    Raises:
        ValueError: no prior was learnt without that set.
    """
    document = json.loads(path.read_text(encoding="utf-8"))
    table = document["default"] if without is None else document["without"].get(without)
    if table is None:
        raise ValueError(f"no prior without {without!r}. There are: {', '.join(document['without'])}.")
    return Prior(**(table | {"sets": {name: SetLaw(**law) for name, law in table["sets"].items()}}))


def as_dict(prior: Prior) -> dict[str, object]:
    """JSON form, as stored."""
    return prior._asdict() | {"sets": {name: law._asdict() for name, law in prior.sets.items()}}


def read_rungs(path: Path = RUNGS) -> list[Rungs]:
    """The rungs that the prior was learnt from: columns set, arm, flops, loss, tokens (grow or fixed)."""
    arms: dict[tuple[str, str, bool], list[tuple[float, float]]] = {}
    with path.open(encoding="utf-8", newline="") as stream:
        for row in csv.DictReader(stream):
            key = row["set"], row["arm"], row["tokens"] == "grow"
            arms.setdefault(key, []).append((math.log(float(row["flops"])), math.log(float(row["loss"]))))
    return [
        Rungs(name, arm, np.array([x for x, _ in points]), np.array([y for _, y in points]), grows)
        for (name, arm, grows), points in arms.items()
    ]


def pairs(arm: Rungs, least: float, most: float) -> tuple[np.ndarray, np.ndarray]:
    """Indices [p] of the cheaper and the dearer rung of all pairs from `least` to `most` times apart in compute."""
    cheap, dear = np.triu_indices(len(arm.x), 1)
    step = arm.x[dear] - arm.x[cheap]
    kept = (step > math.log(least)) & (step < math.log(most) + 1e-6) & (arm.y[dear] < arm.y[cheap])
    return cheap[kept], dear[kept]


def slopes(arm: Rungs) -> tuple[Array, Array]:
    """Between pairs of rungs: decades of their middle from `PIVOT` [p], and ln slope [p]."""
    cheap, dear = pairs(arm, *STEPS)
    middle = (arm.x[cheap] + arm.x[dear]) / 2 / LN10 - PIVOT
    return middle, np.log((arm.y[cheap] - arm.y[dear]) / (arm.x[dear] - arm.x[cheap]))


def learn(arms: Sequence[Rungs]) -> Prior:
    """The prior of some arms, which are of two sets at least.

    The trend is that within sets; the sd of trends is that of the sets' own, within their arms.

    Raises:
        ValueError: fewer than two sets have slopes.
    """
    by_set: dict[str, list[_Slopes]] = {}
    for arm in arms:
        read = slopes(arm)
        if len(read[0]):
            by_set.setdefault(arm.set, []).append(read)
    if len(by_set) < 2:
        raise ValueError(f"slopes of two sets are needed (found {len(by_set)}). Add a table.")
    trends = {name: _trend(reads, [reads]) for name, reads in by_set.items()}
    trends_within_arms = {name: _trend(reads, [[read] for read in reads]) for name, reads in by_set.items()}
    trend = sum(up for up, _ in trends.values()) / sum(down for _, down in trends.values())
    own = {name: up / down for name, (up, down) in trends_within_arms.items() if down > 0}
    levels, scatters = {}, []
    for name, reads in by_set.items():
        rest = [y - trend * x for x, y in reads]
        levels[name] = float(np.mean([r.mean() for r in rest]))
        scatters.append(np.mean([((r - levels[name]) ** 2).mean() for r in rest]))
    return Prior(
        float(np.mean(list(levels.values()))),
        float(np.std(list(levels.values()), ddof=1)),
        trend,
        float(np.std(list(own.values()), ddof=1)) if len(own) > 1 else abs(trend),
        math.sqrt(float(np.mean(scatters))),
        SHARE,
        SHARE_SD,
        {name: SetLaw(levels[name], trend, len(reads)) for name, reads in by_set.items()},
    )


def _trend(reads: Sequence[_Slopes], groups: Sequence[Sequence[_Slopes]]) -> tuple[float, float]:
    """Sums of dx dy and of dx dx about the means of groups of arms; arms weigh alike."""
    up = down = 0.0
    for group in groups:
        x0, y0 = (float(np.mean([read[i].mean() for read in group])) for i in (0, 1))
        up += sum(float(((x - x0) * (y - y0)).mean()) for x, y in group) / len(reads)
        down += sum(float(((x - x0) ** 2).mean()) for x, _ in group) / len(reads)
    return up, down
