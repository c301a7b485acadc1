"""Measured combinations: how far a stack of algorithms fell short of, or exceeded, the product of its parts.

The model behind it is the analysis of a factorial experiment, with pairs only:

    ln CEG(stack) = sum_i ln CEG(i alone) + sum_(i<j) I_ij

A part may instead have been *taken out* of the whole stack; its gain then holds the pairs with all others. With o_i = 1
for such a part and 0 for one added alone, ln CEG(stack) - sum_i y_i = sum_(i<j) (1 - o_i - o_j) I_ij. A second kind of
observation is one algorithm on two of our own stacks: its gain on `modern` less that on `bare` is the sum of its pairs
with everything that `modern` has and `bare` lacks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cegain import algorithms
from cegain.common.arrays import Array
from cegain.gain import contrasts
from cegain.gain.contrasts import convert
from cegain.gain.study import X0
from cegain.shapes import arms
from cegain.shapes.architecture import STACKS
from cegain.tables.published_gains import PublishedGain, is_own

NEAR_DECADES = 1.0
"""Published parts are compared with a stack at most this far away in compute."""
SAME_RUNG = 0.1
"""Our own runs are compared at one rung only (decades): its arms' FLOP differ by less."""
SLOPE_SD = 0.15
"""sd of ln gain per decade between a stack's compute and its parts': the usual slope. Assumed."""
TAKEN_OUT = "taken out"
"""What the treatment of a row says whose algorithm was left out of a stack, not added to a baseline."""

Member = tuple[str, str]
"""An algorithm and its baseline."""
Pair = tuple[Member, Member]
"""Two members, in alphabetical order."""


class Observation(NamedTuple):
    """What one study says of some pairs, as ln gain over the product of parts, at x = log10 FLOP - X0.

    members: of the stack, without those that are exact; context: what the second stack has besides, where one algorithm
    was measured on two stacks. pairs: coefficient of each pair. sources: weight of each row in `value`. error: its
    standard error where the rows' own are not independent (NaN: they are); slack: variance since parts stood apart.
    """

    members: tuple[Member, ...]
    context: tuple[Member, ...]
    study: str
    x: float
    value: float
    pairs: Mapping[Pair, float]
    sources: tuple[tuple[PublishedGain, float], ...]
    error: float
    slack: float

    @property
    def flops(self) -> float:
        """Compute of the stack (FLOP)."""
        return float(10.0 ** (self.x + X0))

    @property
    def label(self) -> str:
        """What was measured: `layernorm + rope`, or `rope on rmsnorm + swiglu`."""
        names = " + ".join(name for name, _ in self.members)
        return f"{names} on {' + '.join(name for name, _ in self.context)}" if self.context else names


class _Reading(NamedTuple):
    """A row in the currency asked for: x = log10 FLOP - X0, and ln gain."""

    x: float
    gain: float
    row: PublishedGain


def pairs_of(members: Iterable[Member]) -> list[Pair]:
    """All pairs of a stack."""
    return list(itertools.combinations(sorted(members), 2))


def observations(rows: Iterable[PublishedGain], currency: str) -> list[Observation]:
    """Every measured combination whose parts the same study measured, and every algorithm on two of our own stacks.

    A row of a combination is compared with the nearest rows of each part (gains change with compute), all of its own
    table where that has any.
    """
    table: dict[tuple[str, str, str], list[_Reading]] = {}
    for row in rows:
        factor = convert(row, currency).factor
        if not (math.isnan(factor) or math.isnan(row.flops)):
            reading = _Reading(math.log10(row.flops) - X0, math.log(row.ceg * factor), row)
            table.setdefault((row.study, row.algorithm, row.baseline), []).append(reading)
    observed = []
    for key in sorted(table):
        if "+" in key[1]:
            observed += _stacks(table, key, currency)
    return observed + _on_two_stacks(table, currency)


def noise(observations: Sequence[Observation]) -> Array:
    """Covariance [n, n] of the observations' reading errors; those that share a row err together, and so do rows of
    combinations, or of parts, that have a `same_as` in common.

    Where an observation states its own error (paired seeds), the correlations stay and the sd is the stated one.
    """
    readings: dict[tuple[bool, PublishedGain | str], int] = {}
    entries = []
    for i, o in enumerate(observations):
        for row, weight in o.sources:
            reading = readings.setdefault((weight > 0, row.same_as or row), len(readings))
            entries.append((i, reading, weight * contrasts.reading_sd(row)))
    weights = np.zeros((len(observations), len(readings)))
    for i, reading, weight in entries:
        weights[i, reading] += weight
    shared = weights @ weights.T
    sds = np.sqrt(np.diag(shared))
    stated = np.array(
        [sd if math.isnan(o.error) else max(contrasts.ROW_SD, o.error) for o, sd in zip(observations, sds, strict=True)]
    )
    scale = stated / sds
    covariance: Array = shared * scale[:, None] * scale + np.diag([o.slack for o in observations])
    return covariance


def _stacks(
    table: Mapping[tuple[str, str, str], Sequence[_Reading]], key: tuple[str, str, str], currency: str
) -> list[Observation]:
    """The rows of one study's combination against their parts."""
    study, names, baselines = key
    members = sorted(zip(names.split("+"), baselines.split("+"), strict=True))
    members = [m for m in members if not _exact(m[0], currency)]
    if len(members) < 2:
        return []
    observed = []
    for stack in sorted(table[key]):
        near = [_near(table.get((study, *m), ()), stack) for m in members]
        # A study may hold several sets of runs: if the stack's own table has a part, all are of that table.
        same = [[r for r in of_part if r.row.source == stack.row.source] for of_part in near]
        parts = [_nearest(of_part, stack) for of_part in (same if any(same) else near)]
        if not all(parts):
            continue
        out = {m: float(all(_taken_out(r.row) for r in part)) for m, part in zip(members, parts, strict=True)}
        pairs = {(a, b): 1.0 - out[a] - out[b] for a, b in pairs_of(members)}
        if not any(pairs.values()):
            continue
        away = max(abs(r.x - stack.x) for part in parts for r in part)
        observed.append(
            Observation(
                tuple(members),
                (),
                study,
                stack.x,
                stack.gain - math.fsum(_mean(part) for part in parts),
                pairs,
                ((stack.row, 1.0), *((r.row, -1.0 / len(part)) for part in parts for r in part)),
                stack.row.ln_excess_se,
                len(members) * (SLOPE_SD * away) ** 2,
            )
        )
    return observed


def _on_two_stacks(table: Mapping[tuple[str, str, str], Sequence[_Reading]], currency: str) -> list[Observation]:
    """Our own algorithms on `modern` against the same on `bare`, rung by rung; the ladders share no run."""
    added = [m for m in _between_stacks() if not _exact(m[0], currency)]
    studies = {readings[0].row.stack: key[0] for key, readings in table.items()}
    bare = studies.get("bare", "")
    observed = []
    for study, name, baseline in sorted(table):
        if study != studies.get("modern") or "+" in name:
            continue
        context = tuple(m for m in added if m[0] != name and m[1] != baseline)
        for modern in sorted(table[study, name, baseline]):
            near = _nearest(_near(table.get((bare, name, baseline), ()), modern), modern)
            if near and context:
                member = (name, baseline)
                observed.append(
                    Observation(
                        (member,),
                        context,
                        f"{bare} and {study}",
                        modern.x,
                        modern.gain - _mean(near),
                        dict.fromkeys((_pair(member, other) for other in context), 1.0),
                        ((modern.row, 1.0), *((r.row, -1.0 / len(near)) for r in near)),
                        math.nan,
                        0.0,
                    )
                )
    return observed


def _between_stacks() -> list[Member]:
    """What the modern stack has and the bare one lacks, each against what the bare one has there."""
    with_arm = (name for name in algorithms.names() if algorithms.get(name).arm)
    return [(name, arms.on_bare(name)) for name in with_arm if arms.has("modern", name) and not arms.has("bare", name)]


def _pair(a: Member, b: Member) -> Pair:
    return (a, b) if a < b else (b, a)


def _exact(name: str, currency: str) -> bool:
    return currency == "flop" and algorithms.get(name).exact_in_flop


def _taken_out(row: PublishedGain) -> bool:
    """Whether a gain is that of leaving an algorithm out of a stack."""
    if is_own(row):
        has_it = row.stack in STACKS and bool(algorithms.get(row.algorithm).arm)
        return has_it and arms.has(row.stack, row.algorithm)  # type: ignore[arg-type]
    return TAKEN_OUT in row.treatment


def _near(readings: Iterable[_Reading], to: _Reading) -> list[_Reading]:
    """The readings near enough in compute to be compared; our own are of one rung."""
    return [r for r in readings if abs(r.x - to.x) <= (SAME_RUNG if is_own(to.row) else NEAR_DECADES)]


def _nearest(readings: Iterable[_Reading], to: _Reading) -> list[_Reading]:
    """Those nearest in compute, by name; none of none."""
    away = [(abs(r.x - to.x), r) for r in readings]
    least = min((distance for distance, _ in away), default=math.inf)
    return sorted(r for distance, r in away if distance == least)


def _mean(readings: Sequence[_Reading]) -> float:
    return math.fsum(r.gain for r in readings) / len(readings)
