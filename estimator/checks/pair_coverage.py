"""Do the intervals of `ceg speedup` hold? Two rungs of one public ladder are a treatment whose gain is known exactly.

A treatment that reaches at C1 the loss L2 which its baseline reaches at C2 has the gain C2 / C1. Every pair of rungs of
an arm is such a treatment. The prior of each is learnt from the other sets of ladders only. Sets count alike, however
many arms and pairs they have. Sets whose tokens do not grow with compute are no compute frontiers: they are shown,
and neither learnt from nor pooled.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.common.scores import interval_score
from cegain.ladders import one_pair
from cegain.ladders.pair import slope_prior
from cegain.ladders.pair.slope_prior import Prior, Rungs

if TYPE_CHECKING:
    from rich.console import Console

BANDS = ((1.05, 3.0), (3.0, 10.0), (10.0, 150.0))
"""True gains that are reported apart; the first two together are what coverage is held to."""
HELD = 10.0
DRAWS = 4_000
PENALTY = 20
POOLED = "pooled"


class Point(NamedTuple):
    """One pair of rungs: ln of the true gain, and of the answer's 5%, 50% and 95% points."""

    set: str
    arm: str
    grows: bool
    actual: float
    low: float
    median: float
    high: float


class Summary(NamedTuple):
    """One set, or all that are frontiers, alike: pairs, coverage of 90% intervals, median width (a factor) and interval
    score of true gains up to `HELD`; median |ln error| and coverage by `BANDS` (NaN where there are no pairs).
    """

    set: str
    frontier: bool
    pairs: int
    coverage_90: float
    median_width: float
    interval_score: float
    median_errors: tuple[float, ...]
    coverages: tuple[float, ...]


def score(arms: Sequence[Rungs], most: float = BANDS[-1][1]) -> list[Point]:
    """Score all pairs of rungs up to a true gain of `most`, each set with the prior of the others.

    Raises:
        ValueError: fewer than three sets whose tokens grow.
    """
    learnt = [arm for arm in arms if arm.grows]
    if len({arm.set for arm in learnt}) < 3:
        raise ValueError("three sets of ladders whose tokens grow are needed. Add a table.")
    points: list[Point] = []
    for name in dict.fromkeys(arm.set for arm in arms):
        prior = slope_prior.learn([arm for arm in learnt if arm.set != name])
        points += [point for arm in arms if arm.set == name for point in _of_arm(arm, prior, most)]
    return points


def _of_arm(arm: Rungs, prior: Prior, most: float) -> list[Point]:
    points = []
    for i, j in zip(*slope_prior.pairs(arm, BANDS[0][0], most), strict=True):
        answer = one_pair.speedup(
            math.exp(arm.y[i]), math.exp(arm.y[j]), math.exp(arm.x[i]), unit="nats", prior=prior, draws=DRAWS
        )
        low, high = map(math.log, answer.interval)
        actual = float(arm.x[j] - arm.x[i])
        points.append(Point(arm.set, arm.arm, arm.grows, actual, low, math.log(answer.median), high))
    return points


def summarise(points: Sequence[Point]) -> list[Summary]:
    """A line per set, and one of all frontiers."""
    names = dict.fromkeys(point.set for point in points)
    frontiers = [point for point in points if point.grows]
    return [
        *(_summary(name, [point for point in points if point.set == name]) for name in names),
        _summary(POOLED, frontiers),
    ]


def _summary(name: str, points: Sequence[Point]) -> Summary:
    held = [point for point in points if point.actual <= math.log(HELD) + 1e-6]
    bands = [[p for p in points if math.log(a) < p.actual <= math.log(b) + 1e-6] for a, b in BANDS]
    _, low, _, high, actual, _ = _columns(held)
    return Summary(
        name,
        all(point.grows for point in points),
        len(held),
        _covered(held),
        math.exp(_median(high - low, _votes(held))),
        float(_votes(held) @ interval_score(low, high, actual, PENALTY)) if held else math.nan,
        tuple(_median(_columns(band)[5], _votes(band)) for band in bands),
        tuple(_covered(band) for band in bands),
    )


def _columns(points: Sequence[Point]) -> tuple[np.ndarray, ...]:
    """inside, low, median, high, actual, |error|, each [n]."""
    low, median, high, actual = (np.array([getattr(p, n) for p in points]) for n in ("low", "median", "high", "actual"))
    return (low <= actual) & (actual <= high), low, median, high, actual, np.abs(median - actual)


def _votes(points: Sequence[Point]) -> Array:
    """Weights [n] with which sets count alike; sum 1."""
    sizes = {name: sum(p.set == name for p in points) for name in {p.set for p in points}}
    return np.array([1 / sizes[p.set] / len(sizes) for p in points])


def _covered(points: Sequence[Point]) -> float:
    return float(_votes(points) @ _columns(points)[0]) if points else math.nan


def _median(values: Array, weights: Array) -> float:
    if not len(values):
        return math.nan
    order = np.argsort(values)
    return float(values[order][np.searchsorted(np.cumsum(weights[order]), 0.5 * weights.sum())])


def document(points: Sequence[Point]) -> dict[str, object]:
    """`ceg speedup --coverage --json`."""
    from cegain.common.text import finite

    def row(line: Summary) -> dict[str, object]:
        bands = [
            {"from": a, "to": b, "median_ln_error": finite(error), "coverage_90": finite(covered)}
            for (a, b), error, covered in zip(BANDS, line.median_errors, line.coverages, strict=True)
        ]
        fields = line._asdict()
        del fields["median_errors"], fields["coverages"]
        numbers = {name: finite(v) if isinstance(v, float) else v for name, v in fields.items()}
        return numbers | {"by_true_gain": bands}

    return {
        "schema": "ceg.speedup_coverage",
        "schema_version": 1,
        "held_to_gains_up_to": HELD,
        "sets": [row(line) for line in summarise(points)],
    }


def print_report(console: Console, points: Sequence[Point]) -> None:
    """The table of `ceg speedup --coverage`."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    table.add_column("set")
    for head in ("pairs", "90% holds", "width", "score", *(f"{a:g}-{b:g}x" for a, b in BANDS)):
        table.add_column(head, justify="right", no_wrap=True)
    for line in summarise(points):
        name = line.set if line.frontier else f"{line.set} *"
        cells = [f"{line.pairs}", f"{line.coverage_90:.0%}", f"{line.median_width:.2f}", f"{line.interval_score:.2f}"]
        bands = zip(line.median_errors, line.coverages, strict=True)
        cells += ["-" if math.isnan(error) else f"{error:.2f} ({covered:.0%})" for error, covered in bands]
        table.add_row(name, *cells)
    console.print(table)
    console.print(
        f"Pairs, 90%, width (a factor) and interval score: true gains up to {HELD:g}x. By true gain: median |ln error| "
        "(90% holds).\nEach set is scored by the prior of the other frontiers; pooled: frontiers, sets alike. "
        "* tokens do not grow with compute: no frontier.",
        soft_wrap=True,
    )
