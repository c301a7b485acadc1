"""Public tables of runs reduced to frontiers, and the prior of slopes learnt from them (`ceg speedup --learn`).

An arm's frontier is its ladder: of a sweep of sizes at each budget, the minima. Where the runs are a grid of sizes and
tokens per parameter, each ratio of the two with three sizes or more is a ladder of its own. Where budgets lie off the
frontier, it is the lower convex hull of the rungs. Where tokens
are the same at all sizes, losses fall along another curve than a compute frontier: such sets are scored, never learnt
from.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from cegain.common.arrays import Array
from cegain.ladders import ladder
from cegain.ladders.ladder import RunTable
from cegain.ladders.pair import slope_prior
from cegain.ladders.pair.slope_prior import Rungs

SAME_RATIO = 0.12
"""Tokens per parameter this near (natural log) are one recipe."""
LEAST_SIZES = 3
SIZES_OF_A_SWEEP = 3
"""Runs per budget, on average, from which a table sweeps sizes at each budget: its frontier is that of the minima."""
CHECKPOINTS = ("gemstones",)
"""Tables whose runs of one size are checkpoints of one schedule, of which only the last is finished."""
RERUN = "-rerun"
DIGITS = 6


def arms_of(table: RunTable) -> list[Rungs]:
    """The frontiers of a table's arms; the set is the table's name."""
    arms: list[Rungs] = []
    for variant in table.variants():
        if variant.endswith(RERUN):  # the same runs again
            continue
        at = np.flatnonzero([v == variant for v in table.variant])
        sizes, tokens, flops = table.N[at], table.D[at], table.C[at]
        losses = np.log(table.loss[at])
        if table.name in CHECKPOINTS:
            last = np.array([i for i in range(len(at)) if tokens[i] == tokens[sizes == sizes[i]].max()])
            sizes, tokens, flops, losses = sizes[last], tokens[last], flops[last], losses[last]
            arms.append(_hull(table.name, variant, np.log(flops), losses, grows=False))
            continue
        grows = bool(np.isfinite(tokens).all() and tokens.max() > 1.5 * tokens.min())
        rungs = ladder.ladder(table, variant)
        swept = len(at) >= SIZES_OF_A_SWEEP * rungs.budgets
        recipes = _recipes(sizes, tokens) if grows and not swept else []
        if len(recipes) > 1 and 2 * sum(len(group) for _, group in recipes) >= len(at):  # a few may agree by chance
            for ratio, group in recipes:
                order = group[np.argsort(flops[group])]
                name = f"{variant}, {ratio:.0f} tokens per parameter"
                arms.append(Rungs(table.name, name, np.log(flops[order]), losses[order], grows))
            continue
        if any("left out" in note for note in rungs.notes):  # budgets off the frontier of a grid
            arms.append(_hull(table.name, variant, rungs.x, rungs.y, grows))
        else:
            arms.append(Rungs(table.name, variant, rungs.x, rungs.y, grows))
    return [arm for arm in arms if len(arm.x) >= LEAST_SIZES]


def _recipes(sizes: Array, tokens: Array) -> list[tuple[float, np.ndarray]]:
    """Runs [m] of one ratio of tokens to parameters, for each ratio with enough sizes."""
    ratios = np.log(tokens / sizes)
    order = np.argsort(ratios)
    starts = np.flatnonzero(np.diff(ratios[order], prepend=-np.inf) > SAME_RATIO)
    groups = np.split(order, starts[1:])
    return [
        (float(np.exp(ratios[group].mean())), group)
        for group in groups
        if len(set(np.round(sizes[group], -3))) >= LEAST_SIZES and len(set(np.round(sizes[group], -3))) == len(group)
    ]


def _hull(name: str, arm: str, x: Array, y: Array, grows: bool) -> Rungs:
    """The rungs on the lower convex hull of ln loss over ln C, as far as it falls."""
    hull: list[int] = []
    for i in np.argsort(x, kind="stable").tolist():
        while len(hull) > 1:
            a, b = hull[-2:]
            if (y[b] - y[a]) * (x[i] - x[a]) < (y[i] - y[a]) * (x[b] - x[a]):
                break
            hull.pop()
        hull.append(i)
    while len(hull) > 1 and y[hull[-1]] >= y[hull[-2]]:
        hull.pop()
    return Rungs(name, arm, x[hull], y[hull], grows)


def stored(logs: Array) -> Array:
    """Logarithms [n] of values in the digits that are stored."""
    return np.log([float(f"{value:.{DIGITS}g}") for value in np.exp(logs)])


def table_of(arms: Sequence[Rungs]) -> bytes:
    """The rungs as CSV: what `slope_prior.read_rungs` reads."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(("set", "arm", "flops", "loss", "tokens"))
    for arm in arms:
        for c, loss in zip(np.exp(arm.x), np.exp(arm.y), strict=True):
            rows.writerow((arm.set, arm.arm, f"{c:.{DIGITS}g}", f"{loss:.{DIGITS}g}", "grow" if arm.grows else "fixed"))
    return text.getvalue().encode()


def document(arms: Sequence[Rungs], files: Sequence[Path]) -> dict[str, object]:
    """What `estimator/data/slope_prior.json` holds: the prior on all sets whose tokens grow, and without each."""
    learnt = [arm for arm in arms if arm.grows]
    sets = list(dict.fromkeys(arm.set for arm in learnt))
    return {
        "about": (
            "Prior of the local slope -d ln L / d ln C of compute frontiers: ceg speedup --learn TABLE... --freeze. "
            "Learnt from frontiers.csv, the tables reduced to their frontiers; without.X from all sets but X."
        ),
        "tables": {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files},
        "default": slope_prior.as_dict(slope_prior.learn(learnt)),
        "without": {
            left: slope_prior.as_dict(slope_prior.learn([arm for arm in learnt if arm.set != left])) for left in sets
        },
    }
