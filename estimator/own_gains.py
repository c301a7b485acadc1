"""`own_gains.csv`: the gains of our own ladders as evidence, one row per arm and rung, in the format of published ones.

The table is derived: `ceg ladder --write` makes it from `training_runs.csv`, and answering needs no fit. A row stands
where the treatment's mean loss lies inside its baseline's curve and seeds tell a standard error; its interval is the
90% one of that error (`paired.Read.interval`). The note of a combination also gives the standard error of its excess
over the product of its parts at that rung, seeds in common counted (`paired.combined_error`).
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Mapping
from pathlib import Path

from estimator import algorithms, own_runs, paired, seed_ladder
from estimator.evidence import COLUMNS, EvidenceError, Problem, PublishedGain
from estimator.seed_ladder import GainAt, StackRuns
from estimator.text import number

CONTENT = 0.9

Pair = tuple[str, str, str]
"""An algorithm or a combination, the arm with it, the arm without it (`StackRuns.pairs`)."""


def rows(path: str | os.PathLike[str]) -> list[PublishedGain]:
    """Rows of every stack of a table of runs, in the table's order of stacks and arms, by rising budget.

    Raises:
        EvidenceError: the table is bad, or tells no gain with a standard error.
    """
    found = []
    for runs in seed_ladder.load(path).values():
        gains = {pair: seed_ladder.gains(runs, pair[1], pair[2]) for pair in runs.pairs}
        for pair, ladder in gains.items():
            found += [
                _row(Path(path).name, runs, pair, at, _excess_error(runs, gains, pair, at))
                for at in ladder
                if at.read is not None and not at.why
            ]
    if not found:
        rule = "some arm has two seeds at a rung where its loss lies inside its baseline's curve"
        raise EvidenceError([Problem(str(path), rule, "none", "Train more seeds, or rungs of the baseline.")])
    return found


def content(path: str | os.PathLike[str]) -> bytes:
    """The derived table as a file's bytes, the same for the same runs.

    Raises:
        EvidenceError: as `rows`.
    """
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(COLUMNS)
    for row in rows(path):
        table.writerow(
            "" if isinstance(v, float) and math.isnan(v) else f"{v:.6g}" if isinstance(v, float) else v for v in row
        )
    return buffer.getvalue().encode()


def _excess_error(runs: StackRuns, gains: Mapping[Pair, tuple[GainAt, ...]], pair: Pair, at: GainAt) -> float:
    """Standard error of ln(gain of a combination / product of its parts') at one rung; NaN where a part was not read
    there, or over another baseline.
    """
    names, treatment, against = pair
    parts = names.split("+")
    if len(parts) < 2:
        return math.nan
    assert at.read is not None
    terms = [(1.0, treatment, at.read)]
    for part in parts:
        if algorithms.get(part).exact_in_flop:
            continue
        there = next(
            (
                (-1.0, other[1], g.read)
                for other, ladder in gains.items()
                for g in ladder
                if other[0] == part and other[2] == against and g.rung.budget == at.rung.budget and g.read is not None
            ),
            None,
        )
        if there is None:
            return math.nan
        terms.append(there)
    rungs = [runs.noise[rung.budget] for rung in runs.arms[against]]
    return paired.combined_error(terms, rungs, against, runs.noise[at.rung.budget], runs.correlation)


def _row(source: str, runs: StackRuns, pair: Pair, at: GainAt, excess_error: float) -> PublishedGain:
    assert at.read is not None
    algorithm, treatment, against = pair
    base = f" ({len(at.baseline.losses)} of {against})" if at.baseline else f" ({against} was not trained there)"
    note = (
        f"{len(at.rung.losses)} seeds{base}; rung {number(at.rung.budget)} FLOP, read off "
        f"{len(runs.arms[against])} rungs of {against}; se of ln CEG {at.read.se:.3g} "
        f"({at.read.freedom:.0f} degrees of freedom)"
    )
    if not math.isnan(excess_error):
        note += f"; se of ln(stack / parts) {excess_error:.3g}"
    flops, ceg, low, high = map(_rounded, (at.rung.flops, math.exp(at.read.log_gain), *at.read.interval(CONTENT)))
    return PublishedGain(
        algorithm=algorithm,
        treatment=treatment if treatment != own_runs.BASELINE else algorithm,
        baseline=own_runs.replaced(algorithm),
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
    )


def _rounded(value: float) -> float:
    """To the digits that the file holds, so that rows are the same before and after writing."""
    return float(f"{value:.6g}")
