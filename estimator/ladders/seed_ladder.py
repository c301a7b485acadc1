"""Our own ladders: runs of `training_runs.csv` by stack, arm, rung and seed, and the gain of an arm at each rung.

`seed_noise` says how gains are read off and how certain they are; which arm is whose baseline is in `arm_names.pairs`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.text import as_number, number
from cegain.ladders import arm_names, ladder, seed_noise
from cegain.ladders.ladder import Ladder, RunTable
from cegain.tables.problems import EvidenceError, Problem, refusal

NEEDED = ("arm", "seed", "rung_flops", *list(ladder.OWN_COLUMNS.values())[1:])
"""Columns that a table of our own format must have; `stack` and `learning_rate` are used where they are there."""
ALIKE = ("corpus", "tokenizer", "seq_len")
"""What all runs of a stack must share, or their losses are of different texts."""


class Rung(NamedTuple):
    """One arm at one budget: the budget asked for and the FLOP spent, losses by seed (nats per token), and the
    learning rates used."""

    budget: float
    flops: float
    losses: dict[str, float]
    learning_rates: tuple[float, ...]

    @property
    def loss(self) -> float:
        """exp of the mean ln loss over seeds."""
        return math.exp(math.fsum(map(math.log, self.losses.values())) / len(self.losses))


class StackRuns(NamedTuple):
    """All arms of one stack: rungs by rising budget; noise by budget; the correlation of arms at one seed.

    `pairs` are (algorithm, arm with it, arm without it); `table` holds the same runs for `ladder.ladder`.
    """

    stack: str
    arms: dict[str, tuple[Rung, ...]]
    noise: dict[float, seed_noise.Noise]
    correlation: float
    pairs: tuple[tuple[str, str, str], ...]
    remarks: tuple[str, ...]
    table: RunTable

    def run_noise(self) -> float | None:
        """sd of one run's ln loss over all rungs, weighed by their degrees of freedom; None without two seeds."""
        known = [noise.pooled for noise in self.noise.values() if noise.pooled.freedom]
        total = sum(spread.freedom for spread in known)
        return math.sqrt(sum(s.freedom * s.variance for s in known) / total) if total else None


class GainAt(NamedTuple):
    """An arm at one of its rungs, against its baseline; `baseline` is the baseline's rung of this budget, if any.

    `read` is None where no gain can be read off, and `why` says why; also why a gain has no standard error.
    """

    rung: Rung
    baseline: Rung | None
    read: seed_noise.Read | None
    why: str


def load(path: str | os.PathLike[str]) -> dict[str, StackRuns]:
    """The stacks of a table in the project's format, in its order.

    Raises:
        EvidenceError: bad rows, columns that are missing, two runs of one seed, or losses that cannot be compared.
    """
    table = ladder.read_runs(path)
    missing = [name for name in NEEDED if name not in table.cells]
    if missing:
        remedy = "Use the table that `ceg collect` writes; other tables of runs are for `ceg fit`."
        rule = f"a ladder of seeds has the columns {', '.join(NEEDED)}"
        raise refusal(path, rule, f"no {', '.join(missing)}", remedy)
    problems: list[Problem] = []
    stacks = {}
    for name in dict.fromkeys(table.cells.get("stack", ("",))):
        of_stack = table.only("stack", name) if name else table
        stacks[name] = _stack(Path(path), name, of_stack, problems)
    if problems:
        raise EvidenceError(problems)
    return stacks


def gains(runs: StackRuns, treatment: str, against: str) -> tuple[GainAt, ...]:
    """The gain of one arm over another at every rung of it."""
    baseline = runs.arms[against]
    by_budget = {rung.budget: rung for rung in baseline}
    curve = means(against, baseline)
    at = [runs.noise[rung.budget] for rung in baseline]
    no_curve = _no_curve(curve)
    read_gains = []
    for rung in runs.arms[treatment]:
        read, why = None, no_curve
        if not why:
            noise = runs.noise[rung.budget]
            read = seed_noise.read(curve, at, (treatment, against), math.log(rung.flops), noise, runs.correlation)
            if read is None:
                side = "above" if math.log(rung.loss) > curve.y[0] else "below"
                why = f"its loss lies {side} those of {against}"
            else:
                why = read.why
        read_gains.append(GainAt(rung, by_budget.get(rung.budget), read, why))
    return tuple(read_gains)


def means(name: str, rungs: Sequence[Rung]) -> Ladder:
    """The mean losses of an arm's rungs, all of them: what gains are read off."""
    return Ladder(
        name,
        np.log([rung.flops for rung in rungs]),
        np.log([rung.loss for rung in rungs]),
        np.zeros(len(rungs)),
        np.array([float(len(rung.losses)) for rung in rungs]),
        len(rungs),
        (),
    )


def _no_curve(curve: Ladder) -> str:
    """Why nothing can be read off a baseline; empty where it can."""
    if len(curve.x) < 2:
        return f"{curve.name} has one rung: no curve to read a gain off"
    rises = np.flatnonzero(np.diff(curve.y) >= 0)
    if len(rises):
        low, high = (math.exp(curve.x[rises[0] + k]) for k in (0, 1))
        fall = f"from {number(low)} to {number(high)} FLOP"
        return f"the loss of {curve.name} does not fall {fall}: more seeds are needed"
    return ""


def _stack(path: Path, stack: str, table: RunTable, problems: list[Problem]) -> StackRuns:
    where = f"{path}, stack {stack}" if stack else str(path)
    for column in ALIKE:
        values = sorted(set(table.cells.get(column, ())))
        if len(values) > 1:
            rule = f"all runs of a ladder have one {column}"
            problems.append(Problem(where, rule, ", ".join(values), "Put them into tables of their own."))
    arms = {arm: _rungs(where, arm, table, problems) for arm in table.variants()}
    budgets = sorted({rung.budget for rungs in arms.values() for rung in rungs})
    noise = {
        budget: seed_noise.noise(
            {
                arm: {seed: math.log(loss) for seed, loss in rung.losses.items()}
                for arm, rungs in arms.items()
                for rung in rungs
                if rung.budget == budget
            }
        )
        for budget in budgets
    }
    ignored_problems: list[Problem] = []  # arms without a baseline: a table may be on its way
    pairs = arm_names.pairs(path, list(arms), ignored_problems, stack)
    r = seed_noise.correlation(list(noise.values()))
    return StackRuns(stack, arms, noise, r, tuple(pairs), table.remarks, table)


def _rungs(where: str, arm: str, table: RunTable, problems: list[Problem]) -> tuple[Rung, ...]:
    """The rungs of one arm, by rising budget."""
    rows = [i for i, variant in enumerate(table.variant) if variant == arm]
    by_budget: dict[float, list[int]] = {}
    for i in rows:
        by_budget.setdefault(_number(where, table, "rung_flops", i, problems), []).append(i)
    rungs = []
    for budget, at in sorted(by_budget.items()):
        seeds = [table.cells["seed"][i] for i in at]
        twice = sorted({seed for seed in seeds if seeds.count(seed) > 1})
        if twice:
            rule = f"an arm has one run per rung and seed ({arm} at {budget:g} FLOP)"
            remedy = "Remove one, or give the role learning_rate to runs that looked for it."
            problems.append(Problem(where, rule, f"seed {', '.join(twice)} again", remedy))
        rates = {_number(where, table, "learning_rate", i, problems) for i in at if "learning_rate" in table.cells}
        rungs.append(
            Rung(
                budget,
                float(np.exp(np.log(table.C[at]).mean())),
                {seed: float(table.loss[i]) for seed, i in sorted(zip(seeds, at, strict=True), key=_by_seed)},
                tuple(sorted(rates)),
            )
        )
    return tuple(rungs)


def _number(where: str, table: RunTable, column: str, i: int, problems: list[Problem]) -> float:
    cell = table.cells[column][i]
    value = as_number(cell)
    if not 0 < value < math.inf:
        rule = f"{column} is a number above 0"
        problems.append(Problem(where, rule, repr(cell), "Correct the number."))
        return 0.0
    return value


def _by_seed(item: tuple[str, int]) -> tuple[int, str]:
    """Seeds are counted as numbers where they are: 2 before 10."""
    return (int(item[0]) if item[0].isdigit() else -1, item[0])


def pair_of(runs: StackRuns, algorithm: str) -> tuple[str, str, str] | None:
    """(algorithm as the table has it, arm with it, arm without it); parts of a combination in any order."""
    parts = set(algorithm.split("+"))
    return next((pair for pair in runs.pairs if set(pair[0].split("+")) == parts), None)
