"""Two arms' runs side by side: budgets and sizes that both have, seeds that both have, and what forbids a comparison.

The arms stand in one table, or in a file each. Rows are read by `ladder.read_runs`, so that `ceg compare` takes every
table that `ceg fit` takes. Runs without a result are counted here per arm: who loses the runs that diverge would win by
them.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cegain.common.arrays import Array
from cegain.common.text import counted, number
from cegain.ladders import ladder
from cegain.ladders.ladder import RunTable
from cegain.run_tables import repeats, run_columns, yardsticks
from cegain.run_tables.repeats import SAME_SIZE, TOLERANCE
from cegain.run_tables.run_import import FINISHED, ReadOptions
from cegain.tables import table_files
from cegain.tables.cells import Cells
from cegain.tables.column_meanings import ALIASES, key_of, meaning, yardstick
from cegain.tables.problems import EvidenceError, Problem

FARTHEST = math.log(3)
"""Budgets (ln FLOP) further apart are not compared: the slope between them would be most of the answer. Assumed."""
LIKE_SIZE = 0.10
"""Sizes (ln N) of two arms, where a budget has several, that are taken for each other."""
LOST = frozenset(("diverged", "crashed", "failed", "killed", "nan", "error", "oom"))
"""States of a run that ended without a result; one that still runs is only unfinished."""
OUTLIER = math.log(1.2)
"""A loss that lies so far (ln) above the best of its seeds is named: the run may have diverged. Assumed."""


class Source(NamedTuple):
    """A table of runs, and how many runs of each arm ended without a result; `anonymous` where no column names arms."""

    table: RunTable
    lost: Mapping[str, int]
    anonymous: int = 0


class Sample(NamedTuple):
    """Runs of one arm at one budget and size: ln losses [n], seeds [n] (empty where no column tells them), geometric
    mean of C (FLOP), mean of N, D and steps (NaN where the table does not say).
    """

    log_loss: Array
    seeds: tuple[str, ...]
    flops: float
    size: float
    tokens: float
    steps: float


class Pair(NamedTuple):
    """What both arms have at one budget and size."""

    baseline: Sample
    treatment: Sample


class Arms(NamedTuple):
    """Two arms to compare.

    pairs: by rising budget. rungs: ln C and ln loss [m] of the baseline's frontier, and how many seeds stand behind
    each rung. rounding: sd of a loss (as a share of it) that comes of the digits it is written with. favours: how much
    lower (ln loss) the baseline, and the treatment, might be, had it been tuned as much as the other. doubts: statuses
    with their reasons, the worst first. lost: runs of each without a result.
    """

    names: tuple[str, str]
    pairs: tuple[Pair, ...]
    rungs: tuple[Array, Array, Array]
    rounding: float
    favours: tuple[float, float]
    doubts: tuple[tuple[str, str], ...]
    lost: tuple[int, int]
    notes: tuple[str, ...]


def read(path: str | os.PathLike[str], how: ReadOptions) -> Source:
    """Read a table as every command does, and count its runs without a result by arm.

    Raises:
        EvidenceError: as `ladder.read_runs`.
    """
    table = ladder.read_runs(path, how)
    lost = _lost(Path(path), how)
    return Source(table, lost, lost.pop("", 0))


def of_one(source: Source, baseline: str, variant: str) -> Arms:
    """Two arms of one table.

    Raises:
        EvidenceError: an arm selects no run, or the arms have no budget in common.
    """
    lost = source.lost.get(baseline, 0), source.lost.get(variant, 0)
    anonymous = source.anonymous
    if any(arm not in source.table.variants() for arm in (baseline, variant)):  # selected by other columns
        lost, anonymous = (0, 0), anonymous + sum(source.lost.values())
    return _arms(source.table, (baseline, variant), (baseline, variant), lost, anonymous)


def of_two(first: Source, second: Source, baseline: str | None, variant: str | None) -> Arms:
    """The arms of two tables, one of each; `baseline` and `variant` name them where a table has several.

    Raises:
        EvidenceError: an arm is not there or not named, or the arms have no budget in common; all of it.
    """
    problems: list[Problem] = []
    chosen: list[RunTable] = []
    names: list[str] = []
    lost: list[int] = []
    for source, arm, option in ((first, baseline, "--baseline"), (second, variant, "--variant")):
        there = source.table.variants()
        if arm is None and len(there) > 1:
            rule = f"the file has one arm, or {option} names the one to compare"
            problems.append(Problem(source.table.name, rule, f"{len(there)}: {', '.join(there[:8])}", f"Add {option}."))
            continue
        try:
            rows = ladder.select(source.table, arm or there[0])
        except EvidenceError as error:
            problems += error.problems
            continue
        chosen.append(_rows(source.table, np.flatnonzero(rows)))
        names.append(arm or there[0])
        lost.append(source.lost.get(names[-1], 0) + source.anonymous)
    if problems:
        raise EvidenceError(problems)
    if names[0] == names[1]:  # the files are what tells them apart
        names = [table.name for table in chosen]
    if names[0] == names[1]:
        names = [f"{names[0]} (first file)", f"{names[1]} (second file)"]
    tables = [table._replace(variant=(name,) * len(table.loss)) for table, name in zip(chosen, names, strict=True)]
    labels = (names[0], names[1])
    return _arms(_joined(*tables), labels, labels, (lost[0], lost[1]), 0)


def _joined(a: RunTable, b: RunTable) -> RunTable:
    """The runs of two tables as one; a cell that a table has not is empty."""
    columns = dict.fromkeys((*a.cells, *b.cells))
    cells: dict[str, Sequence[str]] = {
        name: tuple(cell for table in (a, b) for cell in table.cells.get(name, ("",) * len(table.loss)))
        for name in columns
    }
    N, D, C, loss = (np.concatenate(parts) for parts in ((a.N, b.N), (a.D, b.D), (a.C, b.C), (a.loss, b.loss)))
    return RunTable((*a.variant, *b.variant), N, D, C, loss, cells, (), a.name, a.repeats)


def _rows(table: RunTable, at: np.ndarray) -> RunTable:
    each = at.tolist()
    return table._replace(
        variant=tuple(table.variant[i] for i in each),
        N=table.N[at],
        D=table.D[at],
        C=table.C[at],
        loss=table.loss[at],
        cells={name: tuple(cells[i] for i in each) for name, cells in table.cells.items()},
    )


def _arms(
    table: RunTable, arms: tuple[str, str], names: tuple[str, str], lost: tuple[int, int], anonymous: int
) -> Arms:
    notes: list[str] = []
    doubts: list[tuple[str, str]] = []
    problems: list[Problem] = []
    for arm in arms:
        try:
            ladder.select(table, arm)
        except EvidenceError as error:
            problems += error.problems
    if problems:
        raise EvidenceError(problems)
    first, second = (ladder.select(table, arm) for arm in arms)
    if (first & second).any():
        rule, value = "two arms share no run", f"{int((first & second).sum())} of {arms[0]!r} and {arms[1]!r}"
        raise EvidenceError([Problem("--variant, --baseline", rule, value, "Name two different arms.")])
    told_by = [n for n, c in table.cells.items() if not isinstance(c, Cells) and tuple(c) == tuple(table.variant)]
    told_by += [part.partition("=")[0] for arm in arms if "=" in arm for part in arm.split("&")]
    alike = yardsticks.compared(table.cells, first, second, told_by)
    if alike.loss is not None:
        table = table._replace(loss=alike.loss)
    if alike.unlike:
        doubts.append(("unlike_yardsticks", alike.unlike))
    notes += [*alike.notes, *_said_by_one(table, first, second, told_by)]
    kept = []
    tried = []
    for arm in arms:
        at, reduced = ladder.representatives(table, arm)
        kept.append(at)
        tried.append(reduced.tried)
        notes += [f"{arm}: {note}" for note in reduced.notes]
        if reduced.unclear:
            doubts.append(("ambiguous_repeats", f"{arm}: {reduced.unclear}"))
    favour_baseline, favour_treatment, note = repeats.uneven(tried[0], tried[1])
    notes += [note] if note else []
    pairs, more = _pairs(table, kept[0], kept[1], names)
    notes += more
    if not pairs:
        budgets = [_budgets_of(table, at) for at in kept]
        value = f"{names[0]} {budgets[0]}; {names[1]} {budgets[1]} FLOP"
        rule = "the arms have a budget in common, within a factor of 3, and a size where a budget has several"
        raise EvidenceError([Problem(table.name, rule, value, "Train both at one budget.")])
    if lost[0] != lost[1]:
        of = f"{counted(lost[0], 'run')} of {names[0]} and {lost[1]} of {names[1]} ended without a result"
        doubts.append(("lost_runs", f"{of}: what is left of an arm that lost more runs looks better than it is"))
    elif lost[0]:
        notes.append(f"{counted(lost[0], 'run')} of each arm ended without a result and are left out")
    if anonymous:
        notes.append(f"{counted(anonymous, 'run')} without a result left out, not known of which arm")
    return Arms(
        names,
        tuple(pairs),
        _rungs(table, arms[0], kept[0]),
        max(_rounding(table.loss[rows]) for rows in kept),
        (favour_baseline, favour_treatment),
        tuple(doubts),
        lost,
        tuple(notes),
    )


def _said_by_one(table: RunTable, first: np.ndarray, second: np.ndarray, told_by: Sequence[str]) -> list[str]:
    """A remark where only one arm's rows say with what its losses were measured."""
    lone = []
    for name, cells in table.cells.items():
        what = yardstick(name)
        if what is None or name in told_by:
            continue
        there = [any(cells[i] for i in np.flatnonzero(rows).tolist()) for rows in (first, second)]
        if there[0] != there[1]:
            lone.append(what)
    if not lone:
        return []
    return [f"only one arm says its {', '.join(dict.fromkeys(lone))}: taken to be the same for both"]


def _pairs(
    table: RunTable, base: np.ndarray, treat: np.ndarray, names: tuple[str, str]
) -> tuple[list[Pair], list[str]]:
    """Budgets and sizes that both arms have, and remarks on what is left out or unequal."""
    notes: list[str] = []
    budgets = [_by_budget(table, at) for at in (base, treat)]
    centres = [[float(np.log(table.C[at]).mean()) for at in of] for of in budgets]
    matches = _matched(centres[0], centres[1], TOLERANCE) or _matched(centres[0], centres[1], FARTHEST)
    left = [len(of) - len(matches) for of in budgets]
    for name, n in zip(names, left, strict=True):
        if n:
            notes.append(f"{counted(n, 'budget')} of {name} without a counterpart")
    pairs: list[Pair] = []
    apart = [abs(centres[0][i] - centres[1][j]) for i, j in matches]
    if apart and max(apart) > 0.01:
        notes.append(
            f"the arms' budgets differ by up to {math.expm1(max(apart)):.0%}: each is compared with what the baseline "
            "would reach at the treatment's"
        )
    unsized = 0
    for i, j in matches:
        sizes = [_by_size(table, budgets[0][i]), _by_size(table, budgets[1][j])]
        if len(sizes[0]) == len(sizes[1]) == 1:
            pairs.append(Pair(*(_sample(table, of[0], notes) for of in sizes)))
            continue
        middle = [[float(np.log(table.N[at]).mean()) for at in of] for of in sizes]
        alike = _matched(middle[0], middle[1], LIKE_SIZE)
        unsized += len(sizes[0]) + len(sizes[1]) - 2 * len(alike)
        pairs += [Pair(_sample(table, sizes[0][k], notes), _sample(table, sizes[1][m], notes)) for k, m in alike]
    if unsized:
        notes.append(f"{counted(unsized, 'size')} at a budget that the other arm has not, left out")
    return pairs, list(dict.fromkeys(notes))


def _by_budget(table: RunTable, at: np.ndarray) -> list[np.ndarray]:
    """An arm's rows by budget, ascending."""
    log_c = np.log(table.C[at])
    return [at[group] for group in repeats.groups_of(np.zeros(len(at)), log_c, TOLERANCE)]


def _by_size(table: RunTable, at: np.ndarray) -> list[np.ndarray]:
    """Rows of one budget by size, ascending."""
    if not np.isfinite(table.N[at]).all():
        return [at]
    return [at[group] for group in repeats.groups_of(np.log(table.N[at]), np.zeros(len(at)), TOLERANCE, SAME_SIZE)]


def _matched(first: Sequence[float], second: Sequence[float], most: float) -> list[tuple[int, int]]:
    """Places in both, ascending, that are matched in order: as many as lie within `most`, and of these the nearest."""
    best: dict[tuple[int, int], tuple[int, float, list[tuple[int, int]]]] = {}
    for i in range(len(first) + 1):
        for j in range(len(second) + 1):
            ways = [best[i - 1, j]] if i else []
            ways += [best[i, j - 1]] if j else []
            if i and j and abs(first[i - 1] - second[j - 1]) <= most:
                n, apart, pairs = best[i - 1, j - 1]
                ways.append((n + 1, apart - abs(first[i - 1] - second[j - 1]), [*pairs, (i - 1, j - 1)]))
            best[i, j] = max(ways, key=lambda way: way[:2], default=(0, 0.0, []))
    return best[len(first), len(second)][2]


def _sample(table: RunTable, at: np.ndarray, notes: list[str]) -> Sample:
    """Runs of one arm, budget and size; a seed that stands several times counts once, by its mean."""
    labels = _seeds(table, at)
    log_loss = np.log(table.loss[at])
    if float(log_loss.max() - log_loss.min()) > OUTLIER:
        worst, best = (f"{math.exp(end):.4g}" for end in (log_loss.max(), log_loss.min()))
        notes.append(f"{table.variant[int(at[0])]}: a loss of {worst} beside {best} at one budget: diverged? It counts")
    if labels and len(set(labels)) < len(labels):
        distinct = list(dict.fromkeys(labels))
        if len(distinct) == 1:
            labels = ()  # a column that is the same everywhere tells no seeds
        else:
            notes.append("a seed that stands twice in one arm at one budget counts once, by its mean")
            where = np.array(labels)
            log_loss = np.array([log_loss[where == seed].mean() for seed in distinct])
            labels = tuple(distinct)
    return Sample(
        log_loss,
        labels,
        math.exp(float(np.log(table.C[at]).mean())),
        float(table.N[at].mean()),
        float(table.D[at].mean()),
        _steps(table, at),
    )


def _seeds(table: RunTable, at: np.ndarray) -> tuple[str, ...]:
    """The seeds of some rows; empty where no column tells them."""
    columns = table.repeats.seed_columns or tuple(name for name in table.cells if key_of(name) in ALIASES["seed"])
    parts = [[table.cells[name][i].strip() for i in at.tolist()] for name in columns if name in table.cells]
    labels = tuple("/".join(cells) for cells in zip(*parts, strict=True))
    return labels if labels and all(label.strip("/") for label in labels) else ()


def _steps(table: RunTable, at: np.ndarray) -> float:
    """Mean steps of some rows by the column that tells them; NaN without one."""
    ranked = [(known.rank, name) for name in table.cells if (known := meaning(name)) and known.of == "steps_in_all"]
    ranked += [(100 + known.rank, name) for name in table.cells if (known := meaning(name)) and known.of == "step"]
    for _, name in sorted(ranked):
        try:
            return float(np.mean([float(table.cells[name][i]) for i in at.tolist()]))
        except ValueError:
            continue
    return math.nan


def _rungs(table: RunTable, arm: str, at: np.ndarray) -> tuple[Array, Array, Array]:
    """ln C, ln loss and seeds of the baseline's budgets: means over seeds, or the frontier where budgets have sizes."""
    budgets = _by_budget(table, at)
    if any(len(_by_size(table, of)) > 1 for of in budgets):
        frontier = ladder.ladder(table, arm)
        return frontier.x, frontier.y, frontier.repeats
    x = np.array([np.log(table.C[of]).mean() for of in budgets])
    y = np.array([np.log(table.loss[of]).mean() for of in budgets])
    return x, y, np.array([float(len(of)) for of in budgets])


def _rounding(loss: Array) -> float:
    """sd of a loss, as a share of it, from the digits that the losses are written with."""
    digits = max(len(repr(value).partition(".")[2]) if "e" not in repr(value) else 12 for value in loss.tolist())
    return float(10.0**-digits / math.sqrt(12) / np.exp(np.log(loss).mean()))


def _budgets_of(table: RunTable, at: np.ndarray) -> str:
    return ", ".join(number(float(np.exp(np.log(table.C[of]).mean()))) for of in _by_budget(table, at)[:6])


def _lost(path: Path, how: ReadOptions) -> dict[str, int]:
    """Runs without a result by arm, "" where no column names arms; nothing of a table that is not read by its names."""
    try:
        table = table_files.read_all([path])
        chosen = run_columns.choose(path, table, how.columns).columns
        values, _ = run_columns.values(path, table, chosen)
    except EvidenceError:
        return {}
    columns = table.columns
    state = [cell.lower() for cell in columns[chosen["state"].formula.text]] if "state" in chosen else [""] * len(table)
    lost = np.array([s in LOST for s in state], dtype=bool)
    losses = [values[name] for name in ("loss", "bits_per_byte") if name in values]
    if losses and "step" not in chosen:  # rows of a history hold a loss only where it was evaluated
        lost |= np.array([s in FINISHED for s in state]) & ~np.any([np.isfinite(loss) for loss in losses], axis=0)
    if "role" in columns and "rung_flops" in columns:
        lost &= np.array([role == ladder.LADDER_ROLE for role in columns["role"]])
    arms = columns[chosen["variant"].formula.text] if "variant" in chosen else [""] * len(table)
    runs = columns[chosen["run"].formula.text] if "step" in chosen and "run" in chosen else range(len(table))
    return dict(Counter(arm for arm, _ in {(arms[i], str(runs[i])) for i in np.flatnonzero(lost).tolist()}))
