"""`own_gains.csv`: the gains of our own ladders as evidence, one row per arm and rung, in the format of published ones.

The table is derived: `ceg ladder --write` makes it from `training_runs.csv`, and answering needs no fit. A row stands
where the treatment's mean loss lies inside its baseline's curve and seeds tell a standard error; its interval is the
90% one of that error (`seed_noise.Read.interval`). A combination's row also gives the standard error of its excess
over the product of its parts at that rung, seeds in common counted (`seed_noise.combined_error`).
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from cegain import algorithms
from cegain.common.text import number
from cegain.ladders import arm_names, seed_ladder, seed_noise
from cegain.ladders.seed_ladder import GainAt, StackRuns
from cegain.shapes import architecture, arms
from cegain.shapes.architecture import STACKS
from cegain.tables.problems import refusal
from cegain.tables.published_gains import COLUMNS, PublishedGain

CONTENT = 0.9

Pair = tuple[str, str, str]
"""An algorithm or a combination, the arm with it, the arm without it (`StackRuns.pairs`)."""
Gains = Mapping[Pair, tuple[GainAt, ...]]
"""Gains at every rung."""


class Excess(NamedTuple):
    """Of a combination: ln of a ratio of gains, and its standard error."""

    log: float
    error: float


def rows(path: str | os.PathLike[str]) -> list[PublishedGain]:
    """Rows of every stack of a table of runs, in the table's order of stacks and arms, by rising budget.

    Raises:
        EvidenceError: the table is bad, or tells no gain with a standard error.
    """
    all_rows = []
    for runs in seed_ladder.load(path).values():
        gains = read_all(runs)
        for pair, ladder in gains.items():
            all_rows += [
                _row(Path(path).name, runs, pair, at, excess(runs, gains, pair, at.rung.budget))
                for at in ladder
                if at.read is not None and not at.why
            ]
    if not all_rows:
        rule = "some arm has two seeds at a rung where its loss lies inside its baseline's curve"
        raise refusal(path, rule, "none", "Train more seeds, or rungs of the baseline.")
    return all_rows


def content(path: str | os.PathLike[str]) -> bytes:
    """The derived table as a file's bytes, the same for the same runs; raises what `rows` raises."""
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    columns = [name for name in COLUMNS if name not in ("same_as", "seq_len")]  # our rows are readings of their own
    table.writerow(columns)
    for row in rows(path):
        cells = (getattr(row, name) for name in columns)
        table.writerow(
            "" if isinstance(v, float) and math.isnan(v) else f"{v:.6g}" if isinstance(v, float) else v for v in cells
        )
    return buffer.getvalue().encode()


def excess(runs: StackRuns, gains: Gains, pair: Pair, budget: float) -> Excess | None:
    """ln of a combination's gain over the product of its parts' at one rung; None for a single algorithm, and where the
    combination or a part was not read there with an error, or over another baseline.
    """
    parts = _parts(pair)
    return None if len(parts) < 2 else _contrast(runs, gains, pair[2], budget, {(p,): -1.0 for p in parts} | {parts: 1})


def excess_over_pairs(runs: StackRuns, gains: Gains, pair: Pair, budget: float) -> Excess | None:
    """What a combination of three has beyond its parts and their three pairs: the third-order interaction of a
    factorial experiment, which `interaction` takes as none; None as for `excess`.
    """
    parts = _parts(pair)
    if len(parts) != 3:
        return None
    singles = {(part,): 1.0 for part in parts}
    return _contrast(runs, gains, pair[2], budget, singles | dict.fromkeys(combinations(parts, 2), -1.0) | {parts: 1})


def read_all(runs: StackRuns) -> Gains:
    """The gains of every pair of a stack."""
    return {pair: seed_ladder.gains(runs, pair[1], pair[2]) for pair in runs.pairs}


def _parts(pair: Pair) -> tuple[str, ...]:
    """Those of a combination that change its gain in FLOP, in alphabetical order."""
    return tuple(sorted(name for name in pair[0].split("+") if not algorithms.get(name).exact_in_flop))


def _contrast(
    runs: StackRuns, gains: Gains, against: str, budget: float, weights: Mapping[tuple[str, ...], float]
) -> Excess | None:
    """The weighted sum of ln gains over one baseline at one rung."""
    read = {
        _parts(pair): (pair[1], at.read)
        for pair, ladder in gains.items()
        for at in ladder
        if pair[2] == against and at.rung.budget == budget and at.read is not None and not at.why
    }
    if not weights.keys() <= read.keys():
        return None
    terms = [(weight, *read[parts]) for parts, weight in weights.items()]
    rungs = [runs.noise[rung.budget] for rung in runs.arms[against]]
    error = seed_noise.combined_error(terms, rungs, against, runs.noise[budget], runs.correlation)
    return Excess(math.fsum(weight * at.log_gain for weight, _, at in terms), error)


def _row(source: str, runs: StackRuns, pair: Pair, at: GainAt, over_parts: Excess | None) -> PublishedGain:
    assert at.read is not None
    algorithm, treatment, against = pair
    base = f" ({len(at.baseline.losses)} of {against})" if at.baseline else f" ({against} was not trained there)"
    note = (
        f"{len(at.rung.losses)} seeds{base}; rung {number(at.rung.budget)} FLOP, read off "
        f"{len(runs.arms[against])} rungs of {against}; se of ln CEG {at.read.se:.3g} "
        f"({at.read.freedom:.0f} degrees of freedom)"
    )
    if over_parts is not None:
        note += f"; se of ln(stack / parts) {over_parts.error:.3g}"
    flops, ceg, low, high = map(_rounded, (at.rung.flops, math.exp(at.read.log_gain), *at.read.interval(CONTENT)))
    return PublishedGain(
        algorithm=algorithm,
        treatment=treatment if treatment != arm_names.BASELINE else algorithm,
        baseline=arm_names.baseline_of(algorithm, against, runs.stack),
        study=f"own {runs.stack or 'only'} ladder",
        flops=flops,
        flops_convention="useful",
        ceg=ceg,
        low=low,
        high=high,
        interval=CONTENT,
        currency="flop",
        flop_factor=math.nan,
        basis="measured",
        source=source,
        note=note,
        experts=_experts(runs.stack, treatment),
        stack=runs.stack or "only",
        ln_ceg_se=float(f"{at.read.se:.3g}"),
        ln_excess_se=math.nan if over_parts is None else float(f"{over_parts.error:.3g}"),
    )


def _experts(stack: str, arm: str) -> float:
    """All experts over active ones of an arm; NaN where it has none, or is no arm of ours."""
    known = next((name for name in STACKS if name == stack), None)
    if known is None:
        return math.nan
    try:
        shape = architecture.stack(known, **arms.arm_shape_fields(known, arm))
    except ValueError:
        return math.nan
    if shape.feed_forward != "moe":
        return math.nan
    return (shape.n_experts + shape.n_shared_experts) / (shape.top_k + shape.n_shared_experts)


def _rounded(value: float) -> float:
    """To the digits that the file holds, so that rows are the same before and after writing."""
    return float(f"{value:.6g}")
